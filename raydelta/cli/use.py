"""A finished training in use: predict, export, select."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raydelta.cli.options import (
    Json,
    Method,
    Runs,
    TrainedRun,
    Trust,
    numbers,
    print_as_json,
)
from raydelta.errors import printable

if TYPE_CHECKING:
    from raydelta.deploy.predict import Predicted

app = typer.Typer()


def _check_count(context: typer.Context, count: int | None) -> int | None:
    if count is None and not context.params.get("headroom"):
        raise typer.BadParameter("say how many photographs to label next, or --headroom")
    return count


@app.command()
def select(
    run: Annotated[
        str,
        typer.Argument(
            help="A finished training that labels teach, or a sweep: its best translator; directory, name or 'latest'."
        ),
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
    method: Annotated[
        str | None, typer.Option(help="Which row of a sweep's table chooses, and will be trained: joint-training, …")
    ] = None,
    runs: Runs = "runs",
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Choose which photographs to label next; writes tasks for CVAT and Label Studio, and a contact sheet.

    With --headroom nothing is chosen: random label sets are trained alike, which shows how much choosing can bring.
    """
    from raydelta.results.runs import resolve_run

    grid = numbers(regions, "x", 2, "--regions") if regions else None
    directory = resolve_run(run, runs)
    if headroom:
        from raydelta.selection.headroom import measure_headroom

        found = measure_headroom(directory, count, sets, _announce, method=method, trust=trust)
        print(found.model_dump_json(indent=1) if as_json else "\n".join(found.lines()))
        return
    assert count is not None  # _check_count
    from raydelta.selection.select import select

    chosen = select(directory, count, strategy, method=method, out=out, grid=grid, window=window, trust=trust)
    if as_json:
        print_as_json(chosen)
        return
    print(f"chosen       {chosen.directory / 'selection.csv'}")
    print(f"pictures     {chosen.directory / 'sheet.png'}")
    print(f"to label     {chosen.directory / 'images'} (for Label Studio and CVAT: docs/selection.md)")
    print(f"price        {chosen.price}, by the present prediction")
    free = len({choice.id for choice in chosen.choices if choice.labelled})
    if free:
        print(f"no cost      {free} of them have a label in the data set already, which the run has not used")
    if free < len({choice.id for choice in chosen.choices}):
        print(f"labels back  raydelta data import-labels {shlex.quote(str(chosen.directory))} EXPORT NEW_DATA_SET")
    print(f"then train   {chosen.command}")


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
    runs: Runs = "runs",
    as_json: Json = False,
) -> None:
    """Write masks for photographs and videos."""
    size = numbers(window, "x", 2, "--window") if window else None
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
    if as_json:
        print_as_json(done)
    else:
        _print_predicted(done, taxonomy)
    if done.skipped and done.images == done.before == 0:
        raise typer.Exit(1)


def _print_predicted(done: "Predicted", taxonomy: str | None) -> None:
    print(f"model        {_named(done.method, done.model)}")
    if done.void:
        print(f"void         {', '.join(done.void)}: {taxonomy} has no such class")
    for file, reason in done.skipped:
        print(printable(f"skipped      {file}: {reason}"))
    for path in done.written:
        print(printable(f"written      {path}"))
    if done.directory is not None:
        print(f"masks        {done.directory}: {done.images} written, {done.before} inputs were done before")


@app.command()
def export(
    run: TrainedRun,
    out: Annotated[Path, typer.Option(help="Directory to make.")],
    method: Method = None,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Photographs to check with (repeat for more). Default: the run's, else drawn ones."),
    ] = None,
    preprocessor: Annotated[
        bool,
        typer.Option(
            "--preprocessor", metavar="", help="Only what photographs go through before the expert that you keep: R2S."
        ),
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload it to the Hugging Face hub; a new repository is private."),
    ] = None,
    runs: Runs = "runs",
    as_json: Json = False,
) -> None:
    """Write a trained model as ONNX, torch.export and safetensors, checked on photographs, with a model card."""
    sys.stderr.write(f"export       loading {run}\n")
    from raydelta.deploy.export import export
    from raydelta.deploy.hub import check_hub, push
    from raydelta.results.runs import resolve_run

    if push_to_hub is not None:
        check_hub(push_to_hub)
    done = export(resolve_run(run, runs), out, method, images or (), preprocessor=preprocessor)
    pushed = push(out, push_to_hub) if push_to_hub is not None else None
    if as_json:
        print_as_json(done)
        return
    print(f"model              {_named(done.method, done.model)}")
    print(f"checked on         {done.images}")
    for check in done.checks:
        print(
            f"{check.model:<18} {check.width}x{check.height}: {check.agreement:.3%} of the pixels as in torch, "
            f"{'images' if preprocessor else 'logits'} within {check.deviation:.1e}, {check.seconds:.3f} s an image "
            f"(torch {check.torch_seconds:.3f} s)"
        )
    print(f"card               {out / 'README.md'}")
    if pushed is not None:
        print(f"pushed             {pushed}")


def _named(method: str | None, model: str) -> str:
    return printable(f"{method} ({model})" if method else model)  # a stranger's exported folder says what they are


def _announce(cost: str) -> None:
    sys.stderr.write(f"{cost}\n")
