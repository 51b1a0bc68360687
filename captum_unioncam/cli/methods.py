"""``captum-unioncam methods``: the table of all methods."""

from typing import Any

from captum_unioncam.cli.terminal import Outcome
from captum_unioncam.evaluation.lists import methods_table


def run(given: dict[str, Any], line: str) -> Outcome:
    """Returns the table."""
    return Outcome(f"{methods_table()}\n")
