"""What Captum, its tools and its users may ask of every layer attribution.

Every test runs for every method of METHODS: the registry's, without Captum's own. The
sets below it say what only some methods do. Most are read from the registry and the
signatures; a new method joins the few sets that only a human can know.
"""

import contextlib
import copy
import inspect
import random
import warnings
from collections import OrderedDict

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import (
    Attribution,
    GradientAttribution,
    LayerAttribution,
    LayerGradCam,
    NoiseTunnel,
    PerturbationAttribution,
    visualization,
)
from captum.metrics import (
    infidelity,
    infidelity_perturb_func_decorator,
    sensitivity_max,
)
from captum.testing.attr.helpers.gen_test_utils import get_target_layer
from captum.testing.attr.helpers.test_config import config as captum_configs
from torch import nn

from captum_unioncam import (
    ISCAM,
    SSCAM,
    FusionCAM,
    GroupCAM,
    ReciproCAM,
    ScoreCAM,
    UnionCAM,
    as_explanation_func,
    to_input,
)
from captum_unioncam.attr._weighted_cam import CAMAttribution
from captum_unioncam.evaluation import registry

matplotlib.use("Agg")

METHODS = tuple(
    entry.attribution
    for entry in registry.METHODS.values()
    if issubclass(entry.attribution, CAMAttribution)
)


def methods_with(*options):
    """Returns the methods whose ``attribute`` has all of these options."""
    return tuple(
        method
        for method in METHODS
        if set(options) <= set(inspect.signature(method.attribute).parameters)
    )


# Differentiate the model.
GRADIENT = tuple(
    entry.attribution
    for entry in registry.METHODS.values()
    if entry.attribution in METHODS and entry.needs_gradients
)
# Run the model on perturbed examples, in chunks.
PERTURBING = methods_with("perturbations_per_eval")
# Mask the inputs, over baselines.
MASKING = methods_with("perturbations_per_eval", "baselines")
# Mask the inputs by each channel of the layer.
CHANNEL_MASKING = methods_with("baselines", "max_channels")
# Replace the layer's tensor, and leave the inputs alone.
REPLACING = tuple(method for method in PERTURBING if method not in MASKING)
# Draw random numbers.
RANDOM = methods_with("generator")

# Share weights of a sum of 1 among all channels, so that a channel of zeros takes its
# share, and the maps shrink. In all other methods it adds nothing. FusionCAM has such a
# part too, but scales it.
SHARING = (ScoreCAM, SSCAM, ISCAM)
ADDING = tuple(method for method in METHODS if method not in SHARING)
# Return maps that are scaled to [0, 1].
SCALED = (UnionCAM, FusionCAM, ReciproCAM)
# Options with which masks are in [0, 1], and what they hide is black.
PLAIN_MASKS = {SSCAM: {"std": 0.0}, GroupCAM: {"baselines": (0, 0, 0)}}

# A flat or a broken map warns, and would make most comparisons empty.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
]

