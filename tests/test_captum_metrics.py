"""The bridges to Captum's metrics; tests/contract runs them with every method."""

import pytest
import torch
from captum.attr import LayerGradCam
from nets import Case

from captum_unioncam import UnionCAM, as_explanation_func, to_input


def test_to_input_resizes_bilinearly_and_expands():
    attributions = torch.tensor([[[[0.0, 1]]]])
    expected = torch.tensor([0, 0.25, 0.75, 1]).expand(1, 3, 2, 4)
    assert torch.equal(to_input(attributions, torch.zeros(1, 3, 2, 4)), expected)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_to_input_serves_every_rank(rank):
    inputs = torch.rand(2, 3, *[8] * rank)
    resized = to_input(torch.rand(2, 1, *[4] * rank), inputs)
    assert resized.shape == inputs.shape
    assert torch.equal(resized[:, 0], resized[:, 2])


def test_to_input_answers_a_tuple_with_a_tuple():
    inputs = (torch.rand(2, 3, 8, 8), torch.rand(2, 1, 6, 9))
    resized = to_input(torch.rand(2, 1, 4, 4), inputs)
    assert [part.shape for part in resized] == [part.shape for part in inputs]
    assert isinstance(to_input(torch.rand(2, 1, 4, 4), inputs[:1]), tuple)


def test_to_input_refuses_what_is_no_map():
    with pytest.raises(ValueError, match=r"`attributions` .* got \(2, 3, 4, 4\)"):
        to_input(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"`attributions` .* got \(2, 1\)"):
        to_input(torch.rand(2, 1), torch.rand(2, 3))


@pytest.mark.parametrize("shape", [(2, 3, 8), (3, 3, 8, 8)])
def test_to_input_refuses_inputs_of_another_rank_or_batch(shape):
    with pytest.raises(ValueError, match="`inputs` must have the rank and the number"):
        to_input(torch.rand(2, 1, 4, 4), torch.rand(shape))


def test_explanation_func_returns_contiguous_tuples():
    net, inputs = Case().build(0)
    cam = LayerGradCam(net, net.layer)
    (maps,) = as_explanation_func(cam)((inputs,), target=1)
    assert torch.equal(maps, cam.attribute(inputs, target=1))
    (maps,) = as_explanation_func(cam)(inputs.mT, 1)
    assert maps.is_contiguous()


def test_explanation_func_refuses_details():
    net, inputs = Case().build(0)
    explain = as_explanation_func(UnionCAM(net, net.layer))
    message = (
        r"`attribute` must return tensors only, got \['Tensor', 'UnionCAMDetails'\]"
    )
    with pytest.raises(TypeError, match=message):
        explain(inputs, target=1, return_details=True)
