"""The command ``captum-unioncam``.

Exit codes: 0 if all went well, 2 for bad options or input (one line on stderr), 3 if an
evaluation ended but some images or methods failed, 130 after Ctrl-C. Files are written
whole or not at all.

A command is a dataclass of its options and a module with a ``run`` function, which is
imported when the command runs: help and wrong options do not wait for torch.
"""

import importlib
import sys
from collections.abc import Sequence

from captum_unioncam.cli.parser import parse
from captum_unioncam.errors import UserError

PROGRAM = "captum-unioncam"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    try:
        command, options = parse(PROGRAM, arguments)
        module = importlib.import_module(f"captum_unioncam.cli.{command}")
        return module.run(options) or 0
    except UserError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return 130
