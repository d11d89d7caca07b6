"""The built-in simulator: street scenes with exact masks, drawn with numpy and Pillow.

In: a seed, a look and a size. Out: an image with its mask (``simulate``), or a data set of them (``simulate_dataset``).
"""
