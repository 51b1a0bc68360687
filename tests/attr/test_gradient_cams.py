"""The CAMs of one backward pass, Grad-CAM to LayerCAM: by hand and in loops."""

import numpy as np
import pytest
import reference_family as family
import torch
from captum.attr import LayerGradCam
from nets import CASES, Case, Weighed, example
from reference import Model
from torch import nn

from captum_unioncam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM

REFERENCES = {
    GradCAM: family.grad_cam,
    GradCAMPlusPlus: family.grad_cam_plus_plus,
    XGradCAM: family.x_grad_cam,
    HiResCAM: family.hi_res_cam,
    LayerCAM: family.layer_cam,
}
every_cam = pytest.mark.parametrize("cam", REFERENCES, ids=lambda cam: cam.__name__)

# Signed layers have examples without positive evidence, and hand-worked maps are small.
may_be_flat = pytest.mark.filterwarnings("ignore:.* are flat")


def explain(cam, net, inputs, **options):
    """The map of the only example, as nested lists."""
    return cam(net, net.layer).attribute(inputs, **options)[0, 0].tolist()


@may_be_flat
@every_cam
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_paper_in_loops(case, seed, cam):
    net, inputs = case.build(seed)
    net.second.weight.data[3] = 0  # a dead channel, which still counts in the sum
    net.second.bias.data[3] = 0.5
    targets = [2, 0, 1]
    actual = cam(net, net.layer).attribute(inputs, target=targets)
    assert actual.shape[:2] == (3, 1) and actual.dtype == torch.float64
    for i, target in enumerate(targets):
        tensors = Model(net, net.layer, target).activations_and_gradients(
            [inputs[i].numpy()]
        )
        expected = REFERENCES[cam](*tensors)
        np.testing.assert_allclose(actual[i, 0], expected, rtol=1e-9, atol=1e-9)


@every_cam
def test_the_cases_have_gradients_of_both_signs_and_maps_that_differ(cam):
    net, inputs = Case(signed=True).build(1)
    tensors = Model(net, net.layer, 1).activations_and_gradients([inputs[0].numpy()])
    assert all((array < 0).any() and (array > 0).any() for array in tensors)
    maps = [reference(*tensors) for reference in REFERENCES.values()]
    differ = [not np.allclose(REFERENCES[cam](*tensors), other) for other in maps]
    assert sum(differ) == len(REFERENCES) - 1 and all(other.any() for other in maps)


@every_cam
def test_explains_the_layers_input_if_asked(cam):
    net, inputs = Case().build(1)
    net.layer = nn.Tanh()
    actual = cam(net, net.layer).attribute(
        inputs, target=1, attribute_to_layer_input=True
    )
    expected = cam(net, net.second).attribute(inputs, target=1)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(actual, cam(net, net.layer).attribute(inputs, target=1))


def test_grad_cam_by_hand():
    # Means of the gradients 1 and -1: [1 * 2 - 1 * 1, 1 * -1 - 1 * 1, 1 * 3 - 1 * 1].
    net = Weighed([[0, 3, 0], [-2, 1, -2]])
    assert explain(GradCAM, net, example([2, -1, 3], [1, 1, 1])) == [1, 0, 2]


@may_be_flat
@pytest.mark.parametrize("case", CASES, ids=str)
def test_grad_cam_is_captums_rectified(case):
    net, inputs = case.build(2)
    actual = GradCAM(net, net.layer).attribute(inputs, target=1)
    captums = LayerGradCam(net, net.layer)
    expected = captums.attribute(inputs, target=1, relu_attributions=True)
    assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-15)


