"""The command line. Thin: every command is a plain function elsewhere, imported only when it runs."""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raydelta.errors import UserError, printable
from raydelta.version import __version__

if TYPE_CHECKING:  # Ray, torch and pyarrow are imported by the command that needs them
    from raydelta.compute.cluster import Cluster
    from raydelta.results.table import Row

app = typer.Typer(
    help="Guided real-to-synthetic translation: how well N labels do, and which settings get there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Make, import, check and show data sets.", no_args_is_help=True)
train_app = typer.Typer(help="Train one network on Ray.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(train_app, name="train")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"raydelta {__version__}")
        raise typer.Exit


Json = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON, for programs.")]
Runs = Annotated[Path, typer.Option(help="Output directory.")]
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
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with config fields.")]
Synthetic = Annotated[
    str | None, typer.Option(help="Labelled synthetic set: folder, data set, address or 'simulated'.")
]
Real = Annotated[str | None, typer.Option(help="Photographs: folder, data set, address or the stand-in 'street'.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Config fields as section.field=value.")]
ClusterFile = Annotated[Path | None, typer.Option("--cluster", help="A cluster that ray up has made from this file.")]
Address = Annotated[str | None, typer.Option(help="The dashboard of a cluster: http://127.0.0.1:8265.")]


@app.callback()
def raydelta(
    version: Annotated[
        bool, typer.Option("--version", metavar="", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    pass


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
        Path | None, typer.Option(help="Output directory; default: runs, or metadata.runs of the cluster file.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", metavar="", help="Continue a stopped sweep, unfinished trials too.")
    ] = False,
    cluster: ClusterFile = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """The main job: data, expert, sweep of the guided translator, table of methods, pictures.

    With --cluster or --address it becomes a job there, and this follows it; the same command again follows it again.
    """
    spaces = [argument for argument in arguments or [] if "=" not in argument]
    overrides = [*_data_overrides(synthetic, real), *(argument for argument in arguments or [] if "=" in argument)]
    if len(spaces) > 1:
        raise UserError(f"one search space at a time, not {' and '.join(spaces)}")
    space = spaces[0] if spaces else "laptop"
    config = config or _project_file()
    if cluster or address:
        from raydelta.compute.remote import tune_on_cluster

        raise typer.Exit(tune_on_cluster(space, overrides, preset, config, runs, resume, cluster, address))
    from raydelta.results.recommend import describe, recommend
    from raydelta.tuning.tune import tune as run_tune

    runs = runs or Path("runs")
    outcome = run_tune(
        space,
        overrides,
        preset=preset,
        config_file=config,
        runs=runs,
        resume=resume,
        announce=_announce,
    )
    if as_json:
        _print_json(outcome.directory / "table.json")
        return
    _print_table(outcome.rows)
    print(f"\nphotographs  {outcome.rows[0].real}" if outcome.rows else "")
    if outcome.best is not None:
        settings = ", ".join(f"{key} {_short(value)}" for key, value in outcome.best.items())
        print(f"best trial   {settings}: {outcome.best_miou:.1f} % on its validation labels")
    for finding in outcome.findings:
        print(f"finding      {finding}")
    for line in describe(recommend(outcome.rows)):
        print(f"recommended  {line}")
    print(f"train again  raydelta train translator --runs {runs} --config {outcome.config}")
    for failure in outcome.failed:
        print(f"failed       {failure}")
    print(f"table        {outcome.directory / 'table.json'}")
    if outcome.pictures:
        print(f"pictures     {outcome.pictures}")
    if outcome.report:
        print(f"report       {outcome.report}")


@app.command()
def init(synthetic: Synthetic = None, real: Real = None) -> None:
    """Write raydelta.yaml into the current folder: commented settings that tune and train read there."""
    from raydelta.tuning.project import write_project

    print(write_project(Path(), synthetic or "simulated", real or "street"))
    print("then         raydelta tune")


@app.command("runs")
def list_runs_command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Two runs to compare, by directory or name, or 'latest'.")
    ] = None,
    runs: Runs = Path("runs"),
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


def _prune(runs: Path, yes: bool) -> None:
    from raydelta.results.runs import find_leftovers, format_leftovers, prune

    leftovers = find_leftovers(runs)
    print(format_leftovers(leftovers))
    if leftovers and (yes or typer.confirm("remove them?", err=True)):
        print(f"freed {prune(leftovers) / 2**20:.0f} MiB")


@app.command("jobs")
def list_jobs(
    job: Annotated[str | None, typer.Argument(help="Follow this one.")] = None,
    cluster: ClusterFile = None,
    address: Address = None,
    as_json: Json = False,
    stop: Annotated[bool, typer.Option("--stop", metavar="", help="End it instead; finished stages stay.")] = False,
) -> None:
    """List the jobs of a cluster with state, age and command, or follow or stop one of them."""
    from raydelta.compute import remote

    if stop and job is None:
        raise UserError("--stop: name the job; raydelta jobs lists them")
    if job and not stop:
        raise typer.Exit(remote.follow(job, cluster, address))
    with remote.reach(cluster, address) as where:
        if job:
            remote.stop(where, job)
            print(f"stopped {job}")
        else:
            jobs = remote.list_jobs(where)
            print(json.dumps(jobs, indent=1) if as_json else remote.format_jobs(jobs))


@app.command()
def dashboard(
    cluster: Annotated[Path, typer.Argument(help="The file that ray up has made the cluster from.")] = Path(
        "cluster.yaml"
    ),
) -> None:
    """Open a tunnel to the dashboard of a cluster, until Ctrl-C."""
    from raydelta.compute.remote import hold_tunnel

    hold_tunnel(cluster)


@data_app.command("simulate")
def data_simulate(
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    look: Annotated[
        Literal["synthetic", "street"], typer.Option(help="synthetic, or street: the stand-in for photographs.")
    ] = "synthetic",
    train: Annotated[int, typer.Option(min=1, help="Training images.")] = 2000,
    test: Annotated[int, typer.Option(min=0, help="Test images.")] = 200,
    width: Annotated[int, typer.Option(min=32)] = 256,
    height: Annotated[int, typer.Option(min=32)] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    taxonomy: Annotated[
        str, typer.Option(help="Classes of the masks: camvid11, cityscapes19, synthia16, synthia13 or a YAML file.")
    ] = "camvid11",
) -> None:
    """Make street scenes with exact masks, as shards."""
    from raydelta.data.simulator.dataset import simulate_dataset, void_classes
    from raydelta.data.taxonomy import get_taxonomy

    classes = get_taxonomy(taxonomy)
    counts = {"train": train} | ({"test": test} if test else {})
    with _progress(f"make {target.name}") as progress:
        simulate_dataset(
            look, target, counts=counts, width=width, height=height, seed=seed, taxonomy=classes, progress=progress
        )
    if void := void_classes(classes):
        print(f"void, as {classes.name} has no such class: {', '.join(void)}")
    print(target)


@data_app.command("import")
def data_import(
    source: Annotated[str, typer.Argument(help="Folder or address (s3://…) in a known layout; only read.")],
    target: Annotated[str, typer.Argument(help="Folder or address to make.")],
    kind: Annotated[str | None, typer.Option(help="Which layout; found out, if not given.")] = None,
    domain: Annotated[
        Literal["real", "synthetic"] | None, typer.Option(help="Which of the two it is; the layout says, if not given.")
    ] = None,
    taxonomy: Annotated[
        str | None, typer.Option(help="camvid11, cityscapes19, synthia16, synthia13 or a YAML file; else the layout's.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Resize to WxH.")] = None,
    crop: Annotated[str | None, typer.Option(help="LEFT,TOP,RIGHT,BOTTOM in source pixels, before the resize.")] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="Only this split of the source (repeat for more), or train=0.8,test=0.2: new, by sequence."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of a new split.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images of each split.")] = None,
    only: Annotated[str | None, typer.Option(help="Only image ids that match, as in '*/Omni_F/*'.")] = None,
    images: Annotated[str | None, typer.Option(help="Where images lie: 'photos/{split}/{path}_rgb'.")] = None,
    labels: Annotated[str | None, typer.Option(help="Where labels lie: 'masks/{split}/{path}_ids'.")] = None,
    ids: Annotated[str | None, typer.Option(help="What label values mean: a YAML file with value: name lines.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", metavar="", help="Leave bad samples out and list them.")
    ] = False,
    allow_unlabelled: Annotated[
        bool, typer.Option("--allow-unlabelled", metavar="", help="Images may lack a label.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Tasks at once; all CPUs, if not given.")] = None,
) -> None:
    """Import images and masks as checked shards.

    Layouts: cityscapes, idd, synthia-rand, synthia-seqs, synthia-sf, gta5, camvid, carla (up to 0.9.13), carla-0.9.14,
    and folder (images/SPLIT/… with labels/SPLIT/…, or what --images, --labels and --ids say).
    """
    from raydelta.data.importers import ImportOptions, import_dataset
    from raydelta.data.shards import BadItem, format_skipped
    from raydelta.storage import without_secrets

    shares = _shares(split or [])
    options = ImportOptions(
        kind=kind,
        domain=domain,
        taxonomy=taxonomy,
        images=images,
        labels=labels,
        ids=ids,
        only=only,
        size=_numbers(size, "x", 2, "--size") if size else None,
        crop=_numbers(crop, ",", 4, "--crop") if crop else None,
        splits=tuple(split) if split and not shares else None,
        shares=shares,
        seed=seed,
        limit=limit,
        skip_bad=skip_bad,
        allow_unlabelled=allow_unlabelled,
    )
    with _progress(f"import {Path(target).name}") as progress:
        try:
            manifest = import_dataset(source, target, options, workers=workers, progress=progress)
        except BadItem as bad:
            raise UserError(f"{bad}; --skip-bad leaves such files out and lists them") from bad
    if manifest.options["dropped"]:
        print(f"void, as {manifest.taxonomy.name} has no such class: {', '.join(manifest.options['dropped'])}")
    if manifest.skipped:
        print(format_skipped(manifest.skipped))
    for name, part in manifest.splits.items():
        print(f"{name}: {part.rows} images, {part.labelled} labelled")
    print(without_secrets(target))


@data_app.command("check")
def data_check(data_set: Annotated[str, typer.Argument(help="Data set: folder or address.")]) -> None:
    """Verify every shard against the manifest and print the class histogram; exit code 1 if anything is wrong."""
    from raydelta.data.checking import check, format_report

    report = check(data_set)
    print(format_report(report))
    if report.problems:
        raise typer.Exit(1)


@data_app.command("show")
def data_show(
    data_set: Annotated[str, typer.Argument(help="Data set: folder or address.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path(),
    count: Annotated[int, typer.Option(min=1, help="Images of each split.")] = 24,
) -> None:
    """Draw a contact sheet of every split (image, mask, overlay) and the class shares as bars."""
    from raydelta.results.pictures import show_dataset

    for path in show_dataset(data_set, out, count):
        print(path)


@train_app.command("expert")
def train_expert_command(
    overrides: Overrides = None,
    synthetic: Synthetic = None,
    preset: Preset = None,
    config: ConfigFile = None,
    runs: Runs = Path("runs"),
) -> None:
    """Train the expert on the synthetic images, or find it if it was trained before."""
    from raydelta.config import parse_override
    from raydelta.tuning.single import train_expert
    from raydelta.tuning.start import start

    fields = dict(map(parse_override, _data_overrides(synthetic, None) + (overrides or [])))
    print(train_expert(start(fields, preset, config or _project_file(), _announce).config, runs).directory)


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
    from raydelta.config import parse_override
    from raydelta.tuning.single import train_translator
    from raydelta.tuning.start import start

    fields = dict(map(parse_override, _data_overrides(synthetic, real) + (overrides or [])))
    print(train_translator(start(fields, preset, config or _project_file(), _announce).config, runs).directory)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(help="A finished training: directory, name or 'latest'.")],
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Print the test table of a finished training; writes table.json and table.csv into its directory."""
    from raydelta.results.evaluate import evaluate as evaluate_run
    from raydelta.results.runs import resolve_run

    directory = resolve_run(run, runs)
    rows = evaluate_run(directory)
    if as_json:
        _print_json(directory / "table.json")
        return
    print(f"photographs: {rows[0].real}")
    _print_table(rows)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="A sweep or a training, finished or not: directory, name or 'latest'.")],
    runs: Runs = Path("runs"),
) -> None:
    """Write report.html into a run's directory: all that is known of it, in one file that needs no network."""
    from raydelta.results.runs import resolve_run

    directory = resolve_run(run, runs)
    sys.stderr.write(f"report       reads {directory} and draws its test photographs; this can take a minute\n")
    from raydelta.results.report import report as report_run

    print(report_run(directory))


def _check_count(context: typer.Context, count: int | None) -> int | None:
    if count is None and not context.params.get("headroom"):
        raise typer.BadParameter("say how many photographs to label next, or --headroom")
    return count


@app.command()
def select(
    run: Annotated[
        str, typer.Argument(help="A finished translator, or a sweep: its best one; directory, name or 'latest'.")
    ],
    count: Annotated[
        int | None,
        typer.Option(
            min=1,
            callback=_check_count,
            help="How many photographs, or cells, to label next; with --headroom, labels of a set (default: the run's)",
        ),
    ] = None,
    strategy: Annotated[str, typer.Option(help="How to choose; docs/selection.md lists them.")] = "random",
    out: Annotated[Path | None, typer.Option(help="Output directory; default: one in the run's.")] = None,
    regions: Annotated[
        str | None, typer.Option(help="Choose cells of a grid, COLUMNSxROWS, in place of whole photographs.")
    ] = None,
    window: Annotated[
        int, typer.Option(min=1, help="Of so many frames that follow each other in a sequence, at most one is chosen.")
    ] = 5,
    headroom: Annotated[
        bool,
        typer.Option(
            "--headroom",
            metavar="",
            is_eager=True,
            help="Measure what choosing can bring, with labels that are known.",
        ),
    ] = False,
    sets: Annotated[int, typer.Option(min=2, help="With --headroom: how many random label sets.")] = 16,
    runs: Runs = Path("runs"),
) -> None:
    """Choose which photographs to label next; writes tasks for CVAT and Label Studio, and a contact sheet.

    With --headroom nothing is chosen: random label sets are trained alike, which shows how much choosing can bring.
    """
    from raydelta.results.runs import resolve_run

    grid = _numbers(regions, "x", 2, "--regions") if regions else None
    directory = resolve_run(run, runs)
    if headroom:
        from raydelta.selection.headroom import measure_headroom

        for line in measure_headroom(directory, count, sets).lines():
            print(line)
        return
    assert count is not None  # _check_count
    from raydelta.selection.select import select

    chosen = select(directory, count, strategy, out=out, grid=grid, window=window)
    print(f"chosen       {chosen.directory / 'selection.csv'}")
    print(f"pictures     {chosen.directory / 'sheet.png'}")
    print(f"to label     {chosen.directory / 'images'} (for Label Studio and CVAT: docs/selection.md)")
    print(f"price        {chosen.price}, by the present prediction")
    free = len({choice.id for choice in chosen.choices if choice.labelled})
    if free:
        print(f"no cost      {free} of them have a label in the data set already, which the run has not used")
    if free < len({choice.id for choice in chosen.choices}):
        print(f"labels back  raydelta data import-labels {chosen.directory} EXPORT NEW_DATA_SET")
    print(f"then train   {chosen.command}")


@data_app.command("import-labels")
def data_import_labels(
    selection: Annotated[Path, typer.Argument(help="Output directory of raydelta select.")],
    export: Annotated[
        Path,
        typer.Argument(help='Masks: "Segmentation mask 1.1" of CVAT, JSON of Label Studio, or PNGs of class ids.'),
    ],
    target: Annotated[str, typer.Argument(help="Data set to write: folder or address.")],
    data: Annotated[
        str | None, typer.Option(help="Data set with the photographs; default: that of the selection.")
    ] = None,
) -> None:
    """Bring bought labels back: writes the data set with them, and prints the command of the next round."""
    from raydelta.selection.bought import import_labels

    with _progress("import labels") as progress:
        bought = import_labels(selection, export, target, data=data, progress=progress)
    print(f"new labels   {bought.labels}")
    print(f"data set     {bought.target}")
    print(f"then train   {bought.command}")


@app.command()
def doctor(
    addresses: Annotated[list[str] | None, typer.Argument(help="Data sets or buckets (s3://…) to reach.")] = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Check versions, devices, cluster, storage, memory; say what is wrong and how to mend it. Exit code 1 if bad."""
    from raydelta.doctor import checks

    found = checks.diagnose(runs, addresses or [])
    print(checks.as_json(found) if as_json else checks.format_checks(found))
    if any(check.state == "bad" for check in found):
        raise typer.Exit(1)


@app.command()
def predict(
    run: TrainedRun,
    inputs: Annotated[list[str], typer.Argument(help="Photographs and videos: files, folders, globs, addresses.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for the masks; one that was begun is continued. Default: beside the photographs."),
    ] = None,
    method: Method = None,
    taxonomy: Annotated[
        str | None, typer.Option(help="Whose ids to write: cityscapes (labelIds), cityscapes19, …  Default: the run's.")
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(help="ids,colour,overlay: one or more. Default: ids; without --out, overlay."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images of one size at once.")] = 8,
    window: Annotated[
        str | None,
        typer.Option(help="WxH, predicted at once, in pixels at the scale of training. Default: twice the training's."),
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Write masks for photographs and videos."""
    size = _numbers(window, "x", 2, "--window") if window else None
    sys.stderr.write(f"predict      loading {run}\n")  # importing torch takes seconds
    from raydelta.deploy.predict import predict
    from raydelta.results.runs import resolve_run

    done = predict(
        resolve_run(run, runs),
        inputs,
        out,
        method=method,
        taxonomy=taxonomy,
        kinds=kinds.split(",") if kinds else None,
        batch=batch,
        window=size,
    )
    print(f"model        {_named(done.method, done.model)}")
    if done.void:
        print(f"void         {', '.join(done.void)}: {taxonomy} has no such class")
    for file, reason in done.skipped:
        print(f"skipped      {file}: {reason}")
    for path in done.written:
        print(f"written      {path}")
    if done.directory is not None:
        print(f"masks        {done.directory}: {done.images} written, {done.before} inputs were done before")
    if done.skipped and done.images == done.before == 0:
        raise typer.Exit(1)


@app.command()
def export(
    run: TrainedRun,
    out: Annotated[Path, typer.Option(help="Directory to make.")],
    method: Method = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Photographs to check with (repeat for more). Default: the run's, else drawn ones."),
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Write a trained model as ONNX, torch.export and safetensors, checked on photographs, with a model card."""
    sys.stderr.write(f"export       loading {run}\n")
    from raydelta.deploy.export import export
    from raydelta.results.runs import resolve_run

    done = export(resolve_run(run, runs), out, method, images or ())
    print(f"model              {_named(done.method, done.model)}")
    print(f"checked on         {done.images}")
    for check in done.checks:
        print(
            f"{check.model:<18} {check.width}x{check.height}: {check.agreement:.3%} of the pixels as in torch, "
            f"logits within {check.deviation:.1e}, {check.seconds:.3f} s an image (torch {check.torch_seconds:.3f} s)"
        )
    print(f"card               {out / 'README.md'}")


def _named(method: str | None, model: str) -> str:
    return f"{method} ({model})" if method else model


def main() -> None:
    """Run the command line; users' errors become one message and exit code 1, Ctrl-C becomes 130."""
    warnings.showwarning = _show_warning
    try:
        code = app(standalone_mode=False)  # typer returns the code of its Exit, 130 for Ctrl-C
    except UserError as error:
        _fail(f"error: {error}", 1)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed already
            sys.exit(error.exit_code)  # type: ignore[attr-defined]
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
            _fail(f"error: {error.format_message()}", error.exit_code)
        if type(error).__name__ == "TrainingError":
            _fail(f"error: {error}", 1)
        if type(error).__module__.split(".")[0] == "ray":
            _fail(f"error: Ray: {str(error).strip().splitlines()[-1]}; more in Ray's logs (named above)", 1)
        raise
    if code == 130:
        _fail("interrupted: finished stages are kept; the same command goes on from them (tune: with --resume)", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """One plain line of what concerns the user; what is for developers stays away."""
    if issubclass(category, UserWarning):
        sys.stderr.write(f"\nwarning: {printable(str(message))}\n")


def _fail(message: str, code: int) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"\n{printable(message)}\n")
    sys.stderr.flush()
    if "ray" in sys.modules:
        import ray

        ray.shutdown()
    os._exit(code)  # a thread that waits for Ray must not hold the exit up


@contextmanager
def _progress(title: str) -> Iterator[Any]:
    from raydelta.progress import Progress

    progress = Progress(title)
    yield progress.update
    progress.finish("done")


def _numbers(text: str, separator: str, count: int, option: str) -> Any:
    parts = text.split(separator)
    if len(parts) != count or not all(part.strip().isdigit() for part in parts):
        raise UserError(f"{option} {text}: expected {count} whole numbers with {separator!r} between them")
    return tuple(map(int, parts))


def _shares(splits: list[str]) -> dict[str, float] | None:
    """``train=0.8,test=0.2`` → shares; None where the texts are names of splits."""
    parts = [part for text in splits for part in text.split(",")]
    if not any("=" in part for part in parts):
        return None
    try:
        return {name: float(share) for name, share in (part.split("=") for part in parts)}
    except ValueError:
        raise UserError(f"--split {','.join(parts)}: expected names, or NAME=SHARE with commas between them") from None


def _announce(cluster: "Cluster", preset: str) -> None:
    where = f"{cluster.nodes} node{'s' * (cluster.nodes > 1)}, {cluster.cpus} CPUs, {cluster.gpus} GPUs"
    sys.stderr.write(f"raydelta {__version__}  preset {preset}  {where}\n")
    sys.stderr.write(f"dashboard {cluster.dashboard or 'off'}  Ray's logs {cluster.logs}\n")


def _project_file() -> Path | None:
    """The settings in the current folder, named so that nobody wonders where they come from."""
    from raydelta.tuning.project import find_project

    found = find_project(Path())
    if found is not None:
        sys.stderr.write(f"settings from {found.resolve()}\n")
    return found


def _data_overrides(synthetic: str | None, real: str | None) -> list[str]:
    return [f"data.{name}={value}" for name, value in (("synthetic", synthetic), ("real", real)) if value]


def _print_table(rows: "list[Row]") -> None:
    from rich.console import Console

    from raydelta.results.table import format_table

    print()
    console = Console()
    if not console.is_terminal:
        console = Console(width=180)
    console.print(format_table(rows, with_classes=console.width >= 150))
    if any(iou is None for row in rows for iou in row.per_class.values()):
        print("–  class absent from labels and predictions; left out of the mean")


def _print_json(path: Path) -> None:
    """A JSON file that a command has just written."""
    print(path.read_text(), end="")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
