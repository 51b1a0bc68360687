"""Predicted scores: against a reference in loops, by hand, and what changes nothing."""

import math

import numpy as np
import pytest
import reference_prediction as reference
import torch

from captum_unioncam import _prediction
from captum_unioncam._maps import is_active
from captum_unioncam._prediction import Masks

pytestmark = pytest.mark.usefixtures("one_thread")

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
SIZES = [
    (5, (6,)),
    (9, (4, 3)),
    (23, (3, 2, 2)),
    (40, (5, 5)),
    (40, (7,)),
    (90, (4, 2)),  # more than the sample of the distances
]
BASELINES = {"confidences": 0.3, "saturated": 0.0, "rare": 1e-5, "raw": -2.0}


def activations_of(channels, size, batch=3, seed=0):
    """Channels of many scales, one in six of them constant, as after a ReLU."""
    draw = torch.Generator().manual_seed(seed)
    scales = torch.rand(batch, channels, generator=draw, dtype=torch.float64) ** 3 * 9
    shape = (batch, channels, *size)
    values = torch.randn(shape, generator=draw, dtype=torch.float64)
    values = values.cumsum(2).relu() * scales.view(batch, channels, *[1] * len(size))
    values[:, ::6] = 0.7
    return values


def scores_of(kind, shape, seed=1):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(shape, generator=draw, dtype=torch.float64)
    return {
        "confidences": scores,
        "saturated": (3 * scores - 1).clamp(0, 1),
        "rare": 2e-5 * scores,
        "raw": 9 * scores - 4,
    }[kind]


def masks_of(activations):
    return Masks.of(activations, is_active(activations))


def fewest_active(activations):
    return int(is_active(activations).sum(1).min())


def of_each(function, *tensors):
    """Calls a reference on each example, as arrays."""
    return [function(*(t[i].numpy() for t in tensors)) for i in range(len(tensors[0]))]


each_size = pytest.mark.parametrize("channels, size", SIZES, ids=str)
each_kind = pytest.mark.parametrize("kind", BASELINES)


@each_size
def test_the_covariances_are_the_references(channels, size):
    activations = activations_of(channels, size)
    masks = masks_of(activations)
    lengths = of_each(reference.length_scale, activations)
    np.testing.assert_allclose(masks.length[:, 0, 0], lengths, **CLOSE)
    every = torch.arange(channels + 1).expand(3, -1)
    expected = of_each(reference.prior_covariances, activations)
    np.testing.assert_allclose(masks.covariances(every), np.stack(expected), **CLOSE)
    few = torch.tensor([[2, 1], [3, 4], [channels, 1]])
    expected = np.stack([e[rows] for e, rows in zip(expected, few.numpy())])
    np.testing.assert_allclose(masks.covariances(few), expected, **CLOSE)


@each_size
def test_the_first_choice_leaves_the_least_variance(channels, size):
    activations = activations_of(channels, size)
    count = min(6, fewest_active(activations))
    chosen = _prediction.first_channels(masks_of(activations), count)
    for one, actual in zip(activations.numpy(), chosen.tolist()):
        assert actual == reference.first_choice(one, count)


def predicted(activations, kind, known=4):
    """Returns masks, prediction, and the reference's predictions."""
    masks = masks_of(activations)
    known = min(known, fewest_active(activations) - 1)
    channels = _prediction.first_channels(masks, known)
    scores = scores_of(kind, channels.shape)
    baselines = torch.full((len(activations),), BASELINES[kind]).double()
    prediction = _prediction.predict(masks, channels, scores, baselines)
    expected = of_each(reference.predict, activations, channels, scores, baselines)
    return masks, prediction, expected


@each_kind
@each_size
def test_the_prediction_is_the_references(channels, size, kind):
    activations = activations_of(channels, size)
    _, prediction, expected = predicted(activations, kind)
    for i, one in enumerate(expected):
        assert prediction.channels[i].tolist() == one.known
        for name in ("scores", "slopes", "variance"):
            actual = getattr(prediction, name)[i]
            np.testing.assert_allclose(actual, getattr(one, name), rtol=1e-9, atol=0)
        prior = reference.prior_covariances(activations[i].numpy())
        left = reference.posterior_covariances(prior, one.known)
        explained = prediction.explained[i].numpy()
        np.testing.assert_allclose(prior - explained.T @ explained, left, **CLOSE)


