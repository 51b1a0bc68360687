"""Errors that a user can fix: the command prints them in one line, with exit code 2."""

REASON_LENGTH = 160


class UserError(ValueError):
    """A mistake that the user can fix; the message says how."""


class ConfigError(UserError):
    """An option has a wrong value."""


class DataError(UserError):
    """An image or a data set cannot be read."""


class ModelError(UserError):
    """A model, its weights or its layer cannot be loaded."""


def one_line(error: BaseException) -> str:
    """Returns the first line of an error, shortened."""
    text = getattr(error, "strerror", None) or f"{error}" or type(error).__name__
    line = text.splitlines()[0]
    if len(line) <= REASON_LENGTH:
        return line
    return f"{line[: REASON_LENGTH - 4]} ..."
