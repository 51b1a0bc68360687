"""Contrast: a class beside those most like it, as an output for every method."""

import math

import numpy as np
import pytest
import torch
from contract.shared import TARGETS, make_images, make_net
from nets import Weighed, example
from reference_augmented import contrasts
from torch import nn

from captum_unioncam import (
    Contrast,
    GradCAM,
    ScoreCAM,
    SelectedOutput,
    UnionCAM,
    find_layer,
)
from captum_unioncam.wrappers import nearest_classes

EXACT = {"rtol": 0, "atol": 1e-10}
MEAN, PROBABILITY = "mean", "probability"
every_weighting = pytest.mark.parametrize("weighting", [MEAN, PROBABILITY])

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
]


def logits_of(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def of(logits, *options, **named):
    return Contrast(nn.Identity(), *options, **named)(logits)


def contrast(values):
    """What the methods by scores are told to take a contrast as."""
    return values


# The equation


@every_weighting
@pytest.mark.parametrize(("classes", "references"), [(2, 1), (4, 3), (9, 2), (30, 5)])
def test_contrasts_are_those_of_the_loops(classes, references, weighting):
    logits = logits_of(4, classes)
    actual = of(logits, references, 0.7, weighting)
    expected = [contrasts(row.tolist(), references, 0.7, weighting) for row in logits]
    torch.testing.assert_close(actual, torch.tensor(np.stack(expected)), **EXACT)


def test_defaults_are_three_references_of_equal_weights():
    logits = logits_of(2, 9)
    assert torch.equal(of(logits), of(logits, 3, 0.6, "mean"))


class Heads(nn.Module):
    """The nets of three classes, whose gradients at the layer are given."""

    def __init__(self):
        super().__init__()
        # Of mean gradients (.5, .25), (.25, .5), (.25, 0), each over 2 x 2 positions.
        rows = [[0.5, 0.25], [0.25, 0.5], [0.25, 0.0]]
        gradients = [[[[value] * 2] * 2 for value in row] for row in rows]
        self.heads = nn.ModuleList([Weighed(one) for one in gradients])
        self.layer = nn.Identity()
        # The logits of the common example are to be 3, 2 and 1.
        self.register_buffer("bias", torch.tensor([-3.5, -3.5, -1.5]).double())

    def forward(self, image):
        maps = self.layer(image)
        return torch.cat([head(maps) for head in self.heads], 1) + self.bias


@pytest.mark.parametrize(
    ("gamma", "weighting", "expected"),
    [
        (0.6, MEAN, [[0.75, 0.7], [1.05, 1.6]]),
        # The probabilities' own derivatives count: w = (.25, -.21384).
        (1.0, PROBABILITY, [[0, 0.5], [0.75, 0.57233]]),
    ],
)
def test_grad_cam_worked_by_hand(gamma, weighting, expected):
    net, image = Heads(), example([[1, 2], [3, 4]], [[4, 0], [0, 2]])
    assert net(image).tolist() == [[3, 2, 1]]
    wrapped = Contrast(net, 2, gamma, weighting)
    maps = GradCAM(wrapped, "model.layer").attribute(image, target=0)
    expected = torch.tensor(expected).double()
    torch.testing.assert_close(maps[0, 0], expected, rtol=0, atol=5e-6)


@every_weighting
def test_gradients_flow_through_values_and_not_through_the_choice(weighting):
    logits = torch.tensor([[5.0, 4, 2, 1]]).double().requires_grad_()
    of(logits, 2, 0.6, weighting)[0, 0].backward()
    if weighting == MEAN:
        weights = [1, -0.3, -0.3, 0]
    else:
        q = 1 / (1 + math.exp(-2))  # of logits 4 and 2
        mean = 4 * q + 2 * (1 - q)
        shares = q * (1 + 4 - mean), (1 - q) * (1 + 2 - mean)
        weights = [1, -0.6 * shares[0], -0.6 * shares[1], 0]
    expected = torch.tensor([weights]).double()
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-6)
    assert torch.autograd.gradcheck(
        lambda y: of(y, 3, 0.6, weighting), logits_of(2, 7).requires_grad_()
    )


