"""Networks: generator, discriminator, segmenter. They know no losses."""

from raydelta.networks.discriminator import Discriminator
from raydelta.networks.generator import Generator
from raydelta.networks.segmenter import build_segmenter

__all__ = ["Discriminator", "Generator", "build_segmenter"]
