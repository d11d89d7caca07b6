import torch
import torch.nn.functional as F
from torch import Tensor

from raydelta.compute.device import Place
from raydelta.networks.colours import Colours
from raydelta.training.colours import ColourTraining
from tests.segmenters import build_network

HERE = Place(torch.device("cpu"))


def batches(count: int) -> list[dict[str, tuple[Tensor, None]]]:
    """Batches of grey synthetic images, and of darker photographs with a blue cast and less contrast."""
    torch.manual_seed(0)
    cast = torch.tensor([-0.4, -0.3, -0.1]).view(3, 1, 1)
    parts = [torch.rand(2, 4, 3, 16, 24) - 0.5 for _ in range(count)]
    return [{"synthetic": (synthetic, None), "real": (0.5 * real + cast, None)} for synthetic, real in parts]


def test_photographs_get_the_mean_and_deviation_of_the_synthetic_images() -> None:
    seen = batches(5)
    training = ColourTraining(build_network(), HERE)
    for batch in seen:
        assert training.step(batch, 0.0) == {}
    synthetic, real = (torch.cat([batch[name][0] for batch in seen]) for name in ("synthetic", "real"))
    matched = training.colours(real)
    torch.testing.assert_close(matched.mean((0, 2, 3)), synthetic.mean((0, 2, 3)), atol=1e-3, rtol=0)
    torch.testing.assert_close(matched.std((0, 2, 3)), synthetic.std((0, 2, 3)), atol=1e-3, rtol=0)
    assert (real.mean((0, 2, 3)) - synthetic.mean((0, 2, 3))).abs().min() > 0.05


def test_the_expert_sees_matched_colours_and_stays_as_it_is() -> None:
    expert = build_network(norm=True)
    before = {name: value.clone() for name, value in expert.state_dict().items()}
    training = ColourTraining(expert, HERE)
    for batch in batches(2):
        training.step(batch, 0.0)
    images = batches(1)[0]["real"][0]
    torch.testing.assert_close(training.predictor()(images), expert(training.colours(images)))
    assert all(torch.equal(value, before[name]) for name, value in expert.state_dict().items())


def test_before_the_first_step_colours_are_left_alone() -> None:
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(Colours()(images), images)


def test_a_channel_without_contrast_stays_finite_and_within_range() -> None:
    training = ColourTraining(build_network(), HERE)
    flat = torch.full((2, 3, 8, 8), 0.25)
    training.step({"synthetic": (torch.rand(2, 3, 8, 8), None), "real": (flat, None)}, 0.0)
    matched = training.colours(F.pad(flat, (1, 1), value=1.0))
    assert matched.isfinite().all() and matched.abs().max() <= 1


def test_a_step_goes_on_from_a_saved_state() -> None:
    whole, parts = batches(4), ColourTraining(build_network(), HERE)
    training = ColourTraining(build_network(), HERE)
    for batch in whole[:2]:
        parts.step(batch, 0.0)
    other = ColourTraining(build_network(), HERE)
    other.networks()["colours"].load_state_dict(parts.networks()["colours"].state_dict())
    other.load_state(parts.state())
    for batch in whole[2:]:
        other.step(batch, 0.5)
    for batch in whole:
        training.step(batch, 0.0)
    assert torch.equal(other.colours.moments, training.colours.moments)
