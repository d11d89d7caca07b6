from pathlib import Path

import pytest

from raydelta.config import load_config
from raydelta.errors import UserError
from raydelta.tuning.project import FILE, find_project, write_project


def test_the_file_is_a_config_with_a_comment_for_each_field(tmp_path: Path) -> None:
    (tmp_path / "my photographs: 1").mkdir()
    assert find_project(tmp_path) is None
    path = write_project(tmp_path, "s3://bucket/simulated", "my photographs: 1")
    assert find_project(tmp_path) == path == tmp_path / FILE
    config = load_config("laptop", path)
    assert (config.data.synthetic, config.data.real) == ("s3://bucket/simulated", "my photographs: 1")
    assert path.read_text().count("#") > 8


def test_a_file_that_is_there_stays_and_a_wrong_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--real photos: no such folder"):
        write_project(tmp_path, real="photos")
    path = write_project(tmp_path)
    before = path.read_text()
    with pytest.raises(UserError, match="is there already"):
        write_project(tmp_path)
    assert path.read_text() == before
