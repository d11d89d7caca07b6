"""The default job as a user runs it: seconds to the first step and in all, peak memory, data wait, augmentation.

    python -m benchmarks.main_job [--json FILE] [--warm] [a.b=c ...]

Runs `raydelta tune` in a fresh folder and watches it from outside. Memory is the proportional set size of the command
and everything it started, Ray included (shared pages count once). With --warm the data sets are made before the clock
starts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.common import describe_machine, memory_of_session, print_table, write_json

COMMAND = [str(Path(sys.executable).with_name("raydelta"))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        if options.warm:  # one step makes the data sets and warms the page cache
            short = ["expert.steps=1", *(text for text in options.overrides if not text.startswith("expert.steps="))]
            subprocess.run(
                [*COMMAND, "train", "translator", "translator.steps=1", "--runs", folder, *short], check=True
            )
        result = watch([*COMMAND, "tune", "--runs", folder, *options.overrides], runs)
        stages = [json.loads(path.read_text()) for path in runs.glob("*/stage.json")]
    metrics = {stage["kind"]: stage["metrics"] for stage in sorted(stages, key=lambda stage: stage["kind"])}
    result["data_wait_percent"] = {kind: 100 * values["data_wait"] for kind, values in metrics.items()}
    result["augment_percent"] = {
        kind: 100 * values["seconds_augment"] / values["seconds_step"] for kind, values in metrics.items()
    }
    print_table(("figure", "value"), [(name, value) for name, value in result.items() if isinstance(value, float)])
    for name in ("data_wait_percent", "augment_percent"):
        print_table((f"{name} of the step", ""), list(result[name].items()))
    write_json(options.json, {"machine": describe_machine(), "options": vars(options), **result})


def watch(command: list[str], runs: Path) -> dict[str, Any]:
    """Run a command to its end; when its first training reported and how much memory it took at most."""
    start = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True)
    first_step = float("nan")
    peak = 0.0
    ended = threading.Event()
    while process.poll() is None:
        if first_step != first_step and any(runs.glob("unfinished/expert-*/progress.jsonl")):
            report = json.loads(next(runs.glob("unfinished/expert-*/progress.jsonl")).read_text().split("\n")[0])
            # The first report comes after its interval of steps and a validation: take those off.
            worked = sum(value for name, value in report.items() if name.startswith("seconds_"))
            first_step = time.monotonic() - start - worked
        peak = max(peak, memory_of_session(process.pid))
        ended.wait(0.5)
    if process.returncode:
        raise SystemExit(f"the command failed with {process.returncode}")
    return {
        "seconds_to_first_step": first_step,
        "seconds": time.monotonic() - start,
        "peak_memory_gib": peak / 2**30,
    }


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
