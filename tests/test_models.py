"""Classifiers by name: layers before the head, weights, and errors."""

import sys
import urllib.error

import pytest
import torch
from PIL import Image
from torchvision import models

from captum_unioncam import swin_reshape, vit_reshape
from captum_unioncam.errors import ConfigError, ModelError
from captum_unioncam.models import (
    Classifier,
    class_index,
    classes_named,
    load_classifier,
    resolve_device,
    wordnet_ids,
)

# One small member of each class of torchvision's classifiers, and its head: what pools
# or flattens, and what follows.
HEADS = {
    "alexnet": ["avgpool", "classifier"],
    "convnext_tiny": ["avgpool", "classifier"],
    "densenet121": ["classifier"],
    "efficientnet_b0": ["avgpool", "classifier"],
    "googlenet": ["avgpool", "dropout", "fc"],
    "inception_v3": ["avgpool", "dropout", "fc"],
    "maxvit_t": ["classifier"],
    "mnasnet0_5": ["classifier"],
    "mobilenet_v2": ["classifier"],
    "mobilenet_v3_small": ["avgpool", "classifier"],
    "regnet_y_400mf": ["avgpool", "fc"],
    "resnet18": ["avgpool", "fc"],
    "shufflenet_v2_x0_5": ["fc"],
    "squeezenet1_1": ["classifier"],
    "swin_t": ["avgpool", "flatten", "head"],
    "vgg11": ["avgpool", "classifier"],
    "efficientnet_lite0": ["_avg_pooling", "_dropout", "_fc"],
}


@pytest.mark.filterwarnings("ignore:.*initialization:FutureWarning")
@pytest.mark.parametrize("name", HEADS)
def test_the_default_layer_is_the_last_spatial_activation_before_the_head(name):
    classifier = load_classifier(name, "none")
    events = []
    for layer, module in classifier.model.named_modules():
        if layer:
            module.register_forward_hook(
                lambda _, inputs, output, layer=layer: events.append((layer, output))
            )
    inputs = classifier.preprocess(Image.new("RGB", (300, 300))).unsqueeze(0)
    with torch.no_grad():
        assert classifier.model(inputs).shape == (1, 1000)
    names = [layer for layer, _ in events]
    last = len(names) - 1 - names[::-1].index(classifier.default_layer)
    activation = events[last][1]
    assert activation.dim() == 4 and min(activation.shape[2:]) > 1
    after = {layer.split(".")[0] for layer in names[last + 1 :]}
    assert after == set(HEADS[name])
    assert classifier.layer() is classifier.layer(classifier.default_layer)
    assert not classifier.model.training


def test_a_vision_transformer_is_explained_before_its_last_attention():
    classifier = load_classifier("vit_b_16", "none")
    blocks = classifier.model.encoder.layers
    assert classifier.layer() is blocks.encoder_layer_11.ln_1
    assert classifier.reshape_transform() is vit_reshape
    assert classifier.reshape_transform("encoder.ln") is vit_reshape
    assert classifier.layer("conv_proj") is classifier.model.conv_proj
    assert classifier.reshape_transform("conv_proj") is None


def test_the_layers_of_swin_have_channels_last_but_the_default():
    classifier = load_classifier("swin_t", "none")
    assert classifier.reshape_transform() is None
    assert classifier.reshape_transform("features.5") is swin_reshape
    assert classifier.reshape_transform("features.0") is swin_reshape
    assert classifier.reshape_transform("features.0.0") is None  # a convolution
    assert classifier.reshape_transform("norm") is swin_reshape


def test_a_model_without_a_spatial_layer_names_the_way_out():
    preprocess = load_classifier("resnet18", "none").preprocess
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 224 * 224, 2))
    with pytest.raises(ModelError, match="flat: `model` has no layer .* yourself"):
        Classifier("flat", flat, preprocess, []).layer()


def test_preprocessing_and_names_are_the_weights_own():
    classifier = load_classifier("resnet18", "none")
    metadata = models.ResNet18_Weights.DEFAULT
    assert classifier.categories == metadata.meta["categories"]
    image = Image.new("RGB", (300, 260), (200, 30, 90))
    assert torch.equal(classifier.preprocess(image), metadata.transforms()(image))


def test_the_default_model_preprocesses_as_it_was_trained():
    classifier = load_classifier()
    grey = classifier.preprocess(Image.new("RGB", (300, 260), (255, 127, 0)))
    assert grey.shape == (3, 224, 224)
    assert grey[:, 0, 0].tolist() == pytest.approx([1, 0, -127 / 128])


def test_weights_of_a_file_bring_their_own_number_of_classes(tmp_path):
    torch.manual_seed(0)
    own = models.resnet18(num_classes=7)
    torch.save(own.state_dict(), tmp_path / "own.pt")
    classifier = load_classifier("resnet18", str(tmp_path / "own.pt"))
    inputs = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(classifier.model(inputs), own.eval()(inputs))
    assert classifier.categories == []


