import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raydelta.compute.device import Place
from raydelta.data import streams
from raydelta.data.decoding import usable_cpus
from raydelta.data.shards import SCHEMA, Description, Item, Manifest, Shard, Split, StoredRow, list_shards
from raydelta.data.streams import (
    Images,
    MemoryStream,
    RayStream,
    draw_batches,
    load_images,
    order_shards,
    scan_rows,
    stream_rows,
)
from raydelta.data.taxonomy import IGNORE, Taxonomy
from raydelta.data.writing import encode_label, write_dataset
from raydelta.errors import UserError

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


def test_a_shard_that_was_changed_is_found_when_it_is_first_opened(dataset: str, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(dataset, tmp_path / "changed"))
    shutil.copy(changed / "train-00001.parquet", changed / "train-00002.parquet")
    with pytest.raises(UserError, match=r"train-00002\.parquet: .*its checksum is not the manifest's"):
        load_images(str(changed), "train", SIZE)
    with pytest.raises(Exception, match="its checksum is not the manifest's"):
        ray_stream(str(changed)).next()


def test_the_whole_cluster_decodes_the_same_images(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here = load_images(dataset, "train", SIZE)
    monkeypatch.setattr(streams, "_has_other_nodes", lambda: True)
    there = load_images(dataset, "train", SIZE)
    assert there.ids == here.ids
    assert np.array_equal(there.pixels, here.pixels)
    assert np.array_equal(there.labels, here.labels)


def test_what_another_machine_cannot_see_is_decoded_here(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_has_other_nodes", lambda: True)
    monkeypatch.setattr(streams, "_decode_parts", _is_elsewhere)
    assert len(load_images(dataset, "train", SIZE)) == 22
    damaged = Path(shutil.copytree(dataset, tmp_path / "damaged"))
    (damaged / "train-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"train-00001\.parquet: shard cannot be read"):
        load_images(str(damaged), "train", SIZE)


def _is_elsewhere(*arguments: object) -> None:
    raise UserError("no such file on this machine")


def test_decoding_uses_every_cpu_whatever_openmp_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as ray up does
    assert usable_cpus() == len(os.sched_getaffinity(0))


def test_a_task_uses_the_cpus_that_it_has_reserved(ray_session: None) -> None:
    import ray

    assert ray.get([ray.remote(num_cpus=count)(usable_cpus).remote() for count in (0.5, 1, 2)]) == [1, 1, 2]


LOAD = """
import os, sys
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from raydelta.data.streams import load_images
load_images(sys.argv[1], "train", (8, 4))  # imports, buffers
def peak():  # not ru_maxrss: a process inherits that from the one that has started it
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
images = load_images(sys.argv[2], "train", (32, 16))
grown = peak() - before
print(len(images), images.pixels.nbytes + images.labels.nbytes, grown)
"""


def test_loading_takes_the_memory_of_the_pixels_and_some_row_groups_not_of_the_encoded_images(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", compress_level=0)  # 780 kB that become 2 kB
    path, small = tmp_path / "large", tmp_path / "small"
    write_rows(small, [encode_png(0)], rows_per_shard=1)
    write_rows(path, [buffer.getvalue()] * 300, rows_per_shard=100)
    encoded = sum(shard.stat().st_size for shard in path.glob("*.parquet"))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(small), str(path)], capture_output=True, text=True, check=True
    )
    count, decoded, grown = map(int, done.stdout.split())
    assert count == 300
    assert encoded > 5 * decoded
    row_group = 16 * len(buffer.getvalue())
    # One group as a file's page, as a table and as bytes, the one before it, and what the allocators keep.
    assert grown * 1024 < decoded + 7 * row_group < encoded / 2


def write_rows(target: Path, images: list[bytes], rows_per_shard: int) -> None:
    """A data set without labels, written without Ray."""
    target.mkdir()
    found = []
    for number, start in enumerate(range(0, len(images), rows_per_shard)):
        path = target / f"train-{number:05d}.parquet"
        part = images[start : start + rows_per_shard]
        rows = [
            {"id": f"{start + i:05d}", "sequence": "all", "image": image, "label": None, "height": 1, "width": 1}
            for i, image in enumerate(part)
        ]
        pq.write_table(
            pa.Table.from_pylist(rows, SCHEMA), path, compression="none", row_group_size=16, use_dictionary=False
        )
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        found.append(Shard(file=path.name, rows=len(part), labelled=0, bytes=len(content), sha256=digest))
    split = Split(shards=found, pixels=[0, 0, 0], void=0)
    manifest = Manifest(
        name="rows", domain="real", taxonomy=TAXONOMY, source="test", options={}, splits={"train": split}
    )
    (target / "manifest.json").write_text(manifest.model_dump_json())


def test_every_epoch_of_a_stream_has_an_order_that_its_seed_decides() -> None:
    shards = [
        (f"shard {number}", Shard(file=f"train-{number:05d}.parquet", rows=128, labelled=0, bytes=0, sha256=""))
        for number in range(500)
    ]
    tasks = order_shards(shards, seed=3)
    assert [task.model_dump() for task in tasks] == [task.model_dump() for task in order_shards(shards, seed=3)]
    assert order_shards(shards, seed=4)[0].shards != tasks[0].shards
    order = [address for task in tasks for address, _ in task.shards]
    epochs = [order[start : start + 500] for start in range(0, len(order), 500)]
    assert len(epochs) == 8, "a set of more than 50,000 rows has several epochs too"
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert len({task.seed for task in tasks}) == len(tasks)


def test_a_stream_mixes_frames_that_follow_each_other(tmp_path: Path) -> None:
    """How often a batch of 8 has two frames of one drive that are less than 16 apart, against rows in random order."""
    count = 6000
    write_rows(tmp_path / "drives", [encode_png(0)] * count, rows_per_shard=128)
    uri = str(tmp_path / "drives")
    decode_tasks = streams._decode_tasks(uri, (2, 2), labels=False, ids=True)
    drawn: list[int] = []
    for task in order_shards(list_shards(uri, "train"), seed=0):
        for batch in decode_tasks({"task": np.array([task.model_dump_json()])}):
            drawn += [int(name) for name in batch["id"]]
        if len(drawn) >= count:
            break
    assert sorted(drawn[:count]) == list(range(count))

    class Frames:
        def iter_batches(self, batch_size: int, **options: Any) -> Iterator[dict[str, np.ndarray]]:
            for start in range(0, count - batch_size + 1, batch_size):
                yield {"pixels": np.array(drawn[start : start + batch_size])}

    batches = draw_batches(Frames(), 8, np.random.default_rng(0))
    near = [_near(next(batches)["pixels"]) for _ in range(1000)]
    ideal = [_near(np.random.default_rng(n).choice(count, 8, replace=False)) for n in range(1000)]
    assert np.mean(near) < 8 * np.mean(ideal), (np.mean(near), np.mean(ideal))


def _near(frames: np.ndarray) -> int:
    """Pairs of frames that are less than 16 apart."""
    gaps = np.abs(frames[:, None] - frames[None])
    return int(((gaps < 16) & (gaps > 0)).sum() // 2)


def test_images_come_in_the_order_of_the_ids(dataset: str) -> None:
    ids = ["image 17", "image 03", "image 08"]
    images = load_images(dataset, "train", SIZE, ids=ids)
    assert images.ids == tuple(ids)
    assert images.pixels[:, 0, 0, 0].tolist() == [17, 3, 8]
    assert images.labels[:, 0, 0].tolist() == [2, IGNORE, 2]
    twice = load_images(dataset, "train", SIZE, ids=[*ids, "image 17"])
    assert twice.ids == (*ids, "image 17")
    assert twice.pixels[:, 0, 0, 0].tolist() == [17, 3, 8, 17]
    assert twice.labels[:, 0, 0].tolist() == [2, IGNORE, 2, 2]
    assert len(load_images(dataset, "train", SIZE, ids=[])) == 0
    with pytest.raises(UserError, match="has no id nothing \\(1 of 2 unknown\\)"):
        load_images(dataset, "train", SIZE, ids=["image 17", "nothing"])


def test_images_are_resized_and_come_without_labels_where_none_are_wanted(dataset: str) -> None:
    images = load_images(dataset, "train", (16, 8), labels=False)
    assert images.pixels.shape == (22, 3, 8, 16)
    assert images.labels is None


def test_a_set_on_disk_feeds_a_stream_in_memory(dataset: str) -> None:
    stream = MemoryStream(load_images(dataset, "train", SIZE), 11, (0,), HERE)
    assert sorted(draw(stream, 2)) == list(range(22))
