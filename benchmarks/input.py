"""The input streams against a torch DataLoader over the same shards, with the same number of processes.

    python -m benchmarks.input [--json FILE] [--images 1000] [--batches 150] [--rounds 3] [--step-ms 80]

Images a second in batches of 16 with labels at 256×128, from sets stored at that size and at 1280×760. No start-up.
``memory`` is the stream of a set that fits `data.cache_gib` (decoding is measured apart), ``stream`` that of a larger
one. Ratios are medians over rounds in which all are measured in turn. Also measured: the share of its time that a
consumer waits if each batch takes ``--step-ms`` elsewhere, as on a GPU; the memory of all processes after each of 10
epochs.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import describe_machine, memory_of_session, print_table, write_json
from raydelta.compute.cluster import ensure_ray
from raydelta.compute.device import Place
from raydelta.data.shards import read_rows
from raydelta.data.simulator.dataset import simulate_dataset
from raydelta.data.streams import MemoryStream, RayStream, load_images, share_cpus, stream_rows

SIZE, SOURCES = (256, 128), ((256, 128), (1280, 760))
BATCH, PROCESSES, EPOCHS = 16, 2, 10
HERE = Place(torch.device("cpu"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batches", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step-ms", type=float, default=80.0)
    options = parser.parse_args()
    cluster = ensure_ray()
    result: dict[str, Any] = {"machine": describe_machine(), "cluster_cpus": cluster.cpus, "options": vars(options)}
    result["ratios"] = {}
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SOURCES:
            source = f"{width}x{height}"
            target = str(Path(folder) / source)
            simulate_dataset("synthetic", target, counts={"train": options.images}, width=width, height=height)
            rates, decoding = compare(target, options.rounds, options.batches)
            result[source] = {"images_per_second": rates, "decoding": decoding}
            rows = []
            for name, values in rates.items():
                ratio = statistics.median(ours / dl for ours, dl in zip(values, rates["DataLoader"], strict=True))
                rows.append((name, statistics.median(values), ratio))
                result["ratios"][f"{name} from {source}"] = ratio
            print_table((f"from {source}", "images/s", "× DataLoader"), rows)
            print(f"decoding into memory, once: {decoding:.0f} images/s")
        target = str(Path(folder) / "256x128")
        result["data_wait"] = waiting_share(target, options.step_ms / 1000, options.batches)
        print(f"waiting, with {options.step_ms:g} ms of another device's work a batch: {result['data_wait']:.1%}")
        result["memory_gib"] = memory_by_epoch(target, options.images)
        print(f"memory after each epoch, GiB: {', '.join(f'{gib:.2f}' for gib in result['memory_gib'])}")
    write_json(options.json, result)


def compare(target: str, rounds: int, batches: int) -> tuple[dict[str, list[float]], float]:
    """Images a second of each input in every round, and of decoding into memory."""
    start = time.perf_counter()
    images = load_images(target, "train", SIZE)
    decoding = len(images) / (time.perf_counter() - start)
    inputs: dict[str, Callable[[], Callable[[], object]]] = {
        "DataLoader": lambda: dataloader(target),
        "memory": lambda: MemoryStream(images, BATCH, (0,), HERE).next,
        "stream": lambda: open_stream(target).next,
    }
    rates: dict[str, list[float]] = {name: [] for name in inputs}
    for _ in range(rounds):
        for name, opened in inputs.items():
            rates[name].append(rate(opened(), batches))
    return rates, decoding


def open_stream(target: str) -> RayStream:
    """A Ray Data stream that decodes in as many processes as the DataLoader."""
    rows = stream_rows(target, "train", SIZE)
    share_cpus([rows], 0.5 * PROCESSES)
    return RayStream(rows.iterator(), BATCH, 0, HERE)


def rate(draw: Callable[[], object], batches: int) -> float:
    """Images a second after 60 batches of start-up."""
    for _ in range(60):  # and what was decoded ahead meanwhile
        draw()
    start = time.perf_counter()
    for _ in range(batches):
        draw()
    return batches * BATCH / (time.perf_counter() - start)


def waiting_share(target: str, step: float, batches: int) -> float:
    """Share of the time that a consumer waits which leaves this machine alone for ``step`` seconds a batch."""
    stream, waited = open_stream(target), 0.0
    stream.next()
    start = time.perf_counter()
    for _ in range(batches):
        asked = time.perf_counter()
        stream.next()
        waited += time.perf_counter() - asked
        time.sleep(step)
    return waited / (time.perf_counter() - start)


def memory_by_epoch(target: str, images: int) -> list[float]:
    """GiB of this process and all that it started, Ray included, after each of ``EPOCHS`` epochs of a stream."""
    stream, taken = open_stream(target), []
    for _ in range(EPOCHS):
        for _ in range(images // BATCH):
            stream.next()
        taken.append(memory_of_session(os.getpid()) / 2**30)
    return taken


class Rows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The encoded rows in memory, decoded and resized by Pillow one by one: the usual way."""

    def __init__(self, target: str) -> None:
        table = read_rows(target, "train", columns=["image", "label"])
        self.images, self.labels = table["image"].to_pylist(), table["label"].to_pylist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image: Image.Image = Image.open(io.BytesIO(self.images[index]))
        label: Image.Image = Image.open(io.BytesIO(self.labels[index]))
        if image.size != SIZE:
            image = image.resize(SIZE, Image.Resampling.BILINEAR)
            label = label.resize(SIZE, Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), torch.from_numpy(np.array(label))


def dataloader(target: str) -> Callable[[], object]:
    """Draws batches from endless epochs of a DataLoader."""
    loader = DataLoader(
        Rows(target), BATCH, shuffle=True, drop_last=True, num_workers=PROCESSES, persistent_workers=True
    )
    batches = iter(loader)

    def draw() -> object:
        nonlocal batches
        try:
            return next(batches)
        except StopIteration:
            batches = iter(loader)
            return next(batches)

    return draw


if __name__ == "__main__":
    main()
