"""What a reshape_transform may do: move and drop, and for most methods compute."""

import pytest
import torch
from forms import (
    EXACT,
    FEW,
    REPLACING,
    TARGET,
    ChannelsLast,
    Net,
    Passes,
    Plain,
    ViewedTokens,
    every_method,
    explain,
    images,
    replacing_method,
)
from headed import METHODS
from torch import nn

from captum_unioncam import swin_reshape, vit_reshape

# Some comparisons are of constant maps: one test checks that most are not.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:.* constant. they have one value:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* makes a grid of:UserWarning"),
]


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
    "cam": 2,
    "eigencam": 2,  # the vector is of length 1
    "eigengradcam": 4,
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
        net.second.bias[0] = -100  # a channel that is constant

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