@each_kind
@each_size
def test_the_next_choice_leaves_the_least_error_of_the_map(channels, size, kind):
    activations = activations_of(channels, size)
    masks, prediction, expected = predicted(activations, kind)
    count = min(6, fewest_active(activations) - prediction.channels.shape[1] + 1)
    chosen, errors = _prediction.next_channels(masks, prediction, count)
    actual = _prediction.estimated_fidelity(masks, prediction.scores, errors)
    for i, (one, array) in enumerate(zip(expected, activations.numpy(), strict=True)):
        assert chosen[i].tolist() == reference.next_choice(array, one, count)
        error = reference.error_of(array, one)(one.known)
        np.testing.assert_allclose(errors[i], error, rtol=1e-9)
        fidelity = reference.fidelity_of(array, one, error)
        np.testing.assert_allclose(actual[i], fidelity, rtol=1e-9)


def test_candidates_are_the_channels_of_largest_error(monkeypatch):
    # What moves with them counts all the same; the others count alone.
    activations = activations_of(40, (5, 5))
    masks, prediction, expected = predicted(activations, "confidences")
    monkeypatch.setattr(_prediction, "CANDIDATES", 10)
    chosen, errors = _prediction.next_channels(masks, prediction, 3)
    for i, (one, array) in enumerate(zip(expected, activations.numpy(), strict=True)):
        prior = reference.prior_covariances(array)
        left = reference.posterior_covariances(prior, one.known)
        effects = one.slopes[:, None] * reference.centred(array)
        products = effects @ effects.T
        own = left.diagonal() * products.diagonal()
        among = np.argsort(-own)[:10]
        moved = (left * products)[among].sum() + own.sum() - own[among].sum()
        error = one.variance * (moved + 0.1 * np.trace(products))
        np.testing.assert_allclose(errors[i], error, rtol=1e-9)
        gain = reference.greedy(
            among.tolist(), one.known, reference.error_of(array, one), 3
        )
        assert chosen[i].tolist() == gain


def test_there_are_never_more_choices_than_candidates(monkeypatch):
    activations = activations_of(40, (5, 5))
    masks, prediction, _ = predicted(activations, "confidences")
    monkeypatch.setattr(_prediction, "CANDIDATES", 3)
    for chosen in (
        _prediction.first_channels(masks, 5),
        _prediction.next_channels(masks, prediction, 5)[0],
    ):
        assert chosen.shape == (3, 3)
        assert [len(set(row)) for row in chosen.tolist()] == [3, 3, 3]


# Two channels of 2 positions, whose masks are [0 1] and [1 0], and the mask of zeros.
# The distances are sqrt 2 between the channels. The sample holds the two channels only,
# so that l = 1.2 sqrt 2 and 2 l^2 = 5.76. With the zeros the distances are 1.
TWO = torch.tensor([[[0.0, 4.0], [2.0, 0.0]]], dtype=torch.float64)
NEAR, FAR = math.exp(-1 / 5.76), math.exp(-2 / 5.76)


def test_two_channels_by_hand():
    masks = masks_of(TWO)
    assert masks.values.tolist() == [[[0, 1], [1, 0], [0, 0]]]
    assert masks.spans.tolist() == [[1, 0.5, 0]]
    assert masks.length.item() == pytest.approx(1.2 * math.sqrt(2), abs=1e-12)
    # Without their means, over the largest range of 4: [-1/2 1/2] and [1/4 -1/4].
    assert masks.energies.tolist() == [[0.5, 0.125, 0]]
    assert _prediction.first_channels(masks, 1).tolist() == [[0]]


def raw_prediction():
    """Channel 0 has the score 3, the baseline -1; channel 1 is predicted.

    K = [1.1 a; a 1.1] with a = exp(-1/5.76). By symmetry K^-1 1 = [1 1] / (1.1 + a),
    and K^-1 [1 -1] = [1 -1] / (1.1 - a). 1' K^-1 1 = 2 / (1.1 + a) = t, and the mean m
    is (2 / (1.1 + a)) / (t + 1e-4) = t / (t + 1e-4), as the mean of the scores is 1.
    """
    t = 2 / (1.1 + NEAR)
    m = t / (t + 1e-4)
    # The residuals [-1 - m, 3 - m] are (1 - m) [1 1] - 2 [1 -1], in this order.
    common, opposed = (1 - m) / (1.1 + NEAR), -2 / (1.1 - NEAR)
    solved = [common + opposed, common - opposed]
    variance = ((-1 - m) * solved[0] + (3 - m) * solved[1]) / 2
    score = m + NEAR * solved[0] + FAR * solved[1]
    return score, variance


def test_a_raw_score_by_hand():
    prediction = _prediction.predict(
        masks_of(TWO),
        torch.tensor([[0]]),
        torch.tensor([[3.0]]).double(),
        -torch.ones(1).double(),
    )
    score, variance = raw_prediction()
    assert prediction.scores[0].tolist() == pytest.approx([3, score, -1], abs=1e-12)
    assert prediction.variance.item() == pytest.approx(variance, abs=1e-12)
    assert prediction.slopes.tolist() == [[0, 1, 0]]
    # m = 0.99990, K^-1 r = [-7.7 7.7], variance = 15.4, and 1 + 7.7 * (0.7066 - 0.8406)
    assert (score, variance) == (
        pytest.approx(-0.033, 0.01),
        pytest.approx(15.42, 1e-3),
    )


