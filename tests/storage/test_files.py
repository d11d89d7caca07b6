import resource
import threading
from pathlib import Path

import pytest

from raydelta.errors import UserError
from raydelta.storage import files as storage
from raydelta.storage.files import fingerprint, patiently, replace_directory, write_atomically
from raydelta.training.stage import complete_stage, read_stage


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def fill(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_stage_is_complete_with_its_manifest_and_not_before(tmp_path: Path) -> None:
    stage = tmp_path / "expert-1"
    assert read_stage(stage) is None
    fill(stage, weights="w")
    assert read_stage(stage) is None
    complete_stage(stage, {"kind": "expert", "metrics": {"miou": 3.5}})
    assert read_stage(stage) == {"kind": "expert", "metrics": {"miou": 3.5}}
    assert listing(stage) == ["stage.json", "weights"]


@pytest.mark.parametrize("text", ['{"kind": "exp', "", "\x00\x01"])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    stage = fill(tmp_path / "expert-1")
    (stage / "stage.json").write_text(text)
    with pytest.raises(UserError, match=r"expert-1/stage\.json"):
        read_stage(stage)


def test_a_manifest_that_is_no_text_is_named(tmp_path: Path) -> None:
    stage = fill(tmp_path / "expert-1")
    (stage / "stage.json").write_bytes(b"\xff\xfe\x9d")
    with pytest.raises(UserError, match=r"stage\.json"):
        read_stage(stage)


def test_a_stage_is_completed_anew(tmp_path: Path) -> None:
    for number in (1, 2):
        complete_stage(tmp_path / "new" / "stage", {"number": number})
    assert read_stage(tmp_path / "new" / "stage") == {"number": 2}
    assert listing(tmp_path) == ["new", "new/stage", "new/stage/stage.json"]


def test_a_text_that_does_not_fit_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    write_atomically(tmp_path / "table.json", "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"table\.json.*too large"):
            write_atomically(tmp_path / "table.json", "new" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "table.json").read_text() == "old"
    assert listing(tmp_path) == ["table.json"]


def test_a_text_in_place_of_a_directory_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "table.json", inside="kept")
    with pytest.raises(UserError, match=r"table\.json"):
        write_atomically(tmp_path / "table.json", "text")
    assert listing(tmp_path) == ["table.json", "table.json/inside"]


def test_a_text_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"runs/table\.json"):
        write_atomically(tmp_path / "runs" / "table.json", "text")


def test_a_directory_replaces_another_entirely(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", a="1", b="2")
    target = fill(tmp_path / "runs" / "target", a="old", stale="old")
    replace_directory(source, target)
    assert listing(target) == ["a", "b"]
    assert (target / "a").read_text() == "1"
    assert listing(source) == ["a", "b"]
    assert listing(tmp_path / "runs") == ["target", "target/a", "target/b"]


def test_a_directory_is_put_where_there_was_none(tmp_path: Path) -> None:
    replace_directory(fill(tmp_path / "source", a="1"), tmp_path / "new" / "deep" / "target")
    assert (tmp_path / "new" / "deep" / "target" / "a").read_text() == "1"


def test_a_directory_that_cannot_be_copied_leaves_the_target_as_it_was(tmp_path: Path) -> None:
    source = fill(tmp_path / "source", a="1")
    (source / "dangling").symlink_to(tmp_path / "nowhere")
    target = fill(tmp_path / "runs" / "target", a="old")
    with pytest.raises(UserError, match="target"):
        replace_directory(source, target)
    assert (target / "a").read_text() == "old"
    assert listing(tmp_path / "runs") == ["target", "target/a"]


def test_storage_that_is_away_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()
    away = (tmp_path / "mount").rename(tmp_path / "away")
    threading.Timer(1.5, lambda: away.rename(tmp_path / "mount")).start()
    with pytest.warns(UserWarning, match="mount: away; waiting"):
        patiently(tmp_path / "mount", lambda: write_atomically(tmp_path / "mount" / "new" / "table.json", "text"))
    assert listing(tmp_path) == ["mount", "mount/new", "mount/new/table.json"]


def test_storage_that_stays_away_is_named_and_nothing_is_written_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "AWAY", 0.5)
    with pytest.warns(UserWarning), pytest.raises(UserError, match=r"mount: away for 0\.5 s"):
        patiently(tmp_path / "mount", lambda: write_atomically(tmp_path / "mount" / "table.json", "text"))
    assert listing(tmp_path) == []


def test_another_fault_than_storage_that_is_away_is_not_waited_for(tmp_path: Path) -> None:
    tries: list[int] = []

    def write() -> None:
        tries.append(1)
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        patiently(tmp_path, write)
    assert len(tries) == 2


def test_fingerprints_stay_as_they_are() -> None:
    """A change here would train everything anew that users have trained."""
    assert fingerprint({"b": [1, 2.5, None], "a": "x"}) == fingerprint({"a": "x", "b": [1, 2.5, None]}) == "b649bb1171"
    assert fingerprint({"a": "x", "b": [2.5, 1, None]}) != fingerprint({"a": "x", "b": [1, 2.5, None]})
    assert fingerprint(Path("data")) == fingerprint("data")
