import json
import shutil
import warnings
from pathlib import Path
from typing import Any, get_args

import pytest
import safetensors.torch
import torch

from raydelta.compute.device import Place
from raydelta.config import Config, override
from raydelta.data.labels import choose_labels
from raydelta.data.pixels import to_float
from raydelta.data.streams import load_images
from raydelta.data.taxonomy import CAMVID11
from raydelta.deploy.network import build, save
from raydelta.errors import UserError
from raydelta.recipes import METHODS, RECIPES, Kind
from raydelta.results.evaluate import method_of
from raydelta.training import checkpoint
from raydelta.training.job import make_job, read_job
from raydelta.training.run import train_here, working_directory
from raydelta.training.stage import read_stage
from raydelta.training.trained import load_model, load_segmenter
from tests.sets import HEIGHT, REAL_NAMES, WIDTH
from tests.training.conftest import Trained, train_job

HERE = Place(torch.device("cpu"))


ENSEMBLES = [kind for kind, recipe in RECIPES.items() if recipe.members]


def name_of(kind: Kind, config: Config, **values: Any) -> str:
    changed = override(config, {key.replace("__", "."): value for key, value in values.items()})
    return make_job(kind, changed, Path("runs"), None if kind == "expert" else Path("runs/expert-1")).directory.name


def test_a_directory_is_named_by_kind_and_inputs(config: Config) -> None:
    assert name_of("expert", config).startswith("expert-")
    assert name_of("fine-tuned", config).startswith("fine-tuned-")
    assert name_of("joint training", config).startswith("joint-training-")
    assert name_of("translator", config) == name_of("translator", config)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_how_a_training_runs_does_not_name_it_but_its_precision_does(config: Config, kind: Kind) -> None:
    name = name_of(kind, config)
    even = {f"{section}__batch": 4 for section in ("expert", "translator", "guidance", "student")}
    assert name_of(kind, config, compute__report_every=7, compute__checkpoint_every=7, compute__compile=True) == name
    assert name_of(kind, config, compute__workers=2, **even) == name_of(kind, config, **even)
    assert name_of(kind, config, compute__precision="bf16") != name
    assert name_of(kind, config, seed=1) != name
    assert name_of(kind, config, data__width=96) != name


def test_pre_trained_weights_name_a_stage_by_their_content(config: Config, tmp_path: Path) -> None:
    for name, content in (("one", b"1"), ("same", b"1"), ("other", b"2")):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    one, same, other = (
        name_of("expert", config, segmenter__weights=f"{tmp_path}/{name}.safetensors")
        for name in ("one", "same", "other")
    )
    assert one == same
    assert len({one, other, name_of("expert", config)}) == 3
    slow = {"segmenter__weights": f"{tmp_path}/one.safetensors", "segmenter__encoder_rate": 0.1}
    assert name_of("expert", config, **slow) != one
    with pytest.raises(UserError, match=r"segmenter.weights = .*gone.safetensors: cannot be read"):
        name_of("expert", config, segmenter__weights=f"{tmp_path}/gone.safetensors")