every_method = pytest.mark.parametrize("method", METHODS)
perturbing_method = pytest.mark.parametrize("method", PERTURBING)
masking_method = pytest.mark.parametrize("method", MASKING)
replacing_method = pytest.mark.parametrize("method", REPLACING)
random_method = pytest.mark.parametrize("method", RANDOM)
gradient_method = pytest.mark.parametrize("method", GRADIENT)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SIZE = (9, 8, 7)
LAYER_SIZE = (5, 4, 4)
EXAMPLES = 3
CHANNELS = 4
CLASSES = 5
BACKGROUND = 3  # the class that no test explains
SEEDS = {1: 77, 2: 2, 3: 25}  # of nets without flat maps, by spatial dimensions
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
    """A net whose layer is ``relu``, with a rest that is not linear.

    What its layer sees raises every output but those of the background, which are large
    and almost constant: every channel adds to the confidence in the other outputs, and
    no map of them is flat. Only nets of CLASSES outputs have a background by default.
    """
    conv = CONVOLUTIONS[dims - 1]
    features = CHANNELS * int(np.prod(LAYER_SIZE[:dims]))
    net = seeded(
        lambda: nn.Sequential(
            OrderedDict(
                conv=conv(3, CHANNELS, 3, stride=2, padding=1),
                relu=nn.ReLU(in_place),
                after=after_layer or nn.Identity(),
                conv2=conv(CHANNELS, CHANNELS, 3, padding=1),
                tanh=nn.Tanh(),
                flatten=nn.Flatten(),
                linear=nn.Linear(features, outputs),
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


def make_images(examples=EXAMPLES, dims=2, channels=3, size=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (examples, channels, *size[:dims])
    return torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module", autouse=True)
def few_samples():
    """Methods that score each mask many times do so three times by default."""
    with pytest.MonkeyPatch.context() as patch:
        for method in methods_with("num_samples"):
            defaults = inspect.unwrap(method.attribute).__kwdefaults__
            patch.setitem(defaults, "num_samples", 3)
        yield


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def images():
    return make_images()


class Unflatten(nn.Module):
    """Turns the outputs (N, 6) into (N, 3, 2)."""

    def forward(self, x):
        return x.view(-1, 3, 2)


class Squeeze(nn.Module):
    """Turns the outputs (N, 1) into (N,)."""

    def forward(self, x):
        return x.squeeze(1)


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


class ImageArgNet(nn.Module):
    """Adds a second image; ``identity`` runs on it alone."""

    def __init__(self):
        super().__init__()
        self.net = make_net()
        self.relu = self.net.relu
        self.identity = nn.Identity()
        self.seen = []

    def forward(self, x, other):
        self.seen.append((x, other))
        return self.net(x + self.identity(other))


class ManyInputsNet(nn.Module):
    """Takes two images of different sizes and a flat input."""

    def __init__(self):
        super().__init__()
        self.net = make_net()
        self.relu = self.net.relu
        self.flat = seeded(lambda: nn.Linear(7, CLASSES), seed=1)
        self.seen = []

    def forward(self, x, large, flat):
        self.seen.append((x.clone(), large.clone(), flat.clone()))
        return self.net(x + F.avg_pool2d(large, 2)) + self.flat(flat)


def many_inputs(examples=EXAMPLES):
    generator = torch.Generator().manual_seed(2)
    flat = torch.rand(examples, 7, generator=generator, dtype=torch.float64)
    large = make_images(examples, size=(18, 16), seed=1)
    return make_images(examples), large, flat


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
        return [len(inp) for inp in self.inputs]


class Exploding:
    """A forward function that raises on one of its calls."""

    def __init__(self, model, call, error):
        self.model, self.call, self.error = model, call, error
        self.calls = 0

    def __call__(self, *args):
        self.calls += 1
        output = self.model(*args)
        if self.calls == self.call:
            raise self.error
        return output


class ExplodingLayer(nn.Module):
    def __init__(self, call, error):
        super().__init__()
        self.call, self.error = call, error
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.call:
            raise self.error
        return F.relu(x)


class ExplodingBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no way back")


class Call(nn.Module):
    """A module of any function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@contextlib.contextmanager
def degenerate_maps_allowed():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*maps of examples")
        yield


def singles(method, net, layer, x, targets, **options):
    """Attributes each example alone, with a target of its own."""
    cam = method(net, layer)
    maps = [
        cam.attribute(x[i : i + 1], target=target, **options)
        for i, target in enumerate(targets)
    ]
    return torch.cat(maps)


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
    return tensor.untyped_storage().data_ptr()


def states(tensors):
    """Returns what an attribution might change in tensors."""
    return [
        (t.detach().clone(), t._version, t.requires_grad, t.is_leaf, t.grad)
        for t in tensors
    ]


def assert_same_states(tensors, before):
    for tensor, (value, version, requires_grad, is_leaf, grad) in zip(
        tensors, before, strict=True
    ):
        torch.testing.assert_close(tensor.detach(), value, rtol=0, atol=0)
        assert tensor._version == version
        assert tensor.requires_grad == requires_grad
        assert tensor.is_leaf == is_leaf
        assert tensor.grad is grad


# Signature and class


@every_method
def test_signature_of_attribute_begins_like_layer_grad_cam(method):
    parameters = list(inspect.signature(method.attribute).parameters.values())
    common = list(inspect.signature(LayerGradCam.attribute).parameters.values())[:5]
    names = ["self", "inputs", "target", "additional_forward_args"]
    assert [p.name for p in common] == [*names, "attribute_to_layer_input"]
    for ours, captums in zip(parameters, common):
        assert (ours.name, ours.kind, ours.default) == (
            captums.name,
            captums.kind,
            captums.default,
        )


@every_method
def test_own_options_have_defaults_and_none_is_a_catch_all(method):
    parameters = inspect.signature(method.attribute).parameters
    for parameter in list(parameters.values())[2:]:
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        assert parameter.default is not parameter.empty
    assert "return_convergence_delta" not in parameters


@every_method
def test_unknown_options_are_refused(method, net, images):
    with pytest.raises(TypeError, match="nt_samples"):
        method(net, net.relu).attribute(images, 1, nt_samples=3)


@every_method
def test_constructor_starts_with_model_layer_and_devices(method):
    parameters = list(inspect.signature(method).parameters.values())
    assert [p.name for p in parameters[:3]] == ["forward_func", "layer", "device_ids"]
    assert parameters[2].default is None
    for parameter in parameters[3:]:
        assert parameter.default is not parameter.empty
        assert parameter.kind is not parameter.VAR_KEYWORD


@every_method
def test_is_a_layer_attribution_by_its_class_name(method):
    assert issubclass(method, LayerAttribution)
    assert method.get_name() == method.__name__


@every_method
def test_has_the_base_of_its_kind(method):
    # NoiseTunnel makes noisy inputs require grad for the gradient attributions.
    assert issubclass(method, PerturbationAttribution) == (method in PERTURBING)
    if method not in PERTURBING:
        assert issubclass(method, GradientAttribution)
    if method not in GRADIENT:
        assert not issubclass(method, GradientAttribution)


@every_method
def test_has_no_convergence_delta_and_is_local(method, net):
    cam = method(net, net.relu)
    assert cam.has_convergence_delta() is False
    assert cam.multiplies_by_inputs is False


@every_method
def test_attribute_can_be_unwrapped(method, net, images):
    cam = method(net, net.relu)
    plain = cam.attribute.__wrapped__(cam, images, target=1)
    assert torch.equal(plain, cam.attribute(images, target=1))


@every_method
def test_constructor_stores_and_never_runs_the_model(method, net):
    forward_func = Recorder(net)
    cam = method(forward_func, net.relu, [0, 1])
    assert forward_func.inputs == []
    assert cam.forward_func is forward_func
    assert cam.layer is net.relu
    assert cam.device_ids == [0, 1]


@every_method
def test_constructor_refuses_a_list_of_layers(method, net):
    with pytest.raises(TypeError, match="`layer` must be a torch.nn.Module"):
        method(net, [net.relu])


@every_method
def test_attribute_stores_nothing(method, net, images):
    cam = method(net, net.relu)
    before = dict(vars(cam))
    cam.attribute(images, target=1)
    after = vars(cam)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


@every_method
def test_deep_copies_explain_their_own_model(method, net, images):
    cam = method(net, net.relu)
    expected = cam.attribute(images, target=1)
    twin = copy.deepcopy(cam)
    assert twin.layer is not net.relu
    with torch.no_grad():
        net.conv.weight.zero_()
    torch.testing.assert_close(twin.attribute(images, target=1), expected, **EXACT)


@every_method
def test_layer_and_forward_func_are_read_at_call_time(method, net, images):
    other = make_net(dims=2, outputs=2, background=[0])
    cam = method(net, net.relu)
    cam.attribute(images, target=1)
    cam.forward_func, cam.layer = other, other.conv2
    expected = method(other, other.conv2).attribute(images, target=1)
    torch.testing.assert_close(cam.attribute(images, target=1), expected, **EXACT)


@every_method
def test_target_is_the_second_positional_argument(method, net, images):
    cam = method(net, net.relu)
    expected = cam.attribute(images, target=4)
    assert torch.equal(cam.attribute(images, 4), expected)


# Result


@every_method
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)
def test_result_has_the_layers_size_and_type(method, dims, dtype):
    net = make_net(dims).to(dtype)
    maps = method(net, net.relu).attribute(make_images(dims=dims).to(dtype), target=1)
    assert maps.shape == (EXAMPLES, 1, *LAYER_SIZE[:dims])
    assert maps.dtype == dtype
    assert maps.isfinite().all()
    assert maps.flatten(1).amax(1).gt(0).all()


@every_method
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_low_precision_gives_nearly_the_same_map(method, dims):
    net, images = make_net(dims), make_images(dims=dims)
    expected = method(net, net.conv).attribute(images, target=1)
    net = net.float()
    maps = method(net, net.conv).attribute(images.float(), target=1)
    tolerance = 1e-4 * expected.max().item()  # most maps are not scaled
    torch.testing.assert_close(maps.double(), expected, rtol=1e-3, atol=tolerance)


@every_method
def test_result_has_the_layers_type_under_autocast(method, net, images):
    net, images = net.float(), images.float()
    seen = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net.relu.register_forward_hook(lambda *args: seen.append(args[2].dtype))
        maps = method(net, net.relu).attribute(images, target=1)
        assert torch.is_autocast_enabled("cpu")
    assert set(seen) == {torch.bfloat16}
    assert maps.dtype == torch.bfloat16
    assert maps.isfinite().all()
    assert maps.flatten(1).amax(1).gt(0).all()


@perturbing_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_perturbed_inputs_keep_their_type(method, net, images, dtype):
    forward_func = Recorder(net.to(dtype))
    method(forward_func, net.relu).attribute(images.to(dtype), target=1)
    assert {inp.dtype for inp in forward_func.inputs} == {dtype}


@every_method
def test_result_is_detached_contiguous_and_owns_its_memory(method, net, images):
    images.requires_grad_()
    seen = []
    net.relu.register_forward_hook(lambda *args: seen.append(args[2]))
    maps = method(net, net.relu).attribute(images, target=1)
    assert not maps.requires_grad
    assert maps.grad_fn is None
    assert maps.is_contiguous()
    assert maps._base is None
    assert maps.untyped_storage().nbytes() == maps.numel() * maps.element_size()
    others = [images, *net.parameters(), *seen]
    assert storage(maps) not in map(storage, others)


@every_method
def test_one_channel_and_one_example_do_not_alias_the_activation(method):
    conv = seeded(lambda: nn.Conv2d(3, 1, 3))
    nn.init.ones_(conv.bias)
    model = nn.Sequential(conv, nn.Identity(), nn.Softplus(), nn.Flatten())
    seen = []
    conv.register_forward_hook(lambda *args: seen.append(args[2]))
    images = make_images(1)
    maps = method(model, conv).attribute(images, target=1)
    expected = maps.clone()
    for tensor in [images, *seen]:
        tensor.detach().fill_(7)
    assert torch.equal(maps, expected)


@every_method
def test_channels_last_inputs_give_a_contiguous_result(method, net, images):
    expected = method(net, net.relu).attribute(images, target=1)
    net = net.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    maps = method(net, net.relu).attribute(images, target=1)
    assert maps.is_contiguous()
    torch.testing.assert_close(maps, expected, **EXACT)


@pytest.mark.parametrize("method", SCALED)
@pytest.mark.parametrize("layer", ["conv", "relu", "conv2", "tanh"])
def test_scaled_maps_span_zero_to_one(method, net, images, layer):
    maps = method(net, net.get_submodule(layer)).attribute(images, target=[0, 1, 2])
    assert torch.equal(maps.flatten(1).amin(1), torch.zeros(EXAMPLES).double())
    assert torch.equal(maps.flatten(1).amax(1), torch.ones(EXAMPLES).double())


@every_method
def test_tuple_inputs_and_a_one_tuple_layer_give_one_tensor(method, net, images):
    class Wrapped(nn.Module):
        def forward(self, x):
            return (F.relu(x),)

    expected = method(net, net.relu).attribute(images, target=1)
    assert torch.equal(method(net, net.relu).attribute((images,), target=1), expected)
    wrapped = make_net(after_layer=Call(lambda x: x[0]))
    wrapped.relu = Wrapped()
    maps = method(wrapped, wrapped.relu).attribute(images, target=1)
    assert isinstance(maps, torch.Tensor)
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
@pytest.mark.parametrize("container", [tuple, list])
def test_a_layer_of_several_tensors_gives_a_tuple(method, net, images, container):
    class Split(nn.Module):
        def forward(self, x):
            return container((F.relu(x), F.max_pool2d(x, 2)))

    several = make_net(
        after_layer=Call(lambda pair: pair[0] + F.interpolate(pair[1], (5, 4)))
    )
    several.relu = Split()
    maps = method(several, several.relu).attribute(images, target=1)
    assert isinstance(maps, tuple)
    assert [tuple(m.shape) for m in maps] == [(3, 1, 5, 4), (3, 1, 2, 2)]
    assert storage(maps[0]) != storage(maps[1])
    assert all(m.is_contiguous() and not m.requires_grad for m in maps)


def join(pair):
    return pair[0] + 0.5 * F.interpolate(pair[1], LAYER_SIZE[:2])


class Apart(nn.Module):
    """Has a module for each of two tensors of different sizes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()

    def forward(self, x):
        return join((self.first(F.relu(x)), self.second(F.max_pool2d(x, 2))))


@every_method
@pytest.mark.parametrize("container", [tuple, list])
def test_each_tensor_of_a_layer_has_the_map_that_it_has_alone(
    method, images, container
):
    several, apart = make_net(after_layer=Call(join)), make_net(after_layer=Apart())
    several.relu = Call(lambda x: container((F.relu(x), F.max_pool2d(x, 2))))
    apart.relu = nn.Identity()
    maps = method(several, several.relu).attribute(images, target=[4, 0, 2])
    assert len(maps) == 2
    for ours, layer in zip(maps, (apart.after.first, apart.after.second)):
        expected = method(apart, layer).attribute(images, target=[4, 0, 2])
        torch.testing.assert_close(ours, expected, **EXACT)


@every_method
def test_each_tensor_of_a_layers_input_has_the_map_that_it_has_alone(method, images):
    class Join(nn.Module):
        def forward(self, first, second):
            return join((first, second))

    class Joining(nn.Module):
        def __init__(self):
            super().__init__()
            self.join = Join()

        def forward(self, x):
            return self.join(F.relu(x), F.max_pool2d(x, 2))

    several, apart = make_net(after_layer=Joining()), make_net(after_layer=Apart())
    several.relu = apart.relu = nn.Identity()
    maps = method(several, several.after.join).attribute(
        images, [4, 0, 2], attribute_to_layer_input=True
    )
    assert len(maps) == 2
    for ours, layer in zip(maps, (apart.after.first, apart.after.second)):
        expected = method(apart, layer).attribute(images, target=[4, 0, 2])
        torch.testing.assert_close(ours, expected, **EXACT)


@every_method
def test_layers_that_are_not_spatial_are_refused(method, net, images):
    with pytest.raises(ValueError, match="spatial"):
        method(net, net.linear).attribute(images, target=1)


@every_method
def test_a_layer_without_a_row_for_each_example_is_refused(method, images):
    fold = Call(lambda x: x.flatten(0, 1).unsqueeze(1))
    unfold = Call(lambda x: x.view(-1, CHANNELS, *LAYER_SIZE[:2]))
    model = make_net(after_layer=nn.Sequential(OrderedDict(fold=fold, unfold=unfold)))
    with pytest.raises(ValueError, match="one row for each example"):
        method(model, model.after.fold).attribute(images, target=1)


@every_method
def test_a_list_of_inputs_is_refused_like_captum_does(method, net, images):
    with pytest.raises(AssertionError, match="`inputs` must be a torch.Tensor"):
        method(net, net.relu).attribute([images], target=1)


# Batches and chunks


@every_method
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("layer", ["conv", "relu", "tanh"])
def test_a_batch_equals_its_examples_alone(method, dims, layer):
    net, images = make_net(dims), make_images(5, dims)
    images[1] *= 3  # so that a scale shared by the batch would show
    images[2] *= 0.5
    layer = net.get_submodule(layer)
    targets = [4, 0, 1, 4, 2]
    maps = method(net, layer).attribute(images, target=targets)
    expected = singles(method, net, layer, images, targets)
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
def test_the_order_of_the_examples_does_not_matter(method, net):
    images, targets = make_images(5), [4, 0, 1, 4, 2]
    cam = method(net, net.relu)
    maps = cam.attribute(images, target=targets)
    backwards = cam.attribute(images.flip(0), target=targets[::-1])
    torch.testing.assert_close(backwards.flip(0), maps, **EXACT)


@perturbing_method
@pytest.mark.parametrize("per_eval", [1, 2, 3, 7, 1000])
def test_any_perturbations_per_eval_gives_the_same_map(method, per_eval):
    net, images, targets = ArgsNet(), make_images(5), [4, 0, 1, 4, 2]
    # The rows act before the layer, and behind it.
    gain = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    weights = torch.linspace(0.7, 1.3, 5 * CLASSES, dtype=torch.float64)
    rows = (gain, None, weights.view(5, CLASSES))
    cam = method(net, net.net.conv)
    expected = cam.attribute(images, targets, rows, perturbations_per_eval=None)
    maps = cam.attribute(images, targets, rows, perturbations_per_eval=per_eval)
    torch.testing.assert_close(maps, expected, **EXACT)
    tensor = torch.tensor(targets)
    maps = cam.attribute(images, tensor, rows, perturbations_per_eval=per_eval)
    torch.testing.assert_close(maps, expected, **EXACT)


@perturbing_method
@pytest.mark.parametrize("per_eval", [1, 2, 3, 7])
@pytest.mark.parametrize("examples", [1, 3])
def test_passes_hold_at_most_so_many_perturbations_an_example(
    method, net, per_eval, examples
):
    forward_func = Recorder(net)
    method(forward_func, net.relu).attribute(
        make_images(examples), target=1, perturbations_per_eval=per_eval
    )
    assert max(forward_func.sizes) <= per_eval * examples
    # A group is a channel: there are fewer channels than groups.
    whole = int(np.prod(LAYER_SIZE[:2])) if method is ReciproCAM else CHANNELS
    assert max(forward_func.sizes) == min(per_eval, whole) * examples


@perturbing_method
def test_larger_chunks_make_fewer_passes(method, net, images):
    passes = []
    for per_eval in (1, 4):
        forward_func = Recorder(net)
        method(forward_func, net.relu).attribute(
            images, target=1, perturbations_per_eval=per_eval
        )
        passes.append(len(forward_func.sizes))
    assert passes[1] < passes[0]


@perturbing_method
def test_default_passes_on_the_cpu_hold_at_most_six_perturbed_inputs(method, net):
    forward_func = Recorder(net)
    method(forward_func, net.relu).attribute(make_images(4), target=1)
    assert max(forward_func.sizes) == 6


@perturbing_method
@pytest.mark.parametrize(
    "value, error", [(0, ValueError), (-1, ValueError), (2.0, TypeError)]
)
def test_wrong_perturbations_per_eval_are_refused(method, net, images, value, error):
    cam = method(net, net.relu)
    with pytest.raises(error, match="`perturbations_per_eval` must be a positive int"):
        cam.attribute(images, target=1, perturbations_per_eval=value)


@perturbing_method
def test_progress_is_shown_on_stderr_only_on_demand(method, net, images, capsys):
    cam = method(net, net.relu)
    cam.attribute(images, target=1)
    assert capsys.readouterr() == ("", "")
    cam.attribute(images, target=1, show_progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{method.__name__} attribution" in shown.err
    assert "100%" in shown.err


# Targets

ACCEPTED_TARGETS = {
    "int": (1, [1, 1, 1]),
    "negative int": (-1, [4, 4, 4]),
    "0-d tensor": (torch.tensor(1), [1, 1, 1]),
    "tensor of one": (torch.tensor([1]), [1, 1, 1]),
    "tensor of one, 2-d": (torch.tensor([[1]]), [1, 1, 1]),
    "tuple": ((1,), [1, 1, 1]),
    "list of ints": ([0, 1, 2], [0, 1, 2]),
    "tensor": (torch.tensor([0, 1, 2]), [0, 1, 2]),
    "list of tuples": ([(0,), (1,), (2,)], [0, 1, 2]),
}

OUT_OF_RANGE = "out of bounds"
REFUSED_TARGETS = {
    "None": (None, AssertionError, "Target not provided when necessary"),
    "short list": ([1], AssertionError, "Target list length"),
    "wrong list": ([0, 1], AssertionError, "Target list length"),
    "empty list": ([], AssertionError, "Target list length"),
    "wrong tensor": (torch.tensor([0, 1]), AssertionError, "Tensor target dimension"),
    "column": (torch.tensor([[0], [1], [2]]), AssertionError, "Tensor target dim"),
    "long tuple": ((0, 1), AssertionError, "Cannot choose target column"),
    "very long tuple": ((9999,) * 20, AssertionError, "Cannot choose target column"),
    "numpy int": (np.int64(1), AssertionError, "Target type"),
    "numpy array": (np.array([0, 1, 2]), AssertionError, "Target type"),
    "string": ("1", AssertionError, "Target type"),
    "float tensor, 0-d": (torch.tensor(1.0), AssertionError, "Tensor target dimension"),
    "float tensor of one": (torch.tensor([1.0]), AssertionError, "Tensor target dim"),
    "list of tensors": ([torch.tensor(0)] * 3, AssertionError, "Target element type"),
    "list of lists": ([[0], [1], [2]], AssertionError, "Target element type"),
    "bool": (True, AssertionError, "Target not provided when necessary"),
    "int out of range": (99, IndexError, OUT_OF_RANGE),
    "negative out of range": (-6, IndexError, OUT_OF_RANGE),
    "tensor out of range, 0-d": (torch.tensor(99), IndexError, OUT_OF_RANGE),
    "tuple out of range": ((99,), IndexError, OUT_OF_RANGE),
    "tuples out of range": ([(0,), (1,), (99,)], IndexError, OUT_OF_RANGE),
    "list out of range": ([0, 1, 99], RuntimeError, OUT_OF_RANGE),
    "tensor out of range": (torch.tensor([0, 1, 99]), RuntimeError, OUT_OF_RANGE),
    "float tensor": (torch.tensor([0.0, 1.0, 2.0]), RuntimeError, "gather"),
    "list of bools": ([True, False, True], RuntimeError, "gather"),
}


@every_method
@pytest.mark.parametrize("form", ACCEPTED_TARGETS)
def test_target_forms_equal_each_examples_int(method, net, images, form):
    target, ints = ACCEPTED_TARGETS[form]
    maps = method(net, net.conv).attribute(images, target=target)
    expected = singles(method, net, net.conv, images, ints)
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
def test_int32_targets_work_where_captum_takes_them(method, net, images):
    target = torch.tensor([0, 1, 2], dtype=torch.int32)
    try:
        LayerGradCam(net, net.conv).attribute(images, target=target)
    except RuntimeError as error:
        pytest.skip(f"torch's gather: {error}")
    maps = method(net, net.conv).attribute(images, target=target)
    expected = method(net, net.conv).attribute(images, target=[0, 1, 2])
    assert torch.equal(maps, expected)


@every_method
@pytest.mark.parametrize("form", REFUSED_TARGETS)
def test_wrong_targets_raise_captums_errors(method, net, images, form):
    target, error, text = REFUSED_TARGETS[form]
    before = hooks_of(net)
    for attribution in (LayerGradCam, method):
        with pytest.raises(error, match=text) as caught:
            attribution(net, net.relu).attribute(images, target=target)
        assert caught.type is error
    assert hooks_of(net) == before


@every_method
@pytest.mark.parametrize(
    "target", [4, [4], torch.tensor(4), torch.tensor([4]), (4,), [(4,)]], ids=repr
)
def test_every_target_form_fits_a_batch_of_one(method, net, target):
    cam, image = method(net, net.conv), make_images(1)
    maps = cam.attribute(image, target=target)
    assert torch.equal(maps, cam.attribute(image, target=4))
    assert not torch.equal(maps, cam.attribute(image, target=0))


@every_method
def test_models_of_one_output_need_no_target(method, images):
    column = make_net(outputs=1, head=nn.Sigmoid())
    flat = make_net(outputs=1, head=nn.Sequential(nn.Sigmoid(), Squeeze()))
    maps = method(flat, flat.relu).attribute(images)
    assert maps.flatten(1).amax(1).gt(0).all()
    cam = method(column, column.relu)
    torch.testing.assert_close(cam.attribute(images), maps, **EXACT)
    torch.testing.assert_close(cam.attribute(images, target=0), maps, **EXACT)
    expected = singles(method, flat, flat.relu, images, [None] * EXAMPLES)
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
@pytest.mark.parametrize("target", [(2, 1), [(2, 1), (0, 0), (0, 1)]], ids=repr)
def test_tuples_index_outputs_of_more_dimensions(method, images, target):
    net = make_net(outputs=6, head=Unflatten(), background=[2, 3])
    maps = method(net, net.conv).attribute(images, target=target)
    each = target if isinstance(target, list) else [target] * EXAMPLES
    expected = singles(method, net, net.conv, images, each)
    torch.testing.assert_close(maps, expected, **EXACT)
    # The same value by another way: the softmax over dimension 1 stays among its like.
    column = method(lambda x: net(x)[..., 1], net.conv).attribute(images, target=2)
    torch.testing.assert_close(maps[:1], column[:1], **EXACT)


@every_method
@pytest.mark.parametrize(
    "target, text",
    [
        (1, "Target not provided when necessary"),
        ([0, 1, 2], "Output must be 2D"),
        (torch.tensor([0, 1, 2]), "Output must be 2D"),
    ],
    ids=repr,
)
def test_ints_do_not_index_outputs_of_more_dimensions(method, images, target, text):
    net = make_net(outputs=6, head=Unflatten(), background=[2, 3])
    for attribution in (LayerGradCam, method):
        with pytest.raises(AssertionError, match=text):
            attribution(net, net.conv).attribute(images, target=target)


@every_method
@pytest.mark.parametrize("target", [[2, 0, 1], torch.tensor([2, 0, 1])], ids=repr)
def test_targets_are_not_changed(method, net, images, target):
    before = copy.deepcopy(target)
    method(net, net.relu).attribute(images, target=target)
    assert type(target) is type(before)
    if isinstance(target, list):
        assert target == before
    else:
        assert torch.equal(target, before)
        assert target._version == 0


# Additional forward arguments


@every_method
@pytest.mark.parametrize("column", [False, True])
def test_a_row_for_each_example_follows_its_example(method, images, column):
    net, targets = ArgsNet(), [4, 0, 2]
    gain = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    gain = gain[:, None] if column else gain
    cam = method(net, net.relu)
    options = {"perturbations_per_eval": 3} if method in PERTURBING else {}
    maps = cam.attribute(images, targets, (gain,), **options)
    expected = [
        cam.attribute(images[i : i + 1], targets[i], gain[i : i + 1])
        for i in range(EXAMPLES)
    ]
    torch.testing.assert_close(maps, torch.cat(expected), **EXACT)


@every_method
def test_opaque_arguments_equal_a_model_that_has_them_built_in(method, images):
    net = ArgsNet()
    power = torch.tensor(2.0, dtype=torch.float64)
    weights = torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)
    maps = method(net, net.relu).attribute(
        images, 1, (None, power, weights, [3.0, "any"])
    )
    built_in = method(lambda x: net.net(x**2) * weights * 3, net.relu)
    torch.testing.assert_close(maps, built_in.attribute(images, 1), **EXACT)
    for _, gain, seen_power, seen_weights, options in net.seen:
        assert gain is None
        assert seen_power.dim() == 0
        assert seen_power == power
        assert torch.equal(seen_weights, weights)
        assert options == [3.0, "any"]


@every_method
def test_an_argument_that_is_no_tuple_is_one_argument(method, images):
    net = ArgsNet()
    gain = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    cam = method(net, net.relu)
    assert torch.equal(
        cam.attribute(images, 1, gain), cam.attribute(images, 1, (gain,))
    )
    assert torch.equal(cam.attribute(images, 1, None), cam.attribute(images, 1))

    def with_options(x, options):
        assert options == [2.0, 5.0]
        return net(x, options=options)

    maps = method(with_options, net.relu).attribute(images, 1, [2.0, 5.0])
    expected = method(lambda x: net(x) * 2, net.relu).attribute(images, 1)
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
def test_image_arguments_follow_their_example_and_are_never_masked(method, images):
    net, other = ImageArgNet(), make_images(seed=5)
    before = states([other])
    maps = method(net, net.relu).attribute(images, [4, 0, 2], other)
    assert_same_states([other], before)
    rows = {tuple(row.flatten().tolist()) for row in other}
    for x, seen in net.seen:
        assert len(seen) == len(x)
        assert {tuple(row.flatten().tolist()) for row in seen} <= rows
        assert not seen.requires_grad
    cam = method(net, net.relu)
    expected = [
        cam.attribute(images[i : i + 1], target, other[i : i + 1])
        for i, target in enumerate([4, 0, 2])
    ]
    torch.testing.assert_close(maps, torch.cat(expected), **EXACT)


@every_method
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_an_argument_that_is_the_layers_tensor_does_not_get_gradients(
    method, images, mode
):
    net, other = ImageArgNet(), make_images(seed=5)
    before = states([other])
    with mode():
        method(net, net.identity).attribute(images, 2, other)
    assert_same_states([other], before)


# Inputs


@masking_method
def test_every_input_of_the_layers_rank_is_masked_at_its_own_size(method):
    net, inputs = ManyInputsNet(), many_inputs()
    cam = method(net, net.relu)
    cam.attribute(inputs, target=[4, 0, 2], **PLAIN_MASKS.get(method, {}))
    flats = {tuple(row.tolist()): i for i, row in enumerate(inputs[2])}
    partly = 0
    for seen in net.seen:
        for x, large, flat in zip(*seen, strict=True):
            example = flats[tuple(flat.tolist())]  # unchanged, and tells the example
            small_mask = x / inputs[0][example]
            large_mask = large / inputs[1][example]
            for mask in (small_mask, large_mask):
                assert mask.min() >= 0
                assert mask.max() <= 1 + 1e-9
                # One mask for all channels of an input.
                torch.testing.assert_close(mask, mask[:1].expand_as(mask), **EXACT)
            assert (small_mask.max() == 0) == (large_mask.max() == 0)
            partly += bool(0 < small_mask.mean() < 1 and 0 < large_mask.mean() < 1)
    assert partly >= EXAMPLES


@pytest.mark.parametrize("method", CHANNEL_MASKING)
def test_channels_mask_every_input_resized_first_and_then_scaled(method):
    net, inputs = ManyInputsNet(), many_inputs(1)
    channels = net.net.relu(net.net.conv(inputs[0] + F.avg_pool2d(inputs[1], 2)))
    cam = method(net, net.relu)
    cam.attribute(inputs, target=4, **PLAIN_MASKS.get(method, {}))
    rows = [row for seen in net.seen for row in zip(*seen, strict=True)]
    for k in range(CHANNELS):
        expected = []
        for image in inputs[:2]:
            mask = F.interpolate(
                channels[:, k : k + 1].detach(), image.shape[2:], mode="bilinear"
            )
            mask = (mask - mask.min()) / (mask.max() - mask.min())
            expected.append((mask * image)[0])
        assert any(
            torch.allclose(x, expected[0], **EXACT)
            and torch.allclose(large, expected[1], **EXACT)
            for x, large, _ in rows
        )


@every_method
def test_several_inputs_follow_their_example_and_give_one_tensor(method):
    net, inputs, targets = ManyInputsNet(), many_inputs(), [4, 0, 2]
    cam = method(net, net.relu)
    maps = cam.attribute(inputs, targets)
    assert maps.shape == (EXAMPLES, 1, *LAYER_SIZE[:2])
    expected = [
        cam.attribute(tuple(inp[i : i + 1] for inp in inputs), targets[i])
        for i in range(EXAMPLES)
    ]
    torch.testing.assert_close(maps, torch.cat(expected), **EXACT)


@masking_method
def test_inputs_that_no_mask_fits_are_refused(method):
    net = make_net(dims=1, after_layer=nn.Identity())
    model = nn.Sequential(OrderedDict(flat=Call(lambda x: x.view(-1, 3, 9)), net=net))
    with pytest.raises(ValueError, match="tensor of the layer's rank, 3, to mask"):
        method(model, net.relu).attribute(make_images(dims=1).flatten(1), target=1)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in MASKING])
@pytest.mark.parametrize("dims", [1, 2])
def test_inputs_of_any_rank_will_do_where_none_is_masked(method, dims):
    net, images = make_net(dims), make_images(dims=dims)
    unflatten = Call(lambda x: x.view(-1, *images.shape[1:]))
    model = nn.Sequential(OrderedDict(unflatten=unflatten, net=net))
    maps = method(model, net.relu).attribute(images.flatten(1), target=[4, 0, 2])
    expected = method(net, net.relu).attribute(images, target=[4, 0, 2])
    torch.testing.assert_close(maps, expected, **EXACT)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in MASKING])
