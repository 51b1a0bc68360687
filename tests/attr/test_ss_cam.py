"""SSCAM: its noise, and the mean over it, by hand."""

import math

import numpy as np
import pytest
import torch
from nets import Case, Weighed, example

from captum_unioncam import SSCAM, ScoreCAM


def draw(samples, std, size, generator):
    """Returns the documented noise: float32, one value for each pixel."""
    return (std * torch.randn(samples, *size, generator=generator)).numpy()


def seeded(seed):
    """Returns a generator with this seed."""
    return torch.Generator().manual_seed(seed)


def test_hand_worked_example():
    # Channel 1 masks to [0 1 .5]; channel 2 is constant, and gets no noise. The head
    # takes e = [3 2 2] / 10 of the positions of the whole input, [0 * .1 + 3 * .1, 2 *
    # .1, 1 * .2], and is linear: with the mean noise [d0 d1 d2] of a position the
    # increase of channel 1 is a = .3 d0 + .2 (1 + d1) + .2 (.5 + d2). L = (e^a [0 2 1]
    # + e^0 [3 3 3]) / (e^a + 1). The noisy mask leaves [0, 1], and is not clipped.
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
    # The score is the square of the masked input [0 2], (2 (1 + d))^2; the constant
    # channel shows nothing, 0.
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
