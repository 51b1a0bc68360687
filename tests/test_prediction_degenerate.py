"""Predicted scores where masks or scores are equal, extreme, few or many."""

import math
import os
import subprocess
import sys

import pytest
import torch

from captum_unioncam import _prediction
from captum_unioncam._maps import is_active
from captum_unioncam._prediction import Masks

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 3


def activations_of(*shape):
    draw = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=draw, dtype=torch.float64)


def explored(activations, scores, baseline, count=COUNT):
    """Predicts from a first choice, of scores of all channels, (N, K).

    Returns the prediction, the next choice, the expected error and the fidelity.
    """
    masks = Masks.of(activations, is_active(activations))
    first = _prediction.first_channels(masks, count)
    baselines = torch.full(scores.shape[:1], baseline, dtype=scores.dtype)
    prediction = _prediction.predict(masks, first, scores.gather(1, first), baselines)
    chosen, error = _prediction.next_channels(masks, prediction, count)
    for channels in (first, chosen):
        assert all(len(set(row)) == count for row in channels.tolist())
        assert is_active(activations).gather(1, channels).all()
    fidelity = _prediction.estimated_fidelity(masks, prediction.scores, error)
    return prediction, torch.cat([first, chosen], 1), error, fidelity


def assert_finite(prediction, channels, error, fidelity):
    for values in (prediction.scores, prediction.slopes, prediction.explained):
        assert values.isfinite().all()
    assert (prediction.variance >= 0).all() and prediction.variance.isfinite().all()
    assert (error >= 0).all() and error.isfinite().all()
    assert (fidelity >= 0).all() and (fidelity <= 1).all()
    assert all(len(set(row)) == 2 * COUNT for row in channels.tolist())


ACTIVATIONS = {
    "differ": activations_of(2, 9, 4, 4),
    "pairs": activations_of(2, 9, 4, 4)[:, [0, 0, 1, 1, 2, 2, 3, 3, 4]],
    "all equal": activations_of(2, 1, 4, 4).expand(2, 9, 4, 4),
    "equal but for the scale": activations_of(2, 1, 4, 4)
    * (1 + torch.arange(9.0)).view(9, 1, 1),
    "one of many scales": activations_of(2, 9, 4, 4)
    * 10.0 ** -torch.arange(0, 180, 20).double().view(9, 1, 1),
    "two positions": activations_of(2, 9, 2),
    "single precision": activations_of(2, 9, 4, 4).float() * 1e-37,
    "half precision": activations_of(2, 9, 4, 4).half() * 6e4,
}
SCORES = {
    "differ": (activations_of(2, 9), 0.2),
    "constant": (torch.full((2, 9), 0.3).double(), 0.3),
    "constant but for the baseline": (torch.full((2, 9), 0.3).double(), 0.0),
    "all 0": (torch.zeros(2, 9).double(), 0.0),
    "all 1": (torch.ones(2, 9).double(), 1.0),
    "0 and 1": (activations_of(2, 9).round(), 0.0),
    "tiny": (1e-300 * activations_of(2, 9), 0.0),
    "raw": (1e6 * activations_of(2, 9) - 5e5, -3.0),
    "raw zeros and one": (activations_of(2, 9).round(), -1e-9),
    "single precision": (activations_of(2, 9).float(), 0.2),
}


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_what_is_finite_stays_finite(activations, scores):
    assert_finite(*explored(ACTIVATIONS[activations], *SCORES[scores]))


