"""Layers in other forms: a reshape_transform changes nothing but the form.

The same small float64 net puts out its maps as a ConvNet does, with the channels last,
or as tokens, and every method must give the same result for all of them.
"""

import inspect
import math
import warnings
from functools import partial

import pytest
import torch
from captum.attr import LayerGradCam, NoiseTunnel
from torch import nn

from captum_unioncam import (
    AblationCAM,
    DenoisedGradCAM,
    GradCAM,
    HiResCAM,
    LayerCAM,
    ReciproCAM,
    RegionCAM,
    ScoreCAM,
    UnionCAM,
    swin_reshape,
    vit_reshape,
)
from captum_unioncam.evaluation.registry import METHODS

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZES = {1: (11,), 2: (7, 9), 3: (5, 4, 6)}
CHANNELS, PREFIX, CLASSES = 5, 2, 3
SEED = 22  # of a net without flat maps
TARGET = [0, 2, 1]
FEW = {"num_samples": 2, "groups": 3}
EXACT = {"rtol": 0, "atol": 1e-10}

REPLACING = ("ablationcam", "reciprocam")  # put other tensors in the layer's place
PERTURBING = [
    name
    for name, method in METHODS.items()
    if "perturbations_per_eval"
    in inspect.signature(method.attribution.attribute).parameters
]

# Not every comparison is of lively maps: one test sees to it that most are.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:.* flat. they have one value:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* makes a grid of:UserWarning"),
]

every_method = pytest.mark.parametrize("name", METHODS)
replacing_method = pytest.mark.parametrize("name", REPLACING)


def layer_size(rank):
    return tuple((side + 1) // 2 for side in SIZES[rank])


class Plain(nn.Module):
    """Maps as they are, (N, K, *spatial)."""

    transform = None

    def __init__(self, rank):
        super().__init__()
        self.size = layer_size(rank)

    def forward(self, maps):
        return maps

    def undo(self, shaped):
        return shaped


class ChannelsLast(Plain):
    """Maps as (N, *spatial, K)."""

    transform = staticmethod(swin_reshape)

    def forward(self, maps):
        return maps.movedim(1, -1).contiguous()

    def undo(self, shaped):
        return shaped.movedim(-1, 1)


class Tokens(Plain):
    """Maps as tokens, (N, prefix + positions, K), on a grid that is not square."""

    def __init__(self, rank):
        super().__init__(rank)
        self.prefix = nn.Parameter(torch.randn(1, PREFIX, CHANNELS))

    @property
    def transform(self):
        return partial(vit_reshape, prefix_tokens=PREFIX, grid=self.size)

    def forward(self, maps):
        patches = maps.flatten(2).transpose(1, 2)
        return torch.cat([self.prefix.expand(len(maps), -1, -1), patches], 1)

    def undo(self, shaped):
        patches = shaped[:, PREFIX:].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *self.size)


class Undo(nn.Module):
    """Reads what a form puts out."""

    def __init__(self, form):
        super().__init__()
        self.form = [form]  # no submodule of it

    def forward(self, shaped):
        return self.form[0].undo(shaped)


class Net(nn.Module):
    """A net whose ``layer`` puts out its maps in a form, and a rest that reads them."""

    def __init__(self, form, rank=2, relu=True):
        super().__init__()
        conv = CONVOLUTIONS[rank]
        positions = math.prod(layer_size(rank))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self.first = conv(2, 4, 3, padding=1)
            self.second = conv(4, CHANNELS, 3, stride=2, padding=1)
            self.third = conv(CHANNELS, 4, 3, padding=1)
            self.head = nn.Linear(4 * positions, CLASSES)
            self.relu = nn.ReLU() if relu else nn.Identity()
            self.layer = form(rank)
        self.undo = Undo(self.layer)
        with torch.no_grad():
            self.first.weight *= 2
            self.second.weight *= 2
            self.head.weight *= 4
        self.double().eval()

    def forward(self, image):
        maps = self.relu(self.second(torch.tanh(self.first(image))))
        maps = self.undo(self.layer(maps))
        return self.head(torch.tanh(self.third(maps)).flatten(1))


class SeveralNet(Net):
    """Its layer puts out two tensors, and takes two."""

    class Pair(nn.Module):
        def __init__(self, form):
            super().__init__()
            self.form = form

        def forward(self, maps):
            # A copy, so that neither tensor depends on the other.
            return self.form(maps.clone()), self.form(maps.square())

    def __init__(self, form):
        super().__init__(form)
        self.pair = self.Pair(self.layer)

    def forward(self, image):
        maps = self.relu(self.second(torch.tanh(self.first(image))))
        one, two = map(self.undo, self.pair(maps))
        return self.head(torch.tanh(self.third(one - two)).flatten(1))


