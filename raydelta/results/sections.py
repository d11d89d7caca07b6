"""The sections of a report: from the rows of the table, trials and curves to what the template shows."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from raydelta.errors import UserError
from raydelta.progress import clock
from raydelta.recipes import family_of
from raydelta.results import charts
from raydelta.results.charts import REFERENCE, label_of, short
from raydelta.results.differences import Lead, format_difference, lead_of
from raydelta.results.importance import rank_knobs, varied_knobs
from raydelta.results.label_curve import advise
from raydelta.results.lead import add_lead, format_time
from raydelta.results.page import Choice, Grid, Line, Page, TrainingCurve
from raydelta.results.recommend import ORACLE, Recommendation, recommend
from raydelta.results.row import Row
from raydelta.results.sweep import Trial, best_of
from raydelta.results.table import Summary, pretrained_note, spread_of, summarise
from raydelta.training.curve import CURVE, Metrics, losses_of, read_curve

POINTS = 60  # of a curve, at most; reports between them are gathered
CONFUSIONS = 5  # named for each line of the table


def add_failures(page: Page, trials: Sequence[Trial]) -> None:
    """What failed, for the top of the page."""
    for number, trial in enumerate(trials, start=1):
        if trial.error is not None:
            page.failures.append({"what": f"Trial {number}", "error": trial.error, "settings": _settings(trial)})


def add_table(page: Page, rows: Sequence[Row]) -> None:
    """Lead, figures, tables, advice, classes and confusions, from the rows of the table."""
    main = next((row.split for row in rows if row.domain == "real"), None)
    if main is None:
        return
    summaries, found = _sorted(summarise(rows)), recommend(rows)
    splits = dict.fromkeys(part.images_of for part in summaries)
    shown = [part for part in summaries if part.images_of == main]
    tested = [row for row in rows if row.images_of == main]
    for split in dict.fromkeys((main, *splits)):
        page.tables.append(_table([part for part in summaries if part.images_of == split], rows, found))
    page.joint = any(part.method == charts.REFERENCE for part in shown)
    page.charts["methods-chart"] = charts.methods_chart(shown, tested)
    unseen = [part for part in summaries if part.domain == "real" and part.split.startswith(f"{main} ")]
    add_lead(page, found, shown, tested, unseen)
    _add_methods(page, found, shown, tested)
    _add_advice(page, shown, tested)
    _add_classes(page, shown, tested)


def choose_shown(rows: Sequence[Row]) -> list[Row]:
    """The rows whose models the gallery shows: the recommended and the guided one, at their first seed; else the
    highest."""
    real = [row for row in rows if row.stage is not None and row.domain == "real"]
    best = recommend(rows).overall
    chosen = [row for row in real if best is not None and row.stage == best.stage and row.method == best.method][:1]
    guided = [row for row in real if row.method == "guided"]
    if guided:
        chosen.append(max(guided, key=lambda row: (row.labels_train, -row.seed)))
    chosen = chosen or sorted(real, key=lambda row: (row.method == ORACLE, -row.miou))[:1]
    return list({row.stage: row for row in chosen}.values())


def add_trials(page: Page, trials: Sequence[Trial]) -> None:
    """The sweep: parallel coordinates, importance, and all trials as a table."""
    if not trials:
        return
    scored = [trial for trial in trials if trial.miou is not None]
    knobs = varied_knobs(trials)
    rows = [
        [
            str(number),
            *(short(trial.overrides.get(knob, "")) for knob in knobs),
            "" if trial.miou is None else f"{trial.miou:.1f}",
            str(trial.step),
            clock(trial.device_seconds),
            trial.state,
        ]
        for number, trial in enumerate(trials, start=1)
    ]
    best = best_of(trials)
    page.trials = Grid(
        caption="Trials of the sweep, mIoU on the validation labels",
        columns=["trial", *knobs, "mIoU %", "steps", "device time", "state"],
        lines=[Line(row, "best" if trial is best else "") for row, trial in zip(rows, trials, strict=True)],
    )
    page.scored = len(scored)
    failed = len(page.failures)
    page.facts.append(("trials", f"{len(trials)}" + (f", {failed} failed" if failed else "")))
    if best is not None:
        page.facts.append(("best trial, validation mIoU", f"{best.miou:.1f} %"))
    if len(scored) > 1 and knobs:
        page.charts["trials-chart"] = charts.trials_chart(trials)
    try:
        page.charts["importance-chart"] = charts.importance_chart(rank_knobs(trials))
    except UserError as error:
        page.no_importance = f"Nothing to say yet: {error}."


def trial_trainings(trials: Sequence[Trial]) -> list[TrainingCurve]:
    """The trainings of the sweep that have reported something."""
    return [
        TrainingCurve(f"translator/trial {number}", f"trial {number}, {trial.state}: {_settings(trial)}", trial.curve)
        for number, trial in enumerate(trials, start=1)
        if trial.curve
    ]


def row_trainings(rows: Sequence[Row], runs: Path) -> list[TrainingCurve]:
    """The trainings behind the rows of the table."""
    stages = {row.stage: row for row in rows if row.stage is not None and row.start and row.method != "synthetic only"}
    return [
        TrainingCurve(
            f"{'translator' if stage.startswith('translator-') else row.method}/{stage}",
            f"{label_of(row)}, seed {row.seed}",
            read_curve(runs / Path(stage).name / CURVE),
        )
        for stage, row in stages.items()
    ]


def add_curves(page: Page, trainings: Sequence[TrainingCurve]) -> None:
    """The curves, gathered into few points, and a table of where the time went."""
    known = [training for training in trainings if training.reports]
    if not known:
        return
    # The translator is what a run is about; the expert's mIoU is on synthetic images, and on another scale.
    chosen = max(known, key=lambda each: (each.id.startswith("translator/"), each.reports[-1].get("miou") or 0))
    terms: dict[str, None] = {}
    phases: dict[str, None] = {}
    page.trainings, page.chosen_training = known, chosen.id
    lines = []
    for training in known:
        whole: dict[str, float] = defaultdict(float)
        for report in _gather(training.reports):
            losses = losses_of(report)
            spent = {name: value for name, value in report.items() if name.startswith("seconds_")}
            terms |= dict.fromkeys(losses)
            phases |= dict.fromkeys(spent)
            for name, value in spent.items():
                whole[name] += value
            point = {"training": training.id, "step": report["step"], "miou": report.get("miou")}
            page.curves.append(point | losses | spent)
        last = training.reports[-1]
        lines.append((training, last, dict(whole)))
    page.charts["miou-curves"] = charts.miou_curves()
    page.charts["loss-curves"] = charts.loss_curves(list(terms))
    page.charts["phase-chart"] = charts.phase_chart(list(phases))
    page.training_table = Grid(
        caption="Trainings: how far, how good, and the share of the time in each phase",
        columns=["training", "steps", "validation mIoU %", "device time", *map(_phase, phases)],
        lines=[
            Line(
                [
                    training.label,
                    f"{last['step']} of {last['steps']}",
                    _number(last.get("miou")),
                    clock(last.get("device_seconds", 0.0)),
                    *(f"{whole.get(name, 0.0) / (sum(whole.values()) or 1):.1%}" for name in phases),
                ]
            )
            for training, last, whole in lines
        ],
    )


FAMILIES = {"frozen": "The expert stays as it is", "retrained": "The expert may be retrained"}
COMPARISON = "For comparison"


def group_of(method: str) -> str:
    """The heading of a row's group: its family, or that it is only for comparison."""
    return COMPARISON if method == ORACLE or "shuffled labels" in method else FAMILIES[family_of(method)]


