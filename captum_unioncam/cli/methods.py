"""``captum-unioncam methods``: the table of all methods."""

from typing import Any

from captum_unioncam.evaluation.methods import methods_table


def run(given: dict[str, Any]) -> None:
    """Prints the table."""
    print(methods_table())
