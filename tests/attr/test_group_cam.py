"""GroupCAM: groups, denoising and blurred baselines by hand and in loops."""

import math

import numpy as np
import pytest
import torch
from nets import CASES, Case, Weighed, example
from reference import Model
from reference_family import blurred, group_cam
from torch import nn

from captum_unioncam import GroupCAM

TOLERANCE = {"rtol": 0, "atol": 1e-9}

# Signed layers have examples without positive evidence, and hand-worked maps are small.
may_be_flat = pytest.mark.filterwarnings("ignore:.* are flat")

# Three channels in two groups. The head's means are a = [1 1 2] (and its rows are
# constant): M_1 = [1 0 2] + [0 1 1] = [1 1 3], M_2 = 2 * [3 0 1] = [6 0 2]. The
# positions of the whole input are worth 1 + 6, 1, and 2 + 1 + 2: e = [7 1 5].
NET = Weighed([[1, 1, 1], [1, 1, 1], [2, 2, 2]])
INPUTS = example([1, 0, 2], [0, 1, 1], [3, 0, 1])


def explain(net, inputs, **options):
    """The map of the only example, as nested lists."""
    return GroupCAM(net, net.layer).attribute(inputs, **options)[0, 0].tolist()


def expected_map(model, image, baseline=None, groups=32, percentile=70.0):
    activations, gradients = model.activations_and_gradients(image)
    return group_cam(model, image, baseline, activations, gradients, groups, percentile)


@may_be_flat
@pytest.mark.parametrize(
    "groups, percentile", [(32, 70.0), (1, 0), (2, 35.5), (3, 50), (4, 80)]
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_paper_in_loops(case, groups, percentile):
    net, inputs = case.build(8)
    net.second.weight.data[3] = 0  # a dead channel, which belongs to a group
    net.second.bias.data[3] = 0.5
    targets = [2, 0, 1]
    actual = GroupCAM(net, net.layer).attribute(
        inputs, target=targets, groups=groups, percentile=percentile
    )
    assert actual.shape[:2] == (3, 1) and actual.dtype == torch.float64
    for i, target in enumerate(targets):
        model = Model(net, net.layer, target)
        expected = expected_map(model, [inputs[i].numpy()], None, groups, percentile)
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)


@may_be_flat
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_defaults_are_32_groups_and_percentile_70(case, seed):
    net, inputs = case.build(seed)
    targets = [0, 1, 2]
    actual = GroupCAM(net, net.layer).attribute(inputs, target=targets)
    for i, target in enumerate(targets):
        expected = expected_map(Model(net, net.layer, target), [inputs[i].numpy()])
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)


def test_the_default_percentile_is_70_and_what_is_at_it_goes():
    # Of 0, 1, ..., 100 the 70th percentile is 70: 71 and more stay, over 100. The
    # head is ones, so that s = (71^2 + ... + 100^2) / 100 = (100 * 101 * 201 - 70 * 71
    # * 141) / 600 = (338350 - 116795) / 100 = 2215.55, and L = s * i / 100.
    net = Weighed([[1.0] * 101])
    actual = explain(net, example(list(range(101))), baselines=0)
    expected = [0.0] * 71 + [2215.55 * i / 100 for i in range(71, 101)]
    assert actual == pytest.approx(expected, rel=1e-12)


class ManyChannels(nn.Module):
    """A layer of 70 channels, of which every one shows that the image is bright."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(2, 70, 3, stride=2), nn.Sigmoid())
        self.head = nn.Linear(70 * 9, 3)
        self.layer[0].weight.data.abs_()
        self.head.weight.data.abs_()

    def forward(self, image):
        return self.head(torch.tanh(self.layer(image)).flatten(1))


@pytest.mark.parametrize("groups", [None, 3])
def test_groups_that_do_not_divide_the_channels_differ_by_one_at_most(groups):
    torch.manual_seed(0)
    net, inputs = ManyChannels().double(), torch.rand(2, 2, 7, 7).double()
    seen = []

    def forward_func(image):
        seen.append(len(image))
        return net(image)

    options = {} if groups is None else {"groups": groups}
    actual = GroupCAM(forward_func, net.layer).attribute(
        inputs, target=1, baselines=0, score_func=lambda output: output, **options
    )
    for image, map_ in zip(inputs.numpy(), actual):
        model = Model(net, net.layer, 1, "identity")
        black = [np.zeros_like(image)]
        expected = expected_map(model, [image], black, groups or 32)
        np.testing.assert_allclose(map_[0], expected, **TOLERANCE)
        assert expected.max() > 0.1
    # The gradients and the baselines of both examples, and the groups.
    assert sum(seen) == 2 + 2 + 2 * (groups or 32)


@may_be_flat
@pytest.mark.parametrize("score", ["softmax", "identity", "sigmoid"])
def test_matches_the_paper_with_other_scores_and_baselines(score):
    net, inputs = Case().build(5)
    baseline = torch.tensor([0.7, -0.4], dtype=torch.float64).view(1, 2, 1, 1)
    functions = {"identity": lambda output: output, "sigmoid": torch.sigmoid}
    cam = GroupCAM(net, net.layer)
    options = {"target": 2, "groups": 3, "score_func": functions.get(score)}
    actual = cam.attribute(inputs, baselines=baseline, **options)
    for i, image in enumerate(inputs.numpy()):
        full = np.broadcast_to(baseline[0].numpy(), image.shape)
        expected = expected_map(
            Model(net, net.layer, 2, score), [image], [full], groups=3
        )
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)
    assert not torch.allclose(actual, cam.attribute(inputs, **options), atol=1e-4)


class TwoImages(nn.Module):
    """Two images of different sizes, and one that is none."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 6, 3, stride=2)
        self.other = nn.Conv2d(1, 6, 3)
        self.head = nn.Linear(16, 3)

    def forward(self, first, second, vector):
        maps = [torch.tanh(self.layer(first)), torch.tanh(self.other(second))]
        pooled = [m.flatten(2).square().sum(2) for m in maps]
        return self.head(torch.cat([*pooled, vector], 1))


