"""Paired differences, their intervals, and the best methods: numbers by hand."""

import math
import os
import subprocess
import sys

import pytest
import torch
from reports import failure, row

from captum_unioncam.evaluation import comparison
from captum_unioncam.evaluation.comparison import (
    Difference,
    Paired,
    bootstrap_bounds,
    compare,
    find_leaders,
)
from captum_unioncam.evaluation.statistics import count_maps, summarize


def rows_of(metric="drop", **columns):
    """Returns rows of the values of each method, one for each image."""
    return [
        row(i, method, **{metric: value})
        for method, values in columns.items()
        for i, value in enumerate(values)
    ]


def paired(rows, methods, better=None, seed=0):
    return Paired(rows, methods, better or {"drop": "lower"}, seed)


def difference(first, second, better="lower", seed=0):
    """Returns the difference of two methods on one metric."""
    rows = rows_of(a=first, b=second)
    pairs = paired(rows, "ab", {"drop": better}, seed)
    return pairs.differences([("a", "b", "drop")])["a", "b", "drop"]


# Intervals


def test_the_interval_of_two_values_is_that_of_a_coin():
    # Means of ten throws of 0 or 1: by the binomial distribution, 2 and 8 of 10 are at
    # 2.5 % and 97.5 % (1.1 % and 5.5 % are at most 1 and 2).
    values = torch.tensor([[0.0], [1.0]] * 5, dtype=torch.float64)
    low, high = bootstrap_bounds(values, seed=0).flatten().tolist()
    assert (low, high) == pytest.approx((0.2, 0.8))


def test_the_interval_of_many_values_is_that_of_the_normal_distribution():
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(400, 1, generator=generator, dtype=torch.float64)
    low, high = bootstrap_bounds(values, seed=1).flatten().tolist()
    error = 1.96 * values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - error, abs=0.1 * error)
    assert high == pytest.approx(values.mean().item() + error, abs=0.1 * error)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_intervals_do_not_depend_on_the_hashes_of_names(hash_seed):
    command = f"""
import sys
sys.path[:0] = {sys.path!r}
from test_comparison import difference
bounds = difference(range(8), [3, 1, 4, 1, 5, 9, 2, 6])
print(bounds.low, bounds.high)
"""
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    run = [sys.executable, "-c", command]
    printed = subprocess.check_output(run, env=environment, cwd=here, text=True)
    bounds = difference(range(8), [3, 1, 4, 1, 5, 9, 2, 6])
    assert printed.split() == [str(bounds.low), str(bounds.high)]


def test_columns_are_drawn_together_and_the_seed_counts():
    values = torch.rand(30, 1, generator=torch.Generator().manual_seed(0)).double()
    both = bootstrap_bounds(torch.cat([values, 5 - 2 * values], 1), seed=0)
    assert torch.equal(both[:, :1], bootstrap_bounds(values, seed=0))
    torch.testing.assert_close(both[:, 1], 5 - 2 * both[:, 0].flip(0))
    assert not torch.equal(both[:, :1], bootstrap_bounds(values, seed=1))


def test_many_images_are_drawn_in_parts(monkeypatch):
    values = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)).double()
    expected = bootstrap_bounds(values, seed=0)
    monkeypatch.setattr(comparison, "DRAWN_AT_ONCE", 1000)
    torch.testing.assert_close(bootstrap_bounds(values, seed=0), expected)


# Differences


def test_a_difference_by_hand():
    # Six times 2 less, once 1 more, and one image on which they are equal.
    first, second = [1.0, 2, 3, 4, 5, 6, 9, 7], [3.0, 4, 5, 6, 7, 8, 8, 7]
    found = difference(first, second)
    assert (found.mean, found.n, found.wins) == (-11 / 8, 8, 6.5 / 8)
    assert found.resolved and found.low < found.mean < found.high < 0
    assert difference(first, second, "higher").wins == 1.5 / 8
    assert difference(first, second, None).wins is None
    other = difference(second, first)
    assert (other.mean, other.wins) == (11 / 8, 1.5 / 8)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low))


def test_a_difference_of_nothing_is_not_resolved():
    found = difference([1.0] * 9, [1.0] * 9)
    assert found == Difference(0.0, 0.0, 0.0, 0.5, 9) and not found.resolved


