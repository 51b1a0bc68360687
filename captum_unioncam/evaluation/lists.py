"""The methods and the metrics as tables in Markdown, for the command and the README."""

from collections.abc import Iterable

from captum_unioncam.evaluation.methods import METHODS
from captum_unioncam.evaluation.metrics import METRICS


def methods_table() -> str:
    """Returns all methods as a table in Markdown, the README's."""
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
    """Returns all metrics as a table in Markdown, the README's."""
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


def markdown_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Returns a table in GitHub's Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
