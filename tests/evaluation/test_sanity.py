"""The sanity check: rank correlations, and random copies of a model."""

import copy
import itertools
import math

import pytest
import torch
from captum.attr import LayerGradCam
from scipy.stats import spearmanr
from torch import nn

from captum_unioncam.evaluation.sanity import (
    cascade,
    randomization_curves,
    spearman,
)

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    ),
]


class Scale(nn.Module):
    """A parameter in a module without reset_parameters."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.5, 1.5, 6)[:, None, None])

    def forward(self, maps):
        return self.factor * maps


def trained():
    """Returns a net whose every parameter and statistic is as after training."""
    torch.manual_seed(7)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1),
        Scale(),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 36, 3),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    return net.eval()


OWNERS = ["8", "4", "3", "1", "0"]  # of trained(), from the head down


def same(model, other):
    """Returns whether two models have equal parameters and buffers."""
    pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def grad_cam(inputs):
    """Returns what explains class 1 of the inputs."""

    def explain(model, layer):
        return LayerGradCam(model, layer).attribute(inputs, target=1)

    return explain


def test_spearman_of_hand_worked_ties():
    # The ranks of 1 2 2 5 are 1 2.5 2.5 4, and those of 3 1 4 4 are 2 1 3.5 3.5. Less
    # their mean of 2.5: -1.5 0 0 1.5 and -.5 -1.5 1 1. The sum of products is 2.25, and
    # the sums of squares are 4.5 and 4.5.
    first = torch.tensor([[[[1.0, 2], [2, 5]]]])
    second = torch.tensor([[[[3.0, 1], [4, 4]]]])
    assert spearman(first, second).tolist() == pytest.approx([0.5])
    assert spearman(first, -second).tolist() == pytest.approx([-0.5])


@pytest.mark.parametrize("spatial", [(9,), (5, 7), (3, 4, 5)], ids=len)
@pytest.mark.parametrize("levels", [4, 10**6], ids=["ties", "distinct"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spearman_is_scipys(spatial, levels, dtype):
    torch.manual_seed(0)
    first, second = torch.randint(levels, (2, 6, 1, *spatial)).to(dtype) / levels
    second += first
    expected = [
        spearmanr(one.flatten(), other.flatten()).statistic
        for one, other in zip(first.numpy(), second.numpy(), strict=True)
    ]
    correlation = spearman(first, second)
    assert correlation.shape == (6,) and correlation.dtype == dtype
    assert correlation.tolist() == pytest.approx(expected, abs=1e-6)


def test_spearman_sees_the_order_alone():
    torch.manual_seed(0)
    maps = torch.randn(5, 1, 6, 6, requires_grad=True)
    assert spearman(maps, maps.exp()).tolist() == [1.0] * 5
    assert spearman(maps, -maps).tolist() == [-1.0] * 5
    assert not spearman(maps, maps).requires_grad
    half = spearman(maps.bfloat16(), maps.bfloat16())
    assert half.dtype == torch.float32 and half.tolist() == [1.0] * 5


def test_spearman_of_large_maps_is_exact():
    # As many positions as a photograph has: ranks are whole numbers in float32.
    maps = torch.arange(512 * 512, dtype=torch.float32).view(1, 1, 512, 512)
    assert spearman(maps, maps).item() == 1
    assert spearman(maps, maps.flip(2, 3)).item() == -1


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_spearman_is_nan_for_constant_and_not_finite_maps_alone(value):
    maps = torch.rand(4, 1, 3, 3)
    other = maps.clone()
    other[1] = 0.3
    other[2, 0, 1, 1] = value
    for correlation in (spearman(maps, other), spearman(other, maps)):
        assert correlation.isnan().tolist() == [False, True, True, False]
        assert correlation[[0, 3]].tolist() == [1, 1]
    assert spearman(maps[..., :1, :1], maps[..., :1, :1]).isnan().all()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((2, 1, 4, 4), (2, 1, 3, 3), r"`second` must have the shape .*\(2, 1, 3, 3\)"),
        ((2, 2, 4), (2, 2, 4), r"`first` must .*\(2, 2, 4\)"),
        ((2, 1, 4), (2, 4), r"`second` must .*\(2, 4\)"),
    ],
)
def test_spearman_refuses_maps_that_do_not_fit(first, second, message):
    with pytest.raises(ValueError, match=message):
        spearman(torch.rand(first), torch.rand(second))


@pytest.mark.parametrize(
    ("stages", "names"),
    [
        (1, ["0"]),
        (2, ["4", "0"]),
        (3, ["8", "3", "0"]),
        (5, OWNERS),
        (9, OWNERS),
    ],
)
def test_cascade_goes_from_the_head_down_in_groups(stages, names):
    assert [name for name, _ in cascade(trained(), stages, 0)] == names


@pytest.mark.parametrize("stages", [2, 5])
def test_parameters_above_the_cut_differ_and_those_below_are_equal(stages):
    net = trained()
    for name, randomized in cascade(net, stages, 0):
        random = OWNERS[: OWNERS.index(name) + 1]
        for key, value in net.state_dict().items():
            if key.endswith("num_batches_tracked"):
                continue
            changed = not torch.equal(value, randomized.state_dict()[key])
            assert changed == (key.split(".")[0] in random), key


def test_a_module_draws_its_own_initial_distribution():
    *_, (_, randomized) = cascade(trained(), 5, 0)
    bound = 1 / math.sqrt(6 * 36)  # of nn.Linear, from its number of inputs
    weight = randomized[8].weight
    assert 0.9 * bound < weight.abs().max() <= bound
    norm = randomized[1]
    assert (norm.weight == 1).all() and (norm.bias == 0).all()
    assert (norm.running_mean == 0).all() and (norm.running_var == 1).all()


def test_a_module_without_a_reset_draws_from_the_parameters_own_distribution():
    net = nn.Sequential(Scale())
    with torch.no_grad():
        net[0].factor = nn.Parameter(3 + 2 * torch.randn(5000, 1, 1))
    ((_, randomized),) = cascade(net, 1, 0)
    factor, drawn = net[0].factor, randomized[0].factor
    assert drawn.mean().item() == pytest.approx(factor.mean().item(), abs=0.1)
    assert drawn.std().item() == pytest.approx(factor.std().item(), abs=0.1)
    assert abs(torch.corrcoef(torch.stack((factor, drawn)).flatten(1))[0, 1]) < 0.1


@pytest.mark.parametrize("device", DEVICES)
def test_a_cascade_leaves_the_model_and_the_random_state_untouched(device):
    net = trained().to(device).requires_grad_(False)
    net[3].train()
    before = copy.deepcopy(net)
    state = torch.get_rng_state()
    there = torch.cuda.get_rng_state() if device == "cuda" else state
    for _, randomized in cascade(net, 3, 0):
        assert torch.equal(torch.get_rng_state(), state)
        modes = [module.training for module in randomized.modules()]
        assert modes == [module.training for module in net.modules()]
        assert not any(p.requires_grad for p in randomized.parameters())
        tensors = itertools.chain(randomized.parameters(), randomized.buffers())
        assert {tensor.device.type for tensor in tensors} == {device}
        assert randomized[8].weight.any()
        with torch.no_grad():
            randomized[8].weight.zero_()  # the caller's own: later copies keep theirs
    assert same(net, before)
    assert torch.equal(torch.get_rng_state(), state)
    if device == "cuda":
        assert torch.equal(torch.cuda.get_rng_state(), there)


def test_the_same_seed_gives_the_same_copies():
    net = trained()
    first = [model for _, model in cascade(net, 5, 3)]
    again = []
    for _, model in cascade(net, 5, 3):
        again.append(model)
        torch.rand(3)  # the caller draws between the stages
        torch.manual_seed(5)
    assert all(map(same, first, again))
    other = [model for _, model in cascade(net, 5, 4)]
    assert not any(map(same, first, other))


@pytest.mark.parametrize("device", DEVICES)
def test_values_depend_neither_on_the_stages_nor_on_the_device(device):
    net = trained()
    by_name = dict(cascade(net, 5, 0))
    for name, randomized in cascade(copy.deepcopy(net).to(device), 3, 0):
        assert same(randomized.cpu(), by_name[name])


def test_equal_layers_draw_different_values():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    *_, (_, randomized) = cascade(net, 2, 0)
    assert not torch.equal(randomized[0].weight, randomized[1].weight)


def test_tied_weights_stay_tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    for _, randomized in cascade(net, 2, 0):
        assert randomized[2].weight is randomized[0].weight
        assert not torch.equal(randomized[0].weight, net[0].weight)


def test_the_models_own_parameters_come_last():
    net = trained()
    net.token = nn.Parameter(torch.rand(3))
    assert [name for name, _ in cascade(net, 9, 0)] == [*OWNERS, ""]


@pytest.mark.parametrize("stages", [0, -1, 2.0, True])
def test_cascade_refuses_stages_that_are_no_count(stages):
    with pytest.raises(ValueError, match="`stages` must be a positive int"):
        next(cascade(trained(), stages, 0))


def test_cascade_refuses_a_model_without_parameters():
    with pytest.raises(ValueError, match="`model` must have parameters"):
        next(cascade(nn.ReLU(), 8, 0))


def test_a_method_that_ignores_the_model_fails_the_check():
    inputs = torch.rand(4, 1, 12, 12)
    edges = inputs.diff(dim=2, append=inputs[:, :, -1:]).abs()
    curves = randomization_curves(trained(), "5", lambda model, layer: edges)
    assert [name for name, _ in curves] == ["trained", *OWNERS]
    assert all(values.tolist() == [1] * 4 for _, values in curves)


def test_grad_cam_passes_the_check():
    torch.manual_seed(1)
    explain = grad_cam(torch.rand(16, 1, 12, 12))
    runs = [randomization_curves(trained(), "5", explain, 5, seed) for seed in range(8)]
    # Over several random models, since a single one may resemble the trained model.
    means = [
        torch.cat([values for _, values in stage]).nanmean().item()
        for stage in zip(*runs, strict=True)
    ]
    assert means[0] == 1
    assert all(abs(mean) < 0.5 for mean in means[1:]) and abs(means[-1]) < 0.3


def test_curves_are_those_of_each_copy():
    net, inputs = trained(), torch.rand(3, 1, 12, 12)
    explain = grad_cam(inputs)
    curves = randomization_curves(net, "3", explain, stages=3, seed=2)
    expected = [spearman(explain(net, net[3]), explain(net, net[3]))]
    for _, randomized in cascade(net, 3, 2):
        expected.append(
            spearman(explain(net, net[3]), explain(randomized, randomized[3]))
        )
    for (_, values), wanted in zip(curves, expected, strict=True):
        assert values.shape == (3,) and torch.equal(values, wanted)


def test_constant_maps_are_nan_at_their_stages():
    net = trained()

    def explain(model, layer):
        maps = torch.arange(8.0).view(2, 1, 2, 2)
        if model is not net:
            maps[1] = 0
        return maps

    (_, first), *later = randomization_curves(net, "5", explain, stages=2)
    assert first.tolist() == [1, 1]
    for _, values in later:
        assert values[0] == 1 and values[1].isnan()


def test_an_unknown_layer_is_named():
    with pytest.raises(ValueError, match="`layer`: .* has no layer 'features.9'"):
        randomization_curves(
            trained(), "features.9", grad_cam(torch.rand(1, 1, 12, 12))
        )
