"""`raydelta predict` against the bare networks on the same device: photographs in files → masks in files.

    python -m benchmarks.predict [--json FILE] [--images 32] [--rounds 5] [a.b=c ...]

At the original CycleGAN's size (ResNet-9 of width 64) and 128 pixels high; the photographs lie as JPEG at 256×128 and
at 1280×760. Bare is a loop that calls R2S and the segmenter on batches of that height that lie on the device as floats
already; an actor of `raydelta predict` reads, decodes, resizes, predicts, enlarges, encodes and writes. Ratios are
medians over rounds in which all are measured in turn.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import FULL, describe_machine, in_turn, print_table, write_json
from raydelta.config import load_config
from raydelta.data.simulator.scene import simulate
from raydelta.data.taxonomy import CAMVID11
from raydelta.data.writing import encode_jpeg
from raydelta.deploy.model import Chain, ChainConfig, DeployConfig, Deployed, save
from raydelta.deploy.predict import Predictor
from raydelta.networks import Generator, build_segmenter

SIZES = ((256, 128), (1280, 760))
BATCH = 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    config = load_config(overrides=[*FULL, *options.overrides])
    settings = config.generator
    chain = Chain(build_segmenter(config.segmenter, len(CAMVID11)), Generator(settings))
    made_of = DeployConfig(
        run="benchmark",
        taxonomy=CAMVID11,
        width=config.data.width,
        height=config.data.height,
        chains=(ChainConfig(segmenter=config.segmenter, generator=settings),),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(Deployed(made_of, [chain]), folder / "model")
        window = (2 * config.data.width, 2 * config.data.height)
        predictor = Predictor(folder / "model", None, folder / "masks", ("ids",), range(256), window, BATCH)
        ways: dict[str, Callable[[], object]] = {}
        for width, height in SIZES:
            files = write_photographs(folder / f"{width}x{height}", options.images, width, height)
            ways[f"bare, {width}x{height}"] = bare(predictor, files)
            ways[f"predict, {width}x{height}"] = through(predictor, files)
        seconds = in_turn(ways, options.rounds)
    ratios = {}
    for width, height in SIZES:
        pairs = zip(seconds[f"bare, {width}x{height}"], seconds[f"predict, {width}x{height}"], strict=True)
        ratios[f"{width}x{height}"] = statistics.median(alone / whole for alone, whole in pairs)
    rates = {name: options.images / statistics.median(values) for name, values in seconds.items()}
    print_table(("", "images/s"), list(rates.items()))
    print(f"pace of the bare networks: {', '.join(f'{size} {ratio:.3f}' for size, ratio in ratios.items())}")
    result = {"machine": describe_machine(predictor.device), "options": vars(options), "seconds": seconds}
    write_json(options.json, result | {"ratios": ratios})


def write_photographs(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """The simulator's streets as JPEG files."""
    folder.mkdir()
    files = [folder / f"{number:03}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        file.write_bytes(encode_jpeg(Image.fromarray(simulate(number, look="street", width=width, height=height)[0])))
    return files


def bare(predictor: Predictor, files: list[Path]) -> Callable[[], None]:
    """Both networks on photographs that lie there as they want them."""
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files]))
    batches = predictor.model.prepare(pixels.to(predictor.device)).split(BATCH)

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                predictor.model.networks(batch)
        if predictor.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def through(predictor: Predictor, files: list[Path]) -> Callable[[], None]:
    """All that ``raydelta predict`` does with a file, in the batches that its actors get."""

    def run() -> None:
        for start in range(0, len(files), BATCH):
            part = files[start : start + BATCH]
            found = predictor(
                {"name": np.array([file.stem for file in part]), "address": np.array(list(map(str, part)))}
            )
            assert not any(found["reason"]), found["reason"]

    return run


if __name__ == "__main__":
    main()
