"""The one error type for mistakes that a user can mend."""


class UserError(ValueError):
    """Raised when the input, not the code, is at fault.

    The message stands alone: what was wrong, where (file and line for data, key for
    configurations, tensor name for checkpoints) and what to do about it. Command lines
    print it without a traceback.
    """


class MissingData(UserError):
    """Raised where a source lacks what was asked for: the file of a split, mostly."""
