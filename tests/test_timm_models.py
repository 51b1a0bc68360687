"""timm's models by name: preprocessing, names, layers and how they are read."""

import functools
import sys
import types

import pytest
import torch
from PIL import Image

from captum_unioncam import GradCAM, RegionCAM, swin_reshape, vit_reshape
from captum_unioncam.errors import ModelError
from captum_unioncam.models import class_index, from_timm, load_classifier

timm = pytest.importorskip("timm")

# Small models that few operations run.
CONVNET, VIT = "timm:lcnet_035", "timm:vit_tiny_patch16_224"


@functools.cache
def classifier_of(name):
    return load_classifier(name, "none")


def test_preprocessing_and_names_are_of_timms_metadata():
    classifier = load_classifier("timm:vit_tiny_patch16_224.augreg_in21k", "none")
    inputs = classifier.preprocess(Image.new("RGB", (500, 300), (255, 0, 0)))
    assert inputs.shape == (3, 224, 224)
    assert inputs[:, 0, 0].tolist() == [1, -1, -1]  # its mean and std are 0.5
    assert classifier.mean.flatten().tolist() == pytest.approx([0.5] * 3)
    assert classifier.std.flatten().tolist() == pytest.approx([0.5] * 3)
    assert len(classifier.categories) == 21843
    names = classifier_of(CONVNET).categories
    assert names[0] == "tench, Tinca tinca" and len(names) == 1000
    assert class_index("tench", names, 1000) == 0
    assert class_index("n01440764", names, 1000) == 0
    black = classifier_of(CONVNET).black.flatten().tolist()
    expected = [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    assert black == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("classes, names", [(2, ["a cat", "dog"]), (3, [])])
def test_names_of_a_model_are_those_of_its_own_classes(classes, names):
    config = {"num_classes": 2, "label_names": ["cat", "dog"]}
    config["label_descriptions"] = {"cat": "a cat"}
    model = types.SimpleNamespace(num_classes=classes, pretrained_cfg=config)
    assert from_timm._categories(timm.data, model) == names


def test_a_convnet_is_explained_at_its_last_spatial_activation():
    classifier = classifier_of(CONVNET)
    assert classifier.reshape_transform() is None
    inputs = torch.rand(1, 3, 64, 64)
    maps = GradCAM(classifier.model, classifier.layer()).attribute(inputs, 3)
    assert maps.shape == (1, 1, 2, 2)


# The layer to explain, and the tokens before those of the patches.
TOKENS = {
    VIT: ("blocks.11.norm1", 1),
    "timm:deit_tiny_distilled_patch16_224": ("blocks.11.norm1", 2),
    "timm:vit_pwee_patch16_reg1_gap_256": ("blocks.15", 1),
    "timm:vit_relpos_small_patch16_224": ("blocks.11", 0),
    "timm:mixer_s32_224": ("norm", 0),
}


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_are_read_by_the_class_of_the_model(name):
    classifier = classifier_of(name)
    layer, prefix = TOKENS[name]
    assert classifier.default_layer == layer
    reshape = classifier.reshape_transform()
    assert reshape.func is vit_reshape
    assert reshape.keywords == {"prefix_tokens": prefix}


def test_a_vit_is_explained():
    classifier = classifier_of(VIT)
    reshape = classifier.reshape_transform()
    cam = RegionCAM(classifier.model, classifier.layer(), reshape_transform=reshape)
    maps = cam.attribute(torch.rand(1, 3, 224, 224), 0, max_channels=2)
    assert maps.shape == (1, 1, 14, 14)


def test_a_convolution_has_channels_first():
    assert classifier_of(VIT).reshape_transform("patch_embed.proj") is None


def test_a_swin_has_channels_last():
    classifier = load_classifier("timm:swin_tiny_patch4_window7_224", "none")
    assert classifier.default_layer == "norm"
    for layer in ("norm", "layers.1", "layers.2.blocks.1", "layers.0.blocks.0.norm1"):
        assert classifier.reshape_transform(layer) is swin_reshape
    for layer in ("layers.0.blocks.0.mlp", "layers.0.blocks.0.attn", "head"):
        assert classifier.reshape_transform(layer) is None  # refused as tokens, later


def test_a_transformer_that_is_not_known_is_refused_with_the_way_out():
    classifier = load_classifier("timm:cait_xxs24_224", "none")
    with pytest.raises(ModelError, match="tokens.* name the layer yourself.*reshape=."):
        classifier.layer()
    assert classifier.reshape_transform("blocks.3") is None
    with pytest.raises(ValueError, match="tokens.* give reshape_transform="):
        GradCAM(classifier.model, "blocks.3").attribute(torch.rand(1, 3, 224, 224), 0)


def test_another_size_reaches_the_model_and_the_preprocessing():
    classifier = load_classifier(VIT, "none", size=64, mean=0, std=1)
    inputs = classifier.preprocess(Image.new("RGB", (100, 80), "white"))
    assert inputs.shape == (3, 64, 64) and bool((inputs == 1).all())
    assert classifier.logits().shape == (1, 1000)


def test_weights_of_a_file_bring_their_number_of_classes(tmp_path):
    torch.manual_seed(0)
    own = timm.create_model("lcnet_035", num_classes=5).eval()
    torch.save({"state_dict": own.state_dict()}, tmp_path / "own.pt")
    classifier = load_classifier(CONVNET, str(tmp_path / "own.pt"))
    inputs = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(classifier.model(inputs), own(inputs))
    assert classifier.categories == []
    torch.save({"x": torch.zeros(3)}, tmp_path / "own.pt")
    with pytest.raises(ModelError, match="the weights do not fit timm:lcnet_035"):
        load_classifier(CONVNET, str(tmp_path / "own.pt"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:lcnet_53", "no model 'timm:lcnet_53'; did you mean 'timm:lcnet_"),
        ("timm:", "no model 'timm:'"),
        (
            "timm:lcnet_050.lost",
            "timm:lcnet_050 has no weights 'lost'; it has ra2_in1k",
        ),
        ("lcnet_050", "no model 'lcnet_050'; did you mean 'timm:lcnet_050'"),
        ("tim:lcnet_050", "no module 'tim', .*; did you mean 'timm:'"),
        ("timm:vit_small_patch14_dinov2", "has no classes: it makes features"),
    ],
)
def test_a_wrong_name_is_refused_in_plain_words(name, message):
    with pytest.raises(ModelError, match=message):
        load_classifier(name, "none")


def test_weights_that_cannot_be_downloaded_name_the_way_out(monkeypatch):
    def offline(*args, **options):
        raise OSError("no network\nmore")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ModelError, match="cannot be downloaded .no network.; give a st"
    ):
        load_classifier(CONVNET)


