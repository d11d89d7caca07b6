from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from raydelta.config import load_config
from raydelta.errors import UserError
from raydelta.search_space import SPACES, Resources, Space, StrategyName, load_space, within_labels
from raydelta.selection.strategies import STRATEGIES

TWO_TRIALS = {
    "search": {"guidance.weight": {"grid": [0.3, 0.6]}, "cycle.real": {"uniform": [5, 10]}},
    "trials": 1,
    "scheduler": "none",  # which trials ASHA stops depends on which is faster
    "table": {"seeds": [0, 1]},
}


def write_space(folder: Path, **changes: object) -> str:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump(TWO_TRIALS | changes))
    return str(path)


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_space_loads_and_says_what_it_costs(path: Path) -> None:
    space = load_space(path.stem)
    load_config("gpu", overrides=space.config)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert header[0].startswith("# raydelta tune")
    assert len(header) >= 3


def test_the_default_space_searches_what_the_readme_says() -> None:
    assert set(load_space("laptop").search) == {"guidance.weight", "labels.budget", "cycle.real", "cycle.synthetic"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replay": {"budgets": [8, 8]}}, r"replay.budgets = \[8, 8\]: every round has to add labels"),
        (
            {"replay": {}, "table": {"methods": ["blended"]}},
            "table.methods: blended is the first, so it chooses, but no label",
        ),
        (
            {"replay": {"steps": 3}, "table": {"methods": ["joint training"]}},
            "replay.steps = 3: joint training is trained anew",
        ),
        (
            {"replay": {"strategies": ["random", "committee"]}, "table": {"methods": ["joint training", "guided"]}},
            "replay.strategies: committee: compare translations; name a translator",
        ),
        ({"replay": {"strategies": ["best"]}}, "'best': Input should be 'combined', 'random'"),
        ({"replay": {}, "table": {"budgets": [8]}}, "table.budgets: replay.budgets says how many labels there are"),
        (
            {"replay": {}, "table": {"methods": ["oracle"]}},
            "table.methods: oracle: a replay compares what bought labels",
        ),
        ({"sarch": {}}, "unknown field 'sarch'; allowed here: config, search"),
        ({"search": {"guidance.wight": {"grid": [0.1]}}}, r"search\.guidance\.wight: unknown field 'guidance\.wight'"),
        ({"search": {"guidance.weight": {"uniform": [0.5, 1.5]}}}, r"guidance\.weight = 1\.5"),
        ({"search": {"expert.steps": {"grid": [1]}}}, r"search\.expert\.steps: trials share one expert"),
        ({"search": {"guidance.weight": {"grid": [0.1], "choice": [0.2]}}}, "give exactly one of"),
        ({"search": {"guidance.weight": {"uniform": [0.5, 0.5]}}}, "is empty"),
        ({"algorithm": "optuna"}, "Optuna takes choice, not grid"),
        ({"table": {"methods": ["magic"]}}, "magic"),
        ({"table": {"methods": ["studnet"]}}, r"did you mean student\?"),
    ],
)
def test_a_bad_space_names_the_file_and_the_key(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_space(write_space(tmp_path, **changes))
    assert "space.yaml" in str(caught.value)


def test_an_unknown_space_lists_the_shipped_ones() -> None:
    with pytest.raises(UserError, match="laptop"):
        load_space("nonsense")


def test_every_strategy_can_be_replayed() -> None:
    assert set(get_args(StrategyName)) == set(STRATEGIES)


def test_budgets_that_the_labels_do_not_reach_are_left_out_and_named() -> None:
    laptop, labels = load_space("laptop"), load_space("labels")
    assert within_labels(laptop, 28) is laptop
    with pytest.warns(UserWarning, match="28 labels are more than the 14 that validation leaves: left out"):
        assert within_labels(laptop, 14).search["labels.budget"].choice == [7, 14]
    with pytest.warns(UserWarning, match="28 and 56 labels are more"):
        smaller = within_labels(labels, 20)
    assert (smaller.search["labels.budget"].grid, smaller.table.budgets) == ([7, 14], (7, 14))
    assert smaller.table.seeds == labels.table.seeds
    with pytest.raises(UserError, match="7 and 14 and 28 labels are more than the 6 that validation leaves"):
        within_labels(laptop, 6)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"gpus": 2}, "a worker uses one GPU; set gpus: 1 and workers: 2"),
        ({"gpus": 1.5, "workers": 2}, "a worker uses one GPU"),
        ({"gpus": 0.5, "workers": 2}, "workers of one training cannot share a GPU; set gpus: 1, or workers: 1"),
    ],
)
def test_a_share_of_gpus_that_cannot_be_used_is_refused(
    tmp_path: Path, resources: dict[str, Any], message: str
) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"resources": resources}))
    with pytest.raises(UserError, match=message):
        load_space(str(tmp_path / "space.yaml"))


def test_shares_of_gpus_that_can_be_used() -> None:
    for resources in ({"gpus": 0, "workers": 2}, {"gpus": 0.25}, {"gpus": 1, "workers": 4}):
        assert Space(resources=Resources(**resources))


def test_resources_of_other_kinds_leave_older_spaces_as_they_were() -> None:
    assert Space().model_dump()["resources"] == {"workers": 1, "cpus": 1, "gpus": None}
    space = Space(resources=Resources(accelerator_type="A100", custom={"nvme": 0.5}))
    assert Space(**space.model_dump()) == space
    assert space.resources.others == {"accelerator_type:A100": 0.001, "nvme": 0.5}
    for name in ("GPU", "accelerator_type:A100", "memory"):
        with pytest.raises(ValidationError, match="Ray's own"):
            Resources(custom={name: 1})
