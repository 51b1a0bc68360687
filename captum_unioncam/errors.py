"""Errors that a user can fix: the command prints them in one line, with exit code 2."""

import unicodedata

REASON_LENGTH = 160


def printable(text: str) -> str:
    r"""Returns text in one line, which a terminal shows as it is.

    Escapes such as ``\x1b`` show control characters, line breaks, marks of direction
    and bytes that are no text, all of which the name of a file may hold.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c) else _escaped(c) for c in text)


def _is_shown(character: str) -> bool:
    # isprintable is False for all spaces but the usual one.
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class UserError(ValueError):
    """A mistake that the user can fix; the message says how, in one printable line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(f"{message}"))


class ConfigError(UserError):
    """An option has a wrong value."""


class DataError(UserError):
    """An image or a data set cannot be read."""


class ModelError(UserError):
    """A model, its weights or its layer cannot be loaded."""


def mark_known_to_all(error: BaseException) -> None:
    """Notes that all processes of a run know of an error: one of them tells of it."""
    error.known_to_all = True  # type: ignore[attr-defined]


def is_known_to_all(error: BaseException) -> bool:
    """Returns whether all processes of a run know of an error."""
    return getattr(error, "known_to_all", False)


def one_line(error: BaseException) -> str:
    """Returns the first line of an error that is not empty, shortened.

    A reason that names a long path is better made without the path: what is cut here is
    the end.
    """
    text = getattr(error, "strerror", None) or f"{error}"
    lines = [line.strip() for line in f"{text}".splitlines() if line.strip()]
    line = lines[0] if lines else type(error).__name__
    if len(line) <= REASON_LENGTH:
        return line
    return f"{line[: REASON_LENGTH - 4]} ..."
