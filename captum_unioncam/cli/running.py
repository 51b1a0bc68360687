"""Runs a command, and turns whatever goes wrong into one line and an exit code."""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import fields

from captum_unioncam.cli.line import command_line
from captum_unioncam.cli.malloc import keep_freed_memory
from captum_unioncam.cli.options import COMMANDS
from captum_unioncam.cli.parser import parse
from captum_unioncam.cli.terminal import Outcome, unwritable, write_error, write_out
from captum_unioncam.errors import UserError, is_known_to_all, one_line, printable

TRACEBACK = "CAPTUM_UNIONCAM_TRACEBACK"
WRONG = 2


def run(program: str, arguments: Sequence[str] | None) -> int:
    """Runs the command and returns its exit code.

    Raises:
        KeyboardInterrupt: After Ctrl-C.
        SystemExit: After the help or the version.
    """
    names: set[str] = set()
    try:
        try:
            command, given = parse(program, arguments)
        except SystemExit:
            write_out("")  # the help may still be in the buffer
            raise
        except OSError as error:  # of writing the help, in Python 3.10
            raise unwritable(error) from error
        names = {field.name for field in fields(COMMANDS[command].options)}
        keep_freed_memory()
        _find_modules_of_the_user()
        # Libraries print too, such as torch.hub when it downloads.
        with redirect_stdout(sys.stderr):
            module = importlib.import_module(f"captum_unioncam.cli.{command}")
            outcome: Outcome = module.run(given, command_line(arguments))
        if outcome.err:
            write_error(outcome.err)
        write_out(outcome.out)
        return outcome.code
    except Exception as error:
        # Importing an extension module may turn Ctrl-C into an ImportError.
        if any(isinstance(cause, KeyboardInterrupt) for cause in _causes(error)):
            raise KeyboardInterrupt from error
        if os.environ.get(TRACEBACK):
            write_error("".join(traceback.format_exception(error)).rstrip())
        if _is_for_this_process(error):
            write_error(f"{program}: error: {_message(error, names)}")
        return WRONG


def _find_modules_of_the_user() -> None:
    """Lets options name modules in the working folder, as `python -m` would."""
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.append(folder)  # at the end: it hides no installed module


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, and what it was raised from or in the handling of."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _message(error: Exception, names: Collection[str]) -> str:
    """Returns an error in one line."""
    if isinstance(error, UserError):
        return as_typed(f"{error}", names)
    kind, reason = type(error).__name__, one_line(error)
    shown = kind if reason == kind else f"{kind}: {reason}"
    return printable(
        f"{shown} (this is unexpected; {TRACEBACK}=1 in the environment shows where it "
        "is from)"
    )


def as_typed(message: str, names: Collection[str]) -> str:
    """Returns a message whose subject is an option as it is typed, not as in Python.

    Args:
        message (str): Such as "`num_images` must be positive".
        names (Collection[str]): The options of the command, as in Python.
    """
    subject = re.match(r"`(\w+)`", message)
    if subject is None or subject[1] not in names:
        return message
    return f"--{subject[1].replace('_', '-')}{message[subject.end() :]}"


def _is_for_this_process(error: Exception) -> bool:
    """Returns whether this process tells of an error, of those that torchrun started.

    The first one tells of those that all know of. What is wrong before they know each
    other, such as the command line, is wrong in all processes of a machine.
    """
    rank = os.environ.get("RANK", "0")
    if is_known_to_all(error):
        return rank == "0"
    return not isinstance(error, UserError) or os.environ.get("LOCAL_RANK", rank) == "0"
