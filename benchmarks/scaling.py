"""Weak scaling of the translator from one worker to two, measured; and an estimate for more machines.

    python -m benchmarks.scaling [--json FILE] [--steps 12] [--rounds 3] [a.b=c ...]

Measured with Ray Train workers of one thread each: one worker, two workers with as many images each, and two trainings
side by side that share nothing, which is the most that the machine can give. Images a second against those of one
worker, medians over rounds in turn. The estimate is `efficiency` (docs/scaling.md).
"""

import argparse
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.common import FULL, describe_machine, print_table, write_json
from raydelta.compute.cluster import ensure_ray
from raydelta.config import Config, load_config, override
from raydelta.data.prepare import prepare_data
from raydelta.training.job import Job, make_job
from raydelta.training.on_ray import train_on_ray
from raydelta.training.run import train_here
from raydelta.training.stage import read_stage

STEPS, FLEETS, NODE = (0.03, 0.15), (8, 64, 512), 8  # seconds, GPUs, GPUs of a node
GENERATOR, DISCRIMINATOR = 11_372_931, 2_763_841  # parameters: ResNet-9 of width 64, PatchGAN of width 64
LINKS = {"InfiniBand, 8 × 400 Gbit/s": 400e9, "Ethernet, 400 Gbit/s": 50e9, "Ethernet, 100 Gbit/s": 12.5e9}
"""Bytes a second of a node to the others, all its GPUs together."""
DISCRIMINATORS = ["discriminator.width=64", "discriminator.layers=3", "guidance.batch=1"]
INSIDE = 300e9  # bytes a second of a GPU to the others of its node, NVLink


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    ensure_ray()
    rates: dict[str, list[float]] = {"one": [], "two": [], "side by side": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # The pace is that of the last report's steps: in the first half buffers grow and FLOPs are counted.
        half = f"compute.report_every={options.steps // 2}"
        fields = [f"translator.steps={options.steps}", half, "expert.steps=1"]
        config = prepare_data(load_config(overrides=[*fields, *FULL, *DISCRIMINATORS, *options.overrides]), folder)
        expert = make_job("expert", config, folder)
        train_here(expert)
        for number in range(options.rounds):
            runs = [folder / f"{number}-{name}" for name in ("one", "two", "left", "right")]
            rates["one"].append(images_per_second(config, 1, runs[0], expert))
            rates["two"].append(images_per_second(config, 2, runs[1], expert))
            with ThreadPoolExecutor(2) as both:
                beside = both.map(lambda run: images_per_second(config, 1, run, expert), runs[2:])
                rates["side by side"].append(sum(beside))
    ratio, limit = (
        statistics.median(many / one for one, many in zip(rates["one"], rates[name], strict=True))
        for name in ("two", "side by side")
    )
    print_table(("workers", "images/s"), [(name, statistics.median(values)) for name, values in rates.items()])
    print(f"two workers: {ratio:.2f} × one; two trainings side by side: {limit:.2f} ×")
    for step in STEPS:
        titles = (f"on paper, {1000 * step:g} ms a step", *(f"{gpus} GPUs" for gpus in FLEETS))
        print_table(
            titles, [(link, *(efficiency(step, gpus, rate) for gpus in FLEETS)) for link, rate in LINKS.items()]
        )
    result = {"machine": describe_machine(), "options": vars(options), "images_per_second": rates}
    write_json(options.json, result | {"ratios": {"two_workers": ratio, "two_workers_by_limit": ratio / limit}})


def images_per_second(config: Config, workers: int, runs: Path, expert: Job) -> float:
    """Of a translator on so many workers, with the config's batch for each of them."""
    batches = {
        "translator.batch": config.translator.batch * workers,
        "guidance.batch": config.guidance.batch * workers,
        "compute.workers": workers,
    }
    job = make_job("translator", override(config, batches), runs, expert.directory)
    train_on_ray(job)
    stage = read_stage(job.directory)
    assert stage is not None
    return float(stage["metrics"]["images_per_second"])


def efficiency(step: float, gpus: int, link: float, hidden: float = 0.5) -> float:
    """Share of the pace of so many lonely GPUs that they keep together, on paper.

    Args:
        step: seconds of a step on one GPU.
        link: bytes a second of a node to the others.
        hidden: share of the exchange that runs beside the backward pass.
    """
    gradients = 4 * 2 * (GENERATOR + DISCRIMINATOR)
    inside = 2 * (min(gpus, NODE) - 1) / min(gpus, NODE) * gradients / INSIDE
    nodes = -(-gpus // NODE)
    between = 2 * (nodes - 1) / nodes * gradients / link
    return step / (step + (1 - hidden) * (inside + between))


if __name__ == "__main__":
    main()