def test_token_inputs_will_do_where_none_is_masked(method):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = seeded(lambda: nn.Embedding(11, 3))
            self.net = make_net(dims=1)

        def forward(self, tokens):
            return self.net(self.embedding(tokens).movedim(1, 2).sigmoid())

    model, targets = Tokens(), [4, 0, 2]
    tokens = torch.arange(EXAMPLES * SIZE[0]).view(EXAMPLES, SIZE[0]) * 7 % 11
    maps = method(model, model.net.relu).attribute(tokens, target=targets)
    assert maps.shape == (EXAMPLES, 1, LAYER_SIZE[0])
    expected = singles(method, model, model.net.relu, tokens, targets)
    torch.testing.assert_close(maps, expected, **EXACT)


@replacing_method
def test_replacing_methods_show_the_model_nothing_but_the_examples(method):
    net, inputs, target = ManyInputsNet(), many_inputs(), [4, 0, 2]
    method(net, net.relu).attribute(inputs, target)
    rows = [list(zip(*inputs, strict=True))[example] for example in range(EXAMPLES)]
    counts = [0] * EXAMPLES
    for seen in net.seen:
        for row in zip(*seen, strict=True):
            example = next(
                i for i in range(EXAMPLES) if torch.equal(row[2], rows[i][2])
            )
            assert torch.equal(row[0], rows[example][0])
            assert torch.equal(row[1], rows[example][1])
            counts[example] += 1
    assert min(counts) == max(counts) > CHANNELS


