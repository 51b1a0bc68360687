"""Means, standard errors and failures: exact numbers by hand."""

import math
import random

import pytest
from reports import failure, row

from captum_unioncam.evaluation.statistics import (
    Estimate,
    estimate,
    list_failures,
    mean_curves,
    summarize,
)

NAN = math.nan


def test_an_estimate_by_hand():
    # Mean 10 / 4; squared distances 2.25 + 0.25 + 0.25 + 2.25 = 5; root of 5 / 3 / 4.
    values = [1.0, 2, None, 3, 4, NAN, math.inf]
    assert estimate(values) == Estimate(2.5, 4, math.sqrt(5 / 12), 3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], Estimate(None, 0, None, 0)),
        ([None, NAN], Estimate(None, 0, None, 2)),
        ([7], Estimate(7.0, 1, None, 0)),
        ([5.0, 5.0], Estimate(5.0, 2, 0.0, 0)),
    ],
)
def test_an_estimate_of_few_values(values, expected):
    assert estimate(values) == expected


def test_the_order_of_the_rows_changes_no_bit():
    random.seed(0)
    values = [random.gauss(0, 10 ** random.randint(-8, 8)) for _ in range(999)]
    shuffled = random.sample(values, len(values))
    assert sum(values) != sum(shuffled), "a plain sum depends on the order"
    assert estimate(values) == estimate(shuffled)


def test_summarize_is_by_method_and_leaves_failures_out():
    rows = [
        row(0, "a", drop=10.0, seconds=1.0, forwards=3),
        row(0, "b", drop=None),
        row(1, "a", drop=20.0, seconds=2.0, forwards=5),
        failure(1, "out of memory", "b"),
        row(2, "b"),  # it has no such value
        failure(2, "cannot be read"),
    ]
    summary = summarize(rows, ["b", "a"], ["drop"])
    assert list(summary) == ["b", "a"]
    assert summary["a"] == {
        "drop": Estimate(15.0, 2, 5.0, 0),
        "seconds": Estimate(1.5, 2, 0.5, 0),
        "forwards": Estimate(4.0, 2, 1.0, 0),
    }
    assert summary["b"]["drop"] == Estimate(None, 0, None, 2)
    assert summary["b"]["seconds"].n == 2


def test_rows_of_an_unknown_method_are_refused():
    with pytest.raises(ValueError, match=r"methods \['a'\], got one of 'b'; report"):
        summarize([row(0, "b")], ["a"], [])


def test_mean_curves_of_methods_with_different_n():
    rows = [
        row(0, "a", curves={"insertion": [0.0, 1.0], "deletion": [1.0, 0.0]}),
        row(1, "a", curves={"insertion": [0.5, None], "deletion": None}),
        row(0, "b", curves={"insertion": [0.0, 0.5, 1.0]}),
        row(1, "b") | {"curves": None},
        row(0, "c"),
    ]
    curves = mean_curves(rows, ["a", "b", "c"])
    assert curves == {
        "insertion": {
            "a": [Estimate(0.25, 2, 0.25, 0), Estimate(1.0, 1, None, 1)],
            "b": [Estimate(v, 1, None, 0) for v in (0.0, 0.5, 1.0)],
        },
        "deletion": {"a": [Estimate(v, 1, None, 0) for v in (1.0, 0.0)]},
    }


def test_points_of_curves_leave_out_what_is_undefined():
    values = [0.25, None, 1.0, math.inf, 0.5]
    rows = [row(i, curves={"deletion": [v, 0.0]}) for i, v in enumerate(values)]
    (points,) = mean_curves(rows, ["unioncam"])["deletion"].values()
    expected = estimate(values)
    assert (points[0].n, points[0].nan) == (expected.n, expected.nan) == (3, 2)
    assert points[0].mean == pytest.approx(expected.mean)
    assert points[0].standard_error == pytest.approx(expected.standard_error)
    assert points[1] == Estimate(0.0, 5, 0.0, 0)


def test_curves_of_different_lengths_have_no_mean():
    rows = [row(i, curves={"deletion": [1.0] * (i + 2)}) for i in range(2)]
    with pytest.raises(ValueError, match=r"deletion curves of unioncam .* \[2, 3\]"):
        mean_curves(rows, ["unioncam"])


def test_failures_are_listed_and_counted_by_reason():
    errors = ["out of memory", "cannot be read (a)", "cannot be read (b)"]
    failures = [failure(i, error, "unioncam") for i, error in enumerate(errors)]
    assert list_failures([row(9), *failures]) == {
        "count": 3,
        "by_reason": {"cannot be read": 2, "out of memory": 1},
        "list": [
            {"id": f"{i:03}.jpg", "method": "unioncam", "error": error}
            for i, error in enumerate(errors)
        ],
    }
