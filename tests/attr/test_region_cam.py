"""RegionCAM: channels under the scores of what they show, by hand."""

import torch
from nets import Counted, Weighed, example
from torch import nn

from captum_unioncam import RegionCAM


def test_hand_worked_example():
    # The layer is the input. Channel 1 masks to [0 1 .5], channel 2 to [1 0 0]. The
    # score is the sum of what is left: 2 * 1 + 1 * .5 + 0 = 2.5 (channel 2 is 0 there),
    # and 4 + 0 = 4 (channel 1 is 0 there). L = 2.5 * [0 2 1] + 4 * [4 0 0] = [16 5
    # 2.5].
    net = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(6, 1, bias=False))
    nn.init.ones_(net[2].weight)
    inputs = torch.tensor([[[0.0, 2, 1], [4, 0, 0]]])
    assert RegionCAM(net, net[0]).attribute(inputs).tolist() == [[[16, 5, 2.5]]]


def test_a_constant_channel_costs_nothing_and_has_the_score_of_the_baseline():
    net = Weighed([[1, 1], [1, 1]], bias=5.0)
    counted = Counted(net)
    # f(black) = 5 weighs the constant channel, f([0 1] masked) = 5 + 3 + 1 = 9 the
    # other: L = 5 * [3 3] + 9 * [0 1] = [15 24].
    maps = RegionCAM(counted, net.layer).attribute(example([3, 3], [0, 1]))
    assert maps.tolist() == [[[15, 24]]]
    # The activations, the baseline (twice), and one active channel.
    assert counted.examples == 1 + 2 + 1


def test_negative_evidence_is_not_shown():
    # f(black) = -2 weighs the constant channel, f([0 1] masked) = 0 + 4 - 2 = 2 the
    # other: L = ReLU(-2 * [1 1] + 2 * [0 4]) = [0 6].
    net = Weighed([[0, 0], [1, 1]], bias=-2.0)
    maps = RegionCAM(net, net.layer).attribute(example([1, 1], [0, 4]))
    assert maps.tolist() == [[[0, 6]]]


def test_integer_images_are_masked_rounded_and_cast_back():
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, image):
            seen.append(image)
            return self.layer(image.float()).sum((1, 2))[:, None]

    net = Net()
    inputs = torch.tensor([[[0, 100, 201]]], dtype=torch.uint8)
    RegionCAM(net, net.layer).attribute(inputs, perturbations_per_eval=1)
    assert all(image.dtype == torch.uint8 for image in seen)
    # The mask is [0, 100 / 201, 1]: 49.75 rounds to 50.
    assert seen[-1].tolist() == [[[0, 50, 201]]]


def test_an_integer_image_may_be_the_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, image):
            return self.layer(image).float().sum((1, 2))[:, None]

    net = Net()
    # The mask is [0, 100 / 201, 1], and shows 0 + 50 + 201 of the image.
    maps = RegionCAM(net, net.layer).attribute(
        torch.tensor([[[0, 100, 201]]], dtype=torch.uint8)
    )
    assert maps.tolist() == [[[0, 251 * 100, 251 * 201]]]
