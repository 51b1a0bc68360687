"""The class, its constructor and its signature, as Captum and its tools expect them."""

import copy
import inspect

import pytest
import torch
from captum.attr import (
    Attribution,
    GradientAttribution,
    LayerAttribution,
    LayerGradCam,
    PerturbationAttribution,
)
from contract.shared import (
    CONTRACT_MARKS,
    GRADIENT,
    METHODS,
    PERTURBING,
    Recorder,
    assert_same_maps,
    every_method,
    make_net,
)

pytestmark = CONTRACT_MARKS


# Classes


@every_method
def test_is_a_layer_attribution_by_its_class_name(method):
    assert issubclass(method, LayerAttribution)
    assert method.get_name() == method.__name__


def test_the_methods_are_captum_attributions_by_their_public_name():
    assert all(issubclass(method, Attribution) for method in METHODS)


@every_method
def test_has_the_base_of_its_kind(method):
    # NoiseTunnel makes noisy inputs require grad for the gradient attributions.
    assert issubclass(method, PerturbationAttribution) == (method in PERTURBING)
    if method in GRADIENT and method not in PERTURBING:
        assert issubclass(method, GradientAttribution)
    if method not in GRADIENT:
        assert not issubclass(method, GradientAttribution)


@every_method
def test_has_no_convergence_delta_and_is_local(method, net):
    cam = method(net, net.relu)
    assert cam.has_convergence_delta() is False
    assert cam.multiplies_by_inputs is False


# attribute


@every_method
def test_signature_of_attribute_begins_like_layer_grad_cam(method):
    parameters = list(inspect.signature(method.attribute).parameters.values())
    common = list(inspect.signature(LayerGradCam.attribute).parameters.values())[:5]
    names = ["self", "inputs", "target", "additional_forward_args"]
    assert [p.name for p in common] == [*names, "attribute_to_layer_input"]
    for ours, captums in zip(parameters, common):
        assert (ours.name, ours.kind, ours.default) == (
            captums.name,
            captums.kind,
            captums.default,
        )


@every_method
def test_target_is_the_second_positional_argument(method, net, images):
    cam = method(net, net.relu)
    expected = cam.attribute(images, target=4)
    assert torch.equal(cam.attribute(images, 4), expected)


@every_method
def test_own_options_have_defaults_and_none_is_a_catch_all(method):
    parameters = inspect.signature(method.attribute).parameters
    for parameter in list(parameters.values())[2:]:
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        assert parameter.default is not parameter.empty
    assert "return_convergence_delta" not in parameters


@every_method
def test_unknown_options_are_refused(method, net, images):
    with pytest.raises(TypeError, match="nt_samples"):
        method(net, net.relu).attribute(images, 1, nt_samples=3)


@every_method
def test_attribute_can_be_unwrapped(method, net, images):
    cam = method(net, net.relu)
    plain = cam.attribute.__wrapped__(cam, images, target=1)
    assert torch.equal(plain, cam.attribute(images, target=1))


# Constructor and attributes


@every_method
def test_constructor_starts_with_model_layer_and_devices(method):
    parameters = list(inspect.signature(method).parameters.values())
    assert [p.name for p in parameters[:3]] == ["forward_func", "layer", "device_ids"]
    assert parameters[2].default is None
    for parameter in parameters[3:]:
        assert parameter.default is not parameter.empty
        assert parameter.kind is not parameter.VAR_KEYWORD


@every_method
def test_constructor_stores_and_never_runs_the_model(method, net):
    forward_func = Recorder(net)
    cam = method(forward_func, net.relu, [0, 1])
    assert forward_func.inputs == []
    assert cam.forward_func is forward_func
    assert cam.layer is net.relu
    assert cam.device_ids == [0, 1]


@every_method
def test_attribute_stores_nothing(method, net, images):
    cam = method(net, net.relu)
    before = dict(vars(cam))
    cam.attribute(images, target=1)
    after = vars(cam)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


@every_method
def test_deep_copies_explain_their_own_model(method, net, images):
    cam = method(net, net.relu)
    expected = cam.attribute(images, target=1)
    copied = copy.deepcopy(cam)
    assert copied.layer is not net.relu
    with torch.no_grad():
        net.conv.weight.zero_()
    assert_same_maps(copied.attribute(images, target=1), expected)


@every_method
def test_layer_and_forward_func_are_read_at_call_time(method, net, images):
    other = make_net(dims=2, outputs=2, background=[0])
    cam = method(net, net.relu)
    cam.attribute(images, target=1)
    cam.forward_func, cam.layer = other, other.conv2
    expected = method(other, other.conv2).attribute(images, target=1)
    assert_same_maps(cam.attribute(images, target=1), expected)
