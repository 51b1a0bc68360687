"""The parts of UnionCAM and FusionCAM, which a user may give."""

import functools
import re

import numpy as np
import pytest
import torch
from captum.attr import (
    LayerActivation,
    LayerAttribution,
    LayerGradCam,
    PerturbationAttribution,
)
from nets import Case, Counted, ThreeInputs, TwoTensors, example
from reference import Model
from reference_family import fusion_cam
from torch import nn
from torch.utils.checkpoint import checkpoint

from captum_unioncam import (
    DenoisedGradCAM,
    FusionCAM,
    GroupCAM,
    RegionCAM,
    ScoreCAM,
    UnionCAM,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")
either_part = pytest.mark.parametrize("place", [0, 1], ids=["gradient", "region"])
PARTS = {
    UnionCAM: (DenoisedGradCAM, RegionCAM),
    FusionCAM: (DenoisedGradCAM, ScoreCAM),
}


def with_part(method, forward_func, layer, place, part):
    """A union of the method's own parts, one of which is replaced."""
    parts = [own(forward_func, layer) for own in PARTS[method]]
    parts[place] = part
    return method(forward_func, layer, parts=parts)


def test_parts_of_union_cam_may_be_any_layer_attribution_and_are_rectified():
    net, inputs = Case().build(3)
    parts = [LayerGradCam(net, net.layer), DenoisedGradCAM(net, net.layer)]
    attributions, details = UnionCAM(net, net.layer, parts=parts).attribute(
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
    cam = FusionCAM(net, net.layer, parts=[gradient_cam, region_cam])
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
    parts = [DenoisedGradCAM(net, net.layer), RegionCAM(net, net.layer)]
    cam = UnionCAM(net, net.layer, parts=parts)
    assert torch.equal(cam.attribute(inputs, target=1), plain)


def test_default_parts_of_fusion_cam_passed_explicitly_change_nothing():
    net, inputs = Case().build(4)
    expected = FusionCAM(net, net.layer).attribute(inputs, target=1, theta=0)
    parts = [LayerGradCam(net, net.layer), ScoreCAM(net, net.layer)]
    actual = FusionCAM(net, net.layer, parts=parts).attribute(inputs, target=1)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "place, part", [(0, LayerGradCam), (1, ScoreCAM), (1, GroupCAM)]
)
def test_other_parts_change_the_map(place, part):
    net, inputs = Case().build(4)
    expected = UnionCAM(net, net.layer).attribute(inputs, target=1)
    cam = with_part(UnionCAM, net, net.layer, place, part(net, net.layer))
    assert not torch.allclose(cam.attribute(inputs, target=1), expected, atol=1e-4)


def test_a_part_gets_every_input():
    torch.manual_seed(0)
    net = ThreeInputs().double()
    sizes = (2, 2, 9, 8), (2, 1, 5, 6), (2, 4)
    inputs = tuple(torch.rand(size, dtype=torch.float64) for size in sizes)
    expected = UnionCAM(net, net.layer).attribute(inputs, target=[0, 2])
    cam = with_part(UnionCAM, net, net.layer, 1, Plain(net, net.layer))
    actual = cam.attribute(inputs, target=[0, 2])
    assert torch.allclose(actual, expected, rtol=0, atol=1e-9)


class Plain(RegionCAM):
    """A part of a user's own class, which shares nothing."""

    @functools.wraps(RegionCAM.attribute)
    def attribute(self, inputs, *args, **kwargs):
        assert isinstance(inputs, torch.Tensor | tuple)
        return super().attribute(inputs, *args, **kwargs)


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
def test_a_part_gets_captums_common_arguments(uniting_method, place, of_input):
    net, inputs = Case().build(4)

    def forward_func(image, factor):
        return factor * net(image)

    part, factor = Recorded(forward_func, net.layer), torch.tensor([[2.0], [3], [4]])
    cam = with_part(uniting_method, forward_func, net.layer, place, part)
    cam.attribute(inputs, [0, 2, 1], factor, of_input)
    (arguments,) = part.calls
    (passed,) = arguments.pop("additional_forward_args")
    assert torch.equal(passed, factor)
    assert arguments == {"target": [0, 2, 1], "attribute_to_layer_input": of_input}


def test_parts_leave_the_callers_tensor_alone(uniting_method):
    net, inputs = Case().build(4)
    net = nn.Sequential(nn.Identity(), net)  # whose tensor is the caller's
    part = LayerGradCam(net, net[0])
    cam = with_part(uniting_method, net, net[0], 0, part)
    cam.attribute(inputs, target=1)
    assert not inputs.requires_grad


def test_a_replaced_gradient_part_takes_no_gradients(uniting_method):
    net, inputs = Case().build(0)
    graphs = []

    def forward_func(image):
        output = net(image)
        graphs.append(output.requires_grad)
        return output

    uniting_method(forward_func, net.layer).attribute(inputs, target=0)
    assert any(graphs)
    graphs.clear()
    parts = [ScoreCAM(net, net.layer), RegionCAM(forward_func, net.layer)]
    cam = uniting_method(forward_func, net.layer, parts=parts)
    cam.attribute(inputs, target=0)
    assert graphs and not any(graphs)


def test_an_empty_batch_gives_empty_maps_whatever_the_parts(uniting_method, recwarn):
    net, inputs = Case().build(0)
    part = LayerGradCam(net, net.layer)
    region = RegionCAM(net, net.layer)
    for parts in (None, [part, region], [region, part], [part, part]):
        cam = uniting_method(net, net.layer, parts=parts)
        assert cam.attribute(inputs[:0], target=0).shape == (0, 1, 4, 4)
    assert not recwarn


@either_part
def test_a_part_is_called_once_for_each_tensor_of_the_layer(uniting_method, place):
    net = TwoTensors([[1, 3], [1, 1], [4, 1]])
    part = Recorded(net, net.layer)
    cam = with_part(uniting_method, net, net.layer, place, part)
    maps = cam.attribute(example([1, 2], [3, 0], [2, 2]))
    assert [m.shape for m in maps] == [(1, 1, 2), (1, 1, 2)]
    assert len(part.calls) == 2


@either_part
def test_refuses_parts_that_are_not_instances(uniting_method, place):
    net, _ = Case().build(0)
    message = "`parts` must be a LayerAttribution or None, got "
    with pytest.raises(TypeError, match=f"{message}the LayerGradCam class; pass an"):
        with_part(uniting_method, net, net.layer, place, LayerGradCam)
    with pytest.raises(TypeError, match=f"{message}3"):
        with_part(uniting_method, net, net.layer, place, 3)


def refuses_shape(method, place, part, got):
    """Expects an error about the shape of a part's maps."""
    net, inputs = Case().build(0)
    cam = with_part(method, net, net.layer, place, part(net))
    message = (
        r"`parts`: \w+ must return one map for each example, .* expected \(3, 1, 4, 4"
        rf"\) for each of the layer's tensors, got {got}"
    )
    with pytest.raises(ValueError, match=message):
        cam.attribute(inputs, target=0)


@either_part
def test_refuses_parts_of_another_size(uniting_method, place):
    def part(net):
        return LayerGradCam(net, net.first)

    refuses_shape(uniting_method, place, part, r"\(3, 1, 7, 7\)")


class Activations(LayerActivation):
    """A part of the right arguments that returns all channels."""

    def attribute(self, inputs, target=None, additional_forward_args=None, **kwargs):
        return super().attribute(inputs, additional_forward_args)


@either_part
def test_refuses_parts_of_several_channels(uniting_method, place):
    def part(net):
        return Activations(net, net.layer)

    refuses_shape(uniting_method, place, part, r"\(3, 5, 4, 4\)")


@pytest.mark.parametrize(
    "option",
    [
        {"theta": 20},
        {"grad_kwargs": {"retain_graph": True}},
        {"max_channels": 2},
        {"fidelity": 0.9},
        {"fidelity": 0.0},
    ],
    ids=["theta", "grad_kwargs", "max_channels", "fidelity", "no fidelity"],
)
def test_refuses_options_that_no_part_takes(uniting_method, option):
    net, inputs = Case().build(0)
    counted, (name,) = Counted(net), option
    parts = [Recorded(net, net.layer), Recorded(net, net.layer)]
    cam = uniting_method(counted, net.layer, parts=parts)
    message = f"`{name}` is an option that none of the `parts` takes"
    with pytest.raises(ValueError, match=message):
        cam.attribute(inputs, target=0, **option)
    assert not counted.sizes


def test_refuses_a_part_without_a_list(uniting_method):
    net, _ = Case().build(0)
    with pytest.raises(TypeError, match="`parts` must be a list of attributions"):
        uniting_method(net, net.layer, parts=LayerGradCam(net, net.layer))


@pytest.mark.parametrize("count", [0, 1])
def test_refuses_too_few_parts(uniting_method, count):
    net, _ = Case().build(0)
    parts = [LayerGradCam(net, net.layer)] * count
    with pytest.raises(ValueError, match=f"`parts` must hold .* two .* got {count}"):
        uniting_method(net, net.layer, parts=parts)


def test_fusion_cam_refuses_a_third_part():
    net, _ = Case().build(0)
    parts = [LayerGradCam(net, net.layer)] * 3
    with pytest.raises(ValueError, match="`parts` must hold only two .* got 3"):
        FusionCAM(net, net.layer, parts=parts)


@pytest.mark.parametrize("option", [{"theta": 60}, {"max_channels": 2}])
@pytest.mark.parametrize("shared", [True, False])
def test_options_reach_the_parts_that_take_them(option, shared):
    net, inputs = Case().build(4)
    region = RegionCAM(net, net.layer) if shared else Plain(net, net.layer)
    parts = [DenoisedGradCAM(net, net.layer), region]
    found = UnionCAM(net, net.layer, parts=parts).attribute(inputs, 1, **option)
    expected = UnionCAM(net, net.layer).attribute(inputs, 1, **option)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert not torch.equal(expected, UnionCAM(net, net.layer).attribute(inputs, 1))


# What a part shares with its union


@pytest.mark.parametrize(
    "options",
    [
        {"baselines": 0.5},
        {"baselines": torch.rand(3, 2, 7, 7, dtype=torch.float64)},
        {"score_func": torch.sigmoid},
        {"score_func": torch.sigmoid, "baselines": (1.0,)},
    ],
    ids=["number", "images", "score_func", "both"],
)
def test_a_part_that_shares_no_passes_has_the_same_map(uniting_method, options):
    net, inputs = Case().build(4)
    own, region = PARTS[uniting_method]
    gradient = own(net, net.layer)
    shared = [gradient, region(net, net.layer)]
    plain = uniting_method(net, net.layer, parts=shared)

    class Foreign(region):
        def attribute(self, *args, baselines=None, score_func=None, **kwargs):
            return super().attribute(
                *args, baselines=baselines, score_func=score_func, **kwargs
            )

    foreign = [gradient, Foreign(net, net.layer)]
    replaced = uniting_method(net, net.layer, parts=foreign)
    expected = plain.attribute(inputs, target=1, **options)
    maps = replaced.attribute(inputs, target=1, **options)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-12)


