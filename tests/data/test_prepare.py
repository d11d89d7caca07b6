from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raydelta.config import load_config
from raydelta.data.prepare import evaluation_split, prepare_data, unseen_sequences
from raydelta.data.shards import read_manifest
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
