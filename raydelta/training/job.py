"""One training as data: its kind, its config, what it builds on, and the stage directory that it becomes.

A stage is a directory that is built once for the same inputs. It counts only when its manifest
``stage.json`` is written.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from raydelta.config import Config, SegmenterConfig, load_config, override, validated
from raydelta.data.labels import check_bought, choose_labels
from raydelta.data.pixels import NORMALISATION
from raydelta.data.shards import data_fingerprint, is_plain, list_ids, read_manifest
from raydelta.data.taxonomy import Taxonomy
from raydelta.errors import UserError
from raydelta.networks.own_code import refuse_code
from raydelta.recipes import METHODS, RECIPES, TAUGHT, UNGUIDED, Kind, Recipe, find_method
from raydelta.storage.bucket import fetch
from raydelta.storage.files import fingerprint, shown, write_atomically
from raydelta.training import checkpoint


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
        direct = [job for job in (self.translator, self.student, *self.members) if job is not None]
        ordered = [job for parent in direct for job in [*parent.parents, parent]]
        return list({job.directory: job for job in ordered}.values())

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


def read_job(directory: Path) -> Job:
    """The job behind a complete stage directory, as a run has left it.

    Raises:
        UserError: the directory is no finished training, or the expert beside it is gone.
    """
    stage = read_stage(directory)
    if stage is None or "kind" not in stage:
        raise UserError(f"{shown(directory)}: not a finished training of raydelta (no stage.json that says so)")
    if tuple(stage.get("normalisation", NORMALISATION)) != NORMALISATION:
        raise UserError(f"{directory}: its images were normalised in another way; a newer raydelta reads it")
    beside: dict[str, Path] = {}
    named = [stage.get(kind) for kind in ("expert", "translator", "student")] + list(stage.get("members") or ())
    if not all(name is None or is_beside(name) for name in named):
        raise UserError(f"{directory}: its stage.json names what does not lie beside it; not read")
    for kind in ("expert", "translator", "student"):
        if stage.get(kind):
            beside[kind] = directory.parent / stage[kind]
            if read_stage(beside[kind]) is None:
                raise UserError(f"{directory}: its {kind} {beside[kind]} is missing; it has to lie beside it")
    return Job(
        kind=stage["kind"],
        config=checkpoint.read_config(directory / "checkpoint"),
        directory=directory,
        expert=beside.get("expert"),
        translator=read_job(beside["translator"]) if "translator" in beside else None,
        student=read_job(beside["student"]) if "student" in beside else None,
        members=tuple(read_job(directory.parent / name) for name in stage.get("members", ())),
    )


def is_beside(name: object) -> bool:
    """Whether a name leads to a directory beside, and nowhere else."""
    return isinstance(name, str) and is_plain(name) and "/" not in name


BEST, METHOD_STAGES = "best.yaml", "methods.json"
EXPERT_ROW, DEFAULT_ROW = "synthetic only", "guided"


def record_methods(directory: Path, config: Config, runs: Path) -> None:
    """Write into a sweep's directory which stages its methods are, so that they are found where the data is not."""
    write_atomically(directory / METHOD_STAGES, json.dumps(_name_methods(config, runs), indent=1))


def _name_methods(config: Config, runs: Path) -> dict[str, dict[str, Any]]:
    """Method → the name of its stage, and those of its members if it is an ensemble."""
    expert = make_job("expert", config, runs).directory
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
            named = json.loads(path.read_text())
            parts = [part for entry in named.values() for part in (entry["stage"], *entry["members"])]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged; name one of the trainings beside {run} instead: {error}") from error
        if not all(map(is_beside, parts)):
            raise UserError(f"{path}: names what does not lie beside {run}; not read")
        return named
    if listed := _methods_of_table(run):
        return listed
    try:
        return _name_methods(load_config(file=run / BEST), run.resolve().parent)
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
        for row in json.loads((run / "table.json").read_text())["rows"]:
            best = row["labels_train"] == config.labels.budget
            if row["seed"] == config.seed and is_beside(row.get("stage")) and (best or row["method"] not in named):
                named[row["method"]] = {"stage": row["stage"], "members": []}
    except (OSError, ValueError, KeyError, TypeError):
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


STAGE = "stage.json"
OWN = "model"
"""What the copy of a user's network is called in an expert's stage, before its suffix."""


def read_stage(directory: Path) -> dict[str, Any] | None:
    """The manifest of a complete stage, or None.

    Raises:
        UserError: the manifest is there but cannot be read.
    """
    path = directory / STAGE
    fetch(directory, light=True, age=60 if path.exists() else 0)  # whether it was removed is not asked every time
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged stage, remove the directory to build it again: {error}") from error


def complete_stage(directory: Path, manifest: dict[str, Any]) -> None:
    """Declare a stage complete: its manifest is written last, and at once."""
    write_atomically(directory / STAGE, json.dumps(manifest, indent=1, default=str))
