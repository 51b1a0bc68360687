"""``captum-unioncam metrics``: the table of all metrics."""

from typing import Any

from captum_unioncam.cli.terminal import Outcome
from captum_unioncam.evaluation.lists import metrics_table


def run(given: dict[str, Any], line: str) -> Outcome:
    """Returns the table."""
    return Outcome(f"{metrics_table()}\n")
