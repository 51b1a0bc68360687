"""Degenerate examples: constant channels and layers, zero gradients, NaN and inf."""

import pytest
import torch
from contract.shared import (
    ADDING,
    CONTRACT_MARKS,
    EXAMPLES,
    PERTURBING,
    RANKING,
    SCALED,
    SHARING,
    Call,
    Recorder,
    assert_same_maps,
    degenerate_maps_allowed,
    every_method,
    make_images,
    make_net,
    one_by_one,
    scaled_method,
    zeros_allowed_if_ranking,
)
from torch import nn

pytestmark = CONTRACT_MARKS


class FixedLayer(nn.Module):
    """Adds to a net a layer of any function of its images; the output depends on it."""

    def __init__(self, function):
        super().__init__()
        self.layer = Call(function)
        self.net = make_net()

    def forward(self, x):
        hidden = self.layer(x)
        return self.net(x + 0.1 * hidden.tanh().sum(1, keepdim=True))


# Constant channels


def three_active_channels(x):
    """Returns images as a layer's output, (N, 3, h, w)."""
    return x * 1


def with_zero_channel(x):
    """Adds a channel of zeros to three active ones, (N, 4, h, w)."""
    return torch.cat([x, 0 * x[:, :1]], 1)


def maps_with_and_without_zero_channel(method, images):
    """Returns the maps of a layer with a channel of zeros, and of one without."""
    models = (FixedLayer(with_zero_channel), FixedLayer(three_active_channels))
    return [method(model, model.layer).attribute(images, target=1) for model in models]


@every_method
def test_channels_of_zeros_give_finite_maps(method, images):
    model = FixedLayer(with_zero_channel)
    cam = method(model, model.layer)
    with zeros_allowed_if_ranking(method):
        maps = cam.attribute(images, target=1)
        expected = one_by_one(cam, images, [1] * EXAMPLES)
    assert maps.isfinite().all()
    assert_same_maps(maps, expected)


@pytest.mark.parametrize("method", ADDING)
def test_channels_of_zeros_add_nothing(method, images):
    maps, expected = maps_with_and_without_zero_channel(method, images)
    assert_same_maps(maps, expected)


@pytest.mark.parametrize("method", SHARING)
def test_channels_of_zeros_take_their_share(method, images):
    maps, expected = maps_with_and_without_zero_channel(method, images)
    shares = maps.amax((2, 3), keepdim=True) / expected.amax((2, 3), keepdim=True)
    # Three active channels of four, and a softmax that is close to uniform.
    assert (0.7 < shares).all()
    assert (shares < 0.8).all()
    assert_same_maps(maps, shares * expected)


# A method that ranks the channels scores the layer of zeros for them.
@pytest.mark.parametrize("method", [m for m in PERTURBING if m not in RANKING])
def test_channels_of_zeros_cost_no_perturbed_pass(method, images):
    rows = []
    for function in (three_active_channels, with_zero_channel):
        model = FixedLayer(function)
        forward_func = Recorder(model)
        method(forward_func, model.layer).attribute(
            images, target=1, perturbations_per_eval=1
        )
        rows.append(sum(forward_func.sizes))
    assert rows[0] == rows[1]


# Constant layers


CONSTANT_LAYERS = {
    "constant": lambda x: torch.full_like(x, 2) + 0 * x,
    "zero": lambda x: 0 * x,
    "1x1": lambda x: x.mean((2, 3), keepdim=True),  # (N, 3, 1, 1)
}
# Their maps are constant too. A constant layer of more positions may have a map that
# is not, because its gradients differ between the positions.
LAYERS_OF_CONSTANT_MAPS = ("zero", "1x1")


@every_method
@pytest.mark.parametrize("layer", CONSTANT_LAYERS)
def test_constant_layers_give_finite_maps(method, images, layer):
    model = FixedLayer(CONSTANT_LAYERS[layer])
    with degenerate_maps_allowed():
        maps = method(model, model.layer).attribute(images, target=1)
    assert maps.isfinite().all()
    if method in SCALED and layer in LAYERS_OF_CONSTANT_MAPS:
        assert not maps.any()


@scaled_method
@pytest.mark.parametrize("layer", LAYERS_OF_CONSTANT_MAPS)
def test_constant_scaled_maps_give_one_warning_that_names_them(method, images, layer):
    model = FixedLayer(CONSTANT_LAYERS[layer])
    text = r"examples \[0, 1, 2\] are constant: they have one value everywhere"
    with pytest.warns(UserWarning, match=text) as caught:
        method(model, model.layer).attribute(images, target=1)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@every_method
def test_zero_gradients_give_finite_maps(method, images):
    net = make_net(after_layer=Call(lambda x: x * 0))
    with degenerate_maps_allowed():
        maps = method(net, net.relu).attribute(images, target=1)
    assert maps.isfinite().all()


# Examples that are not finite


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_example_that_is_not_finite_is_nan_and_stays_alone(method, net, bad):
    images, targets = make_images(4), [4, 0, 2, 1]
    cam = method(net, net.conv)
    expected = cam.attribute(images, target=targets)
    images[2, 1, 3, 3] = bad
    with pytest.warns(UserWarning, match=r"examples \[2\] are NaN") as caught:
        maps = cam.attribute(images, target=targets)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert method.__name__ in str(caught[0].message)
    assert maps[2].isnan().all()
    others = [0, 1, 3]
    assert_same_maps(maps[others], expected[others])
