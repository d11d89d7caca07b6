"""The charts of a report, as Vega-Lite specifications that Altair checks; the page draws them as SVG.

Colours are CSS variables of the page, so one drawing serves light, dark and print. A chart that depends on what the
reader has chosen has a signal of that name (method, training, best), which the page sets.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from raydelta.results.importance import Importance, is_logarithmic, is_numeric, varied_knobs
from raydelta.results.row import Row
from raydelta.results.sweep import Trial
from raydelta.results.table import Summary

Chart = dict[str, Any]

INK, MUTED, FAINT = "var(--ink)", "var(--muted)", "var(--faint)"
ACCENT, SECOND = "var(--accent)", "var(--second)"
CATEGORIES = [f"var(--c{number})" for number in range(1, 9)]
RANKS = [f"var(--q{number})" for number in range(1, 6)]  # worst to best fifth of the trials
REFERENCE = "joint training"
MIOU, IOU = "test mIoU, percent", "test IoU, percent"
LINE = 26  # pixels of height for one bar
ABOVE, BELOW = 0.36, 0.26  # of the distance of two levels: what a level of the trials takes for itself
CURVES = "curves"
"""Name of the data set that the charts of training curves share."""

CONFIG: Chart = {
    "background": None,
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        **{"labelColor": MUTED, "titleColor": INK, "gridColor": FAINT, "domainColor": FAINT, "tickColor": FAINT},
        **{"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 240},
    },
    "legend": {
        **{"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12, "orient": "bottom"},
        **{
            "titleFontWeight": "normal",
            "columns": 2,
            "symbolType": "square",
            "labelLimit": 200,
        },
    },
    "text": {"fill": INK},
}


def methods_chart(summaries: Sequence[Summary], rows: Sequence[Row]) -> Chart:
    """A point for every line of the table, with its seeds and its spread."""
    data = [
        {
            "row": label_of(part),
            "miou": part.miou,
            "low": part.miou - (part.deviation or 0),
            "high": part.miou + (part.deviation or 0),
            "reference": part.method == REFERENCE,
            "shown": part.shown,
        }
        for part in summaries
    ]
    seeds = [{"row": label_of(row), "seed": row.seed, "miou": row.miou} for row in rows]
    x = alt.X("miou:Q", title=MIOU, scale=alt.Scale(zero=False, nice=True), axis=alt.Axis(tickCount=8))
    y = alt.Y(
        "row:N", title=None, sort=[line["row"] for line in data], axis=alt.Axis(domain=False, ticks=False, grid=True)
    )
    colour = alt.condition("datum.reference", alt.value(SECOND), alt.value(ACCENT))
    tooltip = [alt.Tooltip("row:N", title="method"), alt.Tooltip("shown:N", title="mIoU %")]
    spreads = alt.Chart(_values(data)).mark_rule(strokeWidth=3, opacity=0.45, aria=False)
    return _finish(
        alt.layer(
            spreads.encode(x=alt.X("low:Q", title=MIOU, axis=alt.Axis(tickCount=8)), x2="high:Q", y=y, color=colour),
            alt.Chart(_values(seeds)).mark_tick(color=MUTED, thickness=1.5, size=12, aria=False).encode(x=x, y=y),
            alt.Chart(_values(data))
            .mark_point(filled=True, size=90, opacity=1)
            .encode(x=x, y=y, color=colour, tooltip=tooltip),
        ),
        "Mean test mIoU of every method, a point each, with its seeds as ticks; the table below has the same figures.",
        height=LINE * len(data) + 20,
    )


def budget_chart(summaries: Sequence[Summary]) -> Chart:
    """mIoU over the training labels, the chosen method in front; what does not depend on it is a dashed line."""
    budgets: dict[str, set[int]] = {}
    for part in summaries:
        budgets.setdefault(part.method, set()).add(part.labels_train)
    data: list[dict[str, Any]] = [
        {
            "method": part.method,
            "labels": part.labels_train,
            "miou": part.miou,
            "low": part.miou - (part.deviation or 0),
            "high": part.miou + (part.deviation or 0),
            "shown": part.shown,
        }
        for part in summaries
    ]
    lines = [line for line in data if len(budgets[line["method"]]) > 1]
    levels = [line for line in data if len(budgets[line["method"]]) == 1]
    counts = sorted({line["labels"] for line in lines})
    x = alt.X(
        "labels:Q",
        title="training labels",
        scale=alt.Scale(type="log", base=2, nice=False, padding=16),
        axis=alt.Axis(values=counts, grid=False, format="d"),
    )
    y = alt.Y("miou:Q", title=MIOU, scale=alt.Scale(zero=False), axis=alt.Axis(domain=False, ticks=False))
    colour: Any = {
        "condition": [
            {"test": "datum.method == name", "value": ACCENT},
            {"test": f"datum.method == '{REFERENCE}'", "value": SECOND},
        ],
        "value": "var(--line)",
    }
    front = alt.condition("datum.method == name", alt.value(1), alt.value(0))
    tooltip = ["method:N", "labels:Q", alt.Tooltip("shown:N", title="mIoU %")]
    base = alt.Chart(_values(lines)).encode(x=x, color=colour)
    level = alt.Chart(_values(levels)).encode(y=y, color=colour, tooltip=tooltip)
    return _finish(
        alt.layer(
            level.mark_rule(strokeDash=[5, 4], strokeWidth=1.5, aria=False),
            level.mark_text(align="left", dx=6, fontSize=11, aria=False).encode(
                x=alt.value("width"), text="method:N", color=alt.value(MUTED)
            ),
            base.mark_line(strokeWidth=2, aria=False).encode(y=y, detail="method:N"),
            base.mark_rule(strokeWidth=2, aria=False).encode(y=alt.Y("low:Q", title=MIOU), y2="high:Q", opacity=front),
            base.mark_point(filled=True, size=70, opacity=1).encode(y=y, tooltip=tooltip),
        ).add_params(_signal("name")),
        "Test mIoU over the number of training labels, a line for each method; dashed: those that do not depend on it.",
        height=320,
    )


def trials_chart(trials: Sequence[Trial]) -> Chart:
    """Parallel coordinates, turned: every knob is a level of its own, every trial a line from the top to the bottom."""
    scored = [trial for trial in trials if trial.miou is not None]
    order = sorted(scored, key=lambda trial: -(trial.miou or 0))
    axes: dict[str, list[Any]] = {knob: [trial.overrides.get(knob) for trial in order] for knob in varied_knobs(trials)}
    axes["validation mIoU, percent"] = [trial.miou for trial in order]
    places, ticks = {}, []
    for level, (name, values) in enumerate(axes.items()):
        places[name], marks = _scale(values)
        ticks += [{"level": level, "at": at, "text": text} for at, text in marks]
    data: list[dict[str, Any]] = [
        {
            "trial": trials.index(trial) + 1,
            "rank": rank + 1,
            "fifth": 5 - rank * 5 // max(1, len(order)),
            "level": level,
            "knob": name,
            "at": places[name][rank],
            "value": short(axes[name][rank]),
        }
        for rank, trial in reversed(list(enumerate(order)))  # the best is drawn last, on top
        for level, name in enumerate(axes)
    ]
    # Lines end where the band of a level begins, which holds its name, its points and its values.
    paths = [line | {"edge": line["level"] + edge} for line in data for edge in (-ABOVE, BELOW)]
    names = [
        {"level": level, "name": name, "at": 0, "to": 1, "top": level - ABOVE, "bottom": level + BELOW}
        for level, name in enumerate(axes)
    ]
    x = alt.X("at:Q", scale=alt.Scale(domain=[-0.02, 1.02], nice=False), axis=None)
    levels = alt.Scale(domain=[-ABOVE, len(axes) - 1 + BELOW], reverse=True, nice=False)
    y = alt.Y("level:Q", scale=levels, axis=None)
    hover = alt.selection_point("hovered", fields=["trial"], on="pointerover", clear="pointerout")
    colour = alt.Color(
        "fifth:O",
        scale=alt.Scale(domain=[5, 4, 3, 2, 1], range=RANKS[::-1]),
        legend=alt.Legend(
            title="fifth of the trials",
            labelExpr="datum.value == 5 ? 'best' : datum.value == 1 ? 'worst' : ''",
            columns=5,
        ),
    )
    tooltip = ["trial:Q", alt.Tooltip("rank:Q", title="place"), "knob:N", "value:N"]
    edge = alt.Y("edge:Q", scale=levels, axis=None)

    def some(lines: Sequence[Mapping[str, Any]]) -> alt.Chart:
        return alt.Chart(_values(lines)).transform_filter("datum.rank <= best").encode(x=x, color=colour)

    return _finish(
        alt.layer(
            some(paths)
            .mark_line(strokeWidth=2, aria=False)
            .encode(
                y=edge,
                detail="trial:N",
                order="edge:Q",
                opacity=alt.condition(hover, alt.value(0.75), alt.value(0.08)),
            ),
            alt.Chart(_values(names))
            .mark_rect(fill="var(--paper)", aria=False)
            .encode(x=alt.value(-8), x2=alt.value("width"), y=alt.Y("top:Q", scale=levels, axis=None), y2="bottom:Q"),
            alt.Chart(_values(names)).mark_rule(color=FAINT, strokeWidth=1.5, aria=False).encode(x=x, x2="to:Q", y=y),
            some(data)
            .mark_point(filled=True, size=60)
            .encode(y=y, tooltip=tooltip, opacity=alt.condition(hover, alt.value(0.9), alt.value(0.08)))
            .add_params(hover),
            alt.Chart(_values(names))
            .mark_text(align="left", dy=-16, fontWeight=600, aria=False)
            .encode(x=x, y=y, text="name:N"),
            alt.Chart(_values(ticks))
            .mark_text(dy=15, fontSize=11, fill=MUTED, aria=False)
            .encode(x=x, y=y, text="text:N"),
        ).add_params(alt.param(name="best", value=len(order))),
        "Parallel coordinates of the sweep: a line for each trial through the values of its knobs down to its mIoU.",
        height=96 * len(axes),
    )


def importance_chart(ranked: Sequence[Importance]) -> Chart:
    """A bar for every searched knob, with the interval."""
    data = [vars(knob) | {"shown": f"{knob.share:.0%} ({knob.low:.0%} to {knob.high:.0%})"} for knob in ranked]
    y = alt.Y("knob:N", title=None, sort=[knob.knob for knob in ranked], axis=alt.Axis(domain=False, ticks=False))
    x = alt.X("share:Q", title="importance", axis=alt.Axis(format="%", tickCount=5), scale=alt.Scale(domain=[0, 1]))
    base = alt.Chart(_values(data)).encode(y=y, tooltip=["knob:N", alt.Tooltip("shown:N", title="importance")])
    return _finish(
        alt.layer(
            base.mark_bar(color=ACCENT, opacity=0.75, height=14).encode(x=x),
            base.mark_rule(color=INK, strokeWidth=1.5, aria=False).encode(
                x=alt.X("low:Q", title="importance"), x2="high:Q"
            ),
        ),
        "Importance of each searched knob: " + "; ".join(f"{line['knob']} {line['shown']}" for line in data) + ".",
        height=LINE * len(ranked) + 20,
    )


def miou_curves() -> Chart:
    """Validation mIoU of all trainings of the chosen one's kind, the chosen one in front."""
    base = alt.Chart(alt.NamedData(CURVES)).transform_filter(
        "isValid(datum.miou) && split(datum.training, '/')[0] == split(training, '/')[0]"
    )
    x = alt.X("step:Q", title="step", axis=alt.Axis(grid=False, tickCount=5))
    y = alt.Y("miou:Q", title="validation mIoU, percent", scale=alt.Scale(zero=False), axis=alt.Axis(domain=False))
    line = base.encode(x=x, y=y, detail="training:N")
    return _finish(
        alt.layer(
            line.mark_line(strokeWidth=1.5, color="var(--line)", aria=False),
            line.transform_filter("datum.training == training").mark_line(
                strokeWidth=2.5, color=ACCENT, point={"color": ACCENT, "size": 25}
            ),
        ).add_params(_signal("training")),
        "Validation mIoU over the steps of the chosen training, in front of the others of its kind.",
        height=240,
    )


