"""UnionCAM: fusion and selection by hand, and the details of its result."""

import dataclasses

import pytest
import torch
from captum.attr import LayerGradCam
from nets import Case, Counted, Unused, Weighed, example
from torch import nn

from captum_unioncam import DenoisedGradCAM, RegionCAM, UnionCAM, _maps

# Some nets have examples without positive evidence.
pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")


def test_hand_worked_example():
    # A layer of the input's size, so that nothing is resized, and f_c = sum(W * A) with
    #   A1 = [0 1; 2 4], W1 = [0 0; 1 3],
    #   A2 = [3 0; 0 0], W2 = [1 0; 0 0].
    inputs = example([[0, 1], [2, 4]], [[3, 0], [0, 0]])
    net = Weighed([[[0, 0], [1, 3]], [[1, 0], [0, 0]]])
    attributions, details = UnionCAM(net, net.layer).attribute(
        inputs, theta=10, return_details=True
    )
    # AMD: alpha1 = 1/4, alpha2 = 1, so that
    #   L_denoising = [3 0; 1/4 * 2, 3/4 * 4] = [3 0; 0.5 3].
    assert details.denoised_map.tolist() == [[[[3, 0], [0.5, 3]]]]
    # Region: mask(A1) = [0 0.25; 0.5 1] gives f_c = 0.5 * 2 + 1 * 4 * 3 = 13, and
    # mask(A2) = [1 0; 0 0] gives f_c = 3, so that
    #   L_region = 13 A1 + 3 A2 = [9 13; 26 52].
    assert details.region_map.tolist() == [[[[9, 13], [26, 52]]]]
    # Eq. 4: the mask [1 0; 1/6 1] gives 3 + 2/6 + 12 = 15 1/3.
    # Eq. 5: the mask [0 4; 17 43] / 43 gives 2 * 17/43 + 12. f_c(black) = 0.
    assert details.baseline_score.item() == 0
    assert details.denoised_gain.item() == pytest.approx(15 + 1 / 3)
    assert details.region_gain.item() == pytest.approx(12 + 34 / 43)
    # Eq. 6: 15.3333 [1 0; 1/6 1] + 12.7907 [0 .0930; .3953 1].
    b1, b2 = 15 + 1 / 3, 12 + 34 / 43
    fused = torch.tensor([[b1, b2 * 4 / 43], [b1 / 6 + b2 * 17 / 43, b1 + b2]])
    assert torch.allclose(details.fused_map[0, 0], fused.double())
    # Eq. 7: fused - min over its span, then 3 * m[0, 0] + 2 * m[1, 0] + 12 * m[1, 1].
    mask = (fused - fused.min()) / (fused.max() - fused.min())
    gain = 3 * mask[0, 0] + 2 * mask[1, 0] + 12 * mask[1, 1]
    assert details.fused_gain.item() == pytest.approx(gain.item())
    # Eq. 8: 14.05 > 12.79, so the fused map is kept.
    assert details.fused_gain.item() == pytest.approx(14.05, abs=0.01)
    assert details.fused_selected.item()
    assert torch.allclose(attributions[0, 0], mask.double())
    for name in ("total_channels", "active_channels", "scored_channels"):
        assert getattr(details, name).tolist() == [2]


