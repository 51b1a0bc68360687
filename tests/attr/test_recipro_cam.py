"""ReciproCAM: the score of each position alone, by hand."""

import pytest
import torch
from nets import Case, Counted, TwoTensors, Weighed, example
from torch import nn

from captum_unioncam import ReciproCAM


def explain(net, inputs, **options):
    """The map of the only example, as nested lists."""
    return ReciproCAM(net, net.layer).attribute(inputs, **options)[0, 0].tolist()


@pytest.mark.parametrize("bias", [0.0, 3.0, -20.0])
def test_hand_worked_example(bias):
    # Alone the positions are worth 1 * 1 + 3 * 3 = 10, 2 * 2 + 0 = 4 and 0 - 4 * 1 =
    # -4, beside the bias. Scaled: [14 8 0] / 14. This method has no ReLU.
    net = Weighed([[1, 2, 5], [3, -1, -4]], bias)
    actual = explain(net, example([1, 2, 0], [3, 0, 1]))
    assert actual == pytest.approx([1, 4 / 7, 0], abs=1e-12)


def test_positions_keep_their_place_in_two_dimensions():
    # The only channel, times the head: [1 0 3; 6 4 2], over 6.
    net = Weighed([[[1, 1, 1], [2, 2, 2]]])
    actual = explain(net, example([[1, 0, 3], [3, 2, 1]]))
    assert actual == [
        pytest.approx([1 / 6, 0, 1 / 2], abs=1e-12),
        pytest.approx([1, 2 / 3, 1 / 3], abs=1e-12),
    ]


def test_what_the_model_does_with_several_positions_at_once_does_not_count():
    class Net(nn.Module):
        """The product of two positions, and a third."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, image):
            maps = self.layer(image)[:, 0]
            return (maps[:, 0] * maps[:, 1] * 100 + maps[:, 2])[:, None]

    assert explain(Net(), example([5, 5, 1])) == [0, 0, 1]


def test_negative_activations_count_as_they_are():
    # -2 * -1 = 2 and 1 * -3 = -3.
    assert explain(Weighed([[-1, 1]]), example([-2, -3])) == [1, 0]


@pytest.mark.parametrize(
    "net, inputs",
    [
        (Weighed([[0, 0]]), example([1, 2])),
        (Weighed([[1, 1]], bias=2.0), example([0, 0])),
        (Weighed([[2, 1]]), example([1, 2])),
        (Weighed([[3], [4]]), example([1], [2])),
    ],
    ids=["no weights", "no activations", "alike", "single position"],
)
def test_equal_scores_give_a_map_of_zeros_with_a_warning(net, inputs):
    with pytest.warns(UserWarning, match=r"ReciproCAM: .* examples \[0\] are constant"):
        assert not any(explain(net, inputs))


def test_each_example_is_scaled_on_its_own():
    net = Weighed([[1, 1, 1]])
    inputs = torch.cat([example([1, 2, 3]), example([40, 0, 10])])
    maps = ReciproCAM(net, net.layer).attribute(inputs)
    assert maps[:, 0].tolist() == [[0, 0.5, 1], [1, 0, 0.25]]


def test_each_position_costs_a_pass():
    net, inputs = Case().build(0)
    counted = Counted(net)
    ReciproCAM(counted, net.layer).attribute(inputs, target=0)
    # The activations and the scores of 3 examples, and 16 positions of each.
    assert counted.examples == 3 + 3 + 3 * 16


class Twice(nn.Module):
    """A layer that doubles, and runs two times in each pass."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(1, 1, 1, bias=False).double()
        nn.init.constant_(self.layer.weight, 2)
        weights = torch.tensor([1, 3, 4], dtype=torch.float64)
        self.register_buffer("weights", weights)

    def forward(self, image):
        first = self.layer(image)
        second = self.layer(1 + first)
        return (first.sum((1, 2)) * (second * self.weights).sum((1, 2)))[:, None]


def test_the_last_run_of_a_layer_is_replaced():
    # [0 1 0] becomes [0 2 0], and 2 * [1 3 1] = [2 6 2], worth 2 * [2 18 8], because
    # the first run is unchanged: [4 36 16], scaled [0 1 12/32].
    assert explain(Twice(), example([0, 1, 0])) == [0, 1, 0.375]


def test_a_layer_of_several_tensors_has_a_map_for_each():
    # The first tensor is worth [1 6 4] beside the second, the second [1 * 1 + 4 * 1, 0
    # + 1 * 1, 2 * 1 + 0] = [5 1 2] beside the first.
    net = TwoTensors([[1, 3, 2], [1, 1, 2], [4, 1, 0]])
    inputs = example([1, 2, 2], [1, 0, 1], [1, 1, 1])
    first, second = ReciproCAM(net, net.layer).attribute(inputs)
    assert first[0, 0].tolist() == pytest.approx([0, 1, 3 / 5], abs=1e-12)
    assert second[0, 0].tolist() == pytest.approx([1, 0, 1 / 4], abs=1e-12)
