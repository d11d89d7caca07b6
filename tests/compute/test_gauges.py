"""What Prometheus gets to see, from the endpoint it would ask, after a sweep of one trial."""

import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import ray

from raydelta.compute import gauges
from raydelta.tuning.tune import tune
from tests.test_search_space import write_space
from tests.tiny import TINY_ARGUMENTS

DASHBOARD = Path(__file__).parents[2] / "clusters" / "grafana.json"


@contextmanager
def scraping() -> Iterator[set[str]]:
    """All lines that the node's endpoint shows within. It forgets what a process has not renewed for some seconds."""
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    lines: set[str] = set()
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(1):
            with suppress(OSError), urllib.request.urlopen(address, timeout=10) as answer:
                lines.update(line for line in answer.read().decode().splitlines() if "raydelta" in line)

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield lines
    finally:
        ended.set()
        thread.join()


@pytest.mark.timeout(400)
def test_a_sweep_shows_in_the_metrics_and_the_dashboard_asks_for_them(runs: Path, tmp_path: Path) -> None:
    space = write_space(
        tmp_path,
        search={"guidance.weight": {"grid": [0.3]}},
        trials=1,
        scheduler="none",
        table={"methods": ["guided"]},
    )
    with scraping() as lines:
        outcome = tune(str(space), TINY_ARGUMENTS, runs=runs)
        sweep = f"{outcome.directory.name}/sweep"
        expert = next(runs.glob("expert-*")).name
        translator = next(runs.glob("translator-*")).name
        wanted = [
            rf'ray_raydelta_step{{.*kind="expert".*run="{expert}".*}} 6\.0',
            rf'ray_raydelta_validation_miou_percent{{.*run="{translator}"',
            rf'ray_raydelta_trials{{.*state="TERMINATED".*sweep="{sweep}".*}} 1\.0',
        ]
        deadline = time.monotonic() + 60  # Ray passes them on every few seconds
        while missing := [pattern for pattern in wanted if not any(re.match(pattern, line) for line in set(lines))]:
            assert time.monotonic() < deadline, (missing, lines)
            time.sleep(1)
    text = "\n".join(lines)
    for name, _ in gauges.TRAINING.values():
        assert f"ray_{name}{{" in text
    asked = set(re.findall(r"ray_raydelta_\w+", DASHBOARD.read_text()))
    assert asked == {f"ray_{name}" for name, _ in gauges.TRAINING.values()} | {"ray_raydelta_trials"}


def test_the_dashboard_can_be_imported() -> None:
    tree = json.loads(DASHBOARD.read_text())
    assert tree["title"] == "raydelta"
    assert len({panel["id"] for panel in tree["panels"]}) == len(tree["panels"]) == 12
    places = [tuple(panel["gridPos"][key] for key in ("x", "y")) for panel in tree["panels"]]
    assert len(set(places)) == len(places)


def test_rays_own_figures_in_the_dashboard_are_those_that_ray_shows_itself() -> None:
    asked = set(re.findall(r"ray_(?:train|data)_\w+(?=\{)", DASHBOARD.read_text()))
    assert len(asked) == 6
    panels = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    shown = "".join((panels / f"{name}_dashboard_panels.py").read_text() for name in ("train", "data"))
    assert {name for name in asked if f"{name}{{" not in shown} == set()
