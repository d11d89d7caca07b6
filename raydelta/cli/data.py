"""``raydelta data``: make, import, check and show data sets, and bring bought labels back."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from raydelta.cli.options import (
    Json,
    numbers,
    progress_of,
)
from raydelta.errors import UserError

app = typer.Typer(help="Make, import, check and show data sets.", no_args_is_help=True)


@app.command("simulate")
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
    with progress_of(f"make {target.name}") as progress:
        simulate_dataset(
            look, target, counts=counts, width=width, height=height, seed=seed, taxonomy=classes, progress=progress
        )
    if void := void_classes(classes):
        print(f"void, as {classes.name} has no such class: {', '.join(void)}")
    print(target)


@app.command("import")
def data_import(
    source: Annotated[str, typer.Argument(help="Folder or address (s3://…) in a known layout; only read.")],
    target: Annotated[str, typer.Argument(help="Folder or address to make.")],
    kind: Annotated[str | None, typer.Option(help="Layout; default: detected.")] = None,
    domain: Annotated[
        Literal["real", "synthetic"] | None, typer.Option(help="Domain; default: that of the layout.")
    ] = None,
    taxonomy: Annotated[
        str | None,
        typer.Option(help="camvid11, cityscapes19, synthia16, synthia13 or a YAML file; default: the layout's."),
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
    skip_bad: Annotated[bool, typer.Option("--skip-bad", metavar="", help="Skip bad samples and list them.")] = False,
    allow_unlabelled: Annotated[
        bool, typer.Option("--allow-unlabelled", metavar="", help="Accept images without a label.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Parallel tasks; default: one for each CPU.")] = None,
) -> None:
    """Import images and masks as checked shards.

    Layouts: cityscapes, idd, synthia-rand, synthia-seqs, synthia-sf, gta5, camvid, carla (up to 0.9.13), carla-0.9.14,
    and folder (images/SPLIT/… with labels/SPLIT/…, or what --images, --labels and --ids say).
    """
    from raydelta.compute.asked import remember
    from raydelta.data.importers import ImportOptions, import_dataset
    from raydelta.data.shards import BadItem, format_skipped
    from raydelta.storage.files import without_secrets

    remember((source, target))
    shares = _shares(split or [])
    options = ImportOptions(
        kind=kind,
        domain=domain,
        taxonomy=taxonomy,
        images=images,
        labels=labels,
        ids=ids,
        only=only,
        size=numbers(size, "x", 2, "--size") if size else None,
        crop=numbers(crop, ",", 4, "--crop") if crop else None,
        splits=tuple(split) if split and not shares else None,
        shares=shares,
        seed=seed,
        limit=limit,
        skip_bad=skip_bad,
        allow_unlabelled=allow_unlabelled,
    )
    with progress_of(f"import {Path(target).name}") as progress:
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


@app.command("check")
def data_check(
    data_set: Annotated[str, typer.Argument(help="Data set: folder or address.")], as_json: Json = False
) -> None:
    """Verify every shard against the manifest and print the class histogram; exit code 1 if anything is wrong."""
    from raydelta.data import checking

    report = checking.check(data_set)
    print(checking.as_json(report) if as_json else checking.format_report(report))
    if report.problems:
        raise typer.Exit(1)


@app.command("show")
def data_show(
    data_set: Annotated[str, typer.Argument(help="Data set: folder or address.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path(),
    count: Annotated[int, typer.Option(min=1, help="Images of each split.")] = 24,
) -> None:
    """Draw a contact sheet of every split (image, mask, overlay) and the class shares as bars."""
    from raydelta.results.pictures import show_dataset

    for path in show_dataset(data_set, out, count):
        print(path)


@app.command("import-labels")
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
    from raydelta.compute.asked import remember
    from raydelta.selection.bought import import_labels

    remember(filter(None, (target, data)))
    with progress_of("import labels") as progress:
        bought = import_labels(selection, export, target, data=data, progress=progress)
    print(f"new labels   {bought.labels}")
    print(f"data set     {bought.target}")
    print(f"then train   {bought.command}")


def _shares(splits: list[str]) -> dict[str, float] | None:
    """``train=0.8,test=0.2`` → shares; None where the texts are names of splits."""
    parts = [part for text in splits for part in text.split(",")]
    if not any("=" in part for part in parts):
        return None
    try:
        return {name: float(share) for name, share in (part.split("=") for part in parts)}
    except ValueError:
        raise UserError(f"--split {','.join(parts)}: expected names, or NAME=SHARE with commas between them") from None
