"""Hostile inputs: files in place of good ones, fields, names, addresses and an environment that nobody here wrote."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from benchmarks.faults_here import SMALL
from benchmarks.hostile_images import hostile_images, picture
from raydelta.compute.cluster import ensure_ray
from raydelta.config import load_config, override
from raydelta.data.prepare import prepare_data
from raydelta.deploy.network import build, save
from raydelta.results.evaluate import evaluate_job, method_of
from raydelta.results.sweep import Sweep, Trial, record_sweep, write_trials
from raydelta.results.table import write_table
from raydelta.search_space import Space
from raydelta.training.job import make_job, read_job
from raydelta.training.run import train_here


@dataclass(frozen=True)
class Attack:
    """One input: ``prepare`` puts it into a folder that holds a copy of the base, and says the command's arguments."""

    door: str
    name: str
    prepare: Callable[[Path], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)


def make_base(base: Path) -> None:
    """A data set, a translator with its expert, a sweep, an exported model, a selection, photographs."""
    ensure_ray()
    runs = base / "runs"
    steps = {"expert.steps": 2, "translator.steps": 2, "compute.report_every": 1}
    config = prepare_data(load_config(overrides=SMALL | steps), base)
    expert = make_job("expert", config, runs)
    train_here(expert)
    translator = make_job("translator", config, runs, expert.directory)
    train_here(translator)
    sweep = runs / "tune-made-0101-0123ab"
    trials = [
        Trial({"guidance.weight": weight}, 20.0 + weight, 2, 1.0, None, True, False, stage=translator.directory.name)
        for weight in (0.2, 0.6)
    ]
    write_trials(sweep, trials)
    space = Space(search={"guidance.weight": {"uniform": [0.1, 0.9]}})  # type: ignore[dict-item]
    record_sweep(sweep, Sweep(command="raydelta tune", space=space, config=config, expert=expert.directory.name))
    rows = [row for job in (expert, translator) for row in evaluate_job(method_of(job), job)]
    write_table(sweep, rows)
    (sweep / "best.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (sweep / "methods.json").write_text(json.dumps({"guided": {"stage": translator.directory.name, "members": []}}))
    (sweep / "headroom.json").write_text(json.dumps({"findings": ["none"]}))
    folder = sweep / "sweep" / "ab_00000"
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps({"overrides": {"guidance.weight": 0.2}}))
    shutil.copy(translator.directory / "curve.jsonl", folder / "result.json")
    save(build(read_job(translator.directory)), base / "exported")
    (base / "selection").mkdir()
    order = {"format": 1, "data": config.data.real, "images": ["nothing"], "cells": None, "train": []}
    (base / "selection" / "selection.json").write_text(json.dumps(order))
    for part in ("synthetic", "real"):
        (base / part).symlink_to(getattr(config.data, part))
    (base / "photograph.png").write_bytes(picture("PNG"))
    (base / "space.yaml").write_text(yaml.safe_dump(space.model_dump(mode="json", exclude_defaults=True)))
    (base / "config.yaml").write_text(yaml.safe_dump(override(config, {"seed": 1}).model_dump(mode="json")))
    (base / "labels.yaml").write_text("train: [a, b]\nvalidation: [c]\n")
    (base / "taxonomy.yaml").write_text("name: own\nclasses: [road, sky]\n")


def list_attacks(base: Path) -> Iterator[Attack]:
    """Every input; ``base`` is what ``make_base`` has made."""
    yield from _whole_files(base)
    yield from _fields(base)
    yield from _photographs()
    yield from _own_experts(base)
    yield from _names()
    yield from _addresses()
    yield from _environments()


