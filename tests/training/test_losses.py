import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from raydelta.data.taxonomy import IGNORE
from raydelta.training.losses import class_weights, cross_entropy_sum, dice_loss, dice_sums, l1, lsgan


def slope(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, step: float = 1e-2) -> torch.Tensor:
    """Central differences of a scalar function, element by element."""
    flat = torch.zeros(x.numel())
    for index in range(x.numel()):
        shift = torch.zeros(x.numel())
        shift[index] = step
        flat[index] = (function(x + shift.view_as(x)) - function(x - shift.view_as(x))) / (2 * step)
    return flat.view_as(x)


def gradient(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(function(x), x)[0]


def test_lsgan_by_hand() -> None:
    scores = torch.tensor([[[[1.0, 0.0], [2.0, -1.0]]]])
    assert lsgan(scores, real=True).item() == pytest.approx((0 + 1 + 1 + 4) / 4)
    assert lsgan(scores, real=False).item() == pytest.approx((1 + 0 + 4 + 1) / 4)


def test_l1_by_hand() -> None:
    image = torch.tensor([1.0, -1.0, 0.5]).view(1, 3, 1, 1)
    target = torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1)
    assert l1(image, target).item() == pytest.approx(1.0)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, 1.0], [math.log(3.0), 0.0, 1.0]]).view(1, 2, 1, 3)
    total, valid = cross_entropy_sum(logits, torch.tensor([[[1, 0, IGNORE]]]))
    assert total.item() == pytest.approx(-math.log(0.75) - math.log(0.5))
    assert valid.item() == 2


def test_cross_entropy_is_torchs_mean_times_the_count() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 6, 7), torch.randint(0, 5, (2, 6, 7))
    labels[0, :3] = IGNORE
    total, valid = cross_entropy_sum(logits, labels)
    assert valid.item() == 2 * 6 * 7 - 3 * 7
    torch.testing.assert_close(total / valid, F.cross_entropy(logits, labels, ignore_index=IGNORE))


@pytest.mark.parametrize("real", [True, False])
def test_lsgan_gradient(real: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 2, 3)
    torch.testing.assert_close(
        gradient(lambda x: lsgan(x, real), x), slope(lambda x: lsgan(x, real), x), atol=1e-3, rtol=1e-3
    )


def test_l1_gradient() -> None:
    torch.manual_seed(0)
    x, target = torch.randn(1, 3, 2, 2), torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(
        gradient(lambda x: l1(x, target), x), slope(lambda x: l1(x, target), x), atol=1e-3, rtol=1e-3
    )


def test_cross_entropy_gradient() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(1, 4, 2, 3), torch.tensor([[[0, 1, 2], [3, IGNORE, 0]]])

    def loss(x: torch.Tensor) -> torch.Tensor:
        return cross_entropy_sum(x, labels)[0]

    torch.testing.assert_close(gradient(loss, x), slope(loss, x), atol=2e-3, rtol=1e-3)


def test_ignored_pixels_have_no_influence() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (1, 4, 4))
    labels[0, 1] = IGNORE
    logits = torch.randn(1, 4, 4, 4)
    changed = logits.clone()
    changed[:, :, 1] = 100 * torch.randn(1, 4, 4)
    assert torch.equal(cross_entropy_sum(logits, labels)[0], cross_entropy_sum(changed, labels)[0])
    slopes = gradient(lambda x: cross_entropy_sum(x, labels)[0], logits)
    assert (slopes[:, :, 1] == 0).all()
    assert (slopes[:, :, 0] != 0).all()


def test_nothing_but_ignored_pixels_is_zero_with_zero_gradients() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    total, valid = cross_entropy_sum(logits, torch.full((2, 4, 4), IGNORE))
    assert (total.item(), valid.item()) == (0, 0)
    total.backward()
    assert (logits.grad == 0).all()


def test_no_images_at_all_are_zero() -> None:
    total, valid = cross_entropy_sum(torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.long))
    assert (total.item(), valid.item()) == (0, 0)


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    return F.one_hot(labels, classes).movedim(-1, 1).float()


