import socket
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raydelta.config import DiscriminatorConfig, GeneratorConfig, SegmenterConfig, load_config
from raydelta.errors import UserError
from raydelta.networks import Discriminator, Generator, build_segmenter
from raydelta.networks.layers import Conv2d, ConvTranspose2d, FoldedConv2d, normalise
from raydelta.networks.lean import GridMean

SMALL = {"depth": 3, "decoder_channels": (8, 8, 8)}


def generator(blocks: int, identity_start: bool) -> Generator:
    return Generator(GeneratorConfig(width=4, blocks=blocks, identity_start=identity_start))


def discriminator(layers: int) -> Discriminator:
    return Discriminator(DiscriminatorConfig(width=4, layers=layers))


def randomise(network: nn.Module, scale: float = 0.2) -> nn.Module:
    torch.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, scale)
    return network


@pytest.mark.parametrize("identity_start", [True, False])
@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_a_generator_keeps_the_shape(identity_start: bool, blocks: int, size: tuple[int, int]) -> None:
    output = randomise(generator(blocks, identity_start))(torch.rand(2, 3, *size) * 2 - 1)
    assert output.shape == (2, 3, *size)
    assert output.isfinite().all()


def test_an_untrained_generator_with_identity_start_returns_its_input_exactly() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(generator(2, True)(images), images)
    assert not torch.allclose(generator(2, False)(images), images, atol=0.1)


def test_a_generator_with_identity_start_can_learn() -> None:
    torch.manual_seed(0)
    network = generator(1, True)
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(3):
        optimiser.zero_grad()
        network(torch.rand(2, 3, 32, 32)).square().mean().backward()
        optimiser.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in network.parameters())


def test_without_identity_start_the_output_is_bounded() -> None:
    assert randomise(generator(1, False), 5.0)(torch.rand(1, 3, 32, 32)).abs().max() <= 1


@pytest.mark.parametrize("network", [generator(1, True), generator(1, False), discriminator(2)])
def test_samples_of_a_batch_do_not_touch_each_other(network: nn.Module) -> None:
    randomise(network)
    images = torch.rand(3, 3, 32, 32)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(network(images), alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_discriminator_sees_patches_of_the_documented_size(layers: int, patch: int) -> None:
    network = randomise(discriminator(layers))
    images = torch.rand(1, 3, 128, 128).requires_grad_(True)
    x = network.first(images)
    for layer in network.middle:  # without the normalisation, which sees the whole image
        x = layer(x)
    scores = network.last(x)
    assert scores.shape[:2] == (1, 1)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    seen = images.grad.abs().sum((0, 1))
    assert (seen.sum(0) > 0).sum() == (seen.sum(1) > 0).sum() == patch


@pytest.mark.parametrize("layers", range(1, 6))
def test_a_discriminator_that_the_config_allows_scores_the_smallest_images_it_allows(layers: int) -> None:
    try:
        config = load_config(overrides=["data.width=32", "data.height=32", f"discriminator.layers={layers}"])
    except UserError:
        return
    scores = discriminator(config.discriminator.layers)(torch.rand(1, 3, 32, 32))
    assert scores.shape[:2] == (1, 1)
    assert scores.numel() > 0


@pytest.mark.parametrize("batch", [1, 2])
def test_normalise_is_instance_norm(batch: int) -> None:
    torch.manual_seed(0)
    x = 3 * torch.randn(batch, 4, 6, 5) + 2
    torch.testing.assert_close(normalise(x), F.instance_norm(x))
    torch.testing.assert_close(normalise(x.contiguous(memory_format=torch.channels_last)), F.instance_norm(x))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("input_layout", [torch.contiguous_format, torch.channels_last], ids=["from contiguous", "cl"])
def test_normalise_gradient(batch: int, layout: torch.memory_format, input_layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x, arriving = torch.randn(batch, 4, 6, 5), torch.randn(batch, 4, 6, 5)

    exact = x.double().requires_grad_(True)
    mean = exact.mean((2, 3), keepdim=True)
    variance = (exact - mean).square().mean((2, 3), keepdim=True)
    expected = torch.autograd.grad((exact - mean) / (variance + 1e-5).sqrt(), exact, arriving.double())[0]

    x = x.contiguous(memory_format=input_layout).requires_grad_(True)
    found = torch.autograd.grad(normalise(x), x, arriving.contiguous(memory_format=layout))[0]
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("network", [generator(1, True), generator(1, False), discriminator(2)])
def test_bf16_in_gives_bf16_out_with_fp32_weights(network: nn.Module) -> None:
    randomise(network)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    low = network(images.bfloat16())
    assert low.dtype == torch.bfloat16
    low.float().mean().backward()
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in network.parameters())
    exact = network(images)
    assert exact.dtype == torch.float32
    assert (low.float() - exact).abs().mean() < 0.02 * exact.std()


def test_cast_layers_compute_what_torchs_do() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 9, 9)
    for mine, torchs in (
        (Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(3, 4, 3, stride=2, padding=1)),
        (
            ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1, bias=False),
            nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1, bias=False),
        ),
    ):
        torchs.load_state_dict(mine.state_dict())
        torch.testing.assert_close(mine(x), torchs(x))


def is_named_like(error: UserError, *words: str) -> bool:
    return all(word in str(error) for word in words)


