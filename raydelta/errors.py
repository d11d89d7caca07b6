"""The exceptions that users see as a message instead of a traceback, and text that is safe to show."""


class UserError(ValueError):
    """Something the user can mend: the message names the file or field, the rule, and what to do."""


class TrainingError(RuntimeError):
    """The training cannot go on: a loss is not finite."""


def printable(text: str) -> str:
    """The text for a terminal: what is not printable is written as an escape, as a terminal would obey it."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
