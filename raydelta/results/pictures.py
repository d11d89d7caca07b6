"""Pictures for people: masks in colour, contact sheets, labelled grids, bars of class shares. All drawn with Pillow.

Images are uint8 [H, W, 3], masks uint8 [H, W] of taxonomy ids, 255 void; files appear whole or not at all.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from raydelta.data.decoding import decode
from raydelta.data.shards import list_ids, read_manifest, read_rows
from raydelta.data.taxonomy import IGNORE, Taxonomy
from raydelta.storage.files import write_atomically

Pixels = NDArray[np.uint8]

GAP = 8  # pixels between pictures
LINE = 20  # height of a line of text
INK, PAPER, FAINT = (30, 30, 30), (255, 255, 255), (236, 236, 236)
VOID = (0, 0, 0)
WRONG = (235, 64, 52)
LARGEST = 480  # pixels of an image's width on a contact sheet
BAR_CHART_WIDTH = 760


def colourise(mask: Pixels, taxonomy: Taxonomy) -> Pixels:
    """A mask [H, W] in the palette's colours, void black: [H, W, 3]."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(taxonomy)] = taxonomy.palette
    colours[IGNORE] = VOID
    return colours[mask]


def overlay(image: Pixels, mask: Pixels, taxonomy: Taxonomy, opacity: float = 0.5) -> Pixels:
    """The palette's colours laid over the image [H, W, 3]; void pixels stay as they are."""
    mixed = image + opacity * (colourise(mask, taxonomy).astype(np.float32) - image)
    return np.where((mask == IGNORE)[..., None], image, mixed.round().astype(np.uint8))


