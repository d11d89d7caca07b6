"""A line of progress with an ETA: rewritten in place on a terminal, printed every few seconds in a log."""

import sys
import time

LOG_EVERY = 10.0
"""Seconds between two lines where output is no terminal."""


class Progress:
    """Progress of one stage on stderr. ``update`` may be called at any rate; it prints only now and then."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._terminal = sys.stderr.isatty()
        self._start = time.monotonic()
        self._last = -LOG_EVERY
        self._first_done: tuple[float, float] | None = None

    def __reduce__(self) -> tuple[type["Progress"], tuple[str]]:
        """Pickled without its clock: a copy that Ray Tune restores starts anew."""
        return Progress, (self.title,)

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show ``done`` of ``total`` and a note."""
        now = time.monotonic()
        if self._first_done is None:
            self._first_done = (now, done)
        if now - self._last < (0.2 if self._terminal else LOG_EVERY) and done < total:
            return
        self._last = now
        # The pace since the first update: what happened before it (start-up, a resume) says nothing about the rest.
        since, before = self._first_done
        pace = (done - before) / (now - since) if now > since else 0.0
        eta = f"ETA {clock((total - done) / pace)}" if pace > 0 and done < total else ""
        self._write(f"{self.title:<12} {done:g}/{total:g}  {note}  {eta}", end="")

    def finish(self, note: str) -> None:
        """Print the final line of the stage."""
        self._write(f"{self.title:<12} {note}  [{clock(time.monotonic() - self._start)}]", end="\n")

    def _write(self, line: str, end: str) -> None:
        if self._terminal:
            sys.stderr.write(f"\r\x1b[2K{line.rstrip()}{end}")
        else:
            sys.stderr.write(line.rstrip() + "\n")
        sys.stderr.flush()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
