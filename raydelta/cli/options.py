"""Options that several commands share, and what they do with them."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raydelta.errors import UserError
from raydelta.version import __version__

if TYPE_CHECKING:  # Ray, torch and pyarrow are imported by the command that needs them
    from raydelta.compute.cluster import Cluster
    from raydelta.results.row import Row

Json = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON, for programs.")]
Runs = Annotated[str, typer.Option(help="Output directory, or a bucket: s3://bucket/runs.")]
TrainedRun = Annotated[
    str, typer.Argument(help="Directory of a training or sweep, an exported folder, or 'latest': the newest in --runs.")
]
Preset = Annotated[str | None, typer.Option(help="laptop or gpu; default: gpu if the cluster has one.")]
Method = Annotated[
    str | None,
    typer.Option(
        help="Which row of a sweep's table: guided, student, ensemble-untranslated, …  Default: as recommended."
    ),
]
ConfigFile = Annotated[str | None, typer.Option("--config", help="YAML file with config fields, or its address.")]
Synthetic = Annotated[
    str | None, typer.Option(help="Labelled synthetic set: folder, data set, address or 'simulated'.")
]
Real = Annotated[str | None, typer.Option(help="Photographs: folder, data set, address or the stand-in 'street'.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Config fields as section.field=value.")]
ClusterFile = Annotated[Path | None, typer.Option("--cluster", help="A cluster that ray up has made from this file.")]
Trust = Annotated[
    bool, typer.Option("--trust", metavar="", help="Open addresses that only the run names: it is not a stranger's.")
]
Address = Annotated[str | None, typer.Option(help="The dashboard of a cluster: http://127.0.0.1:8265.")]


@contextmanager
def progress_of(title: str) -> Iterator[Any]:
    from raydelta.progress import Progress

    progress = Progress(title)
    yield progress.update
    progress.finish("done")


def numbers(text: str, separator: str, count: int, option: str) -> Any:
    parts = text.split(separator)
    if len(parts) != count or not all(part.strip().isdigit() for part in parts):
        raise UserError(f"{option} {text}: expected {count} whole numbers with {separator!r} between them")
    return tuple(map(int, parts))


def announce(cluster: "Cluster", preset: str) -> None:
    where = f"{cluster.nodes} node{'s' * (cluster.nodes > 1)}, {cluster.cpus} CPUs, {cluster.gpus} GPUs"
    sys.stderr.write(f"raydelta {__version__}  preset {preset}  {where}\n")
    sys.stderr.write(f"dashboard {cluster.dashboard or 'off'}  Ray's logs {cluster.logs}\n")


def project_file() -> str | None:
    """The settings in the current folder, named so that nobody wonders where they come from."""
    from raydelta.tuning.project import find_project

    found = find_project(Path())
    if found is not None:
        sys.stderr.write(f"settings from {found.resolve()}\n")
    return None if found is None else str(found)


def data_overrides(synthetic: str | None, real: str | None) -> list[str]:
    return [f"data.{name}={value}" for name, value in (("synthetic", synthetic), ("real", real)) if value]


def print_table(rows: "list[Row]") -> None:
    from rich.console import Console

    from raydelta.results.table import format_table, pretrained_note

    print()
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    console.print(format_table(rows, with_classes=console.width >= 150))
    if any(iou is None for row in rows for iou in row.per_class.values()):
        print("–  class absent from labels and predictions; left out of the mean")
    if note := pretrained_note(rows):
        print(note)


def print_as_json(content: Any) -> None:
    """A dataclass as JSON."""
    print(json.dumps(asdict(content), indent=1, default=str))  # paths are texts


def print_json(path: Path) -> None:
    """A JSON file that a command has just written."""
    print(path.read_text(), end="")