def test_grad_cam_plus_plus_by_hand():
    # S = 4, -2 and 5. alpha_1 = 1/(2 + 4/2) = 1/4, 1/(2 + 4) = 1/6, and 1/(2 - 1) = 1,
    # whose gradient the ReLU drops: w_1 = 1/4 * 1/2 + 1/6 * 1 = 7/24. alpha_2 = 1/(2 -
    # 1) = 1, 1/(2 - 4) = -1/2, and 0 for the gradient 0: w_2 = 1/2 - 1/2 * 2 = -1/2.
    # w_3 = 0. L = 7/24 * [1 2 1] - 1/2 * [-3 1 0] = [43/24 2/24 7/24].
    net = Weighed([[0.5, 1, -0.25], [0.5, 2, 0], [-1, 0, -2]])
    inputs = example([1, 2, 1], [-3, 1, 0], [0, 5, 0])
    expected = [43 / 24, 2 / 24, 7 / 24]
    assert explain(GradCAMPlusPlus, net, inputs) == pytest.approx(expected, abs=1e-12)


def test_grad_cam_plus_plus_gives_no_weight_where_the_denominator_is_zero():
    # S = -2. alpha = 1/(2 - 2 * 1), which counts as 0, and 1/(2 - 1) = 1: w = 1/2, and
    # L = ReLU(1/2 * [-3 1]).
    net = Weighed([[1, 0.5]])
    assert explain(GradCAMPlusPlus, net, example([-3, 1])) == [0, 0.5]


@may_be_flat
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e-5])
def test_grad_cam_plus_plus_of_tiny_gradients_keeps_their_weight(size):
    # alpha = 1/(2 + 4 g), and 1/2 where 4 g is lost beside 2: w = 2 * g/2 = g. The
    # squares and cubes of g are below the smallest float.
    net = Weighed([[1, 1]]).float()
    net.weights *= size
    expected = [1 * size, 3 * size]
    actual = explain(GradCAMPlusPlus, net, example([1, 3]).float())
    assert actual == pytest.approx(expected, rel=1e-4, abs=0)


@may_be_flat
def test_grad_cam_plus_plus_of_a_single_position():
    # alpha = 1/(2 + 2 * 1/2) = 1/3, w = 1/3 * 1/2 = 1/6, L = 1/6 * 2.
    actual = explain(GradCAMPlusPlus, Weighed([[[0.5]]]), example([[2]]))
    assert actual == [[pytest.approx(1 / 3)]]


def test_x_grad_cam_by_hand():
    # w_1 = (2 * 1 + 1 * 3) / (1 + 3) = 5/4. The second channel sums to 0 and weighs 0.
    # w_3 = (1 * -1 + 3 * 1/2) / (-1/2) = -1. L = 5/4 * [1 3] - [-1 1/2] = [2.25 3.25].
    net = Weighed([[2, 1], [5, 1], [1, 3]])
    inputs = example([1, 3], [2, -2], [-1, 0.5])
    assert explain(XGradCAM, net, inputs) == pytest.approx([2.25, 3.25], abs=1e-12)


def test_x_grad_cam_shows_no_negative_evidence():
    # w = (-2 * 1 + 1 * 4 - 3 * 1) / 6 = -1/6, of which nothing is left. In the second
    # image w = (-2 * -1 + 1 * 4 - 3 * 0) / 3 = 2, and L = ReLU([-2 8 0]).
    net = Weighed([[-2, 1, -3]])
    with pytest.warns(UserWarning, match=r"XGradCAM: .* examples \[0\] are flat"):
        assert explain(XGradCAM, net, example([1, 4, 1])) == [0, 0, 0]
    assert explain(XGradCAM, net, example([-1, 4, 0])) == [0, 8, 0]


@may_be_flat
def test_x_grad_cam_of_a_single_position_is_its_own_gradient():
    # w = 3 * 2 / 2 = 3, and 0 for the activation 0.
    net = Weighed([[3], [7]])
    assert explain(XGradCAM, net, example([2], [0])) == [6]


def test_hi_res_cam_by_hand():
    # [2 * 1 - 1 * 1, -1 * 2 + 4 * 1, 1 * -3 + 0 * 1] = [1 2 -3].
    net = Weighed([[2, -1, 1], [-1, 4, 0]])
    inputs = example([1, 2, -3], [1, 1, 1])
    assert explain(HiResCAM, net, inputs) == [1, 2, 0]


