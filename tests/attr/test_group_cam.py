"""GroupCAM: groups, denoising and blurred baselines, by hand."""

import math

import numpy as np
import pytest
import torch
from nets import Counted, Weighed, example
from reference_family import blurred
from torch import nn

from captum_unioncam import GroupCAM

# Hand-worked maps are small.
may_be_constant = pytest.mark.filterwarnings("ignore:.* are constant")

# Three channels in two groups. The head's means are a = [1 1 2] (and its rows are
# constant): M_1 = [1 0 2] + [0 1 1] = [1 1 3], M_2 = 2 * [3 0 1] = [6 0 2]. The
# positions of the whole input are worth 1 + 6, 1, and 2 + 1 + 2: e = [7 1 5].
NET = Weighed([[1, 1, 1], [1, 1, 1], [2, 2, 2]])
INPUTS = example([1, 0, 2], [0, 1, 1], [3, 0, 1])


def explain(net, inputs, **options):
    """The map of the only example, as nested lists."""
    return GroupCAM(net, net.layer).attribute(inputs, **options)[0, 0].tolist()


def test_the_default_percentile_is_70_and_the_entry_at_it_is_dropped():
    # Of 0, 1, ..., 100 the 70th percentile is 70: 71 and more stay, over 100. The
    # head is ones, so that s = (71^2 + ... + 100^2) / 100 = (100 * 101 * 201 - 70 * 71
    # * 141) / 600 = (338350 - 116795) / 100 = 2215.55, and L = s * i / 100.
    net = Weighed([[1.0] * 101])
    actual = explain(net, example(list(range(101))), baselines=0)
    expected = [0.0] * 71 + [2215.55 * i / 100 for i in range(71, 101)]
    assert actual == pytest.approx(expected, rel=1e-12)


def test_hand_worked_example():
    # The medians are 1 and 2, and only what is above them stays: [0 0 3] and [6 0 0].
    # The masks are H_1 = [0 0 1] and H_2 = [1 0 0], with s_1 = 5 and s_2 = 7 over
    # black. L = 5 H_1 + 7 H_2.
    actual = explain(NET, INPUTS, groups=2, percentile=50, baselines=0)
    assert actual == pytest.approx([7, 0, 5], abs=1e-12)


def test_percentile_0_drops_the_smallest_entries():
    # [0 0 3] and [6 0 2]: H_1 = [0 0 1], H_2 = [1 0 1/3]. s_1 = 5, s_2 = 7 + 5/3 =
    # 26/3. L = [26/3, 0, 5 + 26/9].
    actual = explain(NET, INPUTS, groups=2, percentile=0, baselines=0)
    assert actual == pytest.approx([26 / 3, 0, 5 + 26 / 9], abs=1e-12)


def test_percentiles_are_interpolated_as_numpy_does():
    # The 75th percentiles are (1 + 3) / 2 = 2 and (2 + 6) / 2 = 4; the 25th 1 and (0 +
    # 2) / 2 = 1, above which 2 stays: as with 0.
    actual = explain(NET, INPUTS, groups=2, percentile=75, baselines=0)
    assert actual == pytest.approx([7, 0, 5], abs=1e-12)
    actual = explain(NET, INPUTS, groups=2, percentile=25, baselines=0)
    assert actual == pytest.approx([26 / 3, 0, 5 + 26 / 9], abs=1e-12)


def test_percentile_100_leaves_nothing():
    with pytest.warns(UserWarning, match=r"GroupCAM: .* examples \[0\] are constant"):
        actual = explain(NET, INPUTS, percentile=100, baselines=0)
    assert actual == [0, 0, 0]


def test_one_group_is_the_denoised_grad_cam_as_a_mask():
    # [1 0 2] + [0 1 1] + [6 0 2] = [7 1 5], the median 5: [7 0 0], H = [1 0 0], s = 7.
    actual = explain(NET, INPUTS, groups=1, percentile=50, baselines=0)
    assert actual == pytest.approx([7, 0, 0], abs=1e-12)


@pytest.mark.parametrize("groups", [3, 4, 32])
def test_more_groups_than_channels_are_the_channels(groups):
    # The medians of [1 0 2], [0 1 1] and [6 0 2] are 1, 1 and 2: [0 0 2], [0 0 0] and
    # [6 0 0]. The second is constant. L = 5 [0 0 1] + 0 + 7 [1 0 0].
    actual = explain(NET, INPUTS, groups=groups, percentile=50, baselines=0)
    assert actual == pytest.approx([7, 0, 5], abs=1e-12)
    # At 0: H = [1/2 0 1], [0 1 1] and [1 0 1/3]; s = 7/2 + 5, 1 + 5 and 7 + 5/3.
    actual = explain(NET, INPUTS, groups=groups, percentile=0, baselines=0)
    expected = [17 / 4 + 26 / 3, 6, 17 / 2 + 6 + 26 / 9]
    assert actual == pytest.approx(expected, abs=1e-12)


def test_the_score_of_the_baseline_is_subtracted():
    # The baseline 1 is worth 1 + 1 + 2 = 4 at each position. H_1 = [0 0 1] shows 4 + 4
    # + 5 = 13 and H_2 = [1 0 0] 7 + 4 + 4 = 15, less 12: L = [3 0 1], whatever the
    # bias.
    net = Weighed(NET.weights.tolist(), bias=100.0)
    actual = explain(net, INPUTS, groups=2, percentile=50, baselines=1)
    assert actual == pytest.approx([3, 0, 1], abs=1e-12)


