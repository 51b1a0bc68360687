"""Predicted scores in loops: a slow, independent reference of their Gaussian process.

Written from the equations with numpy only, in float64, for one example at a time, with
plain inverses and the covariances of all channels; every choice tries each candidate.
It imports nothing from ``captum_unioncam``. Activations are (K, *spatial); the mask of
number K is all zeros.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.polynomial.hermite_e import hermegauss

LENGTH, SAMPLE = 1.2, 64
NOISE, RIDGE, MARGIN, CAUTION = 0.1, 1e-4, 1e-3, 1.5
ROUND, FEWEST = 4, 16


def is_constant(array):
    return array.max() == array.min()


def active_channels(activations):
    return [k for k, channel in enumerate(activations) if not is_constant(channel)]


def masks_of(activations):
    """X, (K + 1, positions): each channel scaled to [0, 1], and a mask of zeros."""
    masks = np.zeros((len(activations) + 1, activations[0].size))
    for k in active_channels(activations):
        channel = activations[k].ravel()
        masks[k] = (channel - channel.min()) / (channel.max() - channel.min())
    return masks


def centred(activations):
    """B, (K + 1, positions): the channels without their means, of largest range 1."""
    flat = [activation.ravel() for activation in activations]
    largest = max(channel.max() - channel.min() for channel in flat)
    out = np.zeros((len(flat) + 1, flat[0].size))
    if largest > 0:
        for k, channel in enumerate(flat):
            out[k] = (channel - channel.mean()) / largest
    return out


def distance(one, other):
    return math.sqrt(((one - other) ** 2).sum())


def length_scale(activations):
    """l, from the lower median distance of up to 64 active masks."""
    masks, active = masks_of(activations), active_channels(activations)
    last = len(active) - 1
    places = sorted({i * last // (SAMPLE - 1) for i in range(SAMPLE)})
    sample = [masks[active[place]] for place in places]
    distances = sorted(distance(a, b) for a in sample for b in sample)
    distances = [d for d in distances if d > 1e-6]
    return LENGTH * (distances[(len(distances) - 1) // 2] if distances else 1.0)


def prior_covariances(activations):
    """The covariances of all K + 1 masks."""
    masks, length = masks_of(activations), length_scale(activations)
    out = np.empty((len(masks), len(masks)))
    for i, one in enumerate(masks):
        for j, other in enumerate(masks):
            out[i, j] = math.exp(-(distance(one, other) ** 2) / (2 * length**2))
    return out


def precision(prior, known):
    """The inverse covariances of known scores, each with its own noise."""
    return np.linalg.inv(prior[np.ix_(known, known)] + NOISE * np.eye(len(known)))


def posterior_covariances(prior, known):
    """What the known scores leave of the covariances, without the own noise."""
    gains = prior[:, known] @ precision(prior, known)
    return prior - gains @ prior[known]


def greedy(candidates, known, error, count):
    """Adds the candidate that leaves the smallest error, ``count`` times."""
    known, chosen = list(known), []
    for _ in range(count):
        errors = {k: error([*known, k]) for k in candidates if k not in known}
        best = min(errors, key=errors.get)
        known.append(best)
        chosen.append(best)
    return chosen


def first_choice(activations, count):
    """The channels to score first: those that leave the least variance."""
    prior = prior_covariances(activations)
    importance = np.sqrt((centred(activations) ** 2).sum(1))

    def error(known):
        return (importance * posterior_covariances(prior, known).diagonal()).sum()

    return greedy(active_channels(activations), [], error, count)


def logit(scores):
    """The log odds, kept off 0 and 1 by a share of the extremes."""
    tiny = np.finfo(float).eps
    low = max(MARGIN * max(scores), tiny)
    high = 1 - max(MARGIN * (1 - min(scores)), tiny)
    bounded = [min(max(score, low), high) for score in scores]
    return np.array([math.log(score / (1 - score)) for score in bounded])


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def moments(mean, variance):
    """Mean and variance of the confidence whose log odds are normal."""
    nodes, weights = hermegauss(5)
    weights = weights / math.sqrt(2 * math.pi)
    values = [sigmoid(mean + node * math.sqrt(variance)) for node in nodes]
    first = sum(w * value for w, value in zip(weights, values))
    return first, sum(w * (value - first) ** 2 for w, value in zip(weights, values))


@dataclass
class Prediction:
    """What the known scores tell; every array is of all K + 1 masks."""

    known: list
    scores: np.ndarray
    slopes: np.ndarray
    variance: float


def predict(activations, channels, scores, baseline):
    """Predicts the scores of all masks from those of some channels."""
    prior = prior_covariances(activations)
    known, given = [len(activations), *channels], [baseline, *scores]
    of_confidences = all(0 <= score <= 1 for score in given)
    values = logit(given) if of_confidences else np.array(given)
    inverse, ones = precision(prior, known), np.ones(len(known))
    mean = (ones @ inverse @ values) / (ones @ inverse @ ones + RIDGE)
    residuals = values - mean
    variance = residuals @ inverse @ residuals / len(known)
    means = mean + prior[:, known] @ inverse @ residuals
    left = posterior_covariances(prior, known).diagonal()
    expected, slopes = means.copy(), np.ones(len(prior))
    for k in range(len(prior)):
        own = variance * (left[k] + NOISE)
        if of_confidences:
            expected[k], spread = moments(means[k], own)
            slopes[k] = math.sqrt(spread / own)
    expected[known], slopes[known] = given, 0
    return Prediction(known, expected, slopes, variance)


def error_of(activations, prediction):
    """From known masks to E, the expected squared error of the map.

    E = sum_kl s_k s_l C_kl <B_k, B_l>, with the own noise of each channel in C_kk.
    """
    prior = prior_covariances(activations)
    effects = prediction.slopes[:, None] * centred(activations)
    products, noise = effects @ effects.T, NOISE * np.eye(len(prior))

    def error(known):
        covariances = posterior_covariances(prior, known) + noise
        return prediction.variance * (covariances * products).sum()

    return error


def next_choice(activations, prediction, count):
    """The channels to score next: those that leave the smallest error of the map."""
    error, active = error_of(activations, prediction), active_channels(activations)
    return greedy(active, prediction.known, error, count)


def fidelity_of(activations, prediction, squared_error):
    """The estimated correlation of the map with the exact one."""
    size = ((prediction.scores @ centred(activations)) ** 2).sum()
    total = size + CAUTION * squared_error
    return math.sqrt(size / total) if total > 0 else 1.0


def channel_scores(score, activations, baseline, max_channels=None, fidelity=1.0):
    """The scores of all channels, those that were measured, and the fidelity.

    ``score`` is from a channel's number to its score.
    """
    active = active_channels(activations)
    scores = np.full(len(activations), float(baseline))
    most = len(active) if max_channels is None else min(max_channels, len(active))
    known = []
    while True:
        total = min(most, len(known) + max(ROUND, len(known) // 8))
        if len(active) == (most if fidelity == 1 else total):
            for k in active:
                scores[k] = score(k)
            return scores, active, 1.0
        if known:
            given = [score(k) for k in known]
            prediction = predict(activations, known, given, baseline)
            error = error_of(activations, prediction)(prediction.known)
            reached = fidelity_of(activations, prediction, error)
            enough = len(known) >= FEWEST
            if len(known) == most or (enough and reached >= fidelity):
                for k in active:
                    scores[k] = prediction.scores[k]
                return scores, known, reached
            known += next_choice(activations, prediction, total - len(known))
        else:
            known = first_choice(activations, total)