def test_layer_cam_by_hand():
    # Without the negative gradients: [2 * 1 + 0, 0 + 4 * 1, 1 * -3 + 0] = [2 4 -3].
    net = Weighed([[2, -1, 1], [-1, 4, 0]])
    inputs = example([1, 2, -3], [1, 1, 1])
    assert explain(LayerCAM, net, inputs) == [2, 4, 0]


def test_layer_cam_of_negative_gradients_is_zero_where_hi_res_cam_is_not():
    net, inputs = Weighed([[-1, -2]]), example([-1, -3])
    assert explain(HiResCAM, net, inputs) == [1, 6]
    with pytest.warns(UserWarning, match=r"LayerCAM: .* examples \[0\] are flat"):
        assert explain(LayerCAM, net, inputs) == [0, 0]


@pytest.mark.parametrize("cam", [GradCAM, HiResCAM, XGradCAM])
def test_a_pooled_linear_head_makes_it_grad_cam(cam):
    # There the gradient of a channel is one number, which is all three weights.
    net, inputs = Case(pooled=True).build(1)
    expected = LayerGradCam(net, net.layer).attribute(inputs, target=2).relu()
    actual = cam(net, net.layer).attribute(inputs, target=2)
    assert expected.any() and torch.allclose(actual, expected, rtol=0, atol=1e-12)


@every_cam
def test_zero_gradients_give_a_map_of_zeros_with_a_warning(cam):
    net = Weighed([[0, 0, 0], [0, 0, 0]], bias=1.0)
    message = rf"{cam.__name__}: the maps of examples \[0\] are flat"
    with pytest.warns(UserWarning, match=message):
        assert explain(cam, net, example([1, 2, 3], [-1, 5, 0])) == [0, 0, 0]


@every_cam
def test_a_channel_of_zeros_adds_nothing(cam):
    net, inputs = Weighed([[1, 2, -1]]), example([1, 2, 0.5])
    longer = Weighed([[1, 2, -1], [3, -4, 5]])
    expected = explain(cam, net, inputs)
    actual = explain(cam, longer, torch.cat([inputs, 0 * inputs], 1))
    assert any(expected) and actual == expected


@every_cam
def test_an_example_that_is_not_finite_is_all_nan_and_named(cam):
    net, inputs = Case().build(0)
    expected = cam(net, net.layer).attribute(inputs, target=1)
    inputs[1, 0, 3, 3] = torch.nan
    message = rf"{cam.__name__}: the maps of examples \[1\] are NaN"
    with pytest.warns(UserWarning, match=message):
        actual = cam(net, net.layer).attribute(inputs, target=1)
    assert expected.flatten(1).any(1).all()
    assert actual[1].isnan().all()
    assert torch.equal(actual[[0, 2]], expected[[0, 2]])


class Roots(nn.Module):
    """The sum of square roots, whose gradient at 0 is infinite."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, image):
        return self.layer(image).sqrt().sum((1, 2))[:, None]


@every_cam
def test_an_infinite_gradient_of_finite_activations_makes_the_map_nan(cam):
    net = Roots()
    inputs = torch.cat([example([0, 1, 4]), example([1, 9, 4])])
    with pytest.warns(UserWarning, match=rf"{cam.__name__}: .* \[0\] are NaN"):
        maps = cam(net, net.layer).attribute(inputs)
    assert maps[0].isnan().all() and maps[1].isfinite().all()


@every_cam
def test_grad_kwargs_reach_autograd(cam):
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(2, 4, 3)
            self.head = nn.Linear(2, 3)

        def forward(self, image):
            self.layer(image)
            return self.head(image.mean((2, 3)))

    net, inputs = Unused(), torch.rand(2, 2, 6, 6)
    method = cam(net, net.layer)
    with pytest.warns(UserWarning, match=r"examples \[0, 1\] are flat"):
        assert not method.attribute(inputs, target=0).any()
    with pytest.raises(RuntimeError, match="not have been used"):
        method.attribute(inputs, target=0, grad_kwargs={"materialize_grads": False})


@every_cam
def test_refuses_what_is_no_option(cam):
    net, inputs = Case().build(0)
    with pytest.raises(TypeError, match="'?theta'?"):
        cam(net, net.layer).attribute(inputs, target=0, theta=10)
