"""The loop of every training: draw, augment, step, validate, report, checkpoint, resume. Knows no Ray and no maths.

The loop is given its streams, its place
and a ``report`` function by one of the adapters in workers.py. A resumed run equals an uninterrupted one bit for bit on
a CPU with one worker and streams in memory.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from raydelta.compute.device import Place
from raydelta.config import Config
from raydelta.data.pixels import Batch
from raydelta.data.streams import Stream
from raydelta.errors import TrainingError
from raydelta.training import checkpoint
from raydelta.training.step import Training

Report = Callable[[dict[str, Any], Path | None], bool | None]
"""Called by every rank with the metrics since the last call and, at times, the directory of a new checkpoint; whether
the next one has to bring a checkpoint, as this machine is about to be taken away, the same on every rank."""


REMEDY = "lower the learning rate, or set compute.precision=fp32"


class Timers:
    """Seconds per phase since the last report, as the device spends them.

    A GPU works behind the host: there a phase lasts from when the device comes to it until the device is past it, so
    that waiting for data counts only where the device waits too.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._phases: list[tuple[str, Any, Any]] = []  # name, and the marks where it began and ended

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time within to the phase of that name."""
        start = self._mark()
        yield
        self._phases.append((name, start, self._mark()))

    def take(self) -> dict[str, float]:
        """The seconds so far; starts again from zero. Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        phases, self._phases = self._phases, []
        seconds: dict[str, float] = {}
        for name, start, end in phases:
            took = start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
            seconds[name] = seconds.get(name, 0.0) + took
        return seconds

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def train(
    kind: str,
    training: Training,
    streams: Mapping[str, Stream],
    augment: Callable[[str, Tensor, Tensor | None], Batch],
    validate: Callable[[], dict[str, float]],
    *,
    steps: int,
    config: Config,
    place: Place,
    report: Report,
    resume: Path | None = None,
) -> None:
    """Train to the last step, from the checkpoint ``resume`` if there is one. Collective.

    Args:
        kind: what is trained; written into the checkpoint.
        augment: (stream name, images, labels) → float batch, on the device.
        validate: metrics of the training as it is now; called by every rank before a report.
        report: called every ``compute.report_every`` steps and after the last, with a checkpoint every
            ``compute.checkpoint_every`` steps, after the last, and while it says that this machine is about to leave.

    Raises:
        TrainingError: a loss is not finite on some rank; every rank raises it, and it names term, rank and step.
    """
    torch.manual_seed(hash_seed(config.seed, place.rank))
    first, spent = _restore(resume, training, streams, place) if resume is not None else (0, 0.0)
    start = time.perf_counter()
    compute = config.compute
    flops = _Flops()
    if compute.compile:
        torch.compiler.reset()  # else the shapes of earlier trials in this process use up the compiler's limit
        training.compile()
    timers, losses, leaving = Timers(place.device), _Losses(place, first), False

    for step in range(first, steps):
        with timers.phase("data"):
            drawn = {name: stream.next() for name, stream in streams.items()}
        with timers.phase("augment"):
            batch = {name: augment(name, *images) for name, images in drawn.items()}
        with timers.phase("step"), flops.count(step == first and not compute.compile):
            losses.add(training.step(batch, step / steps))

        number = step + 1
        last = number == steps
        reports = last or number % compute.report_every == 0
        saves = last or number % compute.checkpoint_every == 0 or (reports and leaving)
        if not (reports or saves):
            continue
        with timers.phase("step"):
            metrics: dict[str, Any] = {"step": number, "steps": steps, "losses": losses.take(number)}
        with timers.phase("validate"):
            metrics |= validate()
        metrics["device_seconds"] = spent + (time.perf_counter() - start) * place.world
        with tempfile.TemporaryDirectory(prefix="raydelta-") as folder:
            directory = Path(folder) / "checkpoint" if saves else None
            if directory is not None:
                with timers.phase("checkpoint"):
                    _save(directory, kind, metrics, config, training, streams, place)
            images = sum(len(drawn[name][0]) for name in drawn) * place.world
            pace = _pace(timers.take(), number - losses.take_first(number), images, flops.per_step)
            with timers.phase("report"):  # copies the checkpoint; told with the next report
                leaving = bool(report(metrics | pace, directory))


