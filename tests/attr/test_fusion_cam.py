"""FusionCAM: union and similarity by hand and in loops, its parts and options."""

import math

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from nets import CASES, Case, Weighed, example
from reference import Model, masked
from reference_family import drop_below, fusion_cam, grad_cam, score_cam
from torch import nn

from captum_unioncam import DenoisedGradCAM, FusionCAM, RegionCAM, ScoreCAM

TOLERANCE = {"rtol": 0, "atol": 1e-6}
LN2 = math.log(2)

# Signed layers have examples without positive evidence.
may_be_flat = pytest.mark.filterwarnings("ignore:.* are flat")


def explain(net, inputs, **options):
    """The map of the only example, as nested lists."""
    return FusionCAM(net, net.layer).attribute(inputs, **options)[0, 0].tolist()


def default_parts(model, image, baseline, theta=10.0, count=None):
    activations, gradients = model.activations_and_gradients([image])
    gradient_map = drop_below(grad_cam(activations, gradients), theta)
    return gradient_map, score_cam(model, [image], [baseline], activations, count)


@may_be_flat
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_paper_in_loops(case, seed):
    net, inputs = case.build(seed)
    net.second.weight.data[3] = 0  # a dead channel, which takes part in ScoreCAM
    net.second.bias.data[3] = 0.5
    targets = [0, 1, 2]
    theta, count = ((10.0, None), (0.0, 2), (55.0, None))[seed]
    actual = FusionCAM(net, net.layer).attribute(
        inputs, target=targets, theta=theta, max_channels=count
    )
    assert actual.shape[:2] == (3, 1) and actual.dtype == torch.float64
    for i, target in enumerate(targets):
        image = inputs[i].numpy()
        baseline = np.zeros_like(image)
        model = Model(net, net.layer, target)
        parts = default_parts(model, image, baseline, theta, count)
        expected = fusion_cam(model, [image], [baseline], *parts)
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)


@may_be_flat
@pytest.mark.parametrize("score", ["identity", "sigmoid"])
def test_matches_the_paper_with_other_scores_and_baselines(score):
    net, inputs = Case().build(5)
    baseline = torch.tensor([0.7, -0.4], dtype=torch.float64).view(1, 2, 1, 1)
    functions = {"identity": lambda output: output, "sigmoid": torch.sigmoid}
    actual = FusionCAM(net, net.layer).attribute(
        inputs, target=2, baselines=baseline, score_func=functions[score]
    )
    for i, image in enumerate(inputs.numpy()):
        full = np.broadcast_to(baseline[0].numpy(), image.shape)
        model = Model(net, net.layer, 2, score)
        parts = default_parts(model, image, full)
        expected = fusion_cam(model, [image], [full], *parts)
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)


def test_the_cases_have_contributions_of_every_sign():
    signs = set()
    for case in CASES:
        for seed in range(3):
            net, inputs = case.build(seed)
            for i, target in enumerate([0, 1, 2]):
                image = inputs[i].numpy()
                black = np.zeros_like(image)
                model = Model(net, net.layer, target)
                maps = default_parts(model, image, black)
                without = model.confidence([black])
                scores = [model.confidence(masked([image], m, [black])) for m in maps]
                signs.add(tuple(score > without for score in scores))
    assert len(signs) == 4


