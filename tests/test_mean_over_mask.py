"""MeanOverMask: models that return scores for each pixel."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision import models
from wrapped import EXACT, Packed, images

from captum_unioncam import LayerCAM, MeanOverMask, RegionCAM, SelectedOutput, UnionCAM

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:.* constant. they have one value:UserWarning"),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Fixed(nn.Module):
    """Returns an output that is given; its layer is the input."""

    def __init__(self, output):
        super().__init__()
        self.layer, self.output = nn.Identity(), output

    def forward(self, x):
        return self.output.to(x.dtype) + 0 * self.layer(x).flatten(1).sum()


def test_the_mean_over_a_mask_by_hand():
    output = torch.tensor([[[[1.0, 2], [3, 4]], [[-1, 0], [0, 6]]]])
    net, image = MeanOverMask(Fixed(output)), torch.rand(1, 1, 2, 2)

    def mean(mask):
        return net(image, torch.tensor([[mask]])).tolist()

    assert mean([[True, False], [False, True]]) == [[2.5, 2.5]]
    assert mean([[False, True], [False, False]]) == [[2.0, 0.0]]
    assert mean([[1, 1], [1, 1]]) == [[2.5, 1.25]]
    assert mean([[0.5, 0.0], [0.0, 1.5]]) == [[pytest.approx(3.25), 4.25]]
    assert mean([[False, False], [False, False]]) == [[0, 0]]
    assert mean([[1e-3, 0.0], [0.0, 1e-3]]) == [[pytest.approx(2.5)] * 2]


def test_each_example_has_its_own_mask():
    output = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    masks = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    masks[0, 0, 1, 2] = masks[1, 0, 3, 4] = True
    means = MeanOverMask(Fixed(output))(torch.rand(2, 1, 2, 2), masks)
    assert torch.equal(means, torch.stack([output[0, :, 1, 2], output[1, :, 3, 4]]))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_masks_of_signals_and_volumes(rank):
    output = torch.rand(2, 3, *[4] * rank)
    means = MeanOverMask(Fixed(output))(
        torch.rand(2, 1, 2), torch.ones(2, 1, *[4] * rank)
    )
    torch.testing.assert_close(means, output.flatten(2).mean(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_masks_in_half_types(dtype):
    """The pixels of an image are more than the largest float16, 65504."""
    output = torch.full((1, 2, 300, 300), 2.0)
    masks = torch.ones(1, 1, 300, 300, dtype=torch.bool)
    means = MeanOverMask(Fixed(output))(torch.rand(1, 1, 2, 2, dtype=dtype), masks)
    assert means.dtype == dtype
    assert means.tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    "shape", [(1, 1, 2, 2), (2, 2, 2), (2, 3, 2, 2), (2, 1, 4, 4), (4,)]
)
def test_masks_of_another_size_are_refused(shape):
    net = MeanOverMask(Fixed(torch.rand(2, 3, 2, 2)))
    with pytest.raises(ValueError, match=r"`masks` .* expected \(2, 1, 2, 2\), got \("):
        net(torch.rand(2, 1, 4, 4), torch.ones(shape))


def segmenter():
    """A fully convolutional net with a layer ``relu``; the output is half as large."""
    return (
        nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, 5, 3, 2, 1),
                relu=nn.ReLU(),
                mixed=nn.Conv2d(5, 5, 3, 1, 1),
                tanh=nn.Tanh(),
                classes=nn.Conv2d(5, 4, 1),
            )
        )
        .double()
        .eval()
    )


def masks_of_halves():
    masks = torch.zeros(3, 1, 5, 5, dtype=torch.bool)
    masks[0, 0, :2], masks[1, 0, :, 3:], masks[2, 0, 2, 2] = True, True, True
    return masks


@pytest.mark.parametrize("cam", [UnionCAM, RegionCAM, LayerCAM])
def test_masks_follow_their_examples(cam):
    net, inputs, masks = MeanOverMask(segmenter()), images(), masks_of_halves()
    explain = cam(net, "model.relu").attribute
    targets = [0, 3, 1]
    together = explain(inputs, target=targets, additional_forward_args=(masks,))
    for i, target in enumerate(targets):
        one = slice(i, i + 1)
        alone = explain(
            inputs[one], target=target, additional_forward_args=(masks[one],)
        )
        torch.testing.assert_close(together[one], alone, **EXACT)
    assert together.flatten(1).amax(1).gt(0).all()


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_masks_follow_their_examples_in_any_chunk(chunk):
    net, inputs, masks = MeanOverMask(segmenter()), images(), masks_of_halves()
    explain = UnionCAM(net, "model.relu").attribute
    options = {"target": [0, 3, 1], "additional_forward_args": (masks,)}
    torch.testing.assert_close(
        explain(inputs, **options, perturbations_per_eval=chunk),
        explain(inputs, **options),
        **EXACT,
    )


def test_the_score_of_a_mask_is_the_softmax_of_its_means():
    net, inputs, masks = segmenter(), images(), masks_of_halves()
    targets = [0, 3, 1]
    _, details = UnionCAM(MeanOverMask(net), "model.relu").attribute(
        inputs,
        target=targets,
        additional_forward_args=(masks,),
        return_details=True,
    )
    with torch.no_grad():
        black = net(torch.zeros_like(inputs))
    for i, target in enumerate(targets):
        logits = torch.stack(
            [black[i, label][masks[i, 0]].mean() for label in range(4)]
        )
        expected = logits.softmax(0)[target]
        torch.testing.assert_close(details.baseline_score[i], expected, **EXACT)


def test_the_gradients_of_a_mask_are_those_of_its_mean():
    net, inputs, masks = segmenter(), images(), masks_of_halves()
    maps = LayerCAM(MeanOverMask(net), "model.relu").attribute(
        inputs, target=2, additional_forward_args=(masks,)
    )
    for i in range(3):
        layer = net.relu(net.conv(inputs[i : i + 1])).detach().requires_grad_()
        logits = net.classes(net.tanh(net.mixed(layer)))
        score = logits[0, 2][masks[i, 0]].mean()
        (gradients,) = torch.autograd.grad(score, layer)
        expected = (gradients.clamp(min=0) * layer).sum(1).clamp(min=0).detach()
        torch.testing.assert_close(maps[i], expected, **EXACT)


def test_a_pixel_needs_no_wrapper():
    """A target (label, row, column), and a mask of one pixel, are the same."""
    net, inputs = segmenter(), images()
    masks = torch.zeros(3, 1, 5, 5)
    masks[:, :, 2, 4] = 1
    by_mask, details = UnionCAM(MeanOverMask(net), "model.relu").attribute(
        inputs, target=3, additional_forward_args=(masks,), return_details=True
    )
    by_target, own = UnionCAM(net, "relu").attribute(
        inputs, target=(3, 2, 4), return_details=True
    )
    torch.testing.assert_close(by_target, by_mask, **EXACT)
    torch.testing.assert_close(own.baseline_score, details.baseline_score, **EXACT)


def test_an_empty_mask_has_no_evidence():
    net, inputs = MeanOverMask(segmenter()), images()
    masks = masks_of_halves()
    masks[1] = False
    maps = LayerCAM(net, "model.relu").attribute(
        inputs, target=2, additional_forward_args=(masks,)
    )
    assert (maps[1] == 0).all() and maps[0].max() > 0 and maps[2].max() > 0


def test_a_segmentation_model_of_torchvision():
    net = models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4
    )
    wrapped = MeanOverMask(SelectedOutput(net, "out")).double().eval()
    inputs = images(2, 64)
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    masks[0, :, :32], masks[1, :, 20:, 20:] = True, True
    explain = UnionCAM(wrapped, "model.model.backbone.16").attribute
    options = {"max_channels": 2}
    together = explain(
        inputs, target=[1, 2], additional_forward_args=(masks,), **options
    )
    assert together.shape == (2, 1, 4, 4) and together.isfinite().all()
    for i in range(2):
        one = slice(i, i + 1)
        alone = explain(
            inputs[one], target=i + 1, additional_forward_args=(masks[one],), **options
        )
        torch.testing.assert_close(together[one], alone, rtol=1e-6, atol=1e-8)


def test_a_segmentation_model_of_a_dict_names_the_wrapper():
    with pytest.raises(TypeError, match="give MeanOverMask.SelectedOutput.model, "):
        MeanOverMask(Packed(lambda y: {"out": y}))(images(), torch.ones(3, 1, 1, 1))


def test_infinite_logits_outside_of_the_mask_do_not_matter():
    logits = torch.tensor([[[[1.0, -torch.inf], [3.0, torch.nan]]]])
    masks = torch.tensor([[[[True, False], [True, False]]]])
    assert MeanOverMask(nn.Identity())(logits, masks).tolist() == [[2]]
