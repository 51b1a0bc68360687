"""The CAMs of one backward pass, Grad-CAM to LayerCAM, by hand."""

import pytest
import torch
from captum.attr import LayerGradCam
from nets import CASES, Case, Weighed, example

from captum_unioncam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM

# Signed layers have examples without positive evidence, and hand-worked maps are small.
may_be_constant = pytest.mark.filterwarnings("ignore:.* are constant")


def explain(cam, net, inputs, **options):
    """The map of the only example, as nested lists."""
    return cam(net, net.layer).attribute(inputs, **options)[0, 0].tolist()


def test_grad_cam_by_hand():
    # Means of the gradients 1 and -1: [1 * 2 - 1 * 1, 1 * -1 - 1 * 1, 1 * 3 - 1 * 1].
    net = Weighed([[0, 3, 0], [-2, 1, -2]])
    assert explain(GradCAM, net, example([2, -1, 3], [1, 1, 1])) == [1, 0, 2]


@may_be_constant
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


@may_be_constant
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e-5])
def test_grad_cam_plus_plus_of_tiny_gradients_keeps_their_weight(size):
    # alpha = 1/(2 + 4 g), and 1/2 where 4 g is lost beside 2: w = 2 * g/2 = g. The
    # squares and cubes of g are below the smallest float.
    net = Weighed([[1, 1]]).float()
    net.weights *= size
    expected = [1 * size, 3 * size]
    actual = explain(GradCAMPlusPlus, net, example([1, 3]).float())
    assert actual == pytest.approx(expected, rel=1e-4, abs=0)


@may_be_constant
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
    with pytest.warns(UserWarning, match=r"XGradCAM: .* examples \[0\] are constant"):
        assert explain(XGradCAM, net, example([1, 4, 1])) == [0, 0, 0]
    assert explain(XGradCAM, net, example([-1, 4, 0])) == [0, 8, 0]


@may_be_constant
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
    with pytest.warns(UserWarning, match=r"LayerCAM: .* examples \[0\] are constant"):
        assert explain(LayerCAM, net, inputs) == [0, 0]


@pytest.mark.parametrize("cam", [GradCAM, HiResCAM, XGradCAM])
def test_a_pooled_linear_head_makes_it_grad_cam(cam):
    # There the gradient of a channel is one number, which is all three weights.
    net, inputs = Case(pooled=True).build(1)
    expected = LayerGradCam(net, net.layer).attribute(inputs, target=2).relu()
    actual = cam(net, net.layer).attribute(inputs, target=2)
    assert expected.any() and torch.allclose(actual, expected, rtol=0, atol=1e-12)


def test_a_channel_of_zeros_adds_nothing(gradient_only_method):
    net, inputs = Weighed([[1, 2, -1]]), example([1, 2, 0.5])
    longer = Weighed([[1, 2, -1], [3, -4, 5]])
    expected = explain(gradient_only_method, net, inputs)
    wider = torch.cat([inputs, 0 * inputs], 1)
    actual = explain(gradient_only_method, longer, wider)
    assert any(expected) and actual == expected
