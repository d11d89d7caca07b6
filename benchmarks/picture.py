"""The picture at the top of the README: real | translated | prediction | truth, and mIoU over the number of labels.

    python -m benchmarks.picture runs/tune-… [--method guided] [--count 3] [--out docs/pictures/overview.png]

Made from a finished sweep on the built-in data sets. Photographs of other data sets belong to somebody: for those, name
another file with --out.
"""

import argparse
import base64
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import altair as alt
import numpy as np
import vl_convert
from PIL import Image

from raydelta.data.shards import read_manifest
from raydelta.data.simulator.dataset import STAND_IN
from raydelta.results.gallery import draw_gallery_here
from raydelta.results.pictures import PAPER, Pixels, strip
from raydelta.results.row import Row
from raydelta.results.table import read_table
from raydelta.training.job import read_job

OUT = Path("docs/pictures/overview.png")
WIDTH = 224  # pixels of each picture
CHART = (400, 400)  # width and height of the axes
COLUMNS = ("real", "translated", "prediction", "truth")


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--method", default="guided", help="the row whose predictions are shown")
    parser.add_argument("--count", type=int, default=4, help="photographs")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    draw(options.run, options.method, options.count, options.out)
    print(options.out)


def draw(run: Path, method: str, count: int, out: Path) -> None:
    """Write the picture of a sweep's directory.

    Raises:
        SystemExit: the table has no such row, or ``out`` is the README's picture and the photographs are not built in.
    """
    rows = [row for row in read_table(run) if row.domain == "real"]
    chosen = [row for row in rows if row.method == method and row.stage is not None]
    if not chosen:
        there = ", ".join(sorted({row.method for row in rows}))
        raise SystemExit(f"{run}: no training of {method!r}; there are {there}")
    best = max(chosen, key=lambda row: row.labels_train)
    job = read_job(run.parent / Path(best.stage or "").name)
    if out == OUT and read_manifest(job.config.data.real).name != STAND_IN:
        raise SystemExit(f"{run}: its photographs are not built in; name another file with --out")
    gallery = draw_gallery_here({method: job}, count)
    views = [
        {"real": picture.real, "truth": picture.truth, **picture.readings[0].views} for picture in gallery.pictures
    ]
    columns = [name for name in COLUMNS if name in views[0]]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        left = Path(folder) / "strip.png"
        strip([[_decode(view[name], name) for name in columns] for view in views], columns, left)
        pictures = Image.open(left).convert("RGB")
    curve = Image.open(io.BytesIO(_chart([row for row in rows if row.split == rows[0].split]))).convert("RGB")
    sheet = Image.new("RGB", (pictures.width + curve.width, max(pictures.height, curve.height)), PAPER)
    sheet.paste(pictures, (0, (sheet.height - pictures.height) // 2))
    sheet.paste(curve, (pictures.width, (sheet.height - curve.height) // 2))
    sheet.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


def _decode(uri: str, name: str) -> Pixels:
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    photograph = name in ("real", "translated")
    size = (WIDTH, round(picture.height * WIDTH / picture.width))
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS if photograph else Image.Resampling.NEAREST))


def _chart(rows: Sequence[Row]) -> bytes:
    """mIoU over the number of training labels as PNG: a line or a point for each method, the mean of its seeds."""
    counts = sorted({row.labels_train for row in rows})
    last = {row.method: max(each.labels_train for each in rows if each.method == row.method) for row in rows}
    ends = {
        method: (labels, mean(row.miou for row in rows if (row.method, row.labels_train) == (method, labels)))
        for method, labels in last.items()
    }
    x = alt.X("labels:O", title="labels to train on", sort=counts, axis=alt.Axis(labelAngle=0))
    y = alt.Y("mean(miou):Q", title="test mIoU, percent", scale=alt.Scale(zero=False))
    colour = alt.Color("method:N", legend=None)
    points = [{"method": row.method, "labels": row.labels_train, "miou": row.miou} for row in rows]
    words = [{"method": method, "labels": ends[method][0], "miou": place} for method, place in _spread(ends).items()]
    base, names = (alt.Chart(alt.Data(values=values)) for values in (points, words))
    chart = alt.layer(
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour),
        base.mark_point(filled=True, size=60, opacity=1).encode(x=x, y=y, color=colour),
        names.mark_text(align="left", dx=8, fontSize=12).encode(x=x, y=y, text="method:N", color=colour),
    ).properties(width=CHART[0], height=CHART[1], padding={"left": 20, "right": 60, "top": 20, "bottom": 20})
    return vl_convert.vegalite_to_png(chart.to_json(), scale=1)


def _spread(ends: Mapping[str, tuple[int, float]]) -> dict[str, float]:
    """Where the names stand: at the ends of their lines, but no two of one number of labels over each other."""
    mious = [miou for _, miou in ends.values()]
    line = (max(mious) - min(mious)) * 14 / CHART[1]
    places: dict[str, float] = {}
    for method, (labels, miou) in sorted(ends.items(), key=lambda end: end[1]):
        below = [place for other, place in places.items() if ends[other][0] == labels]
        places[method] = max([miou, *(place + line for place in below)])
    return places


if __name__ == "__main__":
    main()
