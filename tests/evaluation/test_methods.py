"""The one list of methods: complete, and true in what it says of each method."""

import inspect
import warnings

import numpy as np
import pytest
import torch
from captum.attr import (
    Attribution,
    GuidedGradCam,
    IntegratedGradients,
    LayerAttribution,
)
from headed import METHODS as HEADED
from layer_methods import LAYER_METHODS
from torch import nn

from captum_unioncam import attr
from captum_unioncam.evaluation.baselines import Edges, Gaussian, Random
from captum_unioncam.evaluation.labels import parse_method, parse_methods
from captum_unioncam.evaluation.lists import methods_table
from captum_unioncam.evaluation.methods import METHODS, Method
from captum_unioncam.evaluation.occlusion import Occlusion

# A constant or a broken map warns, and may cost fewer passes.
pytestmark = pytest.mark.filterwarnings("error::UserWarning")

# What "all" stands for.
ALL = [n for n in METHODS if n not in ("cam", "random", "gaussian", "edges")]
every_entry = pytest.mark.parametrize("name", METHODS)
every_of_a_layer = pytest.mark.parametrize("name", LAYER_METHODS)

EXAMPLES = 3
SIZE = (3, 4)
CHANNELS = 40
GROUPS = 32  # GroupCAM's default
SIMILAR = 36  # different groups of similar channels, FDCAM's
# In the first groups, of two channels each, so that every group has an active channel.
CONSTANT, ZERO = [0, 2], [4, 6, 8]
SAME = {"rtol": 0, "atol": 1e-12}
# Gradients of several inputs: how many.
BACKWARDS = {"smoothgradcamplusplus": 25, "integratedgradcam": 50}


class WideNet(nn.Module):
    """Has channels of all kinds, each of which raises the first output.

    Of the 40 channels of ``layer``, 37 are used (three are zero), and 35 of these are
    active (two have one value other than 0). No group of channels is constant.
    """

    def __init__(self, channels=CHANNELS):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        gains = 0.5 + torch.rand(channels, generator=generator).double()
        self.constant, self.zero = torch.zeros(2, channels, 1, 1).double()
        if channels == CHANNELS:
            gains[CONSTANT + ZERO] = 0
            self.constant[CONSTANT] = 0.3
        self.gains = gains.view(-1, 1, 1)
        self.powers = torch.linspace(0.5, 3, channels).double().view(-1, 1, 1)
        self.layer = nn.Identity()
        self.rows = 0
        self.graphs = 0

    def forward(self, x):
        self.rows += len(x)
        # Noise may turn a pixel negative.
        evidence = self.layer(x.abs() ** self.powers * self.gains + self.constant)
        logit = (evidence**2).mean((1, 2, 3)) + evidence.mean((1, 2, 3))
        output = torch.stack([4 * logit, torch.full_like(logit, 2)], 1)
        self.graphs += output.requires_grad
        return output


@pytest.fixture
def net():
    return WideNet()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(3)
    shape = (EXAMPLES, 1, *SIZE)
    return 0.1 + 0.9 * torch.rand(shape, generator=generator).double()


def concrete_attributions():
    """Every public attribution of the package that can be used as it is."""
    members = (getattr(attr, name) for name in attr.__all__)
    return [
        member
        for member in members
        if issubclass(member, Attribution) and not inspect.isabstract(member)
    ]


# The list


def test_every_public_attribution_is_listed_once_and_nothing_else():
    ours = [entry.attribution for entry in METHODS.values()]
    assert len(set(ours)) == len(ours)
    captums = {Occlusion, IntegratedGradients, GuidedGradCam}
    baselines = {Random, Gaussian, Edges}
    wrappers = {attr.AugmentedCAM}  # around another attribution
    assert set(ours) == {*concrete_attributions(), *captums, *baselines} - wrappers
    assert attr.UnionCAM in ours


def test_abstract_templates_are_public_and_not_listed():
    abstract = {
        member
        for member in map(attr.__dict__.get, attr.__all__)
        if inspect.isabstract(member)
    }
    assert attr.GradientCAM in abstract
    assert abstract.isdisjoint(entry.attribution for entry in METHODS.values())


@every_entry
def test_names_are_class_names_in_lower_case(name):
    attribution = METHODS[name].attribution
    assert name == attribution.__name__.lower()
    assert METHODS[name].title == attribution.__name__


@every_entry
def test_entries_say_where_the_method_is_from(name):
    entry = METHODS[name]
    assert entry.link.startswith("https://")
    assert entry.deviations
    assert any(year in entry.paper for year in map(str, range(2014, 2027)))


@every_entry
def test_options_and_ignored_options_are_the_methods_own(name):
    entry = METHODS[name]
    known = inspect.signature(entry.attribution.attribute).parameters
    constructors = inspect.signature(entry.attribution).parameters
    assert entry.ignores <= set(known) | set(constructors)


