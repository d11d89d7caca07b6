"""The page in a real browser: Debian's chromium, driven by Playwright. Where there is none, the last lines say so."""

import functools
import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raydelta.errors import UserError
from raydelta.results.charts import to_json
from raydelta.results.gallery import BUDGET
from raydelta.results.report import write_report
from raydelta.results.row import Row
from raydelta.results.table import write_table
from raydelta.training.curve import CURVE
from raydelta.training.job import Job
from tests.sweep import make_rows, make_sweep

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
EVIL = "<script>window.evil = 1</script>"

browser_test = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (package chromium)")


@pytest.fixture(scope="module")
def sweep(translator: Job) -> Path:
    """A sweep of 50 trials, two of them failed, on a data set with a name that no page may run."""
    rows = [
        row.model_copy(update={"stage": translator.directory.name}) if row.method == "guided" else row
        for row in make_rows(real=f"street {EVIL}")
    ]
    directory = make_sweep(translator.directory.parent, trials=50, failed=2, rows=rows, real=f"/data/{EVIL}")
    trials = json.loads((directory / "trials.json").read_text())
    trials[0]["error"] += EVIL
    (directory / "trials.json").write_text(json.dumps(trials))
    return directory


@pytest.fixture(scope="module")
def page_file(sweep: Path) -> Path:
    return write_report(sweep)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


class Watched:
    """A page, what it wrote to the console and what it asked the network for."""

    def __init__(self, browser: Any, address: str, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(180_000)  # two busy cores
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url.partition(",")[0]))
        self.page.goto(address)
        charts = self.page.evaluate("Object.keys(JSON.parse(document.getElementById('charts').textContent)).length")
        self.page.wait_for_selector(f'html[data-drawn="{charts}"]')

    @property
    def beyond(self) -> set[str]:
        """What was asked for beside the file."""
        return set(self.asked) - {self.page.url, "data:image/webp;base64", "data:"}


@pytest.fixture
def watched(browser: Any, page_file: Path) -> Iterator[Watched]:
    opened = Watched(browser, page_file.as_uri(), viewport={"width": 1280, "height": 900})
    yield opened
    assert opened.said == []
    opened.context.close()


