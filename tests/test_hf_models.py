"""HuggingFace's image classifiers, from folders that the tests write."""

import functools
import pickle
import sys

import pytest
import torch
from checkpoints import CLASSES, KINDS, NAMES, SIDE, save_checkpoint
from folders import picture
from PIL import Image

from captum_unioncam import GradCAM, UnionCAM, vit_reshape
from captum_unioncam.errors import ConfigError, ModelError
from captum_unioncam.models import class_index, load_classifier

transformers = pytest.importorskip("transformers")

# The layer to explain, and the tokens before those of the patches.
READINGS = {
    "vit": ("layernorm_before", 1),
    "deit": ("layernorm_before", 2),
    "vit_msn": ("layernorm_before", 1),
    "dinov2": ("norm1", 1),
    "dinov2_with_registers": ("norm1", 5),
    "swin": ("swin.layernorm", 0),
    "swinv2": ("swinv2.layernorm", 0),
}
GRIDS = {"swin": 4, "swinv2": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns the folder of a tiny checkpoint, by its kind."""

    @functools.cache
    def folder(kind):
        path = tmp_path_factory.mktemp(kind)
        save_checkpoint(path, kind)
        return path

    return folder


def gradient_of(model, layer, inputs):
    """Returns the gradient of a class by the tensor of a layer."""
    seen = []
    handle = layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    scores = model(inputs)
    handle.remove()
    return torch.autograd.grad(scores[:, 1].sum(), seen[0])[0]


@pytest.fixture(scope="module")
def vit(folders):
    return load_classifier(f"hf:{folders('vit')}")


def test_a_folder_brings_its_weights_its_processor_and_its_names(tmp_path):
    model, processor = save_checkpoint(tmp_path)
    classifier = load_classifier(f"hf:{tmp_path}")
    image = picture(size=(40, 60))
    expected = processor(image, return_tensors="pt")["pixel_values"]  # (1, 3, 32, 32)
    inputs = classifier.preprocess(image)
    assert torch.equal(inputs, expected[0])
    with torch.no_grad():
        logits = classifier.model(inputs.unsqueeze(0))
        assert torch.equal(logits, model(expected).logits)
    assert classifier.categories == [NAMES[index] for index in range(CLASSES)]
    assert not classifier.model.training
    assert class_index("Tinca_tinca", classifier.categories, CLASSES) == 0


def test_the_preprocessing_goes_to_other_processes(vit):
    image = picture()
    again = pickle.loads(pickle.dumps(vit.preprocess))
    assert torch.equal(again(image), vit.preprocess(image))


def test_mean_std_and_black_are_the_processors(vit):
    for values, expected in (
        (vit.mean, [0.5, 0.4, 0.3]),
        (vit.std, [0.2, 0.25, 0.5]),
        (vit.black, [-2.5, -1.6, -0.6]),
    ):
        assert values.shape == (1, 3, 1, 1)
        assert values.flatten().tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.filterwarnings("ignore:.* are constant")  # of random weights
@pytest.mark.parametrize("kind", READINGS)
def test_the_tokens_of_a_transformer_are_read_by_its_configuration(kind, folders):
    classifier = load_classifier(f"hf:{folders(kind)}")
    end, prefix = READINGS[kind]
    assert classifier.default_layer.startswith("model.")
    assert classifier.default_layer.endswith(end)
    reshape = classifier.reshape_transform()
    assert reshape.func is vit_reshape
    assert reshape.keywords == {"prefix_tokens": prefix}
    inputs = torch.rand(2, 3, SIDE, SIDE)
    cam = GradCAM(classifier.model, classifier.layer(), reshape_transform=reshape)
    maps = cam.attribute(inputs, 1)
    side = GRIDS.get(kind, SIDE // 8)
    assert maps.shape == (2, 1, side, side)
    # Every position of the layer decides on the class.
    gradients = reshape(gradient_of(classifier.model, classifier.layer(), inputs))
    assert bool((gradients.abs().sum(1) > 0).all())


def test_a_convnet_needs_no_transform(folders):
    classifier = load_classifier(f"hf:{folders('resnet')}")
    assert classifier.reshape_transform() is None
    inputs = torch.rand(1, 3, SIDE, SIDE)
    maps = UnionCAM(classifier.model, classifier.layer()).attribute(inputs, 0)
    assert maps.dim() == 4


def test_a_convolution_of_a_transformer_has_channels_first(vit):
    names = [name for name, _ in vit.model.named_modules()]
    (projection,) = [name for name in names if name.endswith("projection")]
    assert vit.reshape_transform(projection) is None


def test_another_size_mean_and_std(folders):
    name = f"hf:{folders('swin')}"
    classifier = load_classifier(name, size=64, mean=0.25, std=[0.5, 1, 2])
    inputs = classifier.preprocess(Image.new("RGB", (90, 70), "white"))
    assert inputs.shape == (3, 64, 64)
    assert inputs[:, 0, 0].tolist() == pytest.approx([1.5, 0.75, 0.375])


def test_a_crop_of_another_size_is_the_same_share_of_the_image(tmp_path):
    save_checkpoint(tmp_path, "resnet")
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": SIDE, "width": SIDE}
    )
    processor.save_pretrained(tmp_path)
    classifier = load_classifier(f"hf:{tmp_path}", size=64)
    image = Image.new("RGB", (80, 80))
    image.paste("white", (8, 0, 72, 80))  # of 80 pixels, the crop shows 64
    inputs = classifier.preprocess(image)
    assert inputs.shape == (3, 64, 64)
    assert torch.equal(inputs[0], inputs[0, :1, :1].expand(64, 64))


def test_a_size_that_the_model_does_not_take_is_refused(folders):
    with pytest.raises(ModelError, match="cannot run on an image of 3 x 64 x 64"):
        load_classifier(f"hf:{folders('vit')}", size=64)


def test_random_weights_and_those_of_a_file(folders, tmp_path):
    name = f"hf:{folders('vit')}"
    torch.manual_seed(3)
    first = load_classifier(name, "none")
    torch.manual_seed(3)
    second = load_classifier(name, "none")
    inputs = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        outputs = first.model(inputs)
        assert torch.equal(outputs, second.model(inputs))
        assert not torch.equal(outputs, load_classifier(name).model(inputs))
        torch.save(first.model.model.state_dict(), tmp_path / "own.pt")
        again = load_classifier(name, str(tmp_path / "own.pt"))
        assert torch.equal(outputs, again.model(inputs))
    torch.save({"x": torch.zeros(3)}, tmp_path / "own.pt")
    with pytest.raises(ModelError, match="the weights do not fit hf:"):
        load_classifier(name, str(tmp_path / "own.pt"))


def test_a_checkpoint_without_a_head_is_refused(tmp_path):
    model, processor = save_checkpoint(tmp_path)
    model.vit.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no weights for classifier.bias, .* it w"):
        load_classifier(f"hf:{tmp_path}")


@pytest.mark.parametrize("name", ["./lost", "/lost/model", "a/b/c", ""])
def test_a_folder_that_is_not_there_is_refused(name):
    with pytest.raises(ModelError, match=f"there is no folder '{name}'; give one that"):
        load_classifier(f"hf:{name}")


def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="cannot be loaded: ") as raised:
        load_classifier(f"hf:{tmp_path}")  # an empty folder
    assert "\n" not in f"{raised.value}"

    def offline(*args, **kwargs):
        raise OSError("no network\nmore")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    with pytest.raises(ModelError, match="^hf:some/model cannot be loaded: no network"):
        load_classifier("hf:some/model")


def test_transformers_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r'pip install "captum-unioncam\[hf\]"'):
        load_classifier("hf:some/model")


def test_wrong_numbers_are_refused_before_anything_is_loaded():
    for options, message in (
        ({"size": 0}, "`size` must be a positive int"),
        ({"std": 0}, "`std` must be positive"),
        ({"mean": [0.5, 0.5]}, "`mean` must be one number, or 3, one a colour, got 2"),
        ({"mean": ["x"]}, "`mean` must be a finite number, got 'x'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_classifier("hf:some/model", **options)


def test_every_kind_has_a_reading():
    assert set(KINDS) == {*READINGS, "resnet"}
