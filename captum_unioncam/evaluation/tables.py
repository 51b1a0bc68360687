"""The tables of numbers of a report."""

from collections.abc import Collection, Mapping
from typing import Any

from captum_unioncam.evaluation.comparison import Comparison, Difference, Leaders
from captum_unioncam.evaluation.document import Column, Table
from captum_unioncam.evaluation.metrics import METRICS
from captum_unioncam.evaluation.statistics import Estimate, MapCounts, Summary

MAP_COLUMNS = ("constant maps", "maps not finite")

Columns = Mapping[str, Column]


def column_of(name: str) -> Column:
    """Returns how the registry's metric of a name is shown, or else any other."""
    if name not in METRICS:
        return Column(name)
    metric = METRICS[name]
    return Column(metric.title, metric.better, 2 if "%" in metric.title else 4)


def summary_table(
    summary: Summary, leaders: Mapping[str, Leaders], columns: Columns
) -> Table:
    """Returns the means alone, a row a method; see :attr:`.Leaders.marked` for bold."""
    rows = [
        (method, *(_mean(values[name], column) for name, column in columns.items()))
        for method, values in summary.items()
    ]
    header = ("method", *(column.heading for column in columns.values()))
    return Table(header, rows, bold=_marked(list(summary), leaders, columns, 1))


def brief_table(report: Mapping[str, Any]) -> Table:
    """Returns the summary of a report, what report.json holds, under short names."""
    metrics, best = report["metrics"], report["comparisons"]["to_best"]
    columns = {name: column_of(name) for name in metrics}
    rows, bold = [], set()
    for y, method in enumerate(report["methods"]):
        means = [report["results"][method][name]["mean"] for name in metrics]
        texts = [
            "n/a" if mean is None else f"{mean:.{columns[name].decimals}f}"
            for name, mean in zip(metrics, means, strict=True)
        ]
        rows.append((method, *texts))
        bold |= {
            (y, 1 + x) for x, n in enumerate(metrics) if method in best[n]["marked"]
        }
    notes = [f" ({c.better})" if c.better else "" for c in columns.values()]
    names = [f"{name}{note}" for name, note in zip(metrics, notes, strict=True)]
    return Table(("method", *names), rows, bold=frozenset(bold))


def means_table(
    summary: Summary,
    maps: Mapping[str, MapCounts],
    columns: Columns,
    leaders: Mapping[str, Leaders],
    variants: Mapping[str, str] | None = None,
) -> Table:
    """Returns means with their errors, a row a method, or a variant by its name too."""
    labels = list(summary if variants is None else variants)
    first = [(m,) if variants is None else (variants[m], m) for m in labels]
    cells = [
        tuple(_cell(summary[m][name], column) for name, column in columns.items())
        + (f"{maps[m].constant}", f"{maps[m].broken}")
        for m in labels
    ]
    left = 1 if variants is None else 2
    return Table(
        ("variant", "method")[-left:]
        + tuple(column.heading for column in columns.values())
        + MAP_COLUMNS,
        [names + values for names, values in zip(first, cells, strict=True)],
        left,
        _marked(labels, leaders, columns, left),
    )


def differences_table(comparison: Comparison, columns: Columns, images: int) -> Table:
    """Returns each method minus the reference; bold where the interval leaves 0 out."""
    rows = []
    bold = set()
    for y, (method, values) in enumerate(comparison.differences.items()):
        rows.append(
            (method, *(_less(values[n], c, images) for n, c in columns.items()))
        )
        bold |= {(y, 1 + x) for x, name in enumerate(columns) if values[name].resolved}
    header = (f"minus {comparison.reference}", *(c.heading for c in columns.values()))
    return Table(header, rows, bold=frozenset(bold))


def _marked(
    labels: list[str], leaders: Mapping[str, Leaders], columns: Columns, left: int
) -> frozenset[tuple[int, int]]:
    """Returns the places of the methods to mark in the column of each metric."""

    def of(name: str) -> Collection[str]:
        return leaders[name].marked if name in leaders else ()

    return frozenset(
        (y, left + x)
        for x, name in enumerate(columns)
        for y, label in enumerate(labels)
        if label in of(name)
    )


def _mean(value: Estimate, column: Column) -> str:
    return "n/a" if value.mean is None else f"{value.mean:.{column.decimals}f}"


def _cell(value: Estimate, column: Column) -> str:
    """Returns a mean as text, such as "12.30 ± 0.41 (98, 2 NaN)"."""
    counts = [f"{value.n}"] if value.n else []
    counts += [f"{value.nan} NaN"] if value.nan else []
    note = f" ({', '.join(counts)})" if counts else ""
    text = _mean(value, column)
    if value.mean is not None and value.standard_error is not None:
        text += f" ± {value.standard_error:.{column.decimals}f}"
    return text + note


def _less(value: Difference, column: Column, images: int) -> str:
    """Returns a difference as text, such as "+1.20 [+0.30, +2.10], 63 % (98)"."""
    if value.mean is None:
        return "n/a"
    text = f"{value.mean:+.{column.decimals}f}"
    if value.low is not None and value.high is not None:
        low, high = (f"{end:+.{column.decimals}f}" for end in (value.low, value.high))
        text += f" [{low}, {high}]"
    if value.wins is not None:
        text += f", {100 * value.wins:.0f} %"
    return text + (f" ({value.n})" if value.n != images else "")
