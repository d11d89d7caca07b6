"""`raydelta predict photo.jpg`, from the start of the process to the written overlay, against an import of torch.

    python -m benchmarks.first_mask [--json FILE] [--rounds 5] [a.b=c ...]

The model is the laptop preset's guided row with untrained weights, in an exported folder; the photograph is a JPEG of
1280×640. Both ways come in turn, after a round that warms the page cache. Seconds of the clock and of the processor are
taken: the latter depend less on what else the machine does. The ratio is the processor time of the bare import over
that of the whole command, so higher is better.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from benchmarks.common import describe_machine, print_table, write_json
from raydelta.config import load_config
from raydelta.data.simulator.scene import simulate
from raydelta.data.taxonomy import CAMVID11
from raydelta.deploy.network import Chain, ChainConfig, DeployConfig, Deployed, save
from raydelta.networks import Generator, build_segmenter

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""Threads that wait for each other count as processor time."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    config = load_config("laptop", overrides=options.overrides)
    made_of = DeployConfig(
        run="benchmark",
        method="guided",
        taxonomy=CAMVID11,
        width=config.data.width,
        height=config.data.height,
        chains=(ChainConfig(segmenter=config.segmenter, generator=config.generator),),
    )
    chain = Chain(build_segmenter(config.segmenter, len(CAMVID11)), Generator(config.generator))
    with tempfile.TemporaryDirectory() as name:
        folder, photo = Path(name) / "model", Path(name) / "photo.jpg"
        folder.mkdir()
        save(Deployed(made_of, [chain]), folder)
        Image.fromarray(simulate(0, look="street", width=1280, height=640)[0]).save(photo)
        predict = ["-m", "raydelta", "predict", str(folder), str(photo)]
        ways = {"import torch": ["-c", "import torch"], "predict": predict}
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for turn in range(options.rounds + 1):
            for way, arguments in ways.items():
                once = _run(arguments)
                taken[way] += [once] * (turn > 0)
        assert photo.with_name("photo-overlay.png").exists()
    clock, processor = (
        {way: statistics.median(once[part] for once in values) for way, values in taken.items()} for part in (0, 1)
    )
    ratio = processor["import torch"] / processor["predict"]
    print_table(("median seconds", "clock", "processor"), [(way, clock[way], processor[way]) for way in ways])
    result = {"machine": describe_machine(), "options": vars(options), "clock": clock, "processor": processor}
    write_json(options.json, result | {"ratios": {"import_by_predict": ratio}})


def _run(arguments: list[str]) -> tuple[float, float]:
    """Seconds of a Python process: of the clock, and of the processor."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | ONE_THREAD
    )
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)}: failed")
    return time.perf_counter() - start, used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