def _files(base: Path) -> dict[str, tuple[str, list[str]]]:
    """Door → the file, and the command that reads it; both relative to an input's folder, ``@`` before a path."""
    translator = _find(base, "runs/translator-*")
    expert = _find(base, "runs/expert-*")
    data = (base / "real").readlink().relative_to(base)
    sweep = "runs/tune-made-0101-0123ab"
    photograph = ["@base/photograph.png", "--out", "masks"]
    return {
        "manifest": (f"{data}/manifest.json", ["data", "check", f"@base/{data}"]),
        "shard": (f"{data}/train-00000.parquet", ["data", "check", f"@base/{data}"]),
        "pictures of a data set": (f"{data}/manifest.json", ["data", "show", f"@base/{data}", "--out", "."]),
        "stage": (f"{translator}/stage.json", ["predict", f"@base/{translator}", *photograph]),
        "stage of an expert": (f"{expert}/stage.json", ["predict", f"@base/{translator}", *photograph]),
        "checkpoint": (f"{translator}/checkpoint/meta.json", ["predict", f"@base/{translator}", *photograph]),
        "config of a run": (f"{translator}/checkpoint/config.yaml", ["predict", f"@base/{translator}", *photograph]),
        "weights": (f"{translator}/checkpoint/networks.safetensors", ["predict", f"@base/{translator}", *photograph]),
        "curve": (f"{translator}/curve.jsonl", ["report", f"@base/{translator}"]),
        "run.json": (f"{sweep}/run.json", ["report", f"@base/{sweep}"]),
        "trials.json": (f"{sweep}/trials.json", ["report", f"@base/{sweep}"]),
        "table.json": (f"{sweep}/table.json", ["report", f"@base/{sweep}"]),
        "best.yaml": (f"{sweep}/best.yaml", ["report", f"@base/{sweep}"]),
        "headroom.json": (f"{sweep}/headroom.json", ["report", f"@base/{sweep}"]),
        "methods.json": (f"{sweep}/methods.json", ["predict", f"@base/{sweep}", *photograph]),
        "params.json": (f"{sweep}/sweep/ab_00000/params.json", ["runs", "--runs", "@base/runs"]),
        "result.json": (f"{sweep}/sweep/ab_00000/result.json", ["report", f"@base/{sweep}"]),
        "exported config": ("exported/config.yaml", ["predict", "@base/exported", *photograph]),
        "exported weights": ("exported/model.safetensors", ["predict", "@base/exported", *photograph]),
        "selection": (
            "selection/selection.json",
            ["data", "import-labels", "@base/selection", "@base/photograph.png", "set"],
        ),
        # What is not hostile in these stops at a data set that is not there, before Ray starts.
        "space": ("space.yaml", ["tune", "@base/space.yaml", "--real", "nowhere", "--runs", "runs"]),
        "config": ("config.yaml", ["train", "expert", "--config", "@base/config.yaml", "--synthetic", "nowhere"]),
        "labels": ("labels.yaml", ["train", "translator", "labels.ids=@base/labels.yaml", "--real", "nowhere"]),
        "taxonomy": ("taxonomy.yaml", ["data", "import", "nowhere", "set", "--taxonomy", "@base/taxonomy.yaml"]),
        "id table": ("taxonomy.yaml", ["data", "import", "nowhere", "set", "--ids", "@base/taxonomy.yaml"]),
        "directories of runs": (f"{translator}/stage.json", ["runs", "--runs", "@base/runs", "--json"]),
    }


def _find(base: Path, pattern: str) -> str:
    return str(next(base.glob(pattern)).relative_to(base))


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]" for n in range(9)
)


class _Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("escaped",)


WHOLE: dict[str, bytes | Callable[[Path], None]] = {
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "cut": b'{"name": ',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 1000 + b"1" + b"}" * 1000,
    "a number of many digits": b'{"format": ' + b"9" * 5000 + b"}",
    "half a surrogate": b'{"name": "\\ud800", "kind": "\\ud800"}',
    "binary": bytes(range(256)) * 20,
    "a pickle": pickle.dumps(_Touch()),
    "aliases": BOMB.encode(),
    "a tag": b"!!python/object/apply:os.mkdir [escaped]",
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a directory": lambda path: path.mkdir(),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a huge file": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**40),
}


