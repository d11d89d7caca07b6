"""``raydelta report``: everything that is known of a run, gathered into one HTML file that needs nothing else.

A run is a sweep's directory or a training's, finished or not: the page shows what there is, and says what is missing
and which command brings it.
"""

import functools
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from pydantic import BaseModel

from raydelta.errors import UserError
from raydelta.parsing import read_json_file
from raydelta.recipes import METHODS, RECIPES, short_name
from raydelta.results import sections
from raydelta.results.charts import CURVES, to_json
from raydelta.results.gallery import draw_gallery_here
from raydelta.results.label_curve import sum_up
from raydelta.results.lead import add_next
from raydelta.results.page import Gallery, Page, TrainingCurve
from raydelta.results.recommend import recommend
from raydelta.results.row import Row
from raydelta.results.runs import resolve_run
from raydelta.results.sweep import RUN, read_sweep, read_trials
from raydelta.results.table import read_table
from raydelta.storage.files import read_text, shown, write_atomically
from raydelta.training import checkpoint
from raydelta.training.curve import CURVE, read_curve
from raydelta.training.job import Job, check_trust, find_job, read_job
from raydelta.training.stage import read_stage
from raydelta.version import __version__

PAGE = "report.html"
RENEW = "The same raydelta tune again renews it, and trains nothing again."

Draw = Callable[[Mapping[str, Job]], Gallery]


def report(run: str | Path, trust: bool = False) -> Path:
    """Write ``report.html``, all that is known of a run in one file that needs no network; where it is.

    Args:
        run: directory or name of a sweep or of a training, finished or not, or ``latest``.
        trust: open its data sets also at addresses that no command of yours has named.

    Raises:
        UserError: the directory is no run, or one that this version cannot read.
    """

    def draw(jobs: Mapping[str, Job]) -> Gallery:
        for job in jobs.values():
            check_trust(job, trust)
        return draw_gallery_here(jobs)

    return write_report(resolve_run(run), draw)


def write_report(run: Path, draw: Draw = draw_gallery_here) -> Path:
    """Write ``report.html`` into the directory of a sweep or a training, and say where.

    Args:
        draw: makes the gallery of finished trainings, given by name.

    Raises:
        UserError: the directory is no run, or one that this version cannot read.
    """
    run = run.resolve()
    unfinished = run.parent / "unfinished" / run.name
    if any((run / name).exists() for name in (RUN, "trials.json", "best.yaml", "sweep")):
        page = _sweep_page(run, draw)
    elif (run / "stage.json").exists():
        page = _training_page(run, draw)
    elif run.parent.name == "unfinished" and run.is_dir():
        page = _unfinished_page(run)
    elif unfinished.is_dir():
        run, page = unfinished, _unfinished_page(unfinished)
    else:
        raise UserError(
            f"{shown(run)}: neither a sweep nor a training of raydelta, finished or not; name its directory"
        )
    page.lead += _headroom(run)
    write_atomically(run / PAGE, render(page))
    return run / PAGE