def test_timm_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r'pip install "captum-unioncam\[timm\]"'):
        load_classifier(CONVNET, "none")


ARCHITECTURES = [
    "beit_base_patch16_224",
    "convnext_atto",
    "deit3_small_patch16_224",
    "densenet121",
    "dla34",
    "edgenext_xx_small",
    "efficientnet_b0",
    "eva02_tiny_patch14_336",
    "ghostnet_100",
    "mixer_s32_224",
    "mobilenetv3_small_050",
    "mobilevit_xxs",
    "nfnet_l0",
    "poolformer_s12",
    "regnety_002",
    "repvgg_a0",
    "resnest14d",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "vit_tiny_patch16_224",
]


@pytest.mark.filterwarnings("ignore:.* are constant")  # of random weights
@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_are_explained_as_they_are(name):
    torch.manual_seed(0)
    classifier = load_classifier(f"timm:{name}", "none")
    assert len(classifier.categories) == classifier.logits().shape[1]
    inputs = classifier.preprocess(Image.new("RGB", (300, 260), (200, 90, 30)))[None]
    reshape = classifier.reshape_transform()
    cam = GradCAM(classifier.model, classifier.layer(), reshape_transform=reshape)
    maps = cam.attribute(inputs, 0)
    assert maps.shape[:2] == (1, 1) and min(maps.shape[2:]) > 1
    assert maps.isfinite().all()
    assert classifier.default_layer in {n.name for n in classifier.spatial_layers()}
    assert torch.allclose(classifier.plain(0)[..., :1, :1], classifier.black)