def hash_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, the same on every machine."""
    value = 0
    for part in parts:
        value = (value * 1_000_003 + part + 1) % (2**63 - 1)
    return value


def _pace(seconds: dict[str, float], steps: int, images: int, flops: float) -> dict[str, float]:
    busy = seconds.get("data", 0.0) + seconds.get("augment", 0.0) + seconds.get("step", 0.0)
    pace = {f"seconds_{name}": value for name, value in seconds.items()}
    pace["step_seconds"] = busy / steps
    pace["data_wait"] = seconds.get("data", 0.0) / busy
    pace["images_per_second"] = images * steps / busy
    if flops:
        pace["gflops"] = flops * steps / busy / 1e9
    return pace


def _save(
    directory: Path,
    kind: str,
    metrics: Mapping[str, Any],
    config: Config,
    training: Training,
    streams: Mapping[str, Stream],
    place: Place,
) -> None:
    step = metrics["step"]
    for name, network in training.networks().items():  # a gradient can be infinite where no loss is
        if not all(bool(torch.isfinite(weights).all()) for weights in network.state_dict().values()):
            raise TrainingError(
                f"the weights of {name} are not finite on rank {place.rank} after step {step}; {REMEDY}"
            )
    rank_state = training.rank_state() | {"random": torch.get_rng_state()}
    if place.device.type == "cuda":
        rank_state["random_cuda"] = torch.cuda.get_rng_state(place.device)
    checkpoint.write_checkpoint(
        directory,
        kind=kind,
        step=step,
        device_seconds=metrics["device_seconds"],
        config=config,
        networks=training.networks(),
        state={"training": training.state(), "streams": {name: s.state() for name, s in streams.items()}},
        rank_state=rank_state,
        rank=place.rank,
    )


def _restore(path: Path, training: Training, streams: Mapping[str, Stream], place: Place) -> tuple[int, float]:
    meta = checkpoint.read_meta(path)
    networks = training.networks()
    for name, weights in checkpoint.read_networks(path, networks).items():
        networks[name].load_state_dict(weights)
    state, rank_state = checkpoint.read_state(path, place.rank)
    training.load_state(state["training"])
    for name, stream in streams.items():
        stream.load_state(state["streams"][name])
    if rank_state is not None:
        training.load_rank_state(rank_state)
        torch.set_rng_state(rank_state["random"])
        if place.device.type == "cuda" and "random_cuda" in rank_state:
            torch.cuda.set_rng_state(rank_state["random_cuda"], place.device)
    return int(meta["step"]), float(meta["device_seconds"])


class _Losses:
    """Sums of the loss terms on the device; they come to the host only when taken, and are checked then."""

    def __init__(self, place: Place, first: int) -> None:
        self.place, self.first = place, first
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._broken: dict[str, Tensor] = {}  # steps for which the sum has not been finite

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
            self._broken[name] = self._broken.get(name, 0) + ~torch.isfinite(self._sums[name])

    def take(self, step: int) -> dict[str, float]:
        """The mean of each term since the last call. A sum is finite only if every term of it was. Collective.

        What is not finite on one rank is so on all a step later, through the gradients, or in the same step where they
        share a batch norm: named is where it was first.
        """
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values()))
        table = sums.new_zeros(self.place.world, len(sums))
        table[self.place.rank] = torch.stack(list(self._broken.values()))
        broken = self.place.total(table).long().tolist()
        if since := max(map(max, broken)):
            ranks = [rank for rank, steps in enumerate(broken) if since in steps]
            name = list(self._sums)[broken[ranks[0]].index(since)]
            where = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
            raise TrainingError(f"loss {name} is not finite on {where} from step {step - since + 1} on; {REMEDY}")
        means = {name: value / self._counts[name] for name, value in zip(self._sums, sums.tolist(), strict=True)}
        self._sums, self._counts, self._broken = {}, {}, {}
        return means

    def take_first(self, step: int) -> int:
        """The step at which the interval that ends now began."""
        first, self.first = self.first, step
        return first


class _Flops:
    """Floating-point operations of one training step, counted once, before anything is compiled."""

    def __init__(self) -> None:
        self.per_step = 0.0

    @contextmanager
    def count(self, wanted: bool) -> Iterator[None]:
        if not wanted:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self.per_step = float(counter.get_total_flops())
