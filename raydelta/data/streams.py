"""Endless batches for training: from memory where a split fits, from Ray Data where it does not.

Both kinds of stream yield uint8 tensors on the device: images (N, 3, H, W) and labels (N, H, W) or None. A stream in
memory visits every image once an epoch in a seeded order, wraps where a batch is larger than the set, and resumes at
the very image where it stopped. A Ray Data stream draws at random from a pool that is read in that way, so its epochs
run into each other, and it resumes with a new order.
"""

import queue
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from raydelta.compute.device import Place
from raydelta.compute.tasks import get_or_cause
from raydelta.data.decoding import decode, threaded, usable_cpus
from raydelta.data.shards import (
    ROWS_PER_GROUP,
    Record,
    Shard,
    list_shards,
    read_groups,
    read_manifest,
    read_rows,
)
from raydelta.errors import UserError
from raydelta.storage.files import without_secrets

if TYPE_CHECKING:
    from ray.data import Dataset

PIECE = 64  # rows that come from Ray Data at once, at least
BATCHES_AHEAD = 8
POOL = 512  # rows to draw from at random, at least
TASK = 1024  # rows that a read task decodes, about; between two tasks Ray Data pauses
EXECUTION = 50_000  # rows that one execution of a Ray Data set yields, at least
EPOCHS = 8  # that it yields, at least
ENCODED = 256 * 2**20  # bytes of encoded rows that a read task holds to permute them


class Stream(Protocol):
    """What a training draws from."""

    def next(self) -> tuple[Tensor, Tensor | None]:
        """The next batch of this rank, on its device."""

    def state(self) -> dict[str, Any]:
        """Where the stream stands."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where another stream of the same set stood."""


@dataclass(frozen=True)
class Images:
    """Decoded images in memory: pixels uint8 (N, 3, H, W), labels uint8 (N, H, W) or None, one id each."""

    ids: tuple[str, ...]
    pixels: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: slice) -> "Images":
        """Some of the images, in memory shared with all of them."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, ids=self.ids[rows], pixels=self.pixels[rows], labels=labels)


class Rows(Protocol):
    """Decoded rows that can be read again and again: a Ray Data set, or a worker's iterator of its share of one."""

    def iter_batches(
        self, *, batch_size: int, batch_format: str, prefetch_batches: int, drop_last: bool
    ) -> Iterable[dict[str, np.ndarray]]:
        """One pass over the rows, in batches of columns (pixels, labels)."""


TrainingSet = Images | Rows
"""What a training draws from: images in memory, or rows that Ray Data streams."""


class MemoryStream:
    """Seeded epochs over images in memory; together the ranks draw the batch that a single worker would draw."""

    def __init__(self, images: Images, batch: int, seed: tuple[int, ...], place: Place) -> None:
        assert len(images) > 0
        assert batch % place.world == 0
        self.images, self.batch, self.seed, self.place = images, batch, seed, place
        self.position = 0  # images that all ranks together have drawn
        self._orders: dict[int, np.ndarray] = {}

    def next(self) -> tuple[Tensor, Tensor | None]:
        """The next batch of this rank, on its device."""
        share = self.batch // self.place.world
        first = self.position + self.place.rank * share
        rows = np.array([self._row(index) for index in range(first, first + share)])
        self.position += self.batch
        labels = self.images.labels
        pixels = to_device(self.images.pixels[rows], self.place)
        return pixels, None if labels is None else to_device(labels[rows], self.place)

    def state(self) -> dict[str, Any]:
        """Where the stream stands, the same on every rank."""
        return {"position": self.position}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where another stream of the same images and seed stood."""
        self.position = state["position"]

    def _row(self, index: int) -> int:
        epoch, slot = divmod(index, len(self.images))
        if epoch not in self._orders:
            order = np.random.default_rng([*self.seed, epoch]).permutation(len(self.images))
            self._orders = {key: value for key, value in self._orders.items() if key >= epoch - 1} | {epoch: order}
        return int(self._orders[epoch][slot])


def to_device(array: np.ndarray, place: Place) -> Tensor:
    """A tensor on the place's device, copied while the host goes on."""
    tensor = torch.from_numpy(array)
    if place.device.type == "cuda":
        return tensor.pin_memory().to(place.device, non_blocking=True)
    return tensor


