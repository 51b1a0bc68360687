"""The command ``captum-unioncam``.

Exit codes: 0 if all went well, 2 if it could not do what it was asked for (one line on
stderr), 3 if it ended but some images or methods failed, or have a metric that is
undefined everywhere, 130 after Ctrl-C. Files are written whole or not at all.
Standard output holds the result alone; what libraries print goes to stderr. With
``CAPTUM_UNIONCAM_TRACEBACK=1`` in the environment, an error shows where it is from.

A command is a dataclass of its options and a module with a ``run`` function, which is
imported when the command runs: help and wrong options do not wait for torch.
"""

import os
from collections.abc import Sequence

PROGRAM = "captum-unioncam"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    try:
        # Imported here, so that Ctrl-C meanwhile is like any other.
        from captum_unioncam.cli.running import run

        return run(PROGRAM, arguments)
    except KeyboardInterrupt as error:
        from captum_unioncam.cli.terminal import write_error

        hint = f"; {error}" if f"{error}" else ""
        if os.environ.get("RANK", "0") == "0":  # one of those that torchrun started
            write_error(f"\n{PROGRAM}: interrupted{hint}")
        return 130