@replacing_method
def test_replacing_methods_take_no_baselines(method, net, images):
    with pytest.raises(TypeError, match="baselines"):
        method(net, net.relu).attribute(images, 1, baselines=0)


@every_method
def test_integer_images_reach_the_model_as_they_are(method, net, images):
    seen = []

    def model(x):
        seen.append(x.dtype)
        return net(x.double() / 255)

    pixels = (images * 255).to(torch.uint8)
    targets = [4, 0, 2]
    maps = method(model, net.relu).attribute(pixels, target=targets)
    assert set(seen) == {torch.uint8}
    assert maps.dtype == torch.float64
    assert maps.isfinite().all()
    expected = singles(method, model, net.relu, pixels, targets)
    torch.testing.assert_close(maps, expected, **EXACT)
    floats = method(net, net.relu).attribute(pixels.double() / 255, target=targets)
    # Masked pixels are rounded.
    torch.testing.assert_close(maps, floats, rtol=0.05, atol=0.01)


# Models


@every_method
def test_frozen_models_give_the_same_map(method, net, images):
    expected = method(net, net.relu).attribute(images, target=1)
    net.requires_grad_(False)
    assert torch.equal(method(net, net.relu).attribute(images, target=1), expected)
    assert not any(p.requires_grad for p in net.parameters())


