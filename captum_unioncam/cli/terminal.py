"""Standard output and error, which may be closed, full, or know few letters."""

import os
import sys
from contextlib import suppress
from typing import NamedTuple, TextIO

from captum_unioncam.errors import UserError, one_line


class Outcome(NamedTuple):
    """What a command shows at its end, and its exit code.

    Attributes:
        out (str): The result, for standard output.
        err (str): What else a person wants to know, for standard error.
        code (int): The exit code.
    """

    out: str = ""
    err: str = ""
    code: int = 0


def write_out(text: str) -> None:
    """Writes the result, and what is still in the buffer, to standard output.

    Raises:
        UserError: If it cannot be written.
    """
    stream = sys.stdout
    if stream is None:
        raise UserError("standard output is closed; open it, or redirect it to a file")
    try:
        stream.write(_in_its_letters(text, stream))
        stream.flush()
    except (OSError, ValueError) as error:  # a ValueError if it is closed
        raise unwritable(error) from error


def unwritable(error: Exception) -> UserError:
    """Gives standard output up, and returns what to tell the user."""
    _give_up(sys.stdout)
    return UserError(
        f"standard output cannot be written ({one_line(error)}); redirect it to a file"
    )


def write_error(text: str) -> None:
    """Writes lines to standard error, if that is possible."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        stream.write(_in_its_letters(f"{text}\n", stream))
        stream.flush()
    except (OSError, ValueError):
        _give_up(stream)


def _in_its_letters(text: str, stream: TextIO) -> str:
    """Returns text with escapes for what an encoding lacks, in place of an error."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _give_up(stream: TextIO) -> None:
    """Leads a stream to nowhere: Python would try to write it again at the end."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
