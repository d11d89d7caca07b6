"""The command line. Thin: every command is a plain function elsewhere (but ``doctor``), imported only when it runs.

In: the words of the user. Out: calls of the other rooms, their results in words, an exit code.
"""

from raydelta.cli.main import app, main

__all__ = ["app", "main"]
