"""Id tables, and what data check says about shares."""

from pathlib import Path

import pytest

from raydelta.data import checking
from raydelta.data.importers import ImportOptions, import_dataset
from raydelta.data.tables import Table, read_table, shipped_tables
from raydelta.data.taxonomy import BUILT_IN, IGNORE
from raydelta.errors import UserError
from tests.data.test_formats import photo, plain


def test_tables_are_whole() -> None:
    for name in shipped_tables():
        table = read_table(name)
        assert set(table.shares) <= set(table.ids.values()), name
        assert table.colours.keys() <= table.ids.keys(), name
        assert sum(table.shares.values()) <= 101, name
    trained = read_table("cityscapes").to(BUILT_IN["cityscapes19"])
    # trainIds as in cityscapesscripts
    assert [trained[value] for value in (7, 8, 11, 12, 13, 17, 19, 20, 21, 22)] == list(range(10))
    assert [trained[value] for value in (23, 24, 25, 26, 27, 28, 31, 32, 33)] == list(range(10, 19))
    assert sum(target != IGNORE for target in trained.values()) == 19
    # SYNTHIA-RAND → trainIds as the usual converters have it
    pairs = "3>0 4>1 2>2 21>3 5>4 7>5 15>6 9>7 6>8 16>9 1>10 10>11 17>12 8>13 18>14 19>15 20>16 12>17 11>18"
    rand = read_table("synthia-rand").to(BUILT_IN["cityscapes19"])
    assert {int(a): int(b) for a, b in (p.split(">") for p in pairs.split())} == {
        value: target for value, target in rand.items() if target != IGNORE
    }


def test_shares_follow_the_classes() -> None:
    table = Table(ids={1: "wall", 2: "building", 3: "lawn"}, shares={"wall": 1.0, "building": 20.0, "lawn": 3.0})
    assert table.shares_of(BUILT_IN["camvid11"]) == {"building": 21.0}
    assert table.dropped(BUILT_IN["camvid11"]) == ["lawn"]


@pytest.mark.parametrize("text", ["7", "{a: b}", "[]", "{0: [road]}", "{ids: {0: road}, colour: 1}", "{-1: road}"])
def test_bad_id_tables_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "ids.yaml").write_text(text)
    with pytest.raises(UserError, match=r"id table .*ids\.yaml"):
        read_table(str(tmp_path / "ids.yaml"))


def test_a_list_of_names_is_an_id_table(tmp_path: Path) -> None:
    (tmp_path / "ids.yaml").write_text("[road, sky]")
    assert read_table(str(tmp_path / "ids.yaml")).ids == {0: "road", 1: "sky"}


def test_check_doubts_shares_that_are_far_from_the_published_ones(tmp_path: Path, ray_session: None) -> None:
    source = tmp_path / "source"
    usual = [7] * 8 + [8] * 2 + [11] * 6 + [21] * 4 + [23] + [26] * 2 + [22]
    for number in range(20):
        photo(source / f"leftImg8bit/train/a/a_{number:06d}_000019_leftImg8bit.png")
        plain(source / f"gtFine/train/a/a_{number:06d}_000019_gtFine_labelIds.png", usual)
    import_dataset(source, tmp_path / "set", ImportOptions(kind="cityscapes"))
    report = checking.check(tmp_path / "set")
    assert report.published["road"] == pytest.approx(32.7)
    assert not any("road" in doubt for doubt in report.doubts)
    for number in range(20):  # somebody's trainIds under the name of labelIds
        plain(source / f"gtFine/train/a/a_{number:06d}_000019_gtFine_labelIds.png", [0] * 8 + [1, 2, 8, 10, 13] * 3)
    with pytest.warns(UserWarning, match="road covers"):
        import_dataset(source, tmp_path / "wrong", ImportOptions(kind="cityscapes"))
    report = checking.check(tmp_path / "wrong")
    assert any(doubt.startswith("road covers 0.00 %, 32.7 % as published") for doubt in report.doubts)
    assert "warning: road covers" in checking.format_report(report)
    assert report.problems == []