@pytest.mark.parametrize(("inner", "outer", "kernel"), [(12, 3, 7), (3, 4, 7), (2, 5, 3)])
def test_a_folded_convolution_is_the_plain_one(inner: int, outer: int, kernel: int) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, inner, 18, 26, dtype=torch.float64, requires_grad=True)
    folded, plain = FoldedConv2d(inner, outer, kernel).double(), nn.Conv2d(inner, outer, kernel).double()
    plain.load_state_dict(folded.state_dict())
    gradients = []
    for layer in (folded, plain):
        scores = layer(images)
        weights = torch.linspace(-1, 1, scores.numel(), dtype=torch.float64).view_as(scores)
        gradients.append([scores, *torch.autograd.grad((weights * scores).sum(), [images, *layer.parameters()])])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_segmenter_gives_logits_of_the_images_size() -> None:
    network = build_segmenter(SegmenterConfig(**SMALL), 7)
    assert network(torch.rand(2, 3, 32, 48)).shape == (2, 7, 32, 48)
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("architecture", "depth"),
    [("unet", 4), ("linknet", 4), ("segformer", 3), ("FPN", 3), ("FPN", 4), ("FPN", 5), ("pspnet", 3), ("pspnet", 4)],
)
def test_every_architecture_gives_logits_of_the_images_size_or_says_why_not(architecture: str, depth: int) -> None:
    channels = (32, 16, 8, 8, 8)[:depth]
    config = SegmenterConfig(architecture=architecture, depth=depth, decoder_channels=channels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            network = build_segmenter(config, 3)
        except UserError as error:
            assert is_named_like(error, architecture)
            return
        assert network.eval()(torch.rand(1, 3, 64, 32)).shape == (1, 3, 64, 32)


def test_an_unknown_architecture_is_named_with_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        build_segmenter(SegmenterConfig(architecture="you-net"), 3)
    assert is_named_like(caught.value, "segmenter.architecture", "'you-net'", "unet", "deeplabv3plus")


@pytest.mark.parametrize("encoder", ["resnet17", "tu-resnet17"])  # the latter is asked of timm
def test_an_unknown_encoder_is_named(encoder: str) -> None:
    with pytest.raises(UserError) as caught:
        build_segmenter(SegmenterConfig(encoder=encoder, **SMALL), 3)
    assert is_named_like(caught.value, encoder)


def test_decoder_channels_that_do_not_match_the_depth_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        build_segmenter(SegmenterConfig(depth=5, decoder_channels=(8, 8, 8, 8)), 3)
    assert is_named_like(caught.value, "decoder_channels", "depth")


def test_what_an_architecture_does_not_take_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="fpn.*decoder_channels.*not honoured"):
        build_segmenter(SegmenterConfig(architecture="fpn", depth=5, decoder_channels=(8,) * 5), 3)


def test_without_weights_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a segmenter from scratch must not need the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    torch.manual_seed(0)
    first = build_segmenter(SegmenterConfig(weights=None, **SMALL), 3)
    second = build_segmenter(SegmenterConfig(weights=None, **SMALL), 3)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def forward_of_a_discriminator(network: Discriminator, images: Tensor) -> Tensor:
    x = F.leaky_relu(F.conv2d(images, network.first.weight, network.first.bias, 2, 1), 0.2)
    for level, layer in enumerate(network.middle):
        x = F.conv2d(x, layer.weight, None, 2 if level + 1 < len(network.middle) else 1, 1)
        x = F.leaky_relu(F.instance_norm(x), 0.2)
    return F.conv2d(x, network.last.weight, network.last.bias, 1, 1)


def test_a_discriminator_is_the_patchgan() -> None:
    network = randomise(discriminator(3))
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(network(images), forward_of_a_discriminator(network, images), atol=1e-4, rtol=1e-4)


def test_lean_segments_images_of_any_size_and_its_encoder_gives_features_of_four_strides() -> None:
    network = build_segmenter(SegmenterConfig(architecture="lean", width=6), 5).eval()
    for height, width in ((64, 128), (32, 64), (40, 72)):
        images = torch.rand(2, 3, height, width)
        assert network(images).shape == (2, 5, height, width)
    features = network.encoder(torch.rand(2, 3, 64, 128))
    assert [tuple(part.shape[1:]) for part in features] == [(6, 32, 64), (8, 16, 32), (16, 8, 16), (32, 4, 8)]


@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (2, 4), (3, 5)])
@pytest.mark.parametrize("size", [(8, 16), (7, 9), (1, 3)])
def test_means_over_a_grid_are_those_of_adaptive_pooling(grid: tuple[int, int], size: tuple[int, int]) -> None:
    x = torch.randn(2, 6, *size)
    assert torch.allclose(GridMean(grid)(x), F.adaptive_avg_pool2d(x, grid), atol=1e-6)


def test_what_lean_has_not_is_not_honoured_and_said() -> None:
    with pytest.warns(UserWarning, match=r"segmenter\.decoder_channels: the architecture 'lean' has none"):
        build_segmenter(SegmenterConfig(architecture="lean", decoder_channels=(8, 8, 8, 8)), 3)
    with pytest.raises(UserError, match=r"segmenter\.weights = 'imagenet'"):
        build_segmenter(SegmenterConfig(architecture="lean", weights="imagenet"), 3)
