"""Several layers at once: the maps of each, from one pass of the whole examples."""

import pytest
import torch
from captum.attr import NoiseTunnel
from headed import METHODS as LAYER_METHODS
from contract.shared import (
    CONTRACT_MARKS,
    EXACT,
    GRADIENT,
    REPLACING,
    TARGETS,
    degenerate_maps_allowed,
    every_method,
    make_images,
    output_and_input,
    seeded,
)
from torch import nn

from captum_unioncam import GradCAM, RegionCAM, ScoreCAM, UnionCAM

pytestmark = CONTRACT_MARKS
LAYERS = ["first", "pool", "second"]
FEW = {"num_samples": 2, "groups": 2}


class Deep(nn.Module):
    """Two layers with modules of the same size between them, and passes counted."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.second = nn.Conv2d(4, 5, 3)
        self.unused = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(5 * 2 * 2, 5)
        self.rows, self.batches, self.graphs = 0, 0, 0

    def forward(self, image):
        self.rows += len(image)
        self.batches += 1
        maps = self.pool(torch.tanh(self.first(image)))
        output = self.head(torch.tanh(self.second(maps)).flatten(1))
        self.graphs += output.requires_grad
        return 4 * output


@pytest.fixture
def net():
    return seeded(Deep, 3).double().eval()


def explain(method, net, layers, inputs, **options):
    """Returns the attributions of a method, with few samples."""
    entry = LAYER_METHODS[method.__name__.lower()]
    attribute = entry.explain(net, layers, **FEW, **options)
    return attribute(inputs, target=TARGETS)


@every_method
@output_and_input
@degenerate_maps_allowed()
def test_each_layer_has_the_map_that_it_has_alone(
    method, net, attribute_to_layer_input
):
    images = make_images()
    options = {"attribute_to_layer_input": attribute_to_layer_input}
    entry = LAYER_METHODS[method.__name__.lower()]
    several = entry.explain(net, LAYERS, **FEW)(images, target=TARGETS, **options)
    assert isinstance(several, tuple) and len(several) == len(LAYERS)
    for name, maps in zip(LAYERS, several, strict=True):
        alone = entry.explain(net, name, **FEW)(images, target=TARGETS, **options)
        torch.testing.assert_close(maps, alone, **EXACT)


@every_method
@degenerate_maps_allowed()
def test_a_list_of_one_layer_gives_a_tuple_of_one_map(method, net):
    images = make_images()
    (maps,) = explain(method, net, [net.pool], images)
    assert torch.equal(maps, explain(method, net, net.pool, images))


@every_method
@degenerate_maps_allowed()
def test_the_whole_examples_are_read_once_for_all_layers(method, net):
    images = make_images()
    rows, graphs = [], []
    for layers in (["first"], ["pool"], LAYERS[:2]):
        net.rows = net.graphs = 0
        explain(method, net, layers, images)
        rows.append(net.rows)
        graphs.append(net.graphs)
    assert len(set(graphs)) == 1 and bool(graphs[0]) == (method in GRADIENT)
    saved = rows[0] + rows[1] - rows[2]
    assert saved >= len(images)


@every_method
def test_refuses_an_empty_list_and_a_wrong_name(method, net):
    with pytest.raises(ValueError, match="`layer` must name at least one layer"):
        LAYER_METHODS[method.__name__.lower()].explain(net, [])
    with pytest.raises(ValueError, match="no layer 'secnd'; did you mean 'second'"):
        LAYER_METHODS[method.__name__.lower()].explain(net, ["first", "secnd"])


@every_method
def test_refuses_a_layer_that_does_not_run(method, net):
    for layers in (["first", "unused"], ["unused", "first"]):
        with pytest.raises(AssertionError, match="Forward hook did not obtain"):
            explain(method, net, layers, make_images())


def test_noise_tunnel_takes_several_layers(net):
    torch.manual_seed(0)
    images = make_images()
    tunnel = NoiseTunnel(GradCAM(net, LAYERS))
    maps = tunnel.attribute(images, nt_samples=2, stdevs=0.0, target=TARGETS)
    expected = GradCAM(net, LAYERS).attribute(images, TARGETS)
    for ours, plain in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, plain, **EXACT)


@degenerate_maps_allowed()
def test_a_layer_of_several_tensors_has_a_tuple_of_its_own(net):
    class Halves(nn.Module):
        def forward(self, maps):
            return maps[:, :2] * 2, maps[:, 2:] * 3

    class Net(nn.Module):
        def __init__(self, deep):
            super().__init__()
            self.deep, self.halves = deep, Halves()

        def forward(self, image):
            maps = torch.cat(self.halves(self.deep.first(image)), 1)
            return self.deep.head(self.deep.second(self.deep.pool(maps)).flatten(1))

    both, images = Net(net), make_images()
    for cam in (GradCAM, RegionCAM):
        pooled, (left, right) = cam(both, [net.pool, both.halves]).attribute(
            images, TARGETS
        )
        assert pooled.shape[:2] == (3, 1)
        alone = cam(both, both.halves).attribute(images, TARGETS)
        torch.testing.assert_close((left, right), alone, **EXACT)


def test_details_come_in_the_form_of_the_attributions(net):
    images = make_images()
    cam = UnionCAM(net, ["first", "second"])
    maps, details = cam.attribute(images, TARGETS, return_details=True)
    assert [d.region_map.shape for d in details] == [m.shape for m in maps]


@pytest.mark.parametrize("part", [GradCAM, ScoreCAM])
@degenerate_maps_allowed()
def test_parts_of_a_union_have_a_map_for_each_of_its_layers(net, part):
    images, layers = make_images(), [net.first, net.second]
    parts = [part(net, layers), RegionCAM(net, layers)]
    several = UnionCAM(net, layers, parts=parts).attribute(images, TARGETS)
    for layer, maps in zip(layers, several, strict=True):
        parts = [part(net, layer), RegionCAM(net, layer)]
        alone = UnionCAM(net, layer, parts=parts).attribute(images, TARGETS)
        torch.testing.assert_close(maps, alone, **EXACT)


def test_replacing_methods_put_back_one_layer_at_a_time(net):
    assert REPLACING
    before = [dict(module._forward_hooks) for module in net.modules()]
    for method in REPLACING:
        with degenerate_maps_allowed():
            explain(method, net, LAYERS, make_images())
    assert [dict(module._forward_hooks) for module in net.modules()] == before