def images(rank=2, examples=3):
    generator = torch.Generator().manual_seed(1)
    shape = (examples, 2, *SIZES[rank])
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def explain(name, net, inputs, layer=None, target=TARGET, **options):
    """Returns the maps of a method for the net's layer, through its transform."""
    options = {"reshape_transform": net.layer.transform, **FEW, **options}
    method = METHODS[name].explain(
        net, net.layer if layer is None else layer, **options
    )
    return method(inputs, target=target)


def is_lively(maps):
    return bool((maps.flatten(1).amax(1) > maps.flatten(1).amin(1)).all())


class Passes(nn.Module):
    """Counts the forward passes of a net."""

    def __init__(self, net):
        super().__init__()
        self.net, self.count = net, 0
        self.layer = net.layer

    def forward(self, *args):
        self.count += 1
        return self.net(*args)


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
def test_the_comparisons_are_of_maps_that_are_not_flat(name):
    assert is_lively(explain(name, Net(Plain), images()))


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


# Models that rely on how a tensor lies in memory


class ViewedForm(ChannelsLast):
    """The channels come last in a view, and the rest views the tensor back."""

    def forward(self, maps):
        return maps.contiguous().movedim(1, -1)

    def undo(self, shaped):
        maps = shaped.movedim(-1, 1)
        return maps.view(len(maps), -1).view(maps.shape)


class ViewedTokens(Plain):
    """Tokens are a view, and the rest views them back."""

    @property
    def transform(self):
        return partial(vit_reshape, prefix_tokens=0, grid=self.size)

    def forward(self, maps):
        return maps.contiguous().flatten(2).transpose(1, 2)

    def undo(self, shaped):
        flat = shaped.transpose(1, 2).view(len(shaped), -1)
        return flat.view(len(shaped), CHANNELS, *self.size)


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


# Transforms that compute something


def doubled(maps):
    return 2 * swin_reshape(maps)


# How the maps change if activations and gradients are twice as large: by the equations.
FACTORS = {
    "unioncam": 1,  # scaled
    "denoisedgradcam": 2,  # the weights sum to 1
    "regioncam": 2,  # the masks are the same
    "fusioncam": 1,
    "gradcam": 4,
    "xgradcam": 4,
    "hirescam": 4,
    "layercam": 4,
    "scorecam": 2,
    "sscam": 2,
    "iscam": 2,
}


@pytest.mark.parametrize("name", FACTORS)
def test_arithmetic_acts_on_activations_and_gradients_alike(name):
    net = Net(ChannelsLast)
    maps = explain(name, net, images(), reshape_transform=doubled)
    expected = FACTORS[name] * explain(name, net, images())
    torch.testing.assert_close(maps, expected, **EXACT)


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(REPLACING)))
def test_a_transform_may_convert_the_type(name):
    net = Net(ChannelsLast)

    def as_float(maps):
        return swin_reshape(maps).float()

    maps = explain(name, net, images(), reshape_transform=as_float)
    expected = explain(name, net, images()).to(maps.dtype)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-4)


ARITHMETIC = {
    "twice": doubled,
    "float": lambda maps: swin_reshape(maps).float(),
    "half": lambda maps: swin_reshape(maps).half(),
    "minus": lambda maps: -swin_reshape(maps),
    "less one": lambda maps: swin_reshape(maps) - 1,
    "more one": lambda maps: swin_reshape(maps) + 1,
    "norm": lambda maps: nn.functional.normalize(swin_reshape(maps), dim=1),
    "centred": lambda maps: swin_reshape(maps - maps.mean((1, 2), keepdim=True)),
    "standardised": lambda maps: swin_reshape(
        (maps - maps.mean(-1, keepdim=True)) / maps.std(-1, keepdim=True)
    ),
    "summed": lambda maps: swin_reshape(maps).sum(1, keepdim=True),
    "largest": lambda maps: swin_reshape(maps).amax(1, keepdim=True),
    "pooled": lambda maps: nn.functional.avg_pool2d(swin_reshape(maps), 2),
    "resized": lambda maps: nn.functional.interpolate(swin_reshape(maps), (9, 9)),
    "clamped": lambda maps: swin_reshape(maps).clamp(max=1e-3),
    "halved": lambda maps: swin_reshape(maps) // 2,
    "cumulated": lambda maps: swin_reshape(maps).cumsum(1),
}