class Occlusions(LayerAttribution, PerturbationAttribution):
    """Perturbs the inputs in its own way, which no option changes."""

    def attribute(
        self,
        inputs,
        target=None,
        additional_forward_args=None,
        attribute_to_layer_input=False,
    ):
        raise AssertionError("it ran")


@either_part
@pytest.mark.parametrize("option", ["baselines", "score_func"])
def test_a_part_that_cannot_share_an_option_is_refused(uniting_method, place, option):
    net, inputs = Case().build(0)
    cam = with_part(uniting_method, net, net.layer, place, Occlusions(net, net.layer))
    value = {"baselines": 0.5, "score_func": torch.sigmoid}[option]
    with pytest.raises(
        ValueError, match=f"`{option}` is not an option of Occlusions, one of the"
    ):
        cam.attribute(inputs, target=2, **{option: value})


@either_part
def test_a_part_without_scores_needs_no_option(uniting_method, place):
    net, inputs = Case(signed=True).build(1)
    cam = with_part(uniting_method, net, net.layer, place, LayerGradCam(net, net.layer))
    options = {"baselines": 0.5, "score_func": torch.sigmoid}
    assert cam.attribute(inputs, target=2, **options).isfinite().all()


# Gradients that are zero


def rounded(maps):
    return maps.round(decimals=3)


