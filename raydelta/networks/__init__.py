"""Networks: generator, discriminator, segmenter, and the layers they share. They know no losses.

In: a section of the config. Out: an ``nn.Module``. How they are trained is decided in ``training``.
"""

from raydelta.networks.discriminator import Discriminator
from raydelta.networks.generator import Generator
from raydelta.networks.segmenter import build_segmenter

__all__ = ["Discriminator", "Generator", "build_segmenter"]
