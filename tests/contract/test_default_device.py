"""The default device does not matter: new tensors are where the data is.

On the meta device, which has no data, a tensor that is made without naming its device
fails as soon as it meets the data. Whoever makes a GPU the default device, and explains
a model on the CPU, meets the same.
"""

import functools

import pytest
import torch
from contract.shared import (
    CONTRACT_MARKS,
    EXAMPLES,
    TARGETS,
    Call,
    ManyInputsNet,
    every_method,
    make_images,
    many_inputs,
    methods_with,
    output_and_input,
)
from torch import nn

from captum_unioncam import (
    BoxScore,
    GradCAM,
    MeanOverMask,
    find_layer,
    metrics,
    swin_reshape,
    to_input,
    vit_reshape,
)
from captum_unioncam.visualization import overlays, panels

pytestmark = CONTRACT_MARKS


def elsewhere():
    return torch.device("meta")


OPTIONS = [
    {},
    {"baselines": 0.5},
    {"baselines": torch.full((1, 3, 1, 1), 0.5, dtype=torch.float64)},
    {"score_func": torch.sigmoid},
    {"max_channels": 2},
    {"perturbations_per_eval": 3},
    {"show_progress": True},
    {"theta": 30},
    {"std": 0.5},
    {"percentile": 30, "groups": 2},
    {"relative": True, "method": "riemann_middle"},
    {"return_details": True},
]


@pytest.mark.parametrize(
    "method, options",
    [(m, options) for options in OPTIONS for m in methods_with(*options)],
)
@pytest.mark.parametrize("target", [1, TARGETS, torch.tensor(TARGETS)], ids=type)
def test_every_method_and_option(method, net, images, options, target):
    cam = method(net, net.relu)
    expected = cam.attribute(images, target, **options)
    with elsewhere():
        found = cam.attribute(images, target, **options)
    if "return_details" in options:
        (found, details), (expected, _) = found, expected
        assert all(not value.is_meta for value in vars(details).values())
    # The number of inputs in a pass may be another.
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@every_method
@output_and_input
def test_every_input_and_layer(method, attribute_to_layer_input):
    net, inputs = ManyInputsNet(), many_inputs()
    cam = method(net, net.net.relu)
    expected = cam.attribute(inputs, 1, None, attribute_to_layer_input)
    with elsewhere():
        maps = cam.attribute(inputs, 1, None, attribute_to_layer_input)
    assert torch.equal(maps, expected)


@every_method
def test_layers_of_tokens(method, net, images):
    expected = method(net, net.relu).attribute(images, target=1)
    tokens = Call(lambda maps: maps.relu().flatten(2).transpose(1, 2))
    net.relu, net.after = tokens, Call(lambda t: t.transpose(1, 2).unflatten(2, (5, 4)))
    transform = functools.partial(vit_reshape, prefix_tokens=0, grid=(5, 4))
    cam = method(net, tokens, reshape_transform=transform)
    with elsewhere():
        maps = cam.attribute(images, target=1)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-12)


METRICS = {
    "masked_confidences": lambda net, x, maps: torch.stack(
        metrics.masked_confidences(net, x, maps, target=1)
    ),
    "insertion": lambda net, x, maps: metrics.insertion(net, x, maps, target=1),
    "deletion": lambda net, x, maps: metrics.deletion(net, x, maps, target=1),
    "road": lambda net, x, maps: metrics.road(net, x, maps, target=1),
    "mu_fidelity": lambda net, x, maps: metrics.mu_fidelity(net, x, maps, target=1),
    "average_gain": lambda net, x, maps: metrics.average_gain(
        *metrics.masked_confidences(net, x, maps, target=1)
    ),
    "adcc": lambda net, x, maps: metrics.adcc(*maps[:3].flatten(1)[:, :5]),
    "pointing_game": lambda net, x, maps: metrics.pointing_game(maps, shown(x)),
    "energy": lambda net, x, maps: metrics.energy_pointing_game(maps, shown(x)),
    "box_iou": lambda net, x, maps: metrics.box_iou(
        maps, [torch.tensor([[1.0, 1, 5, 6]], device="cpu")] * EXAMPLES, x.shape[2:]
    ),
    "boxes_to_masks": lambda net, x, maps: metrics.boxes_to_masks(
        [torch.tensor([[1.0, 1, 5, 6]], device="cpu")], x.shape[2:]
    ),
    "complexity": lambda net, x, maps: metrics.complexity(maps),
    "coherency": lambda net, x, maps: metrics.coherency(
        GradCAM(net, net.relu).attribute, x, maps, target=1
    ),
    "to_input": lambda net, x, maps: to_input(maps, x),
}


def shown(images):
    return metrics.boxes_to_masks(
        [torch.tensor([[1.0, 1, 5, 6]], device="cpu")] * EXAMPLES, images.shape[2:]
    )


@pytest.mark.parametrize("name", METRICS)
def test_every_metric(name, net, images):
    pytest.importorskip("scipy")
    maps = make_images(channels=1, size=(5, 4), seed=1)
    expected = METRICS[name](net, images, maps)
    with elsewhere():
        found = METRICS[name](net, images, maps)
    # The number of inputs in a pass may be another.
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_find_layer_and_pictures(net, images):
    with elsewhere():
        assert find_layer(net, images) is net.tanh
        maps = net.relu(net.conv(images)).mean(1, keepdim=True).detach()
        for figure in (
            panels(images, {"one": maps}, color_bar=True),
            overlays(images, maps, mean=0.5, std=[0.2, 0.2, 0.2]),
        ):
            assert figure.axes
        assert swin_reshape(images).device == images.device


def test_scores_of_regions_and_boxes(images):
    masks = (images[:, :1] > 0.5).to(images)

    class Detector(nn.Module):
        def forward(self, x):
            box = x.new_tensor([[1.0, 1, 5, 6]])
            label = torch.ones(1, dtype=torch.long, device=x.device)
            return [
                {"boxes": box, "labels": label, "scores": i.mean()[None]} for i in x
            ]

    boxes = images.new_tensor([[1.0, 1, 5, 6]] * EXAMPLES)
    labels = torch.ones(EXAMPLES, dtype=torch.long)
    calls = [
        lambda: MeanOverMask(nn.Identity())(images, masks),
        lambda: BoxScore(Detector())(images, boxes, labels),
    ]
    for call in calls:
        expected = call()
        with elsewhere():
            assert torch.equal(call(), expected)