def loss_curves(terms: Sequence[str]) -> Chart:
    """Every loss term of the chosen training over its steps."""
    stroke = alt.Legend(symbolType="stroke", symbolSize=250, symbolStrokeWidth=2.5)
    chart = (
        _folded(terms, "term")
        .mark_line(strokeWidth=2, point={"size": 12}, aria=False)
        .encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(grid=False, tickCount=5)),
            y=alt.Y(
                "value:Q",
                title="loss",
                scale=alt.Scale(type="log", nice=False),
                axis=alt.Axis(domain=False, grid=False, tickCount=5, format="~g"),
            ),
            color=alt.Color("term:N", title=None, scale=alt.Scale(range=CATEGORIES), legend=stroke),
            strokeDash=alt.StrokeDash("term:N", title=None, legend=stroke),
            tooltip=["term:N", "step:Q", alt.Tooltip("value:Q", format=".3g")],
        )
    )
    return _finish(chart, "Loss terms over the steps of the chosen training, on a logarithmic scale.", height=240)


def phase_chart(phases: Sequence[str]) -> Chart:
    """Seconds of the chosen training in each phase, between one report and the next."""
    names = [phase.removeprefix("seconds_") for phase in phases]
    chart = (
        _folded(phases, "phase")
        .transform_calculate(name="replace(datum.phase, 'seconds_', '')", place=f"indexof({names}, datum.name)")
        .mark_bar(aria=False)
        .encode(
            x=alt.X(
                "step:O", title="step", axis=alt.Axis(labelOverlap=True, labelSeparation=8, labelAngle=0, ticks=False)
            ),
            y=alt.Y("value:Q", title="seconds", axis=alt.Axis(domain=False, tickCount=5)),
            color=alt.Color("name:N", title=None, scale=alt.Scale(domain=names, range=CATEGORIES)),
            order=alt.Order("place:Q"),
            tooltip=[
                alt.Tooltip("name:N", title="phase"),
                "step:Q",
                alt.Tooltip("value:Q", title="seconds", format=".3g"),
            ],
        )
    )
    return _finish(chart, "Seconds that the chosen training spent in each phase, between its reports.", height=240)


