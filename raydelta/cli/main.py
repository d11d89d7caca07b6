"""The command line as a whole: all commands, and what becomes of errors, warnings and Ctrl-C."""

import errno
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from raydelta.cli import cluster, data, train, use
from raydelta.errors import UserError, printable
from raydelta.version import __version__

app = typer.Typer(
    help="Guided real-to-synthetic translation: how well N labels do, and which settings get there.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (train, use, cluster):
    app.add_typer(part.app)
app.add_typer(data.app, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"raydelta {__version__}")
        raise typer.Exit


@app.callback()
def raydelta(
    version: Annotated[
        bool, typer.Option("--version", metavar="", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; users' errors become one message and exit code 1, Ctrl-C becomes 130."""
    warnings.showwarning = _show_warning
    try:
        code = app(standalone_mode=False)  # typer returns the code of its Exit, 130 for Ctrl-C
    except UserError as error:
        _fail(f"error: {error}", 1)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the help is printed already
            sys.exit(error.exit_code)  # type: ignore[attr-defined]
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
            _fail(f"error: {error.format_message()}", error.exit_code)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # of any word that may be a path
            _fail(f"error: {str(error.filename)[:80]}…: no such file; the name is too long", 1)
        if type(error).__name__ == "TrainingError":
            _fail(f"error: {error}", 1)
        if type(error).__module__.split(".")[0] == "ray":
            _fail(f"error: Ray: {str(error).strip().splitlines()[-1]}; more in Ray's logs (named above)", 1)
        raise
    if code == 130:
        _fail("interrupted: finished stages are kept; the same command goes on from them (tune: with --resume)", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """One plain line of what concerns the user; what is for developers stays away."""
    if issubclass(category, UserWarning):
        sys.stderr.write(f"\nwarning: {printable(str(message))}\n")


def _fail(message: str, code: int) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"\n{printable(message)}\n")
    sys.stderr.flush()
    if "ray" in sys.modules:
        import ray

        ray.shutdown()
    os._exit(code)  # a thread that waits for Ray must not hold the exit up
