"""The parts of UnionCAM and FusionCAM that a user may replace."""

import numpy as np
import pytest
import torch
from captum.attr import LayerActivation, LayerGradCam
from nets import Case, Counted, ThreeInputs, TwoTensors, example
from reference import Model
from reference_family import fusion_cam
from torch import nn

from captum_unioncam import (
    DenoisedGradCAM,
    FusionCAM,
    RegionCAM,
    ScoreCAM,
    UnionCAM,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")
either_part = pytest.mark.parametrize("name", ["gradient_cam", "region_cam"])


def test_parts_of_union_cam_may_be_any_layer_attribution_and_are_rectified():
    net, inputs = Case().build(3)
    parts = {
        "gradient_cam": LayerGradCam(net, net.layer),
        "region_cam": DenoisedGradCAM(net, net.layer),
    }
    attributions, details = UnionCAM(net, net.layer, **parts).attribute(
        inputs, target=1, return_details=True
    )
    grad_cam = LayerGradCam(net, net.layer).attribute(inputs, target=1)
    assert (grad_cam < 0).any()
    assert torch.equal(details.denoised_map, grad_cam.relu())
    denoised = DenoisedGradCAM(net, net.layer).attribute(inputs, target=1)
    assert torch.equal(details.region_map, denoised)
    assert details.scored_channels.tolist() == [0, 0, 0]
    assert attributions.shape == (3, 1, 4, 4)


def test_parts_of_fusion_cam_may_be_any_layer_attribution_and_are_rectified():
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
            gradient_maps[i, 0].relu().numpy(),  # unchanged: theta is not for it
            region_maps[i, 0].numpy(),
        )
        np.testing.assert_allclose(actual[i, 0], expected, rtol=0, atol=1e-6)


def test_default_parts_of_union_cam_passed_explicitly_change_nothing():
    net, inputs = Case().build(4)
    plain = UnionCAM(net, net.layer).attribute(inputs, target=1)
    parts = {
        "gradient_cam": DenoisedGradCAM(net, net.layer),
        "region_cam": RegionCAM(net, net.layer),
    }
    cam = UnionCAM(net, net.layer, **parts)
    assert torch.equal(cam.attribute(inputs, target=1), plain)


def test_default_parts_of_fusion_cam_passed_explicitly_change_nothing():
    net, inputs = Case().build(4)
    expected = FusionCAM(net, net.layer).attribute(inputs, target=1)
    cam = FusionCAM(net, net.layer, region_cam=ScoreCAM(net, net.layer))
    actual = cam.attribute(inputs, target=1)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    expected = FusionCAM(net, net.layer).attribute(inputs, target=1, theta=0)
    cam = FusionCAM(net, net.layer, gradient_cam=LayerGradCam(net, net.layer))
    actual = cam.attribute(inputs, target=1)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "method, name, part",
    [
        (UnionCAM, "gradient_cam", LayerGradCam),
        (UnionCAM, "region_cam", ScoreCAM),
        (FusionCAM, "gradient_cam", DenoisedGradCAM),
        (FusionCAM, "region_cam", RegionCAM),
    ],
)
def test_the_default_parts_of_the_other_method_change_the_map(method, name, part):
    net, inputs = Case().build(4)
    expected = method(net, net.layer).attribute(inputs, target=1)
    cam = method(net, net.layer, **{name: part(net, net.layer)})
    assert not torch.allclose(cam.attribute(inputs, target=1), expected, atol=1e-4)


@pytest.mark.parametrize("method, part", [(UnionCAM, RegionCAM), (FusionCAM, ScoreCAM)])
def test_a_part_gets_every_input(method, part):
    torch.manual_seed(0)
    net = ThreeInputs().double()
    sizes = (2, 2, 9, 8), (2, 1, 5, 6), (2, 4)
    inputs = tuple(torch.rand(size, dtype=torch.float64) for size in sizes)
    expected = method(net, net.layer).attribute(inputs, target=[0, 2])
    cam = method(net, net.layer, region_cam=part(net, net.layer))
    actual = cam.attribute(inputs, target=[0, 2])
    assert torch.allclose(actual, expected, rtol=0, atol=1e-9)


class Recorded(LayerGradCam):
    """A part that keeps the arguments of its calls."""

    def __init__(self, *args):
        super().__init__(*args)
        self.calls = []

    def attribute(self, *args, **kwargs):
        self.calls.append(kwargs)
        return super().attribute(*args, **kwargs)


