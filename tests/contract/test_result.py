"""The maps that come back: size, type, memory, scale, and one for each tensor."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from contract.shared import (
    CHANNELS,
    CONTRACT_MARKS,
    EXAMPLES,
    LAYER_SIZE,
    TARGETS,
    Call,
    Recorder,
    assert_same_maps,
    every_method,
    every_rank,
    make_images,
    make_net,
    perturbing_method,
    scaled_method,
    seeded,
    storage,
    zeros_allowed_if_ranking,
)
from torch import nn

pytestmark = CONTRACT_MARKS


# Size and type


@every_method
@every_rank
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)
def test_result_has_the_layers_size_and_type(method, dims, dtype):
    net = make_net(dims).to(dtype)
    maps = method(net, net.relu).attribute(make_images(dims=dims).to(dtype), target=1)
    assert maps.shape == (EXAMPLES, 1, *LAYER_SIZE[:dims])
    assert maps.dtype == dtype
    assert maps.isfinite().all()
    assert maps.flatten(1).amax(1).gt(0).all()


@every_method
@every_rank
def test_low_precision_gives_nearly_the_same_map(method, dims):
    net, images = make_net(dims), make_images(dims=dims)
    expected = method(net, net.conv).attribute(images, target=1)
    net = net.float()
    maps = method(net, net.conv).attribute(images.float(), target=1)
    tolerance = 1e-4 * expected.max().item()  # most maps are not scaled
    torch.testing.assert_close(maps.double(), expected, rtol=1e-3, atol=tolerance)


@every_method
def test_result_has_the_layers_type_under_autocast(method, net, images):
    net, images = net.float(), images.float()
    seen = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net.relu.register_forward_hook(lambda *args: seen.append(args[2].dtype))
        maps = method(net, net.relu).attribute(images, target=1)
        assert torch.is_autocast_enabled("cpu")
    assert set(seen) == {torch.bfloat16}
    assert maps.dtype == torch.bfloat16
    assert maps.isfinite().all()
    assert maps.flatten(1).amax(1).gt(0).all()


@perturbing_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_perturbed_inputs_keep_their_type(method, net, images, dtype):
    forward_func = Recorder(net.to(dtype))
    method(forward_func, net.relu).attribute(images.to(dtype), target=1)
    assert {inp.dtype for inp in forward_func.inputs} == {dtype}


@scaled_method
@pytest.mark.parametrize("layer", ["conv", "relu", "conv2", "tanh"])
def test_scaled_maps_span_zero_to_one(method, net, images, layer):
    maps = method(net, net.get_submodule(layer)).attribute(images, target=[0, 1, 2])
    assert torch.equal(maps.flatten(1).amin(1), torch.zeros(EXAMPLES).double())
    assert torch.equal(maps.flatten(1).amax(1), torch.ones(EXAMPLES).double())


# Memory


@every_method
def test_result_is_detached_contiguous_and_owns_its_memory(method, net, images):
    images.requires_grad_()
    seen = []
    net.relu.register_forward_hook(lambda *args: seen.append(args[2]))
    maps = method(net, net.relu).attribute(images, target=1)
    assert not maps.requires_grad
    assert maps.grad_fn is None
    assert maps.is_contiguous()
    assert maps._base is None
    assert maps.untyped_storage().nbytes() == maps.numel() * maps.element_size()
    others = [images, *net.parameters(), *seen]
    assert storage(maps) not in map(storage, others)


@every_method
def test_one_channel_and_one_example_do_not_alias_the_activation(method):
    conv = seeded(lambda: nn.Conv2d(3, 1, 3))
    nn.init.ones_(conv.bias)
    model = nn.Sequential(conv, nn.Identity(), nn.Softplus(), nn.Flatten())
    seen = []
    conv.register_forward_hook(lambda *args: seen.append(args[2]))
    images = make_images(1)
    with zeros_allowed_if_ranking(method):
        maps = method(model, conv).attribute(images, target=1)
    expected = maps.clone()
    for tensor in [images, *seen]:
        tensor.detach().fill_(7)
    assert torch.equal(maps, expected)


@every_method
def test_channels_last_inputs_give_a_contiguous_result(method, net, images):
    expected = method(net, net.relu).attribute(images, target=1)
    net = net.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    maps = method(net, net.relu).attribute(images, target=1)
    assert maps.is_contiguous()
    assert_same_maps(maps, expected)


# Layers of several tensors


def split(x):
    """Turns maps, (N, K, h, w), into two tensors; the second is of half the size."""
    return F.relu(x), F.max_pool2d(x, 2)


def join(pair):
    """Turns the two tensors of :func:`split` into one, (N, K, h, w)."""
    return pair[0] + 0.5 * F.interpolate(pair[1], LAYER_SIZE[:2])


class Join(nn.Module):
    """Takes the two tensors as two arguments: its input is a tuple."""

    def forward(self, first, second):
        return join((first, second))


class Joining(nn.Module):
    """Splits maps, and has a module whose input are both tensors."""

    def __init__(self):
        super().__init__()
        self.join = Join()

    def forward(self, x):
        return self.join(*split(x))


class Apart(nn.Module):
    """Splits maps, and has a module for each of the two tensors."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()

    def forward(self, x):
        first, second = split(x)
        return join((self.first(first), self.second(second)))