# A case with clean numbers. With c = ln 2, the positions of the whole input are worth e
# = [16 * -3c/16 + 4c, 0 + 4c, -2c] = [c 4c -2c].
# Grad-CAM: the head's rows have the means [2c -c/16 2c], so that G = ReLU([-c 0 0] +
# [0 2c 0] + [2c 2c 2c]) = [c 4c 2c]. Its median is 2c: at theta 50 G = [0 4c 2c], and
# scaled G' = [0 1 1/2].
# ScoreCAM: the masks [0 1 0] and [1 0 0] have the increases 4c and c, the dead channel
# 0: weights of 16, 2 and 1 parts of 19. R = [2 * 16 + 1, 16 * 1 + 1, 1] / 19, and R' =
# [1 1/2 0].
C = LN2
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
    """S max(P, Q) + (1 - S) (P + Q) / 2 for maps without a negative, over its largest.

    At least one position of the maps below is 0 in both, which is the smallest.
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


def test_theta_is_10_by_default():
    # Of 0, 1, ..., 100 the 10th percentile is 10, which stays. ScoreCAM's map is the
    # only channel.
    net, inputs = Weighed([[1.0] * 101], bias=5.0), example(list(range(101)))
    image, ramp = inputs[0].numpy(), np.arange(101.0)
    expected = fusion_cam(
        Model(net, net.layer, 0, "identity"),
        [image],
        [0 * image],
        np.where(ramp < 10, 0, ramp),
        ramp,
    )
    assert explain(net, inputs) == pytest.approx(expected.tolist(), abs=1e-9)
    for other in (9, 11):
        assert explain(net, inputs, theta=other) != pytest.approx(
            expected.tolist(), abs=1e-6
        )


def test_max_channels_chooses_the_channels_of_the_region_map():
    # [16 0 0] varies most, and alone is R: R' = [1 0 0], b_r = c. At theta 100 G' = [0
    # 1 0] and b_g = 4c: w = [4 1] / 5, U = U' * 4/5 = [1 4 0] / 5. b_u = c/4 + 4c, v =
    # [17 4] / 21.
    expected = joined([17 / 84, 17 / 21, 0], [4 / 21, 0, 0])
    assert explain(NET, INPUTS, theta=100, max_channels=1) == expected


class Fixed(LayerAttribution):
    """A part that returns the same map for every example."""

    def __init__(self, *values):
        super().__init__(None, nn.Identity())
        self.values = values

    def attribute(self, inputs, target=None, additional_forward_args=None, **kwargs):
        values = torch.tensor(self.values, dtype=torch.float64)
        return values.expand(len(inputs), 1, -1)


def fuse(weights, gradient_map, region_map, bias=5.0):
    """The map for parts that return these maps, of an image of ones."""
    net = Weighed([weights], bias)
    parts = {"gradient_cam": Fixed(*gradient_map), "region_cam": Fixed(*region_map)}
    cam = FusionCAM(net, net.layer, **parts)
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


def test_a_flat_union_leaves_the_region_map():
    # G' = [1 0], R' = [0 1], b_g = b_r = 1: U = [1/2 1/2], U' = 0, b_u = 0, v = [0 1].
    # P = 0, Q = [0 1], S = [1 0]: F = [0 1/2].
    assert fuse([1, 1], [3, 0], [0, 7]) == [0, 1]


@pytest.mark.parametrize("weights", [[1, 1, 1], [-1, -1, -1]])
@pytest.mark.parametrize("value", [0, 3])
def test_a_flat_gradient_map_leaves_the_region_map(weights, value):
    # G' = 0, b_g = 0. b_r = 3/2 or -3/2: U = R' or R' / 2, U' = R', b_u = b_r, v = [1/2
    # 1/2]: F = R' / 2.
    assert fuse(weights, [value] * 3, [5, 3, 1]) == [1, 0.5, 0]


def test_a_flat_region_map_bends_the_gradient_map():
    # R' = 0, b_r = 0, and b_g = 3/2: U' = G' = [1 1/2 0], v = [1 0]. Q = 0, S = 1 - P:
    # F = (1 - P) P + P^2 / 2 = [1/2, 3/8, 0].
    assert fuse([1, 1, 1], [4, 2, 0], [2, 2, 2]) == [1, 0.75, 0]
    # b_g = -3/2: w = v = [1/2 1/2], P = [1/2 1/4 0], Q = 0. F = [1/2 * 1/2 + 1/2 * 1/4,
    # 3/4 * 1/4 + 1/4 * 1/8, 0] = [12 7 0] / 32.
    expected = [1, pytest.approx(7 / 12), 0]
    assert fuse([-1, -1, -1], [4, 2, 0], [2, 2, 2]) == expected


def test_flat_parts_give_a_map_of_zeros_with_a_warning():
    with pytest.warns(UserWarning, match=r"FusionCAM: .* examples \[0\] are flat"):
        assert fuse([1, 2, 3], [1, 1, 1], [2, 2, 2]) == [0, 0, 0]


def test_a_layer_of_a_single_position_is_all_zeros_with_a_warning():
    net = Weighed([[[1]], [[2]]])
    with pytest.warns(UserWarning, match=r"FusionCAM: .* examples \[0\] are flat"):
        assert explain(net, example([[2]], [[4]])) == [[0]]


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
    cam = FusionCAM(
        net, net.layer, gradient_cam=Fixed(0, 4, 3), region_cam=Fixed(1, 0, 0)
    )
    actual = cam.attribute(torch.ones(1, 1, 4).double())[0, 0].tolist()
    assert actual == pytest.approx([0, 1, 51 / 58], abs=1e-12)


@may_be_flat
def test_maps_reach_0_and_1_and_do_not_leave_them():
    net, inputs = Case().build(1)
    maps = FusionCAM(net, net.layer).attribute(inputs, target=[0, 1, 2]).flatten(1)
    assert torch.equal(maps.amin(1), torch.zeros(3).double())
    assert torch.equal(maps.amax(1), torch.ones(3).double())


@may_be_flat
def test_parts_may_be_any_layer_attribution_and_are_rectified():
    net, inputs = Case().build(3)
    gradient_cam = LayerGradCam(net, net.layer)
    region_cam = DenoisedGradCAM(net, net.layer)
    cam = FusionCAM(net, net.layer, gradient_cam=gradient_cam, region_cam=region_cam)
    actual = cam.attribute(inputs, target=1)
    gradient_maps = gradient_cam.attribute(inputs, target=1).detach()
    assert (gradient_maps < 0).any()
    region_maps = region_cam.attribute(inputs, target=1)
    for i, image in enumerate(inputs.numpy()):
        expected = fusion_cam(
            Model(net, net.layer, 1),
            [image],
            [np.zeros_like(image)],
            gradient_maps[i, 0].relu().numpy(),  # as it is: theta is not for it
            region_maps[i, 0].numpy(),
        )
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)


def test_default_parts_passed_explicitly_change_nothing():
    net, inputs = Case().build(4)
    expected = FusionCAM(net, net.layer).attribute(inputs, target=1)
    cam = FusionCAM(net, net.layer, region_cam=ScoreCAM(net, net.layer))
    actual = cam.attribute(inputs, target=1)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    expected = FusionCAM(net, net.layer).attribute(inputs, target=1, theta=0)
    cam = FusionCAM(net, net.layer, gradient_cam=LayerGradCam(net, net.layer))
    actual = cam.attribute(inputs, target=1)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)


class TwoImages(nn.Module):
    """Two images of different sizes, of which the layer sees the first."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 4, 3, stride=2)
        self.other = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, first, second):
        maps = [torch.tanh(self.layer(first)), torch.tanh(self.other(second))]
        return self.head(torch.cat([m.flatten(2).square().sum(2) for m in maps], 1))


