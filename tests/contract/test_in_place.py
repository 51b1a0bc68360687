"""Operations in place: they change no map, and reach nothing of the caller's."""

from collections import OrderedDict

import pytest
import torch
from contract.shared import (
    CONTRACT_MARKS,
    EXAMPLES,
    TARGETS,
    Call,
    ManyInputsNet,
    assert_same_maps,
    assert_same_states,
    every_method,
    make_net,
    many_inputs,
    output_and_input,
    states,
)
from torch import nn

pytestmark = CONTRACT_MARKS


def halve_in_place(x):
    """Halves the first two channels of maps, (N, K, h, w)."""
    x[:, :2].mul_(0.5)
    return x


# An operation in place, and the same one without.
IN_PLACE = {
    "whole": (lambda x: x.mul_(2).add_(0.1), lambda x: x * 2 + 0.1),
    # Like the skip of a residual block.
    "sum": (lambda x: x.add_(x.roll(1, 3)), lambda x: x + x.roll(1, 3)),
    "part": (halve_in_place, lambda x: torch.cat([x[:, :2] * 0.5, x[:, 2:]], 1)),
}


@every_method
@pytest.mark.parametrize("layer", ["conv", "relu"])
def test_an_in_place_relu_after_or_as_the_layer_changes_nothing(method, images, layer):
    plain, in_place = make_net(), make_net(in_place=True)
    expected = method(plain, plain.get_submodule(layer)).attribute(images, target=1)
    maps = method(in_place, in_place.get_submodule(layer)).attribute(images, target=1)
    assert_same_maps(maps, expected)


@every_method
@pytest.mark.parametrize("place", ["as the layer", "after the layer"])
@output_and_input
@pytest.mark.parametrize("operation", IN_PLACE)
def test_an_in_place_operation_changes_nothing(
    method, images, operation, place, attribute_to_layer_input
):
    options = {"attribute_to_layer_input": attribute_to_layer_input}
    maps = []
    for function in IN_PLACE[operation]:
        net = make_net()
        net.relu = nn.Sequential(nn.Identity(), Call(function), nn.ReLU())
        layer = net.relu[1 if place == "as the layer" else 0]
        # Twice, because the first call may change what the second one sees.
        for _ in range(2):
            maps.append(method(net, layer).attribute(images, TARGETS, **options))
    assert torch.equal(maps[1], maps[0])
    assert torch.equal(maps[3], maps[2])
    assert_same_maps(maps[0], maps[2])


@every_method
@output_and_input
def test_an_in_place_first_operation_reaches_no_input(
    method, net, images, attribute_to_layer_input
):
    options = {"attribute_to_layer_input": attribute_to_layer_input}
    before = states([images])
    for layer in ("first", "net.relu"):
        maps = []
        for function in (lambda x: x * 2, lambda x: x.mul_(2)):
            model = nn.Sequential(OrderedDict(first=Call(function), net=net))
            cam = method(model, model.get_submodule(layer))
            maps.append(cam.attribute(images, 1, **options))
        assert_same_maps(maps[1], maps[0])
    assert_same_states([images], before)


@every_method
def test_an_in_place_operation_on_one_of_several_inputs_reaches_none(method):
    net, inputs = ManyInputsNet(), many_inputs()
    expected = method(net, net.relu).attribute(inputs, target=1)
    before = states(inputs)
    for i in range(3):
        changed = method(
            lambda *args: net(*args[:i], args[i].mul_(2).div_(2), *args[i + 1 :]),
            net.relu,
        )
        assert_same_maps(changed.attribute(inputs, target=1), expected)
    assert_same_states(inputs, before)


@every_method
@pytest.mark.parametrize("shape", [(EXAMPLES, 1, 1, 1), (1, 1, 1, 1)], ids=repr)
def test_an_in_place_operation_on_an_argument_reaches_no_caller(
    method, net, images, shape
):
    argument = torch.full(shape, 0.7, dtype=torch.float64)
    plain = method(lambda x, arg: net(x * (arg * 2)), net.relu)
    in_place = method(lambda x, arg: net(x * arg.mul_(2)), net.relu)
    expected = plain.attribute(images, 1, argument)
    before = states([argument])
    assert_same_maps(in_place.attribute(images, 1, argument), expected)
    assert_same_states([argument], before)
