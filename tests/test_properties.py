"""Properties that every method has on any net: hypothesis draws nets, inputs, options.

A map is finite, or the call is refused; it depends neither on the other examples of the
batch nor on the memory format; and whatever happens, the model is as it was.
"""

import warnings
from dataclasses import dataclass, field

import pytest
import torch
from contract.shared import assert_same_states, hooks_of, methods_with, states
from headed import METHODS
from hypothesis import event, given, strategies as st
from torch import nn

from captum_unioncam._captum import INTEGRATION_METHODS

pytestmark = pytest.mark.usefixtures("one_thread")

ACTIVATIONS = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "none": nn.Identity,
}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}
NORMS = {
    "batch": {1: nn.BatchNorm1d, 2: nn.BatchNorm2d},
    "group": {rank: lambda channels: nn.GroupNorm(1, channels) for rank in (1, 2)},
    "none": {rank: lambda channels: nn.Identity() for rank in (1, 2)},
}
POOLS = {
    "max": {1: nn.MaxPool1d, 2: nn.MaxPool2d},
    "average": {1: nn.AvgPool1d, 2: nn.AvgPool2d},
}
CLASSES = 3
# How far maps may be apart, as a share of the largest value, where they are the same.
ROUNDING = {torch.float32: 1e-2, torch.float64: 1e-6}


@dataclass(frozen=True)
class Drawn:
    """What hypothesis drew."""

    seed: int
    rank: int
    size: tuple[int, ...]
    examples: int
    channels: int
    blocks: list
    head: str
    dtype: torch.dtype
    requires_grad: bool
    training: bool
    target: object
    method: str
    options: dict = field(default_factory=dict)

    def build(self):
        """Returns the net, its layer and the inputs."""
        torch.manual_seed(self.seed)
        channels, parts = self.channels, []
        for width, groups, stride, norm, activation, pool in self.blocks:
            convolution = CONVOLUTIONS[self.rank](
                channels,
                width * groups,
                3,
                stride,
                padding=1,
                groups=groups if channels % groups == 0 else 1,
            )
            channels = width * groups
            parts += [convolution, NORMS[norm][self.rank](channels)]
            parts.append(ACTIVATIONS[activation]())
            if pool != "none":
                parts.append(POOLS[pool][self.rank](2, 1))
        layer = nn.Sequential(*parts)
        inputs = torch.randn(self.examples, self.channels, *self.size)
        with torch.no_grad():
            shape = layer.eval()(inputs).shape
        heads = {
            "pooled": lambda: nn.Sequential(
                nn.AdaptiveAvgPool1d(1) if self.rank == 1 else nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(channels, CLASSES),
            ),
            "flat": lambda: nn.Sequential(
                nn.Flatten(), nn.Tanh(), nn.Linear(shape[1:].numel(), CLASSES)
            ),
            "map": lambda: CONVOLUTIONS[self.rank](channels, CLASSES, 1),
        }
        net = nn.Sequential(layer, heads[self.head]()).to(self.dtype)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, 0, 0.3)
        net.requires_grad_(self.requires_grad).train(self.training)
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        return net, layer, inputs.to(self.dtype)

    def attribute(self, net, layer, inputs, target, **more):
        """Returns the map, without the warnings that it is constant or doubtful."""
        options = {**self.options, **more}
        if "generator" in methods_with_name(self.method):
            options["generator"] = torch.Generator().manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            cam = METHODS[self.method].attribution(net, layer)
            return cam.attribute(inputs, target, **options)


def methods_with_name(name):
    """Returns the options of a method."""
    known = ("generator", "num_samples", "groups", "percentile", "theta", "std")
    known += ("baselines", "score_func", "max_channels", "perturbations_per_eval")
    known += ("n_steps", "method", "relative")
    return {o for o in known if METHODS[name].attribution in methods_with(o)}


def identity(output):
    return output


VALUES = {
    "num_samples": st.just(2),
    "groups": st.integers(1, 4),
    "percentile": st.sampled_from([0, 30.0, 70, 100]),
    "theta": st.sampled_from([0, 10, 50.0, 100]),
    "std": st.sampled_from([0.0, 0.5]),
    "baselines": st.sampled_from([0, 0.5, -3.0, (1,), torch.tensor(0.25)]),
    "score_func": st.sampled_from([None, torch.sigmoid, identity]),
    "max_channels": st.sampled_from([None, 1, 2, 99]),
    "perturbations_per_eval": st.sampled_from([1, 3]),
    "n_steps": st.integers(2, 4),
    "method": st.sampled_from(INTEGRATION_METHODS),
    "relative": st.booleans(),
}
WRONG = {
    "num_samples": [0, 1.5],
    "groups": [0, "two"],
    "percentile": [-1, 101],
    "theta": [200, None],
    "std": [-1.0],
    "baselines": [torch.zeros(7, 7, 7), "black", (0, 0)],
    "score_func": [3],
    "max_channels": [0],
    "perturbations_per_eval": [0, 2.5],
    "n_steps": [1, 2.5],
    "method": ["riemann", None],
}
blocks = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.integers(1, 2),
        st.integers(1, 2),
        st.sampled_from(sorted(NORMS)),
        st.sampled_from(sorted(ACTIVATIONS)),
        st.sampled_from(["none", *POOLS]),
    ),
    min_size=1,
    max_size=2,
)