def test_equal_masks_share_their_score():
    # Channel 1 is channel 0, and channel 3 channel 2: what is measured of one tells
    # most of the other, so that no pair is chosen twice.
    activations = activations_of(2, 4, 4, 4)[:, [0, 0, 1, 1, 2, 3]]
    scores = torch.tensor([[0.9, 0.9, 0.1, 0.1, 0.4, 0.5]]).double().expand(2, -1)
    masks = Masks.of(activations, is_active(activations))
    first = _prediction.first_channels(masks, 3)
    assert all(
        len({c // 2 for c in row if c < 4}) == len([c for c in row if c < 4])
        for row in first.tolist()
    )
    channels = torch.tensor([[0, 2], [1, 3]])
    prediction = _prediction.predict(
        masks, channels, scores.gather(1, channels), torch.full((2,), 0.3).double()
    )
    # The noise of the score leaves it between the measured one and the mean.
    other = prediction.scores.gather(1, torch.tensor([[1, 3], [0, 2]]))
    assert (other[:, 0] > 0.7).all() and (other[:, 1] < 0.25).all()


def test_equal_masks_have_the_length_of_the_others():
    activations = torch.tensor([[[0.0, 1], [0, 1], [0, 1], [1, 0]]]).double()
    masks = Masks.of(activations, is_active(activations))
    # The only distance that is not 0 is sqrt 2.
    assert masks.length.item() == pytest.approx(1.2 * math.sqrt(2), abs=1e-12)
    masks = Masks.of(activations[:, :3], is_active(activations[:, :3]))
    assert masks.length.item() == 1.2


@pytest.mark.parametrize("score", [0.0, 1e-6, 0.3, 0.5, 1.0])
def test_constant_scores_predict_themselves(score):
    scores = torch.full((2, 9), score).double()
    prediction, _, _, fidelity = explored(ACTIVATIONS["differ"], scores, score)
    assert torch.allclose(
        prediction.scores, scores.new_tensor(score), rtol=1e-2, atol=1e-12
    )
    assert (fidelity > 0.9999).all()


@pytest.mark.parametrize("spread", [1e-3, 1e-6, 1e-9, 1e-12, 0.0])
def test_scores_that_hardly_differ_have_the_slope_of_the_log_odds(spread):
    # Around 1/2 it is 1/4.
    scores = 0.5 + spread * (ACTIVATIONS["differ"].mean((2, 3)) - 0.5)
    prediction, _, _, _ = explored(ACTIVATIONS["differ"], scores, 0.5)
    slopes = prediction.slopes[prediction.slopes > 0]
    assert len(slopes) == 2 * (9 - COUNT)
    assert torch.allclose(slopes, slopes.new_tensor(0.25), rtol=1e-4, atol=0)


def test_tiny_confidences_stay_of_their_scale():
    scores = 1e-6 * (0.2 + SCORES["differ"][0])
    prediction, _, _, _ = explored(ACTIVATIONS["differ"], scores, 5e-7)
    assert (prediction.scores >= scores.min() / 3).all()
    assert (prediction.scores <= 3 * scores.max()).all()
    # So do those near 1.
    mirrored, _, _, _ = explored(ACTIVATIONS["differ"], 1 - scores, 1 - 5e-7)
    assert torch.allclose(1 - mirrored.scores, prediction.scores, rtol=1e-6, atol=0)


def test_a_confidence_of_0_counts_as_a_thousandth_of_the_largest():
    activations, (scores, _) = ACTIVATIONS["differ"], SCORES["differ"]
    scores = scores.clamp_min(0.3)
    largest = scores.gather(
        1, explored(activations, scores, 0.0)[0].channels[:, 1:]
    ).amax(1)
    expected = [
        explored(activations[i : i + 1], scores[i : i + 1], 1e-3 * largest[i])[
            0
        ].scores[0, :-1]
        for i in range(2)
    ]
    actual = explored(activations, scores, 0.0)[0].scores[:, :-1]
    assert torch.allclose(actual, torch.stack(expected), rtol=1e-9, atol=0)


@pytest.mark.parametrize("score", [1.0 + 1e-9, -1e-9])
def test_one_score_outside_of_0_and_1_makes_all_of_its_example_raw(score):
    activations, (scores, baseline) = ACTIVATIONS["differ"], SCORES["differ"]
    expected = explored(activations, scores, baseline)[0]
    first = expected.channels[1, 1]
    changed = scores.clone()
    changed[1, first] = score
    prediction = explored(activations, changed, baseline)[0]
    assert torch.equal(prediction.scores[0], expected.scores[0])
    assert (expected.slopes < 0.26).all()
    assert set(prediction.slopes[1].tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_leaves_the_other_examples_alone(value):
    activations, (scores, baseline) = ACTIVATIONS["differ"], SCORES["differ"]
    expected = explored(activations, scores, baseline)
    changed = scores.clone()
    changed[0, expected[0].channels[0, 1]] = value
    prediction, channels, error, fidelity = explored(activations, changed, baseline)
    assert fidelity[0].isnan() and not prediction.scores[0].isfinite().all()
    assert torch.equal(prediction.scores[1], expected[0].scores[1])
    assert torch.equal(channels[1], expected[1][1])
    assert error[1] == expected[2][1] and fidelity[1] == expected[3][1]


@pytest.mark.parametrize("known, free", [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_few_active_channels(known, free):
    activations = ACTIVATIONS["differ"].clone()
    activations[:, known + free :] = 0.5
    masks = Masks.of(activations, is_active(activations))
    channels = _prediction.first_channels(masks, known)
    assert (channels < known + free).all()
    scores, baselines = SCORES["differ"][0][:, :known], torch.tensor([0.2, 0.4])
    prediction = _prediction.predict(masks, channels, scores, baselines)
    chosen, error = _prediction.next_channels(masks, prediction, free)
    assert (
        torch.cat([channels, chosen], 1).sort(1).values.tolist()
        == [list(range(known + free))] * 2
    )
    fidelity = _prediction.estimated_fidelity(masks, prediction.scores, error)
    assert prediction.scores.isfinite().all()
    # Constant channels do not change the map.
    assert (error > 0).all() if free else not error.any()
    assert (fidelity < 1).all() if free else (fidelity == 1).all()


def test_one_scored_channel():
    prediction, channels, error, fidelity = explored(
        ACTIVATIONS["differ"], *SCORES["differ"], 1
    )
    assert channels.shape == (2, 2) and (channels[:, 0] != channels[:, 1]).all()
    assert prediction.scores.isfinite().all() and (error > 0).all()
    assert (fidelity > 0).all() and (fidelity < 1).all()


# Prints the peak of choice and prediction, in bytes, without the inputs.
MEMORY = """
import torch
from captum_unioncam.attr import _channel_scores

def largest():
    # Not ru_maxrss, which counts the process that started this one.
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])

def peak(examples, channels, known):
    activations = torch.rand(examples, channels, 14, 14)
    scores, baselines = torch.rand(examples, channels), torch.rand(examples)
    before = largest()
    result = _channel_scores.ChannelScores(activations, baselines, known)
    for chosen in result:
        result.record(scores)
    return largest() - before

torch.set_num_threads(1)
peak(2, 20, 8)  # what torch loads late
# Nearly all channels are chosen at once, and without the time that it takes.
_channel_scores.ROUND = 124
_channel_scores.first_channels = lambda masks, count: (
    torch.arange(count).expand(len(masks.values), -1)
)
print(peak(64, 2048, 128))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_2048_channels_of_64_examples_fit_in_one_gigabyte():
    command = [sys.executable, "-c", MEMORY]
    # What the allocator keeps of freed memory is not counted.
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    options = {"capture_output": True, "text": True, "check": True}
    result = subprocess.run(command, env=env, **options)
    assert 2e8 < int(result.stdout) < 1e9  # of which the masks in 64 bits are 2e8
