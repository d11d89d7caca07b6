"""What a job is assembled from: data, labels, first weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from raydelta.compute.device import Place
from raydelta.config import Config, override
from raydelta.data.streams import Images, MemoryStream
from raydelta.data.taxonomy import CAMVID11
from raydelta.errors import UserError
from raydelta.recipes import METHODS, Kind
from raydelta.training import checkpoint
from raydelta.training.assemble import Parts, assemble, load_labelled, open_large_sets
from raydelta.training.job import Job, label_ids, make_job
from tests.sets import HEIGHT, REAL, SYNTHETIC, WIDTH
from tests.training.conftest import Trained, train_job

HERE = Place(torch.device("cpu"))


def put_together(kind: Kind, config: Config, expert: Job, place: Place = HERE) -> Parts:
    job = make_job(kind, config, expert.directory.parent, expert.directory)
    return assemble(job, open_large_sets(job), place)


def test_shuffled_labels_belong_to_other_images(all_labelled: Config) -> None:
    job = make_job("fine-tuned", all_labelled, Path("runs"), Path("runs/expert-1"))
    shuffled = make_job(
        "fine-tuned", override(all_labelled, METHODS["guided, shuffled labels"].overrides), Path("runs"), job.expert
    )
    (train, validation), (mixed_up, untouched) = load_labelled(job), load_labelled(shuffled)
    assert train.ids == mixed_up.ids
    assert np.array_equal(train.pixels, mixed_up.pixels)
    assert not any(np.array_equal(*pair) for pair in zip(train.labels, mixed_up.labels, strict=True))
    assert sorted(map(bytes, train.labels)) == sorted(map(bytes, mixed_up.labels)), "the same labels all the same"
    assert np.array_equal(validation.labels, untouched.labels)


def test_a_single_label_cannot_be_shuffled(all_labelled: Config) -> None:
    alone = override(all_labelled, {"labels.shuffle": True, "labels.budget": 1})
    with pytest.raises(UserError, match=r"labels\.shuffle"):
        load_labelled(make_job("fine-tuned", alone, Path("runs"), Path("runs/expert-1")))


def test_half_of_a_students_synthetic_images_are_translated(config: Config, expert: Trained) -> None:
    """And nothing else tells it from joint training: the control for what translation adds."""
    still = override(config, {"augment.colour": 0.0})
    train_job(make_job("translator", still, expert[0].directory.parent, expert[0].directory))
    parts = {kind: put_together(kind, still, expert[0]) for kind in ("student", "joint training")}
    assert sizes(parts["student"]) == sizes(parts["joint training"])
    images = torch.rand(4, 3, HEIGHT, WIDTH) * 2 - 1
    seen = {kind: each.training.appearance(images, None) for kind, each in parts.items()}
    assert torch.equal(seen["joint training"], images)
    assert torch.equal(seen["student"][2:], images[2:])
    assert (seen["student"][:2] != images[:2]).flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("kind", "named"), [("translator", "guidance.weight"), ("fine-tuned", "'fine-tuned'"), ("oracle", "'oracle'")]
)
def test_what_needs_labels_says_so_where_there_are_none(
    unlabelled: Config, expert: Trained, kind: Kind, named: str
) -> None:
    with pytest.raises(UserError, match=f"{named}.*labelled photographs"):
        put_together(kind, unlabelled, expert[0])


def test_guidance_with_a_budget_of_nothing_says_so(config: Config, expert: Trained) -> None:
    with pytest.raises(UserError, match=r"guidance\.weight.*labels\.budget = 0"):
        put_together("translator", override(config, {"labels.budget": 0}), expert[0])


def test_a_budget_beyond_the_labels_says_so(config: Config, expert: Trained) -> None:
    with pytest.raises(UserError, match=r"labels\.budget = 19 .*20"):
        put_together("translator", override(config, {"labels.budget": 19}), expert[0])


def test_a_job_sees_the_labels_of_its_budget_and_no_others(config: Config, all_labelled: Config) -> None:
    job = make_job("fine-tuned", config, Path("runs"), Path("runs/expert-1"))
    train, validation = load_labelled(job)
    assert (list(train.ids), list(validation.ids)) == label_ids(job)
    assert (len(train), len(validation)) == (4, 2)
    oracle = make_job("oracle", all_labelled, Path("runs"), Path("runs/expert-1"))
    names, held_out = label_ids(oracle)
    assert len(names) == REAL - 2
    assert held_out == label_ids(job)[1]
    assert load_labelled(make_job("expert", config, Path("runs"))) == (None, None)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def sizes(parts: Parts) -> dict[str, tuple[int, int]]:
    found = {}
    for name, stream in parts.streams.items():
        assert isinstance(stream, MemoryStream)
        found[name] = len(stream.images), stream.batch
    return found


def test_every_method_draws_from_its_own_streams(all_labelled: Config, expert: Trained) -> None:
    config = override(all_labelled, {"translator.batch": 3, "guidance.batch": 2})
    expected = {
        "expert": {"synthetic": (SYNTHETIC - 2, 4)},
        "translator": {"synthetic": (SYNTHETIC, 3), "real": (REAL, 3), "labelled": (4, 2)},
        "fine-tuned": {"labelled": (4, 4)},
        "from scratch": {"labelled": (4, 4)},
        "joint training": {"synthetic": (SYNTHETIC, 2), "labelled": (4, 2)},
        "oracle": {"synthetic": (SYNTHETIC, 2), "labelled": (REAL - 2, 2)},
        "randomised": {"synthetic": (SYNTHETIC, 2), "labelled": (4, 2)},
        "FDA": {"synthetic": (SYNTHETIC, 2), "labelled": (4, 2), "real": (REAL, 2)},
        "mean teacher": {"synthetic": (SYNTHETIC, 2), "labelled": (4, 2), "real": (REAL, 2)},
    }
    assert {kind: sizes(put_together(kind, config, expert[0])) for kind in expected} == expected
    unguided = put_together("translator", override(config, {"guidance.weight": 0}), expert[0])
    assert set(sizes(unguided)) == {"synthetic", "real"}


@pytest.mark.parametrize("kind", ["translator", "FDA", "mean teacher"])
def test_photographs_come_without_labels_but_for_the_bought_ones(config: Config, expert: Trained, kind: Kind) -> None:
    parts = put_together(kind, config, expert[0])
    batch = {name: parts.augment(name, *stream.next()) for name, stream in parts.streams.items()}
    assert batch["real"][1] is None
    assert batch["labelled"][1].dtype == torch.long
    assert set(batch["labelled"][1].unique().tolist()) <= set(range(len(CAMVID11)))


def test_segmenters_start_from_the_expert_or_from_scratch(config: Config, expert: Trained) -> None:
    start = put_together("fine-tuned", config, expert[0]).training.networks()["segmenter"]
    joint = put_together("joint training", config, expert[0]).training.networks()["segmenter"]
    scratch = put_together("from scratch", config, expert[0]).training.networks()["segmenter"]
    weights = checkpoint.read_weights(expert[0].directory / "checkpoint", "segmenter")
    assert all(torch.equal(value, weights[name]) for name, value in start.state_dict().items())
    assert same_weights(start, joint)
    assert not same_weights(start, scratch)


def test_a_translator_gets_the_frozen_expert(config: Config, expert: Trained) -> None:
    frozen = put_together("translator", config, expert[0]).training.expert
    weights = checkpoint.read_weights(expert[0].directory / "checkpoint", "segmenter")
    assert all(torch.equal(value, weights[name]) for name, value in frozen.state_dict().items())
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


@pytest.mark.parametrize("kind", ["expert", "translator"])
def test_every_rank_starts_with_the_same_weights_and_another_seed_with_others(
    all_labelled: Config, expert: Trained, kind: Kind
) -> None:
    torch.manual_seed(1)
    first = put_together(kind, all_labelled, expert[0]).training.networks()
    torch.manual_seed(2)
    second = put_together(kind, all_labelled, expert[0], Place(torch.device("cpu"), rank=1)).training.networks()
    other = put_together(kind, override(all_labelled, {"seed": 1}), expert[0]).training.networks()
    assert all(same_weights(first[name], second[name]) for name in first)
    assert not any(same_weights(first[name], other[name]) for name in first)


def test_the_expert_is_validated_on_synthetic_images_that_it_does_not_train_on(config: Config, expert: Trained) -> None:
    job = make_job("expert", config, Path("runs"))
    images = open_large_sets(job)["synthetic"]
    assert isinstance(images, Images)
    parts = assemble(job, {"synthetic": images}, HERE)
    stream = parts.streams["synthetic"]
    assert isinstance(stream, MemoryStream)
    assert set(stream.images.ids) == set(images.ids[: SYNTHETIC - 2])
    held_out = images.take(slice(SYNTHETIC - 2, None))
    before = parts.validate()
    held_out.labels[:] = 255
    assert parts.validate() != before
