"""RegionCAM: scores of channels by hand and against the loops, and its options."""

import numpy as np
import pytest
import torch
from nets import CASES, Case
from reference import Model, region
from torch import nn

from captum_unioncam import DenoisedGradCAM, RegionCAM, UnionCAM


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_paper_in_loops(case):
    net, inputs = case.build(11)
    net.second.weight.data[3] = 0  # a dead channel, which still counts in the sum
    net.second.bias.data[3] = 0.5
    actual = RegionCAM(net, net.layer).attribute(inputs, target=[2, 0, 1])
    for i, target in enumerate([2, 0, 1]):
        image = inputs[i].numpy()
        model = Model(net, net.layer, target)
        activations, _ = model.activations_and_gradients([image])
        expected = region(model, [image], [np.zeros_like(image)], activations)
        np.testing.assert_allclose(actual[i, 0], expected, rtol=0, atol=1e-6)


def test_hand_worked_example():
    # The layer is the input. Channel 1 masks to [0 1 .5], channel 2 to [1 0 0]. The
    # score is the sum of what is left: 2 * 1 + 1 * .5 + 0 = 2.5 (channel 2 is 0 there),
    # and 4 + 0 = 4 (channel 1 is 0 there). L = 2.5 * [0 2 1] + 4 * [4 0 0] = [16 5
    # 2.5].
    net = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(6, 1, bias=False))
    nn.init.ones_(net[2].weight)
    inputs = torch.tensor([[[0.0, 2, 1], [4, 0, 0]]])
    assert RegionCAM(net, net[0]).attribute(inputs).tolist() == [[[16, 5, 2.5]]]


def test_a_dead_channel_costs_nothing_and_has_the_score_of_the_baseline():
    seen = []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, image):
            seen.append(len(image))
            return self.layer(image).sum((1, 2))[:, None] + 5

    net = Net()
    inputs = torch.tensor([[[3.0, 3], [0, 1]]])
    # f(black) = 5 weighs the dead channel, f([0 1] masked) = 5 + 3 + 1 = 9 the other:
    # L = 5 * [3 3] + 9 * [0 1] = [15 24].
    assert RegionCAM(net, net.layer).attribute(inputs).tolist() == [[[15, 24]]]
    assert sum(seen) == 1 + 2 + 1  # activations, the baseline (twice), one live channel


@pytest.mark.parametrize(
    "baseline",
    [
        0.5,
        torch.full((3, 2, 7, 7), 0.5),
        torch.full((1, 2, 7, 7), 0.5),
        torch.full((1, 2, 1, 1), 0.5),
        torch.tensor(0.5),
        (0.5,),
    ],
    ids=["number", "full", "one", "per channel", "0-d", "tuple"],
)
def test_every_form_of_baseline_gives_the_same_map(baseline):
    net, inputs = Case().build(0)
    cam = RegionCAM(net, net.layer)
    expected = cam.attribute(inputs, target=0, baselines=torch.full_like(inputs, 0.5))
    actual = cam.attribute(inputs, target=0, baselines=baseline)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(actual, cam.attribute(inputs, target=0))


def test_a_number_keeps_its_precision_as_a_baseline():
    net, inputs = Case().build(0)
    cam = RegionCAM(net, net.layer)
    expected = cam.attribute(inputs, target=0, baselines=torch.full_like(inputs, 0.7))
    actual = cam.attribute(inputs, target=0, baselines=0.7)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-14)


def test_baselines_follow_their_example():
    net, inputs = Case().build(0)
    baselines = torch.rand_like(inputs)
    cam = RegionCAM(net, net.layer)
    batch = cam.attribute(inputs, target=0, baselines=baselines)
    singles = [
        cam.attribute(inputs[i : i + 1], target=0, baselines=baselines[i : i + 1])
        for i in range(3)
    ]
    assert torch.allclose(batch, torch.cat(singles), rtol=0, atol=1e-12)


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


def test_refuses_baselines_that_do_not_fit():
    net, inputs = Case().build(0)
    cam = RegionCAM(net, net.layer)
    with pytest.raises(ValueError, match=r"`baselines` must have .* got \(1, 5, 1"):
        cam.attribute(inputs, target=0, baselines=torch.zeros(1, 5, 1, 1))
    # Width 7, where plain broadcasting would put it without a word.
    with pytest.raises(ValueError, match=r"must have the rank .*, got \(7,\)"):
        cam.attribute(inputs, target=0, baselines=torch.zeros(7))
    with pytest.raises(ValueError, match="one entry for each input: expected 1, got 2"):
        cam.attribute(inputs, target=0, baselines=(0, 0))
    with pytest.raises(TypeError, match="`baselines` must be .*, got a str"):
        cam.attribute(inputs, target=0, baselines="black")