def _headroom(run: Path) -> list[str]:
    """What ``raydelta select --headroom`` has found for this run, if it was asked."""
    try:
        return [str(finding) for finding in read_json_file(run / "headroom.json")["findings"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        return ["headroom.json is damaged: the same raydelta select --headroom again renews it."]


def render(page: Page) -> str:
    """The page as HTML. All text is escaped but the drawing library's."""
    environment = Environment(loader=PackageLoader("raydelta.results"), autoescape=True)
    environment.filters["as_json"] = to_json
    gallery = page.gallery
    return environment.get_template("report.html").render(
        page=page,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        version=__version__,
        views=_views(gallery) if gallery else [],
        worst=Counter(picture.readings[0].worst for picture in gallery.pictures).most_common() if gallery else [],
        charts_json=Markup(to_json(page.charts)),
        data_json=Markup(to_json({CURVES: page.curves})),
        bundle=Markup(_bundle()),
    )


def _views(gallery: Gallery) -> list[str]:
    """The names of a picture's views as the page shows them: with the model's name where there are several."""
    several = len(gallery.models) > 1
    names = [
        f"{view}, {model}" if several else view
        for model, reading in zip(gallery.models, gallery.pictures[0].readings, strict=True)
        for view in reading.views
    ]
    return ["real", *names, "truth"]


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    import altair
    import vl_convert

    version = altair.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return script.replace("</script", "<\\/script")


def _sweep_page(run: Path, draw: Draw) -> Page:
    sweep, trials = read_sweep(run), read_trials(run)
    page = Page(title=f"Sweep {run.name.removeprefix('tune-')}")
    if sweep is None:
        page.missing.append(f"The command and the search space: an older version did not write them down. {RENEW}")
    if trials and not (run / "trials.json").exists():
        ended = sum(trial.state != "unfinished" for trial in trials)
        page.missing.append(
            f"The rest of the sweep: {ended} of the {len(trials)} trials that have begun have ended. It goes on with "
            "the same command and --resume."
        )
    rows = _read_rows(run, page)
    if not (run / "table.json").exists():
        page.missing.append("Table, classes and gallery: the run has not come so far yet, or was stopped.")
    sections.add_failures(page, trials)
    sections.add_table(page, rows)
    if sweep and sweep.space.replay and rows:
        page.lead += sum_up(sweep.space.replay, sweep.space.table.methods, rows)
    sections.add_trials(page, trials)
    trainings = sections.trial_trainings(trials)
    if sweep:
        expert = read_curve(run.parent / sweep.expert / CURVE)
        trainings.append(TrainingCurve(f"expert/{sweep.expert}", "expert", expert))
    sections.add_curves(page, [*trainings, *sections.row_trainings(rows, run.parent)])
    _add_gallery(page, partial(_jobs_of, run, sections.choose_shown(rows)), draw)
    if rows:
        recommended = recommend(rows).overall
        add_next(page, run, recommended.method if recommended is not None else None)
    best = run / "best.yaml"
    if sweep:
        page.commands.append(("The whole run", sweep.command))
    if best.exists():
        again = ["raydelta", "train", "translator", "--runs", shown(run.parent), "--config", shown(best)]
        page.commands.append(("The best trial again", shlex.join(again)))
        page.files.append(("best.yaml: the config of the best trial", read_text(best)))
    if sweep:
        page.files += [("The search space", _yaml(sweep.space)), ("The config under all trials", _yaml(sweep.config))]
    page.commands.append(("This page again", shlex.join(["raydelta", "report", shown(run)])))
    return page


def _training_page(run: Path, draw: Draw) -> Page:
    stage, job = read_stage(run), read_job(run)
    assert stage is not None
    page = Page(title=run.name)
    curve = read_curve(run / CURVE)
    if not curve:
        page.missing.append("Its curve: an older version kept only the last report of a training.")
    if not (run / "table.json").exists():
        page.missing.append(f"Its test table: {shlex.join(['raydelta', 'evaluate', shown(run)])} writes it.")
    rows = _read_rows(run, page)
    sections.add_table(page, rows)
    sections.add_curves(page, [TrainingCurve(f"{job.kind}/0", run.name, curve or [stage["metrics"]])])
    _add_gallery(page, lambda: {f"this {job.kind}": job}, draw)
    _add_training_commands(page, run, job.kind, run / "checkpoint" / "config.yaml")
    return page


def _unfinished_page(run: Path) -> Page:
    """Of a training that has not ended: its working directory has its curve and its checkpoints."""
    page = Page(title=f"{run.name}, unfinished")
    curve = read_curve(run / CURVE)
    done = (
        f"{curve[-1]['step']} of {curve[-1].get('steps', '?')} steps are done"
        if curve
        else "it has not reported anything"
    )
    page.missing.append(
        f"The end of this training: {done}. The command that began it goes on from its last checkpoint."
    )
    kind = run.name.rpartition("-")[0]
    sections.add_curves(page, [TrainingCurve(f"{kind}/0", run.name, curve)])
    checkpoints = checkpoint.list_checkpoints(run)
    _add_training_commands(page, run, kind, checkpoints[0] / "config.yaml" if checkpoints else None)
    return page


def _add_training_commands(page: Page, run: Path, kind: str, config: Path | None) -> None:
    if config is not None and config.exists():
        runs = run.parent.parent if run.parent.name == "unfinished" else run.parent
        command = ["raydelta", "train", short_name(kind), "--runs", shown(runs), "--config", shown(config)]
        page.commands.append(("The training again", shlex.join(command)))
        page.files.append(("The config", read_text(config)))
    page.commands.append(("This page again", shlex.join(["raydelta", "report", shown(run)])))


def _read_rows(run: Path, page: Page) -> list[Row]:
    """The rows of the table, if there is one; what they lack is said on the page."""
    if not (run / "table.json").exists():
        return []
    try:
        rows = read_table(run)
    except UserError:
        page.missing.append(f"The table: table.json is damaged, or an older version wrote it. {RENEW}")
        return []
    if rows and all(row.confusion is None for row in rows):
        page.missing.append(
            "Confusion matrix, gallery, and the curves of what stands in the table: an older version did not keep what "
            f"they need. {RENEW}"
        )
    return rows


def _jobs_of(run: Path, rows: Sequence[Row]) -> dict[str, Job]:
    """Name → the job behind a row of a sweep's table.

    Raises:
        UserError: a training is gone.
    """
    jobs = {}
    for row in rows:
        several = row.method in METHODS and RECIPES[METHODS[row.method].kind].members
        stage = run.parent / Path(row.stage or "").name
        jobs[row.method] = find_job(run, row.method) if several else read_job(stage)
    return jobs


def _add_gallery(page: Page, jobs_of: Callable[[], Mapping[str, Job]], draw: Draw) -> None:
    try:
        jobs = jobs_of()
        page.gallery = draw(jobs) if jobs else None
    except UserError as error:  # the data set or the training is not where it was
        page.missing.append(f"The gallery: {error}")


def _yaml(model: BaseModel) -> str:
    return yaml.safe_dump(model.model_dump(mode="json", exclude_none=True), sort_keys=False)