@browser_test
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (1280, "dark"), (390, "dark")])
def test_quiet_offline_fitting_and_accessible(
    browser: Any, page_file: Path, width: int, scheme: Any, tmp_path: Path
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    opened = Watched(browser, page_file.as_uri(), viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = opened.page
    assert page.locator(".chart svg").count() == 9
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.evil") is None
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", paper))) < 60) == (scheme == "dark")
    violations = Axe().run(page).response["violations"]
    assert [(found["id"], [node["html"][:200] for node in found["nodes"][:3]]) for found in violations] == []
    assert (opened.said, opened.beyond) == ([], set())
    opened.context.close()


@browser_test
def test_on_a_phone_the_sections_are_whole_and_stay_in_sight(browser: Any, page_file: Path) -> None:
    opened = Watched(browser, page_file.as_uri(), viewport={"width": 390, "height": 900})
    page = opened.page
    links = page.locator("nav a").all()
    boxes = [link.bounding_box() for link in links]
    assert len(boxes) >= 8 and all(box and box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
    links[-1].click()
    assert page.locator("nav").bounding_box()["y"] == 0
    opened.context.close()


@browser_test
def test_losses_are_folded_and_fill_the_page_once_opened(watched: Watched) -> None:
    page = watched.page
    assert page.locator("#loss-curves:visible").count() == page.locator("#phase-chart:visible").count() == 0
    page.locator("summary", has_text="Losses and timing").click()
    page.wait_for_function("() => document.querySelector('#loss-curves svg').clientWidth > 300")
    assert page.locator("#phase-chart svg").bounding_box()["width"] > 300


@browser_test
def test_what_comes_next_can_be_copied(watched: Watched) -> None:
    page = watched.page
    button = page.locator("#next .copy").first
    button.click()
    page.locator("#next .copy", has_text="Copied").wait_for()


@browser_test
def test_from_a_static_host(browser: Any, page_file: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(page_file.parent))
    handler.log_message = lambda *arguments: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened = Watched(browser, f"http://127.0.0.1:{server.server_port}/report.html")
        assert (opened.said, opened.beyond) == ([], set())
        opened.context.close()
        server.shutdown()


@browser_test
def test_the_keyboard_moves_dividers(watched: Watched) -> None:
    page = watched.page
    assert page.locator(".slide:visible").count() == 0
    page.select_option("#mode", "slider")
    page.locator(".shot .slide input").nth(1).focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    cuts = page.evaluate("[...document.querySelectorAll('.views')].map((v) => v.style.getPropertyValue('--cut'))")
    assert cuts[:3] == ["", "60%", ""]
    page.locator("#cut").focus()
    page.keyboard.press("Home")
    cuts = page.evaluate("[...document.querySelectorAll('.views')].map((v) => v.style.getPropertyValue('--cut'))")
    assert set(cuts) == {"0%"}
    page.select_option("#right", "error")
    assert page.locator('.view.right[data-view="error"]').count() == page.locator(".shot").count()


@browser_test
def test_the_gallery_shows_what_has_a_worst_class(watched: Watched) -> None:
    page = watched.page
    worst = page.locator("#worst option").nth(1)
    name, count = re.fullmatch(r"(.+) \((\d+)\)", worst.inner_text()).groups()  # type: ignore[union-attr]
    page.select_option("#worst", name)
    visible = page.locator(".shot:visible")
    assert visible.count() == int(count)
    assert {shot.get_attribute("data-worst") for shot in visible.all()} == {name}
    assert page.locator("#count").inner_text() == f"{count} shown"


@browser_test
def test_what_is_chosen_is_drawn(watched: Watched) -> None:
    page = watched.page
    bars = page.locator("#class-chart svg")
    before, lines = bars.inner_html(), page.locator("#trials-chart path[stroke^='var(--q']").count()
    page.locator('#classes select[data-choose="method"]').select_option("fine-tuned, 7 labels")
    page.wait_for_function("before => document.querySelector('#class-chart svg').innerHTML !== before", arg=before)
    assert page.locator('#labels select[data-choose="method"]').input_value() == "fine-tuned, 7 labels"
    assert page.locator("[data-method]:visible").get_attribute("data-method") == "fine-tuned, 7 labels"
    page.locator('input[data-signal="best"]').focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(300)
    assert page.locator("#trials-chart path[stroke^='var(--q']").count() < lines
    assert page.locator("#sweep output").first.inner_text() == "1"


@browser_test
def test_on_paper_there_are_all_views_and_no_controls(watched: Watched) -> None:
    page = watched.page
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator(".controls:visible").count() == page.locator("nav:visible").count() == 0
    assert page.locator(".shot").first.locator("img:visible").count() == 5
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"


def test_a_large_sweep_fits_five_megabytes(page_file: Path) -> None:
    text = page_file.read_text()
    pictures = sum(map(len, re.findall(r'src="(data:image/webp[^"]*)"', text)))
    assert 0 < pictures < BUDGET
    assert len(text.encode()) - pictures + BUDGET <= 5_000_000


def test_everything_is_on_the_page(page_file: Path) -> None:
    text = page_file.read_text()
    assert EVIL not in text and "&lt;script&gt;window.evil" in text
    assert text.index("2 failed") < text.index("What the same labels buy")
    assert "Use guided with 28 labels: " in text and "(80 % interval " in text and "% of the oracle" in text
    assert "If the expert has to stay as it is" in text and "If it may be retrained" in text
    assert f"raydelta predict {page_file.parent} photos/ --out masks --method guided" in text
    assert "12 min" in text, "device time"
    assert "more labels for +2 points" in text or "too far to say from this curve" in text
    assert "There is no advice yet" not in text and "Nothing to say yet" not in text
    assert "raydelta tune made" in text and "guidance.weight:" in text
    assert 'loading="lazy"' in text


def test_few_budgets_and_trials_say_what_is_missing(tmp_path: Path) -> None:
    text = write_report(make_sweep(tmp_path, trials=4, rows=make_rows(budgets=(7,), seeds=(0,)))).read_text()
    assert "advice needs at least 3 numbers of labels with 2 seeds each, not 1 with 1" in text
    assert "3 trials with a validation mIoU are too few to say" in text
    assert "One seed: differences of a few points may be chance" in text
    assert "How much more labels would give: not measured</summary>" in text, "what is empty is folded"
    assert "Which knob matters: too early to say</summary>" in text


def test_a_sweep_that_still_runs(tmp_path: Path) -> None:
    directory = make_sweep(tmp_path, trials=4, failed=0)
    for name in ("table.json", "trials.json", "best.yaml"):
        (directory / name).unlink()
    (directory / "sweep" / "ab_00002" / "result.json").unlink()
    text = write_report(directory).read_text()
    assert "1 of the 4 trials that have begun have ended" in text
    assert "the run has not come so far yet" in text
    assert "Training curves" in text and "Gallery</h2>" not in text


def test_a_run_of_an_older_version_says_so(tmp_path: Path) -> None:
    directory = make_sweep(tmp_path, trials=4, rows=make_rows(confusion=None))
    (directory / "run.json").unlink()
    text = write_report(directory).read_text()
    assert "an older version did not write them down. The same raydelta tune again renews it" in text
    assert "Confusion matrix, gallery, and the curves of what stands in the table: an older version" in text
    table = json.loads((directory / "table.json").read_text())
    for row in table["rows"]:
        del row["start"]
    (directory / "table.json").write_text(json.dumps(table))
    assert "table.json is damaged, or an older version wrote it" in write_report(directory).read_text()


def test_a_sweep_whose_data_is_gone_keeps_its_figures(tmp_path: Path) -> None:
    directory = make_sweep(tmp_path, trials=4, rows=make_rows(stage="translator-gone"))
    text = write_report(directory).read_text()
    assert "The gallery: " in text and "translator-gone" in text
    assert "Class by class" in text


def test_a_finished_training(translator: Job) -> None:
    text = write_report(translator.directory).read_text()
    assert "Training curves" in text and "Gallery</h2>" in text
    assert "raydelta evaluate" in text, "says how to get the table"
    assert f"{translator.directory}/checkpoint/config.yaml" in text
    (translator.directory / CURVE).unlink()
    assert "an older version kept only the last report" in write_report(translator.directory).read_text()


def test_an_unfinished_training(tmp_path: Path) -> None:
    working = tmp_path / "unfinished" / "translator-0123456789"
    working.mkdir(parents=True)
    assert "it has not reported anything" in write_report(working).read_text()
    (working / CURVE).write_text('{"step": 2, "steps": 8, "guidance": 1.0, "miou": NaN, "seconds_step": 1.0}\n')
    written = write_report(tmp_path / working.name)
    assert written.parent == working
    assert "2 of 8 steps are done" in written.read_text()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for run in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="neither a sweep nor a training of raydelta"):
            write_report(run)
    assert list(tmp_path.iterdir()) == []


def test_a_table_without_validation_labels_says_that_nothing_is_recommended(tmp_path: Path) -> None:
    text = write_report(make_sweep(tmp_path, trials=4, rows=make_rows(validation=None))).read_text()
    assert "No row is recommended: no row has a validation mIoU" in text
    assert "(recommended)" not in text and "What the same labels buy" in text
    assert "--method" not in text[text.index("Masks for your photographs") :][:400]


def test_a_table_of_an_expert_alone(tmp_path: Path) -> None:
    only: list[Row] = [row for row in make_rows(seeds=(0,)) if row.method == "synthetic only"]
    directory = make_sweep(tmp_path, trials=1, rows=only)
    write_table(directory, [row.model_copy(update={"domain": "synthetic"}) for row in only])
    assert "What the same labels buy" not in write_report(directory).read_text()


def test_json_in_a_page_is_json_and_ends_no_script() -> None:
    text = to_json({"a": float("nan"), "b": [1.23456789, float("inf")], "c": "</script>", "d": True})
    assert "<" not in text
    assert json.loads(text) == {"a": None, "b": [1.2346, None], "c": "</script>", "d": True}
