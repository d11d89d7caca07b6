"""Which photographs to label next: strategies, the choice, its files for labelling tools, and its replay.

In: a finished translator and its unlabelled photographs. Out: images, or cells of images, as tasks for labelling tools
with their price; and the data set with the labels that come back. ``headroom`` measures first whether choosing pays.
"""