def test_every_image_is_blurred_and_masked_and_the_first_scales_the_map():
    torch.manual_seed(1)
    net = TwoImages().double()
    inputs = (
        torch.rand(2, 2, 9, 8).double(),
        torch.rand(2, 1, 5, 6).double(),
        torch.rand(2, 4).double(),
    )
    actual = GroupCAM(net, net.layer).attribute(inputs, target=[0, 2], groups=4)
    for i, target in enumerate([0, 2]):
        image = [part[i].numpy() for part in inputs]
        expected = expected_map(Model(net, net.layer, target), image, groups=4)
        assert expected.any()
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)


def test_hand_worked_example():
    # The medians are 1 and 2, and what is not above them goes: [0 0 3] and [6 0 0]. The
    # masks are H_1 = [0 0 1] and H_2 = [1 0 0], with s_1 = 5 and s_2 = 7 over black.
    # L = 5 H_1 + 7 H_2.
    actual = explain(NET, INPUTS, groups=2, percentile=50, baselines=0)
    assert actual == pytest.approx([7, 0, 5], abs=1e-12)


def test_percentile_0_drops_the_smallest_entries():
    # [0 0 3] and [6 0 2]: H_1 = [0 0 1], H_2 = [1 0 1/3]. s_1 = 5, s_2 = 7 + 5/3 =
    # 26/3. L = [26/3, 0, 5 + 26/9].
    actual = explain(NET, INPUTS, groups=2, percentile=0, baselines=0)
    assert actual == pytest.approx([26 / 3, 0, 5 + 26 / 9], abs=1e-12)


def test_percentiles_are_interpolated_as_numpys():
    # The 75th percentiles are (1 + 3) / 2 = 2 and (2 + 6) / 2 = 4; the 25th 1 and (0 +
    # 2) / 2 = 1, above which 2 stays: as with 0.
    actual = explain(NET, INPUTS, groups=2, percentile=75, baselines=0)
    assert actual == pytest.approx([7, 0, 5], abs=1e-12)
    actual = explain(NET, INPUTS, groups=2, percentile=25, baselines=0)
    assert actual == pytest.approx([26 / 3, 0, 5 + 26 / 9], abs=1e-12)


def test_percentile_100_leaves_nothing():
    with pytest.warns(UserWarning, match=r"GroupCAM: .* examples \[0\] are flat"):
        actual = explain(NET, INPUTS, percentile=100, baselines=0)
    assert actual == [0, 0, 0]


def test_one_group_is_the_denoised_grad_cam_as_a_mask():
    # [1 0 2] + [0 1 1] + [6 0 2] = [7 1 5], the median 5: [7 0 0], H = [1 0 0], s = 7.
    actual = explain(NET, INPUTS, groups=1, percentile=50, baselines=0)
    assert actual == pytest.approx([7, 0, 0], abs=1e-12)


@pytest.mark.parametrize("groups", [3, 4, 32])
def test_more_groups_than_channels_are_the_channels(groups):
    # The medians of [1 0 2], [0 1 1] and [6 0 2] are 1, 1 and 2: [0 0 2], [0 0 0] and
    # [6 0 0]. The second is flat. L = 5 [0 0 1] + 0 + 7 [1 0 0].
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
    # a = [-1 1]: M_1 = ReLU(-[5 1]) is flat. M_2 = [0 2], H_2 = [0 1], s_2 = e_2 = -1 *
    # 1 + 1 * 2 = 1.
    net = Weighed([[-1, -1], [1, 1]])
    actual = explain(net, example([5, 1], [0, 2]), percentile=0, baselines=0)
    assert actual == [0, 1]


@pytest.mark.parametrize("weights", [[[0, 0, 0]], [[-1, -1, -1]], [[1, -2, 1]]])
def test_without_positive_gradients_there_is_a_map_of_zeros_and_no_masked_pass(weights):
    net, seen = Weighed(weights), []

    def forward_func(image):
        seen.append(len(image))
        return net(image)

    with pytest.warns(UserWarning, match=r"GroupCAM: .* examples \[0\] are flat"):
        maps = GroupCAM(forward_func, net.layer).attribute(example([1, 2, 3]))
    assert maps.tolist() == [[[0, 0, 0]]]
    assert sum(seen) == 1 + 2  # the gradients, and the baseline twice


