from typing import Any

import numpy as np
import pytest
import torch

from raydelta.compute.device import Place
from raydelta.data.pixels import to_float
from raydelta.data.taxonomy import CAMVID11
from raydelta.selection.scoring import Scorer, score_pool
from raydelta.selection.select import choose
from raydelta.selection.strategies import RAREST, STRATEGIES
from raydelta.training.job import Job
from raydelta.training.trained import load_model
from tests.sets import REAL, pixels_of, unused

CLASSES = len(CAMVID11)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_scores_images_and_cells(translator: Job, name: str) -> None:
    batch = pixels_of(translator)
    whole = Scorer(translator, name, (1, 1))(batch)
    cells = Scorer(translator, name, (4, 2))(batch)
    classes = (CLASSES,) * STRATEGIES[name].rare
    assert (whole["scores"].shape, cells["scores"].shape) == ((REAL, 1, *classes), (REAL, 8, *classes))
    assert np.allclose(cells["scores"].mean(1), whole["scores"][:, 0], atol=1e-5)
    assert np.isfinite(whole["scores"]).all()
    assert ("features" in whole) == (STRATEGIES[name].diverse or name == "typical")
    impure = "ripu" in name or name == "combined"  # where this expert sees one class, nothing is
    if STRATEGIES[name].looks and not impure:
        assert len(np.unique(whole["scores"].reshape(REAL, -1).sum(1))) > REAL // 2


def test_scores_are_those_of_the_model_that_is_evaluated(translator: Job) -> None:
    batch = pixels_of(translator)
    place = Place(torch.device("cpu"))
    logits = load_model(translator, place).predict(to_float(torch.from_numpy(batch["pixels"])))
    shares = logits.softmax(1)
    expected = -(shares * shares.log()).sum(1).mean((1, 2)) / np.log(CLASSES)
    assert np.allclose(Scorer(translator, "entropy", (1, 1))(batch)["scores"][:, 0], expected.detach(), atol=1e-5)
    rare = Scorer(translator, "rarity", (1, 1))(batch)
    assert np.allclose(rare["scores"].sum(-1)[:, 0], expected.detach(), atol=1e-5), "as if no class were rare"
    assert (rare["predicted"].sum(0) == torch.bincount(logits.argmax(1).flatten(), minlength=CLASSES).numpy()).all()


def test_a_pool_scored_over_ray_is_the_same_as_here(ray_session: None, translator: Job) -> None:
    scored = score_pool(translator, "coverage", (1, 1))
    batch = pixels_of(translator)
    assert scored["id"].tolist() == sorted(batch["id"])
    here = Scorer(translator, "coverage", (1, 1))(batch)
    order = np.argsort(batch["id"])
    assert np.array_equal(scored["scores"], here["scores"][order])
    assert np.allclose(scored["features"], here["features"][order], atol=1e-5)


def test_where_a_class_is_rare_its_pixels_weigh_more(ray_session: None, translator: Job) -> None:
    choices, weights = choose(translator, 5, "rarity", window=1)
    batch = pixels_of(translator)
    logits = load_model(translator, Place(torch.device("cpu"))).predict(to_float(torch.from_numpy(batch["pixels"])))
    shares, classes = logits.softmax(1), logits.argmax(1)
    pool = [row for row, name in enumerate(batch["id"]) if name in unused(translator)]
    covered = torch.bincount(classes[pool].flatten(), minlength=CLASSES).double()
    expected = 1 / (covered / covered.sum()).clamp(min=RAREST)
    expected /= (expected * covered / covered.sum()).sum()
    assert torch.allclose(weights.double(), expected, rtol=1e-4)
    heat = -(shares * shares.log()).sum(1) / np.log(CLASSES)
    weighted = (heat * weights[classes]).mean((1, 2)).detach()
    by_id = dict(zip(batch["id"], weighted.tolist(), strict=True))
    assert [choice.score for choice in choices] == pytest.approx([by_id[choice.id] for choice in choices], rel=1e-4)
    assert [choice.score for choice in choices] == pytest.approx(sorted(weighted[pool].tolist())[::-1][:5], rel=1e-4)


def test_a_killed_selection_scores_only_what_is_left(
    ray_session: None, translator: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = score_pool(translator, "margin", (2, 1))
    (kept,) = (path for path in translator.directory.glob("scores/*/*.npz") if len(np.load(path)["scores"][0]) == 2)
    with np.load(kept) as part:
        earlier = {name: values[:7] for name, values in part.items()}
    np.savez(kept, **earlier)
    again = score_pool(translator, "margin", (2, 1))
    with np.load(kept.with_name("00001.npz")) as part:
        assert sorted([*part["id"], *earlier["id"]]) == whole["id"].tolist()
    assert all(np.array_equal(whole[name], again[name]) for name in whole)

    def scan(*arguments: Any) -> None:
        raise AssertionError("everything is scored")

    monkeypatch.setattr("raydelta.selection.scoring.scan_rows", scan)
    score_pool(translator, "margin", (2, 1))
