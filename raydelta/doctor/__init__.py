"""``raydelta doctor``: what of this machine, its packages, its cluster and its storage is in order, and what to do.

``checks`` lists the checks. ``probes`` are those that may hang or crash; each runs in a process of its own.
"""