def test_a_layer_of_a_single_position_is_flat():
    net = Weighed([[[1]], [[2]]])
    with pytest.warns(UserWarning, match=r"GroupCAM: .* examples \[0\] are flat"):
        assert explain(net, example([[2]], [[4]])) == [[0]]


def images_seen(inputs):
    """All images that the model sees."""
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


@may_be_flat
@pytest.mark.parametrize("length", [1, 2, 3, 7, 24, 25, 26, 27, 60])
def test_the_blur_is_mirrored_at_every_length(length):
    torch.manual_seed(length)
    inputs = torch.rand(1, 1, length, dtype=torch.float64)
    (expected,) = blurred([inputs[0].numpy()], 1)
    np.testing.assert_allclose(images_seen(inputs)[1], expected, rtol=0, atol=1e-12)


@may_be_flat
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
    assert seen[1][0].tolist() == expected.round().tolist()
    # Only the last position is above the median.
    assert seen[-1][0].tolist() == [[*expected.round()[0, :2].tolist(), 201]]


@pytest.mark.parametrize("perturbations", [1, 2, 100])
def test_the_size_of_a_chunk_changes_nothing(perturbations):
    net, inputs = Case().build(3)
    cam = GroupCAM(net, net.layer)
    expected = cam.attribute(inputs, target=[0, 2, 1])
    actual = cam.attribute(
        inputs, target=[0, 2, 1], perturbations_per_eval=perturbations
    )
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)


@may_be_flat
def test_explains_the_layers_input_if_asked():
    net, inputs = Case().build(1)
    net.layer = nn.Tanh()
    actual = GroupCAM(net, net.layer).attribute(
        inputs, target=1, attribute_to_layer_input=True
    )
    expected = GroupCAM(net, net.second).attribute(inputs, target=1)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    output = GroupCAM(net, net.layer).attribute(inputs, target=1)
    assert not torch.allclose(actual, output)


def test_scoring_func_runs_all_masked_passes_and_nothing_else():
    net, inputs = Case().build(0)
    plain, scored = [], []

    def forward_func(image):
        plain.append(len(image))
        return net(image)

    def scoring_func(image):
        scored.append(len(image))
        return net(image)

    expected = GroupCAM(net, net.layer).attribute(inputs, target=1)
    cam = GroupCAM(forward_func, net.layer, scoring_func=scoring_func)
    assert torch.equal(cam.attribute(inputs, target=1), expected)
    assert plain == [3] and sum(scored) > 3
    with pytest.raises(TypeError, match="`scoring_func` must be a callable or None, g"):
        GroupCAM(net, net.layer, scoring_func="fast")


def test_grad_kwargs_reach_autograd():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(2, 4, 3)
            self.head = nn.Linear(2, 3)

        def forward(self, image):
            self.layer(image)
            return self.head(image.mean((2, 3)))

    net, inputs = Unused(), torch.rand(2, 2, 6, 6)
    cam = GroupCAM(net, net.layer)
    with pytest.raises(RuntimeError, match="not have been used"):
        cam.attribute(inputs, target=0, grad_kwargs={"materialize_grads": False})


@pytest.mark.parametrize("name", ["groups", "perturbations_per_eval"])
def test_refuses_counts_that_are_not_positive_ints(name):
    net, inputs = Case().build(0)
    cam = GroupCAM(net, net.layer)
    for value in (0, -3):
        message = f"`{name}` must be a positive int.* got {value}"
        with pytest.raises(ValueError, match=message):
            cam.attribute(inputs, target=0, **{name: value})
    for value in (2.0, "2", True):
        with pytest.raises(TypeError, match=f"`{name}` must be a positive int"):
            cam.attribute(inputs, target=0, **{name: value})


def test_refuses_to_make_no_groups():
    net, inputs = Case().build(0)
    with pytest.raises(TypeError, match="`groups` must be a positive int, got None"):
        GroupCAM(net, net.layer).attribute(inputs, target=0, groups=None)


@pytest.mark.parametrize("value", [-0.1, 100.5, math.nan, math.inf])
def test_refuses_a_percentile_outside_of_the_percentiles(value):
    net, inputs = Case().build(0)
    message = rf"`percentile` must be in \[0, 100\], got {value}"
    with pytest.raises(ValueError, match=message):
        GroupCAM(net, net.layer).attribute(inputs, target=0, percentile=value)


@pytest.mark.parametrize("value", ["70", None, True])
def test_refuses_a_percentile_that_is_no_number(value):
    net, inputs = Case().build(0)
    with pytest.raises(TypeError, match="`percentile` must be a number"):
        GroupCAM(net, net.layer).attribute(inputs, target=0, percentile=value)


def test_refuses_options_of_other_methods():
    net, inputs = Case().build(0)
    cam = GroupCAM(net, net.layer)
    with pytest.raises(TypeError, match="max_channels"):
        cam.attribute(inputs, target=0, max_channels=2)
    with pytest.raises(TypeError, match="`score_func` must be a callable or None"):
        cam.attribute(inputs, target=0, score_func=3)