def test_titles_are_unique():
    titles = [entry.title for entry in METHODS.values()]
    assert len(set(titles)) == len(titles)


def test_entries_cannot_be_changed():
    with pytest.raises(AttributeError):
        METHODS["unioncam"].title = "other"


# Gradients


@every_of_a_layer
def test_methods_call_autograd_only_if_they_need_gradients(
    name, net, images, monkeypatch
):
    calls = []
    grad = torch.autograd.grad

    def counted(*args, **kwargs):
        calls.append(args)
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    HEADED[name].explain(net, net.layer)(images, target=0)
    expected = BACKWARDS.get(name, 1) if METHODS[name].needs_gradients else 0
    assert len(calls) == expected
    assert net.graphs == expected


@every_of_a_layer
def test_methods_without_gradients_explain_models_without_a_graph(name, net, images):
    def graphless(x):
        with torch.no_grad():
            return net(x)

    def explain():
        return HEADED[name].explain(graphless, net.layer)(images, target=0)

    if METHODS[name].needs_gradients:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            explain()
        texts = [str(warning.message) for warning in caught]
        assert sum("does not depend on `layer`" in text for text in texts) == 1
    else:
        maps = explain()  # warnings are errors here
        expected = HEADED[name].explain(net, net.layer)(images, target=0)
        assert torch.equal(maps, expected)
        assert maps.flatten(1).amax(1).gt(0).all()
        assert net.graphs == 0


# Forward passes


def passes(name, net, images):
    """Counts the passes of each example, which must be a whole number."""
    net.rows = 0
    HEADED[name].explain(net, net.layer)(images, target=0)
    each, rest = divmod(net.rows, len(images))
    assert rest == 0
    return each


def test_the_net_has_channels_of_all_kinds(net, images):
    seen = []
    net.layer.register_forward_hook(lambda *args: seen.append(args[2].detach()))
    net(images)
    channels = seen[0].flatten(2)
    assert channels.shape == (EXAMPLES, CHANNELS, SIZE[0] * SIZE[1])
    active = channels.amin(2) < channels.amax(2)
    used = channels.ne(0).any(2)
    assert active.sum(1).tolist() == [CHANNELS - 5] * EXAMPLES
    assert used.sum(1).tolist() == [CHANNELS - 3] * EXAMPLES
    for example in channels.numpy():
        lengths = np.linalg.norm(example, axis=1)
        cosines = example @ example.T / np.outer(*[np.where(lengths, lengths, 1)] * 2)
        nearest = cosines > np.percentile(cosines, 95, axis=1, keepdims=True)
        assert len({row.tobytes() for row in nearest}) == SIMILAR
    # The numbers that an expression may take one for another.
    assert len({35, 37, CHANNELS, SIZE[0] * SIZE[1], GROUPS, SIMILAR}) == 6


@every_of_a_layer
def test_forwards_are_the_passes_that_the_model_sees(name, net, images):
    numbers = {
        "active": CHANNELS - len(CONSTANT + ZERO),
        "used": CHANNELS - len(ZERO),
        "positions": SIZE[0] * SIZE[1],
        "groups": SIMILAR,
    }
    forwards = eval(METHODS[name].forwards, {"__builtins__": {}}, numbers)
    assert passes(name, net, images) == forwards


@pytest.mark.parametrize("channels", [5, 50])
def test_groupcams_32_is_the_most_groups_that_there_are(channels, images):
    expected = min(channels, GROUPS) + 3
    assert passes("groupcam", WideNet(channels), images) == expected


@every_of_a_layer
def test_a_single_example_goes_twice_where_nothing_else_is_its_reference(
    name, net, images
):
    each = passes(name, net, images)
    net.rows = 0
    HEADED[name].explain(net, net.layer)(images[:1], target=0)
    assert net.rows == each + (name in ("ablationcam", "fdcam", "reciprocam"))


# Options


class Recording(LayerAttribution):
    """Takes a few options, and records what it gets."""

    calls = []

    def __init__(self, forward_func, layer, device_ids=None, *, scoring_func=None):
        super().__init__(forward_func, layer, device_ids)
        self.calls.append((forward_func, layer, device_ids, scoring_func))

    def attribute(
        self,
        inputs,
        target=None,
        additional_forward_args=None,
        attribute_to_layer_input=False,
        *,
        theta=10.0,
        baselines=None,
        relu=False,
    ):
        self.calls.append((inputs, target, theta, baselines, relu))
        return "maps"


@pytest.fixture
def recorded():
    Recording.calls.clear()
    return Recording.calls


def entry_of(**settings):
    return Method(Recording, "2020", "https://", False, "1", "none", **settings)


def test_options_go_to_the_constructor_and_to_attribute_as_each_knows_them(recorded):
    explain = entry_of().explain(
        "model", "layer", theta=5, scoring_func="faster", max_channels=3, nonsense=1
    )
    assert explain("inputs", target=2) == "maps"
    assert recorded == [
        ("model", "layer", None, "faster"),
        ("inputs", 2, 5, None, False),
    ]


