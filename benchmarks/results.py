"""The tables in docs/results.md, made from a table.json of `raydelta tune`.

    python -m benchmarks.results docs/results/TABLE.json [--authors] [--write docs/results.md]

Prints Markdown, or writes it between the two marks of a file. With --authors it is the small table beside the authors'
figures, from `raydelta tune authors`. A test checks that the file still agrees with the JSON.
"""

import argparse
import json
from pathlib import Path

from raydelta.results.differences import format_difference
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


def main() -> None:
    """Print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--authors", action="store_true")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    name, markdown = "results", ""
    if arguments.authors:
        name, markdown = "authors", format_authors(arguments.table)
    else:
        markdown = format_markdown(arguments.table)
    if arguments.write is None:
        print(markdown)
        return
    text, end = arguments.write.read_text(), END.format(name)
    before, _, rest = text.partition(f"<!-- {name}:")
    after = rest.partition(end)[2]
    begin = BEGIN.format(name, arguments.table.as_posix())
    arguments.write.write_text(f"{before}{begin}\n{markdown}\n{end}{after}")


def format_authors(path: Path | None) -> str:
    """The expert as it is → unguided → guided: the authors' figures and ours, each with its ratio to the first.

    Args:
        path: a table.json; None: ours are not measured.
    """
    parts = [Summary(**part) for part in json.loads(path.read_text())["summary"]] if path is not None else []
    ours = {(part.method, part.labels_train): part for part in parts if part.split == "test" and part.domain == "real"}
    budgets = sorted({labels for method, labels in ours if method == "guided"})
    start = ours.get(("synthetic only", 0))
    head = ["", "the authors, Cityscapes", *(f"ours, {budget} labels" for budget in budgets)]
    lines = [head, ["---"] * len(head)]
    for method, theirs in AUTHORS.items():
        if method == "taught" and not budgets:
            continue
        cells = [STEPS[method], f"{theirs:.1f} ({theirs / 12.8:.1f} ×)" if theirs is not None else ""]
        for budget in budgets:
            part = ours.get((method, budget)) or ours.get((method, 0))
            cells.append(f"{_figure(part)} ({part.miou / start.miou:.1f} ×)" if part and start else "")
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def format_markdown(path: Path) -> str:
    """A row per method: test mIoU and the difference to joint training at each label budget, unseen sequence, cost.

    Differences are paired by seed, with their 95 % interval.
    """
    parts = [Summary(**part) for part in json.loads(path.read_text())["summary"]]
    whole = {(part.method, part.labels_train): part for part in parts if part.split == "test"}
    unseen = {(part.method, part.labels_train): part for part in parts if part.split.startswith("test ")}
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
            cells += [_figure(part), _difference(part)]
        last = max(own)
        cells += [_figure(unseen.get((method, last))), f"{own[last].device_hours:.2f}"]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _figure(part: Summary | None) -> str:
    if part is None:
        return ""
    return f"{part.miou:.1f}" + (f" ± {part.deviation:.1f}" if part.deviation is not None else "")


def _difference(part: Summary | None) -> str:
    if part is None or "joint training" not in part.against:
        return ""
    return format_difference(*part.against["joint training"], part.seeds)


if __name__ == "__main__":
    main()
