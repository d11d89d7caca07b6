"""Trainings and what lies in the output directory: tune, train, init, runs, evaluate, report."""

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raydelta.cli.options import (
    Address,
    ClusterFile,
    ConfigFile,
    Json,
    Overrides,
    Preset,
    Real,
    Runs,
    Synthetic,
    Trust,
    announce,
    data_overrides,
    print_json,
    print_table,
    project_file,
)
from raydelta.errors import UserError, printable

if TYPE_CHECKING:
    from raydelta.results.recommend import Recommended

app = typer.Typer()


@app.command()
def tune(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="A search space (name or file; default: laptop) and overrides as section.field=value."),
    ] = None,
    synthetic: Synthetic = None,
    real: Real = None,
    preset: Preset = None,
    config: ConfigFile = None,
    runs: Annotated[
        str | None,
        typer.Option(help="Output directory or bucket; default: runs, or metadata.runs of the cluster file."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", metavar="", help="Continue a stopped sweep, unfinished trials too.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            metavar="",
            help="Check everything, time a few steps, say what would be trained; train nothing.",
        ),
    ] = False,
    cluster: ClusterFile = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """The main job: data, expert, sweep of the guided translator, table of methods, pictures.

    With --cluster or --address it becomes a job there, and this follows it; the same command again follows it again.
    """
    spaces = [argument for argument in arguments or [] if "=" not in argument]
    overrides = [*data_overrides(synthetic, real), *(argument for argument in arguments or [] if "=" in argument)]
    if len(spaces) > 1:
        raise UserError(f"one search space at a time, not {' and '.join(spaces)}")
    space = spaces[0] if spaces else "laptop"
    config = config or project_file()
    if dry_run:
        if cluster or address:
            raise UserError("--dry-run looks at this machine, or at the Ray that runs on it; leave --cluster out")
        from raydelta.tuning.outlook import look_ahead

        outlook = look_ahead(
            space, overrides, preset=preset, config_file=config, runs=runs or "runs", announce=announce
        )
        print(outlook.model_dump_json(indent=1) if as_json else "\n".join(outlook.lines()))
        return
    if cluster or address:
        from raydelta.compute.remote import tune_on_cluster

        raise typer.Exit(tune_on_cluster(space, overrides, preset, config, runs, resume, cluster, address))
    from raydelta.results.recommend import describe, recommend
    from raydelta.storage.files import shown
    from raydelta.tuning.tune import tune as run_tune

    runs = runs or "runs"
    outcome = run_tune(
        space,
        overrides,
        preset=preset,
        config_file=config,
        runs=runs,
        resume=resume,
        announce=announce,
    )
    if as_json:
        print_json(outcome.directory / "table.json")
        return
    print_table(outcome.rows)
    print(printable(f"\nphotographs  {outcome.rows[0].real}") if outcome.rows else "")
    if outcome.best is not None:
        settings = ", ".join(f"{key} {_short(value)}" for key, value in outcome.best.items())
        print(f"best trial   {settings}: {outcome.best_miou:.1f} % on its validation labels")
    for finding in outcome.findings:
        print(f"finding      {finding}")
    found = recommend(outcome.rows)
    for line in describe(found):
        print(f"recommended  {line}")
    for row in filter(None, (found.frozen, found.retrained)):
        if command := train_again(row, runs, shown(outcome.config)):
            print(f"train again  {command}")
    for failure in outcome.failed:
        print(f"failed       {failure}")
    print(f"table        {shown(outcome.directory / 'table.json')}")
    if outcome.pictures:
        print(f"pictures     {shown(outcome.pictures)}")
    if outcome.report:
        print(f"report       {shown(outcome.report)}")


@app.command()
def init(synthetic: Synthetic = None, real: Real = None) -> None:
    """Write raydelta.yaml into the current folder: commented settings that tune and train read there."""
    from raydelta.compute.asked import remember
    from raydelta.tuning.project import write_project

    remember(filter(None, (synthetic, real)))
    print(write_project(Path(), synthetic or "simulated", real or "street"))
    print("then         raydelta tune")


