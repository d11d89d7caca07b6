import numpy as np

from raydelta.data.price import OPENING, SEGMENT, Price, price_of

HALVES = np.zeros((16, 32), np.uint8)
HALVES[:, 16:] = 1


def test_an_image_costs_its_opening_its_borders_and_its_classes() -> None:
    assert price_of({"a": HALVES}, {}, (1, 1)) == Price(1, 16 * 32, OPENING + 16 // SEGMENT + 2)
    plain = np.zeros((16, 32), np.uint8)
    assert price_of({"a": plain}, {}, (1, 1)) == Price(1, 16 * 32, OPENING + 1)


def test_a_cell_costs_what_lies_within_it_and_the_opening_of_its_image() -> None:
    masks = {"a": HALVES}
    assert price_of(masks, {"a": [0]}, (2, 1)) == Price(1, 256, OPENING + 1), "its own outline is given"
    assert price_of(masks, {"a": [1]}, (4, 1)) == Price(1, 128, OPENING + 1)
    both = price_of(masks, {"a": [0, 1]}, (2, 1))
    assert both.pixels == 512
    assert both.clicks == OPENING + 16 // SEGMENT + 2, "a border between two bought cells is one"


def test_cells_of_many_images_cost_many_openings() -> None:
    masks = dict.fromkeys("abcd", HALVES)
    spread = price_of(masks, {name: [0] for name in "abcd"}, (4, 1))
    whole = price_of({"a": HALVES}, {}, (1, 1))
    assert spread.pixels == whole.pixels
    assert spread.images == 4
    assert spread.clicks > whole.clicks
    assert str(whole) == f"about {whole.clicks} clicks in 1 images, 512 pixels"
