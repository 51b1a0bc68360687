"""Layers in other forms: a reshape_transform changes nothing but the form."""

import pytest
import torch
from captum.attr import LayerGradCam, NoiseTunnel
from forms import (
    CHANNELS,
    CLASSES,
    EXACT,
    PERTURBING,
    PREFIX,
    TARGET,
    ChannelsLast,
    Net,
    Plain,
    SeveralNet,
    Tokens,
    ViewedForm,
    ViewedTokens,
    every_method,
    explain,
    images,
    layer_size,
    varies,
)
from headed import METHODS
from torch import nn

from captum_unioncam import (
    DenoisedGradCAM,
    GradCAM,
    HiResCAM,
    LayerCAM,
    RegionCAM,
    ScoreCAM,
    UnionCAM,
    swin_reshape,
)

# Some comparisons are of constant maps: one test checks that most are not.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:.* constant. they have one value:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* makes a grid of:UserWarning"),
    # Of three logits, as a tiny net may have them.
    pytest.mark.filterwarnings("ignore:.* are in .0, 1. and do not sum:UserWarning"),
]


# Exactness


@every_method
@pytest.mark.parametrize("form", [ChannelsLast, Tokens])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_form_of_the_layer_changes_nothing(name, form, rank):
    inputs = images(rank)
    expected = explain(name, Net(Plain, rank), inputs)
    maps = explain(name, Net(form, rank), inputs)
    assert maps.shape == (3, 1, *layer_size(rank))
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
def test_the_comparisons_are_of_maps_that_vary(name):
    assert varies(explain(name, Net(Plain), images()))


@every_method
@pytest.mark.parametrize("form", [ChannelsLast, Tokens])
def test_signed_channels_too(name, form):
    inputs = images()
    expected = explain(name, Net(Plain, relu=False), inputs)
    maps = explain(name, Net(form, relu=False), inputs)
    torch.testing.assert_close(maps, expected, **EXACT)


@pytest.mark.parametrize("name", PERTURBING)
@pytest.mark.parametrize("form", [ChannelsLast, Tokens])
@pytest.mark.parametrize("chunk", [1, 3])
def test_the_size_of_the_chunks_changes_nothing(name, form, chunk):
    expected = explain(name, Net(Plain), images())
    maps = explain(name, Net(form), images(), perturbations_per_eval=chunk)
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
@pytest.mark.parametrize("form", [ChannelsLast, Tokens])
def test_an_example_alone_gets_the_same_map(name, form):
    net, inputs = Net(form), images()
    together = explain(name, net, inputs)
    for i in range(3):
        alone = explain(name, net, inputs[i : i + 1], target=TARGET[i])
        torch.testing.assert_close(together[i : i + 1], alone, **EXACT)


@every_method
@pytest.mark.parametrize("form", [ChannelsLast, Tokens])
def test_the_input_of_a_layer_is_reshaped_too(name, form):
    nets = Net(Plain), Net(form)
    expected, maps = (
        explain(name, net, images(), net.undo, attribute_to_layer_input=True)
        for net in nets
    )
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
@pytest.mark.parametrize("form", [ChannelsLast, Tokens])
def test_every_tensor_of_a_layer_is_reshaped(name, form):
    nets = SeveralNet(Plain), SeveralNet(form)
    expected, maps = (explain(name, net, images(), net.pair) for net in nets)
    assert isinstance(maps, tuple) and len(maps) == 2
    for own, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(own, other, **EXACT)


@every_method
@pytest.mark.parametrize("form", [ChannelsLast, Tokens])
def test_an_empty_batch_has_no_maps(name, form):
    maps = explain(name, Net(form), images()[:0], target=[])
    assert maps.shape == (0, 1, *layer_size(2))


@every_method
@pytest.mark.parametrize("form", [ChannelsLast, Tokens])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_stay(name, form, dtype):
    inputs = images().to(dtype)
    expected = explain(name, Net(Plain).to(dtype), inputs)
    maps = explain(name, Net(form).to(dtype), inputs)
    assert maps.dtype == dtype and maps.isfinite().all()
    torch.testing.assert_close(maps, expected, rtol=0.05, atol=0.02)


