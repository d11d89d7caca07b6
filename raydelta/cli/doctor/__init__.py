"""``raydelta doctor``: what of this machine, its packages, its cluster and its storage is in order, and what to do.

In: nothing but the machine. Out: a list of checks, each with a remedy. ``probes`` are the checks that may hang or
crash; each runs in a process of its own.
"""