def class_chart(classes: Mapping[str, Sequence[tuple[str, float | None, float | None]]]) -> Chart:
    """IoU of each class for the chosen line of the table, joint training beside it.

    Args:
        classes: line of the table → class, mean IoU and its deviation over the seeds, percent.
    """
    data = [
        {"row": row, "class": name, "iou": iou, "low": iou - (spread or 0), "high": iou + (spread or 0)}
        for row, line in classes.items()
        for name, iou, spread in line
        if iou is not None
    ]
    order = [name for name, _, _ in next(iter(classes.values()))]
    y = alt.Y("class:N", title=None, sort=order, axis=alt.Axis(domain=False, ticks=False))
    x = alt.X("iou:Q", title=IOU, scale=alt.Scale(domain=[0, 100]))
    chosen = (
        alt.Chart(_values(data))
        .transform_filter("datum.row == method")
        .encode(y=y, tooltip=["class:N", alt.Tooltip("iou:Q", title="IoU %", format=".1f")])
    )
    other = alt.Chart(_values(data)).transform_filter("datum.row == reference")
    return _finish(
        alt.layer(
            chosen.mark_bar(color=ACCENT, opacity=0.75, height=14).encode(x=x),
            chosen.mark_rule(color=INK, strokeWidth=1.5, aria=False).encode(x=alt.X("low:Q", title=IOU), x2="high:Q"),
            other.mark_tick(color=SECOND, thickness=3, size=20, aria=False).encode(x=x, y=y),
        ).add_params(_signal("method"), _signal("reference")),
        "IoU of each class for the chosen line of the table as bars; for joint training as ticks.",
        height=LINE * len(order) + 20,
    )


