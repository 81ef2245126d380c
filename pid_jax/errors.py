"""The error type for mistakes that a user can correct."""


class UserError(ValueError):
    """Raised for errors in the input, not in the code.

    The message is complete: it names the problem, its location (file and line for data, key for
    configurations, tensor name for checkpoints) and the remedy. Command lines print it without a
    traceback.
    """


class MissingData(UserError):
    """Raised if a source lacks the requested data, usually the file of a split."""