def test_the_nearest_classes_are_chosen_on_both_sides():
    logits = torch.tensor([[0.0, 10, 1, 7, 6.6, 3]])
    assert nearest_classes(logits, 2).tolist() == [
        [[2, 5], [3, 4], [0, 5], [4, 1], [3, 1], [2, 0]]
    ]


def test_of_equally_far_classes_the_documented_one_is_chosen():
    # By logit, then by index: 4, 0, 1, 2, 3. First the place, then the side below.
    tied = torch.tensor([[1.0, 1, 1, 2, 0]])
    assert nearest_classes(tied, 1).tolist() == [[[1], [0], [1], [2], [0]]]
    assert nearest_classes(torch.tensor([[2.0, 1, 0]]), 1)[0, 1].tolist() == [2]
    equal = nearest_classes(torch.zeros(1, 50), 4)[0]
    assert equal[10].tolist() == [9, 11, 8, 12]
    assert equal[0].tolist() == [1, 2, 3, 4] and equal[49].tolist() == [48, 47, 46, 45]


@pytest.mark.parametrize("seed", range(5))
def test_chosen_classes_are_others_distinct_and_nearest_also_in_ties(seed):
    logits = (2 * logits_of(6, 20, seed=seed)).round()
    chosen = nearest_classes(logits, 5)
    for row, classes in zip(logits.tolist(), chosen.tolist(), strict=True):
        for c, found in enumerate(classes):
            assert c not in found and len(set(found)) == 5
            distances = sorted(abs(o - row[c]) for j, o in enumerate(row) if j != c)
            assert [abs(row[j] - row[c]) for j in found] == distances[:5]


def test_a_row_does_not_depend_on_the_batch():
    logits = logits_of(5, 12).float()
    actual = of(logits)
    for i in range(5):
        assert torch.equal(of(logits[i : i + 1]), actual[i : i + 1])


# Outputs of all kinds


def test_a_row_with_nan_is_nan_alone():
    logits = logits_of(3, 6)
    expected = of(logits)
    for places in ([2], [0, 1, 2, 3]):
        broken = logits.clone()
        broken[1, places] = torch.nan
        actual = of(broken)
        assert actual[1].isnan().all()
        assert torch.equal(actual[[0, 2]], expected[[0, 2]])