@every_method
@pytest.mark.parametrize("frozen", [False, True])
def test_a_layer_that_the_output_does_not_depend_on_is_no_error(method, images, frozen):
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.aside = make_net(), seeded(lambda: nn.Conv2d(3, 2, 3))

        def forward(self, x):
            self.aside(x)
            return self.net(x)

    model = Aside().requires_grad_(not frozen)
    with degenerate_maps_allowed():
        maps = method(model, model.aside).attribute(images, target=1)
    assert maps.shape == (EXAMPLES, 1, 7, 6)
    assert maps.isfinite().all()


@every_method
def test_layers_that_the_model_never_runs_raise_captums_error(method, net, images):
    with pytest.raises(AssertionError, match="Forward hook did not obtain any outputs"):
        method(net, nn.ReLU()).attribute(images, target=1)


@every_method
def test_outputs_without_examples_are_refused(method, net, images):
    with pytest.raises((IndexError, ValueError), match="0-dim|one row for each"):
        method(lambda x: net(x).sum(), net.relu).attribute(images)


@pytest.mark.parametrize("method", [m for m in PERTURBING if m not in GRADIENT])
def test_models_that_return_futures_work_where_captums_do(method, net, images):
    def model(x):
        future = torch.futures.Future()
        future.set_result(net(x))
        return future

    maps = method(model, net.relu).attribute(images, target=1)
    assert torch.equal(maps, method(net, net.relu).attribute(images, target=1))


@every_method
def test_examples_of_logits_and_of_probabilities_may_share_a_batch(method, net, images):
    def model(x, is_probability):
        output = net(x)
        return torch.where(is_probability, output.softmax(1), output)

    kinds = torch.tensor([[True], [False], [True]])
    cam = method(model, net.relu)
    maps = cam.attribute(images, [4, 0, 2], kinds)
    expected = [
        cam.attribute(images[i : i + 1], target, kinds[i : i + 1])
        for i, target in enumerate([4, 0, 2])
    ]
    torch.testing.assert_close(maps, torch.cat(expected), **EXACT)


@every_method
def test_no_grad_callers_get_the_same_map(method, net, images):
    expected = method(net, net.relu).attribute(images, target=1)
    with torch.no_grad():
        maps = method(net, net.relu).attribute(images, target=1)
        assert not torch.is_grad_enabled()
    assert torch.equal(maps, expected)


@every_method
def test_inference_mode_callers_get_the_same_map(method, images):
    net, target = ArgsNet(), torch.tensor([4, 0, 2])
    gain = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    weights = torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)
    cam = method(net, net.relu)
    expected = cam.attribute(images, target, (gain, None, weights))
    with torch.inference_mode():
        inner = [t.clone() for t in (images, target, gain, weights)]
        assert all(t.is_inference() for t in inner)
        maps = cam.attribute(inner[0], inner[1], (inner[2], None, inner[3]))
        assert torch.is_inference_mode_enabled()
    assert torch.equal(maps, expected)
    assert not maps.is_inference()


@every_method
@pytest.mark.parametrize("layer", ["conv", "relu"])
def test_an_in_place_relu_after_or_as_the_layer_changes_nothing(method, images, layer):
    plain, in_place = make_net(), make_net(in_place=True)
    expected = method(plain, plain.get_submodule(layer)).attribute(images, target=1)
    maps = method(in_place, in_place.get_submodule(layer)).attribute(images, target=1)
    torch.testing.assert_close(maps, expected, **EXACT)


def halve_in_place(x):
    x[:, :2].mul_(0.5)
    return x


IN_PLACE = {
    "whole": (lambda x: x.mul_(2).add_(0.1), lambda x: x * 2 + 0.1),
    # As the skip of a residual block.
    "sum": (lambda x: x.add_(x.roll(1, 3)), lambda x: x + x.roll(1, 3)),
    "part": (halve_in_place, lambda x: torch.cat([x[:, :2] * 0.5, x[:, 2:]], 1)),
}


@every_method
@pytest.mark.parametrize("place", ["as the layer", "after the layer"])
@pytest.mark.parametrize("attribute_to_layer_input", [False, True])
@pytest.mark.parametrize("operation", IN_PLACE)
def test_an_in_place_operation_changes_nothing(
    method, images, operation, place, attribute_to_layer_input
):
    options = {"attribute_to_layer_input": attribute_to_layer_input}
    maps = []
    for function in IN_PLACE[operation]:
        net = make_net()
        net.relu = nn.Sequential(nn.Identity(), Call(function), nn.ReLU())
        layer = net.relu[1 if place == "as the layer" else 0]
        # Twice, because the first call may have changed what the second one sees.
        for _ in range(2):
            maps.append(method(net, layer).attribute(images, [4, 0, 2], **options))
    assert torch.equal(maps[1], maps[0])
    assert torch.equal(maps[3], maps[2])
    torch.testing.assert_close(maps[0], maps[2], **EXACT)


@every_method
@pytest.mark.parametrize("attribute_to_layer_input", [False, True])
def test_an_in_place_first_operation_reaches_no_input(
    method, net, images, attribute_to_layer_input
):
    def model(in_place):
        first = Call((lambda x: x.mul_(2)) if in_place else (lambda x: x * 2))
        return nn.Sequential(OrderedDict(first=first, net=net))

    before = states([images])
    for layer in ("first", "net.relu"):
        maps = []
        for in_place in (False, True):
            chained = model(in_place)
            cam = method(chained, chained.get_submodule(layer))
            maps.append(
                cam.attribute(
                    images, 1, attribute_to_layer_input=attribute_to_layer_input
                )
            )
        torch.testing.assert_close(maps[1], maps[0], **EXACT)
    assert_same_states([images], before)


@every_method
def test_an_in_place_operation_on_a_flat_input_reaches_no_input(method):
    net, inputs = ManyInputsNet(), many_inputs()
    cam = method(net, net.relu)
    expected = cam.attribute(inputs, target=1)
    before = states(inputs)
    for i in range(3):
        changed = method(
            lambda *args: net(*args[:i], args[i].mul_(2).div_(2), *args[i + 1 :]),
            net.relu,
        )
        maps = changed.attribute(inputs, target=1)
        torch.testing.assert_close(maps, expected, **EXACT)
    assert_same_states(inputs, before)


@every_method
@pytest.mark.parametrize("shape", [(EXAMPLES, 1, 1, 1), (1, 1, 1, 1)], ids=repr)
def test_an_in_place_operation_on_an_argument_reaches_no_caller(
    method, net, images, shape
):
    argument = torch.full(shape, 0.7, dtype=torch.float64)
    plain = method(lambda x, arg: net(x * (arg * 2)), net.relu)
    in_place = method(lambda x, arg: net(x * arg.mul_(2)), net.relu)
    expected = plain.attribute(images, 1, argument)
    before = states([argument])
    maps = in_place.attribute(images, 1, argument)
    torch.testing.assert_close(maps, expected, **EXACT)
    assert_same_states([argument], before)


class Repeated(nn.Module):
    """Runs a module before the layer of a net, on maps of its size or on images."""

    def __init__(self, runs, shared, on_images, middle=None):
        super().__init__()
        self.net = make_net(after_layer=middle)
        self.relu = self.net.relu
        self.early = [self.relu if shared else nn.ReLU() for _ in range(runs)]
        self.on_images = on_images

    def forward(self, x):
        if self.on_images:
            for relu in self.early:
                x = x + 0.5 * relu(x - 0.5)
        x = self.net.conv(x)
        if not self.on_images:
            for relu in self.early:
                x = 1.2 * relu(x) - 0.1
        return self.net[1:](x)


@every_method
@pytest.mark.parametrize("runs", [1, 2])
@pytest.mark.parametrize("on_images", [False, True])
@pytest.mark.parametrize("attribute_to_layer_input", [False, True])
def test_the_last_run_of_a_layer_counts(
    method, runs, on_images, attribute_to_layer_input
):
    options = {"attribute_to_layer_input": attribute_to_layer_input}
    # One example goes twice through the pass in which the runs are counted.
    for examples in (1, EXAMPLES):
        images = make_images(examples)
        shared, apart = (Repeated(runs, kind, on_images) for kind in (True, False))
        maps = method(shared, shared.relu).attribute(images, 1, **options)
        expected = method(apart, apart.relu).attribute(images, 1, **options)
        assert maps.shape == (examples, 1, *LAYER_SIZE[:2])
        torch.testing.assert_close(maps, expected, **EXACT)


