"""A small net whose layer has its maps in several forms. Not a test itself.

The same float64 net returns its maps as a ConvNet does, with the channels last, or as
tokens: every method must give the same result for all of them.
"""

import inspect
import math
from functools import partial

import pytest
import torch
from headed import METHODS
from torch import nn

from captum_unioncam import swin_reshape, vit_reshape

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZES = {1: (11,), 2: (7, 9), 3: (5, 4, 6)}
CHANNELS, PREFIX, CLASSES = 5, 2, 3
SEED = 22  # of a net without constant maps
TARGET = [0, 2, 1]
FEW = {"num_samples": 2, "n_steps": 2, "groups": 3}
EXACT = {"rtol": 0, "atol": 1e-10}
REPLACING = (
    "ablationcam",
    "reciprocam",
    "fdcam",
)  # put other tensors in the layer's place
PERTURBING = [
    name
    for name, method in METHODS.items()
    if "perturbations_per_eval"
    in inspect.signature(method.attribution.attribute).parameters
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
    """Reads what a form returns."""

    def __init__(self, form):
        super().__init__()
        self.form = [form]  # no submodule of it

    def forward(self, shaped):
        return self.form[0].undo(shaped)


class Net(nn.Module):
    """A net whose ``layer`` returns its maps in a form, and a rest that reads them."""

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
    """Its layer returns two tensors, and takes two."""

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


def varies(maps):
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