class RayStream:
    """Batches that a thread draws at random from a Ray Data iterator of decoded rows (columns pixels, labels)."""

    def __init__(self, rows: Rows, batch: int, seed: int, place: Place) -> None:
        self.place = place
        batches = draw_batches(rows, batch // place.world, np.random.default_rng([seed, place.rank]))
        self._drawn: queue.Queue[dict[str, np.ndarray] | BaseException] = queue.Queue(maxsize=BATCHES_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=_run_ahead, args=(batches, self._drawn, self._stopped), daemon=True)

    def next(self) -> tuple[Tensor, Tensor | None]:
        """The next batch of this rank, on its device."""
        if self._thread.ident is None:
            self._thread.start()
        drawn = self._drawn.get()
        if isinstance(drawn, BaseException):
            raise drawn
        labels = drawn.get("labels")
        return to_device(drawn["pixels"], self.place), None if labels is None else to_device(labels, self.place)

    def state(self) -> dict[str, Any]:
        """Nothing: the place within a parallel stream is not exact."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to load."""

    def __del__(self) -> None:
        self._stopped.set()


def draw_batches(rows: Rows, batch: int, random: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of random rows from a pool: the rows that come in take the places of those that go out."""
    piece = batch * -(-PIECE // batch)
    size = piece * -(-POOL // piece)
    pool: dict[str, np.ndarray] = {}
    filled = 0
    while True:
        for read in rows.iter_batches(batch_size=piece, batch_format="numpy", prefetch_batches=2, drop_last=True):
            pool = pool or {name: np.empty((size, *values.shape[1:]), values.dtype) for name, values in read.items()}
            if filled < size:
                for name, values in read.items():
                    pool[name][filled : filled + piece] = values
                filled += piece
                continue
            for start in range(0, piece, batch):
                slots = random.choice(size, batch, replace=False)
                yield {name: kept[slots] for name, kept in pool.items()}
                for name, values in read.items():
                    pool[name][slots] = values[start : start + batch]


def _run_ahead(batches: Iterator[Any], drawn: queue.Queue[Any], stopped: threading.Event) -> None:
    """Put batches into the queue until stopped, and an error if there is one."""
    try:
        for batch in batches:
            while not stopped.is_set():
                try:
                    drawn.put(batch, timeout=1)
                    break
                except queue.Full:
                    continue
            if stopped.is_set():
                return
    except BaseException as error:  # handed to whoever draws
        drawn.put(error)


def load_images(
    uri: str, split: str, size: tuple[int, int], *, labels: bool = True, ids: list[str] | None = None
) -> Images:
    """A split of a data set decoded into memory at (width, height); with ``ids`` those images in that order.

    Encoded rows are held for no longer than it takes to decode them, a row group for each CPU. Of a whole split every
    shard is verified; on a Ray cluster of several machines they are decoded all over it. ``labels=False`` does not read
    the label column at all.

    Raises:
        UserError: unknown split or id, or a shard that is missing, damaged, or not the one of the manifest.
    """
    classes = len(read_manifest(uri).taxonomy)
    shards = list_shards(uri, split)
    starts = list(accumulate((shard.rows for _, shard in shards), initial=0))
    place = None if ids is None else {name: row for row, name in enumerate(dict.fromkeys(ids))}
    count = starts[-1] if place is None else len(place)
    names = [""] * count
    pixels = np.empty((count, 3, size[1], size[0]), np.uint8)
    masks = np.empty((count, size[1], size[0]), np.uint8) if labels else None

    def fill(number: int, parts: Iterable[dict[str, Any]]) -> int:
        """Put a shard's decoded rows in their places; how many there are."""
        first = start = starts[number]
        for arrays in parts:
            wanted = range(first, first + len(arrays["id"]))
            rows = np.array(wanted if place is None else [place[name] for name in arrays["id"]], dtype=np.int64)
            for row, name in zip(rows, arrays["id"], strict=True):
                names[row] = name
            pixels[rows] = arrays["image"]
            if masks is not None:
                masks[rows] = arrays["label"]
            first += len(rows)
        return first - start

    read = partial(_decode_shard, size=size, labels=labels, classes=classes, ids=place)
    if place is None and _has_other_nodes():
        found = sum(fill(number, parts) for number, parts in _decode_on_ray(shards, read))
    else:
        at_once = max(1, min(usable_cpus(), len(shards)))
        read = partial(read, threads=max(1, usable_cpus() // at_once))
        found = sum(threaded(lambda number: fill(number, read(shards[number])), range(len(shards)), at_once))
    if found != count:
        read_rows(uri, split, ids, columns=["id"])  # names the ids that are not there
        raise UserError(f"{without_secrets(uri)}: split {split!r} has an id twice; raydelta data check says more")
    if ids is None or place is None or len(place) == len(ids):
        return Images(tuple(names), pixels, masks)
    again = np.array([place[name] for name in ids], dtype=np.int64)  # an image may be asked for twice
    return Images(tuple(ids), pixels[again], None if masks is None else masks[again])


def _decode_shard(
    shard: tuple[str, Shard],
    size: tuple[int, int],
    labels: bool,
    classes: int,
    ids: Collection[str] | None = None,
    threads: int = 1,
) -> Iterator[dict[str, Any]]:
    """The decoded rows of a shard, a row group at a time; the shard is verified if all of it is read."""
    columns = ["id", "image", *(["label"] if labels else [])]
    for rows in read_groups(shard[0], columns, ids, shard[1], verify=ids is None):
        yield decode(rows, size, with_labels=labels, num_classes=classes, threads=threads)


def _has_other_nodes() -> bool:
    """Whether this process drives a Ray cluster of more machines than this one."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized() or ray.get_runtime_context().worker.mode == ray.WORKER_MODE:
        return False
    return sum(node["Alive"] for node in ray.nodes()) > 1


def _decode_on_ray(
    shards: Sequence[tuple[str, Shard]], read: Callable[[tuple[str, Shard]], Iterator[dict[str, Any]]]
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Decode shards in Ray tasks, as many at once as the cluster has CPUs; (number, its decoded parts) as they end."""
    import ray

    task = ray.remote(num_cpus=1)(_decode_parts)
    waiting = iter(range(len(shards)))
    running: dict[Any, int] = {}

    def start(most: int) -> None:
        for number in islice(waiting, most):
            running[task.remote(read, shards[number])] = number

    start(max(1, int(ray.cluster_resources().get("CPU", 1))))
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(done)
        try:
            parts = get_or_cause(done)
        except UserError:  # another machine may not see this one's disk; if the shard is bad, this says so
            parts = list(read(shards[number]))
        yield number, parts
        del done, parts  # the arrays leave the object store
        start(1)


def _decode_parts(
    read: Callable[[tuple[str, Shard]], Iterator[dict[str, Any]]], shard: tuple[str, Shard]
) -> list[dict[str, Any]]:
    return list(read(shard))


def stream_rows(uri: str, split: str, size: tuple[int, int], *, labels: bool = True, seed: int = 0) -> "Dataset":
    """A split, epoch after epoch, as a Ray Data set of decoded rows (columns pixels, labels), for sets that are large.

    Every epoch has the shards in an order of its own, which ``seed`` decides, and every task permutes the rows of its
    shards: neighbours in a shard are frames of one drive. After the last epoch of an execution the orders come again.
    To start an execution takes Ray Data seconds, so one holds many epochs, and to start a task takes it as long as to
    decode a hundred images, so one reads several shards. Ray's own ``read_parquet`` would list files that the manifest
    knows.
    """
    import ray.data

    tasks = order_shards(list_shards(uri, split), seed)
    rows = ray.data.from_items([{"task": task.model_dump_json()} for task in tasks], override_num_blocks=len(tasks))
    # Half a CPU: a small machine must fit one task of every set beside the training.
    return rows.map_batches(_decode_tasks(uri, size, labels), batch_size=None, num_cpus=0.5)


class ReadTask(Record):
    """Shards that one task of a stream reads, and the seed of the order of their rows."""

    shards: list[tuple[str, Shard]]
    seed: tuple[int, ...]


def order_shards(shards: Sequence[tuple[str, Shard]], seed: int) -> list[ReadTask]:
    """Many epochs of the shards, in a new order each, divided into tasks of about ``TASK`` rows."""
    count = sum(shard.rows for _, shard in shards)
    tasks: list[ReadTask] = []
    for epoch in range(max(EPOCHS, -(-EXECUTION // count))):
        order = [shards[index] for index in np.random.default_rng([seed, epoch]).permutation(len(shards))]
        per_task = max(1, TASK * len(shards) // count)
        tasks += [
            ReadTask(shards=order[start : start + per_task], seed=(seed, epoch, start))
            for start in range(0, len(order), per_task)
        ]
    return tasks


def scan_rows(uri: str, split: str, size: tuple[int, int], without: Collection[str] = ()) -> "Dataset":
    """A split once, in any order, as a Ray Data set of decoded rows (columns id, pixels); no label is read.

    Args:
        without: ids of rows to leave out.
    """
    import ray.data

    tasks = [ReadTask(shards=[shard], seed=(0,)) for shard in list_shards(uri, split)]
    rows = ray.data.from_items([{"task": task.model_dump_json()} for task in tasks], override_num_blocks=len(tasks))
    return rows.map_batches(
        _decode_tasks(uri, size, labels=False, ids=True, without=without), batch_size=None, num_cpus=0.5
    )


def _decode_tasks(
    uri: str, size: tuple[int, int], labels: bool, ids: bool = False, without: Collection[str] = ()
) -> Callable[[dict[str, np.ndarray]], Iterator[dict[str, np.ndarray]]]:
    """A function from tasks to their decoded rows, a few at a time."""
    columns = ["id", "image", *(["label"] if labels else [])]
    classes = len(read_manifest(uri).taxonomy)
    unwanted = pa.array(sorted(without), pa.string())

    def decode_tasks(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for text in batch["task"]:
            task = ReadTask.model_validate_json(str(text))
            random = np.random.default_rng(task.seed)
            groups = (
                rows
                for address, shard in task.shards
                for rows in read_groups(address, columns, None, shard, verify=True)
            )
            for rows in permute_rows(groups, random):
                if len(unwanted):
                    rows = rows.filter(pc.invert(pc.is_in(rows["id"], unwanted)))
                if len(rows) == 0:
                    continue
                arrays = decode(rows, size, with_labels=labels, num_classes=classes)
                named = {"id": np.array(arrays["id"])} if ids else {}
                yield named | {"pixels": arrays["image"]} | ({"labels": arrays["label"]} if labels else {})

    return decode_tasks


def permute_rows(groups: Iterable[pa.Table], random: np.random.Generator) -> Iterator[pa.Table]:
    """The rows of all groups in random order, still encoded; of as many groups together as ``ENCODED`` bytes hold."""
    held: list[pa.Table] = []
    size = 0

    def release() -> Iterator[pa.Table]:
        table = pa.concat_tables(held)
        order = random.permutation(len(table))
        for start in range(0, len(table), ROWS_PER_GROUP):
            yield table.take(pa.array(order[start : start + ROWS_PER_GROUP]))

    for group in groups:
        held.append(group)
        size += group.nbytes
        if size > ENCODED:
            yield from release()
            held, size = [], 0
    if held:
        yield from release()


def is_streamed(images: TrainingSet) -> TypeGuard[Rows]:
    """Whether a training set is streamed, not in memory."""
    return not isinstance(images, Images)


def share_cpus(sets: Collection["Dataset"], cpus: float) -> None:
    """Limit Ray Data sets that are read at the same time to an equal share of the CPUs.

    A read task that waits for its consumer keeps its CPU: without limits one set can take them all, and a training that
    waits for another set waits for ever.
    """
    from ray.data import ExecutionResources

    for rows in sets:
        rows.context.execution_options.resource_limits = ExecutionResources(cpu=max(0.5, cpus / len(sets)))
