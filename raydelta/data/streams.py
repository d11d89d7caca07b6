"""Endless batches for training: from memory where a split fits, from Ray Data where it does not.

Both kinds of stream yield uint8 tensors on the device: images (N, 3, H, W) and labels (N, H, W) or None. A stream in
memory visits every image once an epoch in a seeded order, wraps where a batch is larger than the set, and resumes at
the very image where it stopped. A Ray Data stream resumes at the start of an epoch.
"""

import queue
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raydelta.data.shards import decode, read_groups, read_manifest, read_rows, shard_paths
from raydelta.errors import UserError
from raydelta.place import Place

PIECE = 64  # rows that come from Ray Data at once
PIECES_AHEAD = 4
POOL = 512  # rows to draw from at random


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
    """Epochs over a Ray Data iterator of decoded rows (columns pixels, labels), drawn from a shuffled pool.

    A thread keeps reading, into the next epoch too: starting one takes Ray Data seconds, and training should not wait.
    """

    def __init__(self, rows: Any, batch: int, seed: int, place: Place) -> None:
        self.rows, self.batch, self.place = rows, batch // place.world, place
        self.epoch = 0  # that is being drawn, from 1
        self._random = np.random.default_rng([seed, place.rank])
        self._pool: list[dict[str, np.ndarray]] = []  # rows of the current epoch
        self._read: queue.Queue[dict[str, np.ndarray] | BaseException | None] = queue.Queue(maxsize=PIECES_AHEAD)
        self._stopped = threading.Event()
        self._reader: threading.Thread | None = None
        self._ended = True  # whether all of the current epoch was read

    def next(self) -> tuple[Tensor, Tensor | None]:
        """The next batch of this rank, on its device."""
        drawn: list[dict[str, np.ndarray]] = []
        while len(drawn) < self.batch:
            self._fill()
            index = int(self._random.integers(len(self._pool)))
            self._pool[index], self._pool[-1] = self._pool[-1], self._pool[index]
            drawn.append(self._pool.pop())
        columns = {name: np.stack([row[name] for row in drawn]) for name in drawn[0]}
        labels = columns.get("labels")
        return to_device(columns["pixels"], self.place), None if labels is None else to_device(labels, self.place)

    def state(self) -> dict[str, Any]:
        """The epoch; the place within it is not exact in a parallel stream."""
        return {"epoch": self.epoch}

    def load_state(self, state: dict[str, Any]) -> None:
        """Start the epoch again in which another stream stood."""
        self.epoch = max(0, state["epoch"] - 1)

    def _fill(self) -> None:
        """Keep the pool full from the current epoch; begin the next one when it is empty."""
        if self._reader is None:
            self._reader = threading.Thread(
                target=_read_epochs, args=(self.rows, self._read, self._stopped), daemon=True
            )
            self._reader.start()
        while not self._pool or (len(self._pool) < POOL and not self._ended):
            if self._ended:
                self.epoch, self._ended = self.epoch + 1, False
            piece = self._read.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                self._ended = True
            else:
                # Copies: a row that looks into its piece would keep all of that in memory.
                rows = range(len(piece["pixels"]))
                self._pool += [{name: values[row].copy() for name, values in piece.items()} for row in rows]

    def __del__(self) -> None:
        self._stopped.set()


def _read_epochs(rows: Any, read: queue.Queue[Any], stopped: threading.Event) -> None:
    """Put pieces of endless epochs into the queue, None after each epoch, and an error if there is one."""

    def put(piece: Any) -> None:
        while not stopped.is_set():
            try:
                read.put(piece, timeout=1)
                return
            except queue.Full:
                continue

    try:
        while not stopped.is_set():
            empty = True
            for piece in rows.iter_batches(batch_size=PIECE, batch_format="numpy", prefetch_batches=2):
                empty = False
                put(piece)
                if stopped.is_set():
                    return
            if empty:
                raise UserError("a streamed set has fewer images than there are workers")
            put(None)
    except BaseException as error:  # handed to whoever draws
        put(error)


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


def stream_rows(uri: str, split: str, size: tuple[int, int], *, labels: bool = True) -> Any:
    """A split as a Ray Data set of decoded rows (columns pixels, labels), for sets that do not fit into memory.

    A task reads and decodes one shard, in an order that changes with every epoch. Ray's own ``read_parquet`` lists the
    files anew at the start of every epoch, which takes it seconds, and the manifest knows them.
    """
    import ray.data

    columns = ["id", "image", *(["label"] if labels else [])]
    classes = len(read_manifest(uri).taxonomy)

    def decode_shards(batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for address in batch["shard"]:
            for rows in read_groups(str(address), columns):
                arrays = decode(rows, size, with_labels=labels, num_classes=classes)
                yield {"pixels": arrays["image"]} | ({"labels": arrays["label"]} if labels else {})

    shards = [{"shard": address} for address in shard_paths(uri, split)]
    rows = ray.data.from_items(shards, override_num_blocks=len(shards)).randomize_block_order()
    # Half a CPU: a small machine must fit one task of every set beside the training.
    return rows.map_batches(decode_shards, batch_size=1, num_cpus=0.5)


def is_streamed(images: Any) -> bool:
    """Whether a large set is a Ray Data set and not Images in memory."""
    return not isinstance(images, Images)


def share_cpus(sets: Collection[Any], cpus: float) -> None:
    """Limit Ray Data sets that are read at the same time to an equal share of the CPUs.

    A read task that waits for its consumer keeps its CPU: without limits one set can take them all, and a training that
    waits for another set waits for ever.
    """
    from ray.data import ExecutionResources

    for rows in sets:
        rows.context.execution_options.resource_limits = ExecutionResources(cpu=max(0.5, cpus / len(sets)))
