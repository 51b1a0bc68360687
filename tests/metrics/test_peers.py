"""Agreement of the metrics with torchcam's and Quantus', where definitions agree."""

import contextlib

import pytest
import torch
from torch import nn

from captum_unioncam import metrics
from captum_unioncam._maps import min_max, upsample

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
