"""Inputs and additional arguments: which are masked, and which follow their example."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from contract.shared import (
    CHANNEL_MASKING,
    CHANNELS,
    CONTRACT_MARKS,
    EXACT,
    EXAMPLES,
    LAYER_SIZE,
    PERTURBING,
    PLAIN_MASKS,
    SAMPLED,
    SIZE,
    TARGETS,
    ArgsNet,
    Call,
    ManyInputsNet,
    assert_same_maps,
    assert_same_states,
    every_method,
    make_images,
    make_net,
    many_inputs,
    masking_method,
    one_by_one,
    replacing_method,
    seeded,
    states,
    unmasked_method,
)
from torch import nn

from captum_unioncam import SmoothGradCAMPlusPlus

pytestmark = CONTRACT_MARKS


class ImageArgNet(nn.Module):
    """Adds a second image; ``identity`` runs on it alone."""

    def __init__(self):
        super().__init__()
        self.net = make_net()
        self.relu = self.net.relu
        self.identity = nn.Identity()
        self.seen = []

    def forward(self, x, other):
        self.seen.append((x, other))
        return self.net(x + self.identity(other))


def bits(row):
    """Returns the values of a row as a key of a dictionary or a set."""
    return tuple(row.flatten().tolist())


# Additional arguments


@every_method
@pytest.mark.parametrize("column", [False, True])
def test_a_row_for_each_example_follows_its_example(method, images, gain, column):
    net = ArgsNet()
    gain = gain[:, None] if column else gain  # (N, 1) or (N,)
    cam = method(net, net.relu)
    chunked = method in (*PERTURBING, *SAMPLED)
    options = {"perturbations_per_eval": 3} if chunked else {}
    maps = cam.attribute(images, TARGETS, (gain,), **options)
    assert_same_maps(maps, one_by_one(cam, images, TARGETS, gain))


@every_method
def test_opaque_arguments_equal_a_model_that_has_them_built_in(
    method, images, class_weights
):
    net = ArgsNet()
    power = torch.tensor(2.0, dtype=torch.float64)
    maps = method(net, net.relu).attribute(
        images, 1, (None, power, class_weights, [3.0, "any"])
    )
    built_in = method(lambda x: net.net(x**2) * class_weights * 3, net.relu)
    assert_same_maps(maps, built_in.attribute(images, 1))
    for _, gain, seen_power, seen_weights, options in net.seen:
        assert gain is None
        assert seen_power.dim() == 0
        assert seen_power == power
        assert torch.equal(seen_weights, class_weights)
        assert options == [3.0, "any"]


@every_method
def test_an_argument_that_is_no_tuple_is_one_argument(method, images, gain):
    net = ArgsNet()
    cam = method(net, net.relu)
    assert torch.equal(
        cam.attribute(images, 1, gain), cam.attribute(images, 1, (gain,))
    )
    assert torch.equal(cam.attribute(images, 1, None), cam.attribute(images, 1))

    def with_options(x, options):
        assert options == [2.0, 5.0]
        return net(x, options=options)

    maps = method(with_options, net.relu).attribute(images, 1, [2.0, 5.0])
    expected = method(lambda x: net(x) * 2, net.relu).attribute(images, 1)
    assert_same_maps(maps, expected)


@every_method
def test_image_arguments_follow_their_example_and_are_never_masked(method, images):
    net, other = ImageArgNet(), make_images(seed=5)
    before = states([other])
    cam = method(net, net.relu)
    maps = cam.attribute(images, TARGETS, other)
    assert_same_states([other], before)
    rows = {bits(row) for row in other}
    for x, seen in net.seen:
        assert len(seen) == len(x)
        assert {bits(row) for row in seen} <= rows
        assert not seen.requires_grad
    assert_same_maps(maps, one_by_one(cam, images, TARGETS, other))


@every_method
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_an_argument_that_is_the_layers_tensor_does_not_get_gradients(
    method, images, mode
):
    net, other = ImageArgNet(), make_images(seed=5)
    before = states([other])
    with mode():
        method(net, net.identity).attribute(images, 2, other)
    assert_same_states([other], before)


# Several inputs


@every_method
def test_several_inputs_follow_their_example_and_give_one_tensor(method):
    net, inputs = ManyInputsNet(), many_inputs()
    cam = method(net, net.relu)
    maps = cam.attribute(inputs, TARGETS)
    assert maps.shape == (EXAMPLES, 1, *LAYER_SIZE[:2])
    assert_same_maps(maps, one_by_one(cam, inputs, TARGETS))


@masking_method
def test_every_input_of_the_layers_rank_is_masked_at_its_own_size(method):
    net, inputs = ManyInputsNet(), many_inputs()
    cam = method(net, net.relu)
    cam.attribute(inputs, target=TARGETS, **PLAIN_MASKS.get(method, {}))
    examples = {bits(row): i for i, row in enumerate(inputs[2])}
    partly = 0
    for seen in net.seen:
        for x, large, vector in zip(*seen, strict=True):
            example = examples[bits(vector)]  # no mask changes it
            small_mask = x / inputs[0][example]
            large_mask = large / inputs[1][example]
            for mask in (small_mask, large_mask):
                assert mask.min() >= 0
                assert mask.max() <= 1 + 1e-9
                # One mask for all channels of an input.
                torch.testing.assert_close(mask, mask[:1].expand_as(mask), **EXACT)
            assert (small_mask.max() == 0) == (large_mask.max() == 0)
            partly += bool(0 < small_mask.mean() < 1 and 0 < large_mask.mean() < 1)
    assert partly >= EXAMPLES


@pytest.mark.parametrize("method", CHANNEL_MASKING)
def test_channels_mask_every_input_resized_first_and_then_scaled(method):
    net, inputs = ManyInputsNet(), many_inputs(1)
    channels = net.net.relu(net.net.conv(inputs[0] + F.avg_pool2d(inputs[1], 2)))
    cam = method(net, net.relu)
    cam.attribute(inputs, target=4, **PLAIN_MASKS.get(method, {}))
    rows = [row for seen in net.seen for row in zip(*seen, strict=True)]
    for k in range(CHANNELS):
        expected = []
        for image in inputs[:2]:
            mask = F.interpolate(
                channels[:, k : k + 1].detach(), image.shape[2:], mode="bilinear"
            )  # (1, 1, H, W)
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            expected.append((mask * image)[0])  # (C, H, W)
        assert any(
            torch.allclose(x, expected[0], **EXACT)
            and torch.allclose(large, expected[1], **EXACT)
            for x, large, _ in rows
        )


@masking_method
def test_inputs_that_no_mask_fits_are_refused(method):
    net = make_net(dims=1, after_layer=nn.Identity())
    model = nn.Sequential(OrderedDict(flat=Call(lambda x: x.view(-1, 3, 9)), net=net))
    with pytest.raises(ValueError, match="tensor of the layer's rank, 3, to mask"):
        method(model, net.relu).attribute(make_images(dims=1).flatten(1), target=1)


# Inputs of methods that mask none


@unmasked_method
@pytest.mark.parametrize("dims", [1, 2])
def test_inputs_of_any_rank_work_where_none_is_masked(method, dims):
    net, images = make_net(dims), make_images(dims=dims)
    unflatten = Call(lambda x: x.view(-1, *images.shape[1:]))
    model = nn.Sequential(OrderedDict(unflatten=unflatten, net=net))
    maps = method(model, net.relu).attribute(images.flatten(1), target=TARGETS)
    expected = method(net, net.relu).attribute(images, target=TARGETS)
    assert_same_maps(maps, expected)


@unmasked_method
def test_token_inputs_work_where_none_is_masked(method):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = seeded(lambda: nn.Embedding(11, 3))
            self.net = make_net(dims=1)

        def forward(self, tokens):  # (N, length)
            embedded = self.embedding(tokens).movedim(1, 2)  # (N, 3, length)
            return self.net(embedded.sigmoid())

    model = Tokens()
    tokens = torch.arange(EXAMPLES * SIZE[0]).view(EXAMPLES, SIZE[0]) * 7 % 11
    cam = method(model, model.net.relu)
    if method in SAMPLED:  # indices cannot be altered a little
        with pytest.raises(ValueError, match="`inputs` must hold a floating tensor"):
            cam.attribute(tokens, target=TARGETS)
        return
    maps = cam.attribute(tokens, target=TARGETS)
    assert maps.shape == (EXAMPLES, 1, LAYER_SIZE[0])
    assert_same_maps(maps, one_by_one(cam, tokens, TARGETS))


@replacing_method
def test_replacing_methods_show_the_model_nothing_but_the_examples(method):
    net, inputs = ManyInputsNet(), many_inputs()
    method(net, net.relu).attribute(inputs, TARGETS)
    examples = {bits(row): i for i, row in enumerate(inputs[2])}
    counts = [0] * EXAMPLES
    for seen in net.seen:
        for x, large, vector in zip(*seen, strict=True):
            example = examples[bits(vector)]
            assert torch.equal(x, inputs[0][example])
            assert torch.equal(large, inputs[1][example])
            counts[example] += 1
    assert min(counts) == max(counts) > CHANNELS


@replacing_method
def test_replacing_methods_take_no_baselines(method, net, images):
    with pytest.raises(TypeError, match="baselines"):
        method(net, net.relu).attribute(images, 1, baselines=0)


# Integer inputs


@every_method
def test_integer_images_reach_the_model_as_they_are(method, net, images):
    seen = []

    def model(x):
        seen.append(x.dtype)
        return net(x.double() / 255)

    pixels = (images * 255).to(torch.uint8)
    cam = method(model, net.relu)
    # Noise leaves the range of a pixel.
    options = {"std": 0} if method is SmoothGradCAMPlusPlus else {}
    maps = cam.attribute(pixels, target=TARGETS, **options)
    assert set(seen) == {torch.uint8}
    assert maps.dtype == torch.float64
    assert maps.isfinite().all()
    if not options:
        assert_same_maps(maps, one_by_one(cam, pixels, TARGETS))
    cam = method(net, net.relu)
    floats = cam.attribute(pixels.double() / 255, target=TARGETS, **options)
    # Masked pixels are rounded.
    torch.testing.assert_close(maps, floats, rtol=0.05, atol=0.01)
