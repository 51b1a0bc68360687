"""Which masked passes run, over which baselines, and of which channels."""

import pytest
import torch
from nets import Case, Counted
from torch import nn

from captum_unioncam import (
    ISCAM,
    SSCAM,
    FusionCAM,
    GroupCAM,
    RegionCAM,
    UnionCAM,
)
from captum_unioncam._maps import blend

pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")

# Passes for each active channel, by default.
SAMPLES = {SSCAM: 35, ISCAM: 10}
# The maps of each example that are scored after the channels.
LATER_MAPS = {UnionCAM: 3, FusionCAM: 3}


def masked_passes(method, examples, channels):
    """Returns how many masked examples a batch takes, under masks of 1 and 0 too."""
    later = LATER_MAPS.get(method, 0) * examples
    return 2 * examples + channels * SAMPLES.get(method, 1) + later


def test_scoring_func_runs_all_masked_passes_and_nothing_else(masking_method):
    net, inputs = Case().build(0)
    plain, scored = Counted(net), Counted(net)
    expected = masking_method(net, net.layer).attribute(inputs, target=1)
    cam = masking_method(plain, net.layer, scoring_func=scored)
    assert torch.equal(cam.attribute(inputs, target=1), expected)
    assert plain.sizes == [3]
    _, details = UnionCAM(net, net.layer).attribute(
        inputs, target=1, return_details=True
    )
    if masking_method is not GroupCAM:  # which masks by the active ones of its groups
        active = int(details.active_channels.sum())
        # Its own outputs of the 3 examples come first.
        assert scored.examples == 3 + masked_passes(masking_method, 3, active)
    assert scored.examples > 9


@pytest.mark.parametrize("max_channels, channels", [(None, 4), (2, 2), (99, 4)])
def test_a_constant_channel_costs_no_pass(
    channel_masking_method, max_channels, channels
):
    net, inputs = Case(signed=True).build(1, constant_channel=True)
    counted = Counted(net)
    cam = channel_masking_method(counted, net.layer)
    cam.attribute(inputs, target=2, max_channels=max_channels)
    # The activations of 3 examples, and 4 active channels of each.
    passes = 3 + masked_passes(channel_masking_method, 3, 3 * channels)
    assert counted.examples == passes


@pytest.mark.parametrize(
    "baseline",
    [
        0.5,
        torch.full((3, 2, 7, 7), 0.5),
        torch.full((1, 2, 7, 7), 0.5),
        torch.full((1, 2, 1, 1), 0.5),
        torch.tensor(0.5),
        (0.5,),
    ],
    ids=["number", "full", "one", "per channel", "0-d", "tuple"],
)
def test_every_form_of_baseline_gives_the_same_map(masking_method, baseline):
    net, inputs = Case().build(0)
    cam = masking_method(net, net.layer)
    expected = cam.attribute(inputs, target=0, baselines=torch.full_like(inputs, 0.5))
    actual = cam.attribute(inputs, target=0, baselines=baseline)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(actual, cam.attribute(inputs, target=0))


def test_a_number_keeps_its_precision_as_a_baseline(masking_method):
    net, inputs = Case().build(0)
    cam = masking_method(net, net.layer)
    expected = cam.attribute(inputs, target=0, baselines=torch.full_like(inputs, 0.7))
    actual = cam.attribute(inputs, target=0, baselines=0.7)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-14)


def test_baselines_follow_their_example(masking_method):
    net, inputs = Case().build(0)
    baselines = torch.rand_like(inputs)
    cam = masking_method(net, net.layer)
    batch = cam.attribute(inputs, target=0, baselines=baselines)
    singles = [
        cam.attribute(inputs[i : i + 1], target=0, baselines=baselines[i : i + 1])
        for i in range(3)
    ]
    assert torch.allclose(batch, torch.cat(singles), rtol=0, atol=1e-12)


def test_refuses_baselines_that_do_not_fit(masking_method):
    net, inputs = Case().build(0)
    cam = masking_method(net, net.layer)
    with pytest.raises(ValueError, match=r"`baselines` must have .* got \(1, 5, 1"):
        cam.attribute(inputs, target=0, baselines=torch.zeros(1, 5, 1, 1))
    # Broadcasting would silently take the 7 values for the image's width.
    with pytest.raises(ValueError, match=r"must have the rank .*, got \(7,\)"):
        cam.attribute(inputs, target=0, baselines=torch.zeros(7))
    with pytest.raises(ValueError, match="one entry for each input: expected 1, got 2"):
        cam.attribute(inputs, target=0, baselines=(0, 0))
    with pytest.raises(TypeError, match="`baselines` must be .*, got a str"):
        cam.attribute(inputs, target=0, baselines="black")


class Text(nn.Module):
    """A layer of three dimensions, (N, K, T), for inputs of two, (N, T)."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.layer = nn.Conv1d(4, 5, 3)

    def forward(self, tokens):
        return self.layer(self.embedding(tokens).mT).mean(2)


def test_refuses_inputs_that_have_not_the_layers_rank(masking_method):
    net = Text()
    message = r"`inputs` must hold a tensor of the layer's rank, 3, .* \[\(2, 8\)\]"
    with pytest.raises(ValueError, match=message):
        masking_method(net, net.layer).attribute(torch.ones(2, 8, dtype=int), target=0)


@pytest.mark.parametrize("scale", [1e-25, 1e20, 1e30])
def test_max_channels_chooses_the_same_channels_at_any_scale(scale):
    """Squares of 1e20 are beyond float32's range, and those of 1e-25 are zero."""
    net, inputs = Case(signed=True).build(1)
    net, inputs = net.float(), inputs.float()
    chosen = {}
    for factor in (1, scale):

        def transform(activations, factor=factor):
            return activations * factor

        cam = RegionCAM(net, net.layer, reshape_transform=transform)
        # Region weights are scores of masks, which have no scale.
        chosen[factor] = cam.attribute(inputs, target=0, max_channels=2)
    expected = chosen[1].double()
    torch.testing.assert_close(
        chosen[scale].double() / scale, expected, rtol=1e-4, atol=1e-6
    )


# Integer images


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64])
@pytest.mark.parametrize("baseline", [-1e3, 300, 1e12])
def test_integer_images_stay_in_the_range_of_their_type(dtype, baseline):
    bounds = torch.iinfo(dtype)
    images = torch.tensor([[bounds.min, 7, bounds.max]], dtype=dtype)[:, None]
    masks = torch.tensor([[1.0, 0, 1]])[:, None]
    shown = blend(images, masks, torch.full((1, 1, 1), float(baseline)))
    assert shown.dtype == dtype
    low, hidden, high = shown.flatten().tolist()
    assert low == bounds.min
    # float32 holds the baseline, and float64 no larger number of int64.
    assert hidden == pytest.approx(min(max(baseline, bounds.min), bounds.max), rel=1e-6)
    assert bounds.max - 1024 <= high <= bounds.max


def test_a_model_sees_no_integer_that_wraps(masking_method):
    net, images = Case().build(0)
    images = (255 * images).to(torch.uint8)
    seen = []

    def model(batch):
        seen.append(batch)
        return net(batch.double() / 255)

    masking_method(model, net.layer).attribute(images, target=1, baselines=300)
    hidden = seen[1][len(images) :]  # after the whole examples
    assert hidden.dtype == torch.uint8 and (hidden == 255).all()
    # Between the image and 255, where a wrap would go below the image.
    assert all((batch >= images.amin()).all() for batch in seen)