def confusion_chart(confusions: Mapping[str, Sequence[Sequence[int]]], classes: Sequence[str]) -> Chart:
    """Which class the pixels of each class are taken for, for the chosen line of the table.

    Args:
        confusions: line of the table → pixels, rows truth and columns prediction.
    """
    data = [
        {"row": row, "truth": truth, "predicted": predicted, "share": round(pixels / sum(line), 4)}
        for row, matrix in confusions.items()
        for truth, line in zip(classes, matrix, strict=True)
        for predicted, pixels in zip(classes, line, strict=True)
        if pixels and pixels / sum(line) >= 0.0005
    ]
    order = list(classes)
    base = (
        alt.Chart(_values(data))
        .transform_filter("datum.row == method")
        .encode(
            x=alt.X(
                "predicted:N",
                title="prediction",
                scale=alt.Scale(domain=order),
                axis=alt.Axis(orient="top", labelAngle=-60, domain=False, ticks=False),
            ),
            y=alt.Y(
                "truth:N",
                title="truth",
                scale=alt.Scale(domain=order),
                axis=alt.Axis(domain=False, ticks=False, titleAngle=-90),
            ),
        )
    )
    cell = base.mark_rect(cornerRadius=2, stroke=FAINT, strokeWidth=0.5).encode(
        color=alt.condition("datum.truth == datum.predicted", alt.value(ACCENT), alt.value(SECOND)),
        opacity=alt.Opacity("share:Q", scale=alt.Scale(domain=[0, 1], range=[0.06, 1]), legend=None),
        tooltip=["truth:N", "predicted:N", alt.Tooltip("share:Q", title="share of the truth", format=".1%")],
    )
    text = (
        base.transform_filter(f"datum.share >= 0.01 && width > {24 * len(order)}")
        .mark_text(fontSize=11, aria=False)
        .encode(
            text=alt.Text("percent:N"),
            color=alt.condition("datum.share > 0.6", alt.value("var(--paper)"), alt.value(INK)),
        )
        .transform_calculate(percent="format(100 * datum.share, '.0f')")
    )
    return _finish(
        alt.layer(cell, text).add_params(_signal("method")),
        "Confusion matrix of the chosen line of the table: share of the pixels of each true class that are predicted "
        "as each class. The largest confusions are listed below it.",
        height=LINE * len(order) + 20,
    )


