"""Commands at once on one folder: each round has to end with one whole result.

    python -m benchmarks.races [--rounds 50] [--only KIND …] [--json FILE]

Two to four processes train the same, predict into one folder or import to one target; runs are pruned beside a
training, and a report is written again and again beside a sweep. Smallest sizes; the kinds share the rounds.
"""

import argparse
import filecmp
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from benchmarks.common import write_json
from benchmarks.faults_here import contents, expert, forked, prepare, wait
from raydelta.compute.cluster import ensure_ray
from raydelta.data.checking import check
from raydelta.deploy.predict import predict
from raydelta.results.report import report
from raydelta.results.runs import find_leftovers, prune
from raydelta.training.checkpoint import find_whole
from raydelta.training.job import Job, make_job
from raydelta.training.run import train_here, working_directory

STEPS = 6
PHOTOGRAPHS = 8


class Races:
    """What the rounds start from, and the kinds of them."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.chance = folder, chance
        job = expert(folder / "reference", STEPS, 2)
        assert wait(forked(lambda: train_here(job))) == 0
        self.whole = contents(job.directory / "checkpoint")
        translator = make_job("translator", job.config, job.directory.parent, job.directory)
        assert wait(forked(lambda: train_here(translator))) == 0
        self.translator = translator.directory
        self.photographs = folder / "photographs"
        self._draw(self.photographs)
        self._draw(folder / "source" / "images" / "train")
        self.masks = folder / "masks"
        assert wait(forked(lambda: self._predict(self.masks))) == 0

    @staticmethod
    def _draw(target: Path) -> None:
        target.mkdir(parents=True)
        for number in range(PHOTOGRAPHS):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(target / f"{number:03}.png")

    def _predict(self, out: Path) -> None:
        predict(self.translator, [str(self.photographs)], out)

    def _at_once(self, *works: Callable[[], None]) -> list[int]:
        """The exit codes of children that begin within a moment."""
        children = []
        for work in works:
            children.append(forked(work))
            time.sleep(self.chance.choice([0, 0, 0.05, 0.3]))
        return [wait(child) for child in children]

    def _commands(self, *commands: list[str]) -> list[tuple[int, str]]:
        """Exit codes and what was said by command lines that begin within a moment."""
        started = []
        for command in commands:
            words = [sys.executable, "-m", "raydelta.cli", *command]
            started.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
            time.sleep(self.chance.choice([0, 0.5, 2]))
        return [(process.wait(), said) for process in started for said in [process.communicate()[0]]]

    def _count(self) -> int:
        return self.chance.randint(2, 4)

    def train(self, runs: Path) -> None:
        """The same training: one trains, the others wait and take it."""
        job = expert(runs, STEPS, 2)
        codes = self._at_once(*[lambda: train_here(job)] * self._count())
        assert codes == [0] * len(codes), codes
        self._is_whole(job)
        assert find_leftovers(runs) == [] or all("optimisers" in left.why for left in find_leftovers(runs))

    def predict(self, runs: Path) -> None:
        """One output folder: every mask is that of a run alone."""
        codes = self._at_once(*[lambda: self._predict(runs / "masks")] * self._count())
        assert codes == [0] * len(codes), codes
        names = [f"ids/{number:03}.png" for number in range(PHOTOGRAPHS)]
        same, other, missing = filecmp.cmpfiles(self.masks, runs / "masks", names, shallow=False)
        assert (len(same), other, missing) == (len(names), [], [])
        assert sorted(path.name for path in (runs / "masks" / "ids").iterdir()) == [name[4:] for name in names]

    def prune(self, runs: Path) -> None:
        """Leftovers are removed beside a training that is just making some."""
        job = expert(runs, STEPS, 2)

        def clear() -> None:
            for _ in range(20):
                prune(find_leftovers(runs))
                time.sleep(0.05)

        codes = self._at_once(lambda: train_here(job), clear, *[lambda: train_here(job)] * (self._count() - 2))
        assert codes == [0] * len(codes), codes
        self._is_whole(job)

    def import_(self, runs: Path) -> None:
        """One target: one imports, the others wait and find it."""
        target = runs / "set"
        command = ["data", "import", str(self.folder / "source"), str(target), "--allow-unlabelled", "--kind", "folder"]
        ended = self._commands(*[command] * self._count())
        assert [code for code, _ in ended] == [0] * len(ended), ended
        assert check(target).problems == [] and not list(runs.glob("*.partial"))

    def report(self, runs: Path) -> None:
        """A report is written while the sweep that it is about goes on."""
        space = runs / "space.yaml"
        search = {"guidance.weight": {"grid": [0.2, 0.6]}}
        space.write_text(
            yaml.safe_dump({"search": search, "trials": 1, "scheduler": "none", "table": {"methods": ["guided"]}})
        )
        config = runs.parent / "config.json"  # which YAML can read
        tune = [
            "tune",
            str(space),
            "--config",
            str(config),
            "--runs",
            str(runs),
            "translator.steps=4",
            "expert.steps=4",
        ]
        process = subprocess.Popen(
            [sys.executable, "-m", "raydelta.cli", *tune], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        written = 0
        while process.poll() is None:
            for directory in runs.glob("tune-*"):
                assert wait(forked(partial(_write, directory))) == 0
                written += 1
            time.sleep(0.5)
        said = process.communicate()[0]
        assert process.returncode == 0, said
        (directory,) = runs.glob("tune-*")
        assert written > 0 and (directory / "table.json").exists() and (directory / "report.html").exists()

    def _is_whole(self, job: Job) -> None:
        assert job.done
        assert contents(job.directory / "checkpoint") == self.whole
        assert find_whole([job.directory / "checkpoint"])
        assert not working_directory(job).exists()


def _write(directory: Path) -> None:
    report(directory)


SHARES = {"train": 14, "predict": 14, "prune": 14, "import_": 5, "report": 3}
"""Rounds of each kind in fifty: the last two start a Ray of their own."""


def share_out(rounds: int, only: list[str]) -> list[str]:
    """The kinds of the rounds, mixed."""
    kinds = [kind for kind, share in SHARES.items() if not only or kind in only for _ in range(share)]
    random.Random(0).shuffle(kinds)
    return [kinds[number % len(kinds)] for number in range(rounds)]


def main() -> None:
    """Race, check, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--only", nargs="+", choices=list(SHARES), default=[])
    parser.add_argument("--json")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        ensure_ray()
        prepare(options.prepare)
        return
    done, broken = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="raydelta-races-") as temporary:
        folder = Path(temporary)
        # In a process of its own: one that has started Ray cannot be forked.
        subprocess.run([sys.executable, "-m", "benchmarks.races", "--prepare", str(folder)], check=True)
        races = Races(folder, random.Random(0))
        for number, kind in enumerate(share_out(options.rounds, options.only)):
            runs = folder / f"{number}"
            runs.mkdir()
            try:
                getattr(races, kind)(runs)
            except AssertionError as error:
                broken[kind] += 1
                print(f"round {number}, {kind}: {error}", flush=True)
            done[kind] += 1
            shutil.rmtree(runs, ignore_errors=True)
    print(", ".join(f"{count} × {kind.strip('_')}" for kind, count in done.items()))
    print(f"{sum(done.values())} rounds, {sum(broken.values())} without one whole result")
    write_json(options.json, {"rounds": dict(done), "broken": dict(broken)})
    if broken:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
