"""Hooks and errors: a hook of the user runs, no other one stays, no error is lost."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from contract.shared import (
    CHANNELS,
    CONTRACT_MARKS,
    FEW_SAMPLES,
    GRADIENT,
    PERTURBING,
    REPLACING,
    SAMPLED,
    Call,
    Recorder,
    assert_same_maps,
    assert_same_states,
    every_method,
    gradient_method,
    hooks_of,
    make_net,
    output_and_input,
    perturbing_method,
    states,
)
from torch import nn

pytestmark = CONTRACT_MARKS


class Exploding:
    """A forward function that raises from one of its calls on."""

    def __init__(self, model, call, error):
        self.model, self.call, self.error = model, call, error
        self.calls = 0

    def __call__(self, *args):
        self.calls += 1
        output = self.model(*args)
        if self.call is not None and self.calls >= self.call:
            raise self.error
        return output


class ExplodingLayer(nn.Module):
    """A ReLU that raises from one of its calls on."""

    def __init__(self, call, error):
        super().__init__()
        self.call, self.error = call, error
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.call is not None and self.calls >= self.call:
            raise self.error
        return F.relu(x)


class ExplodingBackward(torch.autograd.Function):
    """An identity whose backward pass raises."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no way back")


# Hooks


@every_method
def test_no_hook_stays_after_success(method, net, images):
    before = hooks_of(net)
    method(net, net.relu).attribute(images, target=1)
    method(net, net.relu).attribute(images, target=1, attribute_to_layer_input=True)
    assert hooks_of(net) == before


@every_method
def test_hooks_of_the_user_stay_and_run(method, net, images):
    calls = {"forward": 0, "pre": 0, "backward": 0}

    def count(name):
        def hook(*args):
            calls[name] += 1

        return hook

    net.relu.register_forward_hook(count("forward"))
    net.relu.register_forward_pre_hook(count("pre"))
    net.conv2.register_full_backward_hook(count("backward"))
    before = hooks_of(net)
    forward_func = Recorder(net)
    method(forward_func, net.relu).attribute(images, target=1)
    assert calls["forward"] == calls["pre"] == len(forward_func.inputs) > 0
    expected = 1 if method in GRADIENT else 0
    if method in SAMPLED:
        options = inspect.signature(method.attribute).parameters
        (expected,) = (FEW_SAMPLES[name] for name in options if name in FEW_SAMPLES)
    assert calls["backward"] == expected
    assert hooks_of(net) == before


@every_method
@pytest.mark.parametrize("layer", ["relu", "conv2"])
def test_a_users_hook_that_replaces_an_output_is_respected(method, images, layer):
    hooked, built_in = make_net(), make_net()
    hooked.relu.register_forward_hook(lambda module, args, out: out**2)
    built_in.relu = Call(lambda x: F.relu(x) ** 2)
    maps = method(hooked, hooked.get_submodule(layer)).attribute(images, target=1)
    cam = method(built_in, built_in.get_submodule(layer))
    assert_same_maps(maps, cam.attribute(images, target=1))


@perturbing_method
@output_and_input
def test_only_replaced_passes_see_a_hook(method, net, images, attribute_to_layer_input):
    seen = []

    class Watching(nn.Module):
        def forward(self, x):
            seen.append(len(self._forward_hooks) + len(self._forward_pre_hooks))
            return F.relu(x)

    net.relu = Watching()
    method(net, net.relu).attribute(
        images, 1, attribute_to_layer_input=attribute_to_layer_input
    )
    assert seen[0] > 0
    assert len(seen) > 2
    assert seen[1] == 0  # the reference
    assert set(seen[2:]) == {1 if method in REPLACING else 0}


# Errors


@every_method
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@output_and_input
def test_an_error_in_any_forward_pass_reaches_the_caller_and_leaves_no_trace(
    method, net, images, kind, attribute_to_layer_input
):
    options = {"attribute_to_layer_input": attribute_to_layer_input}
    if method in PERTURBING:
        options["perturbations_per_eval"] = 1
    counter = Exploding(net, None, None)
    method(counter, net.relu).attribute(images, 1, **options)
    assert counter.calls > (CHANNELS if method in PERTURBING else 0)
    hooks, parameters = hooks_of(net), states(net.parameters())
    inputs, default = states([images]), torch.get_default_dtype()
    for call in range(1, counter.calls + 1):
        error = kind("stop")
        with pytest.raises(kind, match="stop") as caught:
            method(Exploding(net, call, error), net.relu).attribute(
                images, 1, **options
            )
        assert caught.value is error
        assert hooks_of(net) == hooks
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() == default
        assert not any(module.training for module in net.modules())
        assert_same_states(list(net.parameters()), parameters)
        assert_same_states([images], inputs)


@every_method
@pytest.mark.parametrize("place", ["relu", "after"])
@output_and_input
def test_an_error_in_the_layer_or_after_it_reaches_the_caller_and_leaves_no_hook(
    method, net, images, place, attribute_to_layer_input
):
    options = {"attribute_to_layer_input": attribute_to_layer_input}
    if method in PERTURBING:  # as many passes each time
        options["perturbations_per_eval"] = 1
    setattr(net, place, ExplodingLayer(None, None))
    method(net, net.relu).attribute(images, target=1, **options)
    calls = net.get_submodule(place).calls
    assert calls > (2 if method in PERTURBING else 0)
    for call in range(1, calls + 1):
        error = ZeroDivisionError("in the layer")
        setattr(net, place, ExplodingLayer(call, error))
        before = hooks_of(net)
        with pytest.raises(ZeroDivisionError, match="in the layer") as caught:
            method(net, net.relu).attribute(images, target=1, **options)
        assert caught.value is error
        assert hooks_of(net) == before


@gradient_method
def test_an_error_in_backward_reaches_the_caller_and_leaves_no_hook(method, images):
    net = make_net(after_layer=Call(ExplodingBackward.apply))
    before = hooks_of(net)
    with pytest.raises(RuntimeError, match="no way back"):
        method(net, net.relu).attribute(images, target=1)
    assert hooks_of(net) == before
    assert torch.is_grad_enabled()