def scaled(maps):
    """Returns images that reach from 0 to 1."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low)


def test_ties_go_to_the_region_map():
    net, inputs = Case().build(0)
    attributions, details = UnionCAM(net, net.layer).attribute(
        inputs, target=0, score_func=torch.ones_like, return_details=True
    )
    assert details.fused_gain.tolist() == details.region_gain.tolist() == [0, 0, 0]
    assert not details.fused_selected.any()
    region = RegionCAM(net, net.layer).attribute(
        inputs, target=0, score_func=torch.ones_like
    )
    assert torch.allclose(attributions, scaled(region))


def test_details_are_the_public_parts_and_explain_the_result():
    net, inputs = Case().build(1, batch=6)
    attributions, details = UnionCAM(net, net.layer).attribute(
        inputs, target=1, return_details=True
    )
    denoised = DenoisedGradCAM(net, net.layer).attribute(inputs, target=1)
    region = RegionCAM(net, net.layer).attribute(inputs, target=1)
    assert torch.equal(details.denoised_map, denoised)
    assert torch.equal(details.region_map, region)
    choice = details.fused_selected.view(-1, 1, 1, 1)
    expected = scaled(torch.where(choice, details.fused_map, details.region_map))
    assert torch.allclose(attributions, expected)
    assert (details.fused_selected == (details.fused_gain > details.region_gain)).all()
    with pytest.raises(dataclasses.FrozenInstanceError):
        details.fused_gain = details.region_gain


@pytest.mark.parametrize("max_channels, scored", [(None, 4), (2, 2), (4, 4), (99, 4)])
def test_details_count_the_channels(max_channels, scored):
    net, inputs = Case(signed=True).build(2, constant_channel=True)
    _, details = UnionCAM(net, net.layer).attribute(
        inputs, target=0, max_channels=max_channels, return_details=True
    )
    assert details.total_channels.tolist() == [5, 5, 5]
    assert details.active_channels.tolist() == [4, 4, 4]
    assert details.scored_channels.tolist() == [scored] * 3


class Halves(nn.Module):
    """Returns two tensors of images, of two sizes, or images and tokens."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def forward(self, maps):
        right = maps[:, 3:, ::2]
        return maps[:, :3], right.flatten(2) if self.tokens else right


class HalvesNet(nn.Module):
    """A net whose layer has two tensors."""

    def __init__(self, tokens=False):
        super().__init__()
        self.first, self.layer = nn.Conv2d(2, 6, 3), Halves(tokens)
        self.head = nn.Linear(6, 3)

    def forward(self, image):
        left, right = self.layer(self.first(image))
        return self.head(
            torch.cat([left.flatten(2).mean(2), right.flatten(2).mean(2)], 1)
        )


def test_a_layer_of_several_tensors_has_a_map_and_details_for_each():
    torch.manual_seed(0)
    net, inputs = HalvesNet(), torch.rand(2, 2, 6, 6)
    parts = [LayerGradCam(net, net.layer), RegionCAM(net, net.layer)]
    cam = UnionCAM(net, net.layer, parts=parts)
    maps, details = cam.attribute(inputs, target=1, return_details=True)
    assert [m.shape for m in maps] == [(2, 1, 4, 4), (2, 1, 2, 4)]
    assert [d.region_map.shape for d in details] == [m.shape for m in maps]
    assert [d.denoised_map.shape for d in details] == [m.shape for m in maps]


def test_a_tensor_of_tokens_is_refused_before_any_masked_pass():
    torch.manual_seed(0)
    net = HalvesNet(tokens=True)
    counted, inputs = Counted(net), torch.rand(2, 2, 6, 6)
    with pytest.raises(ValueError, match="`layer` has tokens, .*vit_reshape"):
        UnionCAM(counted, net.layer).attribute(inputs, target=1)
    assert counted.sizes == [2]  # the gradients


def test_a_layer_without_gradient_leaves_the_region():
    torch.manual_seed(0)
    net = Unused().double()
    inputs = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    message = r"examples \[0, 1\] are made without the gradient map: all gradients are"
    with pytest.warns(UserWarning, match=message):
        attributions, details = UnionCAM(net, net.layer).attribute(
            inputs, target=0, return_details=True
        )
    assert not details.denoised_map.any() and not details.denoised_gain.any()
    # Eq. 6 leaves beta_region * L_region: the region map, inverted by a negative gain.
    region = scaled(details.region_map)
    positive = details.region_gain.view(-1, 1, 1, 1) > 0
    assert torch.allclose(attributions, torch.where(positive, region, 1 - region))


def test_without_selection_the_fused_map_is_kept():
    for seed in range(6):
        net, inputs = Case().build(seed)
        attributions, details = UnionCAM(net, net.layer, select=None).attribute(
            inputs, target=1, return_details=True
        )
        assert torch.equal(attributions, _maps.min_max(details.fused_map))
        assert details.fused_selected.all()
        selected, details = UnionCAM(net, net.layer).attribute(
            inputs, target=1, return_details=True
        )
        same = (selected == attributions).flatten(1).all(1)
        assert torch.equal(same | ~details.fused_selected, torch.ones(3).bool())
        if not details.fused_selected.all():
            return
    pytest.fail("no seed selects a region map")
