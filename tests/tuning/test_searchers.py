from pathlib import Path

import pytest
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.basic_variant import BasicVariantGenerator

from raydelta.config import load_config, override
from raydelta.errors import UserError
from raydelta.search_space import Space
from raydelta.tuning.searchers import learning_pace, make_searcher
from raydelta.tuning.tune import tune
from tests.test_search_space import write_space

SEARCH = {
    "guidance.weight": {"choice": [0.3, 0.6]},
    "cycle.real": {"uniform": [5, 10]},
    "translator.learning_rate": {"loguniform": [1e-4, 1e-3]},
    "guidance.teacher": {"choice": [None, "mean teacher"]},
}


def test_optuna_learns_from_results_however_large_the_cluster_is() -> None:
    space = Space(algorithm="optuna", scheduler="asha", trials=64)
    assert learning_pace(space, 64) == (16, 16)
    assert learning_pace(space, 4) == (16, 4)
    assert learning_pace(space.model_copy(update={"trials": 2}), 64) == (2, 2)
    assert learning_pace(space.model_copy(update={"concurrent": 40}), 40) == (16, 40), "what the user wants"


@pytest.mark.parametrize("name", ["optuna", "hyperopt"])
def test_a_searcher_by_name_learns_what_is_good(name: str) -> None:
    if name == "hyperopt":
        pytest.importorskip("hyperopt")
    space = Space(algorithm=name, scheduler="asha", trials=80, search=SEARCH)  # type: ignore[arg-type]

    def draw(seed: int) -> list[dict]:
        searcher = make_searcher(space, seed, 1)
        assert isinstance(searcher, ConcurrencyLimiter)
        fields = {"overrides": {key: dimension.sampler() for key, dimension in space.search.items()}}
        searcher.set_search_properties("miou", "max", fields)
        drawn = []
        for number in range(space.trials):
            drawn.append(searcher.suggest(str(number))["overrides"])
            searcher.on_trial_complete(str(number), {"miou": drawn[-1]["cycle.real"], "training_iteration": 1})
        return drawn

    drawn = draw(0)
    assert draw(0) == drawn != draw(1)
    assert {fields["guidance.teacher"] for fields in drawn} == {None, "mean teacher"}
    override(load_config(), drawn[-1])
    late = [fields["cycle.real"] for fields in drawn[60:]]
    assert sum(late) / len(late) > 8.3, "of 5 to 10, and more is better"


def test_random_trials_are_the_default() -> None:
    assert isinstance(make_searcher(Space(search=SEARCH), 0, 4), BasicVariantGenerator)  # type: ignore[arg-type]


def test_a_searcher_that_is_not_installed_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    search = {"guidance.weight": {"choice": [0.3, 0.6]}}
    space = write_space(tmp_path, search=search, algorithm="hyperopt", scheduler="asha")
    with pytest.raises(UserError, match=r"not installed; pip install 'raydelta\[hyperopt\]'"):
        tune(space, runs=tmp_path)
