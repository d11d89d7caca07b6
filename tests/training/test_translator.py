import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

from raydelta.compute.device import Place
from raydelta.config import Config, load_config
from raydelta.data.pixels import Batch
from raydelta.data.taxonomy import IGNORE
from raydelta.networks.layers import freeze
from raydelta.training.losses import dice_loss, dice_sums
from raydelta.training.translator import TranslatorTraining

HERE = Place(torch.device("cpu"))
CLASSES, SIZE = 3, 16
SMALL = ("generator.width=4", "generator.blocks=1", "discriminator.width=4", "discriminator.layers=1")
STILL = "augment.colour=0"
NAMES = ("r2s", "s2r", "d_synthetic", "d_real")


def configure(*overrides: str) -> Config:
    return load_config(overrides=[*SMALL, STILL, *overrides])


def build_expert() -> nn.Module:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))
    for _ in range(3):
        network(torch.rand(4, 3, SIZE, SIZE) * 2 - 1)
    return freeze(network)


def build(config: Config, place: Place = HERE, scale: float = 0.1) -> TranslatorTraining:
    """A training whose networks are far enough from their start to make every term count."""
    torch.manual_seed(5)
    training = TranslatorTraining(config, build_expert(), place)
    for name in NAMES:
        for parameter in getattr(training, name).parameters():
            nn.init.normal_(parameter, 0, scale)
    training.r2s_ema.load_state_dict(training.r2s.state_dict())
    training.s2r_ema.load_state_dict(training.s2r.state_dict())
    return training


def batch_of(real: int = 2, synthetic: int = 3, labelled: int = 1, seed: int = 0) -> dict[str, Batch]:
    generator = torch.Generator().manual_seed(seed)

    def images(count: int) -> Tensor:
        return torch.rand(count, 3, SIZE, SIZE, generator=generator) * 2 - 1

    labels = torch.randint(0, CLASSES, (labelled, SIZE, SIZE), generator=generator)
    labels[:, :3] = IGNORE
    return {
        "real": (images(real), None),
        "synthetic": (images(synthetic), None),
        "labelled": (images(labelled), labels),
    }


def weights_of(training: TranslatorTraining) -> list[Tensor]:
    return [value.clone() for network in training.networks().values() for value in network.state_dict().values()]


def gradients_of(*networks: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for network in networks for parameter in network.parameters()]


def formula(training: TranslatorTraining, config: Config, batch: dict[str, Batch]) -> tuple[Tensor, dict[str, Tensor]]:
    """The generators' objective as it is written in translator.py, one forward for each of its parts."""
    r2s, s2r, d_synthetic, d_real = (getattr(training, name) for name in NAMES)
    (r, _), (s, _), (x, y) = (batch[name] for name in ("real", "synthetic", "labelled"))
    terms = {
        "gan_r2s": ((d_synthetic(r2s(r)) - 1) ** 2).mean(),
        "gan_s2r": ((d_real(s2r(s)) - 1) ** 2).mean(),
        "cycle_real": (s2r(r2s(r)) - r).abs().mean(),
        "cycle_synthetic": (r2s(s2r(s)) - s).abs().mean(),
        "identity_real": (s2r(r) - r).abs().mean(),
        "identity_synthetic": (r2s(s) - s).abs().mean(),
        "guidance": F.cross_entropy(training.expert(r2s(x)), y, ignore_index=IGNORE),
    }
    if config.guidance.dice > 0:
        terms["dice"] = dice_loss(dice_sums(training.expert(r2s(x)), y))
    weight, scale, cycle = config.guidance.weight, config.guidance.scale, config.cycle
    plain = (
        terms["gan_r2s"]
        + terms["gan_s2r"]
        + cycle.real * (terms["cycle_real"] + cycle.identity * terms["identity_real"])
        + cycle.synthetic * (terms["cycle_synthetic"] + cycle.identity * terms["identity_synthetic"])
    )
    if cycle.identity == 0:
        del terms["identity_real"], terms["identity_synthetic"]
    if weight == 0:
        return plain, {name: term for name, term in terms.items() if name not in ("guidance", "dice")}
    taught = terms["guidance"]
    if config.guidance.dice > 0:
        taught = taught + config.guidance.dice * terms["dice"]
    return (1 - weight) * plain + weight * scale * taught, terms