@app.command("runs")
def list_runs_command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Two runs to compare, by directory or name, or 'latest'.")
    ] = None,
    runs: Runs = "runs",
    everything: Annotated[bool, typer.Option("--all", metavar="", help="Show the trainings of sweeps too.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", metavar="", help="Remove unfinished leftovers and old optimiser states.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", metavar="", help="With --prune: do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """List the runs of an output directory, compare two of them, or remove what is left over."""
    from raydelta.results import runs as found

    chosen = [name for name in names or [] if name != "compare"]
    if prune:
        _prune(runs, yes)
    elif chosen:
        if len(chosen) != 2:
            raise UserError(f"raydelta runs compares two runs, not {len(chosen)}: name two, or none for a list")
        comparison = found.compare_runs(*(found.resolve_run(name, runs) for name in chosen))
        print(comparison.model_dump_json(indent=1) if as_json else found.format_comparison(comparison, chosen))
    else:
        listed = [run for run in found.list_runs(runs) if everything or run.part_of is None]
        print(found.as_json(listed) if as_json else found.format_runs(listed))


def _prune(runs: str, yes: bool) -> None:
    from raydelta.results.runs import find_leftovers, format_leftovers, prune

    leftovers = find_leftovers(runs)
    print(format_leftovers(leftovers))
    if leftovers and (yes or typer.confirm("remove them?", err=True)):
        print(f"freed {prune(leftovers) / 2**20:.0f} MiB")


@app.command("train", no_args_is_help=True)
def train_command(
    row: Annotated[
        str,
        typer.Argument(
            help="expert, translator (as the settings say), or a row of the table: joint-training, taught, …"
        ),
    ],
    overrides: Overrides = None,
    synthetic: Synthetic = None,
    real: Real = None,
    preset: Preset = None,
    config: ConfigFile = None,
    runs: Runs = "runs",
) -> None:
    """Train one network with these settings on Ray, and what it builds on first, unless these were trained before."""
    if row == "expert" and real is not None:
        raise UserError(f"--real {real}: the expert sees no photographs; leave it out")
    from raydelta.parsing import parse_override
    from raydelta.storage.bucket import open_runs
    from raydelta.storage.files import shown
    from raydelta.tuning import single
    from raydelta.tuning.start import export_own_code, start

    fields = dict(map(parse_override, data_overrides(synthetic, real) + (overrides or [])))
    output = open_runs(runs, write=True)
    settings = start(export_own_code(fields, output), preset, config or project_file(), announce).config
    trainings = {"expert": single.train_expert, "translator": single.train_translator}
    train = trainings.get(row, partial(single.train_row, row))
    print(shown(train(settings, output).directory))


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="A finished training: directory, name or 'latest'.")],
    runs: Runs = "runs",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Print the test table of a finished training; writes table.json and table.csv into its directory."""
    from raydelta.results.evaluate import evaluate as evaluate_run
    from raydelta.results.runs import resolve_run

    directory = resolve_run(run, runs)
    rows = evaluate_run(directory, trust)
    if as_json:
        print_json(directory / "table.json")
        return
    print(printable(f"photographs: {rows[0].real}"))
    print_table(rows)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A sweep or a training, finished or not: directory, name or 'latest'.")],
    runs: Runs = "runs",
    trust: Trust = False,
) -> None:
    """Write report.html into a run's directory: all that is known of it, in one file that needs no network."""
    from raydelta.results.runs import resolve_run
    from raydelta.storage.files import shown

    directory = resolve_run(run, runs)
    sys.stderr.write(f"report       reads {shown(directory)} and draws its test photographs; this can take a minute\n")
    from raydelta.results.report import report as report_run

    print(shown(report_run(directory, trust)))


def train_again(row: "Recommended", runs: str, config: str) -> str | None:
    """The command that trains a recommended row with the sweep's settings; None: it is made of others."""
    from raydelta.recipes import METHODS, RECIPES, short_name

    what = ["expert"]
    if row.method != "synthetic only":
        if RECIPES[METHODS[row.method].kind].members:
            return None
        what = [short_name(row.method), *([f"labels.budget={row.labels_train}"] if row.labels_train else [])]
    return shlex.join(["raydelta", "train", *what, "--config", config, "--runs", runs])


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
