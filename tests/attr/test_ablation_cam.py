"""AblationCAM: the loss without each channel, by hand."""

import pytest
import torch
from nets import Counted, TwoTensors, Weighed, example
from torch import nn

from captum_unioncam import AblationCAM

# Hand-worked maps are small.
may_be_constant = pytest.mark.filterwarnings("ignore:.* are constant")


def explain(net, inputs, **options):
    """The map of the only example, as nested lists."""
    return AblationCAM(net, net.layer).attribute(inputs, **options)[0, 0].tolist()


def test_hand_worked_example():
    # y = 2 * 1 + 1 * 2 + 1 * 3 + 5 * 0 = 7. Without channel 1 it is 3, without channel
    # 2 4: w = [4/7 3/7]. L = 4/7 * [1 2] + 3/7 * [3 0] = [13/7 8/7].
    net = Weighed([[2, 1], [1, 5]])
    expected = [13 / 7, 8 / 7]
    actual = explain(net, example([1, 2], [3, 0]))
    assert actual == pytest.approx(expected, abs=1e-12)
    # A bias of 7 doubles y and takes as much from the shares.
    net = Weighed([[2, 1], [1, 5]], bias=7.0)
    actual = explain(net, example([1, 2], [3, 0]))
    assert actual == pytest.approx([13 / 14, 8 / 14], abs=1e-12)


def test_a_negative_score_does_not_invert_the_map():
    # y = -2 - 2 + 3 + 0 = -1. Without channel 1 it is 3, without channel 2 -4. Over |y|
    # = 1: w = [-1 - 3, -1 + 4] = [-4 3]. L = ReLU(-4 * [1 2] + 3 * [3 0]) = [5 0].
    net = Weighed([[-2, -1], [1, 0]])
    assert explain(net, example([1, 2], [3, 0])) == [5, 0]


def test_negative_activations_are_not_shown():
    # y = 3 * 4 - 1 * -2 = 14 and w = [1]: L = ReLU([-2 4]).
    net = Weighed([[-1, 3]])
    actual = explain(net, example([-2, 4]))
    assert actual == pytest.approx([0, 4], abs=1e-12)


def test_a_score_of_zero_gives_a_map_of_zeros_with_a_warning():
    # y = 1 + 2 - 3, and no channel has a share of it.
    net = Weighed([[1, 1], [-1, 5]])
    with pytest.warns(
        UserWarning, match=r"AblationCAM: .* examples \[0\] are constant"
    ):
        assert explain(net, example([1, 2], [3, 0])) == [0, 0]


def test_a_score_of_zero_leaves_the_other_examples_alone():
    net = Weighed([[1, 1], [-1, 5]])
    inputs = torch.cat([example([1, 2], [3, 0]), example([1, 2], [1, 0])])
    with pytest.warns(
        UserWarning, match=r"AblationCAM: .* examples \[0\] are constant"
    ):
        maps = AblationCAM(net, net.layer).attribute(inputs)
    # y = 3 - 1 = 2, and -1 and 3 without a channel: w = [3/2 -1/2].
    assert maps[1, 0].tolist() == pytest.approx([1.5 - 0.5, 3], abs=1e-12)


def test_a_constant_channel_is_ablated_and_weighs_unless_channels_are_chosen():
    # y = 2 + 2 * 3 + 2 * 1 = 10, and 8 and 2 without a channel: w = [1/5 4/5]. L = 1/5
    # * [0 2] + 4/5 * [2 2] = [1.6 2].
    net, inputs = Weighed([[1, 1], [3, 1]]), example([0, 2], [2, 2])
    assert explain(net, inputs) == pytest.approx([1.6, 2], abs=1e-12)
    # Only channel 1 is active: the other weighs 0.
    actual = explain(net, inputs, max_channels=2)
    assert actual == pytest.approx([0, 0.4], abs=1e-12)


def test_max_channels_ablates_those_of_largest_variance():
    # y = 2 + 4 + 9 = 15. The variances are 1, 4 and 9/4: w = [0 4/15 9/15] for two, [0
    # 4/15 0] for one.
    net = Weighed([[1, 1], [1, 1], [3, 3]])
    inputs = example([0, 2], [4, 0], [0, 3])
    actual = explain(net, inputs, max_channels=2)
    assert actual == pytest.approx([16 / 15, 27 / 15], abs=1e-12)
    actual = explain(net, inputs, max_channels=1)
    assert actual == pytest.approx([16 / 15, 0], abs=1e-12)
    # All of them: w = [2 4 9] / 15.
    actual = explain(net, inputs, max_channels=3)
    assert actual == pytest.approx([16 / 15, 31 / 15], abs=1e-12)


@may_be_constant
def test_a_single_position_has_a_weight_but_no_variance():
    # y = 2 + 12 = 14, w = [1/7 6/7], L = 1/7 * 2 + 6/7 * 4.
    net, inputs = Weighed([[[1]], [[3]]]), example([[2]], [[4]])
    assert explain(net, inputs) == [[pytest.approx(26 / 7)]]
    assert explain(net, inputs, max_channels=1) == [[0]]


