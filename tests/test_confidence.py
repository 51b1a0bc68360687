"""From a model's output to confidences: the default score."""

import math

import pytest
import torch

from captum_unioncam._confidence import confidence, score_func_for


def test_confidence_is_softmax_over_classes():
    output = torch.tensor([[0.0, 1, 3], [2, 2, 2]])
    assert torch.equal(confidence(output), output.softmax(1))


def test_confidence_of_one_output_is_the_output():
    for output in (torch.tensor([3.0, 4]), torch.tensor([[3.0], [4]])):
        assert confidence(output) is output


def test_probabilities_are_never_softmaxed_twice():
    probabilities = torch.tensor([[0.2, 0.3, 0.5], [0, 0, 1.00005]])
    assert torch.equal(confidence(probabilities), probabilities)


def test_what_is_nearly_probabilities_is_softmaxed():
    output = torch.tensor([[0.2, 0.3, 0.52], [-0.1, 0.6, 0.5]])
    assert torch.equal(confidence(output), output.softmax(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [2, 100, 1000])
@pytest.mark.parametrize("steps", [False, True])
@pytest.mark.parametrize("cast", [False, True])
def test_a_softmax_in_half_precision_is_recognised(dtype, classes, steps, cast):
    torch.manual_seed(0)
    logits = torch.randn(256, classes).to(dtype)
    if steps:  # each of them rounds
        shares = (logits - logits.amax(1, keepdim=True)).exp()
        probabilities = shares / shares.sum(1, keepdim=True)
    else:
        probabilities = logits.softmax(1)
    assert probabilities.dtype == dtype
    if cast:
        probabilities = probabilities.float()
    off_one = (probabilities.float().sum(1) - 1).abs()
    assert off_one.max() > 1e-5, "more than float32 rounds"
    assert torch.equal(confidence(probabilities), probabilities.float())
    assert torch.equal(confidence(logits), logits.float().softmax(1))


def test_all_examples_are_scored_in_one_way():
    # The first row sums to 1, as a row of logits may.
    output = torch.tensor([[0.25, 0.75], [3.0, 1.0]])
    assert torch.equal(confidence(output), output.softmax(1))


def test_a_call_is_scored_in_one_way_whatever_its_masked_outputs():
    score_func = score_func_for(torch.tensor([[0.2, 0.8], [0.5, 0.5]]))
    masked = torch.tensor([[0.2, 0.1], [3.0, 1.0]])
    assert torch.equal(score_func(masked), masked)
    score_func = score_func_for(torch.tensor([[2.0, -1], [0.5, 0.5]]))
    masked = torch.tensor([[0.2, 0.8], [0.5, 0.5]])
    assert torch.equal(score_func(masked), masked.softmax(1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_examples_that_are_not_finite_say_nothing_of_the_others(value):
    output = torch.tensor([[0.2, 0.8], [value, 0.1]])
    assert torch.equal(confidence(output)[0], output[0])
    output[0] = torch.tensor([2.0, -1.0])
    assert torch.equal(confidence(output)[0], output[0].softmax(0))
    nothing = torch.full((2, 3), value)
    assert confidence(nothing).shape == (2, 3)


def test_probabilities_of_every_pixel_are_recognised():
    torch.manual_seed(0)
    probabilities = torch.rand(2, 4, 5, 5, dtype=torch.float64).softmax(1)
    assert torch.equal(confidence(probabilities), probabilities)
    probabilities[1, 0, 2, 2] += 1  # one such pixel, and they are no probabilities
    assert torch.equal(confidence(probabilities), probabilities.softmax(1))


# What the default may get wrong


INDEPENDENT = "outputs are in .0, 1. and do not sum to 1, as probabilities of independ"


def test_probabilities_of_independent_labels_are_named():
    output = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.3, 0.5]])
    with pytest.warns(UserWarning, match=INDEPENDENT):
        scores = confidence(output)
    assert torch.equal(scores, output.softmax(1))


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 2)])
def test_a_binary_logit_is_named(shape):
    output = torch.linspace(-2, 3, math.prod(shape)).view(shape)
    with pytest.warns(UserWarning, match="single output .* torch.sigmoid for logits"):
        assert torch.equal(confidence(output), output)


@pytest.mark.parametrize(
    "output",
    [
        [[0.2, 0.8], [1.0, 0.0]],  # probabilities
        [[3.0, -1.0], [0.2, 0.8]],  # logits
        [[3.0, 1.0], [2.0, 0.5]],  # logits after a ReLU
        [[0.4], [0.9]],  # the probability of one label
        [3.0, 1.0],  # a regression
    ],
)
def test_other_outputs_give_no_warning(output, recwarn):
    confidence(torch.tensor(output))
    assert not recwarn


@pytest.mark.parametrize("output", [[[0.9, 0.8]], [[-3.0]], [-3.0]])
def test_a_score_func_is_taken_as_it_is(output, recwarn):
    output = torch.tensor(output)
    assert score_func_for(output, torch.sigmoid) is torch.sigmoid
    assert not recwarn
