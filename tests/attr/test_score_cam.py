"""ScoreCAM: softmax of the increases by hand and in loops, and its options."""

import math

import numpy as np
import pytest
import torch
from nets import CASES, Case, Weighed, example
from reference import Model
from reference_family import score_cam
from torch import nn

from captum_unioncam import ISCAM, SSCAM, ScoreCAM

TOLERANCE = {"rtol": 0, "atol": 1e-9}
LN2, LN3, LN5 = math.log(2), math.log(3), math.log(5)

# Signed layers have examples without positive evidence, and hand-worked maps are small.
may_be_flat = pytest.mark.filterwarnings("ignore:.* are flat")
every_cam = pytest.mark.parametrize("cam", [ScoreCAM, SSCAM, ISCAM])


def with_a_dead_channel(case, seed):
    """A case whose channel 3 is 0.5 everywhere."""
    net, inputs = case.build(seed)
    net.second.weight.data[3] = 0
    net.second.bias.data[3] = 0.5
    return net, inputs


@may_be_flat
@pytest.mark.parametrize("max_channels", [None, 2, 99])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_paper_in_loops(case, seed, max_channels):
    net, inputs = with_a_dead_channel(case, seed)
    targets = [2, 0, 1]
    actual = ScoreCAM(net, net.layer).attribute(
        inputs, target=targets, max_channels=max_channels
    )
    assert actual.shape[:2] == (3, 1) and actual.dtype == torch.float64
    for i, target in enumerate(targets):
        image = inputs[i].numpy()
        model = Model(net, net.layer, target)
        activations, _ = model.activations_and_gradients([image])
        expected = score_cam(
            model, [image], [np.zeros_like(image)], activations, max_channels
        )
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)


@pytest.mark.parametrize("score", ["identity", "sigmoid"])
def test_matches_the_paper_with_other_scores_and_baselines(score):
    net, inputs = with_a_dead_channel(Case(), 5)
    baseline = torch.tensor([0.7, -0.4], dtype=torch.float64).view(1, 2, 1, 1)
    functions = {"identity": lambda output: output, "sigmoid": torch.sigmoid}
    cam = ScoreCAM(net, net.layer)
    actual = cam.attribute(
        inputs, target=2, baselines=baseline, score_func=functions[score]
    )
    for i, image in enumerate(inputs.numpy()):
        model = Model(net, net.layer, 2, score)
        activations, _ = model.activations_and_gradients([image])
        full = np.broadcast_to(baseline[0].numpy(), image.shape)
        expected = score_cam(model, [image], [full], activations)
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)
    assert not torch.allclose(actual, cam.attribute(inputs, target=2), atol=1e-4)


def test_hand_worked_example():
    # Channel 1 masks to [0 1 .5], channel 2 to [1 0 0]. The head weighs the positions
    # of the masked input by c: 2 c + .5 c = 2.5 c, and 4 c. With c = ln 3 / 1.5 the
    # second increase is ln 3 larger: the softmax is [1/4 3/4], and L = 1/4 * [0 2 1] +
    # 3/4 * [4 0 0] = [3 .5 .25].
    c = LN3 / 1.5
    net = Weighed([[c, c, c], [c, c, c]])
    actual = ScoreCAM(net, net.layer).attribute(example([0, 2, 1], [4, 0, 0]))
    assert actual[0, 0].tolist() == pytest.approx([3, 0.5, 0.25], abs=1e-12)


@pytest.mark.parametrize(
    "max_channels, expected",
    [
        # The scores ln 2 + 7 and ln 5 + 7, less f(black) = 7, and 0 for the dead
        # channel: the softmax is [2 5 1] / 8, and L = (2 [0 2 1] + 5 [4 0 0] + [1 1 1])
        # / 8.
        (None, [21 / 8, 5 / 8, 3 / 8]),
        # Of the live ones alone, [2 5] / 7.
        (3, [20 / 7, 4 / 7, 2 / 7]),
        (2, [20 / 7, 4 / 7, 2 / 7]),
        # The variances are 2/3 and 32/9.
        (1, [4, 0, 0]),
    ],
)
def test_a_dead_channel_takes_part_with_no_increase_unless_channels_are_chosen(
    max_channels, expected
):
    net = Weighed([[0, LN2 / 2, 0], [LN5 / 4, 0, 0], [0, 0, 0]], bias=7.0)
    inputs = example([0, 2, 1], [4, 0, 0], [1, 1, 1])
    actual = ScoreCAM(net, net.layer).attribute(inputs, max_channels=max_channels)
    assert actual[0, 0].tolist() == pytest.approx(expected, abs=1e-12)


