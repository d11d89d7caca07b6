"""Evaluation and selection against the bare networks on the same device, in images a second.

    python -m benchmarks.evaluation [--json FILE] [--images 32] [--rounds 5] [a.b=c ...]

At the original CycleGAN's size (ResNet-9 of width 64, 256×128). "Bare" calls both networks on batches that are on the
device as floats already. Prediction starts from decoded bytes and ends with a class for every pixel. Ratios are medians
over rounds in which all are measured in turn: evaluation to the bare networks, each strategy to prediction.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks.common import FULL, describe_machine, in_turn, print_table, write_json
from raydelta.compute.device import find_place
from raydelta.config import load_config
from raydelta.data.pixels import to_float
from raydelta.data.streams import Images
from raydelta.networks import Generator, build_segmenter
from raydelta.networks.layers import freeze
from raydelta.selection.strategies import STRATEGIES, Networks, View, score
from raydelta.training.metrics import confusion_matrix

CLASSES, BATCH = 11, 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    config = load_config(overrides=[*FULL, *options.overrides])
    place, shape = find_place(config), (config.data.height, config.data.width)
    r2s = freeze(Generator(config.generator))
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

    networks = Networks(
        r2s=lambda x: r2s(x.to(place.dtype)).float().clamp(-1, 1),
        s2r=lambda x: r2s(x.to(place.dtype)).float(),  # as large as the other one
        see=lambda x: ((logits := expert(x.to(place.dtype)).float()), [logits]),
    )

    def through(use: Callable[[View], object]) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode():
                for start in range(0, options.images, BATCH):
                    pixels = torch.from_numpy(images.pixels[start : start + BATCH]).to(place.device)
                    use(View(networks, to_float(pixels)))
            if place.device.type == "cuda":
                torch.cuda.synchronize()

        return run

    ways: dict[str, Callable[[], object]] = {
        "bare": bare,
        "evaluation": lambda: confusion_matrix(predict, images, CLASSES, place, BATCH),
        "prediction": through(lambda view: view.classes.byte().cpu()),
    }
    for name, strategy in STRATEGIES.items():
        ways[name] = through(partial(score, strategy, classes=CLASSES, grid=(1, 1)))
    seconds = in_turn(ways, options.rounds)
    against = {"evaluation": "bare"} | {name: "prediction" for name in STRATEGIES if name != "random"}
    ratios = {
        name: statistics.median(b / e for b, e in zip(seconds[other], seconds[name], strict=True))
        for name, other in against.items()
    }
    rates = {name: options.images / statistics.median(values) for name, values in seconds.items()}
    print_table(("", "images/s", "pace"), [(name, rate, ratios.get(name)) for name, rate in rates.items()])
    result = {"machine": describe_machine(place.device), "options": vars(options), "seconds": seconds}
    write_json(options.json, result | {"ratios": ratios})


if __name__ == "__main__":
    main()
