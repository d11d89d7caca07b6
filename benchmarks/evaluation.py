"""Evaluation against the bare networks on the same device: images a second through R2S, the expert and the counting.

    python -m benchmarks.evaluation [--json FILE] [--images 128] [--rounds 5] [a.b=c ...]

Bare is a loop that calls both networks on batches that lie on the device as floats already. Ratios are medians over
rounds in which both are measured in turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.common import describe_machine, print_table, write_json
from raydelta.config import load_config
from raydelta.data.streams import Images
from raydelta.evaluation import confusion_matrix
from raydelta.expert import freeze
from raydelta.networks import Generator, build_segmenter
from raydelta.workers import find_place

CLASSES, BATCH = 11, 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    config = load_config(overrides=options.overrides)
    place, shape = find_place(config), (config.data.height, config.data.width)
    r2s = freeze(Generator(config.generator.width, config.generator.blocks, config.generator.identity_start))
    r2s = r2s.to(place.device)
    expert = freeze(build_segmenter(config.segmenter, CLASSES)).to(place.device, place.dtype)
    random = np.random.default_rng(0)
    images = Images(
        tuple(map(str, range(options.images))),
        random.integers(256, size=(options.images, 3, *shape), dtype=np.uint8),
        random.integers(CLASSES, size=(options.images, *shape), dtype=np.uint8),
    )
    batches = torch.rand(options.images, 3, *shape, device=place.device, dtype=place.dtype).split(BATCH)

    def predict(x: torch.Tensor) -> torch.Tensor:
        return expert(r2s(x.to(place.dtype)).clamp(-1, 1)).float()

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                expert(r2s(batch))
        if place.device.type == "cuda":
            torch.cuda.synchronize()

    ways: dict[str, Callable[[], object]] = {
        "bare": bare,
        "evaluation": lambda: confusion_matrix(predict, images, CLASSES, place, BATCH),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    ratio = statistics.median(b / e for b, e in zip(seconds["bare"], seconds["evaluation"], strict=True))
    rates = {name: options.images / statistics.median(values) for name, values in seconds.items()}
    print_table(("", "images/s"), rates.items())
    print(f"evaluation at {ratio:.2f} of the bare networks' pace")
    result = {"machine": describe_machine(place.device), "options": vars(options), "seconds": seconds}
    write_json(options.json, result | {"ratios": {"evaluation": ratio}})


if __name__ == "__main__":
    main()
