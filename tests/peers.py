"""torchcam 0.5 and grad-cam 1.5, small nets, and formulas in numpy. Not a test itself.

Our maps are compared with torchcam's as they are (``normalized=False``). grad-cam only
returns maps that are resized to the input and min-max scaled, always in float32: ours
get the same treatment. Both peers score with raw outputs, so ours do too.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import relu
from torch import nn

from captum_unioncam import (
    ISCAM,
    SSCAM,
    AblationCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    ScoreCAM,
    XGradCAM,
)

torchcam = pytest.importorskip("torchcam")
grad_cam = pytest.importorskip("pytorch_grad_cam")

SIZE = (15, 21)
TARGETS = [2, 0, 3]  # one for each image
# torchcam adds 1e-8 to what it divides by: sums of activations, and maxima of masks.
TORCHCAM = {"rtol": 1e-6, "atol": 1e-7}
# grad-cam rounds scores and maps to float32, and adds 1e-7 or 1e-8 to what it divides
# by. Its maps are in [0, 1].
GRAD_CAM = {"rtol": 0, "atol": 2e-6}
# Maps in [0, 1] that differ this much somewhere are not the same.
FAR = 0.01
# Ours, torchcam's (None: it has none, or it is another formula) and grad-cam's.
GRADIENT_CAMS = {
    "grad_cam": (GradCAM, torchcam.methods.GradCAM, grad_cam.GradCAM),
    "grad_cam_plus_plus": (GradCAMPlusPlus, None, grad_cam.GradCAMPlusPlus),
    "x_grad_cam": (XGradCAM, torchcam.methods.XGradCAM, grad_cam.XGradCAM),
    "hi_res_cam": (HiResCAM, None, grad_cam.HiResCAM),
    "layer_cam": (LayerCAM, torchcam.methods.LayerCAM, grad_cam.LayerCAM),
}
every_cam = pytest.mark.parametrize("name", GRADIENT_CAMS)
in_torchcam = pytest.mark.parametrize(
    "name", [name for name, cams in GRADIENT_CAMS.items() if cams[1]]
)
# Nets whose maps are never constant, by stride and seed: the layer has the size of
# the input, about half of it, or a third of it.
SAME, HALF, THIRD = [(1, 2), (1, 4)], [(2, 0), (2, 1)], [(3, 2), (3, 3)]
every_net = pytest.mark.parametrize("stride, seed", SAME + HALF + THIRD)
same_size = pytest.mark.parametrize("stride, seed", SAME)
# Bilinear resizing by an odd factor hits the centres of the layer's positions, so that
# a resized map keeps its extremes: to scale before resizing is to scale after it.
keeping_extremes = pytest.mark.parametrize("stride, seed", SAME + THIRD)


class Net(nn.Module):
    """Two convolutions, a layer, and a flattening head that is not linear.

    Two of the layer's eight channels are constant: all 0, and 0.5 everywhere.
    """

    def __init__(self, stride, scale, bias, signed):
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 8, 3, stride=stride, padding=1)
        self.layer = nn.Identity() if signed else nn.ReLU()
        positions = np.prod([-(-length // stride) for length in SIZE])
        self.hidden = nn.Linear(8 * positions, 16)
        self.head = nn.Linear(16, 4)
        self.scale, self.bias = scale, bias
        with torch.no_grad():
            self.second.weight *= 4  # channels of peaks, not of plains
            self.second.weight[5:7] = 0
            self.second.bias[5:7] = torch.tensor([0 if signed else -1, 0.5])

    def rest(self, maps):
        hidden = torch.tanh(self.hidden(maps.flatten(1)))
        return self.scale * self.head(hidden) + self.bias

    def forward(self, images):
        return self.rest(self.layer(self.second(torch.tanh(3 * self.first(images)))))


def build(stride=2, seed=0, scale=1.0, bias=0.0, signed=False):
    """Returns a net and three images in float64; ``scale`` is its gradients' size."""
    torch.manual_seed(seed)
    net = Net(stride, scale, bias, signed).double().eval()
    return net, torch.rand(3, 2, *SIZE, dtype=torch.float64)