def test_what_guides_comes_in_other_colours_but_what_a_teacher_and_a_discriminator_see_does_not() -> None:
    seen: dict[str, list[Tensor]] = {"teacher": [], "expert": [], "d_real": []}

    def teacher(images: Tensor) -> Tensor:
        seen["teacher"].append(images)
        return F.one_hot(torch.zeros(len(images), SIZE, SIZE, dtype=torch.long), CLASSES).permute(0, 3, 1, 2).float()

    class Expert(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen["expert"].append(images)
            return images.mean(1, keepdim=True).expand(-1, CLASSES, -1, -1)

    config = configure("augment.colour=0.5", "guidance.weight=0.5")
    training = TranslatorTraining(config, Expert(), HERE, teacher)  # untrained, R2S returns its input
    training.d_real.register_forward_pre_hook(lambda module, given: seen["d_real"].append(given[0]))
    batch = batch_of(real=4, synthetic=2, labelled=3)
    photographs = batch["real"][0]
    training.step(batch, 0.1)
    assert torch.equal(seen["teacher"][0], photographs[2:])
    given = torch.cat([batch["labelled"][0], photographs[2:]])
    assert seen["expert"][0].shape == given.shape
    assert all((a - b).abs().mean() > 0.02 for a, b in zip(seen["expert"][0], given, strict=True))
    assert torch.equal(seen["d_real"][-1][:2], photographs[:2])


@pytest.mark.parametrize("identity", [0.0, 0.5])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("start", ["true", "false"])
@pytest.mark.parametrize("dice", [0.0, 0.7])
def test_the_generators_step_is_the_formula(weight: float, identity: float, start: str, dice: float) -> None:
    config = configure(
        f"guidance.dice={dice}",
        f"guidance.weight={weight}",
        f"cycle.identity={identity}",
        f"generator.identity_start={start}",
        *("cycle.real=7", "cycle.synthetic=3", "guidance.scale=0.6", "translator.pool=0"),
    )
    training, batch = build(config), batch_of()
    loss, expected = formula(training, config, batch)
    gradients = torch.autograd.grad(loss, [*training.r2s.parameters(), *training.s2r.parameters()])
    terms = training.step(batch, 0.0)

    assert terms.keys() == expected.keys() | {"d_synthetic", "d_real"}
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.detach(), atol=1e-5, rtol=1e-5, msg=name)
    found = gradients_of(training.r2s, training.s2r)
    largest = max(gradient.abs().max().item() for gradient in gradients)
    assert largest > 0.01
    torch.testing.assert_close(found, list(gradients), atol=1e-5 * max(1.0, largest), rtol=1e-4)


def test_no_term_carries_a_graph() -> None:
    assert not any(term.requires_grad for term in build(configure()).step(batch_of(), 0.0).values())


def test_the_discriminators_learn_from_their_own_loss_alone() -> None:
    """Real against what the generators made before their step; nothing of the generators' loss comes through."""
    training, batch = build(configure("translator.pool=0")), batch_of()
    real, synthetic = batch["real"][0], batch["synthetic"][0]
    with torch.no_grad():
        fake_synthetic, fake_real = training.r2s(real), training.s2r(synthetic)
    losses = {}
    for name, images, fakes in (("d_synthetic", synthetic, fake_synthetic), ("d_real", real, fake_real)):
        network = getattr(training, name)
        losses[name] = 0.5 * (((network(images) - 1) ** 2).mean() + (network(fakes) ** 2).mean())
    parameters = [*training.d_synthetic.parameters(), *training.d_real.parameters()]
    gradients = torch.autograd.grad(sum(losses.values()), parameters)
    terms = training.step(batch, 0.0)
    for name, value in losses.items():
        torch.testing.assert_close(terms[name], value.detach(), atol=1e-5, rtol=1e-5)
    found = gradients_of(training.d_synthetic, training.d_real)
    torch.testing.assert_close(found, list(gradients), atol=1e-6, rtol=1e-4)


def test_no_gradient_reaches_the_discriminators_in_the_generators_step() -> None:
    training = build(configure())
    parameters = [*training.d_synthetic.parameters(), *training.d_real.parameters()]
    arrivals = [0] * len(parameters)
    for index, parameter in enumerate(parameters):

        def count(_: Tensor, index: int = index) -> None:
            arrivals[index] += 1

        parameter.register_post_accumulate_grad_hook(count)
    for step in range(2):
        training.step(batch_of(seed=step), 0.0)
    assert arrivals == [2] * len(parameters)


