import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from raydelta.compute.device import Place
from raydelta.config import load_config
from raydelta.data.pixels import Batch
from raydelta.data.taxonomy import IGNORE
from raydelta.training.student import StudentTraining, confident_labels, mix_boxes, mix_classes
from raydelta.training.supervised import Predict
from raydelta.training.trained import agreement, ensemble
from tests.segmenters import build_network, colourful

HERE = Place(torch.device("cpu"))


def photographs(count: int = 4) -> Batch:
    return colourful(count, seed=7)[0], None


def unchanged(images: Tensor, real: Tensor | None) -> Tensor:
    return images


def sharp(images: Tensor) -> Tensor:
    """A teacher that knows the classes, and is sure of most pixels."""
    return 10 * images


def unsure(images: Tensor) -> Tensor:
    return 0.1 * images


def build_training(
    network: nn.Module, teacher: Predict | str | None, *overrides: str, place: Place = HERE
) -> StudentTraining:
    config = load_config(overrides=["student.learning_rate=0.02", "augment.colour=0", *overrides])
    return StudentTraining(network, config.student.learning_rate, config, place, unchanged, teacher)


def weights(network: nn.Module) -> list[Tensor]:
    return [value.clone() for value in network.state_dict().values()]


def test_labels_below_the_confidence_are_void() -> None:
    shares = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.05, 0.9, 0.05], [0.4, 0.3, 0.3]])
    logits = shares.log().t().reshape(1, 3, 2, 2)
    assert confident_labels(logits, 0.65).tolist() == [[[0, IGNORE], [1, IGNORE]]]
    assert confident_labels(logits, 0.0).tolist() == [[[0, 2], [1, 0]]]
    assert confident_labels(logits, 0.95).unique().tolist() == [IGNORE]
    assert confident_labels(logits, 0.65).dtype == torch.long


def to_mix() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two synthetic images, one with five classes and void and one with two, and five photographs."""
    torch.manual_seed(0)
    images, real = torch.rand(2, 3, 8, 12), -torch.rand(5, 3, 8, 12)
    labels = torch.stack([torch.arange(12).expand(8, 12) // 2, torch.arange(8)[:, None].expand(8, 12) // 4 + 7])
    labels[0][labels[0] == 5] = IGNORE
    pseudo = torch.randint(10, 14, (5, 8, 12))
    pseudo[:, :2] = IGNORE
    return images, labels, real, pseudo


def test_half_of_the_classes_are_pasted_whole_with_their_labels() -> None:
    images, labels, real, pseudo = to_mix()
    mixed, mixed_labels = mix_classes(images, labels, real, pseudo)
    assert (mixed.shape, mixed_labels.shape, mixed_labels.dtype) == (real.shape, pseudo.shape, torch.long)
    for index in range(len(real)):
        image, label = images[index % 2], labels[index % 2]
        pasted = mixed[index, 0] > 0
        assert torch.equal(mixed[index], torch.where(pasted, image, real[index]))
        assert torch.equal(mixed_labels[index], torch.where(pasted, label, pseudo[index]))
        chosen = label[pasted].unique()
        assert len(chosen) == [3, 1][index % 2]
        assert IGNORE not in chosen
        assert torch.equal(pasted, torch.isin(label, chosen))


def test_what_is_pasted_is_drawn_with_torchs_seed() -> None:
    def draw(seed: int) -> Tensor:
        parts = to_mix()
        torch.manual_seed(seed)
        return mix_classes(*parts)[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_mixing_leaves_its_inputs_alone() -> None:
    parts = to_mix()
    before = [part.clone() for part in parts]
    mix_classes(*parts)
    assert all(map(torch.equal, parts, before))


def test_an_image_without_labels_pastes_nothing() -> None:
    images, labels, real, pseudo = to_mix()
    mixed, mixed_labels = mix_classes(images, torch.full_like(labels, IGNORE), real, pseudo)
    assert torch.equal(mixed, real)
    assert torch.equal(mixed_labels, pseudo)


def test_every_class_is_pasted_as_often_as_any_other() -> None:
    images, labels, real, pseudo = to_mix()
    counts = torch.zeros(5)
    for _ in range(200):
        pasted = mix_classes(images[:1], labels[:1], real[:1], pseudo[:1])[0][0, 0] > 0
        counts[labels[0][pasted].unique()] += 1
    assert counts.sum() == 200 * 3
    assert (counts / 200 - 3 / 5).abs().max() < 0.15


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU: values that decide what is done next, and shapes that follow them."""

    WAITS = frozenset(
        f"aten::{name}"
        for name in ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "equal", "is_nonzero")
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        assert name not in self.WAITS, name
        assert name != "aten::index" or all(i is None or i.dtype != torch.bool for i in args[1]), "index by a mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("teacher", [sharp, "average"])
