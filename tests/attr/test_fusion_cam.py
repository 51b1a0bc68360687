"""FusionCAM: union and similarity, by hand."""

import math

import pytest
import torch
from nets import Case, Fixed, Weighed, example
from torch import nn

from captum_unioncam import FusionCAM


def explain(net, inputs, **options):
    """The map of the only example, as nested lists."""
    return FusionCAM(net, net.layer).attribute(inputs, **options)[0, 0].tolist()


# A case with clean numbers. With c = ln 2, the positions of the whole input are worth e
# = [16 * -3c/16 + 4c, 0 + 4c, -2c] = [c 4c -2c].
# Grad-CAM: the head's rows have the means [2c -c/16 2c], so that G = ReLU([-c 0 0] +
# [0 2c 0] + [2c 2c 2c]) = [c 4c 2c]. Its median is 2c: at theta 50 G = [0 4c 2c], and
# scaled G' = [0 1 1/2].
# ScoreCAM: the masks [0 1 0] and [1 0 0] have the increases 4c and c, the constant
# channel 0: weights of 16, 2 and 1 parts of 19. R = [2 * 16 + 1, 16 * 1 + 1, 1] / 19,
# and R' = [1 1/2 0].
C = math.log(2)
NET = Weighed([[6 * C, 0, 0], [-3 * C / 16, 0, 0], [4 * C, 4 * C, -2 * C]], bias=5.0)
INPUTS = example([0, 1, 0], [16, 0, 0], [1, 1, 1])


def test_hand_worked_example():
    # b_g = 4c - 2c/2 = 3c and b_r = c + 4c/2 = 3c, over f(black) = 5: w = [1/2 1/2]. U
    # = [1/2 3/4 1/4], scaled U' = [1/2 1 0]. b_u = c/2 + 4c = 4.5c: v = [4.5 3] / 7.5 =
    # [3/5 2/5]. P = [.3 .6 0], Q = [.4 .2 0], the similarity is [.9 .6 1]. F = [.9 * .4
    # + .1 * .35, .6 * .6 + .4 * .4, 0] = [.395 .52 0], over .52.
    actual = explain(NET, INPUTS, theta=50)
    assert actual == pytest.approx([0.395 / 0.52, 1, 0], abs=1e-12)


def joined(p, q):
    """Returns S max(P, Q) + (1 - S) (P + Q) / 2, over its largest value.

    The maps below have no negative value, and a position that is 0 in both.
    """
    fused = []
    for one, other in zip(p, q, strict=True):
        similarity = 1 - abs(one - other)
        mean = (one + other) / 2
        fused.append(similarity * max(one, other) + (1 - similarity) * mean)
    return [pytest.approx(value / max(fused), abs=1e-12) for value in fused]


def test_theta_0_drops_nothing():
    # G = [c 4c 2c], G' = [0 1 1/3]. b_g = 4c - 2c/3 = 10c/3, w = [10 9] / 19. U = [9,
    # 10 + 9/2, 10/3] / 19, U' = [17/3, 67/6, 0] / (67/6) = [34/67 1 0]. b_u = 34c/67 +
    # 4c = 302c/67, v = [302 201] / 503.
    u, r = 302 / 503, 201 / 503
    expected = joined([u * 34 / 67, u, 0], [r, r / 2, 0])
    assert explain(NET, INPUTS, theta=0) == expected


def test_theta_100_keeps_the_largest_entry():
    # G = [0 4c 0], G' = [0 1 0]. b_g = 4c, w = [4 3] / 7. U = [3, 4 + 3/2, 0] / 7, U' =
    # [6/11 1 0]. b_u = 6c/11 + 4c = 50c/11, v = [50 33] / 83.
    u, r = 50 / 83, 33 / 83
    expected = joined([u * 6 / 11, u, 0], [r, r / 2, 0])
    assert explain(NET, INPUTS, theta=100) == expected


def fuse(weights, gradient_map, region_map, bias=5.0):
    """The map for parts that return these maps, of an image of ones."""
    net = Weighed([weights], bias)
    parts = [Fixed(*gradient_map), Fixed(*region_map)]
    cam = FusionCAM(net, net.layer, parts=parts)
    return cam.attribute(torch.ones(1, 1, len(weights)).double())[0, 0].tolist()


@pytest.mark.parametrize(
    "weights, expected",
    [
        # Below, G' = [0 1 1/2] and R' = [1 1/2 0]. Both negative, b_g = -4 + 1 = -3 and
        # b_r = -1 - 2 = -3: w = [1/2 1/2], U = [1/2 3/4 1/4], U' = [1/2 1 0]. b_u =
        # -1/2 - 4: v = [1/2 1/2]. P = [1/4 1/2 0], Q = [1/2 1/4 0]: alike, mirrored.
        ([-1, -4, 2], [1, 1, 0]),
        # All zero: the same.
        ([0, 0, 0], [1, 1, 0]),
        # b_g = 2 + 1 = 3, b_r = -4 + 1 = -3: w = [1 0], U' = G', b_u = 3, v = [1 0]. P
        # = [0 1 1/2], Q = 0, S = [1 0 1/2]. F = [0, 1/2, 1/4 + 1/8], over 1/2.
        ([-4, 2, 2], [0, 1, 0.75]),
        # b_g = -2 - 1 = -3, b_r = 4 - 1 = 3: w = [0 1], U' = R', b_u = 3, v = [1/2
        # 1/2]. P = Q = R' / 2.
        ([4, -2, -2], [1, 0.5, 0]),
        # b_g = -1 + 5/2 and b_r = 2 - 1/2 are 3/2: U' = [1/2 1 0], as above. b_u = 1 -
        # 1 = 0: v = [0 1]. P = 0, Q = R', S = [0 1/2 1]. F = [1/2, 1/4 + 1/8, 0].
        ([2, -1, 5], [1, 0.75, 0]),
    ],
    ids=["both negative", "both zero", "region", "gradient", "union"],
)
def test_contributions_that_are_not_positive_count_as_zero(weights, expected):
    actual = fuse(weights, [0, 2, 1], [2, 1, 0])
    assert actual == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size, expected", [(1e-17, [1, 1, 0]), (1e-9, [0, 1, 0.75])])
