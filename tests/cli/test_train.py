import pytest

from raydelta.cli.train import train_again
from raydelta.recipes import family_of
from raydelta.results.recommend import Recommended


@pytest.mark.parametrize(
    ("method", "labels", "command"),
    [
        ("guided", 14, "raydelta train guided labels.budget=14 --config 'the best.yaml' --runs runs"),
        ("joint training", 7, "raydelta train joint-training labels.budget=7 --config 'the best.yaml' --runs runs"),
        ("blended", 0, "raydelta train blended --config 'the best.yaml' --runs runs"),
        ("synthetic only", 0, "raydelta train expert --config 'the best.yaml' --runs runs"),
        ("ensemble", 14, None),
    ],
)
def test_a_recommended_row_is_trained_again_by_its_name(method: str, labels: int, command: str | None) -> None:
    row = Recommended(
        method=method,
        family=family_of(method),
        labels_train=labels,
        seeds=1,
        stage=None,
        validation=30.0,
        low=28.0,
        high=32.0,
        ties=[],
    )
    assert train_again(row, "runs", "the best.yaml") == command
