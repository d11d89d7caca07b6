import copy
import math
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

from raydelta.compute.device import Place
from raydelta.data.pixels import to_float
from raydelta.data.streams import Images
from raydelta.data.taxonomy import IGNORE
from raydelta.networks.layers import freeze
from raydelta.training.metrics import confusion_matrix
from raydelta.training.supervised import SegmenterTraining, build_predictor, recalibrate
from tests.segmenters import CLASSES, build_network, colourful

HERE = Place(torch.device("cpu"))


def uneven_batch() -> tuple[Tensor, Tensor]:
    """Four images, of which the first two have five valid pixels together and the last two all."""
    images, labels = colourful(4)
    labels[:2].view(-1)[5:] = IGNORE
    return images, labels


def test_the_loss_falls() -> None:
    training = SegmenterTraining(build_network(norm=True), 0.02, HERE)
    images, labels = colourful(8)
    losses = [training.step({"synthetic": (images, labels)}, step / 60)["cross_entropy"].item() for step in range(60)]
    assert losses[0] > 0.8
    assert losses[-1] < 0.5 * losses[0]
    assert (training.predictor()(images).argmax(1) == labels).float().mean() > 0.8


def test_the_loss_is_the_mean_over_the_valid_pixels() -> None:
    network = build_network()
    images, labels = uneven_batch()
    expected = F.cross_entropy(network(images), labels, ignore_index=IGNORE)
    expected.backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    found = SegmenterTraining(network, 0.01, HERE).step({"synthetic": (images, labels)}, 0.0)["cross_entropy"]
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close([parameter.grad for parameter in network.parameters()], gradients)


def test_domains_count_alike_and_have_weights_and_forwards_of_their_own() -> None:
    network = build_network(norm=True)
    first, second = colourful(3, seed=1), colourful(1, seed=2)
    weights = {"synthetic": torch.tensor([1.0, 2.0, 3.0])}
    (images, labels), (own, truth) = first, second
    losses = F.cross_entropy(network(images), labels, weights["synthetic"]), F.cross_entropy(network(own), truth)
    training = SegmenterTraining(network, 0.01, HERE, weights=weights)
    found = training.step({"synthetic": first, "labelled": second}, 0.0)
    torch.testing.assert_close(found["cross_entropy"], torch.stack(losses).mean().detach())


def test_recalibration_gives_the_statistics_of_the_images_and_nothing_else() -> None:
    network = build_network(norm=True)
    before = copy.deepcopy(network.state_dict())
    images = validation_images()
    recalibrate(network.eval(), images, torch.device("cpu"))
    inside = network[0](to_float(torch.from_numpy(images.pixels)))
    torch.testing.assert_close(network[1].running_mean, inside.mean((0, 2, 3)))
    torch.testing.assert_close(network[1].running_var, inside.var((0, 2, 3)))
    assert not network.training and not network[1].training and network[1].momentum == 0.1
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())
    again = copy.deepcopy(network.state_dict())
    recalibrate(network, images, torch.device("cpu"))
    assert all(map(torch.equal, network.state_dict().values(), again.values()))


def test_a_step_that_is_far_too_long_is_cut() -> None:
    training = SegmenterTraining(build_network(), 0.01, HERE)
    images, labels = colourful(2)
    training.step({"synthetic": (1e4 * images, labels)}, 0.5)
    assert torch.stack([parameter.grad.norm() for parameter in training.network.parameters()]).norm() < 5.001


def test_labels_that_say_nothing_leave_the_loss_and_the_weights_finite() -> None:
    training = SegmenterTraining(build_network(norm=True), 0.02, HERE)
    images, labels = colourful(2)
    terms = training.step({"synthetic": (images, torch.full_like(labels, IGNORE))}, 0.0)
    assert terms["cross_entropy"].item() == 0
    assert all(parameter.isfinite().all() for parameter in training.network.parameters())


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    training = SegmenterTraining(build_network(), 0.02, HERE)
    rates = []
    for done in (0.0, 0.04, 0.5, 0.999):
        training.step({"synthetic": colourful(2)}, done)
        rates.append(training.state()["optimiser"]["param_groups"][0]["lr"])
    assert rates[0] < rates[1] <= 0.02
    assert rates[1] > rates[2] > rates[3] > 0
    assert rates[2] == pytest.approx(0.02 * 0.5**0.9)
    assert rates[3] < 0.001


def build_with_encoder() -> nn.Module:
    """With an encoder that has a batch norm, as the networks of the library have."""
    network = build_network(norm=True)
    return nn.Sequential(OrderedDict(encoder=network[:3], head=network[3]))


def test_an_encoder_has_its_own_rate() -> None:
    training = SegmenterTraining(build_with_encoder(), 0.02, HERE, encoder_rate=0.1)
    training.step({"synthetic": colourful(2)}, 0.5)
    groups = training.state()["optimiser"]["param_groups"]
    assert [group["lr"] for group in groups] == pytest.approx([0.02 * 0.5**0.9 * rate for rate in (1, 1, 0.1, 0.1)])
    assert sum(len(group["params"]) for group in groups) == len(list(training.network.parameters()))