def test_contributions_as_small_as_rounding_count_as_zero(size, expected):
    # As "both zero" and "region" above. The scores have a resolution of 2e-16.
    weights = [-4 * size, 2 * size, 2 * size]
    actual = fuse(weights, [0, 2, 1], [2, 1, 0], bias=0.0)
    assert actual == pytest.approx(expected, abs=1e-9)


def test_a_constant_union_leaves_the_region_map():
    # G' = [1 0], R' = [0 1], b_g = b_r = 1: U = [1/2 1/2], U' = 0, b_u = 0, v = [0 1].
    # P = 0, Q = [0 1], S = [1 0]: F = [0 1/2].
    assert fuse([1, 1], [3, 0], [0, 7]) == [0, 1]


@pytest.mark.parametrize("weights", [[1, 1, 1], [-1, -1, -1]])
@pytest.mark.parametrize("value", [0, 3])
def test_a_constant_gradient_map_leaves_the_region_map(weights, value):
    # G' = 0, b_g = 0. b_r = 3/2 or -3/2: U = R' or R' / 2, U' = R', b_u = b_r, v = [1/2
    # 1/2]: F = R' / 2.
    assert fuse(weights, [value] * 3, [5, 3, 1]) == [1, 0.5, 0]


def test_a_constant_region_map_bends_the_gradient_map():
    # R' = 0, b_r = 0, and b_g = 3/2: U' = G' = [1 1/2 0], v = [1 0]. Q = 0, S = 1 - P:
    # F = (1 - P) P + P^2 / 2 = [1/2, 3/8, 0].
    assert fuse([1, 1, 1], [4, 2, 0], [2, 2, 2]) == [1, 0.75, 0]
    # b_g = -3/2: w = v = [1/2 1/2], P = [1/2 1/4 0], Q = 0. F = [1/2 * 1/2 + 1/2 * 1/4,
    # 3/4 * 1/4 + 1/4 * 1/8, 0] = [12 7 0] / 32.
    expected = [1, pytest.approx(7 / 12), 0]
    assert fuse([-1, -1, -1], [4, 2, 0], [2, 2, 2]) == expected


def test_constant_parts_give_a_map_of_zeros_with_a_warning():
    with pytest.warns(UserWarning, match=r"FusionCAM: .* examples \[0\] are constant"):
        assert fuse([1, 2, 3], [1, 1, 1], [2, 2, 2]) == [0, 0, 0]


def test_a_similarity_below_zero_counts_as_zero():
    class Net(nn.Module):
        """A layer of three positions beside an image of four."""

        def __init__(self):
            super().__init__()
            self.layer = nn.AvgPool1d(2, 1)
            weights = torch.tensor([-1, 1, 1, 0], dtype=torch.float64)
            self.register_buffer("weights", weights)

        def forward(self, image):
            self.layer(image)
            return (image * self.weights).sum((1, 2))[:, None]

    # The entries of the resized maps are at -1/8, 5/8, 11/8 and 17/8: [0 4 3] gives [0,
    # 5/2, 29/8, 3], and [1 0 0] gives [1 3/8 0 0]. G' = [0 32/29 24/29], which leaves
    # [0, 1], and R' = [1 0 0]. b_g = 20/29 + 1, b_r = -1 + 3/8: w = [1 0], U' = G', v =
    # [1 0]. P = G', Q = 0, S = [1, 0, 5/29], the second for 1 - 32/29. F = [0, 16/29,
    # 5/29 * 24/29 + 24/29 * 12/29] = [0, 16/29, 408/841], over 16/29.
    net = Net()
    cam = FusionCAM(net, net.layer, parts=[Fixed(0, 4, 3), Fixed(1, 0, 0)])
    actual = cam.attribute(torch.ones(1, 1, 4).double())[0, 0].tolist()
    assert actual == pytest.approx([0, 1, 51 / 58], abs=1e-12)


@pytest.mark.filterwarnings("ignore:.* are constant")
def test_maps_reach_0_and_1_and_do_not_leave_them():
    net, inputs = Case().build(1)
    maps = FusionCAM(net, net.layer).attribute(inputs, target=[0, 1, 2]).flatten(1)
    assert torch.equal(maps.amin(1), torch.zeros(3).double())
    assert torch.equal(maps.amax(1), torch.ones(3).double())