def split_net(container):
    """A net whose layer returns two tensors in a tuple or a list."""
    net = make_net(after_layer=Call(join))
    net.relu = Call(lambda x: container(split(x)))
    return net


def assert_maps_of_each_tensor_alone(maps, method, images):
    """Compares maps with those of a net that has a layer for each of the tensors."""
    apart = make_net(after_layer=Apart())
    apart.relu = nn.Identity()
    assert len(maps) == 2
    for ours, layer in zip(maps, (apart.after.first, apart.after.second)):
        expected = method(apart, layer).attribute(images, target=TARGETS)
        assert_same_maps(ours, expected)


@every_method
def test_tuple_inputs_and_a_one_tuple_layer_give_one_tensor(method, net, images):
    expected = method(net, net.relu).attribute(images, target=1)
    assert torch.equal(method(net, net.relu).attribute((images,), target=1), expected)
    wrapped = make_net(after_layer=Call(lambda x: x[0]))
    wrapped.relu = Call(lambda x: (F.relu(x),))
    maps = method(wrapped, wrapped.relu).attribute(images, target=1)
    assert isinstance(maps, torch.Tensor)
    assert_same_maps(maps, expected)


@every_method
@pytest.mark.parametrize("container", [tuple, list])
def test_a_layer_of_several_tensors_gives_a_tuple(method, images, container):
    several = split_net(container)
    maps = method(several, several.relu).attribute(images, target=1)
    assert isinstance(maps, tuple)
    assert [tuple(m.shape) for m in maps] == [(3, 1, 5, 4), (3, 1, 2, 2)]
    assert storage(maps[0]) != storage(maps[1])
    assert all(m.is_contiguous() and not m.requires_grad for m in maps)


@every_method
@pytest.mark.parametrize("container", [tuple, list])
def test_each_tensor_of_a_layer_has_the_map_that_it_has_alone(
    method, images, container
):
    several = split_net(container)
    maps = method(several, several.relu).attribute(images, target=TARGETS)
    assert_maps_of_each_tensor_alone(maps, method, images)


@every_method
def test_each_tensor_of_a_layers_input_has_the_map_that_it_has_alone(method, images):
    several = make_net(after_layer=Joining())
    several.relu = nn.Identity()
    maps = method(several, several.after.join).attribute(
        images, TARGETS, attribute_to_layer_input=True
    )
    assert_maps_of_each_tensor_alone(maps, method, images)


# Refused layers and inputs


@every_method
def test_layers_that_are_not_spatial_are_refused(method, net, images):
    with pytest.raises(ValueError, match="spatial"):
        method(net, net.linear).attribute(images, target=1)


@every_method
def test_a_layer_without_a_row_for_each_example_is_refused(method, images):
    fold = Call(lambda x: x.flatten(0, 1).unsqueeze(1))  # (N * K, 1, h, w)
    unfold = Call(lambda x: x.view(-1, CHANNELS, *LAYER_SIZE[:2]))  # (N, K, h, w)
    model = make_net(after_layer=nn.Sequential(OrderedDict(fold=fold, unfold=unfold)))
    with pytest.raises(ValueError, match="one row for each example"):
        method(model, model.after.fold).attribute(images, target=1)


@every_method
def test_a_list_of_inputs_is_refused_like_captum_does(method, net, images):
    with pytest.raises(AssertionError, match="`inputs` must be a torch.Tensor"):
        method(net, net.relu).attribute([images], target=1)