def test_the_discriminators_move_at_their_own_rate_and_not_with_the_generators() -> None:
    training = build(configure("translator.learning_rate=0.1", "translator.discriminator_learning_rate=1e-12"))
    before = copy.deepcopy(training.networks())
    for _ in range(2):
        training.step(batch_of(), 0.0)
    for name in NAMES:
        moved = max(
            (new - old).abs().max().item()
            for new, old in zip(getattr(training, name).parameters(), before[name].parameters(), strict=True)
        )
        assert (moved < 1e-10) if name.startswith("d_") else (moved > 0.01), name


def test_the_generators_get_nothing_from_the_discriminators_step() -> None:
    training = build(configure("translator.learning_rate=1e-12", "translator.discriminator_learning_rate=0.1"))
    before = copy.deepcopy([training.r2s, training.s2r])
    training.step(batch_of(), 0.0)
    for network, old in zip((training.r2s, training.s2r), before, strict=True):
        torch.testing.assert_close(list(network.parameters()), list(old.parameters()), atol=1e-10, rtol=0)


def test_the_expert_never_changes() -> None:
    training = build(configure("translator.learning_rate=0.1"))
    before = copy.deepcopy(training.expert.state_dict())
    for step in range(3):
        training.step(batch_of(seed=step), step / 3)
        training.predictor()(batch_of()["real"][0])
    assert all(torch.equal(value, before[name]) for name, value in training.expert.state_dict().items())
    assert all(parameter.grad is None for parameter in training.expert.parameters())


def test_guidance_sets_in_at_its_share_of_the_steps() -> None:
    late = configure("guidance.start=0.5", "guidance.weight=0.9", "translator.pool=0")
    plain = configure("guidance.weight=0", "translator.pool=0")
    early = build(late)
    assert "guidance" not in early.step(batch_of(), 0.49)
    unguided = build(plain)
    unguided.step(batch_of(), 0.49)
    assert all(map(torch.equal, weights_of(early), weights_of(unguided)))
    assert "guidance" in build(late).step(batch_of(), 0.5)


def test_without_guidance_no_labels_are_needed() -> None:
    batch = batch_of()
    del batch["labelled"]
    assert "guidance" not in build(configure("guidance.weight=0")).step(batch, 0.0)
    assert TranslatorTraining(configure("guidance.weight=0"), None, HERE).step(batch, 0.0)


def test_guidance_without_an_expert_is_refused() -> None:
    with pytest.raises(ValueError, match="expert"):
        TranslatorTraining(configure("guidance.weight=0.5"), None, HERE)


def test_labels_that_say_nothing_leave_everything_finite() -> None:
    training, batch = build(configure("guidance.weight=1")), batch_of()
    batch["labelled"] = (batch["labelled"][0], torch.full_like(batch["labelled"][1], IGNORE))
    before = copy.deepcopy(training.r2s)
    assert training.step(batch, 0.0)["guidance"] == 0
    assert all(map(torch.equal, training.r2s.parameters(), before.parameters()))
    assert all(value.isfinite().all() for value in weights_of(training))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_averages_follow_the_generators(ema: float) -> None:
    training = build(configure(f"translator.ema={ema}", "translator.learning_rate=0.05"))
    expected = [parameter.detach().clone() for parameter in (*training.r2s.parameters(), *training.s2r.parameters())]
    for step in range(3):
        training.step(batch_of(seed=step), 0.0)
        current = [*training.r2s.parameters(), *training.s2r.parameters()]
        expected = [ema * old + (1 - ema) * new.detach() for old, new in zip(expected, current, strict=True)]
    found = [*training.r2s_ema.parameters(), *training.s2r_ema.parameters()]
    torch.testing.assert_close(list(map(Tensor.detach, found)), expected, atol=1e-6, rtol=1e-5)


def test_the_averages_start_as_the_generators() -> None:
    training = TranslatorTraining(configure(), build_expert(), HERE)
    assert all(map(torch.equal, training.r2s.parameters(), training.r2s_ema.parameters()))
    assert all(map(torch.equal, training.s2r.parameters(), training.s2r_ema.parameters()))


def test_translation_is_that_of_the_averages_and_stays_in_range() -> None:
    training = build(configure("translator.ema=0.5", "translator.learning_rate=0.1"), scale=0.5)
    training.step(batch_of(), 0.0)
    real = batch_of()["real"][0]
    translated = training.translate(real)
    assert torch.equal(translated, training.r2s_ema(real).clamp(-1, 1))
    assert not torch.equal(translated, training.r2s(real).clamp(-1, 1))
    assert translated.abs().max() == 1
    assert torch.equal(training.predictor()(real), training.expert(translated))


