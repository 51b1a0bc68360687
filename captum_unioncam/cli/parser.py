"""The command line's parser, generated from the dataclasses of the options."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field
from typing import Any, NoReturn

from captum_unioncam import __version__
from captum_unioncam._checks import check_text
from captum_unioncam._options import check_option, kind_of
from captum_unioncam.cli.options import COMMANDS
from captum_unioncam.errors import UserError


def parse(program: str, arguments: Sequence[str] | None) -> tuple[str, dict[str, Any]]:
    """Returns the command, and the options that were given.

    Raises:
        UserError: If the command line is wrong.
    """
    words = sys.argv[1:] if arguments is None else arguments
    given = vars(_parser(program, words).parse_args(arguments))
    # Positional arguments come as lists.
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return given.pop("command"), given


class _Parser(argparse.ArgumentParser):
    """Reports bad options like every other user error: in one line, with code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (try {self.prog} --help)")


def _parser(program: str, words: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=program,
        description="Class activation maps of image classifiers.",
        epilog="With CAPTUM_UNIONCAM_TRACEBACK=1 in the environment, an error shows "
        "where it is from. With CAPTUM_UNIONCAM_LEAVE_MALLOC=1, or any setting of "
        "glibc's malloc, the memory allocator is left as it is.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(
            name,
            help=command.help,
            description=command.description,
            allow_abbrev=False,
        )
        for field in dataclasses.fields(command.options):
            _add_option(subparser, field, words)
    return parser


def _add_option(
    parser: argparse.ArgumentParser, field: "Field[Any]", words: Sequence[str]
) -> None:
    """Adds the option that a field declares, for a command line of these words."""
    rules = field.metadata
    name = field.name.replace("_", "-")
    arguments: dict[str, Any] = {"help": _help(field), "default": argparse.SUPPRESS}
    if field.type is bool:
        arguments["action"] = "store_true"
    else:
        arguments["type"] = _reader(field)
        arguments["metavar"] = rules["metavar"] or name.upper()
    if rules["positional"]:
        parser.add_argument(field.name, nargs="*", **arguments)
    else:
        if rules["const"] is not None:
            arguments |= {"nargs": "?", "const": rules["const"]}
        needless = rules["unless"] is not None and _typed(rules["unless"]) in words
        required = field.default is dataclasses.MISSING and not needless
        parser.add_argument(_typed(field.name), required=required, **arguments)


def _typed(name: str) -> str:
    """Returns an option as it is typed."""
    return f"--{name.replace('_', '-')}"


def _help(field: "Field[Any]") -> str:
    """Returns the help of an option, with its choices and its default."""
    text = field.metadata["help"].replace("%", "%%")
    notes = []
    if field.metadata["choices"]:
        notes.append(f"one of {', '.join(field.metadata['choices'])}")
    if field.default is False:
        notes.append("default: off")
    elif field.default not in (None, dataclasses.MISSING):
        several = isinstance(field.default, tuple)
        default = ",".join(field.default) if several else field.default
        notes.append(f"default: {default}")
    return f"{text} ({'; '.join(notes)})" if notes else text


def _reader(field: "Field[Any]") -> Callable[[str], Any]:
    """Returns what reads an option's text, and refuses a wrong value."""
    kind = kind_of(field)

    def read(text: str) -> Any:
        if kind == tuple[str, ...] and not field.metadata["positional"]:
            return tuple(dict.fromkeys(name.strip() for name in text.split(",")))
        value: Any = text
        if kind == tuple[float, ...]:
            try:
                value = tuple(float(number) for number in text.split(","))
            except ValueError:
                message = f"must be numbers with commas, got {text!r}"
                raise argparse.ArgumentTypeError(message) from None
        elif kind in (int, float):
            try:
                value = kind(text)
            except ValueError:
                number = "a whole number" if kind is int else "a number"
                message = f"must be {number}, got {text!r}"
                raise argparse.ArgumentTypeError(message) from None
        try:
            if kind == tuple[str, ...]:
                check_text("value", value)
            check_option(field, value, "value")
        except (TypeError, ValueError) as error:
            message = f"{error}".removeprefix("`value` ").rstrip(".")
            raise argparse.ArgumentTypeError(message) from None
        return value

    return read
