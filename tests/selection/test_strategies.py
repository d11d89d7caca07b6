import numpy as np
import pytest
import torch
from torch import Tensor

from raydelta.errors import UserError
from raydelta.selection.batch import choose_batch
from raydelta.selection.strategies import (
    RAREST,
    STRATEGIES,
    Networks,
    View,
    cell_means,
    class_means,
    find_strategy,
    rarity_weights,
)

CLASSES, HEIGHT, WIDTH = 3, 40, 80
SURE, UNSURE, OTHER = [9.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 9.0]


def paint(left: list[float], right: list[float]) -> Tensor:
    """Logits (1, C, H, W) of an image of two halves."""
    logits = torch.empty(1, CLASSES, HEIGHT, WIDTH)
    logits[..., : WIDTH // 2] = torch.tensor(left)[None, :, None, None]
    logits[..., WIDTH // 2 :] = torch.tensor(right)[None, :, None, None]
    return logits


def look(translated: Tensor, untranslated: Tensor | None = None, shift: float = 0.0) -> View:
    """A view whose R2S adds 1, whose S2R takes 1 - shift away, and whose expert sees what it is told."""
    images = torch.zeros(len(translated), 3, HEIGHT, WIDTH)

    def expert(seen: Tensor) -> tuple[Tensor, list[Tensor]]:
        logits = translated if seen.mean() > 0.5 else untranslated
        assert logits is not None
        return logits, [logits]

    def student(seen: Tensor) -> Tensor:
        assert untranslated is not None
        return untranslated

    return View(Networks(expert, lambda x: x + 1, lambda x: x - 1 + shift, student), images)


def halves(name: str, view: View) -> tuple[float, float]:
    """Mean heat of the left and of the right half."""
    left, right = cell_means(STRATEGIES[name].heat(view), (2, 1))[0].tolist()
    return left, right


@pytest.mark.parametrize("name", STRATEGIES)
def test_heat_is_one_value_a_pixel_and_never_negative_or_broken(name: str) -> None:
    torch.manual_seed(0)
    view = look(torch.randn(2, CLASSES, HEIGHT, WIDTH) * 50, torch.randn(2, CLASSES, HEIGHT, WIDTH) * 50)
    heat = STRATEGIES[name].heat(view)
    assert heat.shape == (2, HEIGHT, WIDTH)
    assert heat.isfinite().all()
    assert (heat >= 0).all()


@pytest.mark.parametrize("name", ["entropy", "margin"])
def test_uncertain_pixels_are_hot(name: str) -> None:
    left, right = halves(name, look(paint(UNSURE, SURE)))
    assert left == pytest.approx(1, abs=1e-5)
    assert right < 0.02


def test_ripu_needs_impure_surroundings_and_uncertainty() -> None:
    heat = STRATEGIES["ripu"].heat(look(paint([1.0, 0.9, 0.0], [0.9, 1.0, 0.0])))[0]
    middle = WIDTH // 2
    assert heat[:, middle - 1 : middle + 1].min() > 0.1, "two classes meet"
    assert heat[:, : middle - 4].max() < 1e-6, "uncertain, but one class all around"
    sure = STRATEGIES["ripu"].heat(look(paint(SURE, OTHER)))[0]
    assert sure.max() < heat.max() / 10, "two classes meet, but the expert is sure"


def test_ripu_counts_the_border_of_the_image_as_no_class() -> None:
    heat = STRATEGIES["ripu"].heat(look(paint(UNSURE, UNSURE)))
    assert heat.max() < 1e-6


def test_disagreement_is_one_where_the_two_views_exclude_each_other_and_nothing_where_they_agree() -> None:
    left, right = halves("disagreement", look(paint([99.0, 0, 0], [99.0, 0, 0]), paint([0, 0, 99.0], [99.0, 0, 0])))
    assert left == pytest.approx(1, abs=1e-5)
    assert right == pytest.approx(0, abs=1e-6)


def test_reconstruction_is_the_cycles_error() -> None:
    assert halves("reconstruction", look(paint(SURE, SURE), shift=0.5)) == pytest.approx((0.25, 0.25))
    assert halves("reconstruction", look(paint(SURE, SURE))) == pytest.approx((0, 0))


def test_means_by_class_add_up_to_the_mean_and_know_where_each_class_is() -> None:
    classes = torch.tensor([[[0, 0, 2, 2], [0, 0, 2, 1]]])
    heat = torch.arange(8.0).reshape(1, 2, 4)
    means = class_means(heat, classes, CLASSES, (2, 1))
    assert means.tolist() == [[[2.5, 0, 0], [0, 7 / 4, (2 + 3 + 6) / 4]]]
    assert means.sum(-1).equal(cell_means(heat, (2, 1)))


def test_weights_are_inverse_shares_with_a_mean_of_one_and_a_limit() -> None:
    pixels = torch.tensor([900.0, 100.0, 0.0])
    weights = rarity_weights(pixels)
    assert weights[1] / weights[0] == pytest.approx(9)
    assert (weights * pixels).sum() / pixels.sum() == pytest.approx(1)
    assert weights[2] / weights[0] == pytest.approx(0.9 / RAREST)


def test_cells_go_row_by_row_and_their_mean_is_the_images() -> None:
    heat = torch.arange(8.0).reshape(1, 2, 4)
    assert cell_means(heat, (2, 2)).tolist() == [[0.5, 2.5, 4.5, 6.5]]
    assert cell_means(heat, (1, 1)).tolist() == [[3.5]]
    uneven = torch.rand(1, 33, 65)
    assert cell_means(uneven, (4, 3)).shape == (1, 12)


def choose(
    scores: list[float], count: int, sequences: list[int] | None = None, window: int = 1, seed: int = 0, **more: object
) -> list[int]:
    table = np.array(scores, dtype=np.float32)[:, None]
    groups = np.array(sequences or range(len(scores)))
    places = np.arange(len(scores))
    return [image for image, _ in choose_batch(table, groups, places, count, window, seed, **more)]  # type: ignore[arg-type]


def test_the_hottest_come_first() -> None:
    assert choose([0.1, 0.9, 0.5, 0.7], 3) == [1, 3, 2]


def test_equal_ones_come_in_a_seeded_random_order() -> None:
    orders = {tuple(choose([1.0] * 30, 5, seed=seed)) for seed in range(5)}
    assert len(orders) == 5
    assert choose([1.0] * 30, 5) == choose([1.0] * 30, 5)


def test_a_batch_holds_one_frame_of_a_window_in_each_sequence() -> None:
    scores = [10.0, 9, 8, 7, 6, 5, 9.5, 1]
    sequences = [0] * 6 + [1] * 2
    assert choose(scores, 3, sequences, window=3) == [0, 6, 3]
    assert choose(scores, 3, [0] * 8, window=1) == [0, 6, 1], "a window of one allows every frame"
    assert choose([4.0, 3, 2, 1], 2, [0, 1, 0, 1], window=4) == [0, 1], "other sequences are no neighbours"


def test_windows_that_leave_too_few_say_so() -> None:
    with pytest.raises(
        UserError, match=r"count = 4, but with a window of 3 frames the pool has only 3 .*lower the window"
    ):
        choose([1.0, 2, 3, 4, 5, 6, 7], 4, [0] * 7, window=3)


def test_neighbouring_frames_may_give_different_cells() -> None:
    scores = np.array([[5.0, 1.0], [4.0, 2.0], [0.5, 0.1]], dtype=np.float32)
    chosen = choose_batch(scores, np.zeros(3), np.arange(3), 3, 2, 0)
    assert chosen == [(0, 0), (1, 1), (2, 0)]


def test_diversity_goes_far_from_the_chosen_and_from_the_labelled() -> None:
    features = np.array([[0.0], [0.1], [5.0], [10.0]], dtype=np.float32)
    assert choose([1.0, 1, 1, 1], 2, features=features, labelled=np.array([[0.0]])) == [3, 2]
    assert choose([9.0, 1, 1, 1], 3, features=features, labelled=np.empty((0, 1))) == [0, 3, 2], "the hottest first"
    assert choose([1.0, 1, 9, 1], 1, features=features, labelled=np.array([[0.0]])) == [2], (
        "heat counts beside distance"
    )
    ends = np.array([[0.0], [10.0]])
    assert choose([1.0, 1, 1, 1], 1, features=features, labelled=ends) == [2], "far from all that are labelled"


def test_among_duplicates_the_hotter_one_comes_first() -> None:
    features = np.zeros((3, 2), dtype=np.float32)
    assert choose([0.2, 0.9, 0.5], 3, features=features, labelled=np.zeros((1, 2))) == [1, 2, 0]


def test_an_unknown_strategy_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match="'guess' does not exist; there are: combined, random"):
        find_strategy("guess")