@every_method
def test_the_last_run_counts_in_data_parallel_models_too(method, images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    shared, apart = (Repeated(2, kind, on_images=False) for kind in (True, False))
    maps = method(nn.DataParallel(shared), shared.relu).attribute(images, 1)
    expected = method(apart, apart.relu).attribute(images, 1)
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
def test_the_last_run_counts_where_a_model_views_its_activations(method, images):
    """A view of channels_last activations fails, and the scorers start anew."""
    view = Call(lambda x: x.view(len(x), -1).view(x.shape))
    shared, apart = (
        Repeated(1, kind, on_images=False, middle=view) for kind in (True, False)
    )
    maps = method(shared, shared.relu).attribute(images, 1)
    expected = method(apart, apart.relu).attribute(images, 1)
    torch.testing.assert_close(maps, expected, **EXACT)
    reshaping = Repeated(1, False, on_images=False)
    expected = method(reshaping, reshaping.relu).attribute(images, 1)
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
@pytest.mark.parametrize("layer, previous", [("relu", "conv"), ("tanh", "conv2")])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_layers_input_is_the_previous_layers_output(
    method, images, layer, previous, in_place
):
    net = make_net(in_place=in_place)
    maps = method(net, net.get_submodule(layer)).attribute(
        images, 1, attribute_to_layer_input=True
    )
    expected = method(net, net.get_submodule(previous)).attribute(images, 1)
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
def test_a_layer_called_with_keywords_works(method, images):
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def forward(self, x):
            x = self.net.relu(self.net.conv(input=x))
            return self.net[2:](x)

    model, net = Keywords(), make_net()
    maps = method(model, model.net.conv).attribute(images, target=1)
    expected = method(net, net.conv).attribute(images, target=1)
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
@pytest.mark.parametrize("scale", [1e-8, 1e4, -1e4])
@pytest.mark.parametrize("outputs", [1, CLASSES])
def test_scores_of_any_size_give_finite_maps(method, images, scale, outputs):
    net = make_net(outputs=outputs, head=Call(lambda x: x * scale)).float()
    with degenerate_maps_allowed():
        maps = method(net, net.relu).attribute(images.float(), target=0)
    assert maps.isfinite().all()
    if method in SCALED:
        assert maps.min() >= 0
        assert maps.max() <= 1


# Hooks


@every_method
def test_no_hook_stays_after_success(method, net, images):
    before = hooks_of(net)
    method(net, net.relu).attribute(images, target=1)
    method(net, net.relu).attribute(images, target=1, attribute_to_layer_input=True)
    assert hooks_of(net) == before


@every_method
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("attribute_to_layer_input", [False, True])
def test_an_error_in_any_forward_pass_passes_and_leaves_no_trace(
    method, net, images, kind, attribute_to_layer_input
):
    options = {"attribute_to_layer_input": attribute_to_layer_input}
    if method in PERTURBING:
        options["perturbations_per_eval"] = 1
    counter = Exploding(net, None, None)
    method(counter, net.relu).attribute(images, 1, **options)
    assert counter.calls > (CHANNELS if method in PERTURBING else 0)
    hooks, parameters = hooks_of(net), states(net.parameters())
    inputs, default = states([images]), torch.get_default_dtype()
    for call in range(1, counter.calls + 1):
        error = kind("stop")
        with pytest.raises(kind, match="stop") as caught:
            method(Exploding(net, call, error), net.relu).attribute(
                images, 1, **options
            )
        assert caught.value is error
        assert hooks_of(net) == hooks
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() == default
        assert not any(module.training for module in net.modules())
        assert_same_states(list(net.parameters()), parameters)
        assert_same_states([images], inputs)


@every_method
@pytest.mark.parametrize("place", ["relu", "after"])
@pytest.mark.parametrize("attribute_to_layer_input", [False, True])
def test_an_error_in_the_layer_or_behind_it_passes_and_leaves_no_hook(
    method, net, images, place, attribute_to_layer_input
):
    options = {"attribute_to_layer_input": attribute_to_layer_input}
    setattr(net, place, ExplodingLayer(None, None))
    method(net, net.relu).attribute(images, target=1, **options)
    calls = net.get_submodule(place).calls
    assert calls > (2 if method in PERTURBING else 0)
    for call in range(1, calls + 1):
        error = ZeroDivisionError("in the layer")
        setattr(net, place, ExplodingLayer(call, error))
        before = hooks_of(net)
        with pytest.raises(ZeroDivisionError, match="in the layer") as caught:
            method(net, net.relu).attribute(images, target=1, **options)
        assert caught.value is error
        assert hooks_of(net) == before


@gradient_method
def test_an_error_in_backward_passes_and_leaves_no_hook(method, images):
    net = make_net(after_layer=Call(ExplodingBackward.apply))
    before = hooks_of(net)
    with pytest.raises(RuntimeError, match="no way back"):
        method(net, net.relu).attribute(images, target=1)
    assert hooks_of(net) == before
    assert torch.is_grad_enabled()


@every_method
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("target", [1, (9999,) * 20], ids=["right", "wrong"])
def test_the_callers_grad_mode_is_restored(method, net, images, mode, target):
    with mode():
        before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        try:
            method(net, net.relu).attribute(images, target=target)
        except AssertionError:
            assert target != 1
        after = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        assert after == before
    assert torch.is_grad_enabled()


@every_method
def test_hooks_of_the_user_stay_and_run(method, net, images):
    calls = {"forward": 0, "pre": 0, "backward": 0}

    def count(name):
        def hook(*args):
            calls[name] += 1

        return hook

    net.relu.register_forward_hook(count("forward"))
    net.relu.register_forward_pre_hook(count("pre"))
    net.conv2.register_full_backward_hook(count("backward"))
    before = hooks_of(net)
    forward_func = Recorder(net)
    method(forward_func, net.relu).attribute(images, target=1)
    assert calls["forward"] == calls["pre"] == len(forward_func.inputs) > 0
    assert calls["backward"] == (1 if method in GRADIENT else 0)
    assert hooks_of(net) == before


@every_method
@pytest.mark.parametrize("layer", ["relu", "conv2"])
def test_a_users_hook_that_replaces_an_output_is_respected(method, images, layer):
    hooked, built_in = make_net(), make_net()
    hooked.relu.register_forward_hook(lambda module, args, out: out**2)
    built_in.relu = Call(lambda x: F.relu(x) ** 2)
    maps = method(hooked, hooked.get_submodule(layer)).attribute(images, target=1)
    cam = method(built_in, built_in.get_submodule(layer))
    torch.testing.assert_close(maps, cam.attribute(images, target=1), **EXACT)


@perturbing_method
@pytest.mark.parametrize("attribute_to_layer_input", [False, True])
def test_only_replaced_passes_see_a_hook(method, net, images, attribute_to_layer_input):
    seen = []

    class Watching(nn.Module):
        def forward(self, x):
            seen.append(len(self._forward_hooks) + len(self._forward_pre_hooks))
            return F.relu(x)

    net.relu = Watching()
    method(net, net.relu).attribute(
        images, 1, attribute_to_layer_input=attribute_to_layer_input
    )
    assert seen[0] == 1
    assert len(seen) > 2
    assert set(seen[1:]) == {1 if method in REPLACING else 0}


@perturbing_method
def test_perturbed_passes_record_no_graph(method, net, images):
    recorded = []

    def model(x):
        output = net(x)
        recorded.append(output.requires_grad)
        return output

    method(model, net.relu).attribute(images, target=1)
    assert sum(recorded) == (1 if method in GRADIENT else 0)


# State


@every_method
@pytest.mark.parametrize("requires_grad", [False, True])
def test_inputs_are_left_alone(method, net, images, requires_grad):
    images.requires_grad_(requires_grad)
    if requires_grad:
        images.grad = torch.ones_like(images)
    before = states([images])
    method(net, net.relu).attribute(images, target=1)
    assert_same_states([images], before)


@every_method
@pytest.mark.parametrize("attribute_to_layer_input", [False, True])
def test_the_models_own_activations_are_left_alone(
    method, net, images, attribute_to_layer_input
):
    seen = []
    for layer in (net.conv, net.relu, net.after):
        layer.register_forward_hook(
            lambda module, args, out: seen.append((out, out.clone(), out._version))
        )
    method(net, net.relu).attribute(
        images, 1, attribute_to_layer_input=attribute_to_layer_input
    )
    assert len(seen) >= 3
    for tensor, value, version in seen:
        assert torch.equal(tensor, value)
        assert tensor._version == version


@every_method
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("attribute_to_layer_input", [False, True])
def test_a_layer_that_holds_the_input_itself_leaks_no_gradient(
    method, net, images, mode, attribute_to_layer_input
):
    model = nn.Sequential(OrderedDict(first=nn.Identity(), net=net))
    before = states([images])
    with mode():
        method(model, model.first).attribute(
            images, 1, attribute_to_layer_input=attribute_to_layer_input
        )
    assert_same_states([images], before)
    assert torch.equal(images, make_images())


@every_method
def test_parameters_keep_their_flags_and_their_gradients(method, net, images):
    for i, parameter in enumerate(net.parameters()):
        parameter.grad = torch.full_like(parameter, i)
        parameter.requires_grad_(i % 2 == 0)
    parameters = list(net.parameters())
    before = states(parameters)
    grads = [p.grad.clone() for p in parameters]
    method(net, net.relu).attribute(images, target=1)
    assert_same_states(parameters, before)
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, grads))


