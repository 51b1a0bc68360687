"""Which layers need a reshape_transform, and which are never refused."""

import warnings

import pytest
import torch
from forms import CONVOLUTIONS, FEW, TARGET, Net, Passes, Tokens, every_method, images
from headed import METHODS
from torch import nn

from captum_unioncam import (
    AblationCAM,
    GradCAM,
    LayerCAM,
    ReciproCAM,
    RegionCAM,
    swin_reshape,
    vit_reshape,
)

# Some comparisons are of constant maps: one test checks that most are not.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:.* constant. they have one value:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* makes a grid of:UserWarning"),
]


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
def test_channels_in_the_last_dimension_are_refused(name, channels, scale):
    for size in IMAGES:
        height, width = (-(-side // scale) for side in size)
        net = Shape(height, width, channels)
        with pytest.raises(
            ValueError, match="last dimension.*=captum_unioncam.swin_resh"
        ):
            METHODS[name].explain(net, "layer", **FEW)(
                torch.rand(1, 3, *size), target=0
            )


def test_channels_in_the_last_dimension_of_volumes_are_refused():
    net = Shape(4, 8, 8, 96)
    with pytest.raises(
        ValueError, match="last dimension.*=captum_unioncam.swin_reshape"
    ):
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
            torch.randn(2, 3, 32, 32), target=0
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


@pytest.mark.parametrize("layer", [(64, 64, 16), (64, 64, 32)])
def test_a_layer_that_may_be_either_is_named_and_not_refused(layer):
    """Strides of (1, 4) make 64 x 16 of 64 x 64, as channels in the last place do."""
    net = Shape(*layer)
    image = torch.rand(1, 3, 64, 64)
    with pytest.warns(UserWarning, match="its second dimension is taken for the chan"):
        maps = GradCAM(net, "layer").attribute(image, target=0)
    assert maps.shape == (1, 1, *layer[1:])
