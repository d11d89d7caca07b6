"""Importing large images: throughput against a plain Pillow loop, memory over time, and what it takes on disk.

    python -m benchmarks.importing [--json FILE] [--images 10000] [--size 1024x608]

Generates 1280×760 scenes in the layout of SYNTHIA-RAND-CITYSCAPES (RGB PNGs, 16-bit labels): some distinct ones, linked
under as many names as are wanted. The plain loop does the same work for a part of them in one process: decode, map the
ids, resize, encode. Memory is that of the command and everything it started, Ray included, shared pages once.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import kornia_rs
import numpy as np
from PIL import Image

from benchmarks.common import describe_machine, memory_of_session, print_table, write_json
from raydelta.data.shards import read_manifest
from raydelta.data.simulator.scene import simulate
from raydelta.data.tables import read_table
from raydelta.data.taxonomy import get_taxonomy

SOURCE_SIZE = (1280, 760)
PLAIN = 100  # images of the plain loop


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--distinct", type=int, default=40)
    parser.add_argument("--size", default="1024x608")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        generate(source, options.images, options.distinct)
        plain = plain_loop(source, (width, height))
        target = Path(folder) / "set"
        command = [str(Path(sys.executable).with_name("raydelta")), "data", "import", str(source), str(target)]
        result = watch([*command, "--size", options.size])
        result["images_per_second"] = options.images / result["seconds"]
        result["images_per_second_per_core"] = result["images_per_second"] / (os.cpu_count() or 1)
        shards = [shard for split in read_manifest(target).splits.values() for shard in split.shards]
        result["kilobytes_per_image"] = sum(shard.bytes for shard in shards) / options.images / 1000
    result["plain_images_per_second"] = plain
    result["ratios"] = {"import": result["images_per_second"] / plain}
    result["ratios"]["import_per_core"] = result["images_per_second_per_core"] / plain
    print_table(("import", "value"), [(name, value) for name, value in result.items() if isinstance(value, float)])
    print_table(("ratio to the plain loop", ""), list(result["ratios"].items()))
    print_table(("share of the time", "GiB"), list(result["memory_gib"].items()))
    write_json(options.json, {"machine": describe_machine(), "options": vars(options), **result})


def generate(source: Path, images: int, distinct: int) -> None:
    """Scenes of the simulator as SYNTHIA stores them."""
    ids = {name: value for value, name in read_table("synthia-rand").ids.items()} | {"bicyclist": 11}
    lookup = np.array([ids[name] for name in get_taxonomy("camvid11").classes], dtype=np.uint16)
    for folder in ("RGB", "GT/LABELS"):
        (source / folder).mkdir(parents=True)
    for number in range(images):
        image, label = (source / folder / f"{number:07d}.png" for folder in ("RGB", "GT/LABELS"))
        if number < distinct:
            pixels, mask = simulate(number, seed=0, look="synthetic", width=SOURCE_SIZE[0], height=SOURCE_SIZE[1])
            Image.fromarray(pixels).save(image, compress_level=1)
            channels = np.zeros((*mask.shape, 3), dtype=np.uint16)
            channels[..., 0] = lookup[mask]
            kornia_rs.io.write_image_png_u16(str(label), channels, "rgb")
        else:
            for path in (image, label):
                path.hardlink_to(path.with_name(f"{number % distinct:07d}.png"))


def plain_loop(source: Path, size: tuple[int, int]) -> float:
    """Images a second of one process that does the same, one after the other, and writes nothing."""
    lookup = np.full(23, 255, dtype=np.uint8)
    for value, target in read_table("synthia-rand").to(get_taxonomy("cityscapes19")).items():
        lookup[value] = target
    start = time.perf_counter()
    for number in range(PLAIN):
        image = Image.open(source / "RGB" / f"{number:07d}.png").convert("RGB")
        data = (source / "GT/LABELS" / f"{number:07d}.png").read_bytes()
        channels = np.asarray(kornia_rs.io.decode_image_png_u16(data, SOURCE_SIZE[::-1], "rgb"))
        label = Image.fromarray(lookup[channels[..., 0]])
        image.resize(size, Image.Resampling.BILINEAR).save(io.BytesIO(), "JPEG", quality=95, subsampling=0)
        label.resize(size, Image.Resampling.NEAREST).save(io.BytesIO(), "PNG")
    return PLAIN / (time.perf_counter() - start)


def watch(command: list[str]) -> dict[str, Any]:
    """Run a command to its end; its seconds, its peak memory, and its memory at every tenth of the time."""
    start = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True)
    memory: list[float] = []
    while process.poll() is None:
        memory.append(memory_of_session(process.pid) / 2**30)
        time.sleep(2)
    if process.returncode:
        raise SystemExit(f"the command failed with {process.returncode}")
    seconds = time.monotonic() - start
    tenths = {f"{10 * tenth} %": memory[len(memory) * tenth // 10 - 1] for tenth in range(1, 11)}
    return {"seconds": seconds, "peak_memory_gib": max(memory), "memory_gib": tenths}


if __name__ == "__main__":
    main()
