import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydelta.config import load_config
from raydelta.data.prepare import evaluation_split, prepare_data, unseen_sequences
from raydelta.data.shards import Description, Domain, Item, StoredRow, read_manifest, read_rows
from raydelta.data.taxonomy import CAMVID11, Taxonomy
from raydelta.data.writing import encode_jpeg, encode_label, write_dataset
from raydelta.errors import UserError
from tests.data.test_formats import build, photo, plain
from tests.tiny import TINY

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_folder_takes_the_classes_of_the_other_set(tmp_path: Path) -> None:
    source = build("cityscapes", tmp_path / "cityscapes")
    config = load_config(overrides=TINY | {"data.real": str(source)})
    with pytest.warns(UserWarning, match=r"void, as camvid11 has no such class: .*parking|ego vehicle"):
        prepared = prepare_data(config, tmp_path / "runs")
    assert read_manifest(prepared.data.real).taxonomy.name == "camvid11"
    assert read_manifest(prepared.data.synthetic).taxonomy.name == "camvid11"


def test_of_two_folders_the_real_one_decides(tmp_path: Path) -> None:
    synthetic, real = build("synthia-rand", tmp_path / "synthia"), build("camvid", tmp_path / "camvid")
    config = load_config(overrides=TINY | {"data.real": str(real), "data.synthetic": str(synthetic)})
    with pytest.warns(UserWarning, match="void"):
        prepared = prepare_data(config, tmp_path / "runs")
    assert read_manifest(prepared.data.synthetic).taxonomy.name == "camvid11"


MINE = Taxonomy(
    name="mine",
    classes=("ground", "houses", "green", "sky", "human", "vehicle", "wheels"),
    palette=tuple((number, 0, 0) for number in range(7)),
    also={
        "ground": ("road", "sidewalk"),
        "houses": ("building",),
        "green": ("vegetation",),
        "human": ("pedestrian",),
        "vehicle": ("car",),
    },
)


def dataset(target: Path, taxonomy: Taxonomy, domain: Domain = "real") -> str:
    items = [Item(f"clip_{number:04d}", "clip", str(number), "") for number in range(4)]
    description = Description(name="own", domain=domain, taxonomy=taxonomy, source="test", options={})
    write_dataset(target, {"train": items, "test": items}, partial(striped, classes=len(taxonomy)), description)
    return str(target)


def striped(item: Item, classes: int) -> StoredRow:
    label = np.resize(np.array([*range(classes), 255], dtype=np.uint8), (32, 64))
    image = encode_jpeg(Image.fromarray(np.zeros((32, 64, 3), dtype=np.uint8)))
    return StoredRow(id=item.id, sequence=item.sequence, image=image, label=encode_label(label), height=32, width=64)


@pytest.mark.parametrize(("domain", "built_in"), [("real", "simulated"), ("synthetic", "street")])
def test_the_simulator_draws_in_the_classes_of_the_other_set(tmp_path: Path, domain: Domain, built_in: str) -> None:
    other = "synthetic" if domain == "real" else "real"
    config = load_config(
        overrides=TINY | {f"data.{domain}": dataset(tmp_path / "own", MINE, domain), f"data.{other}": built_in}
    )
    with pytest.warns(
        UserWarning, match=f"{built_in}: void, as mine has no such class: pole, traffic sign, fence, bicycl"
    ):
        prepared = prepare_data(config, tmp_path / "runs")
    made = read_manifest(getattr(prepared.data, other))
    assert made.taxonomy == MINE
    assert made.splits["train"].pixels[0] > 0 and made.splits["train"].void > 0
    assert made.splits["train"].pixels[6] == 0


def test_classes_that_the_simulator_knows_nothing_of(tmp_path: Path) -> None:
    strange = Taxonomy(name="strange", classes=("a", "b"), palette=((0, 0, 0), (1, 1, 1)))
    config = load_config(overrides=TINY | {"data.real": dataset(tmp_path / "own", strange)})
    with pytest.raises(UserError, match=r"none of them is a class of strange \(a, b\): name them under `also:`"):
        prepare_data(config, tmp_path / "runs")


