import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydelta.compute.device import Place
from raydelta.config import Config, load_config
from raydelta.data.augment import build_augment
from raydelta.data.pixels import Batch
from raydelta.data.streams import Images, MemoryStream
from raydelta.errors import TrainingError
from raydelta.networks.layers import freeze
from raydelta.training import checkpoint
from raydelta.training.loop import Timers, hash_seed, train
from raydelta.training.metrics import class_ious, confusion_matrix, mean_iou
from raydelta.training.step import Training
from raydelta.training.supervised import SegmenterTraining
from raydelta.training.translator import TranslatorTraining

HERE = Place(torch.device("cpu"))
CLASSES, SIZE = 3, 32
SMALL = (
    *("data.width=32", "data.height=32", "generator.width=4", "generator.blocks=1", "generator.identity_start=false"),
    *("discriminator.width=4", "discriminator.layers=1", "translator.pool=3", "translator.ema=0.5", "augment.crop=0.5"),
)


def images_of(count: int, seed: int) -> Images:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)
    return Images(tuple(map(str, range(count))), pixels, (pixels.argmax(1)).astype(np.uint8))


def build_segmenter(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, CLASSES, 1))


@dataclass
class Run:
    """One call of ``train`` on tiny sets, and what it reported."""

    folder: Path
    kind: str = "expert"
    overrides: tuple[str, ...] = ()
    place: Place = HERE
    start_seed: int = 0
    stop_after: int | None = None
    leaves_after: int = 10**9  # the step from which on its machine is about to be taken away
    damage: Callable[[str, Tensor, int], Tensor] = lambda name, images, drawn: images
    reports: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: dict[int, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config: Config = load_config(overrides=[*SMALL, *self.overrides])
        self.training: Training
        streams: Mapping[str, Images]
        if self.kind == "expert":
            self.training = SegmenterTraining(build_segmenter(self.start_seed), 0.01, self.place)
            streams = {"synthetic": images_of(7, 0)}
        else:
            expert = freeze(build_segmenter(99))
            torch.manual_seed(self.start_seed)
            self.training = TranslatorTraining(self.config, expert, self.place)
            streams = {"synthetic": images_of(7, 0), "real": images_of(5, 1), "labelled": images_of(3, 2)}
        self.streams = {
            name: MemoryStream(images, 2, (0, number), self.place)
            for number, (name, images) in enumerate(streams.items())
        }
        self.plain = build_augment(
            self.config.augment, SIZE, SIZE, zoom=self.kind == "expert", colour=self.kind == "expert"
        )
        self.drawn = 0

    def train(self, steps: int, resume: Path | None = None) -> "Run":
        train(
            self.kind,
            self.training,
            self.streams,
            self.augment,
            self.validate,
            steps=steps,
            config=self.config,
            place=self.place,
            report=self.report,
            resume=resume,
        )
        return self

    def augment(self, name: str, images: Tensor, labels: Tensor | None) -> Batch:
        self.drawn += name == next(iter(self.streams))
        images, labels = self.plain(images, labels)
        return self.damage(name, images, self.drawn), labels

    def validate(self) -> dict[str, float]:
        confusion = confusion_matrix(self.training.predictor(), images_of(2, 7), CLASSES, HERE)
        return {"miou": mean_iou(class_ious(confusion))}

    def report(self, metrics: dict[str, Any], directory: Path | None) -> bool:
        self.reports.append(metrics)
        if directory is not None:
            self.checkpoints[metrics["step"]] = self.folder / f"{self.kind}-{metrics['step']}"
            shutil.copytree(directory, self.checkpoints[metrics["step"]])
        if metrics["step"] == self.stop_after:
            raise KeyboardInterrupt
        return metrics["step"] >= self.leaves_after


def same(first: Any, second: Any) -> bool:
    """Bit for bit, whatever the nesting."""
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def contents(path: Path, networks: list[str]) -> dict[str, Any]:
    state, rank_state = checkpoint.read_state(path, 0)
    weights = {name: checkpoint.read_weights(path, name) for name in networks}
    meta = checkpoint.read_meta(path)
    assert meta.pop("device_seconds") > 0  # the clock is no part of what is learnt
    del meta["sha256"]["config.yaml"]  # nor is how often it reports
    return {"weights": weights, "state": state, "rank": rank_state, "meta": meta}


@pytest.mark.parametrize("kind", ["expert", "translator"])
def test_two_and_two_steps_with_a_kill_between_equal_four_bit_for_bit(tmp_path: Path, kind: str) -> None:
    overrides = ("compute.checkpoint_every=2", "guidance.start=0.25")
    whole = Run(tmp_path / "whole", kind, overrides).train(4)
    killed = Run(tmp_path / "killed", kind, overrides, stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        killed.train(4)
    resumed = Run(tmp_path / "resumed", kind, overrides, start_seed=5).train(4, resume=killed.checkpoints[2])

    names = list(whole.training.networks())
    expected, found = (contents(run.checkpoints[4], names) for run in (whole, resumed))
    for part, value in expected.items():
        assert same(found[part], value), part
    middle = contents(killed.checkpoints[2], names)
    assert not same(middle["weights"], expected["weights"])
    if kind == "translator":
        assert len(expected["rank"]["pool_real"]) == 3
        assert not same(middle["rank"], expected["rank"])
    terms = [name for name in whole.reports[-1] if not name.startswith("seconds_")]
    timed = {"step_seconds", "data_wait", "images_per_second", "gflops", "device_seconds"}
    assert {name: whole.reports[-1][name] for name in set(terms) - timed} == {
        name: resumed.reports[-1][name] for name in set(terms) - timed
    }
    assert [report["step"] for report in resumed.reports] == [4]


def test_a_training_that_is_at_its_end_trains_no_further(tmp_path: Path) -> None:
    first = Run(tmp_path / "first").train(2)
    again = Run(tmp_path / "again", start_seed=5).train(2, resume=first.checkpoints[2])
    assert again.drawn == 0
    for name, network in again.training.networks().items():
        assert same(dict(network.state_dict()), dict(first.training.networks()[name].state_dict()))


def test_a_damaged_checkpoint_stops_the_resume(tmp_path: Path) -> None:
    run = Run(tmp_path / "first").train(2)
    (run.checkpoints[2] / "state.pt").write_bytes(b"")
    with pytest.raises(checkpoint.UserError, match=r"state\.pt"):
        Run(tmp_path / "again").train(4, resume=run.checkpoints[2])


@pytest.mark.parametrize(
    ("kind", "stream", "term"), [("expert", "synthetic", "cross_entropy"), ("translator", "labelled", "guidance")]
)
def test_a_loss_that_is_not_finite_stops_with_its_name_and_saves_nothing(
    tmp_path: Path, kind: str, stream: str, term: str
) -> None:
    def damage(name: str, images: Tensor, drawn: int) -> Tensor:
        return images * float("nan") if drawn == 3 and name == stream else images

    overrides = ("compute.report_every=2", "compute.checkpoint_every=1")
    run = Run(tmp_path, kind, overrides, damage=damage)
    with pytest.raises(TrainingError, match=f"{term} .*rank 0 from step 3 on"):
        run.train(6)
    assert [report["step"] for report in run.reports] == [1, 2]
    assert list(run.checkpoints) == [1, 2]


def train_a_rank(rank: int, folder: Path, norm: bool) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)

    def damage(name: str, images: Tensor, drawn: int) -> Tensor:
        return images * float("nan") if (rank, drawn) == (1, 5) else images

    overrides = ("compute.report_every=4", "compute.checkpoint_every=4")
    place = Place(torch.device("cpu"), rank, 2)
    run = Run(folder / str(rank), overrides=overrides, place=place, damage=damage)
    if not norm:
        run.training = SegmenterTraining(nn.Conv2d(3, CLASSES, 3, padding=1), 0.01, place)
    try:
        run.train(12)
    except TrainingError as error:
        (folder / f"{rank}.txt").write_text(f"{list(run.checkpoints)} {error}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("norm", "where"), [(False, "rank 1"), (True, "ranks 0, 1")])
def test_a_loss_that_is_not_finite_on_one_rank_stops_all_of_them_and_names_that_rank(
    tmp_path: Path, norm: bool, where: str
) -> None:
    """From the next step on it is not finite on the other rank either, through the gradients; with a norm at once."""
    torch.multiprocessing.start_processes(train_a_rank, (tmp_path, norm), nprocs=2, start_method="forkserver")
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert first.startswith(f"[4] loss cross_entropy is not finite on {where} from step 5 on")


@pytest.mark.parametrize("when", [3, 4])
def test_a_loss_that_is_not_finite_between_two_reports_is_found_at_the_next(tmp_path: Path, when: int) -> None:
    def damage(name: str, images: Tensor, drawn: int) -> Tensor:
        return images * float("inf") if drawn == when else images

    overrides = ("compute.report_every=2", "compute.checkpoint_every=100")
    run = Run(tmp_path, overrides=overrides, damage=damage)
    with pytest.raises(TrainingError, match=f"cross_entropy .*rank 0 from step {when} on"):
        run.train(4)
    assert [report["step"] for report in run.reports] == [2]
    assert run.checkpoints == {}


class Root(nn.Module):
    """Its output is finite everywhere, its gradient is not."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (0 * x).sqrt()


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.training = SegmenterTraining(nn.Sequential(nn.Conv2d(3, CLASSES, 3, padding=1), Root()), 0.01, HERE)
    with pytest.raises(TrainingError):
        run.train(1)
    assert run.checkpoints == {}


def test_reports_and_checkpoints_come_when_they_are_due_and_at_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path, overrides=("compute.report_every=3", "compute.checkpoint_every=5")).train(7)
    assert [report["step"] for report in run.reports] == [3, 5, 6, 7]
    assert list(run.checkpoints) == [5, 7]
    assert [checkpoint.read_meta(path)["step"] for path in run.checkpoints.values()] == [5, 7]
    assert checkpoint.read_meta(run.checkpoints[7])["kind"] == "expert"
    assert checkpoint.read_config(run.checkpoints[7]) == run.config


def test_on_a_machine_that_is_about_to_leave_every_report_brings_a_checkpoint(tmp_path: Path) -> None:
    overrides = ("compute.report_every=2", "compute.checkpoint_every=100")
    run = Run(tmp_path, overrides=overrides, leaves_after=4).train(9)
    assert [report["step"] for report in run.reports] == [2, 4, 6, 8, 9]
    assert list(run.checkpoints) == [6, 8, 9]


def test_a_report_says_how_good_and_how_fast(tmp_path: Path) -> None:
    run = Run(tmp_path, overrides=("compute.report_every=2",)).train(4)
    for report in run.reports:
        assert report["steps"] == 4
        assert 0 < report["losses"]["cross_entropy"] < 10
        assert 0 <= report["miou"] <= 100
        assert report["step_seconds"] > 0
        assert 0 <= report["data_wait"] <= 1
        assert report["images_per_second"] * report["step_seconds"] == pytest.approx(2)
        assert report["gflops"] > 0
        phases = {f"seconds_{name}" for name in ("data", "augment", "step", "validate")}
        assert all(report[name] > 0 for name in phases)
        busy = sum(report[f"seconds_{name}"] for name in ("data", "augment", "step"))
        assert report["step_seconds"] == pytest.approx(busy / 2)
        assert report["data_wait"] == pytest.approx(report["seconds_data"] / busy)
    assert run.reports[1]["seconds_report"] > 0, "what the training waits for the last report"


def test_a_reported_loss_is_the_mean_since_the_last_report(tmp_path: Path) -> None:
    each, both = (Run(tmp_path / f"{every}", overrides=(f"compute.report_every={every}",)).train(4) for every in (1, 2))
    losses = [report["losses"]["cross_entropy"] for report in each.reports]
    found = [report["losses"]["cross_entropy"] for report in both.reports]
    assert found == pytest.approx([(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2], rel=1e-5)


def test_a_term_that_sets_in_later_is_averaged_over_the_steps_that_had_it(tmp_path: Path) -> None:
    overrides = ("guidance.start=0.5", "augment.flip=0", "augment.crop=1", "translator.learning_rate=1e-9")
    each = Run(tmp_path / "each", "translator", (*overrides, "compute.report_every=1")).train(4)
    once = Run(tmp_path / "once", "translator", (*overrides, "compute.report_every=4")).train(4)
    assert ["guidance" in report["losses"] for report in each.reports] == [False, False, True, True]
    values = [report["losses"]["guidance"] for report in each.reports[2:]]
    assert once.reports[0]["losses"]["guidance"] == pytest.approx(sum(values) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["expert", "translator"])
def test_how_often_is_reported_does_not_change_what_is_learnt(tmp_path: Path, kind: str) -> None:
    runs = [
        Run(tmp_path / every, kind, (f"compute.report_every={every}", f"compute.checkpoint_every={every}")).train(4)
        for every in ("1", "4")
    ]
    names = list(runs[0].training.networks())
    first, second = (contents(run.checkpoints[4], names) for run in runs)
    for part, value in first.items():
        assert same(second[part], value), part


class Lonely(Place):
    """A rank whose peers say nothing."""

    def parallel(self, network: nn.Module) -> nn.Module:
        return network

    def total(self, value: Tensor) -> Tensor:
        return value


def test_ranks_augment_differently(tmp_path: Path) -> None:
    seen: list[Tensor] = []
    for rank in (0, 1):
        place = Lonely(torch.device("cpu"), rank, world=2)
        run = Run(tmp_path / str(rank), place=place, damage=lambda name, images, drawn: seen.append(images) or images)
        run.streams = {"synthetic": MemoryStream(images_of(2, 0), 2, (0,), HERE)}
        run.train(1)
    assert not torch.equal(*seen)


def test_seeds_are_spread_and_stay_as_they_are() -> None:
    assert len({hash_seed(first, second) for first in range(30) for second in range(30)}) == 900
    assert hash_seed(0) == hash_seed(0) != hash_seed(0, 0)
    assert all(0 <= hash_seed(value, value) < 2**63 for value in (0, 7, 2**62))


def test_phases_of_a_gpu_are_measured_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host queues 2 s of work for the device, waits 3 s for data meanwhile, then queues the next step."""
    clock = {"host": 0.0, "device": 0.0}

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            self.at = max(clock["host"], clock["device"])  # when the device, with all before it done, comes to it

        def elapsed_time(self, later: "Event") -> float:
            return 1000 * (later.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    timers = Timers(torch.device("cuda"))
    for wait in (0.0, 3.0, 1.0):
        with timers.phase("data"):
            clock["host"] += wait
        with timers.phase("step"):
            clock["device"] = max(clock.values()) + 2.0
    assert timers.take() == {"data": 1.0, "step": 6.0}, "of the 4 s of the host the device waited 1"
    assert timers.take() == {}
