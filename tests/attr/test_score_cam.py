"""ScoreCAM: the softmax of the increases, by hand."""

import math

import pytest
from nets import Weighed, example

from captum_unioncam import ISCAM, SSCAM, ScoreCAM

LN2, LN3, LN5 = math.log(2), math.log(3), math.log(5)


def test_hand_worked_example():
    # Channel 1 masks to [0 1 .5], channel 2 to [1 0 0]. The head weighs the positions
    # of the masked input by c: 2 c + .5 c = 2.5 c, and 4 c. With c = ln 3 / 1.5 the
    # second increase is ln 3 larger: the softmax is [1/4 3/4], and L = 1/4 * [0 2 1] +
    # 3/4 * [4 0 0] = [3 .5 .25].
    c = LN3 / 1.5
    net = Weighed([[c, c, c], [c, c, c]])
    actual = ScoreCAM(net, net.layer).attribute(example([0, 2, 1], [4, 0, 0]))
    assert actual[0, 0].tolist() == pytest.approx([3, 0.5, 0.25], abs=1e-12)


@pytest.mark.parametrize("max_channels", [None, 3, 2])
def test_a_constant_channel_has_no_increase_and_a_weight(max_channels):
    # The scores ln 2 + 7 and ln 5 + 7, less f(black) = 7, and 0 for the constant
    # channel: the softmax is [2 5 1] / 8. L = (2 [0 2 1] + 5 [4 0 0] + [1 1 1]) / 8.
    expected = [21 / 8, 5 / 8, 3 / 8]
    net = Weighed([[0, LN2 / 2, 0], [LN5 / 4, 0, 0], [0, 0, 0]], bias=7.0)
    inputs = example([0, 2, 1], [4, 0, 0], [1, 1, 1])
    actual = ScoreCAM(net, net.layer).attribute(inputs, max_channels=max_channels)
    assert actual[0, 0].tolist() == pytest.approx(expected, abs=1e-12)


def test_negative_increases_weigh_less_than_a_constant_channel():
    # The increases are -ln 3 and 0: [1 3] / 4. L = 1/4 * [0 8] + 3/4 * [1 1].
    net = Weighed([[0, -LN3 / 8], [0, 0]])
    actual = ScoreCAM(net, net.layer).attribute(example([0, 8], [1, 1]))
    assert actual[0, 0].tolist() == pytest.approx([0.75, 2.75], abs=1e-12)


def test_negative_activations_are_not_shown():
    # The mask [0 1] shows 2 * ln 3 / 2: [3 1] / 4. L = ReLU(3/4 * [-4 2] + 1/4 * [2
    # 2]).
    net = Weighed([[0, LN3 / 2], [0, 0]])
    actual = ScoreCAM(net, net.layer).attribute(example([-4, 2], [2, 2]))
    assert actual[0, 0].tolist() == pytest.approx([0, 2], abs=1e-12)


def test_huge_increases_leave_the_best_channel():
    net = Weighed([[0, 1e6, 0], [1e5, 0, 0]])
    actual = ScoreCAM(net, net.layer).attribute(example([0, 2, 1], [4, 0, 0]))
    assert actual[0, 0].tolist() == [0, 2, 1]


@pytest.mark.filterwarnings("ignore:.* are constant")
@pytest.mark.parametrize("method", [ScoreCAM, SSCAM, ISCAM])
def test_channels_of_a_single_position_are_all_constant_and_weigh_alike(method):
    # L = ReLU((2 + 4 - 3) / 3). None is active, and their score is known.
    net = Weighed([[[1]], [[2]], [[3]]])
    inputs = example([[2]], [[4]], [[-3]])
    cam = method(net, net.layer)
    assert cam.attribute(inputs).item() == pytest.approx(1, abs=1e-12)
    assert cam.attribute(inputs, max_channels=2).item() == pytest.approx(1, abs=1e-12)
