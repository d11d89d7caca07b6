"""`raydelta predict` against the bare networks on the same device: photographs in files → masks in files.

    python -m benchmarks.predict [--json FILE] [--images 32] [--rounds 5] [--paced 200] [--rate 20] [a.b=c ...]

At the original CycleGAN's size (ResNet-9 of width 64) and 128 pixels high; the photographs lie as JPEG at 256×128 and
at 1280×760. Bare is a loop that calls R2S and the segmenter on batches of that height that lie on the device as floats
already; `raydelta predict` of a few photographs, in this process, reads, decodes, resizes, predicts, enlarges, encodes
and writes. Ratios are medians over rounds in which all are measured in turn.

With --paced the stages on Ray follow: a made-up network of --rate images a second, on one made-up GPU, and so many
photographs of 1280×760: how close the network, which waits for photographs and for room, comes to its rate. The machine
has to be able to read and write so many photographs; how many one process does in a second is printed too.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.common import FULL, describe_machine, in_turn, print_table, write_json
from raydelta.compute.cluster import set_defaults
from raydelta.config import load_config
from raydelta.data.simulator.scene import simulate
from raydelta.data.taxonomy import CAMVID11
from raydelta.data.writing import encode_jpeg
from raydelta.deploy.frames import Frame, Task, read_frames_of, write_frame
from raydelta.deploy.inputs import Input
from raydelta.deploy.network import Chain, ChainConfig, DeployConfig, Deployed
from raydelta.deploy.predict import Segmenter, pipeline, predict_here
from raydelta.networks import Generator, build_segmenter
from raydelta.networks.layers import freeze

SIZES = ((256, 128), (1280, 760))
BATCH = 8
BATCHES = "batches"  # file with the end and the size of each of its batches


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--paced", type=int, default=0)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    config = load_config(overrides=[*FULL, *options.overrides])
    settings = config.generator
    made_of = DeployConfig(
        run="benchmark",
        taxonomy=CAMVID11,
        width=config.data.width,
        height=config.data.height,
        chains=(ChainConfig(segmenter=config.segmenter, generator=settings),),
    )
    network = Deployed(made_of, [Chain(build_segmenter(config.segmenter, len(CAMVID11)), Generator(settings))])
    freeze(network)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = Task(folder, None, folder / "masks", ("ids",), CAMVID11, tuple(range(256)), None, BATCH)
        segmenter = Segmenter(task, network)
        ways: dict[str, Callable[[], object]] = {}
        photographs: dict[str, list[Input]] = {}
        for width, height in SIZES:
            size = f"{width}x{height}"
            photographs[size] = write_photographs(folder / size, options.images, width, height)
            ways[f"bare, {size}"] = bare(segmenter, photographs[size])
            ways[f"predict, {size}"] = lambda items=photographs[size]: list(predict_here(network, items, task))  # type: ignore[misc]
        seconds = in_turn(ways, options.rounds) if options.rounds else {}
        paced = pace(photographs["1280x760"], options.paced, options.rate, task) if options.paced else None
    ratios = {
        size: statistics.median(
            alone / whole for alone, whole in zip(seconds[f"bare, {size}"], seconds[f"predict, {size}"], strict=True)
        )
        for size in photographs
        if seconds
    }
    rates = {name: options.images / statistics.median(values) for name, values in seconds.items()}
    print_table(("", "images/s"), list(rates.items()))
    print(f"pace of the bare networks: {', '.join(f'{size} {ratio:.3f}' for size, ratio in ratios.items())}")
    if paced is not None:
        ratios["paced"] = paced["paced"]
        print(f"pace of a network of {options.rate:g} images/s on Ray: {paced['paced']:.3f}")
        print(f"images/s that one process reads and writes: {paced['files']:.1f}")
    result = {"machine": describe_machine(segmenter.device), "options": vars(options), "seconds": seconds}
    write_json(options.json, result | {"ratios": ratios, "paced": paced})


def write_photographs(folder: Path, count: int, width: int, height: int) -> list[Input]:
    """The simulator's streets as JPEG files."""
    folder.mkdir()
    items = [Input(f"{number:03}", str(folder / f"{number:03}.jpg")) for number in range(count)]
    for number, item in enumerate(items):
        image = simulate(number, look="street", width=width, height=height)[0]
        Path(item.address).write_bytes(encode_jpeg(Image.fromarray(image)))
    return items


def bare(segmenter: Segmenter, items: Sequence[Input]) -> Callable[[], None]:
    """Both networks on photographs that lie there as they want them."""
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(item.address)) for item in items]))
    batches = segmenter.network.prepare(pixels.to(segmenter.device)).split(BATCH)

    def run() -> None:
        with torch.inference_mode():
            for batch in batches:
                segmenter.network.networks(batch)
        if segmenter.device.type == "cuda":
            torch.cuda.synchronize()

    return run


class PacedSegmenter(Segmenter):
    """A network that takes its time, and nothing else: every pixel gets the first class."""

    rate = 0.0  # images a second

    def __init__(self, task: Task) -> None:
        self.task, self.keeps_image = task, False

    def segment(self, frames: Sequence[Frame]) -> list[Frame]:
        assert self.task.out is not None
        time.sleep(len(frames) / self.rate)
        with (self.task.out / BATCHES).open("a") as file:
            file.write(f"{time.time()} {len(frames)}\n")
        return [Frame(**frame | {"mask": bytes(frame["height"] * frame["width"]), "image": b""}) for frame in frames]


def pace(items: Sequence[Input], count: int, rate: float, task: Task) -> dict[str, float]:
    """The network's pace on Ray, from the end of its first batch, as a share of its rate; and images/s of the files."""
    set_defaults()
    import ray

    assert task.out is not None
    task.out.mkdir(exist_ok=True)
    network = type("Paced", (PacedSegmenter,), {"rate": rate})
    start = time.perf_counter()
    for item in items:
        for frame in read_frames_of(item, task):
            mask = bytes(frame["height"] * frame["width"])
            write_frame(Frame(**frame | {"name": f"file-{item.name}", "mask": mask, "image": b""}), task)
    files = len(items) / (time.perf_counter() - start)
    ray.init("local", num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    repeated = [Input(f"{number:05}", items[number % len(items)].address) for number in range(count)]
    assert sum(bool(frame["mask"]) for frame in pipeline(repeated, task, network).iter_rows()) == count
    ray.shutdown()
    batches = [line.split() for line in (task.out / BATCHES).read_text().splitlines()]
    seconds = float(batches[-1][0]) - float(batches[0][0])
    return {"paced": sum(int(images) for _, images in batches[1:]) / seconds / rate, "files": files}


if __name__ == "__main__":
    main()
