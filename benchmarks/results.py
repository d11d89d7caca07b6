"""The table in docs/results.md, made from a table.json of `raydelta tune`.

    python -m benchmarks.results docs/results/TABLE.json [--write docs/results.md]

Prints Markdown, or writes it between the two marks of a file. A test checks that the file still agrees with the JSON.
"""

import argparse
import json
from pathlib import Path

from raydelta.results.differences import format_difference
from raydelta.results.table import Summary

BEGIN, END = "<!-- results: {} -->", "<!-- end of results -->"


def main() -> None:
    """Print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    markdown = format_markdown(arguments.table)
    if arguments.write is None:
        print(markdown)
        return
    text = arguments.write.read_text()
    before, _, rest = text.partition("<!-- results:")
    after = rest.partition(END)[2]
    begin = BEGIN.format(arguments.table.as_posix())
    arguments.write.write_text(f"{before}{begin}\n{markdown}\n{END}{after}")


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
