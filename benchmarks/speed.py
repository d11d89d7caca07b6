"""All speed figures in one go: measure them, compare them with the committed ones, write the table in docs.

    python -m benchmarks.speed measure FOLDER      runs every benchmark, FOLDER/NAME.json each; about an hour and a half
    python -m benchmarks.speed check FOLDER        exit code 1 where a ratio is more than 15 % under the committed one
    python -m benchmarks.speed write docs/speed.md the table between its two marks, from docs/results/speed

Only ratios are compared: they were taken within one run, and absolute times say more of the machine than of the code.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMITTED = Path("docs/results/speed")
NAMES = (
    "step",
    "input",
    "evaluation",
    "predict",
    "paced",
    "first_mask",
    "sweep",
    "scaling",
    "trial_overhead",
    "rounds",
    "main_job",
)
OTHERWISE = {
    "main_job": ["main_job", "--warm"],
    "paced": ["predict", "--rounds", "0", "--images", "8", "--paced", "240"],
    "trial_overhead": ["trial_overhead", "--many", "1000"],
}
"""Module and arguments, where they are not the name alone."""

LOSS = 0.15
BEGIN, END = "<!-- speed -->", "<!-- end of speed -->"


def main() -> None:
    """Measure, check or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("measure", "check", "write"))
    parser.add_argument("path", type=Path)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="only these; default: all")
    options = parser.parse_args()
    if options.action == "measure":
        options.path.mkdir(parents=True, exist_ok=True)
        for name in options.names:
            module, *arguments = OTHERWISE.get(name, [name])
            target = str(options.path.resolve() / f"{name}.json")
            subprocess.run([sys.executable, "-m", f"benchmarks.{module}", "--json", target, *arguments], check=True)
    elif options.action == "check":
        losses = compare(read_all(COMMITTED), read_all(options.path))
        print("\n".join(losses) or f"no ratio is more than {LOSS:.0%} under the committed one")
        sys.exit(bool(losses))
    else:
        text = options.path.read_text()
        before, _, rest = text.partition(BEGIN)
        options.path.write_text(
            f"{before}{BEGIN}\n{format_markdown(read_all(COMMITTED))}\n{END}{rest.partition(END)[2]}"
        )


def read_all(folder: Path) -> dict[str, Any]:
    """The results in a folder by the name of their benchmark."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def compare(committed: dict[str, Any], measured: dict[str, Any]) -> list[str]:
    """A line for every ratio that lost too much, or that is not there any more; higher is better for all of them.

    A benchmark that was not run, or a ratio that one of the two machines cannot give (None), is not compared.
    """
    losses = []
    for name in committed.keys() & measured.keys():
        for ratio, before in committed[name].get("ratios", {}).items():
            if ratio not in measured[name]["ratios"]:
                losses.append(f"{name}: {ratio} is not measured any more")
                continue
            now = measured[name]["ratios"][ratio]
            if before is not None and now is not None and now < (1 - LOSS) * before:
                losses.append(f"{name}: {ratio} was {before:.2f} and is {now:.2f}")
    return sorted(losses)


def format_markdown(results: dict[str, Any]) -> str:
    """The figures with what is wanted of them."""
    step, inputs = results["step"], results["input"]["ratios"]
    guided = {key.rpartition("_")[2]: value for key, value in step["guided"].items()}
    memory = results["input"]["memory_gib"]
    grown = results["trial_overhead"]["memory_gib"]
    trials, job = results["trial_overhead"]["seconds_per_trial"], results["main_job"]
    scaling, evaluation, predicted = (results[name]["ratios"] for name in ("scaling", "evaluation", "predict"))
    first = results["first_mask"]["processor"]
    sweep = 1 / results["sweep"]["ratios"]["naive_by_sweep"]
    rows = [
        ("translator step against the plain one: bf16, compiled", step["ratios"]["compiled_bf16"], "×", "≥ 4"),
        ("… bf16", step["ratios"]["eager_bf16"], "×", ""),
        ("… fp32, compiled", step["ratios"]["compiled_fp32"], "×", "≥ 1.1"),
        ("… fp32", step["ratios"]["eager_fp32"], "×", ""),
        ("guided step against the unguided one, 1 labelled image", guided["1"], "×", "≤ 1.35"),
        ("… 8 labelled images, the default", guided["8"], "×", ""),
        ("Ray Data stream against a DataLoader, stored at 256×128", inputs["stream from 256x128"], "×", "≥ 1"),
        ("… stored at 1280×760", inputs["stream from 1280x760"], "×", "≥ 1"),
        ("input from memory, the default, against the same", inputs["memory from 256x128"], "×", "≥ 1"),
        ("waiting for the stream at 200 images/s", 100 * results["input"]["data_wait"], "%", "≤ 2"),
        ("memory of a stream, last of ten epochs against the second", memory[-1] / memory[1], "×", "1"),
        ("kornia's augmentation, share of a translator's step", job["augment_percent"]["translator"], "%", "≤ 5"),
        ("two workers on two cores against one", scaling["two_workers"], "×", "≥ 1.85"),
        ("… two trainings that share nothing", scaling["two_workers"] / scaling["two_workers_by_limit"], "×", ""),
        ("device time of the sweep against the naive loop", sweep, "×", "≤ 0.25"),
        ("each of a thousand trials beside its training", trials["plain function, of 1000"], "s", "≤ 1"),
        ("… memory at three quarters of them against a quarter", grown[2] / grown[0], "×", "1"),
        ("first training step after `raydelta tune`", job["seconds_to_first_step"], "s", "≤ 20"),
        ("evaluation against the bare networks", evaluation["evaluation"], "×", "≥ 0.9"),
        ("`raydelta predict` against them, photographs stored at 256×128", predicted["256x128"], "×", "≥ 0.9"),
        ("… stored at 1280×760", predicted["1280x760"], "×", "≥ 0.9"),
        (
            "… a network of 20 images/s in its stages on Ray, 1280×760",
            results["paced"]["ratios"]["paced"],
            "×",
            "≥ 0.95",
        ),
        ("processor time of `raydelta predict photo.jpg`, start included", first["predict"], "s", "≤ 5"),
        ("… of a process that only imports torch", first["import torch"], "s", ""),
        ("scoring photographs for selection (`combined`) against prediction", evaluation["combined"], "×", "≥ 0.9"),
        ("a round of labelling beside its training", results["rounds"]["overhead_seconds"], "s", "≤ 5 % of it"),
    ]
    lines = ["| figure | measured | wanted |", "| --- | --- | --- |"]
    for title, value, unit, wanted in rows:
        measured = "–" if value is None else f"{value:.3g} {unit}"
        lines.append(f"| {title} | {measured} | {wanted} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
