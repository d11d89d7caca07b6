"""raydelta: guided real-to-synthetic translation for segmentation with few labels."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "load":  # torch only for who asks for it
        from raydelta.deploy import load

        return load
    raise AttributeError(f"module 'raydelta' has no attribute {name!r}")
