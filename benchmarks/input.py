"""The input streams against a torch DataLoader over the same shards' rows, with the same number of processes.

    python -m benchmarks.input [--json FILE] [--images 2000] [--batches 300]

Images a second at 256×128, batches of 16 with labels, after the first epoch has begun. ``memory`` is what a set that
fits `data.cache_gib` takes (its decoding is not in the figure but beside it), ``stream`` what a larger one takes.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import describe_machine, print_table, write_json
from raydelta.cluster import ensure_ray
from raydelta.data.importers import simulate_dataset
from raydelta.data.shards import read_rows
from raydelta.data.streams import MemoryStream, RayStream, load_images, stream_rows
from raydelta.place import Place

SIZE, BATCH, PROCESSES = (256, 128), 16, 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batches", type=int, default=300)
    options = parser.parse_args()
    cluster = ensure_ray()
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "set")
        simulate_dataset("synthetic", target, counts={"train": options.images}, width=SIZE[0], height=SIZE[1])
        here = Place(torch.device("cpu"))
        start = time.perf_counter()
        images = load_images(target, "train", SIZE)
        decoding = len(images) / (time.perf_counter() - start)
        rates = {
            "DataLoader": rate(dataloader(target), options.batches),
            "memory": rate(MemoryStream(images, BATCH, (0,), here).next, options.batches),
            "stream": rate(
                RayStream(stream_rows(target, "train", SIZE).iterator(), BATCH, 0, here).next, options.batches
            ),
        }
    rows = [(name, value, value / rates["DataLoader"]) for name, value in rates.items()]
    print_table(("input", "images/s", "× DataLoader"), rows)
    print(f"decoding into memory, once: {decoding:.0f} images/s")
    result = {"machine": describe_machine(), "cluster_cpus": cluster.cpus, "options": vars(options)}
    write_json(options.json, result | {"images_per_second": rates | {"decoding": decoding}})


def rate(draw: Callable[[], object], batches: int) -> float:
    """Images a second after 20 batches of start-up."""
    for _ in range(20):
        draw()
    start = time.perf_counter()
    for _ in range(batches):
        draw()
    return batches * BATCH / (time.perf_counter() - start)


class Rows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The encoded rows in memory, decoded by Pillow one by one: the usual way."""

    def __init__(self, target: str) -> None:
        table = read_rows(target, "train", columns=["image", "label"])
        self.images, self.labels = table["image"].to_pylist(), table["label"].to_pylist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = (np.array(Image.open(io.BytesIO(part[index]))) for part in (self.images, self.labels))
        return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(label)


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
