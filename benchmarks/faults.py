"""What is lost when something dies: the table in docs/reliability.md.

    python -m benchmarks.faults [--only NAME …] [--kills 200] [--json FILE] [--write docs/reliability.md]

A FILE that is there keeps the rows of other faults.

Every fault is brought about for real (SIGKILL, a directory that is gone, a damaged file) in a process of its own, on
the smallest data and networks. Lost are the steps that were trained before the fault and had to be trained again.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import describe_machine, write_json
from benchmarks.faults_here import Result, damaged_checkpoint, disk_full, kills, prepare, storage_away
from benchmarks.faults_on_ray import (
    cluster_kills,
    controller,
    driver,
    head,
    joins,
    node,
    preemption,
    preemption_of_two,
    sweep,
    worker,
    worker_of_two,
)
from raydelta.compute.cluster import ensure_ray

FAULTS: dict[str, Callable[..., Result]] = {
    "worker": worker,
    "worker-of-two": worker_of_two,
    "controller": controller,
    "driver": driver,
    "node": node,
    "preemption": preemption,
    "preemption-of-two": preemption_of_two,
    "joins": joins,
    "head": head,
    "sweep": sweep,
    "storage-away": storage_away,
    "disk-full": disk_full,
    "damaged-checkpoint": damaged_checkpoint,
    "kills": kills,
    "cluster-kills": cluster_kills,
}
BEGIN, END = "<!-- faults: {} -->", "<!-- end of faults -->"


def format_markdown(path: Path) -> str:
    """The table of a JSON file that ``main`` has written."""
    lines = ["| fault | steps lost | of an interval of | what happens |", "| --- | --- | --- | --- |"]
    for row in json.loads(path.read_text())["faults"]:
        lost = "–" if row["lost"] is None else row["lost"]
        lines.append(f"| {row['fault']} | {lost} | {row['interval']} | {row['note']} |")
    return "\n".join(lines)


def bring_about(name: str, kills: int, folder: Path) -> Result | None:
    """A fault, in a process of its own; None if it did not end as it should."""
    path = folder / name
    path.mkdir()
    words = [sys.executable, "-m", "benchmarks.faults", "--only", name, "--kills", str(kills), "--child", str(path)]
    start = time.monotonic()
    process = subprocess.Popen(words, start_new_session=True)
    code = process.wait()
    with contextlib.suppress(ProcessLookupError):  # what a fault that went wrong has left
        os.killpg(process.pid, signal.SIGKILL)
    if code != 0:
        print(f"{name}: failed with code {code}", file=sys.stderr)
        return None
    seconds = round(time.monotonic() - start)
    return {"name": name} | json.loads((path / "result.json").read_text()) | {"seconds": seconds}


def main() -> None:
    """Bring about, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--json")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        (name,) = options.only
        runs = options.child / "work"
        runs.mkdir()
        extra = {"count": options.kills} if name == "kills" else {}
        (options.child / "result.json").write_text(json.dumps(FAULTS[name](runs, **extra)))
        return
    rows: list[Result] = []
    if options.json and Path(options.json).exists():
        known = json.loads(Path(options.json).read_text())["faults"]
        rows = [row for row in known if row["name"] not in options.only]
    failed = 0
    with tempfile.TemporaryDirectory(prefix="raydelta-faults-") as temporary:
        ensure_ray()
        import ray  # after the settings

        prepare(Path(temporary))
        ray.shutdown()
        for name in options.only:
            row = bring_about(name, options.kills, Path(temporary))
            failed += row is None
            if row is not None:
                rows = sorted([*rows, row], key=lambda one: list(FAULTS).index(one["name"]))
                print(json.dumps(row), flush=True)
                write_json(options.json, {"machine": describe_machine(), "faults": rows})
    if options.write and options.json:
        before, _, rest = options.write.read_text().partition("<!-- faults:")
        begin, after = BEGIN.format(options.json), rest.partition(END)[2]
        options.write.write_text(f"{before}{begin}\n{format_markdown(Path(options.json))}\n{END}{after}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