def test_options_that_nobody_offers_keep_their_defaults(recorded):
    entry_of().explain("model", "layer")("inputs")
    assert recorded[1:] == [("inputs", None, 10.0, None, False)]


def test_ignored_options_are_left_out_everywhere(recorded):
    entry = entry_of(ignores=frozenset({"baselines", "scoring_func"}))
    entry.explain("model", "layer", baselines=1, scoring_func="faster", theta=5)("x")
    assert recorded == [("model", "layer", None, None), ("x", None, 5, None, False)]


@every_of_a_layer
def test_a_bag_of_options_equals_the_methods_own(name, net, images):
    entry = HEADED[name]
    offered = {
        "baselines": 0.25,
        "theta": 30.0,
        "max_channels": 7,
        "num_samples": 2,
        "groups": 5,
        "perturbations_per_eval": 4,
        "score_func": torch.sigmoid,
        "no_such_option": 1,
    }
    maps = entry.explain(net, net.layer, **offered)(images, target=0)
    known = inspect.signature(entry.attribution.attribute).parameters
    own = {k: v for k, v in offered.items() if k in known and k not in entry.ignores}
    cam = entry.attribution(net, net.layer)
    assert torch.equal(maps, cam.attribute(images, target=0, **own))
    if set(own) - {"perturbations_per_eval"}:
        plain = entry.explain(net, net.layer)(images, target=0)
        assert not torch.allclose(maps, plain, **SAME)


def test_groupcam_keeps_its_blurred_baselines(net, images):
    explain = METHODS["groupcam"].explain(net, net.layer, baselines=0.25)
    cam = attr.GroupCAM(net, net.layer)
    maps = explain(images, target=0)
    assert torch.equal(maps, cam.attribute(images, 0))
    assert not torch.allclose(maps, cam.attribute(images, 0, baselines=0.25), **SAME)


def test_a_transform_is_not_left_out(recorded):
    with pytest.raises(TypeError, match="`reshape_transform`: .* does not take one"):
        entry_of().explain("model", "layer", reshape_transform=torch.relu)
    entry_of().explain("model", "layer", reshape_transform=None)


# Labels


def test_labels_name_a_method_and_its_options():
    assert parse_method("scorecam") == (METHODS["scorecam"], {})
    method, options = parse_method("unioncam:theta=30:max_channels=None")
    assert method is METHODS["unioncam"]
    assert options == {"theta": 30, "max_channels": None}


@pytest.mark.parametrize(
    "label, text",
    [
        ("uniocam", "no method 'uniocam'"),
        ("", "no method ''"),
        ("unioncam:std=1", "no option 'std'"),
        ("unioncam:target=1", "no option 'target'"),
        ("unioncam:theta=many", "the value of 'theta'"),
        ("unioncam:theta", "the value of 'theta'"),
        ("unioncam:theta=1:theta=1", "'theta' is given twice; give one value"),
    ],
)
def test_wrong_labels_are_refused(label, text):
    with pytest.raises(ValueError, match=text):
        parse_method(label)


def test_all_stands_for_every_method_that_is_not_named_before():
    labels = ["gradcam", "all", "unioncam:theta=30", "gradcam"]
    parsed = parse_methods(labels)
    rest = [name for name in ALL if name != "gradcam"]
    assert list(parsed) == ["gradcam", *rest, "unioncam:theta=30"]
    assert parsed["unioncam:theta=30"] == (METHODS["unioncam"], {"theta": 30})


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["GradCAM", "gradcam", "GRADCAM"], ["gradcam"]),
        (["UnionCAM:theta=30", "unioncam:theta=30"], ["unioncam:theta=30"]),
        (["All", "all"], ALL),
        (["ALL", "layercam"], ["layercam", *(n for n in ALL if n != "layercam")]),
        (["all", "cam"], [*ALL, "cam"]),
    ],
    ids=str,
)
def test_names_are_taken_in_any_case_and_once(labels, expected):
    assert sorted(parse_methods(labels)) == sorted(expected)


def test_a_name_in_another_case_that_may_be_two_is_refused(monkeypatch):
    monkeypatch.setitem(METHODS, "gradCAM", METHODS["gradcam"])
    assert list(parse_methods(["gradcam", "gradCAM"])) == ["gradcam", "gradCAM"]
    with pytest.raises(ValueError, match="no method 'GRADCAM'; did you mean"):
        parse_method("GRADCAM")


def test_the_table_has_a_line_for_each_method():
    header, rule, *lines = methods_table().splitlines()
    assert header.startswith("| name | class | paper | gradients | forward passes |")
    assert set(rule) == set("| -")
    assert [line.split(" | ")[0] for line in lines] == [f"| `{n}`" for n in METHODS]
    assert all(
        f"| {METHODS[n].deviations} |" in line
        for n, line in zip(METHODS, lines, strict=True)
    )