@either_part
@pytest.mark.parametrize("of_input", [False, True])
def test_a_part_gets_captums_common_arguments(two_part_method, name, of_input):
    net, inputs = Case().build(4)

    def forward_func(image, factor):
        return factor * net(image)

    part, factor = Recorded(forward_func, net.layer), torch.tensor([[2.0], [3], [4]])
    cam = two_part_method(forward_func, net.layer, **{name: part})
    cam.attribute(inputs, [0, 2, 1], factor, of_input)
    (arguments,) = part.calls
    (passed,) = arguments.pop("additional_forward_args")
    assert torch.equal(passed, factor)
    assert arguments == {"target": [0, 2, 1], "attribute_to_layer_input": of_input}


def test_parts_leave_the_callers_tensor_alone(two_part_method):
    net, inputs = Case().build(4)
    net = nn.Sequential(nn.Identity(), net)  # whose tensor is the caller's
    part = LayerGradCam(net, net[0])
    two_part_method(net, net[0], gradient_cam=part).attribute(inputs, target=1)
    assert not inputs.requires_grad


def test_a_replaced_gradient_part_takes_no_gradients(two_part_method):
    net, inputs = Case().build(0)
    graphs = []

    def forward_func(image):
        output = net(image)
        graphs.append(output.requires_grad)
        return output

    two_part_method(forward_func, net.layer).attribute(inputs, target=0)
    assert any(graphs)
    graphs.clear()
    part = ScoreCAM(net, net.layer)
    cam = two_part_method(forward_func, net.layer, gradient_cam=part)
    cam.attribute(inputs, target=0)
    assert graphs and not any(graphs)


def test_an_empty_batch_gives_empty_maps_whatever_the_parts(two_part_method, recwarn):
    net, inputs = Case().build(0)
    part = LayerGradCam(net, net.layer)
    for parts in (
        {},
        {"gradient_cam": part},
        {"region_cam": part},
        {"gradient_cam": part, "region_cam": part},
    ):
        cam = two_part_method(net, net.layer, **parts)
        assert cam.attribute(inputs[:0], target=0).shape == (0, 1, 4, 4)
    assert not recwarn


@either_part
def test_a_part_is_called_once_for_each_tensor_of_the_layer(two_part_method, name):
    net = TwoTensors([[1, 3], [1, 1], [4, 1]])
    part = Recorded(net, net.layer)
    cam = two_part_method(net, net.layer, **{name: part})
    maps = cam.attribute(example([1, 2], [3, 0], [2, 2]))
    assert [m.shape for m in maps] == [(1, 1, 2), (1, 1, 2)]
    assert len(part.calls) == 2


@either_part
def test_refuses_parts_that_are_not_instances(two_part_method, name):
    net, _ = Case().build(0)
    message = f"`{name}` must be a LayerAttribution or None, got "
    with pytest.raises(TypeError, match=f"{message}the LayerGradCam class; pass an"):
        two_part_method(net, net.layer, **{name: LayerGradCam})
    with pytest.raises(TypeError, match=f"{message}3"):
        two_part_method(net, net.layer, **{name: 3})


def refuses_shape(method, name, part, got):
    """Expects an error about the shape of a part's maps."""
    net, inputs = Case().build(0)
    cam = method(net, net.layer, **{name: part(net)})
    message = (
        rf"`{name}` must return one map for each example, .* expected \(3, 1, 4, 4\) "
        rf"for each of the layer's tensors, got \[{got}\]"
    )
    with pytest.raises(ValueError, match=message):
        cam.attribute(inputs, target=0)


@either_part
def test_refuses_parts_of_another_size(two_part_method, name):
    def part(net):
        return LayerGradCam(net, net.first)

    refuses_shape(two_part_method, name, part, r"\(3, 1, 7, 7\)")


class Activations(LayerActivation):
    """A part of the right arguments that returns all channels."""

    def attribute(self, inputs, target=None, additional_forward_args=None, **kwargs):
        return super().attribute(inputs, additional_forward_args)


@either_part
def test_refuses_parts_of_several_channels(two_part_method, name):
    def part(net):
        return Activations(net, net.layer)

    refuses_shape(two_part_method, name, part, r"\(3, 5, 4, 4\)")


@pytest.mark.parametrize(
    "option, part",
    [
        ({"theta": 20}, "gradient_cam"),
        ({"grad_kwargs": {"retain_graph": True}}, "gradient_cam"),
        ({"max_channels": 2}, "region_cam"),
        ({"fidelity": 0.9}, "region_cam"),
        ({"fidelity": 0.0}, "region_cam"),
    ],
    ids=["theta", "grad_kwargs", "max_channels", "fidelity", "no fidelity"],
)
def test_refuses_the_options_of_a_replaced_part(two_part_method, option, part):
    net, inputs = Case().build(0)
    counted, (name,) = Counted(net), option
    cam = two_part_method(counted, net.layer, **{part: LayerGradCam(net, net.layer)})
    message = f"`{name}` is an option of the default part, which `{part}` replaces"
    with pytest.raises(ValueError, match=message):
        cam.attribute(inputs, target=0, **option)
    assert not counted.sizes
