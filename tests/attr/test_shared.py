"""What every method does with batches, layers and outputs, on small networks."""

import pytest
import torch
from headed import HeadedCAM
from nets import Case, Counted, Unused, Weighed, example
from torch import nn

from captum_unioncam import (
    EigenCAM,
    EigenGradCAM,
    FusionCAM,
    GradCAM,
    GroupCAM,
    HiResCAM,
    LayerCAM,
    ReciproCAM,
    UnionCAM,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")

# Methods that scale their maps to [0, 1].
SCALED = (UnionCAM, FusionCAM, ReciproCAM)
TARGETS = [0, 2, 1]


# In float64: the quotients of small differences lose some of the precision.
EXACT, CLOSE = {"rtol": 0, "atol": 1e-12}, {"rtol": 0, "atol": 1e-9}


def precision(method):
    """Returns the tolerance for passes that are packed in another order."""
    return CLOSE if method in SCALED else EXACT


@pytest.mark.parametrize("constant_channel", [False, True])
@pytest.mark.parametrize("perturbations", [1, 2, 100])
def test_the_size_of_a_chunk_changes_nothing(
    scoring_method, perturbations, constant_channel
):
    net, inputs = Case().build(3, constant_channel=constant_channel)
    cam = scoring_method(net, net.layer)
    expected = cam.attribute(inputs, target=TARGETS)
    actual = cam.attribute(inputs, target=TARGETS, perturbations_per_eval=perturbations)
    assert expected.any()
    assert torch.allclose(actual, expected, **precision(scoring_method))


@pytest.mark.parametrize("perturbations, largest", [(1, 3), (3, 9), (None, 4)])
def test_perturbations_per_eval_limits_the_examples_of_a_pass(
    scoring_method, perturbations, largest
):
    net, inputs = Case(signed=True).build(1)
    counted = Counted(net)
    cam = scoring_method(counted, net.layer)
    options = {"target": TARGETS, "perturbations_per_eval": perturbations}
    if scoring_method is GroupCAM:  # of which few groups are active by default
        options["percentile"] = 0
    cam.attribute(inputs, **options)
    assert max(counted.sizes) == largest


@pytest.mark.parametrize("constant_channel", [False, True])
def test_a_map_does_not_depend_on_its_batch(every_method, constant_channel):
    net, inputs = Case().build(3, constant_channel=constant_channel)
    cam = every_method(net, net.layer)
    batch = cam.attribute(inputs, target=TARGETS)
    singles = [
        cam.attribute(inputs[i : i + 1], target=t) for i, t in enumerate(TARGETS)
    ]
    assert torch.allclose(batch, torch.cat(singles), **precision(every_method))


def test_every_form_of_target_gives_the_same_map(every_method):
    net, inputs = Case().build(3)
    cam = every_method(net, net.layer)
    expected = cam.attribute(inputs, target=TARGETS)
    actual = cam.attribute(inputs, target=torch.tensor(TARGETS))
    assert torch.allclose(actual, expected, **precision(every_method))

    if every_method is HeadedCAM:
        return  # it explains outputs (N, classes) alone

    def forward_func(image):
        return net(image)[:, :, None]

    cam = every_method(forward_func, net.layer)
    actual = cam.attribute(inputs, target=[(target, 0) for target in TARGETS])
    assert torch.allclose(actual, expected, **precision(every_method))


def test_an_empty_batch_gives_empty_maps_without_a_warning(every_method, recwarn):
    net, inputs = Case().build(0)
    maps = every_method(net, net.layer).attribute(inputs[:0], target=0)
    assert maps.shape == (0, 1, 4, 4) and not recwarn


def test_an_empty_batch_has_no_channels_to_choose(max_channels_method, recwarn):
    net, inputs = Case().build(0)
    cam = max_channels_method(net, net.layer)
    maps = cam.attribute(inputs[:0], target=0, max_channels=2)
    assert maps.shape == (0, 1, 4, 4) and not recwarn


def test_progress_is_shown_only_if_asked(scoring_method, capsys):
    net, inputs = Case().build(3)
    cam = scoring_method(net, net.layer)
    cam.attribute(inputs, target=0)
    assert capsys.readouterr().err == ""
    cam.attribute(inputs, target=0, show_progress=True)
    assert scoring_method.__name__ in capsys.readouterr().err


def test_the_model_has_no_hooks_left_and_does_what_it_did(every_method):
    net, inputs = Case().build(3)
    before = net(inputs)
    every_method(net, net.layer).attribute(inputs, target=0)
    assert not net.layer._forward_hooks and not net.layer._forward_pre_hooks
    assert torch.equal(net(inputs), before)


# Where the map of the layer's input is that of its output: activations and gradients
# have the same products before and after a ReLU, and a single position is the same
# before and after a function that leaves 0 alone.
SAME_BEFORE = {
    nn.ReLU: (HiResCAM, LayerCAM, EigenGradCAM, ReciproCAM),
    nn.Tanh: (ReciproCAM,),
    nn.Sigmoid: (),
}


@pytest.mark.parametrize(
    "activation, seed", [(nn.ReLU, 4), (nn.Tanh, 2), (nn.Sigmoid, 1)]
)
def test_explains_the_layers_input_if_asked(every_method, activation, seed):
    net, inputs = Case().build(seed)
    net.layer = activation()
    cam = every_method(net, net.layer)
    actual = cam.attribute(inputs, target=1, attribute_to_layer_input=True)
    expected = every_method(net, net.second).attribute(inputs, target=1)
    assert expected.any()
    assert torch.allclose(actual, expected, **EXACT)
    same = torch.allclose(actual, cam.attribute(inputs, target=1), atol=1e-4)
    assert same == (every_method in SAME_BEFORE[activation])


class Viewing(nn.Module):
    """A model that views its input and its layer's output: it relies on strides."""

    def __init__(self, of_input):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.layer = nn.ReLU()
        self.head = nn.Linear(75, 2)
        self.of_input = of_input

    def forward(self, image):
        if self.of_input:
            image = image.view(len(image), -1).view(image.shape)
        maps = self.layer(self.conv(image).contiguous())
        return self.head(maps.view(len(maps), -1))


@pytest.mark.parametrize("of_input", [False, True])
def test_a_model_may_view_its_input_and_the_layers_output(every_method, of_input):
    torch.manual_seed(0)
    net = Viewing(of_input).double()
    inputs = torch.rand(2, 2, 7, 7, dtype=torch.float64)
    reshaped = nn.Sequential(net.conv, net.layer, nn.Flatten(), net.head)
    expected = every_method(reshaped, net.layer).attribute(inputs, target=1)
    actual = every_method(net, net.layer).attribute(inputs, target=1)
    assert torch.allclose(actual, expected, **EXACT)


@pytest.mark.parametrize("method", [GradCAM, HiResCAM, LayerCAM])
def test_a_map_beyond_the_range_of_a_half_type_is_its_largest_number(method):
    # The gradients are 1: the map is [40000 + 50000, 1 + 2].
    net = Weighed([[1, 1], [1, 1]]).half()
    message = r"examples \[0\] are clipped to 6.55e\+04, the largest torch.float16"
    with pytest.warns(UserWarning, match=message) as seen:
        maps = method(net, net.layer).attribute(example([40000, 1], [50000, 2]).half())
    assert len(seen) == 1 and seen[0].filename == __file__
    assert maps.dtype == torch.float16 and maps.tolist() == [[[65504, 3]]]


def test_constant_maps_give_one_warning_that_names_the_examples(every_method):
    # A single position has one value. In the methods that score masks or positions, it
    # is nothing to choose from.
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    message = (
        rf"{every_method.__name__}: the maps of examples \[0, 1, .*, 9, ...\] are "
        "constant: they have one value everywhere"
    )
    with pytest.warns(UserWarning, match=message) as seen:
        maps = every_method(net, net[0]).attribute(torch.rand(12, 2, 6, 6), target=0)
    assert len(seen) == 1 and seen[0].filename == __file__
    assert maps.shape == (12, 1, 1, 1)
    if every_method in (*SCALED, GroupCAM):
        assert not maps.any()


def test_only_constant_maps_of_a_batch_are_named(every_method):
    net = Weighed([[2, 2, 2], [1, 1, 1]])
    inputs = torch.cat([example([1, 2, 3], [0, 1, 0]), example([1, 1, 1], [2, 2, 2])])
    message = rf"{every_method.__name__}: the maps of examples \[1\] are constant"
    with pytest.warns(UserWarning, match=message):
        every_method(net, net.layer).attribute(inputs)


def test_zero_gradients_give_a_map_of_zeros_with_a_warning(gradient_only_method):
    net = Weighed([[0, 0, 0], [0, 0, 0]], bias=1.0)
    cam = gradient_only_method(net, net.layer)
    message = rf"{cam.get_name()}: the maps of examples \[0\] are constant"
    with pytest.warns(UserWarning, match=message):
        maps = cam.attribute(example([1, 2, 3], [-1, 5, 0]))
    assert maps.tolist() == [[[0, 0, 0]]]


def test_an_unused_layer_has_zero_gradients(gradient_only_method):
    net, inputs = Unused(), torch.rand(2, 2, 6, 6)
    with pytest.warns(UserWarning, match=r"examples \[0, 1\] are constant"):
        assert not gradient_only_method(net, net.layer).attribute(inputs, 0).any()


def test_grad_kwargs_reach_autograd(gradient_method):
    net, inputs = Unused(), torch.rand(2, 2, 6, 6)
    cam = gradient_method(net, net.layer)
    with pytest.raises(RuntimeError, match="not have been used"):
        cam.attribute(inputs, target=0, grad_kwargs={"materialize_grads": False})


class Frozen(Unused):
    """A frozen net of integer images, whose layer leads nowhere."""

    def __init__(self):
        super().__init__()
        self.requires_grad_(False)

    def forward(self, image):
        return super().forward(image.float())


@pytest.mark.parametrize("kind", ["integers", "constant", "no_grad"])
def test_an_output_without_a_graph_has_zero_gradients_and_a_warning(
    gradient_only_method, kind
):
    net = Frozen()
    inputs = torch.randint(0, 255, (2, 2, 6, 6), dtype=torch.uint8)

    def forward_func(image):
        with torch.set_grad_enabled(kind != "no_grad"):
            output = net(image)
        return torch.ones(len(image), 3) if kind == "constant" else output

    with pytest.warns(UserWarning) as seen:
        maps = gradient_only_method(forward_func, net.layer).attribute(inputs, target=0)
    assert not maps.any()
    assert all(warning.filename == __file__ for warning in seen)
    messages = [str(warning.message) for warning in seen]
    assert "does not depend on `layer` in a way that autograd can see" in messages[0]
    assert "examples [0, 1] are constant" in messages[1]


@pytest.mark.parametrize("layer", [None, 3])
def test_refuses_a_layer_that_is_no_module_and_no_name(every_method, layer):
    message = "`layer` must be a torch.nn.Module or its dotted name"
    with pytest.raises(TypeError, match=message):
        every_method(nn.Identity(), layer)


def test_refuses_a_layer_that_is_not_spatial(every_method):
    net, inputs = Case().build(0)
    message = r"`layer` .* \(N, K, \*spatial\) .*, got \(3, 3\); choose"
    with pytest.raises(ValueError, match=message):
        every_method(net, net.head).attribute(inputs, target=0)


class Frames(nn.Module):
    """A layer that sees the frames of all clips, (N, T, C, H, W), as one batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 3)

    def forward(self, clips):
        maps = self.layer(clips.flatten(0, 1))
        return maps.mean((2, 3)).unflatten(0, clips.shape[:2]).mean(1)


def test_refuses_a_layer_that_folds_the_batch(every_method):
    net, message = Frames(), "one row for each example: .* of 2, got .*6, 3"
    with pytest.raises(ValueError, match=message):
        every_method(net, net.layer).attribute(torch.rand(2, 3, 2, 5, 5), target=0)


def refuses_rows(method, batch):
    """Explains a model that averages over the batch, and returns its passes."""
    net, inputs = Case().build(0, batch)
    forward_func = Counted(lambda image: net(image).mean(0, keepdim=True))
    with pytest.raises(ValueError, match="`forward_func` must return one row for each"):
        method(forward_func, net.layer).attribute(inputs, target=0)
    return len(forward_func.sizes)


def test_refuses_an_output_that_does_not_grow_with_the_batch(every_method):
    assert refuses_rows(every_method, batch=3) == 1


def test_refuses_an_output_that_does_not_grow_with_one_example(scoring_method):
    # The activations, and the references in two memory formats: no mask was tried.
    assert refuses_rows(scoring_method, batch=1) == 3


def test_refuses_an_output_that_is_no_tensor(every_method):
    net, inputs = Case().build(0)
    cam = every_method(lambda image: {"logits": net(image)}, net.layer)
    message = "`forward_func` must return a Tensor, got a dict"
    with pytest.raises(TypeError, match=message):
        cam.attribute(inputs, target=0)


def test_several_values_at_the_target_are_captums_error(every_method):
    if every_method is EigenCAM:
        return  # which needs no target
    net, inputs = Case().build(0)
    with pytest.raises(AssertionError, match="Target not provided when necessary"):
        every_method(net, net.layer).attribute(inputs)
