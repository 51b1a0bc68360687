"""The methods and the metrics as tables in Markdown, for the command and the pages."""

import inspect
from collections.abc import Iterable

from captum_unioncam.evaluation.methods import METHODS
from captum_unioncam.evaluation.metrics import METRICS


def methods_list() -> str:
    """Returns a line for each method: what it shows, and what that costs.

    Captum's own and the baselines are not among them.
    """
    rows = (
        (
            f"`{name}`",
            f"`{method.title}`",
            _first_line(method.attribution).rstrip("."),
            method.forwards.replace("*", "x"),
        )
        for name, method in METHODS.items()
        if method.attribution.__module__.startswith("captum_unioncam.attr")
    )
    return markdown_table(("name", "class", "shows", "forward passes"), rows)


def methods_table() -> str:
    """Returns all methods as a table in Markdown."""
    header = (
        "name",
        "class",
        "paper",
        "gradients",
        "forward passes",
        "deviations from the paper",
    )
    rows = (
        (
            f"`{name}`",
            f"`{method.title}`",
            f"[{method.paper}]({method.link})",
            "yes" if method.needs_gradients else "no",
            method.forwards.replace("*", "x"),
            method.deviations,
        )
        for name, method in METHODS.items()
    )
    return markdown_table(header, rows)


def metrics_table() -> str:
    """Returns all metrics as a table in Markdown."""
    header = ("name", "function", "measures", "better", "paper", "boxes")
    rows = (
        (
            f"`{name}`",
            f"`{metric.function_name}`",
            metric.meaning,
            metric.better,
            metric.paper,
            "needed" if metric.needs_boxes else "",
        )
        for name, metric in METRICS.items()
    )
    return markdown_table(header, rows)


def _first_line(documented: object) -> str:
    return (inspect.getdoc(documented) or "").partition("\n")[0]


def markdown_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Returns a table in GitHub's Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
