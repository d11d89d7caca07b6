"""Data sets: shards on disk or in a bucket, how they are made, checked, labelled, read and augmented.

In: folders, addresses and the simulator. Out: a ``Manifest``, ``Images`` in memory or a stream of batches. What is
trained on them is decided in ``training``.
"""
