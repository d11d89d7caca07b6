"""Which photographs to label next: strategies, the choice, its files for labelling tools, and its replay.

In: a finished translator and its unlabelled photographs. Out: a list of images, or cells of images, to label.
"""
