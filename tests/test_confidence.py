"""From a model's output to confidences: the default score."""

import pytest
import torch

from captum_unioncam._confidence import confidence


def test_confidence_is_softmax_over_classes():
    output = torch.tensor([[0.0, 1, 3], [2, 2, 2]])
    assert torch.equal(confidence(output), output.softmax(1))


def test_confidence_of_one_output_is_the_output():
    for output in (torch.tensor([3.0, -4]), torch.tensor([[3.0], [-4]])):
        assert confidence(output) is output


def test_probabilities_are_never_softmaxed_twice():
    probabilities = torch.tensor([[0.2, 0.3, 0.5], [0, 0, 1.00005]])
    assert torch.equal(confidence(probabilities), probabilities)


def test_what_is_nearly_probabilities_is_softmaxed():
    output = torch.tensor([[0.2, 0.3, 0.5003], [-0.1, 0.6, 0.5]])
    assert torch.equal(confidence(output), output.softmax(1))


def test_each_example_is_judged_on_its_own():
    output = torch.tensor([[0.25, 0.75], [3.0, 1.0]])
    expected = torch.stack([output[0], output[1].softmax(0)])
    assert torch.equal(confidence(output), expected)


def test_probabilities_of_every_pixel_are_recognised():
    torch.manual_seed(0)
    probabilities = torch.rand(2, 4, 5, 5, dtype=torch.float64).softmax(1)
    assert torch.equal(confidence(probabilities), probabilities)
    probabilities[1, 0, 2, 2] += 1  # one such pixel, and they are no probabilities
    assert torch.equal(confidence(probabilities)[0], probabilities[0])
    expected = probabilities.softmax(1)[1]
    assert torch.equal(confidence(probabilities)[1], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_in_half_precision_are_recognised(dtype):
    torch.manual_seed(0)
    probabilities = torch.randn(64, 100).softmax(1).to(dtype)
    assert torch.equal(confidence(probabilities), probabilities.float())
    logits = torch.randn(64, 100).to(dtype)
    assert torch.equal(confidence(logits), logits.float().softmax(1))