def test_a_stage_of_another_checkpoint_format_is_another_stage(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expert that an older version has left in the runs lacks what this one reads."""
    name = name_of("expert", config)
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT - 1)
    assert name_of("expert", config) != name


def test_an_expert_depends_on_its_own_settings_only(config: Config, unlabelled: Config) -> None:
    name = name_of("expert", config)
    assert name_of("expert", config, expert__steps=9) != name
    assert name_of("expert", config, segmenter__depth=4, segmenter__decoder_channels=[8] * 4) != name
    for change in (
        {"guidance__weight": 0.1},
        {"guidance__start": 0.5},
        {"labels__budget": 1},
        {"cycle__real": 1},
        {"translator__steps": 9},
        {"generator__width": 8},
        {"student__steps": 9},
    ):
        assert name_of("expert", config, **change) == name
    assert name_of("expert", unlabelled) == name


def test_a_guided_translator_depends_on_the_budget_and_an_unguided_one_does_not(config: Config) -> None:
    guided = {name_of("translator", config, guidance__weight=0.5, labels__budget=budget) for budget in (2, 4)}
    unguided = {name_of("translator", config, guidance__weight=0, labels__budget=budget) for budget in (0, 2, 4)}
    assert (len(guided), len(unguided)) == (2, 1)
    assert not guided & unguided
    assert name_of("translator", config, guidance__weight=0, guidance__scale=3, guidance__start=0.5) in unguided
    assert name_of("translator", config, guidance__weight=0, labels__validation=3) not in unguided
    assert name_of("translator", config, guidance__weight=0, cycle__real=3) not in unguided


def test_an_oracle_does_not_depend_on_the_budget_and_joint_training_does(config: Config) -> None:
    assert name_of("oracle", config, labels__budget=2) == name_of("oracle", config, labels__budget=4)
    assert name_of("joint training", config, labels__budget=2) != name_of("joint training", config, labels__budget=4)
    assert name_of("fine-tuned", config, guidance__weight=0.1) == name_of("fine-tuned", config)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("student", {"guidance__weight": 0.1, "cycle__real": 3, "appearance__translated": 1.0}),
        ("translated only", {"cycle__real": 3}),
        ("ensemble", {"guidance__weight": 0.1, "student__steps": 9}),
        ("pseudo-labels", {"self_training__confidence": 0.5, "translator__steps": 9}),
        ("mean teacher", {"student__ema": 0.5, "self_training__start": 0.1, "self_training__views": 2}),
        ("mean teacher", {"self_training__weighting": "share", "self_training__mixing": "boxes"}),
        ("FDA", {"appearance__bandwidth": 0.1}),
        ("randomised", {"appearance__strength": 0.1}),
        ("guided", {"labels__shuffle": True}),
        ("guided", {"guidance__teacher": "mean teacher", "guidance__strength": 0.5}),
        ("taught student", {"translator__steps": 9, "self_training__confidence": 0.5, "guidance__strength": 0.5}),
        ("blended", {"adaptation__share": 0.3}),
        ("colours matched", {"adaptation__steps": 3}),
    ],
)
def test_a_job_depends_on_what_it_and_its_parents_use(config: Config, kind: Kind, fields: dict[str, Any]) -> None:
    kind = METHODS[kind].kind
    for field, value in fields.items():
        assert name_of(kind, config, **{field: value}) != name_of(kind, config), field
    if not any(field.startswith("self_training") for field in fields):
        assert name_of(kind, config, self_training__weight=0.5) == name_of(kind, config)


def test_translation_without_labels_builds_on_the_unguided_translator(config: Config) -> None:
    jobs = {kind: make_job(kind, config, Path("runs"), Path("runs/expert-1")) for kind in get_args(Kind)[1:]}
    unguided = override(config, METHODS["unguided"].overrides)
    plain = make_job("translator", unguided, Path("runs"), Path("runs/expert-1"))
    assert jobs["translated only"].parents == [plain]
    assert jobs["translated only"].budget == plain.budget == 0
    for kind in ("student", "mean teacher, translated"):
        assert jobs[kind].parents == [jobs["translator"]]
    for kind in ("pseudo-labels", "ensemble"):
        assert jobs[kind].parents == [jobs["translator"], jobs["student"]]
    taught = make_job("translator", override(config, METHODS["taught"].overrides), Path("runs"), Path("runs/expert-1"))
    assert jobs["taught student"].members == (taught, jobs["mean teacher"])
    assert jobs["taught student"].parents == [jobs["mean teacher"], taught]
    again = override(config, {"guidance.teacher": "taught student"})
    assert make_job("translator", again, Path("runs"), Path("runs/expert-1")).student == jobs["taught student"]
    assert jobs["ensemble, untranslated"].parents == [jobs["joint training"], jobs["mean teacher"]]
    assert all(not jobs[kind].parents for kind in ("fine-tuned", "joint training", "FDA", "mean teacher", "oracle"))


def test_bought_labels_name_a_stage_by_what_they_are_and_none_leaves_its_name(config: Config, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.yaml" for name in ("one", "same", "other")}
    for name, train in (("one", "[a, b, c, d]"), ("same", "[a, b, c, d]"), ("other", "[a, b, d, c]")):
        files[name].write_text(f"train: {train}")
    validating = tmp_path / "validating.yaml"
    validating.write_text("train: [a, b, c, d]\nvalidation: [e, f]")
    for kind in ("translator", "joint training", "ensemble"):
        names = {name: name_of(kind, config, labels__ids=str(file)) for name, file in files.items()}
        assert names["one"] == names["same"]
        assert len({*names.values(), name_of(kind, config)}) == 3
    for kind in ("translated only", "oracle"):
        assert name_of(kind, config, labels__ids=str(files["one"])) == name_of(kind, config)
        assert name_of(kind, config, labels__ids=str(validating)) != name_of(kind, config)
    assert name_of("expert", config, labels__ids=str(files["one"])) == name_of("expert", config)


def test_a_budget_less_method_does_not_depend_on_the_budget(config: Config) -> None:
    for kind in ("translated only", "oracle"):
        assert name_of(kind, config, labels__budget=2) == name_of(kind, config, labels__budget=4)


def test_other_data_or_another_expert_make_another_job(config: Config, unlabelled: Config) -> None:
    assert name_of("translator", unlabelled) != name_of("translator", config)
    jobs = [make_job("translator", config, Path("runs"), Path("runs") / name) for name in ("expert-1", "expert-2")]
    assert jobs[0].directory != jobs[1].directory


def test_the_expert_becomes_a_stage(config: Config, expert: Trained) -> None:
    job, reports = expert
    assert job.done
    stage = read_stage(job.directory)
    assert stage["kind"] == "expert"
    assert stage["metrics"]["step"] == stage["metrics"]["steps"] == 2
    assert 0 <= stage["metrics"]["miou"] <= 100
    assert (stage["labels_train"], stage["labels_val"], stage["expert"]) == ([], [], None)
    assert [report["step"] for report in reports] == [2]
    assert not working_directory(job).exists()
    assert checkpoint.read_config(job.directory / "checkpoint") == config
    assert read_job(job.directory) == job
    model = load_model(job, HERE)
    assert model.translate is None
    assert model.predict(torch.zeros(2, 3, HEIGHT, WIDTH)).shape == (2, len(CAMVID11), HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind not in ("expert", "oracle", *ENSEMBLES)])
def test_a_method_becomes_a_stage(config: Config, expert: Trained, kind: Kind) -> None:
    """Without a test shard, and where other labels than the bought ones are unreadable: neither is looked at."""
    job = make_job(kind, config, expert[0].directory.parent, expert[0].directory)
    for parent in job.parents:
        if not parent.done:
            train_job(parent)
    if job.done:  # as a parent of a method before it
        shutil.rmtree(job.directory)
    job, reports = train_job(job)
    assert job.done
    stage = read_stage(job.directory)
    train, validation = choose_labels(REAL_NAMES, config.labels, config.seed, config.labels.budget)
    none = RECIPES[kind].labels == "none"
    assert (stage["labels_train"], stage["labels_val"]) == ([] if none else train, validation)
    assert (len(train), len(validation)) == (4, 2)
    assert stage["metrics"]["device_seconds"] > 0
    assert stage["expert"] == expert[0].directory.name
    assert stage["metrics"]["step"] == reports[-1]["step"] == job.steps
    assert 0 <= stage["metrics"]["miou"] <= 100
    assert ("guidance" in stage["metrics"]["losses"]) == (kind == "translator")
    assert read_job(job.directory) == job
    model = load_model(job, HERE)
    images = torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    assert model.predict(images).shape == (2, len(CAMVID11), HEIGHT, WIDTH)
    assert (model.translate is not None) == (kind in ("translator", "colours matched"))
    if model.translate is not None:
        translated = model.translate(images)
        assert translated.shape == images.shape
        assert translated.abs().max() <= 1


def test_a_taught_translator_learns_from_a_students_labels_of_photographs_too(config: Config, expert: Trained) -> None:
    at = override(config, METHODS["taught"].overrides)
    job = make_job("translator", at, expert[0].directory.parent, expert[0].directory)
    assert [parent.kind for parent in job.parents] == ["mean teacher"]
    assert job.batches == {"synthetic": 2, "real": 6, "labelled": 4}
    for parent in job.parents:
        if not parent.done:
            train_job(parent)
    if job.done:  # as a parent of a method before it
        shutil.rmtree(job.directory)
    _, reports = train_job(job)
    assert [parent.directory for parent in read_job(job.directory).parents] == [job.student.directory]
    assert method_of(job) == "taught"
    assert reports[-1]["losses"]["guidance"] > 0
    guided = make_job("translator", config, expert[0].directory.parent, expert[0].directory)
    assert guided.batches == {"synthetic": 2, "real": 2, "labelled": 8}


def test_two_views_are_a_row_of_their_own(config: Config) -> None:
    jobs = {}
    for name in ("mean teacher", "mean teacher, two views"):
        at = override(config, METHODS[name].overrides)
        jobs[name] = make_job(METHODS[name].kind, at, Path("runs"), Path("runs/expert-1"))
        assert method_of(jobs[name]) == name
    assert len({job.directory for job in jobs.values()}) == 2


@pytest.mark.parametrize("suffix", ["safetensors", "pt2"])
def test_an_expert_of_the_users_guides_is_never_changed_and_travels_with_the_runs(
    config: Config, expert: Trained, folder: Path, suffix: str
) -> None:
    trained = load_segmenter(expert[0].directory, len(CAMVID11)).eval()
    file, runs = folder / f"theirs.{suffix}", folder / f"own runs {suffix}"
    if suffix == "pt2":
        dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
        program = torch.export.export(trained, (torch.zeros(2, 3, HEIGHT, WIDTH),), dynamic_shapes=(dynamic,))
        torch.export.save(program, file)
    else:
        safetensors.torch.save_file(trained.state_dict(), file)
    at = override(config, {"expert.model": str(file)})
    own, _ = train_job(make_job("expert", at, runs))
    assert read_stage(own.directory)["metrics"]["miou"] > 0
    images = torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    torch.testing.assert_close(load_model(own, HERE).predict(images), load_model(expert[0], HERE).predict(images))

    kinds: tuple[Kind, ...] = ("translator", "joint training", "colours matched", "blended")
    jobs = {kind: make_job(kind, at, runs, own.directory) for kind in kinds}
    for kind, job in jobs.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            train_job(job)
        blind = kind == "blended" and suffix == "pt2"  # its batch norms are operations of a graph
        assert any("batch norm" in str(each.message) for each in said) == blind
    blended = load_model(jobs["blended"], HERE).predict(images)
    assert torch.allclose(blended, load_model(own, HERE).predict(images), atol=1e-5) == (suffix == "pt2")
    before = file.read_bytes()
    file.unlink()
    moved = folder / f"moved {suffix}"
    shutil.move(runs, moved)
    translator = read_job(moved / jobs["translator"].directory.name)
    model = load_model(translator, HERE)
    assert model.translate is not None
    torch.testing.assert_close(model.predict(images), trained.eval()(model.translate(images)))
    assert (moved / own.directory.name / f"model.{suffix}").read_bytes() == before
    with pytest.raises(UserError, match="its expert is a network of your own, which an exported folder cannot hold"):
        save(build(translator), folder / "exported")
    assert not (folder / "exported").exists()
    with pytest.raises(UserError, match=r"expert\.model = .*theirs.*: cannot be read: No such file"):
        make_job("expert", at, moved)


def test_blended_statistics_lie_between_the_experts_and_those_of_photographs(config: Config, expert: Trained) -> None:
    job, _ = train_job(make_job("blended", config, expert[0].directory.parent, expert[0].directory))
    before, after = (checkpoint.read_weights(stage.directory / "checkpoint", "segmenter") for stage in (expert[0], job))
    adapted = checkpoint.read_weights(job.directory / "checkpoint", "adapted")
    for name, value in after.items():
        if "running" in name:
            torch.testing.assert_close(value, (before[name] + adapted[name]) / 2)
            assert not torch.equal(value, before[name]), name
        else:
            assert torch.equal(value, before[name]), name


def test_matched_colours_go_in_front_of_the_expert_as_it_is(config: Config, expert: Trained) -> None:
    job, _ = train_job(make_job("colours matched", config, expert[0].directory.parent, expert[0].directory))
    model, images = load_model(job, HERE), torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    assert model.translate is not None
    torch.testing.assert_close(
        model.predict(images), load_model(expert[0], HERE).predict(model.translate(images)), atol=1e-4, rtol=1e-4
    )
    sets = [
        load_images(uri, "train", config.data.size, labels=False).pixels
        for uri in (config.data.synthetic, config.data.real)
    ]
    synthetic, real = (to_float(torch.from_numpy(pixels)).movedim(1, 0).flatten(1) for pixels in sets)
    before = (real.mean(1) - synthetic.mean(1)).abs().sum()
    matched = model.translate(to_float(torch.from_numpy(sets[1]))).movedim(1, 0).flatten(1)
    assert (matched.mean(1) - synthetic.mean(1)).abs().sum() < before / 2
    torch.testing.assert_close(build(job).networks(images), model.predict(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_an_ensemble_lies_between_its_members(config: Config, expert: Trained, kind: Kind) -> None:
    job = make_job(kind, config, expert[0].directory.parent, expert[0].directory)
    for parent in job.parents:
        if not parent.done:
            train_job(parent)
    images = torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    together = load_model(job, HERE).predict(images)
    members = [load_model(member, HERE).predict(images).softmax(1) for member in job.members]
    assert [member.kind for member in job.members] == list(RECIPES[kind].members)
    assert torch.allclose(together.exp().sum(1), torch.ones(2, HEIGHT, WIDTH), atol=1e-5)
    assert (together.exp() <= torch.stack(members).amax(0) + 1e-5).all()
    assert (together.exp() >= torch.stack(members).amin(0) - 1e-5).all()


def test_an_unguided_translator_trains_on_photographs_without_labels(unlabelled: Config, expert: Trained) -> None:
    plain = override(unlabelled, {"guidance.weight": 0})
    job, _ = train_job(make_job("translator", plain, expert[0].directory.parent, expert[0].directory))
    stage = read_stage(job.directory)
    assert (stage["labels_train"], stage["labels_val"]) == ([], [])
    assert "guidance" not in stage["metrics"]
    assert "miou" not in stage["metrics"]


def test_an_interrupted_training_goes_on(config: Config, tmp_path: Path) -> None:
    settings = override(config, {"expert.steps": 4, "compute.checkpoint_every": 2, "compute.report_every": 1})
    whole, _ = train_job(make_job("expert", settings, tmp_path / "whole"))
    job = make_job("expert", settings, tmp_path / "interrupted")

    def interrupt(metrics: dict[str, Any]) -> None:
        if metrics["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_here(job, interrupt)
    assert not job.done
    assert working_directory(job).exists()
    _, reports = train_job(job)
    assert [report["step"] for report in reports] == [3, 4]
    assert job.done
    for name, value in checkpoint.read_weights(whole.directory / "checkpoint", "segmenter").items():
        assert torch.equal(checkpoint.read_weights(job.directory / "checkpoint", "segmenter")[name], value), name


def test_a_directory_that_is_no_training_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a finished training"):
        read_job(tmp_path)


def test_a_translator_without_its_expert_is_named(config: Config, tmp_path: Path) -> None:
    directory = tmp_path / "translator-1"
    directory.mkdir()
    (directory / "stage.json").write_text(json.dumps({"kind": "translator", "expert": "expert-7"}))
    with pytest.raises(UserError, match=r"expert .*expert-7 is missing"):
        read_job(directory)