def test_no_step_waits_for_the_device(teacher: Predict | str) -> None:
    training = build_training(build_network(norm=True), teacher)
    batch = {"synthetic": colourful(4), "labelled": colourful(3, seed=1), "real": photographs()}
    with pytest.raises(AssertionError, match="_unique2"), NoWaiting():
        torch.arange(3).unique()
    with NoWaiting():
        terms = training.step(batch, 0.5)
    assert "pseudo_labels" in terms


def test_in_an_ensemble_the_confident_member_decides() -> None:
    images, labels = colourful(2)
    predict = ensemble([sharp, torch.zeros_like])
    sure = confident_labels(sharp(images), 0.9) != IGNORE
    assert sure.float().mean() > 0.5
    assert torch.equal(predict(images).argmax(1)[sure], labels[sure])
    torch.testing.assert_close(
        predict(images).softmax(1).amax(1)[sure], sharp(images).softmax(1).amax(1)[sure], atol=1e-2, rtol=0
    )
    # one is sure of the next channel, the other has a weak opinion: no majority, no mean of logits
    torch.testing.assert_close(ensemble([unsure, lambda x: 200 * x.roll(1, 1)])(images).argmax(1), (labels + 1) % 3)


def test_an_ensemble_of_one_mind_says_what_its_members_say() -> None:
    images, _ = colourful(2)
    predict = ensemble([sharp] * 3)
    assert torch.equal(predict(images).argmax(1), sharp(images).argmax(1))
    torch.testing.assert_close(predict(images).exp(), sharp(images).softmax(1), atol=1e-5, rtol=0)


def test_an_ensemble_is_finite_where_its_members_are_certain_or_clueless() -> None:
    images, _ = colourful(2)
    certain = ensemble([lambda x: 1e6 * x, lambda x: -1e6 * x])(images)
    assert certain.isfinite().all()
    clueless = ensemble([torch.zeros_like, torch.zeros_like])(images)
    torch.testing.assert_close(clueless.softmax(1), torch.full_like(images, 1 / 3))


def test_where_teachers_disagree_they_say_nothing_and_elsewhere_their_mean() -> None:
    images, _ = colourful(2)
    turned = images.clone()
    turned[:, :, :4] = turned[:, :, :4].roll(1, 1)  # another class in the upper rows
    together = agreement([sharp, lambda x: 2 * sharp(turned)])(images)
    torch.testing.assert_close(together[:, :, :4].softmax(1), torch.full_like(images[:, :, :4], 1 / 3))
    mean = (sharp(images).softmax(1) + (2 * sharp(images)).softmax(1)) / 2
    torch.testing.assert_close(together[:, :, 4:].softmax(1), mean[:, :, 4:], atol=1e-5, rtol=0)
    labels = confident_labels(together, 0.5)
    assert (labels[:, :4] == IGNORE).all() and (labels[:, 4:] != IGNORE).any()


@pytest.mark.parametrize("teacher", [None, "average"])
def test_the_loss_falls(teacher: str | None) -> None:
    training = build_training(build_network(norm=True), teacher)
    images, labels = colourful(8)
    batch = {"synthetic": (images, labels), "labelled": colourful(4, seed=1), "real": photographs()}
    losses = [training.step(batch, step / 60)["cross_entropy"].item() for step in range(60)]
    assert losses[0] > 0.8
    assert losses[-1] < 0.5 * losses[0]
    assert (training.predictor()(photographs()[0]).argmax(1) == colourful(4, seed=7)[1]).float().mean() > 0.8