def label_of(part: Summary | Row) -> str:
    """What a line of the table is called where it is chosen."""
    return f"{part.method}, {part.labels_train} labels" if part.labels_train else part.method


def short(value: Any) -> str:
    """A knob's value in a few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def to_json(tree: Any) -> str:
    """JSON that a browser reads (no NaN) and that cannot end the script element it stands in."""
    return json.dumps(_finite(tree), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _finite(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    if isinstance(tree, float):
        return float(f"{tree:.5g}") if math.isfinite(tree) else None
    return tree


def _scale(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Places of values between 0 and 1, and where to write which value."""
    if not is_numeric(values):
        names = sorted({short(value) for value in values})
        at = {name: index / max(1, len(names) - 1) if len(names) > 1 else 0.5 for index, name in enumerate(names)}
        return [at[short(value)] for value in values], [(place, name) for name, place in at.items()]
    curve = math.log if is_logarithmic(values) else float
    low, high = curve(min(values)), curve(max(values))
    places = [(curve(value) - low) / (high - low) for value in values]
    distinct = dict(sorted(zip(places, values, strict=True)))
    if len(distinct) <= 5 and all(isinstance(value, int) for value in values):
        return places, [(place, short(value)) for place, value in distinct.items()]
    ends = [(0.0, min(values)), (1.0, max(values))]
    middle = math.exp((low + high) / 2) if curve is math.log else (low + high) / 2
    return places, [(place, f"{value:.3g}") for place, value in [*ends, (0.5, middle)]]


def _folded(columns: Sequence[str], name: str) -> alt.Chart:
    return (
        alt.Chart(alt.NamedData(CURVES))
        .transform_filter("datum.training == training")
        .transform_fold(list(columns), as_=[name, "value"])
        .transform_filter("datum.value > 0")
        .add_params(_signal("training"))
    )


def _signal(name: str) -> alt.Parameter:
    return alt.param(name=name, value="")


def _values(data: Sequence[Mapping[str, Any]]) -> alt.Data:
    return alt.Data(values=list(data))


def _finish(chart: Any, description: str, height: Any) -> Chart:
    tree = chart.properties(width="container", height=height, description=description).to_dict()
    return tree | {"config": CONFIG}
