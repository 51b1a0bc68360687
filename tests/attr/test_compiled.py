"""Models that torch.compile or torch.jit changed, and layers that do not always run."""

import pytest
import torch
from nets import Case
from torch import nn

from captum_unioncam import UnionCAM

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* are constant"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning"),
]


def case(examples=1):
    return Case(pooled=True).build(0, examples)


def compiled(net, dynamic=None):
    torch._dynamo.reset()
    return torch.compile(net, backend="eager", dynamic=dynamic)


@pytest.mark.parametrize("examples", [1, 3])
@pytest.mark.parametrize("dynamic", [None, True, False])
def test_a_compiled_model_has_the_maps_of_the_model(every_method, examples, dynamic):
    net, inputs = case(examples)
    expected = every_method(net, net.layer).attribute(inputs, target=1)
    model = compiled(net, dynamic)
    # Graphs that know no hook, and those that other methods leave.
    model(inputs)
    UnionCAM(model, net.layer).attribute(inputs, target=1)
    maps = every_method(model, net.layer).attribute(inputs, target=1)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-12)


def test_graphs_without_hooks_replace_the_layer_too(replacing_method):
    net, inputs = case()
    expected = replacing_method(net, net.layer).attribute(inputs, target=1)
    model = compiled(net, dynamic=False)
    with torch.no_grad():
        for rows in range(2, 7):  # every size but the one that reads the layer
            batch = inputs.repeat(rows, 1, 1, 1)
            model(batch)
            model(batch.contiguous(memory_format=torch.channels_last))
    maps = replacing_method(model, net.layer).attribute(inputs, target=1)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-12)


def test_a_compiled_scoring_func_stays_compiled():
    net, inputs = case()
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    fast = torch.compile(net, backend=backend)
    maps = UnionCAM(net, net.layer, scoring_func=fast).attribute(inputs, target=1)
    expected = UnionCAM(net, net.layer).attribute(inputs, target=1)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-12)
    assert graphs


class Traced:
    """A net that runs as a trace, which has no hooks, after its first passes."""

    def __init__(self, net, images, passes):
        self.net, self.passes = net, passes
        self.traced = torch.jit.trace(net, images)

    def __call__(self, images):
        self.passes -= 1
        return (self.net if self.passes >= 0 else self.traced)(images)


class Caching(nn.Module):
    """A net that runs its layer for the first image only."""

    def __init__(self, net):
        super().__init__()
        self.net, self.maps = net, None

    def forward(self, images):
        if self.maps is None:
            self.maps = self.net.layer(self.net.second(self.net.first(images)))
        return self.net.head(self.maps[:1].expand(len(images), -1, -1, -1).mean((2, 3)))


@pytest.mark.parametrize("passes", [1, 2])
def test_a_layer_that_does_not_run_in_every_pass_is_refused(replacing_method, passes):
    net, inputs = case()
    model = Traced(net, inputs, passes)
    message = r"`layer` ran 0 times in a pass of the model where 1 were .*torch.compile"
    with pytest.raises(RuntimeError, match=message):
        replacing_method(model, net.layer).attribute(inputs, target=1)
    with pytest.raises(RuntimeError, match=message):
        replacing_method(Caching(net), net.layer).attribute(inputs, target=1)
    assert not net.layer._forward_hooks


def test_a_layer_that_runs_more_often_than_it_did_is_refused(replacing_method):
    net, inputs = case()
    passes = []

    def model(images):
        passes.append(1)
        if len(passes) > 2:
            net(images)
        return net(images)

    with pytest.raises(RuntimeError, match=r"`layer` ran 2 times .* where 1 were"):
        replacing_method(model, net.layer).attribute(inputs, target=1)


def test_a_traced_model_never_runs_its_layer(every_method):
    net, inputs = case()
    traced = torch.jit.trace(net, inputs)
    with pytest.raises(AssertionError, match="did not obtain any outputs"):
        every_method(traced, net.layer).attribute(inputs, target=1)