def test_classes_that_are_masked_by_infinity_are_no_references():
    logits = logits_of(2, 6)
    masked = torch.cat([logits, torch.full((2, 1), -torch.inf)], 1)
    actual = of(masked)
    assert torch.equal(actual[:, :6], of(logits))
    assert not actual[:, 6].isfinite().any()
    few = torch.tensor([[-torch.inf, 0, 1]])  # but where there are no others
    assert nearest_classes(few, 2).sort().values.tolist() == [[[1, 2], [0, 2], [0, 1]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_are_kept(dtype):
    logits = logits_of(2, 9).to(dtype)
    actual = of(logits)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, of(logits.float()).to(dtype))


def test_integers_have_contrasts_too_and_no_rows_none():
    assert of(torch.tensor([[4, 3, 1, 0]]), 2, 0.5).tolist() == [[3, 1.75, 0.25, -1]]
    assert of(torch.zeros(0, 5)).shape == (0, 5)


@every_weighting
def test_the_default_device_does_not_matter(weighting):
    logits = logits_of(2, 9)
    expected = of(logits, weighting=weighting)
    with torch.device("meta"):  # which has no data
        assert torch.equal(of(logits, weighting=weighting), expected)


def test_gamma_zero_is_the_model_itself():
    logits = logits_of(2, 5)
    assert torch.equal(of(logits, gamma=0), logits)


def test_many_classes_are_cheap():
    """All columns of 64 rows of 1,000 classes, without a 1,000 x 1,000 table."""
    shapes = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            shapes.extend(
                one.numel()
                for one in torch.utils._pytree.tree_leaves(result)
                if isinstance(one, torch.Tensor)
            )
            return result

    logits = logits_of(64, 1000)
    with Watched():
        of(logits)
    assert max(shapes) <= 64 * 1000 * 2 * 3
    assert len(shapes) < 100


# As a model


def test_names_modes_parameters_and_arguments_are_the_models():
    net = make_net()
    wrapped = Contrast(net)
    assert dict(wrapped.named_modules())["model.relu"] is net.relu
    images = make_images()
    assert find_layer(wrapped, images) is find_layer(net, images)
    assert len(list(wrapped.parameters())) == len(list(net.parameters()))
    wrapped.train()
    assert net.training
    wrapped.eval()

    class Scaled(nn.Module):
        def forward(self, x, gain, *, shift):
            return gain * x + shift

    logits = logits_of(2, 5)
    assert torch.equal(Contrast(Scaled())(logits, 2, shift=1), of(2 * logits + 1))


def by_hand(net, target):
    """The contrast of one class as a function without a target."""

    def forward(images):
        logits = net(images)
        others = [j for j in range(logits.shape[1]) if j != target]
        rows = []
        for row in logits:
            distances = (row[others] - row[target]).abs()
            nearest = [others[j] for j in distances.argsort()[:3].tolist()]
            rows.append(row[target] - 0.6 * row[nearest].mean())
        return torch.stack(rows)

    return forward


@pytest.mark.parametrize("method", [GradCAM, ScoreCAM, UnionCAM])
def test_methods_explain_the_contrast_of_a_class(method):
    net, images = make_net(), make_images()
    options = {} if method is GradCAM else {"score_func": contrast}
    cam = method(Contrast(net), "model.relu")
    maps = cam.attribute(images, TARGETS, **options)
    plain = method(net, net.relu).attribute(images, TARGETS, **options)
    for i, target in enumerate(TARGETS):
        alone = method(by_hand(net, target), net.relu)
        expected = alone.attribute(images[i : i + 1], **options)
        torch.testing.assert_close(maps[i : i + 1], expected, **EXACT)
        assert not torch.allclose(maps[i], plain[i], rtol=1e-3)


@pytest.mark.parametrize("method", [ScoreCAM, UnionCAM])
def test_without_a_score_func_scores_are_a_softmax_over_contrasts(method):
    """This is why the documentation names one."""
    net, images = make_net(), make_images()
    cam = method(Contrast(net), "model.relu")
    maps = cam.attribute(images, TARGETS)
    softmax = cam.attribute(images, TARGETS, score_func=lambda o: o.softmax(1))
    torch.testing.assert_close(maps, softmax, **EXACT)
    told = cam.attribute(images, TARGETS, score_func=contrast)
    assert not torch.allclose(maps, told, rtol=1e-3)


# Mistakes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"references": 0}, ValueError, "`references` must be a positive int, got 0"),
        ({"references": 1.5}, TypeError, "`references` must be a positive int"),
        ({"gamma": -1}, ValueError, "`gamma` must be a finite number >= 0, got -1"),
        ({"gamma": "1"}, TypeError, "`gamma` must be a finite number"),
        ({"weighting": "means"}, ValueError, "`weighting` .*did you mean 'mean'"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Contrast(nn.Identity(), **options)


def test_outputs_that_have_no_contrasts_are_refused():
    with pytest.raises(ValueError, match="`references` must be fewer than the classes"):
        of(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(N, C\), got the shape \(2, 5, 4\)"):
        of(torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match=r"\(N, C\), got the shape \(5,\)"):
        of(torch.zeros(5))
    for output in ({"logits": torch.zeros(2, 5)}, (torch.zeros(2, 5),), None):
        with pytest.raises(TypeError, match="SelectedOutput"):
            of(output)
    wrapped = Contrast(SelectedOutput(nn.Identity(), "logits"))
    assert wrapped({"logits": torch.zeros(2, 5)}).shape == (2, 5)
