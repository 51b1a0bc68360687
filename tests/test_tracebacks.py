"""How deep a masked forward pass is: an error of the model is easy to trace."""

import traceback

import pytest
import torch
from nets import ConvNet

from captum_unioncam import (
    SSCAM,
    AblationCAM,
    FusionCAM,
    GroupCAM,
    ReciproCAM,
    RegionCAM,
    ScoreCAM,
    UnionCAM,
)

CAMS = (
    RegionCAM,
    ScoreCAM,
    SSCAM,
    UnionCAM,
    FusionCAM,
    GroupCAM,
    AblationCAM,
    ReciproCAM,
)
DEEPEST = 7
# torch.nn.Module's own, between a call of a module and its forward.
OF_TORCH = ("_wrapped_call_impl", "_call_impl")
# The activations (and the gradients) are read in the first pass. The references are
# scored in the next ones: the examples unchanged, then the baselines where there are.
FIRST_PERTURBED = {AblationCAM: 3, ReciproCAM: 3}


class Fragile(ConvNet):
    """A net that raises in a pass, and tells that one from the passes before."""

    def __init__(self, broken):
        super().__init__(rank=2, size=7, pooled=False, signed=False)
        self.broken, self.passes = broken, []

    def forward(self, image):
        self.passes.append(image.detach().clone())
        if len(self.passes) == self.broken:
            raise ValueError("the model broke")
        return super().forward(image)


def frames_below_attribute(error):
    """Returns the functions from below ``attribute`` down to the model's forward."""
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    names = [name for name in names if name not in OF_TORCH]
    return names[names.index("attribute") + 1 : names.index("forward") + 1]


def explained(cam, broken):
    """Explains images until the model breaks, and returns it and its error."""
    torch.manual_seed(0)
    net, inputs = Fragile(broken).eval(), torch.rand(3, 2, 7, 7)
    with pytest.raises(ValueError, match="the model broke") as raised:
        cam(net, net.layer).attribute(inputs, target=1, perturbations_per_eval=1)
    return net, inputs, raised.value


@pytest.mark.parametrize("cam", CAMS)
def test_a_masked_pass_is_few_frames_below_attribute(cam):
    _, _, error = explained(cam, FIRST_PERTURBED.get(cam, 4))
    frames = frames_below_attribute(error)
    assert frames[-1] == "forward"
    assert len(frames) <= DEEPEST, frames


@pytest.mark.parametrize("cam", CAMS)
def test_the_pass_that_breaks_is_the_first_perturbed_one(cam):
    net, inputs, error = explained(cam, FIRST_PERTURBED.get(cam, 4))
    first, again, *_, perturbed = net.passes
    assert torch.equal(first, inputs) and torch.equal(again, inputs)
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert "score" in names, "the engine's loop over the perturbed examples"
    if cam not in (AblationCAM, ReciproCAM):  # which change the layer, not the input
        assert not torch.equal(perturbed, inputs[: len(perturbed)])
