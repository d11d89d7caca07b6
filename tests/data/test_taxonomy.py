import json
from pathlib import Path

import pytest
import yaml

from raydelta.data.taxonomy import BUILT_IN, CAMVID11, IGNORE, get_taxonomy, map_names
from raydelta.errors import UserError


def test_built_in_taxonomies_are_whole() -> None:
    for name, taxonomy in BUILT_IN.items():
        assert get_taxonomy(name) is taxonomy
        assert taxonomy.name == name
        assert len(taxonomy) == len(taxonomy.palette) == len(set(taxonomy.classes)) == len(set(taxonomy.palette))
        assert len(taxonomy) < IGNORE
    assert len(CAMVID11) == 11


def test_a_file_gives_the_taxonomy_it_describes(tmp_path: Path) -> None:
    fields = {"name": "mine", "classes": ["road", "sky"], "palette": [[1, 2, 3], [4, 5, 6]]}
    for name, text in (("a.yaml", yaml.safe_dump(fields)), ("a.json", json.dumps(fields))):
        (tmp_path / name).write_text(text)
        taxonomy = get_taxonomy(str(tmp_path / name))
        assert taxonomy.name == "mine"
        assert taxonomy.classes == ("road", "sky")
        assert taxonomy.palette == ((1, 2, 3), (4, 5, 6))


def test_a_bare_list_of_classes_gets_a_name_and_distinct_colours(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(30)]
    (tmp_path / "thirty.yaml").write_text(yaml.safe_dump(names))
    taxonomy = get_taxonomy(str(tmp_path / "thirty.yaml"))
    assert taxonomy.name == "thirty"
    assert taxonomy.classes == tuple(names)
    assert len(set(taxonomy.palette)) == 30
    assert (0, 0, 0) not in taxonomy.palette
    assert taxonomy.palette[:3] == ((128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert all(0 <= value <= 255 for colour in taxonomy.palette for value in colour)


def test_a_name_that_is_neither_built_in_nor_a_file() -> None:
    with pytest.raises(UserError, match=r"'camvid'.*camvid11"):
        get_taxonomy("camvid")


@pytest.mark.parametrize(
    "text",
    [
        "{a: [",
        "7",
        "words",
        "",
        "name: x",
        "classes: 3",
        "classes: null",
        "[]",
        "{name: x, classes: [a, b], palette: [[0, 0, 0]]}",
        "{name: x, classes: [a], palette: [[0, 0]]}",
        "{name: x, classes: [a], colour: red}",
        "{classes: [a]}",
    ],
)
def test_a_file_that_is_no_taxonomy_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        get_taxonomy(str(tmp_path / "mine.yaml"))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x9d")
    with pytest.raises(UserError, match=r"mine\.yaml"):
        get_taxonomy(str(tmp_path / "mine.yaml"))


def test_as_many_classes_as_ids_and_no_more(tmp_path: Path) -> None:
    for count in (IGNORE, IGNORE + 1):
        (tmp_path / f"{count}.yaml").write_text(yaml.safe_dump([f"class {index}" for index in range(count)]))
    assert len(get_taxonomy(str(tmp_path / "255.yaml"))) == IGNORE
    with pytest.raises(UserError, match="255 classes"):
        get_taxonomy(str(tmp_path / "256.yaml"))


@pytest.mark.parametrize(
    "text", ["[road, sky, road]", "{name: x, classes: [road], palette: [[0, 0, 300]]}"], ids=["class twice", "colour"]
)
def test_what_would_garble_a_table_or_a_picture_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        get_taxonomy(str(tmp_path / "mine.yaml"))


def test_names_lead_to_classes() -> None:
    cityscapes, camvid = BUILT_IN["cityscapes19"], CAMVID11
    assert [camvid.find(name) for name in ("person", "Traffic_Light", "wall", "lane-marking")] == [9, 6, 1, 3]
    assert cityscapes.find("pedestrian") == cityscapes.classes.index("person")
    assert cityscapes.find("lane marking") == IGNORE
    assert map_names({7: "road", 8: "lawn"}, camvid) == {7: 3, 8: IGNORE}


def test_the_smaller_taxonomies_of_synthia() -> None:
    full = BUILT_IN["cityscapes19"].classes
    ids = {size: [full.index(name) for name in BUILT_IN[f"synthia{size}"].classes] for size in (16, 13)}
    assert ids[16] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18]
    assert ids[13] == [0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18]


def test_an_own_taxonomy_with_colours_and_other_names(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("{name: mine, classes: {lane: [1, 2, 3]}, also: {lane: [road, road line]}}")
    taxonomy = get_taxonomy(str(tmp_path / "mine.yaml"))
    assert (taxonomy.classes, taxonomy.palette, taxonomy.find("road line")) == (("lane",), ((1, 2, 3),), 0)
    (tmp_path / "mine.yaml").write_text("{name: mine, classes: {lane: [1, 2, 3]}, also: {line: [road]}}")
    with pytest.raises(UserError, match="also: line is not among the classes"):
        get_taxonomy(str(tmp_path / "mine.yaml"))