@pytest.mark.parametrize(
    ("decay", "shares"), [(0.5, [1, 1, 1, 0.5, 0.1]), (1.0, [1, 0.75, 0.5, 0.25, 0.05]), (0.0, [1] * 5)]
)
def test_the_rates_fall_linearly_over_the_last_share_of_the_steps(decay: float, shares: list[float]) -> None:
    rates = ("translator.learning_rate=4e-4", "translator.discriminator_learning_rate=2e-4")
    training = build(configure(f"translator.decay={decay}", *rates))
    for done, share in zip((0.0, 0.25, 0.5, 0.75, 0.95), shares, strict=True):
        training.step(batch_of(), done)
        found = {name: state["param_groups"][0]["lr"] for name, state in training.state().items()}
        assert found == pytest.approx({"generators": 4e-4 * share, "discriminators": 2e-4 * share})


def test_bf16_computes_the_same_within_its_precision_and_keeps_fp32_weights() -> None:
    config = configure("translator.pool=0")
    exact = build(config).step(batch_of(), 0.0)
    low = build(config, Place(torch.device("cpu"), dtype=torch.bfloat16))
    terms = low.step(batch_of(), 0.0)
    assert all(term.dtype == torch.float32 for term in terms.values())
    for name, term in terms.items():
        assert term.item() == pytest.approx(exact[name].item(), rel=0.05), name
    assert all(value.dtype == torch.float32 for value in weights_of(low))


def test_an_unguided_training_goes_on_from_its_state() -> None:
    first = build(configure("translator.pool=2"))
    first.step(batch_of(), 0.0)
    second = build(configure("translator.pool=2"), scale=0.3)
    for name, network in second.networks().items():
        network.load_state_dict(first.networks()[name].state_dict())
    second.load_state(copy.deepcopy(first.state()))
    second.load_rank_state(copy.deepcopy(first.rank_state()))
    for training in (first, second):
        torch.manual_seed(8)
        training.step(batch_of(seed=1), 0.5)
    assert all(map(torch.equal, weights_of(first), weights_of(second)))
    assert torch.equal(first.pool_real.images, second.pool_real.images)


# Written down by: python -c "import tests.test_translator as t; print(t.golden_run())" in the repository's root.
GOLDEN = {
    "gan_r2s": 0.893307,
    "gan_s2r": 1.06772,
    "cycle_real": 0.5119084,
    "cycle_synthetic": 0.5119332,
    "identity_real": 0.5143633,
    "identity_synthetic": 0.5112118,
    "guidance": 1.116858,
    "d_synthetic": 0.4481161,
    "d_real": 0.5712851,
}


def golden_run() -> dict[str, float]:
    torch.manual_seed(0)
    config = configure(
        *("generator.identity_start=false", "translator.pool=2", "translator.decay=0.5"),
        *("translator.learning_rate=2e-3", "translator.discriminator_learning_rate=2e-4"),
        *("cycle.real=10", "cycle.synthetic=10", "cycle.identity=0.5", "guidance.weight=0.5", "guidance.scale=1"),
        "guidance.dice=0",
    )
    training = TranslatorTraining(config, build_expert(), HERE)
    torch.manual_seed(1)
    for step in range(3):
        terms = training.step(batch_of(2, 2, 2, seed=step), step / 3)
    return {name: float(f"{term.item():.7g}") for name, term in terms.items()}


def test_three_steps_give_the_numbers_they_always_gave() -> None:
    assert golden_run() == pytest.approx(GOLDEN, rel=1e-4)


def test_pools_are_part_of_the_state_of_a_rank() -> None:
    training = build(configure("translator.pool=4"))
    assert training.rank_state() == {"pool_synthetic": None, "pool_real": None}
    training.step(batch_of(), 0.0)
    other = build(configure("translator.pool=4"))
    other.load_rank_state(training.rank_state())
    assert len(other.pool_synthetic.images) == 2
    assert len(other.pool_real.images) == 3
    assert torch.equal(other.pool_real.images, training.pool_real.images)
    other.load_rank_state({"pool_synthetic": None, "pool_real": None})
    assert other.pool_real.images is None


