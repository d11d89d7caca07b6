"""Endless batches for training: from memory where a split fits, from Ray Data where it does not.

Both kinds of stream yield uint8 tensors on the device: images (N, 3, H, W) and labels (N, H, W) or None. A stream in
memory visits every image once an epoch in a seeded order, wraps where a batch is larger than the set, and resumes at
the very image where it stopped. A Ray Data stream draws at random from a pool that is read in that way, so its epochs
run into each other, and it resumes with a new order.
"""

import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from raydelta.compute.device import Place
from raydelta.data.shards import decode, read_groups, read_manifest, read_rows, shard_paths

if TYPE_CHECKING:
    from ray.data import Dataset

PIECE = 64  # rows that come from Ray Data at once, at least
BATCHES_AHEAD = 8
POOL = 512  # rows to draw from at random, at least
TASK = 1024  # rows that a read task decodes, about; between two tasks Ray Data pauses
EXECUTION = 50_000  # rows that one execution of a Ray Data set yields, at least


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

    ``labels=False`` does not read the label column at all.
    """
    columns = ["id", "image", *(["label"] if labels else [])]
    classes = len(read_manifest(uri).taxonomy)
    arrays = decode(read_rows(uri, split, ids=ids, columns=columns), size, with_labels=labels, num_classes=classes)
    images = Images(tuple(arrays["id"]), arrays["image"], arrays.get("label"))
    if ids is None:
        return images
    place = {name: row for row, name in enumerate(images.ids)}
    order = np.array([place[name] for name in ids], dtype=np.int64)
    return Images(tuple(ids), images.pixels[order], None if images.labels is None else images.labels[order])


def stream_rows(uri: str, split: str, size: tuple[int, int], *, labels: bool = True) -> "Dataset":
    """A split, epoch after epoch, as a Ray Data set of decoded rows (columns pixels, labels), for sets that are large.

    Every epoch has the shards in another order. To start an execution takes Ray Data seconds, so one holds many epochs,
    and to start a task takes it as long as to decode a hundred images, so one reads several shards. Ray's own
    ``read_parquet`` would list files that the manifest knows.
    """
    import ray.data

    count, paths, random = read_manifest(uri).splits[split].rows, shard_paths(uri, split), np.random.default_rng()
    epochs = -(-EXECUTION // count)
    shards = [{"shard": paths[index]} for _ in range(epochs) for index in random.permutation(len(paths))]
    rows = ray.data.from_items(shards, override_num_blocks=min(len(shards), -(-epochs * count // TASK)))
    # Half a CPU: a small machine must fit one task of every set beside the training.
    return rows.map_batches(_decode_shards(uri, size, labels), batch_size=None, num_cpus=0.5)


def scan_rows(uri: str, split: str, size: tuple[int, int], without: Collection[str] = ()) -> "Dataset":
    """A split once, in any order, as a Ray Data set of decoded rows (columns id, pixels); no label is read.

    Args:
        without: ids of rows to leave out.
    """
    import ray.data

    shards = [{"shard": path} for path in shard_paths(uri, split)]
    rows = ray.data.from_items(shards, override_num_blocks=len(shards))
    decode_shards = _decode_shards(uri, size, labels=False, ids=True, without=without)
    return rows.map_batches(decode_shards, batch_size=None, num_cpus=0.5)


def _decode_shards(
    uri: str, size: tuple[int, int], labels: bool, ids: bool = False, without: Collection[str] = ()
) -> Callable[[dict[str, np.ndarray]], Iterator[dict[str, np.ndarray]]]:
    """A function from shards to their decoded rows, a group at a time."""
    columns = ["id", "image", *(["label"] if labels else [])]
    classes = len(read_manifest(uri).taxonomy)
    unwanted = pa.array(sorted(without), pa.string())

    def decode_shards(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for address in batch["shard"]:
            for rows in read_groups(str(address), columns):
                if len(unwanted):
                    rows = rows.filter(pc.invert(pc.is_in(rows["id"], unwanted)))
                if len(rows) == 0:
                    continue
                arrays = decode(rows, size, with_labels=labels, num_classes=classes)
                named = {"id": np.array(arrays["id"])} if ids else {}
                yield named | {"pixels": arrays["image"]} | ({"labels": arrays["label"]} if labels else {})

    return decode_shards


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