@pytest.mark.parametrize("name", ["max_channels", "perturbations_per_eval"])
def test_refuses_counts_that_are_not_positive_ints(name):
    net, inputs = Case().build(0)
    cam = RegionCAM(net, net.layer)
    with pytest.raises(ValueError, match=f"`{name}` must be a positive int .* got 0"):
        cam.attribute(inputs, target=0, **{name: 0})
    for value in (2.0, "2", True):
        with pytest.raises(TypeError, match=f"`{name}` must be a positive int"):
            cam.attribute(inputs, target=0, **{name: value})


def test_refuses_inputs_that_have_not_the_layers_rank():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.layer = nn.Conv1d(4, 5, 3)

        def forward(self, tokens):
            return self.layer(self.embedding(tokens).mT).mean(2)

    net = Text()
    message = r"`inputs` must hold a tensor of the layer's rank, 3, .* \[\(2, 8\)\]"
    with pytest.raises(ValueError, match=message):
        RegionCAM(net, net.layer).attribute(torch.ones(2, 8, dtype=int), target=0)


@pytest.mark.parametrize(
    "score_func",
    [
        lambda output: output[:, 0],
        lambda output: output.sum(),
        lambda output: output[:1],
        lambda output: output[:, :, None].expand(-1, -1, 2),
    ],
    ids=["selected already", "one number", "one row", "several values"],
)
def test_refuses_a_score_func_without_one_value_for_each_example(score_func):
    net, inputs = Case().build(0)
    with pytest.raises(ValueError, match="`score_func` must return one value for each"):
        RegionCAM(net, net.layer).attribute(inputs, target=0, score_func=score_func)


def test_refuses_a_score_func_that_is_no_function_or_returns_no_tensor():
    net, inputs = Case().build(0)
    cam = RegionCAM(net, net.layer)
    with pytest.raises(
        TypeError, match="`score_func` must be a callable or None, got 3"
    ):
        cam.attribute(inputs, target=0, score_func=3)
    with pytest.raises(
        TypeError, match="`score_func` must return a Tensor, got a None"
    ):
        cam.attribute(inputs, target=0, score_func=lambda output: None)


def test_an_error_inside_score_func_passes():
    net, inputs = Case().build(0)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        RegionCAM(net, net.layer).attribute(
            inputs,
            target=0,
            score_func=lambda output: output @ torch.ones(9, 9).double(),
        )


def test_score_func_may_reduce_further_dimensions():
    net, inputs = Case().build(0)

    def forward_func(image):  # two copies of each score
        return net(image)[:, :, None].expand(-1, -1, 2)

    maps = RegionCAM(forward_func, net.layer).attribute(
        inputs, target=1, score_func=lambda output: output.mean(2).softmax(1)
    )
    expected = RegionCAM(net, net.layer).attribute(inputs, target=1)
    assert torch.allclose(maps, expected, rtol=0, atol=1e-12)


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


@pytest.mark.parametrize("cam", [RegionCAM, UnionCAM, DenoisedGradCAM])
def test_an_empty_batch_gives_empty_maps_without_a_warning(cam, recwarn):
    net, inputs = Case().build(0)
    options = {} if cam is DenoisedGradCAM else {"max_channels": 2}
    maps = cam(net, net.layer).attribute(inputs[:0], target=0, **options)
    assert maps.shape == (0, 1, 4, 4) and not recwarn


@pytest.mark.parametrize("cam", [RegionCAM, UnionCAM])
@pytest.mark.parametrize("batch", [1, 3])
def test_refuses_an_output_that_does_not_grow_with_the_batch(batch, cam):
    net, inputs = Case().build(0, batch)
    masked = []

    def forward_func(image):
        masked.append(len(image))
        return net(image).mean(0, keepdim=True)

    with pytest.raises(ValueError, match="`forward_func` must return one row for each"):
        cam(forward_func, net.layer).attribute(inputs, target=0)
    assert len(masked) <= 2  # the activations and the baseline: no mask was tried


@pytest.mark.parametrize("cam", [RegionCAM, UnionCAM])
def test_refuses_an_output_that_is_no_tensor(cam):
    net, inputs = Case().build(0)
    with pytest.raises(
        TypeError, match="`forward_func` must return a Tensor, got a dict"
    ):
        cam(lambda x: {"logits": net(x)}, net.layer).attribute(inputs, target=0)


def test_several_values_at_the_target_are_captums_error():
    net, inputs = Case().build(0)
    with pytest.raises(AssertionError, match="Target not provided when necessary"):
        RegionCAM(net, net.layer).attribute(inputs)
