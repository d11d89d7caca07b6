"""What a training learns does not depend on whether it was killed, nor on how many workers it had."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from raydelta.compute.device import Place
from raydelta.config import Config, load_config, override
from raydelta.data.prepare import prepare_data
from raydelta.training import checkpoint
from raydelta.training.assemble import assemble, open_large_sets
from raydelta.training.job import Job, make_job
from raydelta.training.run import record_report, train_here, working_directory
from tests.tiny import TINY, UNET
from tests.training.test_loop import same

KINDS = ["expert", "translator", "student", "mean teacher"]


@pytest.fixture(scope="module")
def config(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Config:
    changes = {"student.steps": 6, "self_training.confidence": 0.1, "self_training.start": 0.2, "translator.pool": 3}
    return prepare_data(load_config(overrides=TINY | UNET | changes), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind, trained without interruption."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        train_with_state(job_of(kind, config, folder))
    return folder


def last_of(job: Job) -> Path:
    """Where ``train_with_state`` puts the last checkpoint."""
    return job.directory.parent / "last" / job.directory.name


def train_with_state(job: Job) -> None:
    """Train a job, and keep its last checkpoint before it is published: a stage has no state."""

    def record(job: Job, metrics: dict[str, Any], last: Path | None) -> None:
        if last is not None and metrics["step"] == metrics["steps"]:
            shutil.copytree(last, last_of(job), dirs_exist_ok=True)
        record_report(job, metrics, last)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("raydelta.training.run.record_report", record)
        train_here(job)


def job_of(kind: str, config: Config, runs: Path) -> Job:
    expert = None if kind == "expert" else make_job("expert", config, runs).directory
    return make_job(kind, config, runs, expert)  # type: ignore[arg-type]


def in_processes(function: Any, *arguments: Any, count: int = 1) -> None:
    """Run it in so many processes at once, each given its number first."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "raydelta.training.on_ray", "segmentation_models_pytorch"])
    torch.multiprocessing.start_processes(function, arguments, nprocs=count, start_method="forkserver")


def contents(path: Path) -> dict[str, Any]:
    """All that a checkpoint of one rank holds, but for the clock and the config."""
    meta = checkpoint.read_meta(path)
    weights = safetensors.torch.load_file(path / "networks.safetensors")
    assert weights
    del meta["device_seconds"], meta["sha256"]["config.yaml"]
    return {"meta": meta, "weights": weights, "state": checkpoint.read_state(path, 0)}


def train_and_die(_: int, job: Job, step: int) -> None:
    torch.set_num_threads(1)

    def die(metrics: dict[str, Any]) -> None:
        if metrics["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    train_here(job, die)


def finish(_: int, job: Job) -> None:
    torch.set_num_threads(1)
    train_with_state(job)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_is_killed_and_resumed_equals_one_that_is_not(
    kind: str, config: Config, runs: Path, tmp_path: Path
) -> None:
    """Killed after step 3 of 6, between two checkpoints: step 3 is done again."""
    whole = job_of(kind, config, runs)
    shutil.copytree(runs, tmp_path / "runs")
    job = job_of(kind, override(config, {"compute.report_every": 1}), tmp_path / "runs")
    shutil.rmtree(job.directory)
    shutil.rmtree(last_of(job))
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
        in_processes(train_and_die, job, 3)
    (left,) = checkpoint.list_checkpoints(working_directory(job))
    middle = contents(left)
    assert middle["meta"]["step"] == 2
    assert not job.done

    in_processes(finish, job)
    expected = contents(last_of(whole))
    assert same(contents(last_of(job)), expected)
    assert not same(middle["weights"], expected["weights"])
    for stage in (whole.directory, job.directory):
        published = safetensors.torch.load_file(stage / "checkpoint" / "networks.safetensors")
        assert same(published, expected["weights"])


FIXED = {"augment.flip": 0.0, "augment.crop": 1.0, "augment.zoom": 1.0, "augment.colour": 0.0, "translator.pool": 0}
"""What is drawn at random differs between ranks: without it, two of them see what one sees."""

TWENTY = {
    **{"expert.steps": 20, "translator.steps": 20, "student.steps": 20, "compute.report_every": 10},
    **{"appearance.translated": 1.0, "generator.identity_start": False},  # at identity, the L1 terms have no gradient
    # Float noise of 1e-7 grows tenfold a step at the usual rates, with one worker too.
    **{"translator.learning_rate": 2e-5, "translator.discriminator_learning_rate": 1e-5, "student.learning_rate": 1e-4},
}


def weights_of(networks: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in networks.parameters()])


def train_a_rank(rank: int, job: Job, folder: Path, world: int) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous-{world}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    parts = assemble(job, open_large_sets(job), Place(torch.device("cpu"), rank, world))
    networks = torch.nn.ModuleDict(parts.training.networks())
    before = weights_of(networks)
    losses = []
    for step in range(20):
        batch = {name: parts.augment(name, *stream.next()) for name, stream in parts.streams.items()}
        losses.append(parts.training.step(batch, step / 20))
    after = weights_of(networks)
    torch.save([losses, after - before, parts.validate()], folder / f"{world}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("kind", "seed"), [("expert", 0), ("translator", 1), ("student", 0)])
def test_one_worker_and_two_learn_the_same(kind: str, seed: int, config: Config, tmp_path: Path) -> None:
    """Twenty steps on the same batches, by the real networks, batch norm too. With the translator's seed 0 rounding
    tips one pixel, which is more than the mIoU may differ."""
    job = job_of(kind, override(config, FIXED | {"seed": seed}), tmp_path / "runs")
    parents = [job_of("expert", job.config, tmp_path / "runs"), *job.parents]
    for parent in parents:
        if parent.directory != job.directory:
            train_here(parent)
    job = job.model_copy(update={"config": override(job.config, TWENTY)})
    for world in (1, 2):
        in_processes(train_a_rank, job, tmp_path, world, count=world)
    (losses, moved, miou), *ranks = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert torch.equal(ranks[0][1], ranks[1][1])
    assert (ranks[0][1] - moved).norm() < 5e-2 * moved.norm()
    assert ranks[0][2] == ranks[1][2] == pytest.approx(miou, rel=1e-3)
    for alone, *both in zip(losses, ranks[0][0], ranks[1][0], strict=True):
        for name, value in alone.items():
            mean = torch.stack([terms[name] for terms in both]).mean()
            torch.testing.assert_close(mean, value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
