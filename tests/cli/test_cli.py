import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

import raydelta
from raydelta.results.sweep import read_trials
from raydelta.version import __version__
from tests.data.test_formats import build
from tests.sweep import make_sweep
from tests.tiny import TINY_ARGUMENTS, kill_family

COMMAND = [sys.executable, "-m", "raydelta.cli"]


def run(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=400)
    assert result.returncode == expect, result.stdout + result.stderr
    return result


def interrupt_when(path_appears: str, folder: Path, *arguments: object, with_signal: int = signal.SIGINT) -> str:
    """Start a command, send it a signal when a file that matches appears below the folder, and return its stderr."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts background jobs, and with them these tests, deaf to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 200
    while not any(folder.glob(path_appears)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no {path_appears} below {folder}"
        time.sleep(0.05)
    if with_signal == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, with_signal)  # as a terminal does: the whole group
    _, errors = process.communicate(timeout=100)
    assert process.returncode == (130 if with_signal == signal.SIGINT else -signal.SIGKILL), errors
    return errors


def test_a_running_cluster_is_found_and_used(tmp_path: Path) -> None:
    ray = Path(sys.executable).with_name("ray")
    session = Path(tempfile.mkdtemp(prefix="ray"))  # sockets below it: their paths must be short
    log = (tmp_path / "ray.log").open("w")
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    start = [ray, "start", "--head", "--block", "--num-cpus=3", "--port=0", f"--temp-dir={session}"]
    start += ["--dashboard-port=0", "--disable-usage-stats"]
    cluster = subprocess.Popen(start, stdout=log, stderr=log, start_new_session=True, env=environment)
    try:
        deadline = time.monotonic() + 90
        while "runtime started" not in (tmp_path / "ray.log").read_text():
            assert cluster.poll() is None, (tmp_path / "ray.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        address = re.search(r"--address='([^']+)'", (tmp_path / "ray.log").read_text())
        assert address
        os.environ["RAY_ADDRESS"] = address.group(1)
        errors = run("train", "expert", "--runs", tmp_path / "runs", *TINY_ARGUMENTS).stderr
        assert "1 node, 3 CPUs" in errors
        assert str(session) in errors
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        kill_family(cluster)
        shutil.rmtree(session, ignore_errors=True)


def test_a_cluster_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "127.0.0.1:1" in run("train", "expert", expect=1).stderr


def test_help_is_a_table_of_contents_and_imports_no_torch() -> None:
    text = run("--help").stdout
    for command in ("data", "train", "evaluate", "select", "tune"):
        assert command in text
    code = "import raydelta.cli, sys; assert not {'torch', 'ray', 'pyarrow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("arguments", [[], ["data"], ["train"]])
def test_a_bare_command_shows_its_help_and_no_empty_error(arguments: list[str]) -> None:
    result = run(*arguments, expect=2)
    assert "Usage:" in result.stdout and "error" not in result.stderr


def test_version_short_help_and_completion() -> None:
    told = subprocess.run([sys.executable, "-m", "raydelta", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"raydelta {__version__}\n"
    assert "--resume" in run("tune", "-h").stdout
    assert "--install-completion" in run("-h").stdout


def test_init_writes_settings_that_tune_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(raydelta.__file__).parents[1]))
    assert "raydelta tune" in run("init").stdout
    assert "is there already" in run("init", expect=1).stderr
    file = tmp_path / "raydelta.yaml"
    file.write_text(file.read_text().replace("budget: 14", "budgte: 14"))
    errors = run("tune", expect=1).stderr
    assert f"settings from {file}" in errors and "did you mean labels.budget?" in errors


def test_flags_do_not_pretend_to_take_a_value() -> None:
    lines = [line for line in run("runs", "--help").stdout.splitlines() if "--" in line]
    assert [line for line in lines if "bool" in line and "--help" not in line] == []


def test_runs_lists_compares_and_prunes(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "runs", trials=2)
    leftover = tmp_path / "runs" / "unfinished" / "translator-x"
    leftover.mkdir(parents=True)
    place = ("--runs", tmp_path / "runs")
    assert sweep.name in run("runs", *place).stdout
    listed = json.loads(run("runs", *place, "--json").stdout)
    assert {each["name"] for each in listed} == {sweep.name, "translator-x"}
    assert "the settings are the same" in run("runs", "compare", "latest", sweep.name, *place).stdout
    assert "name two" in run("runs", sweep.name, *place, expect=1).stderr
    assert "translator-x" in run("runs", "--prune", "--yes", *place).stdout
    assert not leftover.exists() and sweep.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "guidance.wieght=1"], "did you mean guidance.weight?"),
        (["tune", "trials=0"], "trials = 0"),
        (["evaluate", "x" * 5000], "no such file; the name is too long"),
        (["tune", "table.methods=[guided, magic]"], "magic"),
        (["report", "nowhere"], "nowhere: no such run"),
        (["tune", "guidance.wieght=1"], "unknown field 'guidance.wieght'; allowed here: weight, start, scale, batch"),
        (["tune", "laptop", "labels"], "one search space at a time"),
        (["tune", "translator.batch=0"], "translator.batch = 0"),
        (["tune", "--preset", "huge"], "preset 'huge' does not exist"),
        (["tune", "segmenter.weights=gone/dino.safetensors"], "gone/dino.safetensors: no such file or folder"),
        (["train", "expert", "expert.model=gone.pt2"], "expert.model = gone.pt2: no such file or folder"),
        (["train", "expert", "steps"], "'steps' is not of the form"),
        (["evaluate", "nowhere"], "nowhere: no such run"),
        (["select", "nowhere", "--count", "3"], "nowhere: no such run"),
        (["select", "nowhere", "--count", "3", "--regions", "8by4"], "--regions 8by4: expected 2 whole numbers"),
        (["data", "check", "nowhere"], "not a data set"),
        (["data", "import", "nowhere", "target"], "nowhere"),
    ],
)
def test_bad_input_is_one_message_and_no_traceback(arguments: list[str], message: str, tmp_path: Path) -> None:
    errors = run(*arguments, expect=1).stderr
    assert message in errors
    assert "Traceback" not in errors


def test_simulate_check_show_and_a_damaged_shard(tmp_path: Path) -> None:
    target = tmp_path / "set"
    run("data", "simulate", target, "--train", 6, "--test", 2, "--width", 64, "--height", 32)
    assert "no problem found" in run("data", "check", target).stdout
    told = json.loads(run("data", "check", target, "--json").stdout)
    assert told["problems"] == [] and told["splits"]["train"]["images"] == 6
    assert sum(told["splits"]["test"]["pixels"].values()) == 2 * 64 * 32
    pictures = run("data", "show", target, "--out", tmp_path).stdout.split()
    assert len(pictures) == 3
    assert all(Path(picture).stat().st_size > 1000 for picture in pictures)
    shard = next(target.glob("train-*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert shard.name in run("data", "check", target, expect=1).stdout
    assert shard.name in json.loads(run("data", "check", target, "--json", expect=1).stdout)["problems"][0]


def test_import_with_a_new_split_and_other_classes(tmp_path: Path) -> None:
    source = build("cityscapes", tmp_path / "source")
    arguments = ["data", "import", source, tmp_path / "set", "--split", "train=0.5,test=0.5", "--taxonomy", "camvid11"]
    printed = run(*arguments, "--size", "32x16", "--workers", 1).stdout
    assert "void, as camvid11 has no such class: " in printed
    assert "parking" in printed
    report = run("data", "check", tmp_path / "set").stdout
    assert "train: 1 images, 1 labelled" in report
    assert "test: 1 images, 1 labelled" in report
    assert "(published 32.70%)" in report
    assert "expected names, or NAME=SHARE" in run(*arguments[:4], "--split", "train=most", expect=1).stderr


def test_simulation_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    arguments = ("data", "simulate", tmp_path / "set", "--train", 200, "--test", 0, "--width", 64, "--height", 32)
    errors = interrupt_when("set.partial/train-*.parquet", tmp_path, *arguments)
    assert "interrupted" in errors
    assert not (tmp_path / "set").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set.partial").glob("train-*.parquet")}
    run(*arguments)
    for name, written in kept.items():
        assert (tmp_path / "set" / name).stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_translator_is_trained_evaluated_and_photographs_are_chosen_with_it(tmp_path: Path) -> None:
    """Without faults: the next test interrupts all of it. Sibling: tests/cli/test_use.py."""
    settings = [*TINY_ARGUMENTS, "compute.workers=1", "expert.steps=2", "translator.steps=2"]
    translator = Path(run("train", "translator", "--runs", tmp_path, *settings).stdout.strip())
    assert len(list(tmp_path.glob("expert-*/stage.json"))) == 1
    table = run("evaluate", translator).stdout
    assert "guided" in table and "4 + 2" in table
    assert (translator / "table.json").exists()
    printed = run("select", translator, "--count", 3, "--strategy", "random", "--window", 1).stdout
    assert f"chosen       {translator / 'selection-random' / 'selection.csv'}" in printed
    assert "labels.budget=7" in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_expert_killed_and_resumed_then_translator_then_evaluation(tmp_path: Path) -> None:
    """The CPU end-to-end run: simulate → expert → kill → resume → translator → Ctrl-C → resume → evaluate."""
    settings = ["--runs", tmp_path, *TINY_ARGUMENTS, "compute.workers=1"]
    slow = [*settings, "expert.steps=300", "compute.report_every=10", "compute.checkpoint_every=10"]
    kept = "unfinished/*/checkpoint-*/meta.json"
    interrupt_when(kept, tmp_path, "train", "expert", *slow, with_signal=signal.SIGKILL)
    resumed = run("train", "expert", *slow)
    first_step = int(next(line for line in resumed.stderr.splitlines() if "/300" in line).split()[1].split("/")[0])
    assert first_step > 10, "it must go on from its checkpoint"
    expert = Path(resumed.stdout.strip())
    before = (expert / "stage.json").stat().st_mtime_ns

    guided = [*slow, "translator.steps=40"]
    errors = interrupt_when("unfinished/translator-*/checkpoint-*/meta.json", tmp_path, "train", "translator", *guided)
    assert "interrupted" in errors
    translator = Path(run("train", "translator", *guided).stdout.strip())
    assert (expert / "stage.json").stat().st_mtime_ns == before, "the expert is trained once"
    table = run("evaluate", translator).stdout
    assert "guided" in table
    assert "4 + 2" in table
    assert (translator / "table.json").exists()
    printed = run("select", translator, "--count", 3, "--strategy", "random", "--window", 1).stdout
    assert f"chosen       {translator / 'selection-random' / 'selection.csv'}" in printed
    assert "no cost      3 of them" in printed
    assert "then train   raydelta train translator --runs" in printed
    assert "labels.budget=7" in printed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    """Siblings: a stopped sweep goes on in tests/test_before.py, rungs are in tests/tuning/test_halving.py.

    Interrupted when two of four trials have ended for good and the other two went on from where they waited."""
    space = tmp_path / "space.yaml"
    search = {"guidance.weight": {"grid": [0.2, 0.4, 0.6, 0.8]}}
    halving = {"scheduler": "halving", "grace": 0.2, "reduction": 2, "trials": 1}
    space.write_text(yaml.safe_dump({"search": search, "table": {"methods": ["guided"]}} | halving))
    arguments = ["tune", space, "--runs", tmp_path, *TINY_ARGUMENTS, "translator.steps=100"]
    assert "interrupted" in interrupt_when("unfinished/translator-*/checkpoint-30", tmp_path, *arguments)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/stage.json")}
    assert "guided" in run(*arguments, "--resume").stdout
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    (directory,) = tmp_path.glob("tune-*")
    trials = sorted(read_trials(directory), key=lambda trial: trial.step)
    assert [trial.step for trial in trials] == [20, 20, 40, 100]
    first = [{report["step"]: report["miou"] for report in trial.curve} for trial in trials]
    assert max(first[0][20], first[1][20]) <= min(first[2][20], first[3][20])
    assert first[2][40] <= first[3][40]
