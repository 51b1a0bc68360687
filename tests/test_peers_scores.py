"""The CAMs by scores beside torchcam and grad-cam.

Where a peer differs, its test has both formulas in numpy, ours and the peer's, and
holds each package against its own.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peers import (
    FAR,
    GRAD_CAM,
    SIZE,
    TARGETS,
    TORCHCAM,
    ablated,
    activations_and_gradients,
    agree,
    build,
    distance,
    every_net,
    grad_cam,
    half_pixel_centres,
    keeping_extremes,
    of_grad_cam,
    of_torchcam,
    ours,
    same_size,
    score_cam,
    shown,
    torchcam,
    weighted,
)
from reference import min_max, resize, to_mask

from captum_unioncam import ISCAM, SSCAM, AblationCAM, ScoreCAM


@pytest.fixture(autouse=True)
def no_progress_bars(monkeypatch):
    monkeypatch.setattr("tqdm.tqdm", lambda chunks: chunks)  # grad-cam's


# Masking CAMs


@keeping_extremes
def test_score_cam_agrees_with_torchcam_where_resizing_keeps_the_extremes(stride, seed):
    net, inputs = build(stride, seed, scale=30)
    peer = of_torchcam(torchcam.methods.ScoreCAM, net, inputs)
    agree(ours(ScoreCAM, net, inputs), peer, **TORCHCAM)


@same_size
def test_score_cam_agrees_with_grad_cam_where_the_layer_has_the_inputs_size(
    stride, seed
):
    net, inputs = build(stride, seed, scale=30)
    expected = of_grad_cam(grad_cam.ScoreCAM, net, inputs)
    agree(shown(ours(ScoreCAM, net, inputs)), expected, **GRAD_CAM)


@every_net
def test_score_cam_agrees_with_grad_cam_when_it_resizes_alike(
    stride, seed, monkeypatch
):
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", half_pixel_centres)
    net, inputs = build(stride, seed, scale=30)
    expected = of_grad_cam(grad_cam.ScoreCAM, net, inputs)
    agree(shown(ours(ScoreCAM, net, inputs)), expected, **GRAD_CAM)


@every_net
def test_score_cam_weighs_channels_apart(stride, seed):
    # Equal weights would agree as well.
    net, inputs = build(stride, seed, scale=30)
    activations, _ = activations_and_gradients(net, inputs)
    actual = ours(ScoreCAM, net, inputs)
    assert distance(actual, activations.mean(1)).min() > FAR


def test_score_cam_in_torchcam_scales_masks_before_it_resizes_them():
    # The paper resizes first. Scaled first, a mask does not reach 0 and 1.
    net, inputs = build(2, scale=30)
    actual = ours(ScoreCAM, net, inputs)
    paper = score_cam(net, inputs, lambda channel: [to_mask(channel, SIZE)])
    agree(actual, paper, rtol=1e-9, atol=1e-9)
    peer = of_torchcam(torchcam.methods.ScoreCAM, net, inputs)
    scaled_first = score_cam(
        net, inputs, lambda channel: [resize(min_max(channel), SIZE)]
    )
    agree(peer, scaled_first, **TORCHCAM)
    assert distance(actual, peer).min() > FAR


def test_score_cam_in_grad_cam_aligns_the_corners_of_masks():
    # nn.UpsamplingBilinear2d aligns corners. The authors' code does not, nor does
    # grad-cam itself where it resizes the map.
    def aligned(channel):
        resized = F.interpolate(
            torch.from_numpy(channel)[None, None],
            SIZE,
            mode="bilinear",
            align_corners=True,
        )
        return [min_max(resized[0, 0].numpy())]

    net, inputs = build(3, 3, scale=30)
    actual = ours(ScoreCAM, net, inputs)
    paper = score_cam(net, inputs, lambda channel: [to_mask(channel, SIZE)])
    agree(actual, paper, rtol=1e-9, atol=1e-9)
    peer = of_grad_cam(grad_cam.ScoreCAM, net, inputs)
    agree(shown(score_cam(net, inputs, aligned)), peer, **GRAD_CAM)
    assert (shown(actual) - peer).abs().amax((1, 2)).min() > FAR


class Noise:
    """Takes the place of torchcam's normal distribution: the same for all channels."""

    def __init__(self, fields):
        self.fields = iter(fields)

    def sample(self, size):
        return next(self.fields).expand(size)


@keeping_extremes
def test_ss_cam_agrees_with_torchcam_under_the_same_noise(stride, seed):
    # torchcam draws noise for each channel, and ours shares it. torchcam also puts it
    # on the masks of constant channels, whose part in the softmax scales the other
    # weights alike: maps are compared scaled.
    net, inputs = build(stride, seed, scale=30)
    noise = 2 * torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(seed))
    with torchcam.methods.SSCAM(net, net.layer, num_samples=4) as extractor:
        extractor._distrib = Noise(noise)
        net(inputs)
        peer = extractor(TARGETS, normalized=False)[0]
    generator = torch.Generator().manual_seed(seed)
    actual = ours(SSCAM, net, inputs, num_samples=4, std=2.0, generator=generator)
    agree(shown(actual), shown(peer), rtol=0, atol=1e-6)
    assert distance(actual, ours(ScoreCAM, net, inputs)).min() > FAR


