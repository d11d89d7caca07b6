"""``raydelta data import-labels``: masks from a labelling tool become a data set, and the next round a command."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from raydelta.compute.asked import check_asked
from raydelta.config import LabelCells
from raydelta.data.decoding import decode_label
from raydelta.data.labels import cells_mask
from raydelta.data.relabel import write_with_labels
from raydelta.data.shards import Manifest, OnProgress, list_ids, read_manifest, read_rows
from raydelta.data.taxonomy import IGNORE
from raydelta.data.writing import check_target, encode_label
from raydelta.errors import UserError
from raydelta.parsing import read_json_file
from raydelta.selection.files import FORMAT, ORDER, training_command
from raydelta.selection.tools import read_masks
from raydelta.storage.files import absolute


class Order(BaseModel):
    """What a selection asked for: its ``selection.json``."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format: int
    data: str
    images: tuple[str, ...]
    cells: LabelCells | None
    train: tuple[str, ...]  # arguments of the next training


@dataclass(frozen=True)
class Bought:
    """The new data set, and the command of the next round."""

    manifest: Manifest
    target: str
    labels: int
    command: str


def import_labels(
    selection: Path,
    export: Path,
    target: str | Path,
    *,
    data: str | None = None,
    progress: OnProgress = lambda done, total, note: None,
) -> Bought:
    """Write the data set of a selection anew, with the labels that were bought. Nothing else changes.

    Of an image of which cells were asked for, the export's pixels outside them are left out, with a warning.

    Args:
        selection: what ``raydelta select`` has written.
        export: of CVAT or Label Studio, zip, folder or JSON; or a folder of PNGs of class ids.
        target: the new data set.
        data: the data set that the photographs are in; by default the one that they were chosen from.

    Raises:
        UserError: the export does not fit what was asked for; nothing is written then.
    """
    check_target(target)
    asked = read_order(selection)
    if data is None:
        check_asked({"data": asked.data}, str(selection), "name it with --data")
    data = data or asked.data
    taxonomy = read_manifest(data).taxonomy
    _check_still_there(data, asked.images)
    rows = read_rows(data, "train", ids=asked.images, columns=["id", "label", "height", "width"]).to_pylist()
    sizes = {row["id"]: (row["width"], row["height"]) for row in rows}
    masks = read_masks(export, sizes, taxonomy)
    missing = [name for name in asked.images if name not in masks]
    if missing:
        raise UserError(
            f"{export}: {len(missing)} of the {len(asked.images)} images have no label: {', '.join(missing[:5])}; "
            "label them all, then export again"
        )
    before = {row["id"]: row["label"] for row in rows}
    merged = _within_cells(export, masks, before, asked.cells)
    labels = {name: encode_label(mask) for name, mask in merged.items()}
    manifest = write_with_labels(data, target, labels, source=export.name, progress=progress)
    command = training_command(selection.resolve(), asked.train, str(absolute(target)))
    return Bought(manifest, str(target), len(labels), command)


def read_order(selection: Path) -> Order:
    """What a selection asked for.

    Raises:
        UserError: it is none, or of another version.
    """
    path = selection / ORDER
    try:
        order = Order(**read_json_file(path))
    except FileNotFoundError as error:
        raise UserError(f"{selection}: no finished selection of raydelta select (it has no {ORDER})") from error
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise UserError(f"{path}: damaged; run the same raydelta select again to renew it: {error}") from error
    if order.format > FORMAT:
        raise UserError(f"{path}: of a newer raydelta; update it to read this one")
    return order


def _check_still_there(data: str, images: tuple[str, ...]) -> None:
    gone = sorted(set(images) - {sample.id for sample in list_ids(data, "train")})
    if gone:
        raise UserError(
            f"{data}: {len(gone)} of the {len(images)} chosen images are not there any more: {', '.join(gone[:5])}; "
            "name the data set that has them with --data, or choose again"
        )


def _within_cells(
    export: Path,
    masks: Mapping[str, NDArray[np.uint8]],
    before: Mapping[str, bytes | None],
    cells: LabelCells | None,
) -> dict[str, NDArray[np.uint8]]:
    """The labels to store: the new mask, or where cells were asked for the old label with the new cells."""
    if cells is None:
        return dict(masks)
    merged, beyond, empty = {}, [], []
    for name, mask in masks.items():
        wanted = cells_mask(cells.images[name], cells.grid, (mask.shape[1], mask.shape[0]))
        if ((mask != IGNORE) & ~wanted).any():
            beyond.append(name)
        if (mask[wanted] == IGNORE).all():
            empty.append(name)
        stored = before[name]
        old = decode_label(stored) if stored is not None else np.full(mask.shape, IGNORE, np.uint8)
        merged[name] = np.where(wanted, mask, old).astype(np.uint8)
    if empty:
        raise UserError(
            f"{export}: nothing is labelled in the cells that were asked for in {', '.join(empty[:5])} ({len(empty)} "
            "images); the bright parts of the images are wanted"
        )
    if beyond:
        warnings.warn(
            f"{export}: labels outside the cells that were asked for are left out, in {', '.join(beyond[:5])} "
            f"({len(beyond)} images)",
            stacklevel=3,
        )
    return merged
