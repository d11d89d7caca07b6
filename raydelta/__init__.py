"""raydelta: guided real-to-synthetic translation for segmentation with few labels."""

__version__ = "0.1.0"