def _whole_files(base: Path) -> Iterator[Attack]:
    for door, (file, command) in _files(base).items():
        for name, what in WHOLE.items():

            def prepare(folder: Path, file: str = file, command: list[str] = command, what: Any = what) -> list[str]:
                path = folder / "base" / file
                path.unlink()
                if isinstance(what, bytes):
                    path.write_bytes(what)
                else:
                    what(path)
                return _filled(command, folder)

            yield Attack(door, f"{name} in place of {Path(file).name}", prepare)


def _filled(command: list[str], folder: Path) -> list[str]:
    return [word.replace("@", f"{folder}/") for word in command]


VALUES: list[Any] = [None, [], {}, "../../escaped", 10**30, -1, float("nan"), "\x1b[2J", "x" * 100_000, [[0]], True]


def _fields(base: Path) -> Iterator[Attack]:
    """Each field of a file in turn has one of the values; which is decided by their number."""
    number = 0
    for door, (file, command) in _files(base).items():
        path = base / file
        if path.suffix not in (".json", ".yaml") or path.name == "result.json":
            continue
        tree = yaml.safe_load(path.read_text())
        for place in _places(tree):
            value = VALUES[number % len(VALUES)]
            number += 1

            def prepare(
                folder: Path, file: str = file, command: list[str] = command, place: Any = place, value: Any = value
            ) -> list[str]:
                target = folder / "base" / file
                changed = yaml.safe_load(target.read_text())
                inside = changed
                for key in place[:-1]:
                    inside = inside[key]
                inside[place[-1]] = value
                target.write_text(json.dumps(changed))  # which YAML can read
                _forget_digests(target.parent)
                return _filled(command, folder)

            shown = ".".join(map(str, place))
            yield Attack(door, f"{shown} = {str(value)[:20]!r}", prepare)


def _forget_digests(folder: Path) -> None:
    """A stranger would write the right ones."""
    meta = folder / "meta.json"
    if meta.is_file():
        tree = json.loads(meta.read_text())
        if isinstance(tree, dict) and isinstance(tree.get("sha256"), dict):
            meta.write_text(json.dumps(tree | {"sha256": {}}))


def _places(tree: Any, above: tuple[Any, ...] = (), deepest: int = 3) -> Iterator[tuple[Any, ...]]:
    """The fields of a tree and those inside of them, the first of each list."""
    if isinstance(tree, dict):
        keys: list[Any] = list(tree)[:12]
    else:
        keys = [0] if isinstance(tree, list) and tree else []
    for key in keys:
        yield (*above, key)
        if len(above) + 1 < deepest:
            yield from _places(tree[key], (*above, key), deepest)


def _photographs() -> Iterator[Attack]:
    for name, content in hostile_images().items():

        def prepare(folder: Path, content: bytes = content) -> list[str]:
            (folder / "base" / "photograph.png").write_bytes(content)
            return ["predict", str(folder / "base/exported"), str(folder / "base/photograph.png"), "--out", "masks"]

        yield Attack("photograph", name, prepare)
    for suffix in ("jpg", "tiff", "webp", "mp4", "avi", "gif"):

        def prepare_other(folder: Path, suffix: str = suffix) -> list[str]:
            (folder / f"base/other.{suffix}").write_bytes(bytes(range(256)) * 50)
            return ["predict", str(folder / "base/exported"), str(folder / f"base/other.{suffix}"), "--out", "masks"]

        if suffix not in ("mp4", "avi"):  # videos go through Ray
            yield Attack("photograph", f"bytes called {suffix}", prepare_other)


def _own_experts(base: Path) -> Iterator[Attack]:
    translator, expert = _find(base, "runs/translator-*"), _find(base, "runs/expert-*")
    contents: dict[str, bytes] = {name: what for name, what in WHOLE.items() if isinstance(what, bytes)}
    for suffix in ("safetensors", "pt", "pt2"):
        for name in ("empty", "binary", "a pickle", "a number"):

            def prepare(folder: Path, suffix: str = suffix, name: str = name) -> list[str]:
                (folder / "base" / expert / f"model.{suffix}").write_bytes(contents[name])
                return _filled(["predict", f"@base/{translator}", "@base/photograph.png", "--out", "masks"], folder)

            yield Attack("own expert", f"{name} as model.{suffix}", prepare)


