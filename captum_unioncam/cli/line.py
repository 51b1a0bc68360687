"""The command line of a run, so that it can be run again."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import PurePath

MODULE = "captum_unioncam"


def command_line(arguments: Sequence[str] | None) -> str:
    """Returns the line that starts the command again, in the syntax of bash.

    Args:
        arguments (Sequence[str] or None): The words after the program; None for those
            of this process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    return " ".join([*_program(), *map(_quoted, words)])


def _program() -> list[str]:
    """Returns the words that start the program."""
    environment = os.environ
    if environment.get("TORCHELASTIC_RUN_ID") or environment.get("WORLD_SIZE"):
        machines = environment.get("GROUP_WORLD_SIZE", "1")
        each = environment.get("LOCAL_WORLD_SIZE", environment.get("WORLD_SIZE", "1"))
        several = [f"--nnodes={machines}"] if machines != "1" else []
        return ["torchrun", *several, f"--nproc-per-node={each}", "-m", MODULE]
    program = PurePath(sys.argv[0])
    if program.parts[-2:] == (MODULE, "__main__.py"):
        return ["python", "-m", MODULE]
    return ["captum-unioncam"]


def _quoted(word: str) -> str:
    r"""Returns a word as bash reads it, with escapes for what a line cannot show."""
    if word.isprintable():
        return shlex.quote(word)
    return f"$'{''.join(map(_escaped, word))}'"


def _escaped(character: str) -> str:
    if character in "'\\":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