def test_synthetic_images_are_seen_in_their_appearance_and_labelled_ones_as_they_are() -> None:
    network = build_network()
    (images, labels), (own, truth), (real, _) = colourful(4), colourful(2, seed=1), photographs()
    losses = F.cross_entropy(network(images - 2 * real), labels), F.cross_entropy(network(own), truth)
    expected = torch.stack(losses).mean().detach()
    training = StudentTraining(network, 0.01, load_config(), HERE, lambda synthetic, real: synthetic - 2 * real, None)
    found = training.step({"labelled": (own, truth), "synthetic": (images, labels), "real": (real, None)}, 0.5)
    torch.testing.assert_close(found["cross_entropy"], expected)


def test_without_a_teacher_there_are_no_pseudo_labels() -> None:
    training = build_training(build_network(), None)
    for batch in ({"synthetic": colourful(2), "real": photographs()}, {"labelled": colourful(2)}):
        assert set(training.step(batch, 0.5)) == {"cross_entropy"}
    assert set(training.networks()) == {"segmenter", "trained"}


def test_the_mean_teacher_is_listened_to_from_its_start_on() -> None:
    training = build_training(build_network(), "average", "self_training.start=0.3", "self_training.confidence=0")
    batch = {"synthetic": colourful(2), "real": photographs()}
    assert set(training.step(batch, 0.29)) == {"cross_entropy"}
    terms = training.step(batch, 0.3)
    assert set(terms) == {"cross_entropy", "pseudo_labels", "confident"}
    assert terms["confident"] == 1
    assert all(term.dtype == torch.float32 and not term.requires_grad for term in terms.values())


@pytest.mark.parametrize(("ema", "rate"), [(0.97, 0.9), (0.05, 0.95)], ids=["fast at first", "as wanted"])
def test_the_average_follows_the_network(ema: float, rate: float) -> None:
    training = build_training(build_network(norm=True), "average", f"student.ema={ema}")
    average = training.networks()["segmenter"]
    before = weights(average)
    training.step({"synthetic": colourful(4), "real": photographs()}, 0.5)
    for name, old, mean, value in zip(
        average.state_dict(), before, weights(average), weights(training.network), strict=True
    ):
        if old.is_floating_point():
            assert not torch.equal(old, value), name
            torch.testing.assert_close(mean, old + rate * (value - old))
        else:
            assert mean == value


def test_the_average_gets_no_gradient_and_is_no_part_of_the_network() -> None:
    training = build_training(build_network(norm=True), "average")
    average = training.networks()["segmenter"]
    for done in (0.1, 0.5):
        training.step({"synthetic": colourful(4), "real": photographs()}, done)
    assert not average.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in average.parameters())
    assert all(parameter.grad is not None for parameter in training.network.parameters())
    storages = [{value.data_ptr() for value in part.state_dict().values()} for part in (average, training.network)]
    assert not storages[0] & storages[1]
    images = photographs()[0]
    assert torch.equal(training.predictor()(images), average(images))
    assert not torch.equal(training.predictor()(images), training.network.eval()(images))


def test_pseudo_labels_by_hand() -> None:
    network = build_network()
    images, labels = colourful(4)
    real, _ = photographs()
    pseudo = confident_labels(sharp(real), 0.9)
    share = (pseudo != IGNORE).float().mean()
    assert 0.3 < share < 0.9
    supervised = F.cross_entropy(network(images), labels)
    taught = F.cross_entropy(network(real), pseudo, ignore_index=IGNORE)
    expected = torch.autograd.grad(supervised + 0.7 * share * taught, list(network.parameters()))
    training = build_training(network, sharp, "self_training.weight=0.7")
    found = training.step({"synthetic": (images, labels), "real": (real, None)}, 0.0)
    torch.testing.assert_close(
        found, {"cross_entropy": supervised.detach(), "pseudo_labels": taught.detach(), "confident": share}
    )
    torch.testing.assert_close([parameter.grad for parameter in network.parameters()], list(expected))


def test_a_mean_teachers_photographs_are_mixed_with_synthetic_and_labelled_images_in_turn() -> None:
    training = build_training(build_network(), "average", "self_training.confidence=0")
    seen: list[Tensor] = []
    training.network.register_forward_hook(lambda module, arguments, logits: seen.append(arguments[0].detach()))
    marks = {"synthetic": 0.25, "labelled": 0.5, "real": -0.75}
    images = {name: torch.full((2, 3, 8, 8), mark) for name, mark in marks.items()}
    labels = torch.arange(8).expand(2, 8, 8) // 4
    batch = {name: (images[name], labels) for name in ("synthetic", "labelled")} | {"real": (images["real"], None)}
    training.step(batch, 0.5)
    synthetic, photographs = seen
    assert synthetic.unique().tolist() == [0.25]
    own, first, second = photographs.split([2, 1, 1])
    assert own.unique().tolist() == [0.5]
    assert (set(first.unique().tolist()), set(second.unique().tolist())) == ({-0.75, 0.25}, {-0.75, 0.5})


