"""Models and layers of many kinds: frozen, parallel, repeated, with any outputs."""

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from contract.shared import (
    CLASSES,
    CONTRACT_MARKS,
    EXAMPLES,
    GRADIENT,
    LAYER_SIZE,
    PERTURBING,
    REPLACING,
    SCALED,
    TARGETS,
    Call,
    ManyInputsNet,
    assert_same_maps,
    degenerate_maps_allowed,
    doubtful_scores_allowed,
    every_method,
    gradient_method,
    make_images,
    make_net,
    many_inputs,
    output_and_input,
    perturbing_method,
    seeded,
)
from torch import nn

from captum_unioncam import GroupCAM, SmoothGradCAMPlusPlus

pytestmark = CONTRACT_MARKS


# Kinds of models


@every_method
def test_frozen_models_give_the_same_map(method, net, images):
    expected = method(net, net.relu).attribute(images, target=1)
    net.requires_grad_(False)
    assert torch.equal(method(net, net.relu).attribute(images, target=1), expected)
    assert not any(p.requires_grad for p in net.parameters())


@every_method
@pytest.mark.parametrize("form", ["module", "forward", "no devices"])
def test_data_parallel_on_the_cpu_changes_nothing(
    method, net, images, form, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parallel = nn.DataParallel(net)
    assert parallel.device_ids == []
    cam = {
        "module": lambda: method(parallel, net.relu),
        "forward": lambda: method(parallel.forward, net.relu, parallel.device_ids),
        "no devices": lambda: method(net, net.relu, device_ids=[]),
    }[form]()
    expected = method(net, net.relu).attribute(images, target=TARGETS)
    assert torch.equal(cam.attribute(images, target=TARGETS), expected)


# Outputs


@every_method
def test_outputs_without_examples_are_refused(method, net, images):
    with pytest.raises((IndexError, ValueError), match="0-dim|one row for each"):
        method(lambda x: net(x).sum(), net.relu).attribute(images)


@pytest.mark.parametrize("method", [m for m in PERTURBING if m not in GRADIENT])
def test_models_that_return_futures_work_where_captums_do(method, net, images):
    def model(x):
        future = torch.futures.Future()
        future.set_result(net(x))
        return future

    maps = method(model, net.relu).attribute(images, target=1)
    assert torch.equal(maps, method(net, net.relu).attribute(images, target=1))


@perturbing_method
def test_a_batch_is_scored_in_one_way(method, net, images):
    def model(x, is_probability):
        output = net(x)
        return torch.where(is_probability, output.softmax(1), output)

    kinds = torch.tensor([[True], [False], [True]])
    cam = method(model, net.relu)
    maps = cam.attribute(images, TARGETS, kinds)
    softmax = torch.nn.Softmax(1)
    expected = cam.attribute(images, TARGETS, kinds, score_func=softmax)
    assert torch.equal(maps, expected)


@every_method
@pytest.mark.parametrize("scale", [1e-8, 1e4, -1e4])
@pytest.mark.parametrize("outputs", [1, CLASSES])
def test_scores_of_any_size_give_finite_maps(method, images, scale, outputs):
    net = make_net(outputs=outputs, head=Call(lambda x: x * scale)).float()
    with degenerate_maps_allowed(), doubtful_scores_allowed():
        maps = method(net, net.relu).attribute(images.float(), target=0)
    assert maps.isfinite().all()
    if method in SCALED:
        assert maps.min() >= 0
        assert maps.max() <= 1


# Layers


@every_method
@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_that_the_output_does_not_depend_on_is_no_error(method, images, frozen):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.aside = make_net(), seeded(lambda: nn.Conv2d(3, 2, 3))

        def forward(self, x):
            self.aside(x)
            return self.net(x)

    model = Aside().requires_grad_(not frozen)
    # Of a frozen model, no parameter makes the output part of a graph.
    silent = not (frozen and method in GRADIENT)
    text = "output does not depend on `layer` in a way that autograd can see"
    with degenerate_maps_allowed():
        with nullcontext() if silent else pytest.warns(UserWarning, match=text):
            maps = method(model, model.aside).attribute(images, target=1)
    assert maps.shape == (EXAMPLES, 1, 7, 6)
    assert maps.isfinite().all()


@every_method
def test_layers_that_the_model_never_runs_raise_captums_error(method, net, images):
    with pytest.raises(AssertionError, match="Forward hook did not obtain any outputs"):
        method(net, nn.ReLU()).attribute(images, target=1)


@every_method
@pytest.mark.parametrize("layer, previous", [("relu", "conv"), ("tanh", "conv2")])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_layers_input_is_the_previous_layers_output(
    method, images, layer, previous, in_place
):
    net = make_net(in_place=in_place)
    maps = method(net, net.get_submodule(layer)).attribute(
        images, 1, attribute_to_layer_input=True
    )
    expected = method(net, net.get_submodule(previous)).attribute(images, 1)
    assert_same_maps(maps, expected)


@every_method
def test_a_layer_called_with_keywords_works(method, images):
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def forward(self, x):
            x = self.net.relu(self.net.conv(input=x))
            return self.net[2:](x)

    model, net = Keywords(), make_net()
    maps = method(model, model.net.conv).attribute(images, target=1)
    expected = method(net, net.conv).attribute(images, target=1)
    assert_same_maps(maps, expected)


# Layers that run several times


class Repeated(nn.Module):
    """Runs a module before the layer of a net, on maps of its size or on images.

    The module is the layer itself if it is ``shared``.
    """

    def __init__(self, runs, shared, on_images, middle=None):
        super().__init__()
        self.net = make_net(after_layer=middle)
        self.relu = self.net.relu
        self.early = [self.relu if shared else nn.ReLU() for _ in range(runs)]
        self.on_images = on_images

    def forward(self, x):
        if self.on_images:
            for relu in self.early:
                x = x + 0.5 * relu(x - 0.5)
        x = self.net.conv(x)
        if not self.on_images:
            for relu in self.early:
                x = 1.2 * relu(x) - 0.1
        return self.net[1:](x)


def repeated_and_apart(runs, on_images=False, middle=None):
    """Returns a model whose layer runs early too, and one with other early modules."""
    return (Repeated(runs, shared, on_images, middle) for shared in (True, False))


@every_method
@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("on_images", [False, True])
@output_and_input
def test_the_last_run_of_a_layer_counts(
    method, runs, on_images, attribute_to_layer_input
):
    options = {"attribute_to_layer_input": attribute_to_layer_input}
    # One example goes twice through the pass in which the runs are counted.
    for examples in (1, EXAMPLES):
        images = make_images(examples)
        shared, apart = repeated_and_apart(runs, on_images)
        maps = method(shared, shared.relu).attribute(images, 1, **options)
        expected = method(apart, apart.relu).attribute(images, 1, **options)
        assert maps.shape == (examples, 1, *LAYER_SIZE[:2])
        assert_same_maps(maps, expected)


@every_method
def test_the_last_run_counts_in_data_parallel_models_too(method, images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shared, apart = repeated_and_apart(runs=2)
    maps = method(nn.DataParallel(shared), shared.relu).attribute(images, 1)
    expected = method(apart, apart.relu).attribute(images, 1)
    assert_same_maps(maps, expected)


@every_method
def test_the_last_run_counts_where_a_model_views_its_activations(method, images):
    """A view of channels_last activations fails, and the scorers start anew."""
    view = Call(lambda x: x.view(len(x), -1).view(x.shape))
    shared, apart = repeated_and_apart(runs=1, middle=view)
    maps = method(shared, shared.relu).attribute(images, 1)
    expected = method(apart, apart.relu).attribute(images, 1)
    assert_same_maps(maps, expected)
    _, without_view = repeated_and_apart(runs=1)
    expected = method(without_view, without_view.relu).attribute(images, 1)
    assert_same_maps(maps, expected)


# What the inputs need not do


def of_numpy(images):
    """A preprocessing that no tensor of a graph goes through."""
    return torch.from_numpy(np.array(images.numpy()))


@every_method
def test_preprocessing_in_numpy_works(method, net, images):
    expected = method(net, net.relu).attribute(images, target=1)
    cam = method(lambda batch: net(of_numpy(batch)), net.relu)
    assert torch.equal(cam.attribute(images, target=1), expected)


@gradient_method
def test_frozen_layers_before_the_layer_are_not_stored_for_backward(method, images):
    stored = []

    def pack(tensor):
        stored.append(tensor)
        return tensor

    def bytes_stored(frozen):
        net = make_net()
        net.requires_grad_(not frozen)
        stored.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
            method(net, net.tanh).attribute(images, target=1)
        weights = {p.data_ptr() for p in net.parameters()}
        kept = {t.data_ptr(): t.nbytes for t in stored if t.data_ptr() not in weights}
        return sum(kept.values())

    # The images, two activations and the layer, or what comes after the layer alone.
    assert bytes_stored(frozen=True) < 0.3 * bytes_stored(frozen=False)


# Numbers, arguments and layers of other kinds


class OfComplex(nn.Module):
    """A net of the parts of complex images, (N, 3, 9, 8)."""

    def __init__(self):
        super().__init__()
        self.net = make_net()

    def forward(self, images):
        return self.net(images.real + images.imag)


@every_method
def test_complex_images_are_explained(method, images):
    net = OfComplex()
    expected = method(net.net, net.net.relu).attribute(images, target=1)
    maps = method(net, net.net.relu).attribute(images + 0j, target=1)
    assert maps.dtype == images.dtype
    # Group-CAM blurs real images only, and noise is in both parts.
    if method not in (GroupCAM, SmoothGradCAMPlusPlus):
        assert_same_maps(maps, expected)


@every_method
def test_complex_layers_are_refused(method, images):
    net = make_net(after_layer=Call(lambda maps: torch.view_as_real(maps)[..., 0]))
    net.relu = Call(lambda maps: torch.complex(maps.relu(), maps))
    with pytest.raises(
        TypeError, match="real activations, got complex ones .*torch.ab"
    ):
        method(net, net.relu).attribute(images, target=1)
    if method in GRADIENT:
        return
    plain = make_net()
    cam = method(net, net.relu, reshape_transform=lambda maps: maps.real)
    expected = method(plain, plain.relu).attribute(images, target=1)
    if method not in REPLACING:  # which put entries back
        assert_same_maps(cam.attribute(images, target=1), expected)


@every_method
def test_quantised_layers_are_refused(method, images):
    def quantised(maps):
        with warnings.catch_warnings():  # of quantised types in all
            warnings.simplefilter("ignore")
            return torch.quantize_per_tensor(maps.float(), 0.1, 0, torch.quint8)

    net = make_net(after_layer=Call(lambda maps: maps.dequantize().double()))
    net.relu = Call(quantised)
    with pytest.raises(TypeError, match="`layer` must have .* quantized ones"):
        method(net, net.relu).attribute(images, target=1)


@every_method
def test_a_constant_among_the_inputs_is_refused(method, images):
    net = ManyInputsNet()
    first, large, vector = many_inputs()
    message = r"`inputs` must all have one row .*\(1, 7\).*additional_forward_args"
    with pytest.raises(ValueError, match=message):
        method(net, net.net.relu).attribute((first, large, vector[:1]), target=1)
    with pytest.raises(ValueError, match=message.replace("(1, 7", "(")):
        method(net, net.net.relu).attribute((first, large, vector[0, 0]), target=1)


@perturbing_method
def test_a_number_in_a_tensor_for_one_example_is_named(method, net, images):
    """It looks like a row of the example, and is repeated with it."""

    def model(batch, gain):
        return net(batch) * float(gain)

    cam = method(model, net.relu)
    gain = torch.tensor([2.0])
    with pytest.raises(
        ValueError, match="`additional_forward_args` has a tensor of on"
    ):
        cam.attribute(images[:1], 1, gain)
    expected = cam.attribute(images[:1], 1, 2.0)
    assert torch.equal(cam.attribute(images[:1], 1, gain[0]), expected)


@every_method
def test_a_layer_may_be_assigned_by_name(method, net, images):
    cam = method(net, net.relu)
    cam.layer = "tanh"
    expected = method(net, net.tanh).attribute(images, target=1)
    assert torch.equal(cam.attribute(images, target=1), expected)
    cam.layer = "tan"
    with pytest.raises(ValueError, match="no layer 'tan'; did you mean 'tanh'"):
        cam.attribute(images, target=1)
