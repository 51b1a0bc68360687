"""Predicts the scores of channels from those of a few, by a Gaussian process.

The score of a mask changes smoothly with the mask, and the masks of a layer lie close
together. Of each example, a few channels are scored, in rounds. The scores of its other
active channels are predicted, and so is the error of the map that sums all of them.

All functions here are of a batch of examples, each on its own, and none runs a model.
Gaussian processes: Rasmussen and Williams, Gaussian Processes for Machine Learning,
2006, Eqs. 2.25 and 2.26, and 2.42 for the unknown mean.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# The prior covariance of the scores of two masks at a distance of d is
# exp(-d^2 / (2 l^2)), where l is LENGTH times the median distance; the score of each
# mask has a variance of NOISE of its own. Both are shares of a common variance, which
# is estimated. They were chosen on 50 images, see the docs, and are not critical.
LENGTH = 1.2
NOISE = 0.1
# The channels whose distances have the median, spread evenly over the active ones.
SAMPLE = 64
# A round chooses among the channels that may change the map most, this many.
CANDIDATES = 256
# Confidences are predicted as log odds. They stay as far from 0 as this share of the
# largest, and as far from 1 as this share of the smallest one's distance.
MARGIN = 1e-3
# The prior mean is unknown; this precision keeps its estimate defined.
RIDGE = 1e-4
# The expected squared error counts this many times in the estimated fidelity.
CAUTION = 1.5
# Gauss-Hermite quadrature of 5 nodes for a standard normal variable.
ROOT = math.sqrt(10)
OUTER, INNER = math.sqrt(5 + ROOT), math.sqrt(5 - ROOT)
NODES = (-OUTER, -INNER, 0.0, INNER, OUTER)
NODE_WEIGHTS = tuple(w / 60 for w in (7 - 2 * ROOT, 7 + 2 * ROOT, 32))
NODE_WEIGHTS += NODE_WEIGHTS[1::-1]


@dataclass(frozen=True)
class Masks:
    """The channels of some examples as masks, at the layer's own size.

    One mask more, the last, is all zeros: its score is that of the baseline.

    Attributes:
        values (Tensor): In [0, 1], (N, K + 1, positions).
        spans (Tensor): The range of each channel, as a share of the largest one of its
            example, (N, K + 1).
        active (Tensor): Which channels are not constant, bool, (N, K + 1).
        length (Tensor): The length scale of the covariance, (N, 1, 1).
    """

    values: Tensor
    spans: Tensor
    active: Tensor
    length: Tensor

    @classmethod
    def of(cls, activations: Tensor, active: Tensor) -> "Masks":
        """Reads the masks from a layer's channels, (N, K, *spatial), all finite."""
        values = F.pad(activations.flatten(2), (0, 0, 0, 1))  # (N, K + 1, positions)
        values = values.to(precise_type(values.device))  # a copy, scaled in place
        low = values.amin(2, keepdim=True)
        spans = values.amax(2, keepdim=True) - low  # (N, K + 1, 1)
        values.sub_(low).div_(torch.where(spans > 0, spans, 1))
        largest = spans.amax(1, keepdim=True)
        shares = spans / torch.where(largest > 0, largest, 1)
        active = F.pad(active, (0, 1))
        return cls(values, shares[..., 0], active, _length(values, active))

    @property
    def energies(self) -> Tensor:
        """The squared norms of the channels, without their means, (N, K + 1)."""
        variances = self.values.var(2, correction=0)
        return self.spans.square() * variances * self.values.shape[2]

    def covariances(self, channels: Tensor) -> Tensor:
        """Returns the prior covariances of some channels, (N, C), with all masks.

        Their shape is (N, C, K + 1).
        """
        distances = _squared_distances(_pick(self.values, channels), self.values)
        return distances.div_(-2 * self.length.square()).exp_()

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Sums the channels under weights, (N, C, K + 1), without the mean of each.

        Their shape is (N, C, positions), in shares of the largest channel's range.
        """
        return _centred((weights * self.spans[:, None]) @ self.values)


@dataclass(frozen=True)
class Prediction:
    """What some measured scores tell of the scores of all masks.

    Attributes:
        channels (Tensor): The masks of known score: the last, and k more, (N, 1 + k).
        scores (Tensor): The known scores, and the expected ones, (N, K + 1).
        slopes (Tensor): How a score changes with what is predicted of it, the score
            itself or its log odds; 0 for those that are known, (N, K + 1).
        explained (Tensor): R, (N, 1 + k, K + 1): of the prior covariances, R^T R is
            explained by the known scores.
        variance (Tensor): The estimated common variance, (N,).
    """

    channels: Tensor
    scores: Tensor
    slopes: Tensor
    explained: Tensor
    variance: Tensor


def precise_type(device: torch.device) -> torch.dtype:
    """Returns the type of 64 bits, or of 32 where a device has no more."""
    return torch.float32 if device.type == "mps" else torch.float64


def first_channels(masks: Masks, count: int) -> Tensor:
    """Chooses the channels to score first, (N, count), when no score is known.

    They are those that tell most of all the others, each as important as it is varied.
    """
    deviations = torch.where(masks.active, masks.energies.sqrt(), -1)  # (N, K + 1)
    candidates = _largest(deviations)  # (N, M)
    covariances = _columns(masks.covariances(candidates), candidates)  # (N, M, M)
    weights = deviations.gather(1, candidates).clamp_min(0).sqrt()  # (N, M)
    usable = masks.active.gather(1, candidates)
    pivots = _pivots(covariances, covariances * weights[:, None], usable, count)
    return candidates.gather(1, pivots)


def predict(
    masks: Masks, channels: Tensor, scores: Tensor, baseline_scores: Tensor
) -> Prediction:
    """Predicts the scores of all masks.

    Scores that all lie in [0, 1] are taken for confidences, and predicted as log odds.

    Args:
        masks (Masks): The masks of the examples.
        channels (Tensor): Which channels were scored, (N, k).
        scores (Tensor): Their scores, (N, k).
        baseline_scores (Tensor): The score of the mask of zeros, (N,).
    """
    blank = torch.full_like(channels[:, :1], masks.values.shape[1] - 1)
    channels = torch.cat([blank, channels], 1)  # (N, 1 + k)
    known = torch.cat([baseline_scores[:, None], scores], 1).to(masks.values)
    confidences = ((known >= 0) & (known <= 1)).all(1, keepdim=True)  # (N, 1)
    values = torch.where(confidences, _log_odds(known), known)

    covariances = masks.covariances(channels)  # (N, 1 + k, K + 1)
    own = _columns(covariances, channels)
    identity = torch.eye(channels.shape[1], dtype=own.dtype, device=own.device)
    lower = torch.linalg.cholesky(own + NOISE * identity)
    explained = torch.linalg.solve_triangular(lower, covariances, upper=False)
    sides = torch.stack([values, torch.ones_like(values)], 2)  # (N, 1 + k, 2)
    white, ones = torch.linalg.solve_triangular(lower, sides, upper=False).unbind(2)
    mean = (ones * white).sum(1) / (ones.square().sum(1) + RIDGE)  # (N,)
    residuals = white - mean[:, None] * ones  # (N, 1 + k)
    variance = residuals.square().mean(1)  # (N,)

    means = mean[:, None] + (residuals[:, None] @ explained)[:, 0]  # (N, K + 1)
    variances = variance[:, None] * (_unexplained(explained) + NOISE)
    expected, slopes = _of_log_odds(means, variances)
    expected = torch.where(confidences, expected, means)
    slopes = torch.where(confidences, slopes, 1).scatter(1, channels, 0)
    return Prediction(
        channels, expected.scatter(1, channels, known), slopes, explained, variance
    )


def next_channels(
    masks: Masks, prediction: Prediction, count: int
) -> tuple[Tensor, Tensor]:
    """Chooses the channels to score next: what reduces the error of the map most.

    Returns:
        The channels, (N, count), and the expected squared error of the map with the
        scores known so far, (N,), in shares of the largest channel's range, without the
        error of its mean.
    """
    free = masks.active.scatter(1, prediction.channels, False)  # (N, K + 1)
    energies = prediction.slopes.square() * masks.energies * free
    own_errors = energies * _unexplained(prediction.explained)  # (N, K + 1)
    candidates = _largest(torch.where(free, own_errors, -1))  # (N, M)
    covariances = masks.covariances(candidates)  # (N, M, K + 1)
    explained = _pick(prediction.explained.mT, candidates)  # (N, M, 1 + k)
    covariances.baddbmm_(explained, prediction.explained, alpha=-1)
    among = _columns(covariances, candidates)  # (N, M, M)
    # How the map would move with each candidate's value: (N, M, positions).
    weights = prediction.slopes * masks.spans * free  # (N, K + 1)
    effects = _centred(covariances.mul_(weights[:, None]) @ masks.values)
    del covariances  # the largest tensor

    shown = _pick(masks.values, candidates)
    shown *= weights.gather(1, candidates)[..., None]
    error = (shown * effects).sum((1, 2))  # with all that moves with the candidates
    error = error + own_errors.sum(1) - own_errors.gather(1, candidates).sum(1)
    error = error + NOISE * energies.sum(1)
    pivots = _pivots(among, effects, free.gather(1, candidates), count)
    return candidates.gather(1, pivots), prediction.variance * error


def estimated_fidelity(masks: Masks, scores: Tensor, squared_error: Tensor) -> Tensor:
    """Returns the estimated correlation of the map with the exact one, (N,).

    For a map M whose error is independent of it, of the expected squared size E, it is
    sqrt(M^2 / (M^2 + E)). E counts :data:`CAUTION` times.

    Args:
        masks (Masks): The masks of the examples.
        scores (Tensor): The weights of the channels, (N, K + 1).
        squared_error (Tensor): E, (N,), as :func:`next_channels` returns it.
    """
    size = masks.weighted_sum(scores[:, None]).square().sum((1, 2))  # (N,)
    total = size + CAUTION * squared_error
    # A map without any size and without any error is exact.
    return torch.where(total == 0, 1, size / total).sqrt()


def _pivots(covariances: Tensor, effects: Tensor, usable: Tensor, count: int) -> Tensor:
    """Chooses the pivots of a Cholesky factor greedily, (N, count).

    Each is what reduces the squared error of sums most, given those before it.

    Args:
        covariances (Tensor): Of the values of the candidates, (N, M, M); overwritten.
        effects (Tensor): Covariances of the values with what they are summed to, (N, M,
            D); overwritten.
        usable (Tensor): Which candidates can be chosen, (N, M).
        count (int): How many to choose; not more than can be chosen, or M.
    """
    pivots = [usable.new_empty(len(usable), 0, dtype=torch.long)]
    for _ in range(min(count, usable.shape[1])):
        variances = covariances.diagonal(dim1=1, dim2=2).clamp_min(0) + NOISE  # (N, M)
        reduction = effects.square().sum(2) / variances
        pivot = torch.where(usable, reduction, -1).argmax(1, keepdim=True)  # (N, 1)
        pivots.append(pivot)
        usable = usable.scatter(1, pivot, False)
        scale = variances.gather(1, pivot).rsqrt()[..., None]  # (N, 1, 1)
        column = _pick(covariances, pivot) * scale  # (N, 1, M)
        effect = _pick(effects, pivot) * scale  # (N, 1, D)
        covariances.baddbmm_(column.mT, column, alpha=-1)
        effects.baddbmm_(column.mT, effect, alpha=-1)
    return torch.cat(pivots, 1)


def _unexplained(explained: Tensor) -> Tensor:
    """Returns the share of each mask's variance that no known score explains."""
    return (1 - explained.square().sum(1)).clamp_min(0)


