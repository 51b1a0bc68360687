"""What the rows of an evaluation say: means, standard errors and failures.

Pure functions of rows; a value that is undefined (None, NaN or infinite) is counted
apart.
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from operator import mul
from typing import Any

import torch
from torch import Tensor

from captum_unioncam.evaluation.row import Row

# Of every row, beside its metrics.
COST = ("seconds", "forwards")


@dataclass(frozen=True)
class Estimate:
    """A mean over images, and how far it can be trusted.

    Attributes:
        mean (float or None): Mean of the finite values; None if there are none.
        n (int): Number of finite values.
        standard_error (float or None): Sample standard deviation (of n - 1 degrees of
            freedom) over the root of n; None if n < 2.
        nan (int): Number of values that are undefined: None, NaN or infinite.
    """

    mean: float | None
    n: int
    standard_error: float | None
    nan: int


Summary = Mapping[str, Mapping[str, Estimate]]


@dataclass(frozen=True)
class MapCounts:
    """How many maps of a method show nothing.

    Attributes:
        constant (int): Maps with one value everywhere.
        broken (int): Maps with a value that is NaN or infinite.
    """

    constant: int = 0
    broken: int = 0

    @property
    def none(self) -> bool:
        """Whether there are no such maps."""
        return not self.constant and not self.broken


def estimate(values: Iterable[float | None]) -> Estimate:
    """Returns the mean of values and its standard error, the same in any order.

    Args:
        values (Iterable[float or None]): None, NaN and infinities are counted apart.

    Examples::
        >>> estimate([1.0, 3.0, None])
        Estimate(mean=2.0, n=2, standard_error=1.0, nan=1)
    """
    values = list(values)
    finite = [v for v in values if v is not None and isfinite(v)]
    n = len(finite)
    mean = math.fsum(finite) / n if n else None
    error = None
    if mean is not None and n > 1:
        apart = [value - mean for value in finite]
        variance = math.fsum(map(mul, apart, apart)) / (n - 1)
        error = math.sqrt(variance / n)
    return Estimate(mean, n, error, len(values) - n)


def summarize(
    rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    """Returns the mean of each metric, and of the cost, for each method.

    Args:
        rows (Sequence[Row]): The runner's rows; those with an error are left out.
        methods (Sequence[str]): Labels of the methods, in the order of the report.
        metrics (Sequence[str]): Names of the metrics, in the order of the report.

    Returns:
        *dict* of an :class:`Estimate` for each method and each of ``metrics``,
        "seconds" and "forwards". A metric that a row lacks counts as NaN.

    Raises:
        ValueError: If a row is of a method that is not in ``methods``.

    Examples::
        >>> row = {"method": "unioncam", "metrics": {"drop": 10.0}, "seconds": 0.5}
        >>> summarize([row], ["unioncam"], ["drop"])["unioncam"]["drop"]
        Estimate(mean=10.0, n=1, standard_error=None, nan=0)
    """
    summary = {}
    for method, done in _by_method(rows, methods).items():
        values = [row["metrics"] for row in done]
        summary[method] = {
            name: estimate(value.get(name) for value in values) for name in metrics
        } | {name: estimate(row.get(name) for row in done) for name in COST}
    return summary


def count_maps(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, MapCounts]:
    """Returns how many maps of each method are constant, or not finite.

    Examples::
        >>> row = {"method": "gradcam", "constant_map": True, "broken_map": False}
        >>> count_maps([row], ["gradcam"])
        {'gradcam': MapCounts(constant=1, broken=0)}
    """
    return {
        method: MapCounts(
            constant=sum(row["constant_map"] for row in done),
            broken=sum(row["broken_map"] for row in done),
        )
        for method, done in _by_method(rows, methods).items()
    }


def list_undefined(summary: Summary, metrics: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the methods and metrics of which no value is defined, though some ran."""
    return [
        (method, name)
        for method, values in summary.items()
        for name in metrics
        if values[name].nan and not values[name].n
    ]


def mean_curves(
    rows: Sequence[Row], methods: Sequence[str]
) -> dict[str, dict[str, list[Estimate]]]:
    """Returns the mean curve of each kind and method, a point an :class:`Estimate`.

    Args:
        rows (Sequence[Row]): The runner's rows; those without a curve are left out.
        methods (Sequence[str]): Labels of the methods, in the order of the report.

    Returns:
        *dict* of the points for each kind, such as "insertion", and each method that
        has such curves.

    Raises:
        ValueError: If curves of one kind and method differ in length, or a row is of a
            method that is not in ``methods``.
    """
    kinds: dict[str, dict[str, list[Estimate]]] = {}
    for method, done in _by_method(rows, methods).items():
        curves: dict[str, array[float]] = {}  # one after the other
        lengths: dict[str, set[int]] = {}
        for row in done:
            for kind, curve in (row.get("curves") or {}).items():
                if curve:
                    curves.setdefault(kind, array("d")).extend(_floats(curve))
                    lengths.setdefault(kind, set()).add(len(curve))
        for kind, values in curves.items():
            if len(lengths[kind]) > 1:
                raise ValueError(
                    f"the {kind} curves of {method} must all have the same number of "
                    f"points, got {sorted(lengths[kind])}."
                )
            points = torch.frombuffer(values, dtype=torch.float64)
            found = _estimates(points.view(-1, lengths[kind].pop()))
            kinds.setdefault(kind, {})[method] = found
    return kinds


def _floats(values: Iterable[float | None]) -> "array[float]":
    """Returns values in float64, NaN where they are None."""
    try:
        return array("d", values)  # type: ignore[arg-type]
    except TypeError:
        return array("d", (math.nan if value is None else value for value in values))


def _estimates(values: Tensor) -> list[Estimate]:
    """Returns the mean of each column, (n, columns) of float64, as in :func:`estimate`.

    All at once: 50,000 images have millions of points.
    """
    finite = values.isfinite()
    counts = finite.sum(0)
    means = values.where(finite, 0).sum(0) / counts  # NaN where there are none
    apart = (values - means).where(finite, 0)
    errors = (apart.square().sum(0) / (counts - 1) / counts).sqrt()
    return [
        Estimate(
            mean if n else None,
            n,
            error if n > 1 else None,
            len(values) - n,
        )
        for n, mean, error in zip(
            counts.tolist(), means.tolist(), errors.tolist(), strict=True
        )
    ]


def list_failures(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the failures: their count, the count of each reason, and all of them.

    The reason is the error up to its details in parentheses.
    """
    failed = [row for row in rows if "error" in row]
    reasons = Counter(row["error"].split(" (", 1)[0] for row in failed)
    return {
        "count": len(failed),
        "by_reason": dict(reasons.most_common()),
        "list": [
            {name: row.get(name) for name in ("id", "method", "error")}
            for row in failed
        ],
    }


def _by_method(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, list[Row]]:
    """Returns the rows without an error of each method."""
    groups: dict[str, list[Row]] = {method: [] for method in methods}
    for row in rows:
        if "error" in row:
            continue
        if row["method"] not in groups:
            raise ValueError(
                f"`rows` must be of the methods {list(methods)}, got one of "
                f"{row['method']!r}; report it too, or leave its rows out."
            )
        groups[row["method"]].append(row)
    return groups
