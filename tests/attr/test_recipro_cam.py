"""ReciproCAM: the score of each position alone, by hand."""

import pytest
import torch
from nets import Case, Counted, TwoTensors, Weighed, example
from torch import nn
from torchvision.models import VisionTransformer

from captum_unioncam import ReciproCAM, vit_reshape
from captum_unioncam.attr.recipro_cam import gaussian_masks


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


# Neighbours


def test_hand_worked_neighbours():
    # A position is worth 2 A_1 + A_2 = [6 4; 6 10], beside 3. Around the first one: 6/4
    # + 4/8 + 6/8 + 10/16 = 27/8; around the others 27/8, 15/4 and 33/8.
    net = Weighed([[[2, 2], [2, 2]], [[1, 1], [1, 1]]], bias=3.0)
    inputs = example([[1, 2], [3, 4]], [[4, 0], [0, 2]])
    alone = [[1 / 3, 0], [1 / 3, 1]]
    for options, rows in (({}, alone), ({"gaussian": True}, [[0, 0], [0.5, 1]])):
        for actual, row in zip(explain(net, inputs, **options), rows, strict=True):
            assert actual == pytest.approx(row, abs=1e-12)


@pytest.mark.parametrize("size", [(3,), (1,), (3, 4), (2, 3, 4)])
def test_masks_are_products_of_one_two_one(size):
    # The kernel, put on a grid that is larger by one on each side, which is cut off.
    line = torch.tensor([1.0, 2, 1]) / 4
    kernel = line
    for _ in size[1:]:
        kernel = kernel[..., None] * line
    count = torch.Size(size).numel()
    masks = gaussian_masks(torch.arange(count), size)
    assert masks.shape == (count, 1, *size)
    for position, mask in enumerate(masks):
        padded = torch.zeros([side + 2 for side in size])
        place, rest = [], position
        for side in reversed(size):
            place.insert(0, rest % side)
            rest //= side
        padded[tuple(slice(i, i + 3) for i in place)] = kernel
        assert torch.equal(mask[0], padded[tuple(slice(1, -1) for _ in size)])


def test_vit_recipro_cam_by_hand():
    # The grid of vit_b_16, 14 x 14, and a model that is small otherwise.
    torch.manual_seed(0)
    model = VisionTransformer(224, 16, 2, 2, 8, 16, num_classes=5).double().eval()
    nn.init.normal_(model.heads.head.weight)
    image = torch.rand(1, 3, 224, 224, dtype=torch.float64)
    first, last = model.encoder.layers
    tokens = []
    handle = first.register_forward_hook(lambda *call: tokens.append(call[2]))
    with torch.no_grad():
        model(image)
        handle.remove()
        scores = torch.empty(14, 14, dtype=torch.float64)
        for row in range(14):
            for column in range(14):
                kept = torch.zeros_like(tokens[0])
                kept[:, 0] = tokens[0][:, 0]
                for i in range(max(row - 1, 0), min(row + 2, 14)):
                    for j in range(max(column - 1, 0), min(column + 2, 14)):
                        share = (2 - abs(i - row)) * (2 - abs(j - column)) / 16
                        patch = 1 + 14 * i + j
                        kept[:, patch] = share * tokens[0][:, patch]
                output = model.heads(model.encoder.ln(last(kept))[:, 0])
                scores[row, column] = output[0, 3]
    expected = (scores - scores.min()) / (scores.max() - scores.min())
    cam = ReciproCAM(model, first, reshape_transform=vit_reshape)
    options = {"target": 3, "score_func": lambda output: output}
    maps = cam.attribute(image, gaussian=True, **options)
    torch.testing.assert_close(maps[0, 0], expected, rtol=0, atol=1e-9)
    assert not torch.allclose(cam.attribute(image, **options), maps, atol=0.01)
