"""ISCAM: the mean over growing masks, by hand."""

import math

import pytest
import torch
from nets import Case, Weighed, example

from captum_unioncam import ISCAM, ScoreCAM

LN3 = math.log(3)


@pytest.mark.parametrize("num_samples, mean", [(1, 1), (2, 3 / 4), (4, 5 / 8)])
def test_hand_worked_example(num_samples, mean):
    # Channel 1 masks to [0 1 .5] and shows 2 c + .5 c = 2.5 c of the input, channel 2
    # to [1 0 0] and shows 4 c. The head is linear: the mean over the steps is (1/2 + 1)
    # / 2 = 3/4 of that for two, (1/4 + 2/4 + 3/4 + 1) / 4 = 5/8 for four. Where 1.5 c
    # is ln 3 after it, the softmax is [1/4 3/4], and L = 1/4 * [0 2 1] + 3/4 * [4 0 0].
    c = LN3 / 1.5 / mean
    net = Weighed([[c, c, c], [c, c, c]], bias=2.0)
    actual = ISCAM(net, net.layer).attribute(
        example([0, 2, 1], [4, 0, 0]), num_samples=num_samples
    )
    assert actual[0, 0].tolist() == pytest.approx([3, 0.5, 0.25], abs=1e-12)


def test_ten_samples_are_the_default():
    # As above with (1 + 2 + ... + 10) / 100 = .55.
    c = LN3 / 1.5 / 0.55
    net = Weighed([[c, c, c], [c, c, c]])
    actual = ISCAM(net, net.layer).attribute(example([0, 2, 1], [4, 0, 0]))
    assert actual[0, 0].tolist() == pytest.approx([3, 0.5, 0.25], abs=1e-12)


def test_a_score_is_the_mean_of_the_scores_and_not_the_score_of_the_mean():
    # The mask [0 1] shows 2; half of it shows 1. The squares are 4 and 1, their mean is
    # 2.5, and the constant channel has 0. With a scale of ln 3 / 2.5 the softmax is
    # [3/4 1/4]: L = 3/4 * [0 2] + 1/4 * [1 1].
    net = Weighed([[0, 1], [0, 0]])
    actual = ISCAM(net, net.layer).attribute(
        example([0, 2], [1, 1]),
        num_samples=2,
        score_func=lambda output: output.square() * LN3 / 2.5,
    )
    assert actual[0, 0].tolist() == pytest.approx([0.25, 1.75], abs=1e-12)


def test_baselines_show_through_the_weaker_masks():
    # The input is [0 2], the baseline 6 where the head looks. The steps show 2/2 + 6/2
    # = 4 and 2, the baseline 6: the increase is 3 - 6 = -3, times ln 3 / 3. The softmax
    # with the constant channel's 0 is [1/4 3/4]: L = 1/4 * [0 2] + 3/4 * [1 1].
    net = Weighed([[0, LN3 / 3], [0, 0]])
    actual = ISCAM(net, net.layer).attribute(
        example([0, 2], [1, 1]), num_samples=2, baselines=6
    )
    assert actual[0, 0].tolist() == pytest.approx([0.75, 1.25], abs=1e-12)


def test_one_sample_is_score_cam():
    net, inputs = Case().build(0)
    expected = ScoreCAM(net, net.layer).attribute(inputs, target=1)
    cam = ISCAM(net, net.layer)
    actual = cam.attribute(inputs, target=1, num_samples=1)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(cam.attribute(inputs, target=1), expected, atol=1e-4)