def dice(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return dice_loss(dice_sums(logits, labels))


def test_dice_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    both = 1 - (2 * 0.75 / (0.75 + 0.5 + 1) + 2 * 0.5 / (0.25 + 0.5 + 1)) / 2
    assert dice(logits, torch.tensor([[[0, 1]]])).item() == pytest.approx(both)
    first_alone = 1 - 2 * (0.75 + 0.5) / (0.75 + 0.5 + 2)
    assert dice(logits, torch.tensor([[[0, 0]]])).item() == pytest.approx(first_alone)


def test_dice_is_zero_for_what_is_right_and_one_for_what_is_wrong() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (2, 6, 7))
    assert dice(50 * one_hot(labels, 4), labels).item() == pytest.approx(0, abs=1e-6)
    assert dice(50 * one_hot((labels + 1) % 4, 4), labels).item() == pytest.approx(1, abs=1e-6)


def test_in_dice_a_rare_class_counts_as_much_as_a_common_one() -> None:
    labels = torch.zeros(1, 20, 20, dtype=torch.long)
    labels[0, 0, 0] = 1
    missed = dice(50 * one_hot(torch.zeros_like(labels), 2), labels)
    assert missed.item() == pytest.approx(0.5, abs=0.01)


def test_in_dice_absent_classes_do_not_count() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    more = F.pad(logits, (0, 0, 0, 0, 0, 2), value=-100.0)
    torch.testing.assert_close(dice(more, labels), dice(logits, labels))


def test_dice_gradient() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(1, 4, 2, 3), torch.tensor([[[0, 1, 2], [2, IGNORE, 0]]])
    torch.testing.assert_close(
        gradient(lambda x: dice(x, labels), x), slope(lambda x: dice(x, labels), x), atol=1e-3, rtol=1e-3
    )


def test_ignored_pixels_have_no_influence_on_dice() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (1, 4, 4))
    labels[0, 1] = IGNORE
    logits = torch.randn(1, 4, 4, 4)
    changed = logits.clone()
    changed[:, :, 1] = 100 * torch.randn(1, 4, 4)
    assert torch.equal(dice(logits, labels), dice(changed, labels))
    slopes = gradient(lambda x: dice(x, labels), logits)
    assert (slopes[:, :, 1] == 0).all()
    assert (slopes[:, :, 0] != 0).any()


def test_dice_of_nothing_but_ignored_pixels_is_zero_with_zero_gradients() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = dice(logits, torch.full((2, 4, 4), IGNORE))
    assert loss.item() == 0
    loss.backward()
    assert (logits.grad == 0).all()


def test_bf16_inputs_are_summed_in_fp32() -> None:
    torch.manual_seed(0)
    low = torch.randn(2, 3, 64, 64).bfloat16()
    labels = torch.randint(0, 3, (2, 64, 64))
    for value, exact in (
        (lsgan(low[:, :1], True), lsgan(low[:, :1].float(), True)),
        (l1(low, low.roll(1)), l1(low.float(), low.float().roll(1))),
        (cross_entropy_sum(low, labels)[0], cross_entropy_sum(low.float(), labels)[0]),
        (dice(low, labels), dice(low.float(), labels)),
        (cross_entropy_sum(low, labels)[1], torch.tensor(2 * 64 * 64.0)),
    ):
        assert value.dtype == torch.float32
        assert torch.equal(value, exact)


def test_class_weights_are_the_inverse_root_of_the_frequency_with_a_mean_of_one_over_the_pixels() -> None:
    weights = class_weights([900, 100, 0])
    assert float((weights * torch.tensor([0.9, 0.1, 0])).sum()) == pytest.approx(1)
    assert float(weights[1] / weights[0]) == pytest.approx((0.901 / 0.101) ** 0.5)
    assert weights.isfinite().all() and weights[2] > weights[1]
    assert class_weights([0, 0]).tolist() == [1, 1]


def test_weighted_cross_entropy_is_a_mean_over_the_weights() -> None:
    logits, labels, weights = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4)), torch.tensor([1.0, 2.0, 0.5])
    labels[0, 0] = IGNORE
    total, valid = cross_entropy_sum(logits, labels, weights)
    torch.testing.assert_close(total / valid, F.cross_entropy(logits, labels, weights, ignore_index=IGNORE))
