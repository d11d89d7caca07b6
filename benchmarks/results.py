"""The tables in docs/results.md, made from a table.json of `raydelta tune`.

    python -m benchmarks.results docs/results/TABLE.json [--as results|frozen|authors] [--write docs/results.md]

Prints Markdown, or writes it between the two marks of a file: all rows (results), those that keep the expert against
the unguided translator (frozen), or the small table beside the authors' figures (authors); the last two from `raydelta
tune authors`. A test checks that the file still agrees with the JSON.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from raydelta.results.differences import format_difference, lead_of
from raydelta.results.row import Row
from raydelta.results.table import Summary

BEGIN, END = "<!-- {}: {} -->", "<!-- end of {} -->"
AUTHORS = {"synthetic only": 12.8, "unguided": 20.5, "guided": 36.3, "taught": None}
"""mIoU on Cityscapes in percent, from the authors' summary; taught is ours."""
STEPS = {
    "synthetic only": "the expert on photographs as they are",
    "unguided": "through an unguided CycleGAN",
    "guided": "through the guided one",
    "taught": "through the taught one",
}
BESIDE = "unguided"
"""What rows that keep the expert are compared with."""


def main() -> None:
    """Print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--as", dest="name", choices=FORMATS, default="results")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    name, markdown = arguments.name, FORMATS[arguments.name](arguments.table)
    if arguments.write is None:
        print(markdown)
        return
    text, end = arguments.write.read_text(), END.format(name)
    before, _, rest = text.partition(f"<!-- {name}:")
    after = rest.partition(end)[2]
    begin = BEGIN.format(name, arguments.table.as_posix())
    arguments.write.write_text(f"{before}{begin}\n{markdown}\n{end}{after}")


def format_authors(path: Path) -> str:
    """The expert as it is → unguided → guided: the authors' figures and ours, each with its ratio to the first."""
    whole, unseen = _by_row(path)
    budgets = sorted({labels for method, labels in whole if method == "guided"})
    head = ["", "the authors, Cityscapes"]
    for budget in budgets:
        head += [f"ours, {budget} labels", "… unseen drive"]
    lines = [head, ["---"] * len(head)]
    for method, theirs in AUTHORS.items():
        cells = [STEPS[method], f"{theirs:.1f} ({theirs / 12.8:.1f} ×)" if theirs is not None else ""]
        for budget in budgets:
            for parts in (whole, unseen):
                part, start = parts.get((method, budget)) or parts.get((method, 0)), parts.get(("synthetic only", 0))
                cells.append(f"{_figure(part)} ({part.miou / start.miou:.1f} ×)" if part and start else "")
        lines.append(cells)
    return _table(lines)


def format_frozen(path: Path) -> str:
    """A row per method and budget: test mIoU, its difference to the unguided translator paired by seed, and that lead
    without the class that carries most of it; the same on the unseen drive."""
    rows = [Row(**row) for row in json.loads(path.read_text())["rows"]]
    head = ["method", "test", "against unguided", "… without its best class"]
    lines = [[*head, "unseen drive", *head[2:], "device-hours"]]
    lines.append(["---"] * len(lines[0]))
    whole, unseen = _by_row(path)
    for (method, labels), part in whole.items():
        cells = [f"{method} ({labels} labels)" if labels else method]
        for parts in (whole, unseen):
            own, other = parts.get((method, labels)), parts.get((BESIDE, 0))
            lead = lead_of(own.of(rows), other.of(rows)) if own and other and own is not other else None
            carried = f"{lead.without_best:+.1f} ({lead.best})" if lead else ""
            cells += [_figure(own), _difference(own, BESIDE), carried]
        lines.append([*cells, f"{part.device_hours:.2f}"])
    return _table(lines)


def format_markdown(path: Path) -> str:
    """A row per method: test mIoU and the difference to joint training at each label budget, unseen sequence, cost.

    Differences are paired by seed, with their 95 % interval.
    """
    whole, unseen = _by_row(path)
    budgets = sorted({part.labels_train for part in whole.values() if "joint training" in part.against})
    head = ["method", "none, or as named"]
    for budget in budgets:
        head += [f"{budget} labels", "against joint"]
    head += ["unseen sequence", "device-hours"]
    lines = [head, ["---"] * len(head)]
    for method in dict.fromkeys(name for name, _ in whole):
        own = {labels: part for (name, labels), part in whole.items() if name == method}
        other = [labels for labels in own if labels not in (0, *budgets)]
        name = f"{method} ({other[0]} labels)" if other else method
        cells = [name, _figure(own.get(0) or own.get(other[0] if other else -1))]
        for budget in budgets:
            part = own.get(budget)
            cells += [_figure(part), _difference(part, "joint training")]
        last = max(own)
        cells += [_figure(unseen.get((method, last))), f"{own[last].device_hours:.2f}"]
        lines.append(cells)
    return _table(lines)


FORMATS: dict[str, Callable[[Path], str]] = {
    "results": format_markdown,
    "frozen": format_frozen,
    "authors": format_authors,
}


def _by_row(path: Path) -> tuple[dict[tuple[str, int], Summary], dict[tuple[str, int], Summary]]:
    """The lines on the photographs of the test split and on its unseen sequence, by method and labels."""
    parts = [
        part for part in map(Summary.model_validate, json.loads(path.read_text())["summary"]) if part.domain == "real"
    ]
    whole = {(part.method, part.labels_train): part for part in parts if part.split == "test"}
    return whole, {(part.method, part.labels_train): part for part in parts if part.split.startswith("test ")}


def _table(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _figure(part: Summary | None) -> str:
    if part is None:
        return ""
    return f"{part.miou:.1f}" + (f" ± {part.deviation:.1f}" if part.deviation is not None else "")


def _difference(part: Summary | None, other: str) -> str:
    if part is None or other not in part.against:
        return ""
    return format_difference(*part.against[other], part.seeds)


if __name__ == "__main__":
    main()
