"""Where things are kept: local folders, and stores by their address.

In: paths and addresses. Out: files, whole or not at all.

``files`` reads and writes them, ``bucket`` keeps a local copy of runs in a bucket, ``locks`` lets one process at a time
make something. What a run consists of is decided by the rooms that write it.
"""