def test_a_file_of_the_default_models_weights_is_the_default_model(tmp_path):
    default = load_classifier()
    torch.save(default.model.state_dict(), tmp_path / "same.pt")
    again = load_classifier(weights=str(tmp_path / "same.pt"))
    assert again.categories == default.categories
    state = again.model.state_dict()
    for name, value in default.model.state_dict().items():
        assert torch.equal(state[name], value)


@pytest.mark.filterwarnings("ignore:.*initialization:FutureWarning")
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("auxiliary", [True, False])
def test_weights_of_models_with_auxiliary_heads(name, auxiliary, tmp_path):
    options = {"num_classes": 4, "init_weights": False, "aux_logits": auxiliary}
    own = models.get_model(name, weights=None, **options).eval()
    own.transform_input = True  # as for the pretrained weights
    state = own.state_dict()
    torch.save(dict(sorted(state.items())), tmp_path / "own.pt")
    classifier = load_classifier(name, str(tmp_path / "own.pt"))
    inputs = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(classifier.model(inputs), own(inputs))


# Files of weights


@pytest.fixture(scope="module")
def own():
    """A model of 3 classes."""
    torch.manual_seed(0)
    return models.resnet18(num_classes=3).eval()


def loaded(path, content, save=torch.save):
    """Saves something, and returns the outputs of the model that is loaded from it."""
    save(content, path)
    classifier = load_classifier("resnet18", str(path))
    with torch.no_grad():
        return classifier.model(torch.ones(1, 3, 64, 64, device="cpu"))


WRAPPED = {
    "plain": lambda state: state,
    "of DataParallel": lambda state: torch.nn.DataParallel(state).state_dict(),
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "model beside a name": lambda state: {"model": "resnet18", "state_dict": state},
    "both": lambda state: {
        "state_dict": {f"module.{name}": value for name, value in state.items()}
    },
}


@pytest.mark.parametrize("form", WRAPPED)
def test_weights_are_read_in_the_forms_that_programs_write(form, own, tmp_path):
    given = own if form == "of DataParallel" else own.state_dict()
    outputs = loaded(tmp_path / "own.pt", WRAPPED[form](given))
    with torch.no_grad():
        assert torch.equal(outputs, own(torch.ones(1, 3, 64, 64)))


def test_the_versions_of_modules_survive_the_prefix(tmp_path):
    # MNASNet refuses a state without its version.
    net = torch.nn.DataParallel(models.mnasnet0_5(num_classes=3))
    torch.save(net.state_dict(), tmp_path / "own.pt")
    classifier = load_classifier("mnasnet0_5", str(tmp_path / "own.pt"))
    weight = classifier.model.state_dict()["layers.0.weight"]
    assert torch.equal(weight, net.module.layers[0].weight)


