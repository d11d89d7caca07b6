"""Importing from and to a real S3-compatible server on loopback."""

from pathlib import Path

import pytest

from raydelta.data import checking, shards
from raydelta.data.formats import detect
from raydelta.data.importers import ImportOptions, import_dataset
from raydelta.data.shards import BadItem
from raydelta.errors import UserError
from tests.data.test_formats import CASES, build, photo

pytestmark = pytest.mark.usefixtures("ray_session")


def test_import_from_and_to_object_storage(s3: str, tmp_path: Path) -> None:
    import boto3

    source = build("synthia-rand", tmp_path / "source")
    client = boto3.client("s3")
    for path in source.rglob("*.png"):
        client.upload_file(str(path), "raydelta-tests", f"source/{path.relative_to(source)}")
    assert detect(f"{s3}/source") == "synthia-rand"
    there = import_dataset(f"{s3}/source", f"{s3}/set", ImportOptions(kind="synthia-rand"))
    here = import_dataset(source, tmp_path / "set", ImportOptions(kind="synthia-rand"))
    assert shards.read_rows(f"{s3}/set", "train").equals(shards.read_rows(tmp_path / "set", "train"))
    assert there.source == f"synthia-rand:{s3}/source"
    assert there.splits["train"].pixels == here.splits["train"].pixels
    assert checking.check(f"{s3}/set").problems == []
    with pytest.raises(UserError, match="exists already"):
        import_dataset(source, f"{s3}/set", ImportOptions(kind="synthia-rand"))
    with pytest.raises(UserError, match="not a data set"):
        shards.read_manifest(f"{s3}/source")


def test_an_interrupted_import_into_object_storage_is_no_data_set_and_goes_on(s3: str, tmp_path: Path) -> None:
    import boto3

    source = build("folder", tmp_path / "source")
    photo(source / "images/test/z_1.jpg")
    good = CASES["folder"][1]
    (source / "labels/test").mkdir()
    photo(source / "labels/test/z_1.png")  # a colour picture
    target = f"{s3}/unfinished"
    with pytest.raises(BadItem, match=r"z_1\.png"):
        import_dataset(source, target, ImportOptions(kind="folder"))
    client = boto3.client("s3")
    import_dataset(source, target, ImportOptions(kind="folder", splits=["train"], limit=2))
    client.delete_object(Bucket="raydelta-tests", Key="unfinished/manifest.json")
    with pytest.raises(UserError, match="its import was interrupted: run the same command again"):
        shards.read_manifest(target)
    written = client.head_object(Bucket="raydelta-tests", Key="unfinished/train-00000.parquet")["LastModified"]
    import_dataset(source, target, ImportOptions(kind="folder", splits=["train"], limit=2))
    again = client.head_object(Bucket="raydelta-tests", Key="unfinished/train-00000.parquet")["LastModified"]
    assert again == written, "a finished shard is not written again"
    good(source / "labels/test/z_1.png", [0, 10])
    client.put_object(Bucket="raydelta-tests", Key="foreign/thesis.doc", Body=b"x")
    with pytest.raises(UserError, match=r"holds other things already \(thesis\.doc\)"):
        import_dataset(source, f"{s3}/foreign", ImportOptions(kind="folder"))
    client.put_object(Bucket="raydelta-tests", Key="tables/sales.parquet", Body=b"somebody's")
    with pytest.raises(UserError, match=r"holds other things already \(sales\.parquet\)"):
        import_dataset(source, f"{s3}/tables", ImportOptions(kind="folder"))
    client.head_object(Bucket="raydelta-tests", Key="tables/sales.parquet")


def test_names_in_object_storage_may_hold_anything(s3: str, tmp_path: Path) -> None:
    import boto3

    source = build("folder", tmp_path / "source")
    client = boto3.client("s3")
    for path in source.rglob("*.*"):
        name = f"odd/{path.relative_to(source)}".replace("train/clip", "train/clip ü %20 ")
        client.upload_file(str(path), "raydelta-tests", name)
    import_dataset(f"{s3}/odd", tmp_path / "set", ImportOptions(kind="folder"))
    ids = [sample.id for sample in shards.list_ids(tmp_path / "set", "train")]
    assert ids == ["clip ü %20 1_0001", "clip ü %20 2_0001"]
