"""SSCAM: its noise, the mean over it by hand and in loops, and its options."""

import math

import numpy as np
import pytest
import torch
from nets import CASES, Case, Weighed, example
from reference import Model
from reference_family import ss_cam
from torch import nn

from captum_unioncam import SSCAM, ScoreCAM

TOLERANCE = {"rtol": 0, "atol": 1e-9}

# Signed layers have examples without positive evidence.
may_be_flat = pytest.mark.filterwarnings("ignore:.* are flat")


def draw(samples, std, size, generator):
    """The noise as the class documents it: float32, one value for each pixel."""
    return (std * torch.randn(samples, *size, generator=generator)).numpy()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@may_be_flat
@pytest.mark.parametrize("max_channels", [None, 2])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_paper_in_loops(case, seed, max_channels):
    net, inputs = case.build(seed)
    net.second.weight.data[3] = 0  # a dead channel, which takes part without noise
    net.second.bias.data[3] = 0.5
    targets = [2, 0, 1]
    actual = SSCAM(net, net.layer).attribute(
        inputs,
        target=targets,
        num_samples=3,
        std=0.7,
        generator=seeded(seed),
        max_channels=max_channels,
    )
    size = inputs.shape[2:]
    noise = {tuple(size): draw(3, 0.7, size, seeded(seed))}
    for i, target in enumerate(targets):
        image = inputs[i].numpy()
        model = Model(net, net.layer, target)
        activations, _ = model.activations_and_gradients([image])
        expected = ss_cam(
            model, [image], [np.zeros_like(image)], activations, noise, max_channels
        )
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)


def test_the_defaults_are_35_samples_of_standard_deviation_2_and_seed_0():
    net, inputs = Case().build(6)
    actual = SSCAM(net, net.layer).attribute(inputs, target=1)
    noise = {(7, 7): draw(35, 2.0, (7, 7), seeded(0))}
    for i, image in enumerate(inputs.numpy()):
        model = Model(net, net.layer, 1)
        activations, _ = model.activations_and_gradients([image])
        expected = ss_cam(model, [image], [np.zeros_like(image)], activations, noise)
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)


@pytest.mark.parametrize("score", ["identity", "sigmoid"])
def test_matches_the_paper_with_other_scores_and_baselines(score):
    net, inputs = Case().build(5)
    baseline = torch.tensor([0.7, -0.4], dtype=torch.float64).view(1, 2, 1, 1)
    functions = {"identity": lambda output: output, "sigmoid": torch.sigmoid}
    actual = SSCAM(net, net.layer).attribute(
        inputs,
        target=2,
        num_samples=4,
        baselines=baseline,
        score_func=functions[score],
    )
    noise = {(7, 7): draw(4, 2.0, (7, 7), seeded(0))}
    for i, image in enumerate(inputs.numpy()):
        model = Model(net, net.layer, 2, score)
        activations, _ = model.activations_and_gradients([image])
        full = np.broadcast_to(baseline[0].numpy(), image.shape)
        expected = ss_cam(model, [image], [full], activations, noise)
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)