def test_a_student_learns_from_a_teacher_alone() -> None:
    training = build_training(build_network(norm=True), sharp)
    images, labels = colourful(8)
    nothing = torch.full_like(labels, IGNORE)
    batch = {"labelled": (images, nothing), "real": photographs(8)}
    losses = [training.step(batch, step / 60)["pseudo_labels"].item() for step in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    assert (training.predictor()(images).argmax(1) == labels).float().mean() > 0.8


@pytest.mark.parametrize("teacher", [unsure, torch.zeros_like], ids=["unsure", "clueless"])
def test_a_teacher_that_is_nowhere_confident_adds_nothing(teacher: Predict) -> None:
    alone, taught = build_training(build_network(), None), build_training(build_network(), teacher)
    for step in range(5):
        batch = {"synthetic": colourful(4, seed=step), "labelled": colourful(2, seed=10 + step), "real": photographs()}
        expected, found = (training.step(batch, step / 5) for training in (alone, taught))
        assert (found["confident"], found["pseudo_labels"]) == (0, 0)
        torch.testing.assert_close(found["cross_entropy"], expected["cross_entropy"])
    torch.testing.assert_close(weights(taught.network), weights(alone.network), atol=1e-5, rtol=1e-4)


def test_a_weight_of_zero_turns_the_teacher_off() -> None:
    alone, taught = (build_training(build_network(), teacher, "self_training.weight=0") for teacher in (None, sharp))
    for step in range(5):
        for training in (alone, taught):
            training.step({"synthetic": colourful(4, seed=step), "real": photographs()}, step / 5)
    torch.testing.assert_close(weights(taught.network), weights(alone.network), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("teacher", [None, "average", sharp], ids=["alone", "average", "fixed"])
def test_a_step_goes_on_from_a_saved_state(teacher: Predict | str | None) -> None:
    jitter = ("augment.colour=0.4", "self_training.confidence=0.4")
    batch = {"synthetic": colourful(4), "labelled": colourful(2, seed=1), "real": photographs()}
    training = build_training(build_network(norm=True), teacher, *jitter)
    for done in (0.0, 0.3, 0.4):
        training.step(batch, done)
    other = build_training(build_network(norm=True, seed=5), teacher, *jitter)
    for name, network in training.networks().items():
        other.networks()[name].load_state_dict(copy.deepcopy(network.state_dict()))
    other.load_state(copy.deepcopy(training.state()))
    terms = []
    for stepped in (training, other):
        torch.manual_seed(3)
        terms.append(stepped.step(batch, 0.5))
    assert terms[0] == terms[1]
    assert ("pseudo_labels" in terms[0]) == (teacher is not None)
    for name, network in training.networks().items():
        assert all(map(torch.equal, weights(network), weights(other.networks()[name])))


def train_a_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        rendezvous = f"file://{folder}/rendezvous"
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    training = build_training(build_network(), sharp, place=Place(torch.device("cpu"), rank, world))
    real = photographs()[0]
    real[::2] *= 0.05  # the teacher is sure of none of what the first rank sees
    mine = {"synthetic": [part[rank::world] for part in colourful(4)], "real": (real[rank::world], None)}
    terms = training.step(mine, 0.5)
    gradients = [parameter.grad.clone() for parameter in training.network.parameters()]
    torch.save([terms, gradients], Path(folder) / f"{world}-{rank}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()


def test_two_ranks_learn_from_a_teacher_like_one(tmp_path: Path) -> None:
    """Though the pixels that the teacher is sure of lie all on one of them."""
    train_a_rank(0, 1, str(tmp_path))
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["pytest", "raydelta.training.translator"])
    torch.multiprocessing.start_processes(train_a_rank, (2, str(tmp_path)), nprocs=2, start_method="forkserver")
    terms, gradients = torch.load(tmp_path / "1-0.pt")
    ranks = [torch.load(tmp_path / f"2-{rank}.pt") for rank in range(2)]
    assert 0.2 < terms["confident"] < 0.6
    for rank in ranks:
        torch.testing.assert_close(rank[1], gradients, atol=1e-6, rtol=1e-4)
    for name, value in terms.items():
        torch.testing.assert_close((ranks[0][0][name] + ranks[1][0][name]) / 2, value, msg=name)


def to_cut() -> tuple[Tensor, Tensor]:
    """Forty photographs, each of one value and one label."""
    numbers = torch.arange(40)
    return numbers.float().view(-1, 1, 1, 1).expand(-1, 3, 20, 40), numbers.view(-1, 1, 1).expand(-1, 20, 40)


def test_a_box_of_another_photograph_is_pasted_with_its_labels() -> None:
    torch.manual_seed(0)
    real, labels = to_cut()
    mixed, mixed_labels = mix_boxes(real, labels)
    shares = []
    for index in range(len(real)):
        pasted = mixed[index, 0] != index
        assert torch.equal(mixed[index].long(), mixed_labels[index].expand(3, 20, 40))
        assert mixed_labels[index][pasted].unique().tolist() in ([], [(index - 1) % 40])
        assert torch.equal(pasted, pasted.any(1, keepdim=True) & pasted.any(0)), "no box"
        shares.append(pasted.float().mean().item())
    boxes = [share for share in shares if share > 0]
    assert 10 < len(boxes) < 30  # even odds
    assert 0 < min(boxes) < 0.15 and 0.25 < max(boxes) < 0.45
    assert real.equal(to_cut()[0])


def test_boxes_are_drawn_with_torchs_seed() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return mix_boxes(*to_cut())[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def seen_by(training: StudentTraining, batch: dict[str, Batch]) -> list[Tensor]:
    """The images of each forward of a step."""
    seen: list[Tensor] = []
    training.network.register_forward_hook(lambda module, arguments, logits: seen.append(arguments[0].detach()))
    training.step(batch, 0.5)
    return seen


def test_two_strong_views_of_mixed_photographs_are_learned_from() -> None:
    torch.manual_seed(0)
    settings = ("self_training.mixing=boxes", "self_training.views=2", "self_training.confidence=0")
    training = build_training(build_network(), "average", *settings)
    marks = torch.linspace(-1, 1, 8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    batch = {"synthetic": colourful(2), "labelled": colourful(3, seed=1), "real": (marks, None)}
    _, photographs = seen_by(training, batch)
    own, first, second = photographs.split([3, 8, 8])
    assert torch.equal(own, batch["labelled"][0])
    for view in (first, second):
        assert set(view.unique().tolist()) <= set(marks.unique().tolist())
        assert not torch.equal(view, marks)
    assert not torch.equal(first, second)


def test_views_count_by_their_mean() -> None:
    batch = {"synthetic": colourful(4), "real": photographs()}
    once, twice = (build_training(build_network(), sharp, f"self_training.views={views}") for views in (1, 2))
    torch.testing.assert_close(*(training.step(batch, 0.5) for training in (once, twice)))
    torch.testing.assert_close(weights(once.network), weights(twice.network))


def test_weighted_by_the_share_every_label_of_the_mean_teacher_counts() -> None:
    network = build_network()
    images, labels = colourful(4)
    real, _ = photographs()
    settings = ("self_training.weighting=share", "self_training.confidence=0.4", "self_training.mixing=boxes")
    training = build_training(network, "average", *settings)
    logits = network(real)
    pseudo, sure = logits.argmax(1), logits.softmax(1).amax(1) >= 0.4
    assert 0 < sure.float().mean() < 1
    torch.manual_seed(3)
    mixed, mixed_labels = mix_boxes(real, pseudo)
    taught = F.cross_entropy(network(mixed), mixed_labels)
    expected = F.cross_entropy(network(images), labels) + sure.float().mean() * taught
    gradients = torch.autograd.grad(expected, list(network.parameters()))
    torch.manual_seed(3)
    terms = training.step({"synthetic": (images, labels), "real": (real, None)}, 0.5)
    torch.testing.assert_close(terms["confident"], sure.float().mean())
    torch.testing.assert_close(terms["pseudo_labels"], taught.detach())
    torch.testing.assert_close([parameter.grad for parameter in network.parameters()], list(gradients))
