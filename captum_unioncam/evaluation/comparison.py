"""Which differences of methods are more than chance: paired, image by image.

Images differ far more than methods do, so that means with their own standard errors
hide what a comparison on the same images shows. An interval is the percentile bootstrap
of a mean difference: images are drawn again and again, with replacement, from a seed.

Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993.
"""

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_unioncam._checks import did_you_mean
from captum_unioncam.evaluation.row import Row
from captum_unioncam.evaluation.statistics import MapCounts, Summary

RESAMPLES = 2000
CONFIDENCE = 0.95
# If fewer images all agree, chance alone does so more often than in 5 % of cases (a
# sign test: 2 / 2 ** 5 is 6 %).
FEWEST_PAIRS = 6
# Of the images drawn at once, so that memory does not grow with their number.
DRAWN_AT_ONCE = 2**22

# A method, the one that is taken off it, and a metric.
Pair = tuple[str, str, str]


@dataclass(frozen=True)
class Difference:
    """A method minus another one, on the images that both have a value for.

    Attributes:
        mean (float or None): Mean of the differences; None if there is no pair.
        low, high (float or None): Their 95 % interval; None for fewer than 6 pairs.
        wins (float or None): Share of the pairs in which the method is better than the
            other; an equal pair counts half. None if there is no pair, or neither
            direction is better.
        n (int): Number of pairs.
    """

    mean: float | None
    low: float | None
    high: float | None
    wins: float | None
    n: int

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves 0 out."""
        if self.low is None or self.high is None:
            return False
        return self.low > 0 or self.high < 0


class Leaders(NamedTuple):
    """The best method of a metric, and those that are not resolved from it.

    Attributes:
        best (str or None): The method of the best mean; None if none is ranked.
        level (tuple[str, ...]): The best, and the ranked methods whose difference to it
            is not resolved, in the order of the methods.
        ranked (tuple[str, ...]): The methods that were compared.
        differences (dict[str, Difference]): Each other ranked method minus the best.
    """

    best: str | None
    level: tuple[str, ...]
    ranked: tuple[str, ...]
    differences: dict[str, Difference]

    @property
    def marked(self) -> tuple[str, ...]:
        """The methods to mark: none where that would be all of them."""
        return self.level if len(self.level) < len(self.ranked) else ()


class Paired:
    """The values of the methods, image by image.

    Args:
        rows (Sequence[Row]): The runner's rows, in any order.
        methods (Sequence[str]): Labels of the methods.
        better (Mapping[str, str or None]): "higher", "lower" or None, for each metric
            to compare.
        seed (int): Of the resamples.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        methods: Sequence[str],
        better: Mapping[str, str | None],
        seed: int,
    ) -> None:
        self.methods, self.better, self.seed = list(methods), dict(better), seed
        done = [row for row in rows if "error" not in row]
        # Sorted: the images are drawn by their places.
        names = sorted({row["id"] for row in done})
        places = {name: place for place, name in enumerate(names)}
        numbers = {label: number for number, label in enumerate(self.methods)}
        flat = array("d", [math.nan]) * (len(names) * len(numbers))
        columns = {metric: flat[:] for metric in better}
        for row in done:
            place = places[row["id"]] * len(numbers) + numbers[row["method"]]
            values = row["metrics"]
            for metric, column in columns.items():
                value = values.get(metric)
                if value is not None and math.isfinite(value):
                    column[place] = value
        self._values = {
            metric: torch.tensor(column, dtype=torch.float64, device="cpu").view(
                len(names), len(numbers)
            )
            for metric, column in columns.items()
        }

    def differences(self, pairs: Iterable[Pair]) -> dict[Pair, Difference]:
        """Returns the differences of pairs of methods.

        Args:
            pairs (Iterable[tuple[str, str, str]]): A method, the one that is taken off
                it, and a metric.
        """
        vectors = {
            (one, other, metric): self._column(one, metric)
            - self._column(other, metric)
            for one, other, metric in pairs
        }
        bounds: dict[Pair, tuple[float, float]] = {}
        for keys, columns in _of_the_same_images(vectors):
            if len(columns) >= FEWEST_PAIRS:
                ends = bootstrap_bounds(columns, self.seed).T.tolist()
                bounds |= {key: (e[0], e[1]) for key, e in zip(keys, ends, strict=True)}
        return {
            key: _difference(
                vector[~vector.isnan()], bounds.get(key), self.better[key[2]]
            )
            for key, vector in vectors.items()
        }

    def _column(self, method: str, metric: str) -> Tensor:
        return self._values[metric][:, self.methods.index(method)]


def _of_the_same_images(
    vectors: Mapping[Pair, Tensor],
) -> Iterator[tuple[list[Pair], Tensor]]:
    """Yields the keys of vectors that are defined for the same images, and them.

    Images are drawn once for all of them: as the columns of one matrix, (n, columns).
    """
    groups: list[tuple[Tensor, list[Pair]]] = []
    for key, vector in vectors.items():
        known = ~vector.isnan()
        for mask, keys in groups:
            if torch.equal(mask, known):
                keys.append(key)
                break
        else:
            groups.append((known, [key]))
    for mask, keys in groups:
        yield keys, torch.stack([vectors[key][mask] for key in keys], 1)