def _names() -> Iterator[Attack]:
    names = ["a\nb", "a\x1b[2Jb", "\u202egnp", "x" * 250, "-rf", "~", "%s%n", "..", "a\\b", "\udc80"]
    for name in names:

        def prepare(folder: Path, name: str = name) -> list[str]:
            inputs = folder / "base/photographs"
            inputs.mkdir()
            shown = name if name not in ("..",) else "dots.."
            Image.new("RGB", (40, 20)).save(inputs / f"{shown}.png")
            return ["predict", str(folder / "base/exported"), str(inputs), "--out", "masks", "--kinds", "ids,overlay"]

        yield Attack("name", f"a photograph called {name[:10]!r}", prepare)
    commands = {
        "a run": ["evaluate", "NAME", "--runs", "runs"],
        "a method": ["predict", "@base/runs/tune-made-0101-0123ab", "@base/photograph.png", "--method", "NAME"],
        "a taxonomy": ["predict", "@base/exported", "@base/photograph.png", "--out", "masks", "--taxonomy", "NAME"],
        "an override": ["train", "expert", "NAME=1"],
        "a value": ["train", "expert", "data.synthetic=NAME"],
        "a space": ["tune", "NAME"],
    }
    for what, command in commands.items():
        for name in ("../../escaped", "a\x1b[2Jb", "x" * 5000, "[" * 3000, "~nobody/x", "a.b.c.d", "9" * 5000):

            def prepare_command(folder: Path, command: list[str] = command, name: str = name) -> list[str]:
                return [word.replace("NAME", name) for word in _filled(command, folder)]

            yield Attack("name", f"{what} called {name[:15]!r}", prepare_command)


def _addresses() -> Iterator[Attack]:
    addresses = [
        *("reference://::http://127.0.0.1:1/x", "simplecache::http://127.0.0.1:1/x", "zip://x::file:///etc/passwd"),
        *(
            "jar://x",
            "github://a:b@c/d",
            "s3://bucket/x?endpoint_override=127.0.0.1:1",
            "s3://k:s@bucket/x",
            "ftp://h/x",
        ),
        *("http://127.0.0.1:1/x", "http://[::1", "file:///etc", "s3://", "://", "abfs://b@127.0.0.1/x", "hdfs://:x/y"),
        *("memory://x", "data:text/plain,x", "s3://bucket/\x1b[2J", "http://127.0.0.1:99999/x", "local:///etc"),
    ]
    for address in addresses:
        for command in (["data", "check"], ["predict", "@base/exported"]):

            def prepare(folder: Path, command: list[str] = command, address: str = address) -> list[str]:
                more = ["--out", "masks"] if command[0] == "predict" else []
                return [*_filled(command, folder), address, *more]

            yield Attack(
                "address", f"{command[0]} {address[:40]!r}", prepare, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
            )


def _environments() -> Iterator[Attack]:
    for name, values in {
        "no home": {"HOME": "/nowhere"},
        "a home that is a device": {"HOME": "/dev/null"},
        "a record that is a device": {"XDG_STATE_HOME": "/dev"},
        "no temporary directory": {"TMPDIR": "/nowhere"},
        "no columns": {"COLUMNS": "-1", "LINES": "x"},
        "a strange terminal": {"TERM": "\x1b", "NO_COLOR": "x"},
        "a strange language": {"LANG": "x", "LC_ALL": "x"},
        "addresses of nobody": {"RAYDELTA_ASKED": "\x1b\n://\n" * 1000},
        "threads": {"OMP_NUM_THREADS": "-5"},
        "a cluster of nobody": {"RAY_ADDRESS": "nowhere:x"},
    }.items():

        def prepare(folder: Path) -> list[str]:
            return ["predict", str(folder / "base/exported"), str(folder / "base/photograph.png"), "--out", "masks"]

        def prepare_runs(folder: Path) -> list[str]:
            return ["runs", "--runs", str(folder / "base/runs")]

        yield Attack("environment", f"{name}, predict", prepare, values)
        yield Attack("environment", f"{name}, runs", prepare_runs, values)
