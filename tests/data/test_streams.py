import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raydelta.compute.device import Place
from raydelta.data.shards import Description, Item, StoredRow
from raydelta.data.streams import Images, MemoryStream, RayStream, draw_batches, load_images, scan_rows, stream_rows
from raydelta.data.taxonomy import IGNORE, Taxonomy
from raydelta.data.writing import encode_label, write_dataset

torch.set_num_threads(1)

HERE = Place(torch.device("cpu"))
SIZE = (32, 16)
TAXONOMY = Taxonomy(name="three", classes=("a", "b", "c"), palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)))


def numbered(count: int, labels: bool = True) -> Images:
    """Images that are filled with their own number, and labels as well."""
    numbers = np.arange(count, dtype=np.uint8)
    return Images(
        tuple(map(str, numbers)),
        np.broadcast_to(numbers[:, None, None, None], (count, 3, 4, 8)).copy(),
        np.broadcast_to(numbers[:, None, None], (count, 4, 8)).copy() if labels else None,
    )


def draw(stream: MemoryStream | RayStream, times: int) -> list[int]:
    return [number for _ in range(times) for number in stream.next()[0][:, 0, 0, 0].tolist()]


def memory_stream(count: int = 12, batch: int = 4, seed: tuple[int, ...] = (0, 0), place: Place = HERE) -> MemoryStream:
    return MemoryStream(numbered(count), batch, seed, place)


def test_every_image_once_an_epoch_in_a_new_order_each_time() -> None:
    stream = memory_stream()
    epochs = [draw(stream, 3) for _ in range(4)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_epochs_run_on_where_the_batch_does_not_divide_the_set() -> None:
    drawn = draw(memory_stream(count=10, batch=4), 10)
    assert all(sorted(drawn[start : start + 10]) == list(range(10)) for start in range(0, 40, 10))


def test_a_batch_larger_than_the_set_wraps() -> None:
    images, labels = memory_stream(count=3, batch=8).next()
    assert images.shape == (8, 3, 4, 8)
    assert sorted(images[:6, 0, 0, 0].tolist()) == [0, 0, 1, 1, 2, 2]
    assert torch.equal(labels, images[:, 0])


def test_batches_are_bytes_with_their_own_labels() -> None:
    images, labels = memory_stream().next()
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.uint8)
    assert torch.equal(labels, images[:, 0])
    assert MemoryStream(numbered(3, labels=False), 2, (0,), HERE).next()[1] is None


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_together_draw_what_one_worker_draws(world: int) -> None:
    alone = memory_stream(count=10)
    ranks = [memory_stream(count=10, place=Place(torch.device("cpu"), rank, world)) for rank in range(world)]
    for _ in range(7):
        assert [number for rank in ranks for number in draw(rank, 1)] == draw(alone, 1)


def test_a_stream_goes_on_at_the_very_image() -> None:
    stream = memory_stream(count=10)
    draw(stream, 4)
    state = stream.state()
    rest = draw(stream, 9)
    resumed = memory_stream(count=10)
    resumed.load_state(state)
    assert draw(resumed, 9) == rest


def test_a_stream_goes_on_with_another_number_of_ranks() -> None:
    stream = memory_stream(count=10)
    draw(stream, 4)
    ranks = [memory_stream(count=10, place=Place(torch.device("cpu"), rank, 2)) for rank in range(2)]
    for rank in ranks:
        rank.load_state(stream.state())
    assert [number for rank in ranks for number in draw(rank, 1)] == draw(stream, 1)


