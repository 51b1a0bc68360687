"""DenoisedGradCAM: the equations of AMD by hand and against the loops."""

import numpy as np
import pytest
import torch
from nets import CASES, Case
from reference import Model, denoising
from torch import nn

from captum_unioncam import DenoisedGradCAM
from captum_unioncam.attr.denoised_grad_cam import (
    denoise,
    denoised_map,
    denoised_weights,
)


@pytest.mark.parametrize("theta", [0, 10, 37.5, 90, 100])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_paper_in_loops(case, theta):
    net, inputs = case.build(7)
    actual = DenoisedGradCAM(net, net.layer).attribute(inputs, target=1, theta=theta)
    for i, image in enumerate(inputs.numpy()):
        tensors = Model(net, net.layer, 1).activations_and_gradients([image])
        expected = denoising(*tensors, theta)
        np.testing.assert_allclose(actual[i, 0], expected, rtol=0, atol=1e-6)


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


@pytest.mark.parametrize("theta", [-0.1, 100.5, float("nan")])
def test_refuses_theta_outside_of_the_percentiles(theta):
    net, inputs = Case().build(0)
    with pytest.raises(
        ValueError, match=rf"`theta` must be in \[0, 100\], got {theta}"
    ):
        DenoisedGradCAM(net, net.layer).attribute(inputs, target=0, theta=theta)


@pytest.mark.parametrize("theta", ["10", None, True])
def test_refuses_theta_that_is_no_number(theta):
    net, inputs = Case().build(0)
    with pytest.raises(TypeError, match="`theta` must be a number"):
        DenoisedGradCAM(net, net.layer).attribute(inputs, target=0, theta=theta)


def test_materialized_gradients_can_be_refused():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(2, 4, 3)
            self.head = nn.Linear(2, 3)

        def forward(self, image):
            self.layer(image)
            return self.head(image.mean((2, 3)))

    net, inputs = Unused(), torch.rand(2, 2, 6, 6)
    cam = DenoisedGradCAM(net, net.layer)
    with pytest.warns(UserWarning, match=r"examples \[0, 1\] are flat"):
        assert not cam.attribute(inputs, target=0).any()
    with pytest.raises(RuntimeError, match="not have been used"):
        cam.attribute(inputs, target=0, grad_kwargs={"materialize_grads": False})


class Frozen(nn.Module):
    """A frozen net of integer images, whose layer leads nowhere."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(2, 3)
        self.requires_grad_(False)

    def forward(self, image):
        image = image.float()
        self.layer(image)
        return self.head(image.mean((2, 3)))


@pytest.mark.parametrize("kind", ["integers", "constant", "no_grad"])
def test_an_output_without_a_graph_has_zero_gradients_and_a_warning(kind):
    net = Frozen()
    inputs = torch.randint(0, 255, (2, 2, 6, 6), dtype=torch.uint8)

    def forward_func(image):
        with torch.set_grad_enabled(kind != "no_grad"):
            output = net(image)
        return torch.ones(len(image), 3) if kind == "constant" else output

    with pytest.warns(UserWarning) as seen:
        maps = DenoisedGradCAM(forward_func, net.layer).attribute(inputs, target=0)
    assert not maps.any()
    assert all(warning.filename == __file__ for warning in seen)
    messages = [str(warning.message) for warning in seen]
    assert "does not depend on `layer` in a way that autograd can see" in messages[0]
    assert "examples [0, 1] are flat" in messages[1]


@pytest.mark.parametrize("theta", [np.int64(10), np.float32(10)])
def test_theta_may_be_a_numpy_number(theta):
    net, inputs = Case().build(0)
    cam = DenoisedGradCAM(net, net.layer)
    actual = cam.attribute(inputs, target=0, theta=theta)
    assert torch.equal(actual, cam.attribute(inputs, target=0))


@pytest.mark.parametrize("layer", [None, 3])
def test_refuses_a_layer_that_is_no_module_and_no_name(layer):
    with pytest.raises(
        TypeError, match="`layer` must be a torch.nn.Module or its dotted name"
    ):
        DenoisedGradCAM(nn.Identity(), layer)


def test_refuses_a_layer_that_is_not_spatial():
    net, inputs = Case().build(0)
    message = r"`layer` .* \(N, K, \*spatial\) .*, got \(3, 3\); choose"
    with pytest.raises(ValueError, match=message):
        DenoisedGradCAM(net, net.head).attribute(inputs, target=0)


def test_refuses_a_layer_that_folds_the_batch():
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(2, 3, 3)

        def forward(self, clips):  # (N, T, C, H, W)
            maps = self.layer(clips.flatten(0, 1))
            return maps.mean((2, 3)).unflatten(0, clips.shape[:2]).mean(1)

    net = Frames()
    with pytest.raises(
        ValueError, match="one row for each example: .* of 2, got .*6, 3"
    ):
        DenoisedGradCAM(net, net.layer).attribute(torch.rand(2, 3, 2, 5, 5), target=0)