def bootstrap_bounds(values: Tensor, seed: int) -> Tensor:
    """Returns the ends of the 95 % intervals of means, by the percentile bootstrap.

    Args:
        values (Tensor): (n, columns), in float64. The rows are drawn for all columns
            together.
        seed (int): Of the 2,000 resamples.

    Returns:
        *Tensor*, (2, columns).

    Cost: 2,000 * n draws, and as many products for each column.

    Examples::

        >>> import torch
        >>> from captum_unioncam.evaluation.comparison import bootstrap_bounds
        >>> bootstrap_bounds(torch.full((9, 1), 2.0, dtype=torch.float64), seed=0)
        tensor([[2.],
                [2.]], dtype=torch.float64)
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    n = len(values)
    at_once = max(1, DRAWN_AT_ONCE // n)
    means = []
    for start in range(0, RESAMPLES, at_once):
        size = (min(at_once, RESAMPLES - start), n)
        drawn = torch.randint(n, size, generator=generator, device="cpu")
        # How often each row was drawn: (resamples, n).
        counts = torch.zeros(size, dtype=values.dtype, device="cpu")
        counts.scatter_add_(1, drawn, counts.new_ones(()).expand(size))
        means.append(counts @ values / n)
    tail = (1 - CONFIDENCE) / 2
    ends = values.new_tensor([tail, 1 - tail])
    return torch.cat(means).quantile(ends, dim=0)


def _difference(
    values: Tensor, bounds: tuple[float, float] | None, better: str | None
) -> Difference:
    """Returns what the differences of pairs say, (n,)."""
    n = len(values)
    if not n:
        return Difference(None, None, None, None, 0)
    wins = None
    if better is not None:
        gains = values if better == "higher" else -values
        wins = int((gains > 0).sum() + (gains >= 0).sum()) / (2 * n)
    low, high = bounds or (None, None)
    return Difference(math.fsum(values.tolist()) / n, low, high, wins, n)


def find_leaders(
    paired: Paired,
    summary: Summary,
    maps: Mapping[str, MapCounts],
    methods: Sequence[str] | None = None,
) -> dict[str, Leaders]:
    """Returns the best method of each metric, and those not resolved from it.

    Not ranked are methods with a map that shows nothing, which would be the least
    complex of all, and those whose mean leaves out images that others' have.

    Args:
        paired (Paired): The values.
        summary (Summary): Their means.
        maps (Mapping[str, MapCounts]): The counts of maps that show nothing.
        methods (Sequence[str], optional): Rank these alone. Default: None, all
    """
    methods = paired.methods if methods is None else methods
    ranked = {name: _ranked(summary, maps, methods, name) for name in paired.better}
    best: dict[str, str | None] = {}
    for name, better in paired.better.items():
        means = ranked[name] if better else {}
        choose = max if better == "higher" else min
        best[name] = choose(means, key=means.__getitem__, default=None)
    keys: list[Pair] = [
        (method, leader, name)
        for name, leader in best.items()
        if leader is not None
        for method in ranked[name]
        if method != leader
    ]
    compared = paired.differences(keys)  # of all metrics at once
    return {
        name: _leaders(
            leader,
            list(ranked[name]),
            {key[0]: compared[key] for key in keys if key[2] == name},
        )
        for name, leader in best.items()
    }


def _leaders(
    best: str | None, ranked: Sequence[str], differences: dict[str, Difference]
) -> Leaders:
    level = [m for m in ranked if m in differences and not differences[m].resolved]
    chosen = tuple(m for m in ranked if m == best or m in level)
    return Leaders(best, chosen, tuple(ranked), differences)


def _ranked(
    summary: Summary,
    maps: Mapping[str, MapCounts],
    methods: Sequence[str],
    metric: str,
) -> dict[str, float]:
    """Returns the means that can be compared, by method."""
    sound = {m: summary[m][metric] for m in methods if maps[m].none}
    most = max((value.n for value in sound.values()), default=0)
    return {
        m: value.mean
        for m, value in sound.items()
        if value.mean is not None and value.n == most
    }


@dataclass(frozen=True)
class Comparison:
    """The methods of an evaluation, compared in pairs.

    Attributes:
        reference (str or None): The method that the others are compared with.
        differences (dict): Each other method minus the reference, by method and metric.
        leaders (dict[str, Leaders]): The best of each metric.
        seed (int): Of the resamples.
    """

    reference: str | None
    differences: dict[str, dict[str, Difference]]
    leaders: dict[str, Leaders]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON."""
        return {
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": self.seed,
            "reference": self.reference,
            "to_reference": {
                method: {name: asdict(value) for name, value in values.items()}
                for method, values in self.differences.items()
            },
            "to_best": {
                name: {
                    "best": leaders.best,
                    "not_resolved": list(leaders.level),
                    "marked": list(leaders.marked),
                    "differences": {
                        method: asdict(value)
                        for method, value in leaders.differences.items()
                    },
                }
                for name, leaders in self.leaders.items()
            },
        }


def compare(
    paired: Paired,
    summary: Summary,
    maps: Mapping[str, MapCounts],
    reference: str | None = None,
) -> Comparison:
    """Compares the methods with a reference, and with the best of each metric.

    Args:
        paired, summary, maps: As in :func:`find_leaders`.
        reference (str, optional): One of the methods. Default: None, which is the first

    Raises:
        ValueError: If there is no such method.
    """
    methods = paired.methods
    if reference is None:
        reference = methods[0] if methods else None
    elif reference not in methods:
        raise ValueError(
            f"`reference` must be one of the methods, {', '.join(methods)}, got "
            f"{reference!r}{did_you_mean(reference, methods)}"
        )
    others = [method for method in methods if method != reference]
    keys: list[Pair] = [
        (method, f"{reference}", name) for method in others for name in paired.better
    ]
    found = paired.differences(keys)
    differences: dict[str, dict[str, Difference]] = {method: {} for method in others}
    for key in keys:
        differences[key[0]][key[2]] = found[key]
    leaders = find_leaders(paired, summary, maps)
    return Comparison(reference, differences, leaders, paired.seed)