@keeping_extremes
def test_ss_cam_without_noise_is_score_cam_as_in_torchcam(stride, seed):
    net, inputs = build(stride, seed, scale=30)
    expected = ours(ScoreCAM, net, inputs)
    actual = ours(SSCAM, net, inputs, num_samples=2, std=0.0)
    agree(actual, expected, rtol=1e-9, atol=1e-12)
    # It has no noise of std 0.
    peer = of_torchcam(torchcam.methods.SSCAM, net, inputs, num_samples=2, std=1e-30)
    agree(actual, peer, **TORCHCAM)


@keeping_extremes
def test_is_cam_of_one_step_agrees_with_torchcam(stride, seed):
    net, inputs = build(stride, seed, scale=30)
    peer = of_torchcam(torchcam.methods.ISCAM, net, inputs, num_samples=1)
    agree(ours(ISCAM, net, inputs, num_samples=1), peer, **TORCHCAM)


@pytest.mark.parametrize("steps", [3, 10])
def test_is_cam_in_torchcam_adds_up_the_steps_of_the_integral(steps):
    # Step i of the integral from the baseline to the masked input shows i/n of the
    # mask; torchcam shows the sum of the steps so far, (1 + ... + i)/n. The text of the
    # paper has such a sum too, from 0 (frgfm/torch-cam#154); the code of its author,
    # r0cketr1kky/ISS-CAM_resources, has i/n.
    def straight(channel):
        return [i / steps * to_mask(channel, SIZE) for i in range(1, steps + 1)]

    def running_sum(channel):
        return [(i + 1) / 2 * mask for i, mask in enumerate(straight(channel), 1)]

    net, inputs = build(3, 3, scale=30)
    actual = ours(ISCAM, net, inputs, num_samples=steps)
    agree(actual, score_cam(net, inputs, straight), rtol=1e-9, atol=1e-9)
    peer = of_torchcam(torchcam.methods.ISCAM, net, inputs, num_samples=steps)
    agree(peer, score_cam(net, inputs, running_sum), **TORCHCAM)
    assert distance(actual, peer).min() > FAR


def test_is_cam_shows_nothing_brighter_than_the_image_but_torchcam_does():
    net, inputs = build(1, 2, scale=30)
    brightest = []
    handle = net.register_forward_pre_hook(
        lambda module, images: brightest.append(images[0].max().item())
    )
    ours(ISCAM, net, inputs, num_samples=10)
    assert max(brightest) == pytest.approx(inputs.max().item(), abs=1e-6)
    brightest.clear()
    of_torchcam(torchcam.methods.ISCAM, net, inputs, num_samples=10)
    handle.remove()
    assert max(brightest) > 3  # (n + 1) / 2 = 5.5 times a pixel under its mask


def test_an_image_that_is_not_finite_is_nan_but_blank_in_torchcam():
    # torchcam sums with nansum.
    net, inputs = build(1, 2, scale=30)
    inputs[1, 0, 3, 4] = torch.nan
    with pytest.warns(UserWarning, match="not finite"):
        assert ours(ScoreCAM, net, inputs)[1].isnan().all()
    peer = of_torchcam(torchcam.methods.ScoreCAM, net, inputs)
    assert not peer[1].any() and peer[0].any()


# AblationCAM


@every_net
def test_ablation_cam_agrees_with_grad_cam_for_positive_outputs(stride, seed):
    net, inputs = build(stride, seed, scale=30, bias=30)
    assert (net(inputs)[range(3), TARGETS] > 0).all()
    expected = of_grad_cam(grad_cam.AblationCAM, net, inputs)
    # The difference of two scores in float32.
    agree(shown(ours(AblationCAM, net, inputs)), expected, rtol=0, atol=1e-5)


def test_ablation_cam_in_grad_cam_turns_over_for_a_negative_output():
    # The paper divides by y, as grad-cam does. For a negative y that shows where the
    # output falls most; ours divides by |y|.
    net, inputs = build(3, 3, scale=30, bias=-30)
    activations, full, without = ablated(net, inputs)
    assert (full < 0).all()
    actual = ours(AblationCAM, net, inputs)
    weights = (full - without) / np.abs(full)
    agree(actual, weighted(weights, activations), rtol=1e-9, atol=1e-9)
    peer = of_grad_cam(grad_cam.AblationCAM, net, inputs)
    agree(shown(weighted(-weights, activations)), peer, rtol=0, atol=1e-5)
    assert (shown(actual) - peer).abs().amax((1, 2)).min() > FAR


def test_ablation_cam_in_grad_cam_does_not_ablate_to_zero_in_a_signed_layer():
    # The paper sets a channel to 0. grad-cam does so if the smallest activation is 0,
    # as after a ReLU; if not, it sets the channel to 1e7 below the smallest, where the
    # net saturates.
    net, inputs = build(3, 3, scale=30, bias=30, signed=True)
    activations, full, without = ablated(net, inputs)
    assert activations.min() < 0 and (full > 0).all()
    actual = ours(AblationCAM, net, inputs)
    expected = weighted((full - without) / full, activations)
    agree(actual, expected, rtol=1e-9, atol=1e-9)
    peer = of_grad_cam(grad_cam.AblationCAM, net, inputs)
    activations, full, without = ablated(net, inputs, value=-1e7)
    saturated = weighted((full - without) / full, activations)
    agree(shown(saturated), peer, rtol=0, atol=1e-5)
    assert (shown(actual) - peer).abs().amax((1, 2)).min() > FAR