def contact_sheet(
    images: Sequence[Pixels],
    masks: Sequence[Pixels | None],
    taxonomy: Taxonomy,
    path: str | Path,
    columns: int = 2,
) -> None:
    """Per sample the image, its mask and the overlay (the image alone where there is no mask), above a legend.

    Args:
        images: of one size, at least one.
        columns: samples beside each other.
    """
    samples = [
        [image] if mask is None else [image, colourise(mask, taxonomy), overlay(image, mask, taxonomy)]
        for image, mask in zip(images, masks, strict=True)
    ]
    height, width = images[0].shape[:2]
    per_sample = max(map(len, samples))
    columns = min(columns, len(samples))
    lines = -(-len(samples) // columns)
    sheet_width = GAP + columns * (per_sample * width + GAP)
    legend = _legend(taxonomy, sheet_width)
    sheet = Image.new("RGB", (sheet_width, GAP + lines * (height + GAP) + legend.height), PAPER)
    for index, sample in enumerate(samples):
        line, column = divmod(index, columns)
        for place, picture in enumerate(sample):
            left = GAP + column * (per_sample * width + GAP) + place * width
            sheet.paste(Image.fromarray(picture), (left, GAP + line * (height + GAP)))
    sheet.paste(legend, (0, sheet.height - legend.height))
    _save(sheet, path)


def heat(image: Pixels, values: NDArray[np.floating]) -> Pixels:
    """Values [H, W] in [0, 1] over a dim grey copy of the image [H, W, 3], from nothing through red to yellow."""
    colours = np.stack([np.ones_like(values), (2 * values - 1).clip(0, 1), np.zeros_like(values)], axis=-1) * 255
    grey = image.mean(-1, keepdims=True) / 2
    return (grey + (2 * values).clip(0, 1)[..., None] * (colours - grey)).round().astype(np.uint8)


def mark_errors(image: Pixels, prediction: Pixels, truth: Pixels) -> Pixels:
    """Red where a prediction [H, W] is wrong, black where there is no truth, over a dim grey copy of the image."""
    grey = np.repeat(image.mean(-1, keepdims=True) / 2, 3, axis=-1)
    wrong = ((prediction != truth) & (truth != IGNORE))[..., None]
    marked = np.where(wrong, WRONG, grey)
    return np.where((truth == IGNORE)[..., None], 0, marked).round().astype(np.uint8)


def outline(image: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    """The image with the border of a box (left, top, right, bottom) drawn into it."""
    picture = Image.fromarray(image)
    left, top, right, bottom = box
    ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline=PAPER)
    return np.asarray(picture)


def strip(
    rows: Sequence[Sequence[Pixels]], titles: Sequence[str], path: str | Path, captions: Sequence[str] | None = None
) -> None:
    """A grid of images of one size with a title over each column: real | translated | prediction | truth.

    Args:
        captions: a line of text below each row.
    """
    height, width = rows[0][0].shape[:2]
    line_height = height + GAP + (LINE if captions else 0)
    sheet = Image.new("RGB", (GAP + len(titles) * (width + GAP), GAP + LINE + len(rows) * line_height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        left = GAP + column * (width + GAP)
        draw.text((left, GAP), _fitting(title, width), INK, _font())
        for line, row in enumerate(rows):
            sheet.paste(Image.fromarray(row[column]), (left, GAP + LINE + line * line_height))
    for line, caption in enumerate(captions or ()):
        top = GAP + LINE + line * line_height + height + 2
        draw.text((GAP, top), _fitting(caption, sheet.width - 2 * GAP), INK, _font())
    _save(sheet, path)


def class_bars(shares_by_split: Mapping[str, Sequence[float]], taxonomy: Taxonomy, path: str | Path) -> None:
    """A bar per class and split.

    Args:
        shares_by_split: split → share of the labelled pixels per class, each in [0, 1].
    """
    names = max(_font().getlength(text) for text in (*taxonomy.classes, *shares_by_split))
    label, number = round(names) + 2 * GAP, 64
    longest = max(max(shares) for shares in shares_by_split.values()) or 1
    room = BAR_CHART_WIDTH - 2 * label - number
    block = len(shares_by_split) * LINE + GAP
    sheet = Image.new("RGB", (BAR_CHART_WIDTH, GAP + len(taxonomy) * block), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (name, colour) in enumerate(zip(taxonomy.classes, taxonomy.palette, strict=True)):
        top = GAP + index * block
        if index % 2 == 0:
            draw.rectangle((0, top - GAP // 2, BAR_CHART_WIDTH, top + block - GAP // 2 - 1), FAINT)
        draw.text((GAP, top), name, INK, _font())
        for line, (split, shares) in enumerate(shares_by_split.items()):
            y, length = top + line * LINE, round(room * shares[index] / longest)
            draw.text((label, y), split, INK, _font())
            draw.rectangle((2 * label, y + 2, 2 * label + length, y + LINE - 4), colour, INK)
            draw.text((2 * label + length + GAP, y), f"{shares[index]:.1%}", INK, _font())
    _save(sheet, path)


def _legend(taxonomy: Taxonomy, width: int) -> Image.Image:
    """Colour and name of every class, in as many lines as the width needs."""
    entries = [*zip(taxonomy.classes, taxonomy.palette, strict=True), ("void", VOID)]
    entry_width = round(max(_font().getlength(name) for name, _ in entries)) + LINE + 2 * GAP
    columns = max(1, (width - GAP) // entry_width)
    lines = -(-len(entries) // columns)
    legend = Image.new("RGB", (width, lines * LINE + GAP), PAPER)
    draw = ImageDraw.Draw(legend)
    for index, (name, colour) in enumerate(entries):
        line, column = divmod(index, columns)
        left, top = GAP + column * entry_width, line * LINE
        draw.rectangle((left, top + 2, left + LINE - 6, top + LINE - 4), colour, INK)
        draw.text((left + LINE, top), name, INK, _font())
    return legend


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)


def _fitting(text: str, width: int) -> str:
    """The text, cut to a width in pixels."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _save(picture: Image.Image, path: str | Path) -> None:
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_atomically(Path(path), content.getvalue())


def show_dataset(uri: str, out: Path, count: int) -> list[Path]:
    """A contact sheet of up to ``count`` images, evenly spaced, of every split, and one chart of the class shares."""
    manifest = read_manifest(uri)
    out.mkdir(parents=True, exist_ok=True)
    paths, shares = [], {}
    for name, split in manifest.splits.items():
        samples = list_ids(uri, name)
        chosen = [sample.id for sample in samples[:: max(1, len(samples) // count)][:count]]
        table = read_rows(uri, name, ids=chosen)
        width, height = table["width"][0].as_py(), table["height"][0].as_py()
        size = (min(width, LARGEST), round(height * min(1, LARGEST / width)))
        arrays = decode(table, size, with_labels=True, num_classes=len(manifest.taxonomy))
        labelled = {sample.id for sample in samples if sample.labelled}
        masks = [mask if key in labelled else None for key, mask in zip(arrays["id"], arrays["label"], strict=True)]
        paths.append(out / f"{manifest.name}-{name}.png")
        contact_sheet(list(arrays["image"].transpose(0, 2, 3, 1)), masks, manifest.taxonomy, paths[-1])
        if split.labelled:
            shares[name] = [pixels / max(1, sum(split.pixels)) for pixels in split.pixels]
    if shares:
        paths.append(out / f"{manifest.name}-classes.png")
        class_bars(shares, manifest.taxonomy, paths[-1])
    return paths