def _sorted(summaries: Sequence[Summary]) -> list[Summary]:
    """Group by group, the highest mIoU first."""
    order = [*FAMILIES.values(), COMPARISON]
    return sorted(summaries, key=lambda part: (order.index(group_of(part.method)), -part.miou))


def _table(summaries: Sequence[Summary], rows: Sequence[Row], found: Recommendation) -> Grid:
    means = list(rows[0].means)
    joint = any(REFERENCE in part.against for part in summaries)
    oracle = any(part.oracle_share is not None for part in summaries)
    scored = any(row.validation is not None for row in rows)
    recommended = [(part.method, part.labels_train) for part in (found.frozen, found.retrained) if part is not None]
    lines = []
    for part in summaries:
        group = part.of(rows)
        chosen = (part.method, part.labels_train) in recommended
        name = f"{part.marked} (recommended)" if chosen else part.marked
        cells = [name, part.shown, f"{part.labels_train} + {part.labels_val}", str(part.seeds)]
        cells += [spread_of([row.means[name] for row in group]) for name in means]
        if joint:
            against = part.against.get(REFERENCE)
            cells.append("" if against is None else format_difference(*against, part.seeds))
        if oracle:
            cells.append("" if part.oracle_share is None else f"{part.oracle_share:.0f} %")
        if scored:
            values = [row.validation for row in group if row.validation is not None]
            cells.append(spread_of(values) if values else "")
        mark = "best" if chosen else "reference" if part.method == REFERENCE else ""
        lines.append(Line([*cells, format_time(part.device_hours)], mark, group_of(part.method)))
    columns = ["method", "mIoU %", "labels + validation", "seeds", *means]
    columns += ["against joint training [95 % interval]"] * joint
    columns += ["of the oracle"] * oracle + ["validation mIoU %"] * scored
    first, note = summaries[0].of(rows)[0], pretrained_note(rows)
    return Grid(
        caption=f"Split {first.images_of}, {first.images} images: mean and standard deviation over the seeds"
        + (f"; {note}" if note else ""),
        columns=[*columns, "device time"],
        lines=lines,
    )


