"""The exceptions that users see as a message instead of a traceback."""


class UserError(ValueError):
    """Something the user can mend: the message names the file or field, the rule, and what to do."""


class TrainingError(RuntimeError):
    """The training cannot go on: a loss is not finite."""