def test_groups_that_lower_the_score_are_subtracted_before_the_relu():
    # a = [1 1]. M_1 = [3 1 0] and M_2 = [0 1 3], at percentile 0, are H_1 = [1 1/3 0]
    # and H_2 = [0 1/3 1]. e = [-3 * 3, 2 * 1 + 0, 4 * 0 + 3 * 3] = [-9 2 9], so that
    # s_1 = -9 + 2/3 = -25/3 and s_2 = 2/3 + 9 = 29/3. L = ReLU([-25/3, (29 - 25) / 9,
    # 29/3]).
    net = Weighed([[-3, 2, 4], [0, 0, 3]])
    inputs = example([3, 1, 0], [0, 1, 3])
    actual = explain(net, inputs, groups=2, percentile=0, baselines=0)
    assert actual == pytest.approx([0, 4 / 9, 29 / 3], abs=1e-12)


def test_a_group_of_negative_evidence_is_left_out():
    # a = [-1 1]: M_1 = ReLU(-[5 1]) is constant. M_2 = [0 2], H_2 = [0 1], s_2 = e_2 =
    # -1 * 1 + 1 * 2 = 1.
    net = Weighed([[-1, -1], [1, 1]])
    actual = explain(net, example([5, 1], [0, 2]), percentile=0, baselines=0)
    assert actual == [0, 1]


@pytest.mark.parametrize("weights", [[[0, 0, 0]], [[-1, -1, -1]], [[1, -2, 1]]])
def test_without_positive_gradients_there_is_a_map_of_zeros_and_no_masked_pass(weights):
    net = Weighed(weights)
    counted = Counted(net)
    with pytest.warns(UserWarning, match=r"GroupCAM: .* examples \[0\] are constant"):
        maps = GroupCAM(counted, net.layer).attribute(example([1, 2, 3]))
    assert maps.tolist() == [[[0, 0, 0]]]
    assert counted.examples == 1 + 2  # the gradients, and masks of 1 and 0


@pytest.mark.parametrize("groups", [None, 3])
def test_each_group_of_each_example_costs_a_pass(groups):
    torch.manual_seed(0)
    net = Weighed(torch.ones(70, 9).tolist())
    counted, options = Counted(net), {} if groups is None else {"groups": groups}
    inputs = torch.rand(2, 70, 9, dtype=torch.float64)
    GroupCAM(counted, net.layer).attribute(inputs, **options)
    # The gradients of both examples, masks of 1 and 0, and the groups.
    assert counted.examples == 2 * (1 + 2 + (groups or 32))


def images_seen(inputs):
    """Returns all images that the model sees."""
    net, seen = Weighed([[1.0] * inputs.shape[2]]), []

    def forward_func(image):
        seen.extend(image.tolist())
        return net(image)

    GroupCAM(forward_func, net.layer).attribute(inputs, percentile=50)
    return seen


def test_the_default_baseline_is_the_blurred_input_by_hand():
    # Two positions a = 8 and b = 0, mirrored without their edges: a b a b ... The
    # distances 0, 2, ..., 24 from a position reach itself, 1, 3, ..., 25 the other one.
    kernel = {d: math.exp(-(d**2) / (2 * 50**2)) for d in range(-25, 26)}
    even = sum(weight for d, weight in kernel.items() if d % 2 == 0)
    share = even / sum(kernel.values())
    expected = [[8 * share, 8 * (1 - share)]]
    # The full mask of zeros shows it, and the mask [1 0] its second half.
    baseline, masked = images_seen(example([8, 0]))[-2:]
    assert baseline == [pytest.approx(expected[0], abs=1e-12)]
    assert masked == [pytest.approx([8, expected[0][1]], abs=1e-12)]


@may_be_constant
@pytest.mark.parametrize("length", [1, 2, 3, 7, 24, 25, 26, 27, 60])
def test_the_blur_is_mirrored_at_every_length(length):
    torch.manual_seed(length)
    inputs = torch.rand(1, 1, length, dtype=torch.float64)
    (expected,) = blurred([inputs[0].numpy()], 1)
    # After the whole image, which is seen twice.
    np.testing.assert_allclose(images_seen(inputs)[2], expected, rtol=0, atol=1e-12)


@may_be_constant
def test_a_constant_image_is_its_own_blur_and_no_mask_adds_to_it():
    layer = nn.Conv1d(1, 2, 3, padding=1).double()  # which sees the borders
    nn.init.ones_(layer.weight)
    cam = GroupCAM(nn.Sequential(layer, Weighed([[1, 2, 3], [0, 1, 5]])), layer)
    inputs = torch.full((1, 1, 3), 0.7, dtype=torch.float64)
    assert cam.attribute(inputs, baselines=0).max() > 1
    assert cam.attribute(inputs).abs().max() < 1e-12


def test_integer_images_are_blurred_and_masked_rounded():
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv1d(1, 1, 1)
            nn.init.ones_(self.layer.weight)

        def forward(self, image):
            seen.append(image)
            return self.layer(image.float()).sum((1, 2))[:, None]

    net = Net()
    inputs = torch.tensor([[[0, 100, 201]]], dtype=torch.uint8)
    GroupCAM(net, net.layer).attribute(inputs, percentile=50)
    assert all(image.dtype == torch.uint8 for image in seen)
    (expected,) = blurred([inputs[0].double().numpy()], 1)
    assert seen[1].tolist() == [inputs[0].tolist(), expected.round().tolist()]
    # Only the last position is above the median.
    assert seen[-1][0].tolist() == [[*expected.round()[0, :2].tolist(), 201]]