def test_negative_increases_weigh_less_than_a_dead_channel():
    # The increases are -ln 3 and 0: [1 3] / 4. L = 1/4 * [0 8] + 3/4 * [1 1].
    net = Weighed([[0, -LN3 / 8], [0, 0]])
    actual = ScoreCAM(net, net.layer).attribute(example([0, 8], [1, 1]))
    assert actual[0, 0].tolist() == pytest.approx([0.75, 2.75], abs=1e-12)


def test_negative_activations_are_not_shown():
    # The mask [0 1] shows 2 * ln 3 / 2: [3 1] / 4. L = ReLU(3/4 * [-4 2] + 1/4 * [2
    # 2]).
    net = Weighed([[0, LN3 / 2], [0, 0]])
    actual = ScoreCAM(net, net.layer).attribute(example([-4, 2], [2, 2]))
    assert actual[0, 0].tolist() == pytest.approx([0, 2], abs=1e-12)


def test_huge_increases_leave_the_best_channel():
    net = Weighed([[0, 1e6, 0], [1e5, 0, 0]])
    actual = ScoreCAM(net, net.layer).attribute(example([0, 2, 1], [4, 0, 0]))
    assert actual[0, 0].tolist() == [0, 2, 1]


@may_be_flat
@every_cam
def test_channels_of_a_single_position_are_all_dead_and_weigh_alike(cam):
    # L = ReLU((2 + 4 - 3) / 3). None is live, so none can be chosen.
    net = Weighed([[[1]], [[2]], [[3]]])
    inputs = example([[2]], [[4]], [[-3]])
    method = cam(net, net.layer)
    assert method.attribute(inputs).item() == pytest.approx(1, abs=1e-12)
    assert method.attribute(inputs, max_channels=2).tolist() == [[[[0]]]]


@every_cam
def test_a_dead_channel_costs_no_pass(cam):
    net, inputs = with_a_dead_channel(Case(signed=True), 0)
    passes = 1 if cam is ScoreCAM else 3
    options = {} if cam is ScoreCAM else {"num_samples": 3}
    seen = []

    def forward_func(image):
        seen.append(len(image))
        return net(image)

    cam(forward_func, net.layer).attribute(inputs, target=1, **options)
    # Activations and baselines of 3 examples, and 4 live channels of each.
    assert sum(seen) == 3 + 3 + 3 * 4 * passes
    seen.clear()
    cam(forward_func, net.layer).attribute(inputs, target=1, max_channels=2, **options)
    assert sum(seen) == 3 + 3 + 3 * 2 * passes


@every_cam
@pytest.mark.parametrize("perturbations", [1, 2, 100])
def test_the_size_of_a_chunk_changes_nothing(cam, perturbations):
    net, inputs = with_a_dead_channel(Case(), 3)
    method = cam(net, net.layer)
    expected = method.attribute(inputs, target=[0, 2, 1])
    actual = method.attribute(
        inputs, target=[0, 2, 1], perturbations_per_eval=perturbations
    )
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)


@every_cam
def test_progress_is_shown_if_asked_and_no_more(cam, capsys):
    net, inputs = Case().build(3)
    method = cam(net, net.layer)
    method.attribute(inputs, target=0)
    assert capsys.readouterr().err == ""
    method.attribute(inputs, target=0, show_progress=True)
    assert cam.__name__ in capsys.readouterr().err


@every_cam
def test_a_map_does_not_depend_on_its_batch(cam):
    net, inputs = with_a_dead_channel(Case(), 3)
    method = cam(net, net.layer)
    batch = method.attribute(inputs, target=[0, 2, 1])
    singles = [
        method.attribute(inputs[i : i + 1], target=t) for i, t in enumerate([0, 2, 1])
    ]
    assert torch.allclose(batch, torch.cat(singles), rtol=0, atol=1e-12)


