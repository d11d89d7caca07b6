"""What one more trial of a sweep costs beside its training: as a plain Tune function, and with Ray Train inside.

    python -m benchmarks.trial_overhead [--json FILE] [--trials 6] [--many 0]

Trials of one step, one at a time; the overhead is the slope between one trial and several. With ``--many`` a sweep of
that many plain trials follows, with the memory of all processes over time. Last, two compiled trials in separate
processes: the second one finds the compiled kernels of the first.
"""

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import yaml

from benchmarks.common import describe_machine, memory_of_session, print_table, write_json

SMALL = [
    "data.synthetic_images=40",
    "data.real_images=40",
    "data.test_images=4",
    "expert.steps=1",
    "translator.steps=1",
    "translator.batch=2",
    "labels.budget=2",
    "labels.validation=1",
]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--many", type=int, default=0)
    options = parser.parse_args()
    seconds: dict[str, float] = {}
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "kernels")  # an empty one; Ray's workers inherit it
        sweep(folder, 1, 1, 0)  # makes the data and the expert
        for way, workers in (("plain function", 1), ("Ray Train, 2 workers", 2)):
            one, several = (sweep(folder, workers, trials, trials * workers) for trials in (1, options.trials))
            seconds[way] = (several - one) / (options.trials - 1)
        if options.many:
            stopped = threading.Event()
            watcher = threading.Thread(target=watch_memory, args=(memory, stopped))
            watcher.start()
            seconds[f"plain function, of {options.many}"] = sweep(folder, 1, options.many, 50) / options.many
            stopped.set()
            watcher.join()
        for number, way in ((60, "first compiled trial"), (61, "second compiled trial")):
            seconds[way] = sweep(folder, 1, 1, number, "compute.compile=true")
    print_table(("one more trial", "seconds"), list(seconds.items()))
    # Imports and the first trials grow it; from a quarter of the way on it should not.
    parts = [memory[len(memory) * quarter // 4] for quarter in (1, 2, 3)] + memory[-1:] if len(memory) > 3 else []
    print(f"memory at a quarter, half, three quarters and the end, GiB: {', '.join(f'{gib:.2f}' for gib in parts)}")
    ratios = {"compiled_again": seconds["first compiled trial"] / seconds["second compiled trial"]}
    result = {"seconds_per_trial": seconds, "memory_gib": parts, "ratios": ratios}
    write_json(options.json, {"machine": describe_machine(), "options": vars(options), **result})


def sweep(folder: Path, workers: int, trials: int, number: int, *overrides: str) -> float:
    """Seconds of a sweep of so many trials, each of another setting so that none is found finished."""
    from raydelta.tuning.tune import tune  # imports torch, which reads the cache's address

    weights = [0.1 + 0.8 * (index + 1000 * number) / 100_000 for index in range(trials)]
    space = {
        "search": {"guidance.weight": {"grid": weights}},
        "trials": 1,
        "concurrent": 1,
        "scheduler": "none",
        "resources": {"workers": workers},
        "table": {"methods": ["guided"]},
    }
    path = folder / f"space-{number}.yaml"
    path.write_text(yaml.safe_dump(space))
    start = time.monotonic()
    tune(str(path), [*SMALL, *overrides], runs=folder / "runs")
    return time.monotonic() - start


def watch_memory(memory: list[float], stopped: threading.Event) -> None:
    """Append the GiB of this process and all that it started every two seconds until stopped."""
    while not stopped.wait(2):
        memory.append(memory_of_session(os.getpid()) / 2**30)


if __name__ == "__main__":
    main()
