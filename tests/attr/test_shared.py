"""What the methods of scored masks and of replaced activations have in common."""

import pytest
import torch
from nets import Case, example
from torch import nn

from captum_unioncam import AblationCAM, FusionCAM, GroupCAM, ReciproCAM

METHODS = (FusionCAM, GroupCAM, AblationCAM, ReciproCAM)
# Of float64: quotients of small differences lose some of it.
PRECISION = {FusionCAM: 1e-9, GroupCAM: 1e-12, AblationCAM: 1e-12, ReciproCAM: 1e-9}

every_method = pytest.mark.parametrize("method", METHODS)
pytestmark = pytest.mark.filterwarnings("ignore:.* are flat")


class Bounded(nn.Module):
    """An identity layer whose infinite activations leave the output finite."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, image):
        return torch.tanh(self.layer(image)).sum((1, 2))[:, None]


class Roots(nn.Module):
    """The sum of square roots, whose gradient at 0 is infinite."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, image):
        return self.layer(image).sqrt().sum((1, 2))[:, None]


def names(method, index):
    """Returns what the warning of an example that is not finite says."""
    return rf"{method.__name__}: .* examples \[{index}\] are NaN"


@every_method
@pytest.mark.parametrize("perturbations", [1, 2, 100])
def test_the_size_of_a_chunk_changes_nothing(method, perturbations):
    net, inputs = Case().build(3)
    cam = method(net, net.layer)
    expected = cam.attribute(inputs, target=[0, 2, 1])
    actual = cam.attribute(
        inputs, target=[0, 2, 1], perturbations_per_eval=perturbations
    )
    assert torch.allclose(actual, expected, rtol=0, atol=PRECISION[method])


@every_method
def test_progress_is_shown_if_asked_and_no_more(method, capsys):
    net, inputs = Case().build(3)
    cam = method(net, net.layer)
    cam.attribute(inputs, target=0)
    assert capsys.readouterr().err == ""
    cam.attribute(inputs, target=0, show_progress=True)
    assert method.__name__ in capsys.readouterr().err


@every_method
def test_a_map_does_not_depend_on_its_batch(method):
    net, inputs = Case().build(3)
    cam = method(net, net.layer)
    batch = cam.attribute(inputs, target=[0, 2, 1])
    singles = [
        cam.attribute(inputs[i : i + 1], target=t) for i, t in enumerate([0, 2, 1])
    ]
    assert torch.allclose(batch, torch.cat(singles), rtol=0, atol=PRECISION[method])


@every_method
def test_the_model_has_no_hooks_left_and_does_what_it_did(method):
    net, inputs = Case().build(3)
    before = net(inputs)
    method(net, net.layer).attribute(inputs, target=0)
    assert not net.layer._forward_hooks and not net.layer._forward_pre_hooks
    assert torch.equal(net(inputs), before)


@every_method
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_score_that_is_not_finite_makes_the_map_of_its_example_nan(method, value):
    net, inputs = Case().build(0)

    def forward_func(image, number):  # one more output, which numbers the examples
        return torch.cat([net(image), number[:, None]], 1)

    def score_func(output):
        return torch.where(output[:, 3:] == 1, value, output)

    options = {"target": 0, "additional_forward_args": torch.arange(3.0).double()}
    cam = method(forward_func, net.layer)
    with pytest.warns(UserWarning, match=names(method, 1)):
        maps = cam.attribute(inputs, **options, score_func=score_func)
    assert maps[1].isnan().all() and maps[[0, 2]].isfinite().all()


@every_method
def test_one_infinite_activation_makes_the_whole_map_nan(method):
    net = Bounded()
    inputs = example([1, 2, torch.inf], [2, 0, 1])
    inputs = torch.cat([inputs, example([1, 2, 3], [2, 0, 1])])
    with pytest.warns(UserWarning, match=names(method, 0)):
        maps = method(net, net.layer).attribute(inputs)
    assert maps[0].isnan().all() and maps[1].isfinite().all()


@pytest.mark.parametrize("method", [FusionCAM, GroupCAM])
def test_an_infinite_gradient_of_finite_activations_makes_the_map_nan(method):
    net = Roots()
    inputs = torch.cat([example([0, 1, 4]), example([1, 9, 4])])
    with pytest.warns(UserWarning, match=names(method, 0)):
        maps = method(net, net.layer).attribute(inputs)
    assert maps[0].isnan().all() and maps[1].isfinite().all()


@every_method
def test_an_example_that_is_not_finite_is_all_nan_and_named(method):
    net, inputs = Case().build(2)
    cam = method(net, net.layer)
    expected = cam.attribute(inputs, target=0)
    inputs[1, 0, 3, 3] = torch.nan
    with pytest.warns(UserWarning, match=names(method, 1)):
        actual = cam.attribute(inputs, target=0)
    assert actual[1].isnan().all()
    rest, atol = [0, 2], PRECISION[method]
    assert torch.allclose(actual[rest], expected[rest], rtol=0, atol=atol)