def test_seeds_differ_and_repeat() -> None:
    orders = [tuple(draw(memory_stream(seed=seed), 3)) for seed in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert len(set(orders[:3])) == 3
    assert orders[3] == orders[0]


def test_a_part_of_the_images() -> None:
    part = numbered(10).take(slice(7, None))
    assert len(part) == 3
    assert part.ids == ("7", "8", "9")
    assert part.pixels[:, 0, 0, 0].tolist() == part.labels[:, 0, 0].tolist() == [7, 8, 9]
    assert numbered(4, labels=False).take(slice(2)).labels is None


def encode(item: Item) -> StoredRow:
    """An image filled with its number; every third one has no label."""
    number = int(item.image)
    label = np.full(SIZE[::-1], number % 3, dtype=np.uint8)
    return StoredRow(
        id=item.id,
        sequence=item.sequence,
        image=encode_png(number),
        label=encode_label(label) if number % 3 else None,
        height=SIZE[1],
        width=SIZE[0],
    )


def encode_png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", SIZE, (number, number, number)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def dataset(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("streams") / "numbers"
    items = [Item(f"image {number:02d}", "all", str(number), None) for number in range(22)]
    write_dataset(
        target,
        {"train": items},
        encode,
        Description(name="numbers", domain="synthetic", taxonomy=TAXONOMY, source="test", options={}),
        rows_per_shard=6,
    )
    return str(target)


def ray_stream(uri: str, batch: int = 4, seed: int = 0, labels: bool = True, place: Place = HERE) -> RayStream:
    return RayStream(stream_rows(uri, "train", SIZE, labels=labels).iterator(), batch, seed, place)


def test_ray_yields_every_image_as_often_as_any_other_with_its_own_label(dataset: str) -> None:
    stream, drawn = ray_stream(dataset), []
    for _ in range(550):
        images, labels = stream.next()
        assert (images.dtype, images.shape) == (torch.uint8, (4, 3, SIZE[1], SIZE[0]))
        assert (labels.dtype, labels.shape) == (torch.uint8, (4, SIZE[1], SIZE[0]))
        numbers = images[:, 0].long()
        assert torch.equal(labels.long(), torch.where(numbers % 3 > 0, numbers % 3, IGNORE))
        drawn += numbers[:, 0, 0].tolist()
    counts = [drawn.count(number) for number in range(22)]  # of 100 each
    assert min(counts) > 60
    assert max(counts) < 140
    assert drawn[:22] != drawn[22:44]


def test_ray_gives_each_rank_its_share_and_no_labels_where_none_are_wanted(dataset: str) -> None:
    images, labels = ray_stream(dataset, labels=False, place=Place(torch.device("cpu"), 0, 2)).next()
    assert len(images) == 2
    assert labels is None


class Rows:
    """Executions of 1,000 rows, each its number, as a Ray Data iterator gives them."""

    def __init__(self) -> None:
        self.executions = 0

    def iter_batches(self, batch_size: int, **options: Any) -> Iterator[dict[str, np.ndarray]]:
        self.executions += 1
        for start in range(0, 1000 - batch_size + 1, batch_size):
            yield {"pixels": np.arange(start, start + batch_size), "labels": np.arange(start, start + batch_size)}


def test_a_scan_yields_every_image_of_all_shards_once_with_its_id_and_no_label(dataset: str) -> None:
    rows = [
        row for batch in scan_rows(dataset, "train", SIZE).iter_batches(batch_format="numpy") for row in _rows(batch)
    ]
    assert sorted(rows) == [(f"image {number:02d}", number) for number in range(22)]


def _rows(batch: dict[str, np.ndarray]) -> list[tuple[str, int]]:
    assert set(batch) == {"id", "pixels"}
    return [(str(name), int(pixels[0, 0, 0])) for name, pixels in zip(batch["id"], batch["pixels"], strict=True)]


@pytest.mark.parametrize(("batch", "pool"), [(1, 512), (16, 512), (48, 576)])
def test_a_pool_is_drawn_from_at_random_and_loses_no_row(batch: int, pool: int) -> None:
    rows = Rows()
    batches = draw_batches(rows, batch, np.random.default_rng(0))
    drawn: list[int] = []
    while rows.executions < 3:
        columns = next(batches)
        assert len(columns["pixels"]) == batch
        assert np.array_equal(columns["pixels"], columns["labels"])
        drawn += columns["pixels"].tolist()
    counts = np.bincount(drawn, minlength=960)  # what is left over of an execution fills no piece
    assert set(counts) <= {0, 1, 2}
    assert 2 * 960 + batch - len(drawn) == pool, "what went in and did not come out is in the pool"
    assert drawn[:100] != sorted(drawn[:100])


def test_ray_yields_a_batch_from_a_set_that_is_smaller(dataset: str) -> None:
    assert len(ray_stream(dataset, batch=32).next()[0]) == 32


def test_a_damaged_shard_stops_the_training_and_not_only_the_reader(dataset: str, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    shard = next(damaged.glob("train-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(Exception, match=r"(?i)parquet|magic"):
        ray_stream(str(damaged)).next()


def test_images_come_in_the_order_of_the_ids(dataset: str) -> None:
    ids = ["image 17", "image 03", "image 08"]
    images = load_images(dataset, "train", SIZE, ids=ids)
    assert images.ids == tuple(ids)
    assert images.pixels[:, 0, 0, 0].tolist() == [17, 3, 8]
    assert images.labels[:, 0, 0].tolist() == [2, IGNORE, 2]


def test_images_are_resized_and_come_without_labels_where_none_are_wanted(dataset: str) -> None:
    images = load_images(dataset, "train", (16, 8), labels=False)
    assert images.pixels.shape == (22, 3, 8, 16)
    assert images.labels is None


def test_a_set_on_disk_feeds_a_stream_in_memory(dataset: str) -> None:
    stream = MemoryStream(load_images(dataset, "train", SIZE), 11, (0,), HERE)
    assert sorted(draw(stream, 2)) == list(range(22))