class TwoImages(nn.Module):
    """Two images of different sizes, of which the layer sees the first."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 4, 3, stride=2)
        self.other = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(8, 3)

    def forward(self, first, second):
        maps = [torch.tanh(self.layer(first)), torch.tanh(self.other(second))]
        return self.head(torch.cat([m.flatten(2).sum(2) for m in maps], 1))


@pytest.mark.parametrize("second_size", [(5, 6), (8, 7)])
def test_inputs_of_the_same_size_share_their_noise_and_others_draw_theirs_after_it(
    second_size,
):
    torch.manual_seed(0)
    net = TwoImages().double()
    first = torch.rand(2, 2, 8, 7).double()
    second = torch.rand(2, 1, *second_size).double()
    actual = SSCAM(net, net.layer).attribute((first, second), 1, num_samples=3)
    generator, noise = seeded(0), {}
    for size in ((8, 7), second_size):
        if size not in noise:
            noise[size] = draw(3, 2.0, size, generator)
    for i in range(2):
        image = [first[i].numpy(), second[i].numpy()]
        model = Model(net, net.layer, 1)
        activations, _ = model.activations_and_gradients(image)
        baseline = [np.zeros_like(part) for part in image]
        expected = ss_cam(model, image, baseline, activations, noise)
        np.testing.assert_allclose(actual[i, 0], expected, **TOLERANCE)


def test_hand_worked_example():
    # Channel 1 masks to [0 1 .5]; channel 2 is dead, and gets no noise. The head takes
    # e = [3 2 2] / 10 of the positions of the whole input, [0 * .1 + 3 * .1, 2 * .1, 1
    # * .2], and is linear: with the mean noise [d0 d1 d2] of a position the increase of
    # channel 1 is a = .3 d0 + .2 (1 + d1) + .2 (.5 + d2). L = (e^a [0 2 1] + e^0 [3 3
    # 3]) / (e^a + 1). The noisy mask leaves [0, 1], which is not mended.
    net = Weighed([[0.1, 0.1, 0.2], [0.1, 0, 0]], bias=4.0)
    inputs = example([0, 2, 1], [3, 3, 3])
    noise = draw(5, 2.0, (3,), seeded(9))
    assert noise.min() < -1 and noise.max() > 1
    d0, d1, d2 = noise.astype(float).mean(0)
    share = math.exp(0.3 * d0 + 0.2 * (1 + d1) + 0.2 * (0.5 + d2))
    expected = [(share * value + 3) / (share + 1) for value in (0, 2, 1)]
    actual = SSCAM(net, net.layer).attribute(inputs, num_samples=5, generator=seeded(9))
    assert actual[0, 0].tolist() == pytest.approx(expected, abs=1e-9)


def test_a_score_is_the_mean_of_the_scores_and_not_the_score_of_the_mean():
    # The score is the square of the masked input [0 2], (2 (1 + d))^2; the dead channel
    # shows nothing, 0.
    net = Weighed([[0, 1], [0, 0]])
    noise = draw(4, 0.1, (2,), seeded(0)).astype(float)
    share = math.exp(np.mean([(2 * (1 + d)) ** 2 for d in noise[:, 1]]) / 10)
    actual = SSCAM(net, net.layer).attribute(
        example([0, 2], [1, 1]),
        num_samples=4,
        std=0.1,
        score_func=lambda output: output.square() / 10,
    )
    expected = [1 / (share + 1), (2 * share + 1) / (share + 1)]
    assert actual[0, 0].tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("num_samples", [1, 4])
def test_without_noise_it_is_score_cam(num_samples):
    net, inputs = Case().build(0)
    expected = ScoreCAM(net, net.layer).attribute(inputs, target=1)
    cam = SSCAM(net, net.layer)
    actual = cam.attribute(inputs, target=1, num_samples=num_samples, std=0)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    noisy = cam.attribute(inputs, target=1, num_samples=num_samples, std=1)
    assert not torch.allclose(noisy, expected, atol=1e-4)


def test_all_examples_see_the_same_noise():
    net, inputs = Case().build(0, batch=1)
    maps = SSCAM(net, net.layer).attribute(inputs.repeat(3, 1, 1, 1), target=1)
    assert torch.allclose(maps[1:], maps[:1], rtol=0, atol=1e-12)


def test_equal_seeds_give_equal_maps_and_other_seeds_other_maps():
    net, inputs = Case().build(0)
    cam = SSCAM(net, net.layer)
    options = {"target": 1, "num_samples": 3}
    maps = [
        cam.attribute(inputs, generator=seeded(seed), **options) for seed in (7, 7, 8)
    ]
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2], atol=1e-4)
    default = cam.attribute(inputs, **options)
    assert torch.equal(default, cam.attribute(inputs, **options))
    assert torch.equal(default, cam.attribute(inputs, generator=seeded(0), **options))


def test_a_generator_goes_on_from_call_to_call():
    net, inputs = Case().build(0)
    cam, generator = SSCAM(net, net.layer), seeded(0)
    options = {"target": 1, "num_samples": 3, "generator": generator}
    first, second = (cam.attribute(inputs, **options) for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-4)


@pytest.mark.parametrize("generator", [None, seeded(3)], ids=["default", "given"])
def test_the_global_random_state_is_neither_used_nor_touched(generator):
    net, inputs = Case().build(0)
    cam = SSCAM(net, net.layer)
    options = {"target": 1, "num_samples": 3, "generator": generator}
    maps = []
    for seed in (1, 2):
        if generator is not None:
            generator.manual_seed(3)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        maps.append(cam.attribute(inputs, **options))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*maps)


def test_refuses_a_num_samples_that_is_no_positive_int():
    net, inputs = Case().build(0)
    cam = SSCAM(net, net.layer)
    for value in (0, -3):
        message = f"`num_samples` must be a positive int.* got {value}"
        with pytest.raises(ValueError, match=message):
            cam.attribute(inputs, target=0, num_samples=value)
    for value in (2.0, "2", True, None):
        with pytest.raises(TypeError, match="`num_samples` must be a positive int"):
            cam.attribute(inputs, target=0, num_samples=value)


def test_refuses_a_std_that_is_negative_or_not_finite_or_no_number():
    net, inputs = Case().build(0)
    cam = SSCAM(net, net.layer)
    for value in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="`std` must be .*, got"):
            cam.attribute(inputs, target=0, std=value)
    for value in ("2", None, True):
        with pytest.raises(TypeError, match="`std` must be .*, got"):
            cam.attribute(inputs, target=0, std=value)


@pytest.mark.parametrize("value", [0, "cpu", torch.manual_seed])
def test_refuses_a_generator_that_is_no_generator(value):
    net, inputs = Case().build(0)
    message = "`generator` must be a torch.Generator or None, got"
    with pytest.raises(TypeError, match=message):
        SSCAM(net, net.layer).attribute(inputs, target=0, generator=value)
