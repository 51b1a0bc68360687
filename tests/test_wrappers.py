"""SelectedOutput: models that return more than one tensor."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torchvision import models
from wrapped import EXACT, Packed, images

from captum_unioncam import GradCAM, SelectedOutput, UnionCAM

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:.* constant. they have one value:UserWarning"),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


Named = namedtuple("Named", ["hidden", "logits"])


@dataclass
class Answer:
    hidden: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True)
class Slotted:
    __slots__ = ("hidden", "logits")
    hidden: torch.Tensor
    logits: torch.Tensor


class ModelOutput(OrderedDict):
    """As HuggingFace's: a mapping, whose values are attributes and places too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __getitem__(self, key):
        if isinstance(key, str):
            return dict(self.items())[key]
        return self.to_tuple()[key]

    def to_tuple(self):
        return tuple(self[key] for key in self.keys())


class Property:
    def __init__(self, y):
        self._y = y

    @property
    def logits(self):
        return self._y


FORMS = {
    "dict": (lambda y: {"hidden": y[:, :1], "logits": y}, "logits"),
    "tuple": (lambda y: (y[:, :1], y), 1),
    "list": (lambda y: [y[:, :1], y], 1),
    "named by place": (lambda y: Named(y[:, :1], y), 1),
    "named by name": (lambda y: Named(y[:, :1], y), "logits"),
    "dataclass": (lambda y: Answer(y[:, :1], y), "logits"),
    "slots": (lambda y: Slotted(y[:, :1], y), "logits"),
    "model output by name": (
        lambda y: ModelOutput(hidden=y[:, :1], logits=y),
        "logits",
    ),
    "model output by place": (lambda y: ModelOutput(hidden=y[:, :1], logits=y), 1),
    "property": (Property, "logits"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_part_of_the_output_is_the_output(form):
    pack, key = FORMS[form]
    wrapped, inputs = SelectedOutput(Packed(pack), key), images()
    net = wrapped.model.net
    assert torch.equal(wrapped(inputs), net(inputs))
    assert torch.equal(wrapped(inputs, scale=2), 2 * net(inputs))
    maps = UnionCAM(wrapped, "model.net.relu").attribute(inputs, target=[0, 3, 1])
    expected = UnionCAM(net, net.relu).attribute(inputs, target=[0, 3, 1])
    torch.testing.assert_close(maps, expected, **EXACT)


def test_the_wrapped_model_keeps_its_mode_and_parameters():
    wrapped = SelectedOutput(Packed(lambda y: (y,)), 0)
    assert len(list(wrapped.parameters())) == len(list(wrapped.model.parameters()))
    wrapped.eval()
    assert not wrapped.model.net.relu.training
    wrapped.train()
    assert wrapped.model.net.relu.training


@pytest.mark.parametrize(
    ("pack", "key", "message"),
    [
        (lambda y: {"logits": y}, "logit", "dict has no 'logit'; it has 'logits'"),
        (
            lambda y: ModelOutput(logits=y),
            "out",
            "ModelOutput has no 'out'; .*'logits'",
        ),
        (
            lambda y: Answer(y, y),
            "out",
            "Answer has no 'out'; it has 'hidden', 'logits'",
        ),
        (lambda y: Named(y, y), "out", "Named has no 'out'; it has 'hidden', 'logits'"),
        (lambda y: Slotted(y, y), "out", "Slotted has no 'out'"),
        (lambda y: (y, y), 2, "tuple has no 2; it has 0, 1"),
        (lambda y: [y], 1, "list has no 1; it has 0"),
        (lambda y: (y, y), "logits", "tuple has no 'logits'"),
        (lambda y: ModelOutput(logits=y), 1, "ModelOutput has no 1; it has 0"),
        (lambda y: (), 0, "tuple has no 0"),
        (lambda y: y, "logits", "Tensor has no 'logits'"),
        (lambda y: None, "logits", "NoneType has no 'logits'"),
    ],
)
def test_a_part_that_is_not_there_is_named_with_those_that_are(pack, key, message):
    with pytest.raises(ValueError, match=f"`key`: the model's {message}"):
        SelectedOutput(Packed(pack), key)(images())


@pytest.mark.parametrize("output", [lambda y: Answer(y, y), lambda y: None])
def test_a_place_in_what_has_no_places_is_refused(output):
    with pytest.raises(ValueError, match="`key`: .* has no 0; it has "):
        SelectedOutput(Packed(output), 0)(images())


def test_a_place_in_a_tensor_is_no_example_of_it():
    """Of a model that returns a tensor already, 0 would be the first example."""
    with pytest.raises(ValueError, match="`key`: .* Tensor has no 0; it has no parts"):
        SelectedOutput(Packed(lambda y: y), 0)(images())


def test_negative_places_count_from_the_end():
    packed = Packed(lambda y: (y[:, :1], y))
    widths = [SelectedOutput(packed, key)(images()).shape[1] for key in (-1, -2)]
    assert widths == [4, 1]
    with pytest.raises(ValueError, match="the model's tuple has no -3; it has -2, -1"):
        SelectedOutput(packed, -3)(images())
    # A dict has keys, of which -1 may be one.
    keyed = Packed(lambda y: {"first": y, -1: y[:, :2]})
    assert SelectedOutput(keyed, -1)(images()).shape[1] == 2


def test_keys_that_are_numbers_are_keys():
    packed = Packed(lambda y: {1: y, 0: y[:, :1], 8: y[:, :2]})
    widths = [SelectedOutput(packed, key)(images()).shape[1] for key in (0, 1, 8)]
    assert widths == [1, 4, 2]


class Lazy:
    """An output with a property that raises, and one that does not."""

    def __init__(self, y):
        self._y = y

    @property
    def loss(self):
        raise NotImplementedError

    @property
    def logits(self):
        return self._y


def test_a_property_is_a_part_and_no_other_is_read():
    assert SelectedOutput(Packed(Lazy), "logits")(images()).shape == (3, 4)


def test_a_part_that_is_none_is_not_said_to_be_missing_and_there():
    """Such as the loss of a model that got no labels."""
    for pack in (
        lambda y: {"loss": None, "logits": y},
        lambda y: Answer(None, y),
        lambda y: (None, y),
    ):
        key = {dict: "loss", Answer: "hidden", tuple: 0}[type(pack(torch.zeros(1)))]
        with pytest.raises(TypeError, match="`key`: .* got a NoneType"):
            SelectedOutput(Packed(pack), key)(images())


def test_a_part_that_is_no_tensor_is_refused():
    for pack, key in [
        (lambda y: {"logits": [y]}, "logits"),
        (lambda y: ("logits", y), 0),
        (lambda y: Answer({"hidden": y}, y), "hidden"),
        (lambda y: [y.numpy(force=True)], 0),
    ]:
        with pytest.raises(TypeError, match="`key`: .* must be a Tensor, got a "):
            SelectedOutput(Packed(pack), key)(images())


@pytest.mark.filterwarnings("ignore:.*initialization:FutureWarning")
def test_a_model_of_torchvision_that_returns_a_named_tuple():
    """In train mode, googlenet returns its auxiliary outputs too."""
    net = models.googlenet(weights=None, num_classes=3).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.Dropout):
            module.eval()
    inputs = torch.rand(2, 3, 64, 64)
    assert type(net(inputs)).__name__ == "GoogLeNetOutputs"
    wrapped = SelectedOutput(net, "logits")
    maps = GradCAM(wrapped, "model.inception5b").attribute(inputs, target=1)
    assert maps.shape == (2, 1, 2, 2) and maps.isfinite().all()