def _add_methods(page: Page, found: Recommendation, shown: Sequence[Summary], tested: Sequence[Row]) -> None:
    names = [found.overall.method] if found.overall is not None else ["guided"]
    chosen = max(shown, key=lambda part: (part.method in names, part.method != ORACLE, part.labels_train, part.miou))
    for part in shown:
        joint = [other for other in shown if other.method == REFERENCE and other.labels_train == part.labels_train]
        reference = label_of(joint[0]) if joint else ""
        signals = {"method": label_of(part), "name": part.method, "reference": reference}
        page.choices.append(Choice(label_of(part), signals, part is chosen, _confusions(part.of(tested))))


def _add_advice(page: Page, shown: Sequence[Summary], tested: Sequence[Row]) -> None:
    measured: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for row in tested:
        measured[row.method].append((row.labels_train, row.miou))
    several = {name: points for name, points in measured.items() if len({labels for labels, _ in points}) > 1}
    if several:
        page.charts["budget-chart"] = charts.budget_chart(shown)
    reasons = []
    for name, points in several.items() or list(measured.items())[:1]:
        try:
            page.advice.append((name, f"{advise(points)}."))
        except UserError as error:
            reasons.append(str(error))
    if not page.advice:
        page.no_advice = f"There is no advice yet: {reasons[0]}. This measures enough:"


def _add_classes(page: Page, shown: Sequence[Summary], tested: Sequence[Row]) -> None:
    classes = list(tested[0].per_class)
    found: dict[str, list[tuple[str, float | None, float | None]]] = {}
    for part in shown:
        group = part.of(tested)
        line: list[tuple[str, float | None, float | None]] = []
        for name in classes:
            values = [value for row in group if (value := row.per_class[name]) is not None]
            line.append((name, mean(values) if values else None, stdev(values) if len(values) > 1 else None))
        found[label_of(part)] = line
    page.charts["class-chart"] = charts.class_chart(found)
    page.class_table = Grid(
        caption="IoU of each class in percent, mean over the seeds; –: neither in labels nor in predictions",
        columns=["method", *classes],
        lines=[Line([name, *(_number(iou) for _, iou, _ in line)]) for name, line in found.items()],
    )
    leads = {label_of(part): lead for part in shown if (lead := _lead(part, shown, tested)) is not None}
    if leads:
        page.class_leads = Grid(
            caption="Lead over joint training with as many labels in points of IoU, paired by seed",
            columns=["method", "all classes", "without the best class", *classes],
            lines=[
                Line([name, *map(_signed, (lead.whole, lead.without_best, *map(lead.classes.get, classes)))])
                for name, lead in leads.items()
            ],
        )
    confusions = {label_of(part): _sum(part.of(tested)) for part in shown}
    known = {name: matrix for name, matrix in confusions.items() if matrix}
    if known:
        page.charts["confusion-chart"] = charts.confusion_chart(known, classes)


def _lead(part: Summary, shown: Sequence[Summary], tested: Sequence[Row]) -> Lead | None:
    """The lead of a line of the table over joint training with as many labels."""
    if part.method in (REFERENCE, ORACLE):
        return None
    joint = [other for other in shown if other.method == REFERENCE and other.labels_train == part.labels_train]
    return lead_of(part.of(tested), joint[0].of(tested)) if joint else None


def _signed(points: float | None) -> str:
    return "–" if points is None else f"{points:+.1f}"


def _confusions(group: Sequence[Row]) -> list[str]:
    """The largest shares of a class's pixels that are taken for another, in words."""
    matrix, classes = _sum(group), list(group[0].per_class)
    shares = [
        (pixels / sum(line), classes[truth], classes[predicted])
        for truth, line in enumerate(matrix)
        for predicted, pixels in enumerate(line)
        if pixels and truth != predicted
    ]
    largest = sorted(shares, reverse=True)[:CONFUSIONS]
    return [f"{100 * share:.0f} % of {truth} is taken for {predicted}" for share, truth, predicted in largest]


def _sum(group: Sequence[Row]) -> list[list[int]]:
    """The confusion matrix of several seeds together; empty if one has none."""
    matrices = [row.confusion for row in group]
    if not all(matrices):
        return []
    return [[sum(cells) for cells in zip(*lines, strict=True)] for lines in zip(*matrices, strict=True)]


def _gather(curve: Sequence[Metrics]) -> list[Metrics]:
    """At most ``POINTS`` reports: of several, the last one with the seconds of all."""
    size = -(-len(curve) // POINTS)
    gathered = []
    for start in range(0, len(curve), size):
        part = curve[start : start + size]
        names = {name for report in part for name in report if name.startswith("seconds_")}
        gathered.append(part[-1] | {name: sum(report.get(name, 0.0) for report in part) for name in sorted(names)})
    return gathered


def _settings(trial: Trial) -> str:
    return ", ".join(f"{name} {short(value)}" for name, value in trial.overrides.items())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _phase(name: str) -> str:
    return name.removeprefix("seconds_")