@pytest.mark.parametrize("n", [1, 5])
def test_few_pairs_have_no_interval(n):
    found = difference([1.0] * n, [2.0] * n)
    assert found == Difference(-1.0, None, None, 1.0, n) and not found.resolved
    assert difference([1.0] * 6, [2.0] * 6).resolved


def test_only_images_with_both_values_are_paired():
    undefined = [None, math.nan, math.inf]
    first = [1.0] * 8 + undefined
    second = [2.0] * 7 + [None, 2.0, 2.0, 2.0]
    assert difference(first, second) == Difference(-1.0, -1.0, -1.0, 1.0, 7)
    assert difference([None], [1.0]) == Difference(None, None, None, None, 0)


def test_pairs_of_different_images_have_the_interval_that_each_has_alone():
    rows = rows_of(a=[1.0, 2, 3, 4, 5, 6, 7, 9], b=[2.0, 2, 2, 2, 2, 2, 2, 2])
    rows += rows_of(c=[2.0, 3, 3, 3, 3, 3, 3])  # a row less
    rows += [failure(7, "broken", "c")]
    pairs = [("a", "b", "drop"), ("a", "c", "drop"), ("b", "c", "drop")]
    together = paired(rows, "abc").differences(pairs)
    for pair in pairs:
        assert paired(rows, "abc").differences([pair])[pair] == together[pair]
    assert [together[pair].n for pair in pairs] == [8, 7, 7]


def test_the_order_of_the_rows_changes_nothing():
    rows = rows_of(a=[1.0, 5, 2, 8, 3, 9, 4], b=[2.0, 4, 4, 1, 3, 5, 7])
    pair = ("a", "b", "drop")
    expected = paired(rows, "ab").differences([pair])
    assert paired(rows[::-1], "ab").differences([pair]) == expected


# The best


def leaders(rows, methods, better="lower", of=None):
    maps = count_maps(rows, methods)
    summary = summarize(rows, methods, ["drop"])
    pairs = paired(rows, methods, {"drop": better})
    return find_leaders(pairs, summary, maps, of)["drop"]


FIRST = [10.0, 20, 30, 40, 50, 60]


def test_the_best_is_by_the_mean_and_others_are_level_or_not():
    level = [11.0, 19, 31, 39, 51, 60]
    rows = rows_of(a=FIRST, b=[v + 1 for v in FIRST], c=level)
    found = leaders(rows, "abc")
    assert (found.best, found.level, found.marked) == ("a", ("a", "c"), ("a", "c"))
    assert set(found.differences) == {"b", "c"}
    assert found.differences["b"].mean == 1
    assert leaders(rows, "abc", "higher").best == "b"
    of_two = leaders(rows, "abc", of=["b", "c"])
    assert of_two.best == "c" and of_two.ranked == ("b", "c")
    assert leaders(rows, "abc", None) == (None, (), ("a", "b", "c"), {})


def test_nothing_is_marked_where_all_are_level():
    found = leaders(rows_of(a=FIRST, b=FIRST), "ab")
    assert found.level == ("a", "b") and found.marked == ()
    assert leaders([], "ab") == (None, (), (), {})


def test_maps_that_show_nothing_and_fewer_images_are_not_ranked():
    rows = rows_of(a=FIRST, b=[0.0] * 6, c=[0.0] * 5 + [None], d=[70.0] * 6)
    rows[6]["constant_map"] = True
    found = leaders(rows, "abcd")
    assert (found.best, found.ranked, found.marked) == ("a", ("a", "d"), ("a",))


# All of it


def test_the_reference_is_the_first_or_another():
    rows = rows_of(a=FIRST, b=[v + 1 for v in FIRST])
    maps, summary = count_maps(rows, "ab"), summarize(rows, "ab", ["drop"])
    first = compare(paired(rows, "ab"), summary, maps)
    assert first.reference == "a" and list(first.differences) == ["b"]
    assert first.differences["b"]["drop"].mean == 1
    second = compare(paired(rows, "ab"), summary, maps, "b")
    assert second.differences["a"]["drop"].mean == -1
    with pytest.raises(
        ValueError, match="`reference` must be one of .*, a, b, got 'c'"
    ):
        compare(paired(rows, "ab"), summary, maps, "c")
    assert compare(paired([], ""), {}, {}).reference is None
