"""The command line. Thin: every command is a plain function elsewhere, imported only when it runs."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from raydelta.errors import UserError

app = typer.Typer(
    help="Guided real-to-synthetic translation: how well N labels do, and which settings get there.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make, import, check and show data sets.", no_args_is_help=True)
train_app = typer.Typer(help="Train one network with Ray Train.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")

Runs = Annotated[Path, typer.Option(help="Where everything that is made lies.")]
Preset = Annotated[str | None, typer.Option(help="laptop or gpu; gpu where the cluster has one, if not given.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with config fields.")]
Synthetic = Annotated[
    str | None, typer.Option(help="Labelled synthetic set: folder, data set, address or 'simulated'.")
]
Real = Annotated[str | None, typer.Option(help="Photographs: folder, data set, address or the stand-in 'street'.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Config fields as section.field=value.")]


@app.command()
def tune(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="A search space (name or file; laptop if none) and section.field=value."),
    ] = None,
    synthetic: Synthetic = None,
    real: Real = None,
    preset: Preset = None,
    config: ConfigFile = None,
    runs: Runs = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped sweep, unfinished trials too.")] = False,
) -> None:
    """The main job: data, expert, sweep of the guided translator, table of methods, pictures."""
    from raydelta.tuning import run_tune

    spaces = [argument for argument in arguments or [] if "=" not in argument]
    overrides = [argument for argument in arguments or [] if "=" in argument]
    if len(spaces) > 1:
        raise UserError(f"one search space at a time, not {' and '.join(spaces)}")
    outcome = run_tune(
        spaces[0] if spaces else "laptop",
        [*_data_overrides(synthetic, real), *overrides],
        preset=preset,
        config_file=config,
        runs=runs,
        resume=resume,
        announce=_announce,
    )
    _print_table(outcome.rows)
    settings = ", ".join(f"{key} {_short(value)}" for key, value in outcome.best.items())
    print(f"\nbest trial   {settings}: {outcome.best_miou:.1f} % on its validation labels")
    print(f"train again  {outcome.command}")
    for failure in outcome.failed:
        print(f"failed       {failure}")
    print(f"table        {outcome.directory / 'table.json'}")
    if outcome.pictures:
        print(f"pictures     {outcome.pictures}")


@train_app.command("expert")
def train_expert_command(
    overrides: Overrides = None,
    synthetic: Synthetic = None,
    preset: Preset = None,
    config: ConfigFile = None,
    runs: Runs = Path("runs"),
) -> None:
    """Train the expert on the synthetic images, or find it if it was trained before."""
    from raydelta.tuning import train_expert

    resolved = _prepare(_data_overrides(synthetic, None) + (overrides or []), preset, config, runs)
    print(train_expert(resolved, runs.resolve()).directory)


@train_app.command("translator")
def train_translator_command(
    overrides: Overrides = None,
    synthetic: Synthetic = None,
    real: Real = None,
    preset: Preset = None,
    config: ConfigFile = None,
    runs: Runs = Path("runs"),
) -> None:
    """Train one translator with these settings (and the expert first, if need be)."""
    from raydelta.tuning import train_translator

    resolved = _prepare(_data_overrides(synthetic, real) + (overrides or []), preset, config, runs)
    print(train_translator(resolved, runs.resolve()).directory)


@app.command()
def evaluate(run: Annotated[Path, typer.Argument(help="Directory of a finished training.")]) -> None:
    """Print the test table of a finished training; writes table.json and table.csv into its directory."""
    from raydelta.evaluation import write_table
    from raydelta.methods import read_job
    from raydelta.workers import evaluate_job, method_of

    job = read_job(run)
    rows = evaluate_job(method_of(job), job)
    if not rows:
        raise UserError(f"{job.config.data.real}: has no labelled test split to evaluate on")
    write_table(run, rows)
    _print_table(rows)


def main() -> None:
    """Run the command line; users' errors become one message and exit code 1, Ctrl-C becomes 130."""
    try:
        app(standalone_mode=False)
    except UserError as error:
        _fail(f"error: {error}", 1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted: finished stages are kept; the same command goes on from them (tune: with --resume)", 130)
    except typer.Exit as stop:
        raise SystemExit(stop.exit_code) from None
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
            _fail(f"error: {error.format_message()}", error.exit_code)
        if type(error).__name__ == "TrainingError":
            _fail(f"error: {error}", 1)
        raise


def _fail(message: str, code: int) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"\n{message}\n")
    sys.stderr.flush()
    if "ray" in sys.modules:
        import ray

        ray.shutdown()
    os._exit(code)  # a thread that waits for Ray must not hold the exit up


def _prepare(overrides: list[str], preset: str | None, file: Path | None, runs: Path) -> Any:
    from raydelta.cluster import ensure_ray
    from raydelta.config import load_config
    from raydelta.data.prepare import prepare_data

    load_config(preset or "laptop", file, overrides)  # complain before Ray starts
    cluster = ensure_ray()
    preset = preset or ("gpu" if cluster.gpus else "laptop")
    _announce(cluster, preset)
    return prepare_data(load_config(preset, file, overrides), runs.resolve())


def _announce(cluster: Any, preset: str) -> None:
    import raydelta

    where = f"{cluster.nodes} node{'s' * (cluster.nodes > 1)}, {cluster.cpus} CPUs, {cluster.gpus} GPUs"
    sys.stderr.write(f"raydelta {raydelta.__version__}  preset {preset}  {where}\n")
    sys.stderr.write(f"dashboard {cluster.dashboard or 'off'}  Ray's logs {cluster.logs}\n")


def _data_overrides(synthetic: str | None, real: str | None) -> list[str]:
    return [f"data.{name}={value}" for name, value in (("synthetic", synthetic), ("real", real)) if value]


def _print_table(rows: list[Any]) -> None:
    from rich.console import Console

    from raydelta.evaluation import format_table

    print()
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    console.print(format_table(rows, with_classes=console.width >= 150))
    if any(iou is None for row in rows for iou in row.per_class.values()):
        print("–  class absent from labels and predictions; left out of the mean")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