def test_a_frozen_encoder_keeps_its_weights_and_the_rest_learns() -> None:
    network = build_with_encoder()
    before = copy.deepcopy(network.state_dict())
    training = SegmenterTraining(network, 0.02, HERE, encoder_rate=0)
    for _ in range(3):
        training.step({"synthetic": colourful(4)}, 0.2)
    for part in (training.network, training.average):
        assert all(torch.equal(value, before[name]) for name, value in part.named_parameters() if "encoder" in name)
        assert not any(torch.equal(value, before[name]) for name, value in part.named_parameters() if "head" in name)


def test_a_step_goes_on_from_a_saved_state() -> None:
    training = SegmenterTraining(build_network(), 0.02, HERE)
    batch = {"synthetic": colourful(4)}
    training.step(batch, 0.0)
    other = SegmenterTraining(build_network(seed=5), 0.02, HERE)
    for name, network in training.networks().items():
        other.networks()[name].load_state_dict(copy.deepcopy(network.state_dict()))
    other.load_state(copy.deepcopy(training.state()))
    for stepped in (training, other):
        stepped.step(batch, 0.5)
    assert all(
        torch.equal(a, b)
        for name, network in training.networks().items()
        for a, b in zip(network.parameters(), other.networks()[name].parameters(), strict=True)
    )


def test_bf16_keeps_weights_and_loss_in_fp32() -> None:
    exact = SegmenterTraining(build_network(), 0.02, HERE)
    low = SegmenterTraining(build_network(), 0.02, Place(torch.device("cpu"), dtype=torch.bfloat16))
    found, expected = (training.step({"synthetic": colourful(4)}, 0.5)["cross_entropy"] for training in (low, exact))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in low.network.parameters())


def test_prediction_uses_the_running_statistics_and_leaves_them() -> None:
    network = build_network(norm=True)
    for _ in range(3):
        network.train()(colourful(4)[0] * 3)
    before = copy.deepcopy(network.state_dict())
    images = colourful(4, seed=5)[0]
    predict = build_predictor(network)
    logits = predict(images)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(torch.cat([predict(image[None]) for image in images]), logits, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_training_goes_on_in_training_mode_after_a_prediction() -> None:
    training = SegmenterTraining(build_network(norm=True), 0.02, HERE)
    training.predictor()(colourful(2)[0])
    before = training.network[1].running_mean.clone()
    training.step({"synthetic": colourful(2)}, 0.0)
    assert not torch.equal(training.network[1].running_mean, before)


def test_a_frozen_network_passes_gradients_to_its_input_only() -> None:
    network = freeze(build_network(norm=True))
    images = colourful(2)[0].requires_grad_(True)
    network(images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not network.training


def validation_images() -> Images:
    images, labels = colourful(5, seed=9)
    pixels = ((images + 1) * 127.5).to(torch.uint8).numpy()
    return Images(tuple("abcde"), pixels, labels.to(torch.uint8).numpy())


def train_a_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        rendezvous = f"file://{folder}/rendezvous"
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    place = Place(torch.device("cpu"), rank, world)
    training = SegmenterTraining(build_network(), 0.01, place)
    images, labels = uneven_batch()
    share = len(images) // world
    mine = slice(rank * share, (rank + 1) * share)
    losses, gradients = [], []
    for done, valid in ((0.5, labels), (0.6, torch.where(torch.arange(4)[:, None, None] < 2, IGNORE, labels))):
        losses.append(training.step({"synthetic": (images[mine], valid[mine])}, done)["cross_entropy"])
        gradients.append([parameter.grad.clone() for parameter in training.network.parameters()])
    confusion = torch.from_numpy(confusion_matrix(training.predictor(), validation_images(), CLASSES, place, batch=2))
    weights = [parameter.detach() for parameter in training.network.parameters()]
    torch.save([torch.stack(losses), gradients, weights, confusion], Path(folder) / f"{world}-{rank}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def alone_and_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[list, list[list]]:
    folder = tmp_path_factory.mktemp("ranks")
    train_a_rank(0, 1, str(folder))
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["pytest", "raydelta.training.translator"])
    torch.multiprocessing.start_processes(train_a_rank, (2, str(folder)), nprocs=2, start_method="forkserver")
    return torch.load(folder / "1-0.pt"), [torch.load(folder / f"2-{rank}.pt") for rank in range(2)]


def test_two_ranks_with_unequal_numbers_of_valid_pixels_step_like_one(alone_and_ranks: tuple[list, list[list]]) -> None:
    """Gradients as well as weights: Adam hides a gradient that is too large by a factor."""
    (losses, gradients, weights, _), ranks = alone_and_ranks
    for rank in ranks:
        torch.testing.assert_close(rank[1], gradients, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(rank[2], weights, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close((ranks[0][0] + ranks[1][0]) / 2, losses)
    assert ranks[0][0][1] == 0
    assert math.isfinite(losses[1])


def test_two_ranks_count_every_validation_image_once(alone_and_ranks: tuple[list, list[list]]) -> None:
    (*_, confusion), ranks = alone_and_ranks
    assert confusion.sum() == 5 * 8 * 8
    assert all(torch.equal(rank[3], confusion) for rank in ranks)