@every_method
def test_a_transform_may_be_any_function_that_only_moves(name):
    def by_hand(tokens):
        rows = [tokens[:, PREFIX + 5 * i : PREFIX + 5 * (i + 1)] for i in range(4)]
        return torch.stack(rows, 1).permute(0, 3, 1, 2)

    net = Net(Tokens)
    maps = explain(name, net, images(), reshape_transform=by_hand)
    torch.testing.assert_close(maps, explain(name, net, images()), **EXACT)


@every_method
def test_a_transform_may_drop_channels_and_positions(name):
    """A part of the map: what is dropped stays as it is."""

    def part(maps):
        return swin_reshape(maps)[:, 1:4, 1:, :3]

    maps = explain(name, Net(ChannelsLast), images(), reshape_transform=part)
    assert maps.shape == (3, 1, 3, 3)

    def part_of_plain(maps):
        return maps[:, 1:4, 1:, :3]

    expected = explain(name, Net(Plain), images(), reshape_transform=part_of_plain)
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
@pytest.mark.parametrize("form", [Plain, ChannelsLast, Tokens])
def test_an_identity_of_the_channels_first_is_no_change(name, form):
    """The way out that the refusal names."""
    net = Net(Plain)
    maps = explain(name, net, images(), reshape_transform=nn.Identity())
    torch.testing.assert_close(maps, explain(name, net, images()), **EXACT)


@every_method
@pytest.mark.parametrize("form", [ViewedForm, ViewedTokens])
def test_a_replaced_tensor_lies_in_memory_as_the_layers_own(name, form):
    expected = explain(name, Net(Plain), images())
    torch.testing.assert_close(explain(name, Net(form), images()), expected, **EXACT)


# A slow loop that edits tokens by hand


class ClassTokenNet(Net):
    """The rest reads the class token as well as the patches."""

    def __init__(self):
        super().__init__(Tokens)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            self.own = nn.Linear(CHANNELS, CHANNELS).double()
            self.from_prefix = nn.Linear(PREFIX * CHANNELS, CLASSES).double()

    def tokens(self, image):
        maps = self.relu(self.second(torch.tanh(self.first(image))))
        patches = maps.flatten(2)
        tokens = self.layer(maps)
        # Class tokens that differ between the examples.
        summary = self.own(patches.mean(2))[:, None]
        return tokens + torch.cat(
            [summary.expand(-1, PREFIX, -1), 0 * patches.transpose(1, 2)], 1
        )

    def rest(self, tokens):
        prefix = self.from_prefix(tokens[:, :PREFIX].flatten(1))
        maps = self.layer.undo(tokens)
        own = self.head(torch.tanh(self.third(maps)).flatten(1))
        return own + 3 * torch.tanh(prefix * own)

    def forward(self, image):
        return self.rest(self.block(self.tokens(image)))


def class_token_net():
    net = ClassTokenNet()
    net.block = nn.Identity()
    return net


def confidence(net, tokens, target):
    with torch.no_grad():
        return net.rest(tokens).softmax(1)[0, target]


def test_ablation_leaves_the_class_tokens_as_they_are():
    net, inputs = class_token_net(), images()
    maps = METHODS["ablationcam"].explain(
        net, "block", reshape_transform=net.layer.transform
    )(inputs, target=TARGET)
    for image, target, found in zip(inputs, TARGET, maps, strict=True):
        with torch.no_grad():
            tokens = net.tokens(image[None])
        full = confidence(net, tokens, target)
        total = torch.zeros(layer_size(2), dtype=torch.float64)
        for channel in range(CHANNELS):
            edited = tokens.clone()
            edited[0, PREFIX:, channel] = 0
            share = (full - confidence(net, edited, target)) / full
            total += share * tokens[0, PREFIX:, channel].view(layer_size(2))
        torch.testing.assert_close(found[0], total.clamp(min=0), **EXACT)
    assert (maps.flatten(1).amax(1) > 0).sum() > 1


