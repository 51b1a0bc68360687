"""Augmented copies, fused layers and contrasts beside torchcam and grad-cam."""

import pytest
import torch
from captum.attr import Attribution
from peers import (
    FAR,
    GRAD_CAM,
    SIZE,
    TARGETS,
    TORCHCAM,
    agree,
    build,
    every_net,
    grad_cam,
    ours,
    shown,
    torchcam,
)

from captum_unioncam import (
    AugmentedCAM,
    Contrast,
    GradCAM,
    LayerCAM,
    flip_and_gain_augmentations,
    fuse,
)
from captum_unioncam._maps import min_max, upsample

Category = grad_cam.utils.model_targets.ClassifierOutputTarget
CATEGORIES = [Category(index) for index in TARGETS]


# Augmented copies


class Shown(Attribution):
    """Resizes and scales the maps of a copy, as grad-cam does."""

    def __init__(self, base):
        super().__init__(base.forward_func)
        self.base = base

    def attribute(self, inputs, target=None, additional_forward_args=None):
        return shown(self.base.attribute(inputs, target)[:, 0])[:, None]


def smoothed(cam, net, inputs):
    """grad-cam's maps with ``aug_smooth``, (N, *input_size)."""
    with cam(model=net, target_layers=[net.layer]) as extractor:
        maps = extractor(input_tensor=inputs, targets=CATEGORIES, aug_smooth=True)
    return torch.from_numpy(maps)


@every_net
@pytest.mark.parametrize("cam", [GradCAM, LayerCAM])
def test_flips_and_gains_of_scaled_maps_are_aug_smooth(cam, stride, seed):
    net, inputs = build(stride, seed, scale=1e5)
    expected = smoothed(getattr(grad_cam, cam.__name__), net, inputs)
    copies = flip_and_gain_augmentations()
    actual = AugmentedCAM(Shown(cam(net, net.layer)), copies)
    agree(actual.attribute(inputs, TARGETS)[:, 0], expected, **GRAD_CAM)


def test_maps_that_are_not_scaled_count_by_their_size():
    # The one difference: grad-cam scales each copy's map, as no paper asks for.
    net, inputs = build(2, 0, scale=1e5)
    cam, copies = GradCAM(net, net.layer), flip_and_gain_augmentations()
    actual = AugmentedCAM(cam, copies).attribute(inputs, TARGETS)[:, 0]
    peer = smoothed(grad_cam.GradCAM, net, inputs)
    assert (shown(actual) - shown(peer)).abs().max() > FAR
    total = 0
    for copy in copies:
        one = copy.gain * (inputs.flip(3) if copy.flip else inputs)
        large = torch.nn.functional.interpolate(
            cam.attribute(one, TARGETS), SIZE, mode="bilinear"
        )
        total = total + (large.flip(3) if copy.flip else large)
    agree(actual, total[:, 0] / 6, rtol=1e-9, atol=1e-9)


# Layers


def layers_of(net, inputs):
    """LayerCAM's maps at a fine layer and at a coarse one, (N, 1, *layer_size)."""
    return [
        LayerCAM(net, layer).attribute(inputs, TARGETS)
        for layer in (net.first, net.layer)
    ]


def of_both_layers(cam, net, inputs, normalized):
    with cam(net, [net.first, net.layer]) as extractor:
        maps = extractor(TARGETS, net(inputs), normalized=normalized)
        return [one.detach() for one in maps]


@every_net
def test_the_sharpened_maximum_is_layer_cam_in_torchcam(stride, seed):
    net, inputs = build(stride, seed, scale=1e5)
    maps = layers_of(net, inputs)
    actual = fuse(maps, SIZE, "max", gamma=2)[:, 0]
    # The same maps, scaled: only sums in another order are left.
    scaled = [min_max(one)[:, 0] for one in maps]
    peer = torchcam.methods.LayerCAM.fuse_cams(scaled, SIZE)
    agree(actual, peer, rtol=0, atol=1e-12)
    # From the image on. torchcam adds 1e-8 to what it divides by.
    peers = of_both_layers(torchcam.methods.LayerCAM, net, inputs, normalized=True)
    agree(actual, torchcam.methods.LayerCAM.fuse_cams(peers, SIZE), **TORCHCAM)


@every_net
def test_the_product_is_refine_cam_in_torchcam(stride, seed):
    net, inputs = build(stride, seed, scale=1e5)
    maps = layers_of(net, inputs)
    peer = torchcam.methods.RefineCAM.fuse_cams(
        [one[:, 0] for one in maps], SIZE, False
    )
    agree(fuse(maps, SIZE, "product")[:, 0], peer, **TORCHCAM)


@every_net
def test_the_mean_is_that_of_grad_cam(stride, seed):
    net, inputs = build(stride, seed, scale=1e5)
    with grad_cam.LayerCAM(model=net, target_layers=[net.first, net.layer]) as peer:
        expected = torch.from_numpy(peer(input_tensor=inputs, targets=CATEGORIES))
    # It scales the mean once more, and adds 1e-7 to what it divides by, in float32.
    mean = min_max(fuse(layers_of(net, inputs), SIZE, "mean"))
    agree(mean[:, 0].float(), expected, **GRAD_CAM)


def test_a_single_layer_is_sharpened_here_but_not_in_torchcam():
    net, inputs = build(scale=1e5)
    _, maps = layers_of(net, inputs)
    size = maps.shape[2:]
    scaled = min_max(maps)
    agree(fuse([maps], size, gamma=2), torch.tanh(2 * scaled), rtol=0, atol=1e-12)
    peer = torchcam.methods.LayerCAM.fuse_cams([scaled[:, 0]])
    agree(peer, scaled[:, 0], rtol=0, atol=0)


# Contrasts


@every_net
@pytest.mark.parametrize("references", [1, 2, 3])
def test_the_mean_contrast_is_finer_cam_in_torchcam(stride, seed, references):
    net, inputs = build(stride, seed, scale=1e5)
    wrapped = Contrast(net, references)
    actual = GradCAM(wrapped, "model.layer").attribute(inputs, TARGETS)[:, 0]
    cam = torchcam.methods.FinerCAM
    with torch.enable_grad():
        extractor = cam(net, net.layer, num_references=references)
        try:
            peer = extractor(TARGETS, net(inputs), normalized=False)[0].detach()
        finally:
            extractor.remove_hooks()
    agree(actual, peer, **TORCHCAM)
    plain = ours(GradCAM, net, inputs)
    assert (shown(actual) - shown(plain)).abs().max() > FAR


@pytest.mark.filterwarnings("ignore:.* constant. they have one value everywhere")
@every_net
@pytest.mark.parametrize("references", [1, 2, 3])
def test_the_contrast_by_probability_is_finer_cam_in_grad_cam(stride, seed, references):
    # Logits of about 1, so that the 1e-9 that it adds to the references' probabilities
    # is little, and maps far above the 1e-7 that it adds to their maxima.
    net, inputs = build(stride, seed, scale=3)
    wrapped = Contrast(net, references, 1.0, "probability")
    target = net(inputs).argmax(1)
    actual = GradCAM(wrapped, "model.layer").attribute(inputs, target)[:, 0]
    with grad_cam.FinerCAM(net, [net.layer]) as peer:
        categories = list(range(1, references + 1))
        expected = peer.forward(inputs, comparison_categories=categories)
    large = min_max(
        upsample(actual[:, None], SIZE)
    )  # constant maps are zeros there too
    agree(large[:, 0].float(), torch.from_numpy(expected), **GRAD_CAM)
    assert (large.amax((1, 2, 3)) > FAR).sum() > 1
