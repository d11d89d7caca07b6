"""raydelta: guided real-to-synthetic translation for segmentation with few labels."""

from raydelta.version import __version__ as __version__


def __getattr__(name: str) -> object:
    if name == "load":  # torch only for who asks for it
        from raydelta.deploy.model import load

        return load
    raise AttributeError(f"module 'raydelta' has no attribute {name!r}")
