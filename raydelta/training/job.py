"""One training as data: its kind, its config, what it builds on, and the stage directory that it becomes.

A stage is a directory that is built once for the same inputs. It counts only when its manifest is written (``stage``).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from raydelta.compute.asked import addresses_of, check_asked, remember
from raydelta.config import Config, SegmenterConfig, load_config, override
from raydelta.data.labels import check_bought, choose_labels
from raydelta.data.pixels import NORMALISATION
from raydelta.data.shards import data_fingerprint, is_plain, list_ids, read_manifest
from raydelta.data.taxonomy import Taxonomy
from raydelta.errors import UserError
from raydelta.networks.own_code import refuse_code
from raydelta.parsing import read_json_file, validated
from raydelta.recipes import METHODS, RECIPES, TAUGHT, UNGUIDED, Kind, Recipe, find_method
from raydelta.storage.files import fingerprint, shown, write_atomically
from raydelta.training import checkpoint
from raydelta.training.stage import STAGE, is_beside, read_stage


class Job(BaseModel):
    """One training; ``directory`` is the stage it becomes, named after everything that decides its result."""

    model_config = ConfigDict(frozen=True)

    kind: Kind
    config: Config  # data.synthetic and data.real are data sets on disk by now, not names of built-in ones
    directory: Path
    expert: Path | None = None
    translator: "Job | None" = None  # whose S2R translates its synthetic images; of a translator, where it starts
    student: "Job | None" = None  # where it starts; of a translator, who teaches it
    members: tuple["Job", ...] = ()  # of the ensemble that it is, or those that teach it together

    @property
    def parents(self) -> list["Job"]:
        """All that has to be trained before it, in order, but for the expert."""
        ordered: dict[Path, Job] = {}

        def add(job: Job) -> None:
            for parent in (job.translator, job.student, *job.members):
                if parent is not None and parent.directory not in ordered:
                    add(parent)
                    ordered[parent.directory] = parent

        add(self)
        return list(ordered.values())

    @property
    def recipe(self) -> Recipe:
        """What it is made of."""
        return RECIPES[self.kind]

    @property
    def done(self) -> bool:
        """Whether the stage is complete."""
        return read_stage(self.directory) is not None

    @property
    def taxonomy(self) -> Taxonomy:
        """The classes that it tells apart: from its finished stage, its expert's or its members', which needs no data
        set; else from the synthetic set."""
        for directory in (self.directory, self.expert or self.directory, *(each.directory for each in self.members)):
            stage = read_stage(directory)
            if stage is not None and "taxonomy" in stage:  # stages of older versions do not say
                return validated(Taxonomy, stage["taxonomy"], str(directory / STAGE))
        if self.done:
            check_trust(self)
        return read_manifest(self.config.data.synthetic).taxonomy

    @property
    def classes(self) -> int:
        """How many classes it tells apart."""
        return len(self.taxonomy)

    @property
    def large_sets(self) -> tuple[str, ...]:
        """Which of the large training sets it draws from."""
        return ("synthetic",) * (self.recipe.synthetic is not None) + ("real",) * self.recipe.photographs

    @property
    def budget(self) -> int:
        """Labelled training images; -1 for all."""
        unguided = self.kind == "translator" and self.config.guidance.weight == 0
        return {"budget": self.config.labels.budget, "all": -1, "none": 0}["none" if unguided else self.recipe.labels]

    @property
    def batches(self) -> dict[str, int]:
        """Images a step from each stream, over all workers."""
        return self.recipe.batches(self.config)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        if self.own_expert is not None:
            return 1
        return getattr(self.config, self.recipe.section).steps

    @property
    def own_expert(self) -> Path | None:
        """The file or folder of the user's network that this expert is."""
        model = self.config.expert.model
        return None if model is None or self.kind != "expert" else Path(model).expanduser().absolute()


LATER = ("guidance.strength", "self_training.weighting", "self_training.mixing", "self_training.views")
"""Fields that were added when there were stages already: at their defaults, stages keep their names."""