@every_cam
def test_explains_the_layers_input_if_asked(cam):
    net, inputs = Case().build(4)
    actual = cam(net, net.layer).attribute(
        inputs, target=1, attribute_to_layer_input=True
    )
    expected = cam(net, net.second).attribute(inputs, target=1)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(actual, cam(net, net.layer).attribute(inputs, target=1))


@every_cam
def test_scoring_func_runs_all_masked_passes_and_nothing_else(cam):
    net, inputs = Case().build(0)
    plain, scored = [], []

    def forward_func(image):
        plain.append(len(image))
        return net(image)

    def scoring_func(image):
        scored.append(len(image))
        return net(image)

    expected = cam(net, net.layer).attribute(inputs, target=1)
    method = cam(forward_func, net.layer, scoring_func=scoring_func)
    assert torch.equal(method.attribute(inputs, target=1), expected)
    assert plain == [3] and sum(scored) > 3
    with pytest.raises(TypeError, match="`scoring_func` must be a callable or None, g"):
        cam(net, net.layer, scoring_func="fast")


@every_cam
@pytest.mark.parametrize("name", ["max_channels", "perturbations_per_eval"])
def test_refuses_counts_that_are_not_positive_ints(cam, name):
    net, inputs = Case().build(0)
    method = cam(net, net.layer)
    with pytest.raises(ValueError, match=f"`{name}` must be a positive int .* got 0"):
        method.attribute(inputs, target=0, **{name: 0})
    for value in (2.0, "2", True):
        with pytest.raises(TypeError, match=f"`{name}` must be a positive int"):
            method.attribute(inputs, target=0, **{name: value})


@every_cam
def test_refuses_a_score_func_that_is_no_function(cam):
    net, inputs = Case().build(0)
    with pytest.raises(TypeError, match="`score_func` must be a callable or None"):
        cam(net, net.layer).attribute(inputs, target=0, score_func=3)


@every_cam
def test_an_example_that_is_not_finite_is_all_nan_and_named(cam):
    net, inputs = Case().build(2)
    expected = cam(net, net.layer).attribute(inputs, target=0)
    inputs[1, 0, 3, 3] = torch.nan
    message = rf"{cam.__name__}: the maps of examples \[1\] are NaN"
    with pytest.warns(UserWarning, match=message):
        actual = cam(net, net.layer).attribute(inputs, target=0)
    assert actual[1].isnan().all()
    assert torch.allclose(actual[[0, 2]], expected[[0, 2]], rtol=0, atol=1e-12)


class Reciprocal(nn.Module):
    def forward(self, image):
        return 1 / image


class Bounded(nn.Module):
    """A layer with infinite activations where the input is 0, and a finite output."""

    def __init__(self):
        super().__init__()
        self.layer = Reciprocal()

    def forward(self, image):
        return torch.tanh(self.layer(image)).sum((1, 2))[:, None]


@every_cam
def test_one_infinite_activation_makes_the_whole_map_nan(cam):
    net = Bounded()
    inputs = torch.cat([example([1, 2, 0], [2, 3, 1]), example([1, 2, 3], [2, 3, 1])])
    with pytest.warns(UserWarning, match=rf"{cam.__name__}: .* \[0\] are NaN"):
        maps = cam(net, net.layer).attribute(inputs)
    assert maps[0].isnan().all() and maps[1].isfinite().all()


@every_cam
def test_a_score_that_is_not_finite_makes_the_map_of_its_example_nan(cam):
    net, inputs = Case().build(0)

    def forward_func(image, number):  # one more output, which numbers the examples
        return torch.cat([net(image), number[:, None]], 1)

    def score_func(output):
        return torch.where(output[:, 3:] == 1, torch.inf, output)

    options = {"target": 0, "additional_forward_args": torch.arange(3.0).double()}
    method = cam(forward_func, net.layer)
    with pytest.warns(UserWarning, match=r"examples \[1\] are NaN"):
        maps = method.attribute(inputs, **options, score_func=score_func)
    assert maps[1].isnan().all() and maps[[0, 2]].isfinite().all()