def test_recipro_leaves_the_class_tokens_as_they_are():
    net, inputs = class_token_net(), images()
    maps = METHODS["reciprocam"].explain(
        net, "block", reshape_transform=net.layer.transform
    )(inputs, target=TARGET)
    for image, target, found in zip(inputs, TARGET, maps, strict=True):
        with torch.no_grad():
            tokens = net.tokens(image[None])
        scores = []
        for position in range(tokens.shape[1] - PREFIX):
            edited = tokens.clone()
            edited[0, PREFIX:] = 0
            edited[0, PREFIX + position] = tokens[0, PREFIX + position]
            scores.append(confidence(net, edited, target))
        expected = torch.stack(scores).view(layer_size(2))
        expected = (expected - expected.min()) / (expected.max() - expected.min())
        torch.testing.assert_close(found[0], expected, **EXACT)


# Combinations


@pytest.mark.parametrize("form", [ChannelsLast, Tokens])
def test_parts_of_unioncam_have_their_own_transform(form):
    def united(net):
        own = {"reshape_transform": net.layer.transform}
        cam = UnionCAM(
            net,
            "layer",
            **own,
            parts=[LayerCAM(net, "layer", **own), ScoreCAM(net, "layer", **own)],
        )
        return cam.attribute(images(), target=TARGET)

    torch.testing.assert_close(united(Net(form)), united(Net(Plain)), **EXACT)


def test_a_part_without_its_transform_is_refused():
    net = Net(Tokens)
    transform = net.layer.transform
    own = RegionCAM(net, net.layer, reshape_transform=transform)
    parts = [LayerCAM(net, net.layer), own]
    cam = UnionCAM(net, net.layer, reshape_transform=transform, parts=parts)
    with pytest.raises(ValueError, match="captum_unioncam.vit_reshape"):
        cam.attribute(images(), target=TARGET)
    parts = [LayerGradCam(net, net.layer), own]
    cam = UnionCAM(net, net.layer, reshape_transform=transform, parts=parts)
    with pytest.raises(
        ValueError, match="`parts`: LayerGradCam must return one map .* layer's"
    ):
        cam.attribute(images(), target=TARGET)


@pytest.mark.parametrize("form", [ChannelsLast, Tokens])
@pytest.mark.parametrize("cam", [GradCAM, UnionCAM, DenoisedGradCAM])
def test_noise_tunnel_of_a_method_with_a_transform(form, cam):
    def smoothed(net):
        torch.manual_seed(0)
        own = cam(net, net.layer, reshape_transform=net.layer.transform)
        tunnel = NoiseTunnel(own)
        return tunnel.attribute(
            images(), nt_samples=3, nt_samples_batch_size=1, stdevs=0.1, target=TARGET
        )

    maps = smoothed(Net(form))
    assert maps.shape == (3, 1, *layer_size(2))
    torch.testing.assert_close(maps, smoothed(Net(Plain)), **EXACT)


def test_details_have_the_size_of_the_reshaped_layer():
    net = Net(Tokens)
    cam = UnionCAM(net, net.layer, reshape_transform=net.layer.transform)
    _, details = cam.attribute(images(), target=TARGET, return_details=True)
    assert details.region_map.shape == (3, 1, *layer_size(2))
    assert details.total_channels.tolist() == [CHANNELS] * 3


def test_the_gradients_that_are_reshaped_are_those_of_the_raw_output():
    """HiResCAM is the plainest: the gradients times the activations."""
    net, inputs = Net(Tokens), images()
    tokens = net.layer(net.relu(net.second(torch.tanh(net.first(inputs)))))
    tokens = tokens.detach().requires_grad_()
    output = net.head(torch.tanh(net.third(net.layer.undo(tokens))).flatten(1))
    score = output[range(3), TARGET].sum()
    (gradients,) = torch.autograd.grad(score, tokens)
    products = (gradients * tokens).detach()[:, PREFIX:].sum(2)
    maps = HiResCAM(net, "layer", reshape_transform=net.layer.transform)
    torch.testing.assert_close(
        maps.attribute(inputs, target=TARGET).flatten(1),
        products.clamp(min=0),
        **EXACT,
    )