@replacing_method
@pytest.mark.parametrize("arithmetic", ARITHMETIC)
def test_methods_that_replace_the_tensor_refuse_arithmetic(name, arithmetic):
    net = Passes(Net(ChannelsLast))
    explain = METHODS[name].explain(
        net, net.layer, reshape_transform=ARITHMETIC[arithmetic]
    )
    with pytest.raises(
        ValueError, match="`reshape_transform` must only move and drop the entries"
    ):
        explain(images(), target=TARGET)
    assert net.count == 1


# Entries of these come from one entry of the layer's, more than once: there is no one
# value to put back.
COPIES = {
    "repeated": lambda maps: swin_reshape(maps).repeat(1, 2, 1, 1),
    "larger": lambda maps: swin_reshape(maps).repeat_interleave(2, dim=2),
    "concatenated": lambda maps: torch.cat([swin_reshape(maps)] * 2, 1),
    "expanded": lambda maps: swin_reshape(maps[..., :1]).expand(-1, 3, -1, -1),
    "mirrored": lambda maps: swin_reshape(maps)[:, :, [1, 0, 1, 2, 3]],
}


@replacing_method
@pytest.mark.parametrize("copies", COPIES)
def test_methods_that_replace_the_tensor_refuse_copies(name, copies):
    net = Passes(Net(ChannelsLast))
    explain = METHODS[name].explain(net, net.layer, reshape_transform=COPIES[copies])
    with pytest.raises(ValueError, match="`reshape_transform` must only move and drop"):
        explain(images(), target=TARGET)
    assert net.count == 1


@replacing_method
def test_padding_is_no_move_even_where_the_layer_is_zero(name):
    """Positions that are padded by zeros look like the first entry, if that is zero."""
    net = Net(ChannelsLast)
    with torch.no_grad():
        net.second.bias[0] = -100  # a channel that is dead

    def padded(maps):
        return nn.functional.pad(swin_reshape(maps), (0, 1, 0, 0))

    with pytest.raises(ValueError, match="`reshape_transform` must only move and drop"):
        explain(name, net, images(), reshape_transform=padded)


# Wrong forms

WRONG = {
    "tokens": (lambda maps: maps.flatten(1), ValueError),
    "scalars": (lambda maps: maps.sum(), ValueError),
    "rank 6": (lambda maps: maps[..., None, None], ValueError),
    "rows": (lambda maps: swin_reshape(maps)[:1], ValueError),
    "more rows": (lambda maps: swin_reshape(maps).repeat(2, 1, 1, 1), ValueError),
    "channels as rows": (lambda maps: maps.movedim(-1, 0), ValueError),
    "none": (lambda maps: None, TypeError),
    "tuple": (lambda maps: (swin_reshape(maps),), TypeError),
    "array": (lambda maps: swin_reshape(maps).numpy(), TypeError),
}


@every_method
@pytest.mark.parametrize("wrong", WRONG)
def test_a_transform_to_another_form_is_refused(name, wrong):
    function, error = WRONG[wrong]
    net = Passes(Net(ChannelsLast))
    explain = METHODS[name].explain(net, net.layer, reshape_transform=function, **FEW)
    with pytest.raises(error, match="`reshape_transform` must"):
        explain(images(), target=TARGET)
    assert net.count == 1


@every_method
def test_a_transform_must_be_callable(name):
    net = Net(ChannelsLast)
    with pytest.raises(TypeError, match="`reshape_transform` must be a callable or N"):
        METHODS[name].explain(net, net.layer, reshape_transform=(4, 5))


@every_method
def test_errors_of_the_transform_pass(name):
    with pytest.raises(ValueError, match="20 tokens without 1 .* leave 19, which"):
        explain(
            name,
            Net(ViewedTokens),
            images(),
            reshape_transform=vit_reshape,
        )
    with pytest.raises(
        ValueError, match=r"tokens of shape \(N, T, D\), got .* `swin_r"
    ):
        explain(name, Net(Plain), images(), reshape_transform=vit_reshape)


# Combinations


@pytest.mark.parametrize("form", [ChannelsLast, Tokens])
def test_parts_of_unioncam_have_their_own_transform(form):
    def united(net):
        own = {"reshape_transform": net.layer.transform}
        cam = UnionCAM(
            net,
            "layer",
            **own,
            gradient_cam=LayerCAM(net, "layer", **own),
            region_cam=ScoreCAM(net, "layer", **own),
        )
        return cam.attribute(images(), target=TARGET)

    torch.testing.assert_close(united(Net(form)), united(Net(Plain)), **EXACT)