def test_safetensors_are_read(own, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    state = own.state_dict()
    outputs = loaded(tmp_path / "own.safetensors", state, safetensors.save_file)
    with torch.no_grad():
        assert torch.equal(outputs, own(torch.ones(1, 3, 64, 64)))
    (tmp_path / "own.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="must be a file that holds a state dict"):
        load_classifier("resnet18", str(tmp_path / "own.safetensors"))


def test_safetensors_need_their_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "own.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="run `pip install safetensors`"):
        load_classifier("resnet18", str(tmp_path / "own.safetensors"))


def test_two_state_dicts_in_a_file_are_refused(own, tmp_path):
    content = {"model": own.state_dict(), "state_dict": own.state_dict()}
    with pytest.raises(ModelError, match="it holds several: state_dict, model"):
        loaded(tmp_path / "own.pt", content)


def changed(own, **tensors):
    return own.state_dict() | {n.replace("_", "."): v for n, v in tensors.items()}


HEADS_OF_NONE = {
    "no classes": (
        lambda own: changed(own, fc_bias=torch.zeros(0), fc_weight=torch.zeros(0, 512)),
        "have a head of 0 classes, 'fc.bias'",
    ),
    "a claim": (
        lambda own: changed(own, fc_bias=torch.zeros(1).expand(10**14)),
        "'fc.bias' has fewer values than .100000000000000,.",
    ),
    "a claim in two": (
        lambda own: changed(
            own,
            fc_bias=torch.zeros(1).expand(10**9),
            fc_weight=torch.zeros(1, 1).expand(10**9, 512),
        ),
        "has fewer values than",
    ),
    "a bias without its weights": (
        lambda own: changed(own, fc_bias=torch.zeros(10**6)),
        "the weights do not fit resnet18: .*size mismatch for fc.weight",
    ),
    "sparse": (
        lambda own: changed(own, fc_bias=torch.zeros(3).to_sparse()),
        "'fc.bias' has fewer values than .3,.",
    ),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("kind", HEADS_OF_NONE)
def test_nothing_is_allocated_for_a_head_that_the_file_does_not_hold(
    kind, own, tmp_path, monkeypatch
):
    make, message = HEADS_OF_NONE[kind]
    get_model, devices = models.get_model, []

    def recorded(*arguments, **options):
        devices.append(torch.empty(0).device.type)
        return get_model(*arguments, **options)

    monkeypatch.setattr(models, "get_model", recorded)
    with pytest.raises(ModelError, match=message):
        loaded(tmp_path / "own.pt", make(own))
    assert set(devices) <= {"meta"}


def test_a_model_is_on_the_cpu_whatever_the_default_device(tmp_path, own):
    torch.set_default_device("meta")
    try:
        classifier = load_classifier("resnet18", "none")
        assert classifier.default_layer == "layer4"
        outputs = loaded(tmp_path / "own.pt", own.state_dict())
    finally:
        torch.set_default_device(None)
    assert {p.device.type for p in classifier.model.parameters()} == {"cpu"}
    assert outputs.shape == (1, 3)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", [1], {}, {"state": 1}])
def test_refuses_a_file_that_is_no_state_dict(tmp_path, content):
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ModelError, match="must be a file that holds a state dict"):
        load_classifier("resnet18", str(path))


def test_refuses_weights_without_a_head(tmp_path):
    torch.save({"conv1.weight": torch.tensor(3.0)}, tmp_path / "headless.pt")
    with pytest.raises(ModelError, match="the weights do not fit resnet18: "):
        load_classifier("resnet18", str(tmp_path / "headless.pt"))


def test_refuses_weights_of_another_model(tmp_path):
    torch.save(models.resnet34().state_dict(), tmp_path / "other.pt")
    with pytest.raises(ModelError, match="the weights do not fit resnet18: "):
        load_classifier("resnet18", str(tmp_path / "other.pt"))


def test_refuses_what_is_not_there():
    with pytest.raises(ModelError, match="there is no weights file 'lost.pt'; give 'd"):
        load_classifier("resnet18", "lost.pt")
    with pytest.raises(ModelError, match="no model 'resnet17'; did you mean 'resnet1"):
        load_classifier("resnet17", "none")
    classifier = load_classifier("resnet18", "none")
    with pytest.raises(ModelError, match="no layer 'layer5'; did you mean 'layer"):
        classifier.layer("layer5")
    with pytest.raises(ModelError, match="no layer 'xyz'; it has 'conv1', 'bn1'"):
        classifier.layer("xyz")


def test_weights_that_cannot_be_downloaded_name_the_way_out(monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", "/nonexistent-cache")
    monkeypatch.setattr("os.makedirs", lambda *args, **kwargs: None)
    with pytest.raises(ModelError, match="resnet18 cannot be downloaded .* state dict"):
        load_classifier("resnet18")


def test_the_default_model_needs_the_demo_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ModelError, match=r'pip install "captum-unioncam\[demo\]"'):
        load_classifier()


# Classes


def test_the_wordnet_ids_are_those_of_imagenets_classes_in_order():
    ids = wordnet_ids()
    assert len(ids) == len(set(ids)) == 1000 and list(ids) == sorted(ids)
    assert ids[:2] == ("n01440764", "n01443537")
    names = models.ResNet18_Weights.DEFAULT.meta["categories"]
    assert (names[1], names[281]) == ("goldfish", "tabby")
    assert ids[281] == "n02123045" and ids[999] == "n15075141"


NAMES = ["crane", "Tiger Cat", "crane", "an_underscore"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("0", [0]),
        ("003", [3]),
        ("4", []),
        ("9" * 30, []),
        ("-1", []),
        ("\u0663", []),  # a digit, but not of ours
        ("Crane", [0, 2]),
        ("tiger_cat", [1]),
        ("TIGER CAT", [1]),
        ("An Underscore", [3]),
        ("n01440764", []),
        ("tiger", []),
    ],
)
def test_a_name_stands_for_the_classes_that_have_it(name, found):
    assert classes_named(name, NAMES, len(NAMES)) == found


def test_a_wordnet_id_stands_for_a_class_of_a_model_of_1000():
    for names in ([], ["x"] * 1000):
        assert classes_named("n01443537", names, 1000) == [1]
        assert classes_named("N01443537", names, 1000) == [1]
    assert classes_named("n01443537", [], 1001) == []
    assert classes_named("n00000000", [], 1000) == []
    # A model may have its own class of that name.
    assert classes_named("n01443537", [*"abc", "n01443537"], 1000) == [3]
    assert class_index("n01443537", [], 1000) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crane", r"`target`: 'crane' is several classes, \[0, 2\]; give an index"),
        ("4", r"`target` must be in \[0, 3\], got 4"),
        ("-1", r"`target` must be in \[0, 3\], got -1"),
        ("9" * 5000, r"`target` must be in \[0, 3\], got 9+"),
        (
            "tigercat",
            "`target`: there is no class 'tigercat'; did you mean 'tiger cat'",
        ),
    ],
    ids=["several", "too large", "negative", "very large", "a typo"],
)
def test_a_class_that_cannot_be_told_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        class_index(name, NAMES, len(NAMES))


# Devices


@pytest.mark.parametrize(
    "name",
    [
        "",
        "tpu9000",
        "meta",
        "hpu",
        "privateuseone",
        "cuda:999",
        "xpu",
        "a\0b",
        "9" * 99,
    ],
)
def test_a_device_that_cannot_be_used_is_refused(name):
    with pytest.raises(ConfigError, match="`device` .*cannot be used: "):
        resolve_device(name)
