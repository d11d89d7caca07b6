"""The sample report of the docs, from a finished sweep on the built-in data sets.

    python -m benchmarks.sample_report runs/tune-… [--count 4] [--out docs/sample-report.html]

What `raydelta report` writes, with fewer photographs, and without the paths of the machine that made it.
"""

import argparse
from functools import partial
from pathlib import Path

from raydelta.data.shards import read_manifest
from raydelta.data.simulator.dataset import STAND_IN
from raydelta.results.gallery import draw_gallery_here
from raydelta.results.report import write_report
from raydelta.results.sweep import read_sweep


def main() -> None:
    """Write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=4, help="photographs")
    parser.add_argument("--out", type=Path, default=Path("docs/sample-report.html"))
    options = parser.parse_args()
    run = options.run.resolve()
    sweep = read_sweep(run)
    if sweep is None or read_manifest(sweep.config.data.real).name != STAND_IN:
        raise SystemExit(f"{run}: no sweep on the built-in data; photographs of other data sets belong to somebody")
    page = write_report(run, partial(draw_gallery_here, count=options.count)).read_text()
    made_in = Path(sweep.config.data.real).parents[1]  # the run may have been moved since
    for folder in (run.parent, made_in):
        page = page.replace(str(folder), "runs")
    options.out.write_text(page)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