def test_the_error_and_the_fidelity_by_hand():
    masks = masks_of(TWO)
    channels, scores = torch.tensor([[0]]), torch.tensor([[3.0]]).double()
    prediction = _prediction.predict(masks, channels, scores, -torch.ones(1).double())
    chosen, error = _prediction.next_channels(masks, prediction, 1)
    assert chosen.tolist() == [[1]]
    # Of channel 1 the known scores leave 1 - c' K^-1 c, for c = [a b], and the own
    # noise. K^-1 c = [1.1 a - a b, 1.1 b - a^2] / (1.21 - a^2). Its energy is 1/8.
    a, b = NEAR, FAR
    explained = (a * (1.1 * a - a * b) + b * (1.1 * b - a**2)) / (1.21 - a**2)
    score, variance = raw_prediction()
    expected = variance * (1 - explained + 0.1) / 8
    assert error.item() == pytest.approx(expected, rel=1e-12)
    # M = 3 [-1/2 1/2] + score [1/4 -1/4] has the squared size (3 - score / 2)^2 / 2.
    size = (3 - score / 2) ** 2 / 2
    fidelity = _prediction.estimated_fidelity(masks, prediction.scores, error)
    expected = math.sqrt(size / (size + 1.5 * expected))
    assert fidelity.item() == pytest.approx(expected, rel=1e-12)


def whole(activations, scores, baselines):
    """Returns what a first choice, a prediction and a next choice make of a batch."""
    masks = masks_of(activations)
    first = _prediction.first_channels(masks, 5)
    given = scores.gather(1, first)
    prediction = _prediction.predict(masks, first, given, baselines)
    chosen, errors = _prediction.next_channels(masks, prediction, 5)
    fidelity = _prediction.estimated_fidelity(masks, prediction.scores, errors)
    return {
        "first": first,
        "next": chosen,
        "scores": prediction.scores,
        "slopes": prediction.slopes,
        "variance": prediction.variance,
        "error": errors,
        "fidelity": fidelity,
    }


def case(kind):
    """Returns activations, scores of all channels, and baseline scores."""
    activations, scores = activations_of(30, (5, 4)), scores_of(kind, (3, 30))
    return activations, scores, torch.full((3,), BASELINES[kind]).double()


def assert_same(actual, expected, tolerance):
    for name, values in expected.items():
        torch.testing.assert_close(actual[name], values, rtol=tolerance, atol=0)


@each_kind
def test_an_example_does_not_depend_on_its_batch(kind):
    tensors = case(kind)
    singles = [whole(*(t[i : i + 1] for t in tensors)) for i in range(3)]
    joined = {name: torch.cat([s[name] for s in singles]) for name in singles[0]}
    assert_same(whole(*tensors), joined, 1e-12)


@each_kind
@pytest.mark.parametrize("factor", [1e-30, 0.37, 1e30])
def test_the_scale_of_the_activations_does_not_matter(kind, factor):
    activations, *rest = case(kind)
    expected = whole(activations, *rest)
    assert_same(whole(factor * activations, *rest), expected, 1e-10)
    # In 32 bits, of the same values.
    single = activations.float()
    expected = whole(single, *rest)
    assert_same(whole(2.0**90 * single, *rest), expected, 0)


@each_kind
def test_a_constant_added_to_a_channel_does_not_matter(kind):
    activations, *rest = case(kind)
    shifts = torch.linspace(-3, 5, 30).double()[:, None, None]
    actual = whole(activations + shifts, *rest)
    assert_same(actual, whole(activations, *rest), 1e-9)


@each_kind
def test_the_order_of_the_channels_does_not_matter(kind):
    activations, scores, baselines = case(kind)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    places = torch.cat([order, torch.tensor([30])])  # with the mask of zeros
    expected = whole(activations, scores, baselines)
    actual = whole(activations[:, order], scores[:, order], baselines)
    for name in ("first", "next"):
        assert torch.equal(places[actual[name]], expected[name])
    for name in ("scores", "slopes"):
        values = torch.empty_like(actual[name])
        values[:, places] = actual[name]
        torch.testing.assert_close(values, expected[name], rtol=1e-12, atol=1e-15)
    for name in ("variance", "error", "fidelity"):
        torch.testing.assert_close(actual[name], expected[name], rtol=1e-12, atol=0)