@every_method
def test_buffers_and_mixed_training_flags_stay(method, images):
    net = make_net(after_layer=nn.BatchNorm2d(CHANNELS))
    net.train()
    net.after.eval()
    net.tanh.eval()
    flags = [module.training for module in net.modules()]
    assert set(flags) == {True, False}
    buffers = list(net.buffers())
    before = states(buffers)
    method(net, net.relu).attribute(images, target=1)
    assert [module.training for module in net.modules()] == flags
    assert_same_states(buffers, before)
    assert all(new is old for new, old in zip(net.buffers(), buffers, strict=True))


@every_method
def test_the_random_generators_stay(method, net, images):
    for generator in (torch.rand, np.random.rand, random.randrange):
        generator(3)  # away from the state of a fresh seed
    torch_state = torch.get_rng_state()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    method(net, net.relu).attribute(images, target=1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_equal(np.random.get_state(), numpy_state)
    assert random.getstate() == python_state


@every_method
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_the_default_type_stays_and_does_not_matter(method, net, images, default):
    expected = method(net, net.relu).attribute(images, target=1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        maps = method(net, net.relu).attribute(images, target=1)
        assert torch.get_default_dtype() == default
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(maps, expected)


@every_method
@pytest.mark.parametrize("layer", ["conv", "relu"])
def test_an_ordinary_call_gives_no_warning(method, net, images, layer):
    layer = net.get_submodule(layer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(net, layer).attribute(images, target=1)


@every_method
def test_two_runs_are_bitwise_equal(method, net, images):
    cam = method(net, net.relu)
    first, second = (cam.attribute(images, target=[4, 0, 2]) for _ in range(2))
    assert torch.equal(first, second)
    assert storage(first) != storage(second)


@every_method
def test_arguments_are_not_changed(method, images):
    net = ArgsNet()
    gain = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    weights = torch.linspace(0.5, 2, CLASSES, dtype=torch.float64, requires_grad=True)
    power, options = torch.tensor(2.0, dtype=torch.float64), [3.0, "any"]
    before = states([gain, power, weights])
    arguments = (gain, power, weights, options)
    method(net, net.relu).attribute(images, 1, arguments)
    assert_same_states([gain, power, weights], before)
    assert options == [3.0, "any"]
    assert all(a is b for a, b in zip(arguments, (gain, power, weights, options)))


# Random numbers


def generator(seed):
    return torch.Generator().manual_seed(seed)


@random_method
def test_the_global_seed_does_not_matter(method, net, images):
    maps = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            maps.append(method(net, net.relu).attribute(images, target=1))
    assert torch.equal(*maps)


@random_method
def test_a_users_generator_is_used_and_advances(method, net, images):
    cam = method(net, net.relu)
    draw, twin = generator(5), generator(5)
    first = cam.attribute(images, 1, generator=draw)
    assert torch.equal(first, cam.attribute(images, 1, generator=twin))
    assert torch.equal(draw.get_state(), twin.get_state())
    second = cam.attribute(images, 1, generator=draw)
    assert not torch.allclose(first, second, **EXACT)
    assert not torch.allclose(first, cam.attribute(images, 1), **EXACT)
    fresh = cam.attribute(images, 1, generator=generator(0))
    assert torch.equal(fresh, cam.attribute(images, 1))


@random_method
@pytest.mark.parametrize("per_eval", [1, 2, 5, 1000])
def test_the_draw_depends_neither_on_the_batch_nor_on_the_chunks(method, per_eval):
    net, inputs, targets = ManyInputsNet(), many_inputs(5), [4, 0, 2, 1, 4]
    cam = method(net, net.relu)
    maps = cam.attribute(
        inputs, targets, perturbations_per_eval=per_eval, generator=generator(5)
    )
    expected = [
        cam.attribute(
            tuple(inp[i : i + 1] for inp in inputs), target, generator=generator(5)
        )
        for i, target in enumerate(targets)
    ]
    torch.testing.assert_close(maps, torch.cat(expected), **EXACT)


@random_method
def test_noise_tunnel_passes_a_generator_on(method, net, images):
    cam = method(net, net.relu)
    maps = NoiseTunnel(cam).attribute(
        images, nt_samples=2, stdevs=0.0, target=1, generator=generator(5)
    )
    expected = cam.attribute(images, 1, generator=generator(5))
    torch.testing.assert_close(maps, expected, **EXACT)


# DataParallel


@every_method
@pytest.mark.parametrize("form", ["module", "forward", "no devices"])
def test_data_parallel_on_the_cpu_changes_nothing(
    method, net, images, form, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parallel = nn.DataParallel(net)
    assert parallel.device_ids == []
    cam = {
        "module": lambda: method(parallel, net.relu),
        "forward": lambda: method(parallel.forward, net.relu, parallel.device_ids),
        "no devices": lambda: method(net, net.relu, device_ids=[]),
    }[form]()
    expected = method(net, net.relu).attribute(images, target=[4, 0, 2])
    assert torch.equal(cam.attribute(images, target=[4, 0, 2]), expected)


# NoiseTunnel


@every_method
@pytest.mark.parametrize("batch_size", [None, 1, 2, 4])
def test_noise_tunnel_without_noise_gives_the_plain_map(method, images, batch_size):
    net, target = ArgsNet(), [4, 0, 2]
    gain = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    cam = method(net, net.relu)
    expected = cam.attribute(images, target, gain)
    maps = NoiseTunnel(cam).attribute(
        images,
        nt_samples=4,
        nt_samples_batch_size=batch_size,
        stdevs=0.0,
        target=target,
        additional_forward_args=gain,
    )
    assert isinstance(maps, torch.Tensor)
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
def test_noise_tunnel_averages_the_maps_of_noisy_inputs(method, net, images):
    cam = method(net, net.relu)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        maps = NoiseTunnel(cam).attribute(
            images, nt_samples=2, stdevs=0.1, target=torch.tensor([4, 0, 2])
        )
        torch.manual_seed(0)
        noise = torch.normal(0, torch.full((6, *images.shape[1:]), 0.1))
    noisy = images.repeat_interleave(2, 0) + noise
    expected = singles(method, net, net.relu, noisy, [4, 4, 0, 0, 2, 2])
    expected = expected.view(3, 2, *expected.shape[1:]).mean(1)
    torch.testing.assert_close(maps, expected, **EXACT)


@every_method
def test_noise_tunnel_takes_several_inputs(method):
    net, inputs = ManyInputsNet(), many_inputs()
    cam = method(net, net.relu)
    maps = NoiseTunnel(cam).attribute(
        inputs, nt_samples=2, stdevs=(0.0, 0.0, 0.0), target=1
    )
    torch.testing.assert_close(maps, cam.attribute(inputs, target=1), **EXACT)


@masking_method
@pytest.mark.parametrize("shape", [(EXAMPLES, 3, *SIZE[:2]), (1, 3, 1, 1)], ids=repr)
def test_noise_tunnel_takes_baselines(method, net, images, shape):
    baselines = torch.linspace(0, 0.5, int(np.prod(shape)), dtype=torch.float64)
    baselines = baselines.view(shape)
    cam, target = method(net, net.relu), [4, 0, 2]
    expected = cam.attribute(images, target, baselines=baselines)
    assert not torch.allclose(expected, cam.attribute(images, target), **EXACT)
    maps = NoiseTunnel(cam).attribute(
        images, nt_samples=2, stdevs=0.0, target=target, baselines=baselines
    )
    torch.testing.assert_close(maps, expected, **EXACT)


# Metrics


def shifts(rows):
    """A fixed perturbation for each row of a batch."""
    return torch.linspace(-0.2, 0.3, rows, dtype=torch.float64).view(-1, 1, 1, 1) * (
        torch.arange(SIZE[1], dtype=torch.float64) - 2
    )


@every_method
@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity_takes_maps_that_are_resized_to_the_input(
    method, net, images, normalize
):
    @infidelity_perturb_func_decorator(False)
    def perturb(inputs):
        return inputs - shifts(len(inputs)).expand_as(inputs)

    target, samples = [4, 0, 2], 3
    maps = method(net, net.relu).attribute(images, target=target)
    attributions = to_input(maps, images)
    value = infidelity(
        net,
        perturb,
        images,
        attributions,
        target=target,
        n_perturb_samples=samples,
        normalize=normalize,
    )
    assert value.shape == (EXAMPLES,)

    large = F.interpolate(maps, SIZE[:2], mode="bilinear")
    shift = shifts(EXAMPLES * samples).view(EXAMPLES, samples, 1, 1, SIZE[1])
    for i in range(EXAMPLES):
        with torch.no_grad():
            drop = net(images[i : i + 1])[:, target[i]] - torch.cat(
                [net(images[i : i + 1] - s)[:, target[i]] for s in shift[i]]
            )
        dot = torch.stack(
            [(s * large[i] * torch.ones(3, 1, 1)).sum() for s in shift[i]]
        )
        if normalize:
            dot = dot * (drop * dot).mean() / dot.square().mean()
        torch.testing.assert_close(value[i], (dot - drop).square().mean().double())


@every_method
def test_infidelity_refuses_maps_of_the_layers_size(method, net, images):
    maps = method(net, net.relu).attribute(images, target=1)
    with pytest.raises(AssertionError, match="matching shapes"):
        infidelity(net, lambda x: (x, x), images, maps, target=1)


def perturb_each_row(inputs):
    return inputs + shifts(len(inputs))


def sensitivity_by_hand(attribution, images, targets, samples):
    shift = shifts(len(images) * samples).view(len(images), samples, 1, 1, -1)
    values = []
    for i, target in enumerate(targets):
        image = images[i : i + 1]
        plain = attribution.attribute(image, target=target)
        distances = [
            (attribution.attribute(image + s, target=target) - plain).norm()
            for s in shift[i]
        ]
        values.append(max(distances) / plain.norm())
    return torch.stack(values).detach()


@pytest.mark.parametrize("method", [*METHODS, LayerGradCam])
@pytest.mark.parametrize("examples", [1, 3])
def test_sensitivity_max_reads_the_explanation_func_right(method, net, examples):
    images, targets = make_images(examples), [4, 0, 2][:examples]
    attribution = method(net, net.relu)
    value = sensitivity_max(
        as_explanation_func(attribution),
        images,
        perturb_each_row,
        n_perturb_samples=4,
        target=targets,
    )
    expected = sensitivity_by_hand(attribution, images, targets, 4)
    assert value.shape == (examples,)
    assert value.min() > 0
    torch.testing.assert_close(value.detach(), expected)


@pytest.mark.parametrize("method", [*METHODS, LayerGradCam])
def test_sensitivity_max_of_a_bare_layer_attribution_is_wrong(method, net):
    """Why as_explanation_func exists; Captum may mend this one day."""
    attribution, images = method(net, net.relu), make_images(1)
    value = sensitivity_max(
        attribution.attribute, images, perturb_each_row, n_perturb_samples=4, target=1
    )
    expected = sensitivity_by_hand(attribution, images, [1], 4)
    assert not torch.allclose(value.detach(), expected, rtol=0.1)
    with pytest.raises(RuntimeError, match="size of tensor"):
        sensitivity_max(
            attribution.attribute,
            make_images(2),
            perturb_each_row,
            n_perturb_samples=3,
            target=1,
        )


@every_method
def test_sensitivity_max_expands_per_example_arguments(method, images):
    net = ArgsNet()
    gain = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    cam = method(net, net.relu)
    value = sensitivity_max(
        as_explanation_func(cam),
        images,
        lambda x: x,
        n_perturb_samples=2,
        target=torch.tensor([4, 0, 2]),
        additional_forward_args=gain,
    )
    # An unchanged input has an unchanged map, if each row keeps its own arguments.
    torch.testing.assert_close(value, torch.zeros(EXAMPLES).double(), **EXACT)


# Visualization


@every_method
def test_maps_can_be_drawn(method, net, images):
    maps = method(net, net.relu).attribute(images, target=1)
    heat = to_input(maps, images)[0, :1].permute(1, 2, 0).numpy()
    image = images[0].permute(1, 2, 0).numpy()
    figure, _ = visualization.visualize_image_attr(
        heat, image, "blended_heat_map", "positive", use_pyplot=False
    )
    assert len(figure.axes[0].images) == 2
    figure, _ = visualization.visualize_image_attr_multiple(
        heat,
        image,
        ["original_image", "heat_map", "masked_image"],
        ["all", "positive", "positive"],
        use_pyplot=False,
    )
    assert [len(axis.images) for axis in figure.axes[:3]] == [1, 1, 1]
    interpolated = LayerAttribution.interpolate(maps, SIZE[:2], "bilinear")
    assert interpolated.shape == (EXAMPLES, 1, *SIZE[:2])


# Captum's own configurations

LAYER_CONFIGS = [
    config for config in captum_configs if LayerGradCam in config["algorithms"]
]
SPATIAL_CONFIGS = {"conv_layer_single_target"}


def test_captum_still_has_configurations_of_both_kinds():
    names = {config["name"] for config in LAYER_CONFIGS}
    assert SPATIAL_CONFIGS < names
    assert not any(config.get("noise_tunnel") for config in LAYER_CONFIGS)


@every_method
@pytest.mark.parametrize("config", LAYER_CONFIGS, ids=lambda config: config["name"])
def test_captums_configurations_run_or_are_refused_as_not_spatial(method, config):
    model = copy.deepcopy(config["model"])
    layer = get_target_layer(model, config["layer"])
    options = dict(config["attribute_args"])
    before = hooks_of(model)
    cam = method(model, layer)
    if config["name"] in SPATIAL_CONFIGS:
        model.double()
        inputs, target = options["inputs"].double(), options["target"]
        with torch.no_grad():
            # Captum's weights are all equal, so that no output depends on the inputs,
            # and only rounding errors would decide on a map.
            model.fc2.weight[target] += 1e-3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            maps = cam.attribute(inputs, target=target)
            expected = singles(method, model, layer, inputs, [target] * len(inputs))
        torch.testing.assert_close(maps, expected, **EXACT)
        with pytest.raises(AssertionError, match="Cannot choose target column"):
            cam.attribute(inputs, target=(9999,) * 20)
    else:
        with pytest.raises(ValueError, match="spatial"):
            cam.attribute(**options)
        if method in GRADIENT:  # the others see the layer before the target
            with pytest.raises(AssertionError, match="Cannot choose target column"):
                cam.attribute(**{**options, "target": (9999,) * 20})
    assert hooks_of(model) == before


# Degenerate examples


class FixedLayer(nn.Module):
    """Adds to a net a layer of any function of its images; the output depends on it."""

    def __init__(self, function):
        super().__init__()
        self.layer = Call(function)
        self.net = make_net()

    def forward(self, x):
        hidden = self.layer(x)
        return self.net(x + 0.1 * hidden.tanh().sum(1, keepdim=True))


def dead_channel(x):
    return torch.cat([x, 0 * x[:, :1]], 1)


@every_method
def test_dead_channels_give_finite_maps(method, images):
    model = FixedLayer(dead_channel)
    maps = method(model, model.layer).attribute(images, target=1)
    assert maps.isfinite().all()
    expected = singles(method, model, model.layer, images, [1] * EXAMPLES)
    torch.testing.assert_close(maps, expected, **EXACT)


@pytest.mark.parametrize("method", ADDING)
def test_dead_channels_add_nothing(method, images):
    alive, partly_dead = FixedLayer(lambda x: x * 1), FixedLayer(dead_channel)
    maps = method(partly_dead, partly_dead.layer).attribute(images, target=1)
    expected = method(alive, alive.layer).attribute(images, target=1)
    torch.testing.assert_close(maps, expected, **EXACT)


@pytest.mark.parametrize("method", SHARING)
def test_dead_channels_take_their_share(method, images):
    alive, partly_dead = FixedLayer(lambda x: x * 1), FixedLayer(dead_channel)
    maps = method(partly_dead, partly_dead.layer).attribute(images, target=1)
    expected = method(alive, alive.layer).attribute(images, target=1)
    shares = maps.amax((2, 3), keepdim=True) / expected.amax((2, 3), keepdim=True)
    # Three live channels of four, and a softmax that is close to uniform.
    assert (0.7 < shares).all()
    assert (shares < 0.8).all()
    torch.testing.assert_close(maps, shares * expected, **EXACT)


@perturbing_method
def test_dead_channels_cost_no_perturbed_pass(method, net, images):
    rows = []
    for function in (lambda x: x * 1, dead_channel):
        model = FixedLayer(function)
        forward_func = Recorder(model)
        method(forward_func, model.layer).attribute(
            images, target=1, perturbations_per_eval=1
        )
        rows.append(sum(forward_func.sizes))
    assert rows[0] == rows[1]


FLAT_LAYERS = {
    "constant": lambda x: torch.full_like(x, 2) + 0 * x,
    "zero": lambda x: 0 * x,
    "1x1": lambda x: x.mean((2, 3), keepdim=True),
}
# Gradients can still tell the positions of a constant layer apart.
BLANK_LAYERS = ("zero", "1x1")


@every_method
@pytest.mark.parametrize("layer", FLAT_LAYERS)
def test_flat_layers_give_finite_maps(method, images, layer):
    model = FixedLayer(FLAT_LAYERS[layer])
    with degenerate_maps_allowed():
        maps = method(model, model.layer).attribute(images, target=1)
    assert maps.isfinite().all()
    if method in SCALED and layer in BLANK_LAYERS:
        assert not maps.any()


@pytest.mark.parametrize("method", SCALED)
@pytest.mark.parametrize("layer", BLANK_LAYERS)
def test_flat_scaled_maps_give_one_warning_that_names_them(method, images, layer):
    model = FixedLayer(FLAT_LAYERS[layer])
    with pytest.warns(UserWarning, match=r"examples \[0, 1, 2\] are flat") as caught:
        method(model, model.layer).attribute(images, target=1)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@every_method
def test_zero_gradients_give_finite_maps(method, images):
    net = make_net(after_layer=Call(lambda x: x * 0))
    with degenerate_maps_allowed():
        maps = method(net, net.relu).attribute(images, target=1)
    assert maps.isfinite().all()


@every_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_example_that_is_not_finite_is_nan_and_stays_alone(method, net, bad):
    images, targets = make_images(4), [4, 0, 2, 1]
    expected = method(net, net.conv).attribute(images, target=targets)
    images[2, 1, 3, 3] = bad
    with pytest.warns(UserWarning, match=r"examples \[2\] are NaN") as caught:
        maps = method(net, net.conv).attribute(images, target=targets)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert method.__name__ in str(caught[0].message)
    assert maps[2].isnan().all()
    others = [0, 1, 3]
    torch.testing.assert_close(maps[others], expected[others], **EXACT)


@every_method
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("target", [1, []], ids=repr)
def test_an_empty_batch_gives_an_empty_result(method, dims, target):
    net = make_net(dims)
    maps = method(net, net.relu).attribute(make_images(0, dims), target=target)
    assert maps.shape == (0, 1, *LAYER_SIZE[:dims])
    assert maps.dtype == torch.float64


def test_the_methods_are_captum_attributions_by_their_public_name():
    assert all(issubclass(method, Attribution) for method in METHODS)