def test_every_image_is_masked_and_the_first_scales_the_maps():
    torch.manual_seed(0)
    net = TwoImages().double()
    inputs = torch.rand(2, 2, 9, 8).double(), torch.rand(2, 1, 5, 6).double()
    actual = FusionCAM(net, net.layer).attribute(inputs, target=[0, 2])
    for i, target in enumerate([0, 2]):
        image = [part[i].numpy() for part in inputs]
        baseline = [np.zeros_like(part) for part in image]
        model = Model(net, net.layer, target)
        activations, gradients = model.activations_and_gradients(image)
        gradient_map = drop_below(grad_cam(activations, gradients), 10.0)
        region_map = score_cam(model, image, baseline, activations)
        expected = fusion_cam(model, image, baseline, gradient_map, region_map)
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)
    cam = FusionCAM(net, net.layer, region_cam=ScoreCAM(net, net.layer))
    maps = cam.attribute(inputs, target=[0, 2])
    assert torch.allclose(maps, actual, rtol=0, atol=1e-9)


def test_the_parts_are_not_those_of_union_cam():
    net, inputs = Case().build(4)
    expected = FusionCAM(net, net.layer).attribute(inputs, target=1)
    for part in (
        {"region_cam": RegionCAM(net, net.layer)},
        {"gradient_cam": DenoisedGradCAM(net, net.layer)},
    ):
        actual = FusionCAM(net, net.layer, **part).attribute(inputs, target=1)
        assert not torch.allclose(actual, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["gradient_cam", "region_cam"])
def test_refuses_parts_that_are_not_instances(name):
    net, _ = Case().build(0)
    with pytest.raises(TypeError, match=f"`{name}` .* the LayerGradCam class; pass an"):
        FusionCAM(net, net.layer, **{name: LayerGradCam})
    with pytest.raises(TypeError, match=f"`{name}` must be a LayerAttribution, got 3"):
        FusionCAM(net, net.layer, **{name: 3})


@pytest.mark.parametrize("name", ["gradient_cam", "region_cam"])
def test_refuses_parts_of_the_wrong_shape(name):
    net, inputs = Case().build(0)
    cam = FusionCAM(net, net.layer, **{name: LayerGradCam(net, net.first)})
    message = rf"`{name}` must return .* got \[\(3, 1, 7, 7\)\]"
    with pytest.raises(ValueError, match=message):
        cam.attribute(inputs, target=0)


def test_refuses_options_that_a_replaced_part_would_have_taken():
    net, inputs = Case().build(0)
    part = LayerGradCam(net, net.layer)
    cam = FusionCAM(net, net.layer, gradient_cam=part, region_cam=part)
    with pytest.raises(ValueError, match="`theta` .* which `gradient_cam` replaces"):
        cam.attribute(inputs, target=0, theta=20)
    with pytest.raises(ValueError, match="`grad_kwargs` .* `gradient_cam` replaces"):
        cam.attribute(inputs, target=0, grad_kwargs={"retain_graph": True})
    with pytest.raises(ValueError, match="`max_channels` .* `region_cam` replaces"):
        cam.attribute(inputs, target=0, max_channels=2)