def _largest(values: Tensor) -> Tensor:
    """Returns the places of the largest values of each row, (N, M)."""
    return values.topk(min(CANDIDATES, values.shape[1]), dim=1).indices


def _pick(values: Tensor, places: Tensor) -> Tensor:
    """Picks the rows at some places, (N, C), of (N, K, D)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))


def _columns(values: Tensor, places: Tensor) -> Tensor:
    """Picks the columns at some places, (N, C), of (N, D, K)."""
    return values.gather(2, places[:, None].expand(-1, values.shape[1], -1))


def _centred(maps: Tensor) -> Tensor:
    return maps - maps.mean(2, keepdim=True)


def _squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    squares = _squares(rows)[..., None] + _squares(columns)[:, None]
    return squares.baddbmm_(rows, columns.mT, alpha=-2).clamp_min_(0)


def _squares(values: Tensor) -> Tensor:
    """Returns the squared norms, (N, K), of (N, K, D), without a copy of them."""
    norms: Tensor = torch.linalg.vector_norm(values, dim=2)
    return norms.square()


def _length(values: Tensor, active: Tensor) -> Tensor:
    """Returns the length scale, (N, 1, 1): of the masks that are not equal."""
    order = active.int().argsort(dim=1, descending=True, stable=True)  # active first
    last = (active.sum(1, keepdim=True) - 1).clamp_min(0)  # (N, 1)
    steps = torch.arange(SAMPLE, device=values.device) * last  # (N, SAMPLE)
    places = steps.div(SAMPLE - 1, rounding_mode="floor")
    sample = _pick(values, order.gather(1, places))
    distances = _squared_distances(sample, sample).flatten(1).sqrt()
    # Fewer channels than places are each taken once.
    again = F.pad(places.diff(dim=1) == 0, (1, 0))  # (N, SAMPLE)
    counted = ~(again[:, :, None] | again[:, None]).flatten(1) & (distances > 1e-6)
    distances = torch.where(counted, distances, torch.nan)
    median = distances.nanmedian(1).values.nan_to_num(1.0)  # all masks may be equal
    return LENGTH * median[:, None, None]


def _log_odds(scores: Tensor) -> Tensor:
    """Returns the logits of confidences, (N, k), within :data:`MARGIN`."""
    tiny = torch.finfo(scores.dtype).eps
    low = (MARGIN * scores.amax(1, keepdim=True)).clamp_min(tiny)
    high = 1 - (MARGIN * (1 - scores.amin(1, keepdim=True))).clamp_min(tiny)
    return torch.clamp(scores, low, high).logit()


def _of_log_odds(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the means of confidences whose log odds are normal, and their slopes.

    A slope is the deviation of a confidence over that of its log odds.
    """
    deviations = variances.sqrt()
    values = [torch.sigmoid(means + node * deviations) for node in NODES]
    pairs = list(zip(values, NODE_WEIGHTS, strict=True))
    expected = torch.stack([weight * value for value, weight in pairs]).sum(0)
    squares = [weight * (value - expected).square() for value, weight in pairs]
    slopes = torch.stack(squares).sum(0).sqrt() / deviations
    # The derivative, where the differences would be those of rounding.
    small = deviations < torch.finfo(means.dtype).eps ** (1 / 3)
    return expected, torch.where(small, means.sigmoid() * (-means).sigmoid(), slopes)
