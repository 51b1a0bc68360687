"""Methods, nets and helpers that the tests of this folder share.

METHODS are all methods, and most tests run for each of them. The sets after it say what
only some methods do. Most sets come from the list of methods and from signatures.
SHARING, RANKING, SCALED, CLASS_AGNOSTIC, OF_CLASSES and PLAIN_MASKS are written by
hand: check them for a new method.
"""

import contextlib
import inspect
import math
import warnings
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from headed import METHODS as ENTRIES
from torch import nn

from captum_unioncam import (
    CAM,
    FDCAM,
    ISCAM,
    SSCAM,
    EigenCAM,
    FusionCAM,
    GroupCAM,
    ReciproCAM,
    ScoreCAM,
    UnionCAM,
)

METHODS = tuple(entry.attribution for entry in ENTRIES.values())


def methods_with(*options):
    """Returns the methods whose ``attribute`` has all of these options."""
    return tuple(
        method
        for method in METHODS
        if set(options) <= set(inspect.signature(method.attribute).parameters)
    )


# Differentiate the model.
GRADIENT = tuple(
    entry.attribution for entry in ENTRIES.values() if entry.needs_gradients
)
# Score perturbed examples, in chunks.
PERTURBING = methods_with("perturbations_per_eval", "score_func")
# Mask the inputs, over baselines.
MASKING = methods_with("perturbations_per_eval", "score_func", "baselines")
# Differentiate the model at altered examples, in chunks.
SAMPLED = tuple(
    method
    for method in methods_with("perturbations_per_eval")
    if method not in PERTURBING
)
# Mask the inputs by each channel of the layer.
CHANNEL_MASKING = methods_with("baselines", "max_channels")
# Mask no input.
UNMASKED = tuple(method for method in METHODS if method not in MASKING)
# Replace the layer's tensor, and leave the inputs alone.
REPLACING = tuple(method for method in PERTURBING if method not in MASKING)
# Draw random numbers.
RANDOM = methods_with("generator")
# The defaults in this folder.
FEW_SAMPLES = {"num_samples": 3, "n_steps": 6}

# The weights of all channels sum to 1. A constant channel takes its share of that sum,
# and the maps shrink. In all other methods a channel of zeros adds nothing. FusionCAM
# has such a part too, but scales it.
SHARING = (ScoreCAM, SSCAM, ISCAM)
# The weights depend on where a channel is among all of them, those of zeros too.
RANKING = (FDCAM,)
ADDING = tuple(method for method in METHODS if method not in (*SHARING, *RANKING))
# Have one map for all classes.
CLASS_AGNOSTIC = (EigenCAM,)
# Explain outputs of shape (N, classes) alone.
OF_CLASSES = tuple(method for method in METHODS if issubclass(method, CAM))
# Return maps that are scaled to [0, 1].
SCALED = (UnionCAM, FusionCAM, ReciproCAM)
# Options that keep masks in [0, 1], and show black where the mask is 0.
PLAIN_MASKS = {SSCAM: {"std": 0.0}, GroupCAM: {"baselines": (0, 0, 0)}}

# The ``pytestmark`` of every file here. A constant or a NaN map gives a warning, and
# most comparisons of such maps would be empty: the warning is an error.
CONTRACT_MARKS = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
]

every_method = pytest.mark.parametrize("method", METHODS)
class_method = pytest.mark.parametrize(
    "method", [method for method in METHODS if method not in CLASS_AGNOSTIC]
)
gradient_method = pytest.mark.parametrize("method", GRADIENT)
perturbing_method = pytest.mark.parametrize("method", PERTURBING)
masking_method = pytest.mark.parametrize("method", MASKING)
unmasked_method = pytest.mark.parametrize("method", UNMASKED)
replacing_method = pytest.mark.parametrize("method", REPLACING)
random_method = pytest.mark.parametrize("method", RANDOM)
scaled_method = pytest.mark.parametrize("method", SCALED)
every_rank = pytest.mark.parametrize("dims", [1, 2, 3])
output_and_input = pytest.mark.parametrize("attribute_to_layer_input", [False, True])

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SIZE = (9, 8, 7)
LAYER_SIZE = (5, 4, 4)
EXAMPLES = 3
CHANNELS = 4
CLASSES = 5
TARGETS = [4, 0, 2]  # another one for each example
BACKGROUND = 3  # the class that no test explains
SEEDS = {1: 77, 2: 2, 3: 25}  # of nets without constant maps, by spatial dimensions
EXACT = {"rtol": 0, "atol": 1e-10}
HOOK_DICTS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
)


# Inputs and nets


def make_images(examples=EXAMPLES, dims=2, channels=3, size=SIZE, seed=0):
    """Returns random images, (N, C, *size), with ``dims`` spatial dimensions."""
    generator = torch.Generator().manual_seed(seed)
    shape = (examples, channels, *size[:dims])
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def many_inputs(examples=EXAMPLES):
    """Returns inputs of a ManyInputsNet: small images, large ones, and vectors."""
    generator = torch.Generator().manual_seed(2)
    vectors = torch.rand(examples, 7, generator=generator, dtype=torch.float64)
    large = make_images(examples, size=(18, 16), seed=1)
    return make_images(examples), large, vectors


