"""State: a call neither changes what it meets nor depends on PyTorch's modes."""

import random
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from contract.shared import (
    CHANNELS,
    CONTRACT_MARKS,
    GRADIENT,
    MASKING,
    TARGETS,
    ArgsNet,
    assert_same_states,
    every_method,
    make_images,
    make_net,
    output_and_input,
    perturbing_method,
    states,
    storage,
    zeros_allowed_if_ranking,
)
from torch import nn

pytestmark = CONTRACT_MARKS


# Inputs, arguments and activations


@every_method
@pytest.mark.parametrize("requires_grad", [False, True])
def test_inputs_are_left_alone(method, net, images, requires_grad):
    images.requires_grad_(requires_grad)
    if requires_grad:
        images.grad = torch.ones_like(images)
    before = states([images])
    method(net, net.relu).attribute(images, target=1)
    assert_same_states([images], before)


@every_method
def test_arguments_are_not_changed(method, images, gain, class_weights):
    net = ArgsNet()
    class_weights.requires_grad_()
    power, options = torch.tensor(2.0, dtype=torch.float64), [3.0, "any"]
    before = states([gain, power, class_weights])
    arguments = (gain, power, class_weights, options)
    with zeros_allowed_if_ranking(method):
        method(net, net.relu).attribute(images, 1, arguments)
    assert_same_states([gain, power, class_weights], before)
    assert options == [3.0, "any"]
    assert all(a is b for a, b in zip(arguments, (gain, power, class_weights, options)))


@every_method
@output_and_input
def test_the_models_own_activations_are_left_alone(
    method, net, images, attribute_to_layer_input
):
    seen = []
    for layer in (net.conv, net.relu, net.after):
        layer.register_forward_hook(
            lambda module, args, out: seen.append((out, out.clone(), out._version))
        )
    method(net, net.relu).attribute(
        images, 1, attribute_to_layer_input=attribute_to_layer_input
    )
    assert len(seen) >= 3
    for tensor, value, version in seen:
        assert torch.equal(tensor, value)
        assert tensor._version == version


@every_method
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@output_and_input
def test_a_layer_that_holds_the_input_itself_leaks_no_gradient(
    method, net, images, mode, attribute_to_layer_input
):
    model = nn.Sequential(OrderedDict(first=nn.Identity(), net=net))
    before = states([images])
    with mode():
        method(model, model.first).attribute(
            images, 1, attribute_to_layer_input=attribute_to_layer_input
        )
    assert_same_states([images], before)
    assert torch.equal(images, make_images())


# The model


@every_method
def test_parameters_keep_their_flags_and_their_gradients(method, net, images):
    for i, parameter in enumerate(net.parameters()):
        parameter.grad = torch.full_like(parameter, i)
        parameter.requires_grad_(i % 2 == 0)
    parameters = list(net.parameters())
    before = states(parameters)
    grads = [p.grad.clone() for p in parameters]
    method(net, net.relu).attribute(images, target=1)
    assert_same_states(parameters, before)
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, grads))


@every_method
def test_buffers_and_mixed_training_flags_stay(method, images):
    net = make_net(after_layer=nn.BatchNorm2d(CHANNELS))
    net.train()
    net.after.eval()
    net.tanh.eval()
    flags = [module.training for module in net.modules()]
    assert set(flags) == {True, False}
    buffers = list(net.buffers())
    before = states(buffers)
    method(net, net.relu).attribute(images, target=1)
    assert [module.training for module in net.modules()] == flags
    assert_same_states(buffers, before)
    assert all(new is old for new, old in zip(net.buffers(), buffers, strict=True))


# Autograd's modes


@every_method
def test_no_grad_callers_get_the_same_map(method, net, images):
    expected = method(net, net.relu).attribute(images, target=1)
    with torch.no_grad():
        maps = method(net, net.relu).attribute(images, target=1)
        assert not torch.is_grad_enabled()
    assert torch.equal(maps, expected)


@every_method
def test_inference_mode_callers_get_the_same_map(method, images, gain, class_weights):
    net, target = ArgsNet(), torch.tensor(TARGETS)
    cam = method(net, net.relu)
    expected = cam.attribute(images, target, (gain, None, class_weights))
    with torch.inference_mode():
        inner = [t.clone() for t in (images, target, gain, class_weights)]
        assert all(t.is_inference() for t in inner)
        maps = cam.attribute(inner[0], inner[1], (inner[2], None, inner[3]))
        assert torch.is_inference_mode_enabled()
    assert torch.equal(maps, expected)
    assert not maps.is_inference()


@every_method
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("target", [1, (9999,) * 20], ids=["right", "wrong"])
def test_the_callers_grad_mode_is_restored(method, net, images, mode, target):
    with mode():
        before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        try:
            method(net, net.relu).attribute(images, target=target)
        except AssertionError:
            assert target != 1
        after = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        assert after == before
    assert torch.is_grad_enabled()


@perturbing_method
def test_perturbed_passes_record_no_graph(method, net, images):
    recorded = []

    def model(x):
        output = net(x)
        recorded.append(output.requires_grad)
        return output

    method(model, net.relu).attribute(images, target=1)
    assert sum(recorded) == (1 if method in GRADIENT else 0)


# The process


@every_method
def test_the_random_generators_stay(method, net, images):
    for draw in (torch.rand, np.random.rand, random.randrange):
        draw(3)  # away from the state of a fresh seed
    torch_state = torch.get_rng_state()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    method(net, net.relu).attribute(images, target=1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_equal(np.random.get_state(), numpy_state)
    assert random.getstate() == python_state


@every_method
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_the_default_type_stays_and_does_not_matter(method, net, images, default):
    expected = method(net, net.relu).attribute(images, target=1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        maps = method(net, net.relu).attribute(images, target=1)
        assert torch.get_default_dtype() == default
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(maps, expected)


@every_method
@pytest.mark.parametrize("layer", ["conv", "relu"])
def test_an_ordinary_call_gives_no_warning(method, net, images, layer):
    layer = net.get_submodule(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(net, layer).attribute(images, target=1)


@every_method
def test_two_runs_are_bitwise_equal(method, net, images):
    cam = method(net, net.relu)
    first, second = (cam.attribute(images, target=TARGETS) for _ in range(2))
    assert torch.equal(first, second)
    assert storage(first) != storage(second)


@every_method
def test_a_list_of_tensors_of_inference_mode_is_taken(method, net, images):
    def model(batch, options):
        return net(batch * options[0] * options[1]["gain"])

    with torch.inference_mode():
        gain = torch.full((1, 3, 1, 1), 1.5, dtype=torch.float64)
        options = [gain, {"gain": gain.clone()}]
        maps = method(model, net.relu).attribute(images, 1, (options,))
    assert not maps.is_inference()
    expected = method(net, net.relu).attribute(images * 2.25, 1)
    if method not in MASKING:  # whose masks are on the inputs
        torch.testing.assert_close(maps, expected)
