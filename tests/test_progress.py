import io

import pytest

from raydelta import progress
from raydelta.progress import Progress, clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Watch:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr(progress, "time", watch)
    return watch


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (9.4, "0:09"), (59.7, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (36062, "10:01:02")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_log_gets_the_first_the_last_and_now_and_then_a_line(
    watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Progress("expert")
    for done in range(31):
        shown.update(done, 30, f"loss {done}")
        watch.now += 1
    shown.finish("mIoU 50")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == ["0/30", "10/30", "20/30", "30/30"]
    assert lines[1] == "expert       10/30  loss 10  ETA 0:20"
    assert lines[-1] == "expert       mIoU 50  [0:31]"
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_the_time_left_counts_from_the_first_update(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("translator")
    watch.now += 500
    shown.update(100, 200)
    watch.now += 20
    shown.update(110, 200)
    first, second = capsys.readouterr().err.splitlines()
    assert "ETA" not in first
    assert second.endswith("ETA 3:00")


def test_a_stage_that_stands_still_has_no_time_left(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("expert")
    for _ in range(2):
        shown.update(3, 10)
        watch.now += 60
    assert "ETA" not in capsys.readouterr().err


def test_two_updates_at_one_tick_of_the_clock(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress("data")
    shown.update(1, 2)
    shown.update(2, 2)
    assert "2/2" in capsys.readouterr().err


def test_a_terminal_gets_one_line_that_is_rewritten(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    shown = Progress("expert")
    for done in range(11):
        shown.update(done, 10)
        watch.now += 0.1
    shown.finish("done")
    text = terminal.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert 5 <= text.count("\r") <= 8
    assert "10/10" in text