def make_job(kind: Kind, config: Config, runs: Path, expert: Path | None = None) -> Job:
    """The job of a kind under a config, with the jobs it builds on; its directory in ``runs`` named by kind and inputs.

    Two configs that differ only in what this training does not use share one directory. How it runs (``compute``) is
    no input, but for the precision.
    """
    recipe = RECIPES[kind]
    translator = student = None
    if kind == "translator" and config.translator.start is not None:
        translator = _find_start(config, runs)
    if recipe.synthetic == "translated":
        at = override(config, UNGUIDED) if recipe.labels == "none" else config
        translator = make_job("translator", at, runs, expert)
    if recipe.start == "student":
        student = make_job("student", config, runs, expert)
    if kind == "translator" and config.guidance.weight > 0 and config.guidance.teacher is not None:
        student = make_job(config.guidance.teacher, override(config, {"guidance.teacher": None}), runs, expert)
    together = RECIPES["ensemble"].members if recipe.teacher == "ensemble" else recipe.members
    members = tuple(make_job(member, config, runs, expert) for member in together)
    if recipe.teacher == "agreement":
        taught = make_job("translator", override(config, TAUGHT), runs, expert)
        assert taught.student is not None
        members = (taught, taught.student)
    parents = [job.directory.name for job in (translator, student, *members) if job is not None]

    tree = config.model_dump(mode="json")
    inputs: dict[str, Any] = {name: tree[name] for name in recipe.sections}
    if config.labels.ids is None:  # stages from before there was such a field keep their names
        tree["labels"].pop("ids")
    for name in LATER:
        section, field = name.split(".")
        if tree[section][field] == type(getattr(config, section)).model_fields[field].default:
            tree[section].pop(field)
    tree["translator"].pop("start")  # it is a parent
    _describe_encoder(tree["segmenter"], config.segmenter)
    inputs["size"] = list(config.data.size)
    inputs["precision"] = config.compute.precision
    inputs["format"] = checkpoint.FORMAT
    inputs["synthetic"] = data_fingerprint(config.data.synthetic)
    if kind == "expert" and config.expert.model is not None:
        refuse_code(config.expert.model)
        inputs["expert"] |= {"model": _digest(Path(config.expert.model).expanduser(), "expert.model")}
    if kind != "expert":
        assert expert is not None
        inputs["real"] = data_fingerprint(config.data.real)
        inputs["expert"] = expert.name
        inputs["parents"] = list(dict.fromkeys(parents))
        if kind == "translator" and config.guidance.weight == 0:  # labels only validate, guidance is unused
            inputs["guidance"] = None
        elif kind == "translator":
            inputs["guided by"] = "images in other colours and sizes"  # not so in stages of older versions
        if (kind == "translator" and config.guidance.weight == 0) or recipe.labels != "budget":
            inputs["labels"] = {"validation": config.labels.validation}
            if config.labels.ids is not None and config.labels.ids.validation:
                inputs["labels"]["ids"] = config.labels.ids.validation
    name = f"{kind.replace(', ', '-').replace(' ', '-').lower()}-{fingerprint(inputs)}"
    return Job(
        kind=kind,
        config=config,
        directory=runs / name,
        expert=expert,
        translator=translator,
        student=student,
        members=members,
    )


def _describe_encoder(tree: dict[str, Any], segmenter: SegmenterConfig) -> None:
    """The content of a file of weights in place of its name; what was no field before is named only when it is set."""
    if segmenter.weights_file is not None:
        tree["weights"] = _digest(segmenter.weights_file, "segmenter.weights")
    if segmenter.encoder_rate == 1:
        tree.pop("encoder_rate")


