"""UnionCAM of any number of parts: fusion and selection by hand, and shared passes."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from nets import Case, Counted, Fixed, Weighed
from reference import Model, min_max, resize, to_mask
from torch import nn

from captum_unioncam import (
    AblationCAM,
    DenoisedGradCAM,
    GradCAM,
    GroupCAM,
    LayerCAM,
    RegionCAM,
    ScoreCAM,
    UnionCAM,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")


def united(weights, parts, select):
    """The union of parts that return these maps, of an image of ones."""
    net = Weighed([weights])
    cam = UnionCAM(
        net, net.layer, parts=[Fixed(*part) for part in parts], select=select
    )
    inputs = torch.ones(1, 1, len(weights)).double()
    maps, details = cam.attribute(inputs, return_details=True)
    return maps[0, 0].tolist(), details


@pytest.mark.parametrize("select", ["region", "best", None])
def test_the_gains_of_all_parts_weigh_the_sum(select):
    # Gains of 1, 2 and 3: the sum [1 2 3], the mask [0 1/2 1], which gains 1 + 3.
    map_, details = united([1, 2, 3], np.eye(3), select)
    assert map_ == [0, 0.5, 1]
    assert details.part_gains.tolist() == [[1, 2, 3]]
    assert details.fused_map.tolist() == [[[1, 2, 3]]]
    assert details.fused_gain.tolist() == [4] and details.kept.tolist() == [3]
    assert details.part_maps.shape == (1, 3, 3)
    assert details.region_gain.tolist() == [3] and details.denoised_gain.tolist() == [1]
    assert details.fused_selected.tolist() == [True]


@pytest.mark.parametrize(
    "select, kept, expected",
    [("region", 3, [1, 0, 2 / 7]), (None, 3, [1, 0, 2 / 7]), ("best", 0, [1, 0, 0])],
)
def test_a_part_may_be_the_best(select, kept, expected):
    # Gains of 5, -4 and -5: the sum [5 -9 -5], the mask [1 0 2/7], which gains 5 - 2/7:
    # more than the region map, and less than the first part.
    parts = [1, 0, 0], [0, 1, 0], [0, 1, 1]
    map_, details = united([5, -4, -1], parts, select)
    assert map_ == pytest.approx(expected)
    assert details.fused_gain.item() == pytest.approx(5 - 2 / 7)
    assert details.kept.tolist() == [kept]
    assert details.fused_selected.tolist() == [kept == 3]


@pytest.mark.parametrize("select", ["region", "best"])
def test_ties_go_to_the_region_map(select):
    map_, details = united([0, 0, 0], np.eye(3), select)
    assert map_ == [0, 0, 1] and details.kept.tolist() == [2]


def test_ties_of_parts_go_to_the_earlier_one():
    # Gains of 2, 2 and -4: the sum [2 2 -4], the mask [1 1 0], which gains 4; without
    # it, the first part.
    map_, details = united([2, 2, -4], np.eye(3), "best")
    assert details.kept.tolist() == [3]
    # Gains of 1, 1 and 0: the sum [1 0 0] + [1 0 0], the mask [1 0 0], which gains 1.
    map_, details = united([1, 0, 0], [[1, 0, 0], [1, 0, 0], [0, 1, 0]], "best")
    assert details.kept.tolist() == [0]


def test_three_parts_agree_with_loops():
    net, inputs = Case().build(4)
    layer = net.layer
    makers = GradCAM, ScoreCAM, RegionCAM
    for select in ("region", "best"):
        cam = UnionCAM(
            net, layer, parts=[make(net, layer) for make in makers], select=select
        )
        actual, details = cam.attribute(inputs, target=1, return_details=True)
        maps = [make(net, layer).attribute(inputs, target=1) for make in makers]
        for i, image in enumerate(inputs.numpy()):
            model = Model(net, layer, 1)

            def gain(array, image=image, model=model):
                mask = to_mask(array, image.shape[1:])
                return model.confidence([mask * image]) - model.confidence([0 * image])

            parts = [m[i, 0].numpy() for m in maps]
            scores = [gain(part) for part in parts]
            fused = sum(
                score * scaled_as_mask(part, image.shape[1:])
                for score, part in zip(scores, parts, strict=True)
            )
            candidates = [*zip(scores, parts, strict=True), (gain(fused), fused)]
            if select == "region":
                candidates = candidates[2:]
            best = max(candidates, key=lambda pair: pair[0])[1]
            np.testing.assert_allclose(actual[i, 0], min_max(best), rtol=0, atol=1e-6)


def scaled_as_mask(array, size):
    """Scales a map by the extremes of the resized one."""
    large = resize(array, size)
    return (array - large.min()) / ((large.max() - large.min()) or np.inf)


class Backward(nn.Module):
    """Counts the forward and backward passes that keep a graph."""

    def __init__(self, net):
        super().__init__()
        self.net, self.layer = net, net.layer
        self.graphs, self.plain = 0, 0

    def forward(self, image):
        output = self.net(image)
        self.graphs += output.requires_grad
        self.plain += not output.requires_grad
        return output


@pytest.mark.parametrize("makers", [(GradCAM, DenoisedGradCAM, RegionCAM)])
def test_parts_share_one_forward_and_one_backward_pass(makers, monkeypatch):
    net, inputs = Case().build(4)
    net = Backward(net)
    backward = []
    grad = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *a, **k: backward.append(1) or grad(*a, **k)
    )
    parts = [make(net, net.layer) for make in makers]
    union = UnionCAM(net, net.layer, parts=parts).attribute(inputs, target=1)
    assert net.graphs == 1 and len(backward) == 1
    foreign = [LayerGradCam(net, net.layer), *parts[1:]]
    same = UnionCAM(net, net.layer, parts=foreign).attribute(inputs, target=1)
    assert len(backward) == 3  # the union's, and Captum's own
    assert torch.allclose(same, union, rtol=0, atol=1e-12)


def test_a_part_that_scores_the_same_way_shares_the_baselines_score():
    net, inputs = Case().build(4)
    counted = Counted(net)
    UnionCAM(counted, net.layer).attribute(inputs, target=1)
    paper, counted.sizes = counted.examples, []
    parts = [DenoisedGradCAM(counted, net.layer), RegionCAM(counted, net.layer)]
    UnionCAM(counted, net.layer, parts=parts).attribute(inputs, target=1)
    assert counted.examples == paper
    counted.sizes = []
    parts = [*parts[:1], LayerCAM(counted, net.layer), parts[1]]
    UnionCAM(counted, net.layer, parts=parts).attribute(inputs, target=1)
    assert counted.examples == paper + len(inputs)  # one more gain


def test_the_best_union_costs_its_groups_and_three_passes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Flatten())
    net = nn.Sequential(*net, nn.Linear(64 * 36, 3)).double().eval()
    counted = Counted(net)
    inputs = torch.rand(2, 1, 8, 8).double()
    UnionCAM(counted, net[1]).attribute(inputs, target=1)
    paper, counted.sizes = counted.examples, []
    best = UnionCAM.best(counted, net[1])
    best.attribute(inputs, target=1)
    assert [type(part) for part in best.parts] == [
        *(DenoisedGradCAM, LayerCAM, GroupCAM, RegionCAM)
    ]
    assert best.select == "best"
    assert 0 < counted.examples - paper <= 35 * len(inputs)


def test_parts_of_every_kind_are_united():
    net, inputs = Case().build(4)
    makers = GroupCAM, AblationCAM, GradCAM, ScoreCAM, RegionCAM
    parts = [make(net, net.layer) for make in makers]
    cam = UnionCAM(net, net.layer, parts=parts, select="best")
    maps, details = cam.attribute(inputs, target=1, return_details=True)
    assert maps.shape == (3, 1, 4, 4) and details.part_maps.shape == (3, 5, 4, 4)
    for place, part in enumerate(parts):
        alone = part.attribute(inputs, target=1)
        torch.testing.assert_close(
            details.part_maps[:, place], alone[:, 0].to(maps), rtol=0, atol=1e-10
        )
    active = details.active_channels
    assert torch.equal(details.scored_channels, 2 * active)


def test_refuses_another_way_to_select():
    net, _ = Case().build(0)
    with pytest.raises(ValueError, match="`select` must be one of"):
        UnionCAM(net, net.layer, select="worst")