@st.composite
def drawn(draw, training=False):
    """Draws a call of any method."""
    rank = draw(st.sampled_from([2, 2, 2, 1]))
    examples = draw(st.integers(1, 3))
    head = draw(st.sampled_from(["pooled", "flat", "map"]))
    # CAM explains outputs of classes alone.
    known = sorted(set(METHODS) - ({"cam"} if head == "map" else set()))
    name = draw(st.sampled_from(known))
    place = (0,) * rank if head == "map" else ()
    classes = st.integers(-CLASSES, CLASSES - 1)
    # Captum takes negative classes as one number for all examples alone.
    each = st.lists(st.integers(0, CLASSES - 1), min_size=examples, max_size=examples)
    if head == "map":
        target = draw(
            st.one_of(
                classes.map(lambda label: (label, *place)),
                each.map(lambda labels: [(label, *place) for label in labels]),
            )
        )
    else:
        target = draw(st.one_of(classes, each, each.map(torch.tensor)))
    known = sorted(methods_with_name(name) & VALUES.keys())
    given_options = draw(st.sets(st.sampled_from(known))) if known else set()
    # Default sample counts take a while, and prove nothing more.
    given_options |= {"num_samples", "n_steps"} & set(known)
    return Drawn(
        seed=draw(st.integers(0, 999)),
        rank=rank,
        size=tuple(draw(st.integers(9, 14)) for _ in range(rank)),
        examples=examples,
        channels=draw(st.integers(1, 4)),
        blocks=draw(blocks),
        head=head,
        dtype=draw(st.sampled_from([torch.float64, torch.float64, torch.float32])),
        requires_grad=draw(st.booleans()),
        training=training and draw(st.booleans()),
        target=target,
        method=name,
        options={o: draw(VALUES[o]) for o in sorted(given_options)},
    )


def same(maps, expected):
    """Asserts that maps are the same but for rounding."""
    largest = float(expected.abs().max())
    bound = ROUNDING[expected.dtype] * max(largest, 1e-30)
    torch.testing.assert_close(maps, expected, rtol=0, atol=bound)


def row(target, example):
    """Returns the target of one example."""
    return target[example] if isinstance(target, list | torch.Tensor) else target


class state_stays:
    """Asserts at the exit, after an error too, that nothing of a model has changed."""

    def __init__(self, net, inputs):
        self.net, self.inputs = net, inputs
        # In train mode the buffers of batch normalisation move.
        self.buffers = [] if net.training else list(net.buffers())

    def __enter__(self):
        self.tensors = [*self.net.parameters(), *self.buffers, self.inputs]
        self.states = states(self.tensors)
        self.hooks = hooks_of(self.net)
        self.modes = [module.training for module in self.net.modules()]
        self.grad = torch.is_grad_enabled()

    def __exit__(self, *error):
        assert_same_states(self.tensors, self.states)
        assert hooks_of(self.net) == self.hooks
        assert [module.training for module in self.net.modules()] == self.modes
        assert torch.is_grad_enabled() == self.grad


@given(case=drawn(training=True))
def test_a_map_is_finite_and_the_model_is_as_it_was(case):
    net, layer, inputs = case.build()
    with state_stays(net, inputs):
        maps = case.attribute(net, layer, inputs, case.target)
    with torch.no_grad():
        size = layer.eval()(inputs).shape[2:]
    assert maps.shape == (case.examples, 1, *size)
    assert maps.isfinite().all() and maps.dtype == case.dtype
    assert not maps.requires_grad
    event("constant" if maps.amin() == maps.amax() else "a map")


@given(case=drawn())
def test_a_map_does_not_depend_on_the_batch(case):
    net, layer, inputs = case.build()
    maps = case.attribute(net, layer, inputs, case.target)
    for example in range(case.examples):
        image = inputs[example : example + 1]
        alone = case.attribute(net, layer, image, row(case.target, example))
        same(alone, maps[example : example + 1])


@given(case=drawn())
def test_a_map_does_not_depend_on_the_memory_format(case):
    net, layer, inputs = case.build()
    if case.rank == 1:
        other = inputs.transpose(1, 2).contiguous().transpose(1, 2)
    else:
        other = inputs.contiguous(memory_format=torch.channels_last)
    maps = case.attribute(net, layer, inputs, case.target)
    same(case.attribute(net, layer, other, case.target), maps)


@given(case=drawn(training=True), data=st.data())
def test_a_wrong_option_is_refused_before_the_model_runs(case, data):
    net, layer, inputs = case.build()
    known = sorted(methods_with_name(case.method) & WRONG.keys())
    if not known:
        return
    name = data.draw(st.sampled_from(known))
    value = data.draw(st.sampled_from(WRONG[name]))
    with state_stays(net, inputs), pytest.raises((ValueError, TypeError), match=name):
        case.attribute(net, layer, inputs, case.target, **{name: value})


class Broken(Exception):
    """Nothing that the package may catch for its own."""


@given(case=drawn(training=True), fail_at=st.integers(1, 12))
def test_the_model_is_as_it_was_after_an_error(case, fail_at):
    net, layer, inputs = case.build()
    runs = []

    def model(batch):
        output = net(batch)
        runs.append(len(batch))
        if len(runs) >= fail_at:
            raise Broken
        return output

    with state_stays(net, inputs):
        try:
            case.attribute(model, layer, inputs, case.target)
        except Broken:
            event("broken")
        else:
            assert len(runs) < fail_at