@pytest.mark.parametrize("theta", [-0.1, 100.5, math.nan])
def test_refuses_theta_outside_of_the_percentiles(theta):
    net, inputs = Case().build(0)
    message = rf"`theta` must be in \[0, 100\], got {theta}"
    with pytest.raises(ValueError, match=message):
        FusionCAM(net, net.layer).attribute(inputs, target=0, theta=theta)


@pytest.mark.parametrize("theta", ["10", None, True])
def test_refuses_theta_that_is_no_number(theta):
    net, inputs = Case().build(0)
    with pytest.raises(TypeError, match="`theta` must be a number"):
        FusionCAM(net, net.layer).attribute(inputs, target=0, theta=theta)


@pytest.mark.parametrize("name", ["max_channels", "perturbations_per_eval"])
def test_refuses_counts_that_are_not_positive_ints(name):
    net, inputs = Case().build(0)
    cam = FusionCAM(net, net.layer)
    with pytest.raises(ValueError, match=f"`{name}` must be a positive int .* got 0"):
        cam.attribute(inputs, target=0, **{name: 0})
    for value in (2.0, "2", True):
        with pytest.raises(TypeError, match=f"`{name}` must be a positive int"):
            cam.attribute(inputs, target=0, **{name: value})


def test_refuses_a_score_func_that_is_no_function():
    net, inputs = Case().build(0)
    with pytest.raises(TypeError, match="`score_func` must be a callable or None"):
        FusionCAM(net, net.layer).attribute(inputs, target=0, score_func=3)


def test_a_replaced_gradient_part_takes_no_gradients():
    net, inputs = Case().build(0)
    graphs = []

    def forward_func(image):
        graphs.append(image.requires_grad)
        return net(image)

    FusionCAM(forward_func, net.layer).attribute(inputs, target=0)
    assert any(graphs)
    graphs.clear()
    cam = FusionCAM(forward_func, net.layer, gradient_cam=ScoreCAM(net, net.layer))
    cam.attribute(inputs, target=0)
    assert graphs and not any(graphs)


def test_an_empty_batch_gives_empty_maps_whatever_the_parts(recwarn):
    net, inputs = Case().build(0)
    part = LayerGradCam(net, net.layer)
    for parts in ({}, {"gradient_cam": part}, {"region_cam": part}):
        cam = FusionCAM(net, net.layer, **parts)
        assert cam.attribute(inputs[:0], target=0).shape == (0, 1, 4, 4)
    assert not recwarn


def test_explains_the_layers_input_if_asked():
    net, inputs = Case().build(1)
    net.layer = nn.Tanh()
    actual = FusionCAM(net, net.layer).attribute(
        inputs, target=1, attribute_to_layer_input=True
    )
    expected = FusionCAM(net, net.second).attribute(inputs, target=1)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-9)
    output = FusionCAM(net, net.layer).attribute(inputs, target=1)
    assert not torch.allclose(actual, output, atol=1e-4)


def test_scoring_func_runs_all_masked_passes_and_nothing_else():
    net, inputs = Case().build(0)
    plain, scored = [], []

    def forward_func(image):
        plain.append(len(image))
        return net(image)

    def scoring_func(image):
        scored.append(len(image))
        return net(image)

    expected = FusionCAM(net, net.layer).attribute(inputs, target=1)
    cam = FusionCAM(forward_func, net.layer, scoring_func=scoring_func)
    assert torch.equal(cam.attribute(inputs, target=1), expected)
    assert plain == [3] and sum(scored) > 3
    with pytest.raises(TypeError, match="`scoring_func` must be a callable or None, g"):
        FusionCAM(net, net.layer, scoring_func="fast")


def test_a_part_that_loses_infinitely_makes_the_map_nan():
    class Log(nn.Module):
        """The logarithm of the first position."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, image):
            return self.layer(image)[:, 0, :1].log()

    # Over ones, [0 1 1] shows its 0 under G' = [1 1/2 0], and ln 1 under R' = [0 0 1].
    net = Log()
    parts = {"gradient_cam": Fixed(2, 1, 0), "region_cam": Fixed(0, 0, 1)}
    cam = FusionCAM(net, net.layer, **parts)
    inputs = torch.cat([example([0, 1, 1]), example([2, 1, 1])])
    with pytest.warns(UserWarning, match=r"FusionCAM: .* examples \[0\] are NaN"):
        maps = cam.attribute(inputs, baselines=1)
    assert maps[0].isnan().all() and maps[1].isfinite().all()
