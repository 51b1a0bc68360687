"""Activations, gradients and scores that are not finite make maps of NaN."""

import pytest
import torch
from nets import Case, Counted, Fixed, example
from torch import nn

from captum_unioncam import (
    FDCAM,
    AblationCAM,
    FusionCAM,
    GroupCAM,
    IntegratedGradCAM,
    ReciproCAM,
    SmoothGradCAMPlusPlus,
    UnionCAM,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")


# Options with which an example of positive numbers stays one, but reaches its zeros.
AT_THE_EXAMPLE = {
    SmoothGradCAMPlusPlus: {"std": 0},
    IntegratedGradCAM: {"baselines": 1, "method": "riemann_right"},
}


def warns_of(method, index):
    """Expects the warning of an example that is not finite."""
    message = rf"{method.__name__}: the maps of examples \[{index}\] are NaN"
    return pytest.warns(UserWarning, match=message)


@pytest.mark.parametrize("seed, target", [(0, 1), (2, 0)])
def test_an_example_that_is_not_finite_is_all_nan_and_named(every_method, seed, target):
    net, inputs = Case().build(seed)
    cam = every_method(net, net.layer)
    expected = cam.attribute(inputs, target=target)
    inputs[1, 0, 3, 3] = torch.nan
    with warns_of(every_method, 1):
        actual = cam.attribute(inputs, target=target)
    assert actual[1].isnan().all()
    # The masked passes of the others are packed in another order.
    atol = 1e-9 if every_method in (UnionCAM, FusionCAM, ReciproCAM) else 1e-12
    assert torch.allclose(actual[[0, 2]], expected[[0, 2]], rtol=0, atol=atol)


def test_an_example_that_is_not_finite_leaves_the_gradients_of_others(
    gradient_only_method,
):
    net, inputs = Case().build(0)
    cam = gradient_only_method(net, net.layer)
    expected = cam.attribute(inputs, target=1)
    inputs[1, 0, 3, 3] = torch.nan
    with warns_of(gradient_only_method, 1):
        actual = cam.attribute(inputs, target=1)
    assert expected.flatten(1).any(1).all()
    assert torch.equal(actual[[0, 2]], expected[[0, 2]])


class Reciprocal(nn.Module):
    def forward(self, image):
        return 1 / image


class Bounded(nn.Module):
    """A layer whose infinite activations leave the output finite."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, image):
        return torch.tanh(self.layer(image)).sum((1, 2))[:, None]


@pytest.mark.parametrize(
    "layer, value",
    [
        (nn.Identity(), torch.inf),
        (nn.Identity(), -torch.inf),  # which a ReLU would hide
        (Reciprocal(), 0.0),
        (Reciprocal(), -0.0),
    ],
    ids=["inf", "-inf", "1/0", "-1/0"],
)
def test_one_infinite_activation_makes_the_whole_map_nan(every_method, layer, value):
    net = Bounded(layer)
    inputs = torch.cat(
        [example([1, 2, value], [2, 4, 1]), example([1, 2, 3], [2, 4, 1])]
    )
    options = AT_THE_EXAMPLE.get(every_method, {})
    with warns_of(every_method, 0):
        maps = every_method(net, net.layer).attribute(inputs, **options)
    assert maps[0].isnan().all() and maps[1].isfinite().all()


class Roots(nn.Module):
    """The sum of square roots, whose gradient at 0 is infinite, of either sign."""

    def __init__(self, sign):
        super().__init__()
        self.layer, self.sign = nn.Identity(), sign

    def forward(self, image):
        return self.sign * self.layer(image).sqrt().sum((1, 2))[:, None]


@pytest.mark.parametrize("sign", [1, -1])
def test_an_infinite_gradient_of_finite_activations_makes_the_map_nan(
    gradient_method, sign
):
    net = Roots(sign)
    inputs = torch.cat([example([0, 1, 4]), example([1, 9, 4])])
    options = AT_THE_EXAMPLE.get(gradient_method, {})
    with warns_of(gradient_method, 0):
        maps = gradient_method(net, net.layer).attribute(inputs, **options)
    assert maps[0].isnan().all() and maps[1].isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_score_that_is_not_finite_makes_the_map_of_its_example_nan(
    scoring_method, value
):
    net, inputs = Case().build(0)

    def forward_func(image, number):  # one more output, which numbers the examples
        return torch.cat([net(image), number[:, None]], 1)

    def score_func(output):
        return torch.where(output[:, 3:] == 1, value, output)

    cam = scoring_method(forward_func, net.layer)
    options = {"target": 0, "additional_forward_args": torch.arange(3.0).double()}
    clean = cam.attribute(inputs, **options, score_func=lambda output: output)
    with warns_of(scoring_method, 1) as seen:
        broken = cam.attribute(inputs, **options, score_func=score_func)
    # Other examples of GroupCAM and AblationCAM have a constant map.
    of_nan = [w for w in seen if "are constant" not in str(w.message)]
    assert len(of_nan) == 1 and of_nan[0].filename == __file__
    assert broken[1].isnan().all() and broken[[0, 2]].isfinite().all()
    # The others share their passes with other masks.
    rest = broken[[0, 2]]
    assert torch.allclose(rest, clean[[0, 2]], rtol=0, atol=1e-12)


class Log(nn.Module):
    """The logarithm of the first position."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, image):
        return self.layer(image)[:, 0, :1].log()


def test_a_part_that_loses_infinitely_makes_the_map_nan(uniting_method):
    # Over ones, [0 1 1] shows its 0 under the mask [1 1/2 0] of the gradient map, and
    # ln 1 under the mask [0 0 1] of the region map, which is finite on its own.
    net = Log()
    parts = [Fixed(2, 1, 0), Fixed(0, 0, 1)]
    cam = uniting_method(net, net.layer, parts=parts)
    inputs = torch.cat([example([0, 1, 1]), example([2, 1, 1])])
    with warns_of(uniting_method, 0):
        maps = cam.attribute(inputs, baselines=1)
    assert maps[0].isnan().all() and maps[1].isfinite().all()


def test_an_example_that_is_not_finite_costs_no_scored_pass(scoring_method):
    net, inputs = Case().build(0)
    counted = Counted(net)
    cam = scoring_method(counted, net.layer)
    cam.attribute(inputs[[0, 2]], target=1)
    passes = counted.examples
    inputs[1, 0, 3, 3] = torch.nan
    with warns_of(scoring_method, 1):
        cam.attribute(inputs, target=1)
    # Its activations and its references: the example unchanged, and the baseline.
    references = 1 if scoring_method in (AblationCAM, ReciproCAM, FDCAM) else 2
    more = counted.examples - 2 * passes - 1 - references
    # GroupCAM drops the entries that are not finite, and scores what is left.
    assert more == 0 or (scoring_method is GroupCAM and more > 0)