def test_a_part_without_its_transform_is_refused():
    net = Net(Tokens)
    transform = net.layer.transform
    part = LayerCAM(net, net.layer)
    cam = UnionCAM(net, net.layer, reshape_transform=transform, gradient_cam=part)
    with pytest.raises(ValueError, match="captum_unioncam.vit_reshape"):
        cam.attribute(images(), target=TARGET)
    captums = LayerGradCam(net, net.layer)
    cam = UnionCAM(net, net.layer, reshape_transform=transform, gradient_cam=captums)
    with pytest.raises(
        ValueError, match="`gradient_cam` must return one map .* layer's"
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


# Refusals, and no refusals


class Shape(nn.Module):
    """Puts out zeros of a shape for each example; the head reads them and the image."""

    def __init__(self, *shape):
        super().__init__()
        self.shape, self.layer = shape, nn.Identity()

    def forward(self, image):
        zeros = (0 * image).flatten(1).sum(1).view(-1, *[1] * len(self.shape))
        maps = self.layer(zeros.expand(-1, *self.shape).contiguous())
        return maps.flatten(1).sum(1, keepdim=True) + image.flatten(1)[:, :2]


IMAGES = [(32, 32), (64, 48), (30, 50), (224, 224), (17, 200), (96, 33)]


@every_method
def test_tokens_of_images_are_refused(name):
    for size in IMAGES:
        for tokens in [(197, 768), (4, 4), (3, 50), (1, 1)]:
            net = Shape(*tokens)
            with pytest.raises(ValueError, match="tokens.*=captum_unioncam.vit_resh"):
                METHODS[name].explain(net, "layer", **FEW)(
                    torch.rand(1, 3, *size), target=0
                )


@every_method
@pytest.mark.parametrize("channels", [96, 768])
@pytest.mark.parametrize("scale", [4, 8, 16])
def test_channels_in_the_last_place_are_refused(name, channels, scale):
    for size in IMAGES:
        height, width = (-(-side // scale) for side in size)
        net = Shape(height, width, channels)
        with pytest.raises(ValueError, match="last place.*=captum_unioncam.swin_resh"):
            METHODS[name].explain(net, "layer", **FEW)(
                torch.rand(1, 3, *size), target=0
            )


def test_channels_in_the_last_place_of_volumes_are_refused():
    net = Shape(4, 8, 8, 96)
    with pytest.raises(ValueError, match="last place.*=captum_unioncam.swin_reshape"):
        LayerCAM(net, "layer").attribute(torch.rand(1, 3, 8, 64, 64), target=0)
    net = Shape(256, 96)
    with pytest.raises(ValueError, match="tokens.*=captum_unioncam.vit_reshape"):
        LayerCAM(net, "layer").attribute(torch.rand(1, 3, 8, 64, 64), target=0)


def test_a_refusal_takes_one_pass_and_leaves_no_hooks():
    for name, method in METHODS.items():
        net = Passes(Net(Tokens))
        with pytest.raises(ValueError, match="vit_reshape"):
            method.explain(net, net.layer, **FEW)(images(), target=TARGET)
        assert net.count == 1, name
        for module in net.modules():
            assert not module._forward_hooks and not module._forward_pre_hooks


def random_convnet(generator, rank):
    """Returns a ConvNet of random kernels, strides and channels, and its input size."""

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    size = [pick(9, 16, 17, 31, 32, 33, 48, 64) for _ in range(rank)]
    if rank == 3:
        size = [pick(5, 8, 9, 12) for _ in range(rank)]
    spatial, channels, layers = list(size), 3, []
    for _ in range(pick(1, 2, 3, 4)):
        kernel = pick(1, 2, 3, 5)
        stride = [pick(1, 2, 2, 3)] * rank
        padding = pick(0, kernel // 2)
        after = [
            (side + 2 * padding - kernel) // step + 1
            for side, step in zip(spatial, stride)
        ]
        if min(after) < 1:
            break
        wide = pick(16, 31, 32, 64, max(16, spatial[0]), max(16, after[0]))
        conv = CONVOLUTIONS[rank](channels, wide, kernel, stride, padding)
        layers += [conv, nn.ReLU()]
        channels, spatial = wide, after
    if pick(0, 0, 1):
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[rank]
        layers.append(nn.Upsample(scale_factor=pick(2, 3), mode=mode))
    return nn.Sequential(*layers or [nn.Identity()]), size


@pytest.mark.parametrize(("rank", "nets"), [(1, 30), (2, 150), (3, 30)])
def test_no_layer_of_a_random_convnet_is_refused(rank, nets):
    generator = torch.Generator().manual_seed(rank)
    torch.manual_seed(rank)
    shapes = set()
    for _ in range(nets):
        layer, size = random_convnet(generator, rank)
        head = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
        net = nn.Sequential(layer, head)
        inputs = torch.rand(2, 3, *size)
        maps = LayerCAM(net, layer).attribute(inputs, target=1)
        with torch.no_grad():
            assert maps.shape == (2, 1, *layer(inputs).shape[2:])
        shapes.add(tuple(maps.shape))
    assert len(shapes) > 10


# The image, and a layer's channels and size that no transformer has: the last may be a
# coincidence of one channel count with the image's height, or an uneven stride.
LEGAL = [
    ((32, 32), (64, 1, 1)),
    ((32, 32), (1, 1, 1)),
    ((32, 32), (32, 32, 32)),
    ((32, 32), (16, 16, 16)),
    ((32, 32), (32, 16, 16)),
    ((33, 17), (9, 9, 5)),
    ((64, 48), (16, 16, 12)),
    ((64, 48), (64, 64, 48)),
    ((16, 16), (8, 64, 64)),
    ((224, 224), (768, 7, 7)),
    ((224, 224), (7, 7, 7)),
    ((80, 300), (64, 5, 300)),  # strides of a spectrogram, (16, 1)
    ((80, 300), (64, 80, 19)),
    ((40, 100), (32, 1, 25)),
    ((40, 100), (32, 30, 90)),  # ten unpadded convolutions
    ((10, 100), (128, 4, 94)),
    ((100, 10), (128, 94, 4)),
    ((64, 64), (128, 16, 1)),
    ((64, 64), (128, 1, 16)),
    ((5, 5), (2, 4, 4)),
    ((64, 64), (16, 16, 1)),  # as many channels as rows, pooled over the columns
    ((128, 64), (32, 16, 1)),
]


@pytest.mark.parametrize(("image", "layer"), LEGAL, ids=str)
def test_legal_layers_are_not_refused(image, layer):
    maps = GradCAM(Shape(*layer), "layer").attribute(torch.rand(2, 3, *image), target=0)
    assert maps.shape == (2, 1, *layer[1:])


def test_signals_and_volumes_are_not_refused():
    for inputs, layer in [
        ((3, 100), (8, 25)),
        ((3, 100), (25, 8)),
        ((3, 100), (100, 100)),
        ((1, 16, 32, 32), (8, 4, 8, 8)),
        ((1, 16, 32, 32), (8, 1, 1, 1)),
        ((1, 32, 32, 32), (16, 16, 16, 16)),
    ]:
        net = Shape(*layer)
        maps = GradCAM(net, "layer").attribute(torch.rand(2, *inputs), target=0)
        assert maps.shape == (2, 1, *layer[1:])


def test_the_identity_says_that_a_layer_is_right_as_it_is():
    for shape in [(8, 8, 96), (96, 8, 8), (8, 96)]:
        net = Shape(*shape)
        cam = RegionCAM if len(shape) == 3 else LayerCAM
        maps = cam(net, "layer", reshape_transform=nn.Identity()).attribute(
            torch.rand(2, 3, 32, 32), target=0
        )
        assert maps.shape == (2, 1, *shape[1:])


def test_a_transform_to_other_proportions_is_named_once():
    net = Shape(5, 8, 6)
    for cam in (GradCAM, RegionCAM):
        attribution = cam(net, "layer", reshape_transform=swin_reshape)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            attribution.attribute(torch.rand(2, 3, 32, 32), target=0)
        named = [w for w in caught if "makes a grid of (5, 8)" in f"{w.message}"]
        assert len(named) == 1


def test_tokens_that_come_before_the_batch_may_be_moved():
    """As in torch.nn.TransformerEncoderLayer by default, (T, N, D)."""
    torch.manual_seed(0)

    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Identity(), nn.Linear(5, 3)

        def forward(self, image):
            tokens = image.flatten(2).permute(2, 0, 1)  # (16, N, 5)
            return self.head(torch.tanh(self.layer(tokens)).mean(0))

    net, inputs = SequenceFirst().eval(), torch.rand(3, 5, 4, 4)
    plain = nn.Sequential(
        nn.Identity(), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.head
    )

    def to_maps(tokens):
        return vit_reshape(tokens.transpose(0, 1), prefix_tokens=0)

    for cam in (GradCAM, AblationCAM, ReciproCAM):
        moved = cam(net, "layer", reshape_transform=to_maps).attribute(inputs, target=1)
        expected = cam(plain, "0").attribute(inputs, target=1)
        assert torch.allclose(moved, expected, atol=1e-6), cam