def examples_seen(inputs, **options):
    """Returns how many examples the model sees."""
    net = Weighed([[1, 1], [2, 2], [3, 3]])
    counted = Counted(net)
    AblationCAM(counted, net.layer).attribute(inputs, **options)
    return counted.examples


@may_be_constant
def test_a_channel_of_zeros_costs_no_pass():
    two = torch.cat([example([1, 2], [3, 3], [4, 0]), example([1, 2], [0, 0], [4, 0])])
    # Activations and scores of two examples, 3 and 2 channels.
    assert examples_seen(two) == 2 + 2 + 3 + 2
    # max_channels only counts the active channels: 2 of each example.
    assert examples_seen(two, max_channels=3) == 2 + 2 + 2 + 2
    assert examples_seen(two, max_channels=1) == 2 + 2 + 1 + 1
    assert examples_seen(0 * two) == 2 + 2


class Twice(nn.Module):
    """A layer that doubles, and runs two times in each pass."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(2, 2, 1, groups=2, bias=False).double()
        nn.init.constant_(self.layer.weight, 2)
        weights = torch.tensor([[1, 3], [2, 1]], dtype=torch.float64)
        self.register_buffer("weights", weights)

    def forward(self, image):
        first = self.layer(image)
        second = self.layer(1 + first)
        return (
            10
            + first.sum((1, 2))[:, None]
            + (second * self.weights).sum((1, 2))[:, None]
        )


def test_the_last_run_of_a_layer_is_explained_and_replaced():
    # [0 1; 1 0] becomes [0 2; 2 0], and 2 * [1 3; 3 1] = [2 6; 6 2]. y = 10 + 4 + 2 +
    # 18 + 12 + 2 = 48; without a channel of the second run 28 and 34: w = [20 14] / 48.
    # L = [2 * 20 + 6 * 14, 6 * 20 + 2 * 14] / 48.
    actual = explain(Twice(), example([0, 1], [1, 0]))
    assert actual == pytest.approx([124 / 48, 148 / 48], abs=1e-12)


def test_a_layer_of_several_tensors_has_a_map_for_each():
    # The channels are worth 1 + 6 = 7, 3 + 0 = 3 and 8 + 2 = 10 of y = 20: L = 7/20 *
    # [1 2], and 3/20 * [3 0] + 10/20 * [2 2].
    net = TwoTensors([[1, 3], [1, 1], [4, 1]])
    first, second = AblationCAM(net, net.layer).attribute(
        example([1, 2], [3, 0], [2, 2])
    )
    assert first[0, 0].tolist() == pytest.approx([7 / 20, 14 / 20], abs=1e-12)
    assert second[0, 0].tolist() == pytest.approx([29 / 20, 1], abs=1e-12)


class Thirds(nn.Module):
    """Returns three channels as three tensors."""

    def forward(self, maps):
        return maps.split(1, 1)


@may_be_constant
def test_the_other_tensors_of_a_layer_keep_their_place():
    # As above, with 3/20 * [3 0] and 10/20 * [2 2] apart.
    net = TwoTensors([[1, 3], [1, 1], [4, 1]])
    net.layer = Thirds()
    maps = AblationCAM(net, net.layer).attribute(example([1, 2], [3, 0], [2, 2]))
    actual = torch.cat(maps, 1)[0].tolist()
    for values, expected in zip(actual, ([0.35, 0.7], [0.45, 0], [1, 1]), strict=True):
        assert values == pytest.approx(expected, abs=1e-12)


class Total(nn.Module):
    def forward(self, left, right):
        return left + right


class Joined(nn.Module):
    """A layer of two inputs, of which the second is twice the first."""

    def __init__(self):
        super().__init__()
        self.layer = Total()
        weights = torch.tensor([[1, 3], [2, 1]], dtype=torch.float64)
        self.register_buffer("weights", weights)

    def forward(self, image):
        return (self.layer(image, 2 * image) * self.weights).sum((1, 2))[:, None]


def test_each_input_of_a_layer_is_ablated_alone():
    # y = 3 * (1 + 6) + 3 * (6 + 0) = 39. The channels of the first input are worth 7
    # and 6 of it, those of the second 14 and 12. L = (7 [1 2] + 6 [3 0]) / 39, and
    # twice the shares of twice the channels.
    net = Joined()
    maps = AblationCAM(net, net.layer).attribute(
        example([1, 2], [3, 0]), attribute_to_layer_input=True
    )
    expected = torch.tensor([25, 14], dtype=torch.float64) / 39
    assert torch.allclose(maps[0][0, 0], expected, rtol=0, atol=1e-12)
    assert torch.allclose(maps[1][0, 0], 4 * expected, rtol=0, atol=1e-12)


def test_inputs_need_not_be_images():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(4, 2)
            self.layer = nn.Identity()

        def forward(self, tokens):
            return self.layer(self.embedding(tokens).mT).sum((1, 2))[:, None]

    net = Text()
    table = torch.tensor([[0.0, 0], [1, 0], [0, 2], [3, 1]])
    net.embedding.weight.data.copy_(table)
    # The channels are [1 0 3] and [0 2 1], y = 7, w = [4 3] / 7.
    actual = explain(net, torch.tensor([[1, 2, 3]]))
    assert actual == pytest.approx([4 / 7, 6 / 7, 15 / 7], rel=1e-6)