def checkpointed(maps):
    return checkpoint(lambda values: values * 2, maps.detach(), use_reentrant=True)


NO_GRADIENTS = {"detach": torch.detach, "round": rounded, "checkpoint": checkpointed}


class Cut(nn.Module):
    """Cuts the gradients of some examples between the layer and the head."""

    def __init__(self, net, cut, examples):
        super().__init__()
        self.net, self.layer, self.cut = net, net.layer, cut
        self.examples = examples

    def forward(self, image):
        maps = self.layer(self.net.second(torch.tanh(self.net.first(image))))
        if len(image) == 3:
            chosen = self.examples.view(-1, 1, 1, 1)
            maps = torch.where(chosen, self.cut(maps), maps)
        return self.net.head(4 * maps.flatten(1))


@pytest.mark.parametrize("cut", NO_GRADIENTS)
@pytest.mark.parametrize("examples", [[0, 1, 2], [1]])
@pytest.mark.filterwarnings("ignore:.*use_reentrant")
@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad")
def test_zero_gradients_are_named(uniting_method, cut, examples):
    net, inputs = Case().build(0)
    chosen = torch.tensor([example in examples for example in range(3)])
    model = Cut(net, NO_GRADIENTS[cut], chosen)
    cam = uniting_method(model, model.layer)
    message = rf"{re.escape(str(examples))} are made without the gradient map: all grad"
    with pytest.warns(UserWarning, match=message) as seen:
        cam.attribute(inputs, target=2)
    (warning,) = [w for w in seen if "gradient map" in str(w.message)]
    assert warning.filename == __file__


def test_gradients_that_are_there_give_no_warning(uniting_method, recwarn):
    net, inputs = Case().build(0)
    uniting_method(net, net.layer).attribute(inputs, target=2)
    assert not [w for w in recwarn if "gradient map" in str(w.message)]


# Details


def test_details_keep_no_graph():
    net, inputs = Case(signed=True).build(1)

    def forward_func(image):
        with torch.enable_grad():
            return net(image)

    def score_func(output):
        with torch.enable_grad():
            return output.sigmoid()

    for options in ({}, {"score_func": score_func}):
        maps, details = UnionCAM(forward_func, net.layer).attribute(
            inputs, target=2, return_details=True, **options
        )
        assert not maps.requires_grad
        for name, value in vars(details).items():
            assert not value.requires_grad and value.grad_fn is None, name