def _digest(model: Path, field: str) -> str:
    """What stands for the content of a file, or of a folder.

    Raises:
        UserError: there is none.
    """
    files = sorted(path for path in model.rglob("*") if path.is_file()) if model.is_dir() else [model]
    digest = hashlib.sha256()
    try:
        for path in files:
            digest.update(path.relative_to(model).as_posix().encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise UserError(f"{field} = {model}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _find_start(config: Config, runs: Path) -> Job:
    """The translator that ``translator.start`` names.

    Raises:
        UserError: it is none, not finished, or its networks are others.
    """
    name = config.translator.start
    assert name is not None
    if not is_plain(name) or "/" in name:
        raise UserError(f"translator.start = {name!r}: give the name of a translator's directory in {runs}")
    job = read_job(runs / name)
    if job.kind != "translator":
        raise UserError(f"translator.start = {name!r}: is a finished {job.kind}, not a translator")
    for section in ("generator", "discriminator"):
        if getattr(job.config, section) != getattr(config, section):
            raise UserError(
                f"translator.start = {name!r}: has another {section} ({getattr(job.config, section)}); set {section}.* "
                "to the same"
            )
    return job


MOST = 100
"""Trainings that one builds on, at most: a chain of translators that start from each other grows by one each time."""


def read_job(directory: Path) -> Job:
    """The job behind a complete stage directory, as a run has left it.

    Raises:
        UserError: the directory is no finished training, or what it builds on is gone.
    """
    return _read_job(directory, {})


def _read_job(directory: Path, known: dict[Path, Job | None]) -> Job:
    """``known``: what was read already; None, where reading it has led here."""
    if directory in known:
        if (job := known[directory]) is None:
            raise UserError(f"{directory}: its stage.json says that it builds on itself; not read")
        return job
    if len(known) > MOST:
        raise UserError(f"{directory}: more than {MOST} trainings build on it; not read")
    known[directory] = None
    stage = read_stage(directory)
    if stage is None or "kind" not in stage or RECIPES[stage["kind"]].members:  # an ensemble has no stage of its own
        raise UserError(f"{shown(directory)}: not a finished training of raydelta (no stage.json that says so)")
    if tuple(stage.get("normalisation", NORMALISATION)) != NORMALISATION:
        raise UserError(f"{directory}: its images were normalised in another way; a newer raydelta reads it")
    named = {"expert": stage.get("expert"), "translator": stage.get("translator"), "student": stage.get("student")}
    beside = {name: directory.parent / found for name, found in named.items() if found}
    for kind, path in beside.items():
        if read_stage(path) is None:
            raise UserError(f"{directory}: its {kind} {path} is missing; it has to lie beside it")
    if stage["kind"] == "translator" and "expert" not in beside:
        raise UserError(f"{directory}: its stage.json names no expert; not read")
    for path in (directory, *([beside["expert"]] if "expert" in beside else [])):
        _check_whole(path)
    job = Job(
        kind=stage["kind"],
        config=checkpoint.read_config(directory / "checkpoint"),
        directory=directory,
        expert=beside.get("expert"),
        translator=_read_job(beside["translator"], known) if "translator" in beside else None,
        student=_read_job(beside["student"], known) if "student" in beside else None,
        members=tuple(_read_job(directory.parent / name, known) for name in stage.get("members", ())),
    )
    known[directory] = job
    return job


def check_trust(job: Job, trust: bool = False) -> None:
    """Refuse to open a run's data sets on other machines that only the run itself names: it may be a stranger's.

    Args:
        trust: the user has said that it is not.

    Raises:
        UserError: no command of the user's has named them.
    """
    if trust:
        remember(addresses_of(job.config).values())
    named = _elsewhere(job.config, job.directory.parent)
    check_asked(named, shown(job.directory), "--trust, if you know where the run is from")


def _elsewhere(config: Config, runs: Path) -> dict[str, str]:
    """The addresses in a config, but for those in the bucket of the runs, which somebody has named to come here."""
    return {field: at for field, at in addresses_of(config).items() if not at.startswith(f"{shown(runs)}/")}


def _check_whole(directory: Path) -> None:
    """Refuse a stage whose manifest lacks what every version has written."""
    stage = read_stage(directory) or {}
    known: dict[str, Any] = {**stage, **stage.get("metrics", {})}
    wanted = ("step", "steps", "device_seconds", "labels_train", "labels_val")
    missing = [name for name in wanted if known.get(name) is None]
    if missing:
        raise UserError(f"{directory}: its stage.json does not say its {', '.join(missing)}; not read")


BEST, METHOD_STAGES = "best.yaml", "methods.json"
EXPERT_ROW, DEFAULT_ROW = "synthetic only", "guided"


def record_methods(directory: Path, config: Config, expert: Path) -> None:
    """Write into a sweep's directory which stages its methods are, so that they are found where the data is not.

    Args:
        config: of the best trial, which may have other augmentation than the expert.
    """
    write_atomically(directory / METHOD_STAGES, json.dumps(_name_methods(config, expert), indent=1))


def _name_methods(config: Config, expert: Path) -> dict[str, dict[str, Any]]:
    """Method → the name of its stage, and those of its members if it is an ensemble."""
    runs = expert.parent
    named: dict[str, dict[str, Any]] = {EXPERT_ROW: {"stage": expert.name, "members": []}}
    for name, method in METHODS.items():
        job = make_job(method.kind, override(config, method.overrides), runs, expert)
        members = [member.directory.name for member in job.members] if job.recipe.members else []
        named[name] = {"stage": job.directory.name, "members": members}
    return named


def find_job(run: Path, method: str | None = None) -> Job:
    """The job of a finished training, or of a row of a sweep's table with the best trial's settings.

    Args:
        method: which row of a sweep, as ``find_method`` takes it; ``DEFAULT_ROW``, if None.

    Raises:
        UserError: the directory is neither, or the sweep has not trained that row.
    """
    if not (run / BEST).exists():
        if method is not None:
            raise UserError(f"{run}: not a sweep, so it has no row {method!r}; leave --method out")
        return read_job(run)
    runs = run.resolve().parent
    trained = {
        name: named
        for name, named in _read_methods(run).items()
        if all(read_stage(runs / part) is not None for part in named["members"] or [named["stage"]])
    }
    try:
        found = find_method(method or DEFAULT_ROW, trained)
    except UserError as error:
        raise UserError(f"{run}: {error}") from None
    named = trained[found]
    if not named["members"]:
        return read_job(runs / named["stage"])
    members = tuple(read_job(runs / name) for name in named["members"])
    return Job(
        kind=METHODS[found].kind,
        config=load_config(file=run / BEST),
        directory=runs / named["stage"],
        expert=members[0].expert,
        members=members,
    )


def _read_methods(run: Path) -> dict[str, dict[str, Any]]:
    """What ``record_methods`` wrote; for an older sweep, from its table, or else from its config and its data sets.

    Raises:
        UserError: the file is damaged, or the data sets of an older sweep are gone.
    """
    path = run / METHOD_STAGES
    if path.exists():
        try:
            named = read_json_file(path)
            parts = [part for entry in named.values() for part in (entry["stage"], *entry["members"])]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged; name one of the trainings beside {run} instead: {error}") from error
        if not all(map(is_beside, parts)):
            raise UserError(f"{path}: names what does not lie beside {run}; not read")
        rows = [
            name for name, entry in named.items() if name in METHODS or (name == EXPERT_ROW and not entry["members"])
        ]
        return {name: named[name] for name in rows}
    if listed := _methods_of_table(run):
        return listed
    try:
        config = load_config(file=run / BEST)
        check_asked(_elsewhere(config, run.resolve().parent), shown(run / BEST), "name one of the trainings beside it")
        return _name_methods(config, make_job("expert", config, run.resolve().parent).directory)
    except UserError as error:
        raise UserError(
            f"{run}: a sweep of an older version, whose models are found by its data sets: {error}; bring them there, "
            f"or name a training in {run.resolve().parent} instead"
        ) from error


def _methods_of_table(run: Path) -> dict[str, dict[str, Any]]:
    """The same from a table whose rows name their stages; of several seeds and budgets, those of the best trial."""
    config = load_config(file=run / BEST)
    named: dict[str, dict[str, Any]] = {}
    try:
        for row in read_json_file(run / "table.json")["rows"]:
            best = row["labels_train"] == config.labels.budget
            if row["seed"] == config.seed and is_beside(row.get("stage")) and (best or row["method"] not in named):
                named[row["method"]] = {"stage": row["stage"], "members": []}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    for name, method in METHODS.items():
        rows = ["guided" if member == "translator" else member for member in RECIPES[method.kind].members]
        if rows and all(row in named for row in rows):
            members = [named[row]["stage"] for row in rows]
            named[name] = {"stage": f"{name.replace(', ', '-').replace(' ', '-')}-{run.name}", "members": members}
    return named


def label_ids(job: Job) -> tuple[list[str], list[str]]:
    """The ids behind the job's label budget: training, validation."""
    if job.kind == "expert":
        return [], []
    if job.recipe.members:  # has no stage, and the labels of its members
        return label_ids(job.members[-1])
    stage = read_stage(job.directory)
    if stage is not None:
        return stage["labels_train"], stage["labels_val"]
    samples = list_ids(job.config.data.real, "train")
    available = [(name, sequence) for name, sequence, labelled in samples if labelled]
    if job.config.labels.ids is not None:
        check_bought(job.config.labels.ids, {sample.id: sample.labelled for sample in samples})
    if not available:
        return [], []  # translation works without labels; whoever needs one says so
    return choose_labels(available, job.config.labels, job.config.seed, job.budget)


OWN = "model"
"""What the copy of a user's network is called in an expert's stage, before its suffix."""