def test_the_discriminators_see_the_pool() -> None:
    """A training whose pools hold nothing but noise scores it beside the fakes."""
    batch, losses = batch_of(), []
    for filling in (0.0, 5.0):
        training = build(configure("translator.pool=3"))
        training.load_rank_state({name: torch.full((3, 3, SIZE, SIZE), filling) for name in training.rank_state()})
        torch.manual_seed(1)
        losses.append(training.step(batch, 0.0))
    assert losses[0]["d_real"] != losses[1]["d_real"]
    assert losses[0]["d_synthetic"] != losses[1]["d_synthetic"]
    assert losses[0]["gan_r2s"] == losses[1]["gan_r2s"]


def train_a_rank(rank: int, world: int, folder: str, dice: float) -> None:
    torch.set_num_threads(1)
    if world > 1:
        rendezvous = f"file://{folder}/rendezvous"
        torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    config = configure(
        "generator.identity_start=false", "translator.pool=0", "guidance.start=0.2", f"guidance.dice={dice}"
    )
    training = build(config, Place(torch.device("cpu"), rank, world))
    history = []
    for step in range(3):
        batch = batch_of(2, 2, 2, seed=step)
        batch["labelled"][1][0, : SIZE - 2 * step] = IGNORE
        mine = {name: [part if part is None else part[rank::world] for part in parts] for name, parts in batch.items()}
        terms = training.step(mine, step / 3)
        history.append((terms, gradients_of(training.r2s, training.s2r, training.d_synthetic, training.d_real)))
    torch.save([history, weights_of(training)], Path(folder) / f"{world}-{rank}.pt")
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dice", [0.0, 1.0])
def test_two_ranks_step_like_one(tmp_path: Path, dice: float) -> None:
    """All four networks and both averages, with unequal numbers of valid pixels and one rank without any at first."""
    train_a_rank(0, 1, str(tmp_path), dice)
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(["pytest", "raydelta.training.translator"])
    torch.multiprocessing.start_processes(train_a_rank, (2, str(tmp_path), dice), nprocs=2, start_method="forkserver")
    history, weights = torch.load(tmp_path / "1-0.pt")
    ranks = [torch.load(tmp_path / f"2-{rank}.pt") for rank in range(2)]
    assert all(map(torch.equal, ranks[0][1], ranks[1][1]))
    torch.testing.assert_close(ranks[0][1], weights, atol=1e-4, rtol=1e-4)
    for step, (terms, gradients) in enumerate(history):
        torch.testing.assert_close(ranks[0][0][step][1], gradients, atol=2e-3, rtol=1e-3)
        for name, value in terms.items():
            both = (ranks[0][0][step][0][name] + ranks[1][0][step][0][name]) / 2
            torch.testing.assert_close(both, value, atol=1e-4, rtol=1e-4, msg=name)


def test_every_size_of_batch_is_compiled_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator sees three sizes in a step; one graph for all of them would have symbolic shapes."""
    symbolic: list[bool] = []
    compile_module = nn.Module.compile

    def backend(graph: Any, inputs: list[Any]) -> Any:
        symbolic.append(any(isinstance(each, torch.SymInt) for each in inputs))
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda self, **kept: compile_module(self, backend=backend, **kept))
    training = build(configure("guidance.weight=0.5"))
    torch.compiler.reset()
    training.compile()
    for _ in range(2):
        training.step(batch_of(2, 2, 3), 0.0)
    assert len(symbolic) >= 5 and not any(symbolic)
    torch.compiler.reset()


def test_guidance_sees_photographs_part_of_the_way_to_their_translation() -> None:
    """The loss is that of the expert on x + u·(R2S(x) - x), with one u for each image."""
    batch = batch_of(labelled=3)
    images, labels = batch["labelled"]
    assert labels is not None
    whole, part = (build(configure("guidance.dice=0", f"guidance.strength={least}")) for least in (1.0, 0.25))
    translated = part.r2s(images).detach()
    torch.manual_seed(4)
    shares = torch.empty(3, 1, 1, 1).uniform_(0.25, 1)
    torch.manual_seed(4)
    found = part.step(batch, 0.0)["guidance"]
    assert part.expert is not None
    seen = images + shares * (translated - images)
    torch.testing.assert_close(found, F.cross_entropy(part.expert(seen), labels, ignore_index=IGNORE))
    expected = F.cross_entropy(part.expert(translated), labels, ignore_index=IGNORE)
    torch.testing.assert_close(whole.step(batch, 0.0)["guidance"], expected)
    assert not torch.isclose(found, expected)