def test_a_data_set_in_other_classes_is_converted_by_name(tmp_path: Path) -> None:
    real, synthetic = dataset(tmp_path / "real", MINE), dataset(tmp_path / "synthetic", CAMVID11, "synthetic")
    config = load_config(overrides=TINY | {"data.real": real, "data.synthetic": synthetic})
    with pytest.warns(UserWarning, match="void, as mine has no such class: .*pole"):
        prepared = prepare_data(config, tmp_path / "runs")
    assert prepared.data.real == real
    before, after = read_manifest(synthetic), read_manifest(prepared.data.synthetic)
    assert after.taxonomy == MINE
    counts = dict(zip(CAMVID11.classes, before.splits["train"].pixels, strict=True))
    assert after.splits["train"].pixels[0] == counts["road"] + counts["sidewalk"]
    images = [read_rows(uri, "train")["image"] for uri in (synthetic, prepared.data.synthetic)]
    assert images[0] == images[1]
    assert prepare_data(config, tmp_path / "runs") == prepared
    other = dataset(tmp_path / "other", Taxonomy(name="x", classes=("a",), palette=((0, 0, 0),)), "synthetic")
    with pytest.raises(UserError, match="import both with one taxonomy, or name the same classes under `also:`"):
        prepare_data(load_config(overrides=TINY | {"data.real": real, "data.synthetic": other}), tmp_path / "runs")


def test_photographs_in_a_plain_folder(tmp_path: Path) -> None:
    for number in range(3):
        photo(tmp_path / f"photos/frame_{number:04d}.jpg")
    config = load_config(overrides=TINY | {"data.real": str(tmp_path / "photos")})
    prepared = prepare_data(config, tmp_path / "runs")
    assert read_manifest(prepared.data.real).splits["train"].rows == 3
    with pytest.raises(UserError, match="the expert needs a label for every synthetic training image"):
        prepare_data(load_config(overrides=TINY | {"data.synthetic": str(tmp_path / "photos")}), tmp_path / "runs")


def test_everything_is_looked_at_before_anything_is_made(tmp_path: Path) -> None:
    for real in ("nowhere", str(tmp_path)):
        with pytest.raises(UserError):
            prepare_data(load_config(overrides=TINY | {"data.real": real}), tmp_path / "runs")
        assert not (tmp_path / "runs").exists(), "no image was rendered"


def test_a_command_with_a_bad_path_starts_no_ray(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "raydelta.cli", "train", "translator", "--real", "nope"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "data.real = 'nope' is neither built in" in done.stderr
    assert "dashboard" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_can_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.real = 'nowhere' is neither built in"):
        prepare_data(load_config(overrides=TINY | {"data.real": "nowhere"}), tmp_path)


def test_val_stands_in_where_test_labels_are_secret(tmp_path: Path) -> None:
    from raydelta.data.importers import ImportOptions, import_dataset

    source = build("cityscapes", tmp_path / "source")
    for split, city in (("val", "lindau/lindau_000000_000019"), ("test", "berlin/berlin_000000_000019")):
        photo(source / f"leftImg8bit/{split}/{city}_leftImg8bit.png")
        plain(source / f"gtFine/{split}/{city}_gtFine_labelIds.png", [7])
    manifest = import_dataset(source, tmp_path / "set", ImportOptions(kind="cityscapes"))
    assert evaluation_split(manifest) == "val"
    assert unseen_sequences(str(tmp_path / "set"), "val") == []  # all of it is: nothing to tell apart
    without = manifest.model_copy(update={"splits": {"train": manifest.splits["train"]}})
    assert evaluation_split(without) is None


def test_a_folder_that_changed_is_imported_again(tmp_path: Path) -> None:
    source = build("folder", tmp_path / "source")
    config = load_config(overrides=TINY | {"data.real": str(source)})
    first = prepare_data(config, tmp_path / "runs").data.real
    assert prepare_data(config, tmp_path / "runs").data.real == first
    Image.fromarray(np.full((16, 24, 3), 9, dtype=np.uint8)).save(source / "images/train/clip3_0001.jpg")
    assert prepare_data(config, tmp_path / "runs").data.real != first
