"""``captum-unioncam metrics``: the table of all metrics."""

from typing import Any

from captum_unioncam.evaluation.metrics import metrics_table


def run(given: dict[str, Any]) -> None:
    """Prints the table."""
    print(metrics_table())