def raw(output):
    """The score function of the peers."""
    return output


def ours(cam, net, inputs, target=TARGETS, **options):
    """Our maps, (N, *layer_size)."""
    if cam in (ScoreCAM, SSCAM, ISCAM, AblationCAM):
        options["score_func"] = raw
    return cam(net, net.layer).attribute(inputs, target, **options)[:, 0].detach()


def of_torchcam(cam, net, inputs, target=TARGETS, **options):
    """torchcam's maps, (N, *layer_size)."""
    with cam(net, net.layer, **options) as extractor:
        output = net(inputs)
        return extractor(target, output, normalized=False)[0].detach()


def of_grad_cam(cam, net, inputs, target=TARGETS):
    """grad-cam's maps, (N, *input_size), in [0, 1]."""
    categories = grad_cam.utils.model_targets.ClassifierOutputTarget
    targets = [categories(index) for index in target]
    with cam(model=net, target_layers=[net.layer]) as extractor:
        return torch.from_numpy(extractor(input_tensor=inputs, targets=targets))


def shown(maps, size=SIZE):
    """Resized and min-max scaled, as grad-cam shows maps; none may be constant."""
    maps = torch.as_tensor(maps)[:, None]
    large = F.interpolate(maps, size, mode="bilinear", align_corners=False)[:, 0]
    low, high = large.amin((1, 2), keepdim=True), large.amax((1, 2), keepdim=True)
    assert (high > low).all()
    return ((large - low) / (high - low)).float()


def half_pixel_centres(size):
    """What grad-cam needs in place of nn.UpsamplingBilinear2d to resize as ours."""
    return nn.Upsample(size=size, mode="bilinear", align_corners=False)


def agree(actual, expected, **tolerance):
    torch.testing.assert_close(
        actual, torch.as_tensor(expected, dtype=actual.dtype), **tolerance
    )


def distance(maps, others):
    """The largest difference of maps that are scaled to [0, 1], of each image."""
    return (shown(maps) - shown(others)).abs().amax((1, 2))


def activations_and_gradients(net, inputs):
    """The layer's channels, and their gradients of the output at the target."""
    with torch.no_grad():
        maps = net.layer(net.second(torch.tanh(3 * net.first(inputs))))
    maps.requires_grad_()
    net.rest(maps)[range(len(inputs)), TARGETS].sum().backward()
    return maps.detach().numpy(), maps.grad.numpy()


def weighted(weights, activations):
    return relu((weights[:, :, None, None] * activations).sum(1))


def score_cam(net, inputs, masks):
    """Score-CAM in numpy; ``masks`` lists what a channel, (*size), is scored by."""
    activations, _ = activations_and_gradients(net, inputs)
    weights = []
    for channels, image, target in zip(activations, inputs, TARGETS, strict=True):
        scores = []
        for channel in channels:
            batch = torch.stack([image * torch.from_numpy(m) for m in masks(channel)])
            with torch.no_grad():
                scores.append(net(batch)[:, target].mean().item())
        increases = np.exp(np.array(scores) - max(scores))
        weights.append(increases / increases.sum())
    return weighted(np.stack(weights), activations)


def ablated(net, inputs, value=0.0):
    """The channels, the score y of each image, and y_k with channel k at ``value``."""
    activations, _ = activations_and_gradients(net, inputs)
    scores = []
    for channel in [None, *range(activations.shape[1])]:
        maps = activations.copy()
        if channel is not None:
            maps[:, channel] = value
        with torch.no_grad():
            output = net.rest(torch.from_numpy(maps)).numpy()
        scores.append(output[range(len(inputs)), TARGETS])
    return activations, scores[0][:, None], np.stack(scores[1:], 1)


def grad_cam_plus_plus(activations, gradients, epsilon=0.0):
    """Chattopadhay et al. 2018, Eq. 19."""
    total = activations.sum((2, 3), keepdims=True)
    denominator = 2 * gradients**2 + total * gradients**3 + epsilon
    alpha = gradients**2 / denominator
    return weighted((alpha * relu(gradients)).sum((2, 3)), activations)
