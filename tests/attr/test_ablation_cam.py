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


@pytest.mark.parametrize("max_channels", [None, 2, 1])
def test_a_constant_channel_is_ablated_and_weighs(max_channels):
    # y = 2 + 2 * 3 + 2 * 1 = 10, and 8 and 2 without a channel: w = [1/5 4/5]. L = 1/5
    # * [0 2] + 4/5 * [2 2] = [1.6 2]. It is predicted where only the other is ablated,
    # exactly, as the output is linear.
    net, inputs = Weighed([[1, 1], [3, 1]]), example([0, 2], [2, 2])
    actual = explain(net, inputs, max_channels=max_channels)
    assert actual == pytest.approx([1.6, 2], abs=1e-12)


def squared(output):
    return output.square()


@pytest.mark.parametrize(
    "max_channels, weights",
    [
        # 13^2, 11^2 and 6^2 without a channel: the lost shares of 225.
        (None, [56, 104, 189]),
        (3, [56, 104, 189]),
        # Channels 2 and 3, and 2 (4 * 104 + 9 * 189) / (4^2 + 9^2) for channel 1.
        (2, [2 * 2117 / 97, 104, 189]),
        # Channel 3, of which each unit of the effects has 189 / 9 = 21.
        (1, [2 * 21, 4 * 21, 189]),
    ],
)
@pytest.mark.parametrize("scale", [1, 1e-170, 1e170])
def test_max_channels_ablates_what_matters_most_and_predicts_the_others(
    max_channels, weights, scale
):
    # The output is 2 + 4 + 9 = 15, y = 225, and the first-order effects are [2 4 9]: by
    # the deviations of 1, 2 and 3/2 they are [2 8 13.5].
    net = Weighed([[scale, scale], [scale, scale], [3 * scale, 3 * scale]])
    actual = explain(
        net,
        example([0, 2], [4, 0], [0, 3]),
        max_channels=max_channels,
        score_func=lambda output: (output / scale).square(),
    )
    first, second, third = (weight / 225 for weight in weights)
    expected = [4 * second, 2 * first + 3 * third]
    assert actual == pytest.approx(expected, abs=1e-12)


def test_the_deviation_decides_where_the_effects_are_equal():
    # The effects are [2 -2 3], and the deviations [1 0.5 0.5]: [2 1 1.5]. The output
    # is 3, y = 9, and 1 without channel 1: 8/9 for an effect of 2, 4/9 for one.
    net, inputs = Weighed([[1, 1], [-1, -1], [1, 1]]), example(
        [0, 2], [1.5, 0.5], [1, 2]
    )
    actual = explain(net, inputs, max_channels=1, score_func=squared)
    w = [8 / 9, -8 / 9, 12 / 9]
    expected = [-1.5 * 8 / 9 + w[2], 2 * w[0] + 0.5 * w[1] + 2 * w[2]]
    assert actual == pytest.approx(expected, abs=1e-12)


def test_effects_of_zero_predict_nothing():
    # The gradients are 0 * A, and channel 1 is ablated: its share of 0 is known.
    net = Weighed([[0, 0], [0, 0]], bias=3.0)
    for count, named in ((1, 1), (2, 0)):  # all channels need no gradients
        with pytest.warns(UserWarning, match="are constant") as seen:
            assert explain(net, example([1, 2], [3, 0]), max_channels=count) == [0, 0]
        texts = [str(warning.message) for warning in seen]
        assert sum("[0] are made without the channels" in t for t in texts) == named


@may_be_constant
@pytest.mark.parametrize("max_channels", [None, 1])
def test_a_single_position_has_a_weight_but_no_variance(max_channels):
    # y = 2 + 12 = 14, w = [1/7 6/7], L = 1/7 * 2 + 6/7 * 4.
    net, inputs = Weighed([[[1]], [[3]]]), example([[2]], [[4]])
    actual = explain(net, inputs, max_channels=max_channels)
    assert actual == [[pytest.approx(26 / 7)]]


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
    # For the effects the batch goes once more.
    assert examples_seen(two, max_channels=3) == 2 + 2 + 2 + 3 + 2
    assert examples_seen(two, max_channels=2) == 2 + 2 + 2 + 2 + 2
    assert examples_seen(two, max_channels=1) == 2 + 2 + 2 + 1 + 1
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
