"""Classifiers by name: layers before the head, weights, and errors."""

import urllib.error

import pytest
import torch
from PIL import Image
from torchvision import models

from captum_unioncam import swin_reshape, vit_reshape
from captum_unioncam.models import Classifier, ModelError, load_classifier

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
