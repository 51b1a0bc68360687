"""DenoisedGradCAM: the equations of AMD, by hand."""

import pytest
import torch
from nets import Case

from captum_unioncam import DenoisedGradCAM
from captum_unioncam.attr.denoised_grad_cam import (
    denoise,
    denoised_map,
    denoised_weights,
)


def test_denoise_keeps_entries_at_the_percentile():
    # Of 0, 1, 2, 3, 4 the 50th percentile is 2, and 2 stays.
    gradients = torch.tensor([[[3.0, 0, 4, 1, 2]]])
    assert denoise(gradients, 50).tolist() == [[[3, 0, 4, 0, 2]]]


def test_weights_of_a_channel_sum_to_one_or_zero():
    # Percentile 0 keeps all; the negative entry is dropped by the ReLU; 1 and 3 share
    # 1.
    gradients = torch.tensor([[[1.0, -2, 3], [-1, -1, 0]]])
    expected = [[[0.25, 0, 0.75], [0, 0, 0]]]
    assert denoised_weights(gradients, 0).tolist() == expected


def test_weights_of_tiny_and_huge_gradients_are_finite():
    gradients = torch.tensor([[[1e-42, 3e-42], [1e38, 1e38]]])
    weights = denoised_weights(gradients, 0)
    assert weights[0, 0].tolist() == pytest.approx([0.25, 0.75], rel=1e-2)
    assert weights.isfinite().all()


def test_negative_evidence_is_not_shown():
    activations = torch.tensor([[[-1.0, 2, 4]]])
    gradients = torch.tensor([[[2.0, 1, 1]]])
    assert denoised_map(activations, gradients, 0).tolist() == [[[0, 0.5, 1]]]


def test_theta_changes_nothing_below_a_pooled_linear_head():
    net, inputs = Case(pooled=True).build(0)
    cam = DenoisedGradCAM(net, net.layer)
    maps = [cam.attribute(inputs, target=0, theta=theta) for theta in (0, 10, 60)]
    assert torch.equal(maps[0], maps[1]) and torch.equal(maps[0], maps[2])


def test_theta_changes_the_map_below_a_flattening_head():
    net, inputs = Case().build(0)
    cam = DenoisedGradCAM(net, net.layer)
    maps = [cam.attribute(inputs, target=0, theta=theta) for theta in (0, 90)]
    assert not torch.allclose(*maps)
