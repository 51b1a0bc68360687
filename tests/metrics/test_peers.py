"""Agreement of the metrics with other packages', where definitions agree."""

import contextlib
import itertools
import statistics

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from captum_unioncam import metrics
from captum_unioncam._maps import min_max, upsample
from captum_unioncam.metrics.fidelity import Subsets
from captum_unioncam.metrics.imputation import imputed

torchcam_metrics = pytest.importorskip("torchcam.metrics")

SIZE = 12


class FixedMaps:
    """What torchcam's metrics take for a CAM extractor."""

    def __init__(self, model, maps):
        self.model, self.maps = model, maps

    def __call__(self, class_idx, scores):
        return [self.maps[:, 0]]

    def fuse_cams(self, cams):
        return cams[0]

    def _hooks_off(self):
        return contextlib.nullcontext()


@pytest.fixture
def case():
    """A net, images, targets, and maps whose masks reach 0 and 1 when resized too."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(400, 3)
    ).double()
    inputs = 3 * torch.rand(5, 2, SIZE, SIZE, dtype=torch.float64)
    maps = min_max(torch.rand(5, 1, SIZE, SIZE, dtype=torch.float64))
    return net.eval(), inputs, maps, [0, 2, 1, 1, 0]


def softmax(scores):
    return scores.softmax(1)


def test_average_drop_and_increase_agree_with_torchcam(case):
    net, inputs, maps, targets = case
    theirs = torchcam_metrics.ClassificationMetric(FixedMaps(net, maps), softmax)
    theirs.update(inputs, targets)
    scores = metrics.masked_confidences(net, inputs, maps, targets)
    drop = metrics.confidence_drop(*scores).mean().item()
    increase = metrics.confidence_increase(*scores).mean().item()
    assert 0 < drop < 1 and 0 < increase < 1
    summary = theirs.summary()  # it adds 1e-7 to the denominator
    assert drop == pytest.approx(summary["avg_drop"], abs=1e-6)
    assert increase == summary["conf_increase"]


def test_torchcam_masks_by_maps_that_resizing_keeps_from_1(case):
    # A map of the layer's size loses its extremes when it is resized: torchcam's mask
    # is darker than the paper's, which scales after resizing.
    net, inputs, _, targets = case
    small = min_max(torch.rand(5, 1, 5, 5, dtype=torch.float64))
    large = upsample(small, (SIZE, SIZE))
    theirs = torchcam_metrics.ClassificationMetric(FixedMaps(net, small), softmax)
    theirs.update(inputs, targets)
    ours, scaled = (
        metrics.confidence_drop(
            *metrics.masked_confidences(net, inputs, shown, targets)
        )
        for shown in (small, min_max(large))
    )
    assert torch.allclose(ours, scaled, rtol=0, atol=1e-12)
    assert abs(theirs.summary()["avg_drop"] - ours.mean().item()) > 1e-4


def test_insertion_and_deletion_agree_with_torchcam(case):
    # torchcam has one baseline for both, and its steps are whole numbers of pixels, as
    # ours are where the steps divide the pixels.
    net, inputs, maps, targets = case
    theirs = torchcam_metrics.DeletionInsertionMetric(
        FixedMaps(net, maps), softmax, steps=SIZE
    )
    theirs.update(inputs, targets)
    summary = theirs.summary()
    shown = metrics.insertion(net, inputs, maps, targets, 0, steps=SIZE)
    left = metrics.deletion(net, inputs, maps, targets, 0, steps=SIZE)
    assert shown.mean().item() == pytest.approx(summary["insertion_auc"], abs=1e-6)
    assert left.mean().item() == pytest.approx(summary["deletion_auc"], abs=1e-6)


def test_energy_agrees_with_quantus(case):
    quantus = pytest.importorskip("quantus")
    net, inputs, maps, targets = case
    masks = torch.zeros(5, 1, SIZE, SIZE, dtype=torch.bool)
    masks[:, :, 2:7, 3:9] = True
    theirs = quantus.RelevanceMassAccuracy(
        abs=False, normalise=False, disable_warnings=True
    )(
        model=net,
        x_batch=inputs.numpy(),
        y_batch=torch.tensor(targets).numpy(),
        a_batch=maps.numpy(),
        s_batch=masks.numpy(),
        device="cpu",
    )
    ours = metrics.energy_pointing_game(maps, masks)
    assert ours.tolist() == pytest.approx(list(theirs), abs=1e-9)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_imputation_agrees_with_quantus(share):
    functions = pytest.importorskip("quantus.functions.perturb_func")
    torch.manual_seed(0)
    image = torch.rand(1, SIZE, SIZE - 3, dtype=torch.float64)
    gone = torch.rand(SIZE, SIZE - 3) < share
    places = np.flatnonzero(gone.numpy())
    theirs = functions.noisy_linear_imputation(image.numpy(), places, noise=0)
    ours = imputed(image[None], gone[None])[0].numpy()
    assert np.allclose(ours, theirs, rtol=0, atol=1e-10)


class Probability:
    """The target of pytorch-grad-cam that has the score of a class."""

    def __init__(self, category):
        self.category = category

    def __call__(self, output):
        return output.softmax(0)[self.category]


def in_float32(net, inputs, maps, targets):
    return net.float(), inputs.float(), maps.float(), targets


def test_road_agrees_with_pytorch_grad_cam(case, monkeypatch):
    # It has thresholds at percentiles of the map, which have as many pixels above them
    # where the shares are of whole pixels and there are no ties, and removes what is
    # above: the share that is removed is the rest. It takes float32 alone.
    theirs = pytest.importorskip("pytorch_grad_cam.metrics.road")
    net, inputs, maps, targets = in_float32(*case)
    shares = (25, 50, 75)
    options = {"percentiles": shares, "noise": 0, "return_curve": True}
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # its noise
    given = (inputs, maps[:, 0].numpy(), [Probability(i) for i in targets], net)
    combined = theirs.ROADCombined(percentiles=[100 - p for p in shares])
    ours, _ = metrics.road(net, inputs, maps, targets, **options)
    assert np.allclose(ours.numpy(), combined(*given), rtol=0, atol=1e-5)
    full = net(inputs).softmax(1)[range(5), targets].detach()
    for order, of_one in (
        ("morf", theirs.ROADMostRelevantFirst),
        ("lerf", theirs.ROADLeastRelevantFirst),
    ):
        _, curve = metrics.road(net, inputs, maps, targets, order=order, **options)
        for p, ours in zip(shares, curve.T):
            changes = of_one(100 - p)(*given)
            assert np.allclose((ours - full).numpy(), changes, rtol=0, atol=1e-5)


def test_pytorch_grad_cam_removes_everything_where_pixels_are_equal(case):
    # Of a map with half of its pixels 0, a threshold of 0 removes all: ours removes
    # what it is asked for.
    theirs = pytest.importorskip("pytorch_grad_cam.metrics.road")
    net, inputs, maps, targets = in_float32(*case)
    maps[:, :, : SIZE // 2] = 0
    given = (inputs, maps[:, 0].numpy(), [Probability(i) for i in targets], net)
    _, seen = theirs.ROADMostRelevantFirst(40)(*given, return_visualization=True)
    assert (seen != inputs).all()
    images = []

    def forward_func(image):
        images.append(image)
        return net(image)

    metrics.road(forward_func, inputs, maps, targets, percentiles=(60,), order="morf")
    share = (images[-1] != inputs[-len(images[-1]) :]).double().mean()
    assert share.item() == pytest.approx(0.6, abs=0.01)


def test_mu_fidelity_agrees_with_quantus_on_the_same_subsets(monkeypatch):
    # Quantus removes pixels of each channel apart: the net has one channel. Its subsets
    # are of other generators, and so it gets ours.
    quantus = pytest.importorskip("quantus")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(400, 3)
    ).eval()
    inputs, maps = 3 * torch.rand(2, 5, 1, SIZE, SIZE)  # it runs models in float32
    targets, runs, size = [0, 2, 1, 1, 0], 20, 30
    draws = [torch.Generator().manual_seed(0)]
    subsets = Subsets.drawn((SIZE, SIZE), draws, None, size, runs).members[0]
    each = itertools.chain.from_iterable([subset.numpy()] * 5 for subset in subsets)
    monkeypatch.setattr(np.random, "choice", lambda *_, **__: next(each))
    theirs = quantus.FaithfulnessCorrelation(
        nr_runs=runs,
        subset_size=size,
        perturb_baseline=0.5,
        normalise=False,
        return_aggregate=False,
        disable_warnings=True,
    )(
        model=net,
        x_batch=inputs.numpy(),
        y_batch=np.array(targets),
        a_batch=maps.numpy(),
        softmax=True,
        device="cpu",
    )
    options = {"grid": None, "subset_size": size, "num_samples": runs}
    ours = metrics.mu_fidelity(net, inputs, maps, targets, 0.5, **options)
    assert ours.tolist() == pytest.approx(list(theirs), abs=1e-4)
    assert ours.abs().max() > 0.05


def test_mu_fidelity_of_xplique_has_ranks_and_subsets_of_any_size():
    # Xplique puts each cell in a subset with a chance of 0.2, and correlates ranks. We
    # agree where the map says what each cell is worth. Where it has the order alone,
    # ranks see less of it; and of a constant map they see how large the subsets are.
    torch.manual_seed(0)
    image = torch.rand(SIZE, SIZE, dtype=torch.float64)
    cells = np.arange(SIZE) * 4 // SIZE
    draws = np.random.default_rng(0)
    chosen = draws.random((200, 4, 4))[:, cells][:, :, cells] <= 0.2

    def sums(a):
        return [a[subset].sum().item() for subset in chosen]

    def theirs(a):
        return spearmanr(sums(image), sums(a))[0]

    def ours(a):
        total = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 1)).double()
        nn.init.ones_(total[1].weight)
        return metrics.mu_fidelity(total, image[None, None], a[None, None], grid=4)

    for maps, expected in ((image, 1), (-image, -1)):
        assert theirs(maps) == pytest.approx(expected)
        assert ours(maps).item() == pytest.approx(expected)
    assert 0.5 < ours(image**3).item() < theirs(image**3) < 1
    assert ours(image * 0 + 1).item() == 0 and theirs(image * 0 + 1) > 0.9


def test_average_gain_agrees_with_the_equation_of_xplique():
    # It adds a small number to 1 - y, and is 0 where y is 1.
    full, masked = torch.rand(2, 50, dtype=torch.float64)
    full[0] = 1
    for y, o, ours in zip(full, masked, metrics.average_gain(full, masked)):
        theirs = max(0, o.item() - y.item()) / (1 - y.item() + 1e-7)
        assert ours.item() == pytest.approx(theirs, abs=1e-4)


def test_adcc_is_the_harmonic_mean_of_the_standard_library():
    parts = torch.rand(3, 20, dtype=torch.float64)
    for ours, (coherency, complexity, drop) in zip(metrics.adcc(*parts), parts.T):
        values = [coherency.item(), 1 - complexity.item(), 1 - drop.item()]
        assert ours.item() == pytest.approx(statistics.harmonic_mean(values))