def seeded(build, seed=0):
    """Builds a module from fixed random parameters, and leaves the generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double().eval()


def make_net(
    dims=2,
    in_place=False,
    head=None,
    outputs=CLASSES,
    after_layer=None,
    background=None,
):
    """A net whose layer is ``relu``, with a part after it that is not linear.

    What its layer sees raises every output but those of the background, which are large
    and almost constant: every channel adds to the confidence in the other outputs, and
    no map of them is constant. Only nets of CLASSES outputs have a background by
    default.
    """
    conv = CONVOLUTIONS[dims - 1]
    features = CHANNELS * math.prod(LAYER_SIZE[:dims])
    net = seeded(
        lambda: nn.Sequential(
            OrderedDict(
                conv=conv(3, CHANNELS, 3, stride=2, padding=1),
                relu=nn.ReLU(in_place),  # (N, CHANNELS, *LAYER_SIZE)
                after=after_layer or nn.Identity(),
                conv2=conv(CHANNELS, CHANNELS, 3, padding=1),
                tanh=nn.Tanh(),
                flatten=nn.Flatten(),
                linear=nn.Linear(features, outputs),  # (N, outputs)
                head=head or nn.Identity(),
            )
        ),
        SEEDS[dims],
    )
    if background is None:
        background = [BACKGROUND] if outputs == CLASSES else []
    with torch.no_grad():
        net.conv.weight *= 5
        net.conv2.weight += 0.1
        net.conv2.bias -= 0.4
        net.linear.weight[background] *= 0.1
        net.linear.weight += 0.03
        net.linear.weight[background] -= 0.03
        net.linear.bias[background] += 5
    return net


class Call(nn.Module):
    """A module of any function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class ArgsNet(nn.Module):
    """Takes an argument of each kind after the image; ``seen`` records them."""

    def __init__(self):
        super().__init__()
        self.net = make_net()
        self.relu = self.net.relu
        self.seen = []

    def forward(self, x, gain=None, power=None, weights=None, options=None):
        self.seen.append((x, gain, power, weights, options))
        if gain is not None:
            x = x * gain.view(-1, *[1] * (x.dim() - 1))
        if power is not None:
            x = x**power
        out = self.net(x)
        if weights is not None:
            out = out * weights
        return out if options is None else out * options[0]


class ManyInputsNet(nn.Module):
    """Takes two images of different sizes and a vector; ``seen`` records them."""

    def __init__(self):
        super().__init__()
        self.net = make_net()
        self.relu = self.net.relu
        self.linear = seeded(lambda: nn.Linear(7, CLASSES), seed=1)
        self.seen = []

    def forward(self, x, large, vector):
        self.seen.append((x.clone(), large.clone(), vector.clone()))
        return self.net(x + F.avg_pool2d(large, 2)) + self.linear(vector)


class Recorder:
    """A forward function that records the inputs of each forward pass."""

    def __init__(self, model):
        self.model = model
        self.inputs = []

    def __call__(self, *args):
        self.inputs.append(args[0].clone())
        return self.model(*args)

    @property
    def sizes(self):
        """The number of rows in each pass."""
        return [len(inp) for inp in self.inputs]


# Maps


def one_row(values, i):
    """Returns the i-th row of a tensor, or of each tensor of a tuple, as a batch."""
    if isinstance(values, tuple):
        return tuple(one_row(value, i) for value in values)
    return values[i : i + 1]


def one_by_one(cam, inputs, targets, rows=None):
    """Returns the maps of examples that are attributed alone, (N, 1, *size).

    ``rows`` are additional arguments with a row for each example.
    """
    maps = [
        cam.attribute(
            one_row(inputs, i), target, None if rows is None else one_row(rows, i)
        )
        for i, target in enumerate(targets)
    ]
    return torch.cat(maps)


def assert_same_maps(maps, expected):
    """Asserts that maps agree up to the rounding of another order of operations."""
    torch.testing.assert_close(maps, expected, **EXACT)


@contextlib.contextmanager
def degenerate_maps_allowed():
    """Ignores the warnings that name examples with constant or NaN maps."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*maps of examples")
        yield


def zeros_allowed_if_ranking(method):
    """Allows constant maps to methods that leave nothing of few or like channels."""
    return degenerate_maps_allowed() if method in RANKING else contextlib.nullcontext()


@contextlib.contextmanager
def doubtful_scores_allowed():
    """Ignores the warnings of outputs that may need a `score_func`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Give `score_func`")
        yield


# State


def hooks_of(*modules):
    """Returns every hook of every submodule, and the global ones."""
    found = [
        {name: dict(getattr(module, name)) for name in HOOK_DICTS}
        for root in modules
        for module in root.modules()
    ]
    shared = vars(torch.nn.modules.module)
    found.append({k: dict(v) for k, v in shared.items() if k.endswith("_hooks")})
    return found


def storage(tensor):
    """Returns where the memory of a tensor is."""
    return tensor.untyped_storage().data_ptr()


def states(tensors):
    """Returns what an attribution might change in tensors."""
    return [
        (t.detach().clone(), t._version, t.requires_grad, t.is_leaf, t.grad)
        for t in tensors
    ]


def assert_same_states(tensors, before):
    """Asserts that tensors are as :func:`states` found them."""
    for tensor, (value, version, requires_grad, is_leaf, grad) in zip(
        tensors, before, strict=True
    ):
        torch.testing.assert_close(tensor.detach(), value, rtol=0, atol=0)
        assert tensor._version == version, "the tensor was changed in place"
        assert tensor.requires_grad == requires_grad, "requires_grad was changed"
        assert tensor.is_leaf == is_leaf, "the tensor joined or left a graph"
        assert tensor.grad is grad, "the gradient was replaced"
