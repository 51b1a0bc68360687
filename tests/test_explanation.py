"""One call: what it chooses, what it says of it, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from captum_unioncam import Explanation, LayerCAM, RegionCAM, UnionCAM, explain
from captum_unioncam.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
# (0 - mean) / std, by hand.
BLACK = torch.tensor([-2.0, -2.0, -1.2]).view(1, 3, 1, 1)


def net(channels=3, classes=4, scale=20):
    """Returns a small classifier that is sure of its classes."""
    torch.manual_seed(0)
    head = nn.Linear(5 * 8 * 8, classes)
    layers = [nn.Conv2d(channels, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), head]
    head.weight.data.mul_(scale)
    return nn.Sequential(*layers).eval()


def images(count=2, channels=3):
    torch.manual_seed(1)
    return torch.rand(count, channels, 8, 8)


def normalised(values):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (values - mean) / std


class Wrapped(nn.Module):
    """A model that returns a dict of what is made of its scores."""

    def __init__(self, **parts):
        super().__init__()
        self.inner, self.parts = net(), parts

    def forward(self, inputs):
        scores = self.inner(inputs)
        return {name: make(scores) for name, make in self.parts.items()}


# What is chosen


def test_it_is_unioncam_of_the_predicted_class_over_black():
    model, inputs = net(), normalised(images())
    explanation = explain(model, inputs, mean=MEAN, std=STD)
    scores = model(inputs).softmax(1)
    assert torch.equal(explanation.targets, scores.argmax(1))
    torch.testing.assert_close(explanation.confidences, scores.max(1).values)
    torch.testing.assert_close(explanation.scores, scores)
    torch.testing.assert_close(explanation.baselines, BLACK)
    assert explanation.layer == "1" and explanation.model is model
    maps, details = UnionCAM(model, model[1]).attribute(
        inputs,
        explanation.targets,
        baselines=BLACK,
        fidelity=0.99,
        return_details=True,
    )
    assert list(explanation.maps) == ["unioncam"]
    torch.testing.assert_close(explanation.maps["unioncam"], maps)
    gains = explanation.details["unioncam"].part_gains
    torch.testing.assert_close(gains, details.part_gains)
    torch.testing.assert_close(explanation.pictures, images())


def test_it_says_what_it_chose():
    names = ["cat", "dog", "fox", "owl"]
    explanation = explain(
        net(), normalised(images()), mean=MEAN, std=STD, categories=names
    )
    shown = repr(explanation)
    assert shown.startswith("Explanation of 2 images\n")
    for target, confidence in zip(
        explanation.targets, explanation.confidences, strict=True
    ):
        assert f"{target} {names[target]} ({confidence:.3f})" in shown
    for text in (
        ": predicted",
        "unioncam of 8 x 8",
        "1, found: the last spatial activation",
        "black, from mean and std",
        "un-normalised",
        "0.99 by estimate: some scores are predicted (1 scores all)",
    ):
        assert text in shown
    assert "unsure" not in shown


def test_what_is_given_is_not_chosen():
    model = net()
    explanation = explain(
        model, images(), 2, layer="0", baselines=0.25, fidelity=1, categories="abcd"
    )
    assert explanation.targets.tolist() == [2, 2] and explanation.layer == "0"
    assert explanation.baselines == 0.25
    shown = repr(explanation)
    assert "): given" in shown and "0, given" in shown and "1: the exact maps" in shown
    maps = UnionCAM(model, model[0]).attribute(images(), 2, baselines=0.25)
    torch.testing.assert_close(explanation.maps["unioncam"], maps)
    by_module = explain(model, images(), 2, layer=model[0], baselines=0.25, fidelity=1)
    assert by_module.layer == "0"
    torch.testing.assert_close(by_module.maps["unioncam"], maps)


def test_parts_of_a_union_are_instances_or_names():
    model = net()
    parts = [LayerCAM(model, model[0]), RegionCAM(model, model[0])]
    given = explain(model, images(), 2, layer="0", parts=parts).maps["unioncam"]
    label = "unioncam:parts=layercam+regioncam"
    named = explain(model, images(), 2, layer="0", methods=label).maps[label]
    assert torch.equal(given, named)
    paper = explain(model, images(), 2, layer="0").maps["unioncam"]
    assert not torch.equal(given, paper)


@pytest.mark.parametrize("target", [[1, 3], (1, 3), torch.tensor([1, 3])])
def test_each_image_may_have_a_target_of_its_own(target):
    explanation = explain(net(), images(), target, methods="gradcam")
    assert explanation.targets.tolist() == [1, 3]
    alone = explain(net(), images()[1:], 3, methods="gradcam")
    torch.testing.assert_close(explanation.maps["gradcam"][1:], alone.maps["gradcam"])


@pytest.mark.parametrize(
    "methods", ["gradcam, UnionCAM:theta=30", ["gradcam", "unioncam:theta=30"]]
)
def test_methods_are_named_as_in_the_command(methods):
    explanation = explain(net(), images(), methods=methods)
    assert list(explanation.maps) == ["gradcam", "unioncam:theta=30"]
    assert list(explanation.details) == ["unioncam:theta=30"]
    titles = [axis.get_title() for axis in explanation.figure().axes]
    assert titles[:3] == ["image", "GradCAM", "UnionCAM:theta=30"]


def test_methods_get_those_options_that_they_have():
    explanation = explain(
        net(), images(), methods="unioncam,gradcam", max_channels=2, fidelity=0
    )
    assert explanation.details["unioncam"].scored_channels.tolist() == [2, 2]


def test_methods_without_a_layer_need_none():
    explanation = explain(net(), images(), methods="rise", num_masks=3)
    assert explanation.layer is None and "none: no method takes one" in repr(
        explanation
    )
    assert explanation.maps["rise"].shape[2:] == (8, 8)
    assert "not used: the maps are exact" in repr(explanation)


def test_a_single_image_is_a_batch_of_one():
    explanation = explain(net(), images()[0], methods="gradcam")
    assert len(explanation) == 1 and repr(explanation).startswith("Explanation of 1 im")
    both = explain(net(), images(), methods="gradcam")
    torch.testing.assert_close(both.maps["gradcam"][:1], explanation.maps["gradcam"])


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        ({"logits": lambda s: s, "aux": lambda s: -s}, "logits"),
        ({"out": lambda s: s, "loss": lambda s: s.sum()}, "out"),
        ({"out": lambda s: s, "maps": lambda s: s[:, :, None, None]}, "out"),
    ],
)
def test_the_scores_of_a_dict_are_found(parts, key):
    model = Wrapped(**parts).eval()
    explanation = explain(model, images())
    assert f"{key!r} of the model's dict" in repr(explanation)
    assert explanation.layer == "inner.1"
    torch.testing.assert_close(
        explanation.maps["unioncam"], explain(net(), images()).maps["unioncam"]
    )
    assert explanation.model.model is model


def test_a_dict_of_several_scores_needs_a_choice():
    model = Wrapped(first=lambda s: s, second=lambda s: -s).eval()
    with pytest.raises(ConfigError, match=r"2 parts of shape \(2, classes\).*Selected"):
        explain(model, images())


# Images and baselines


def test_images_that_are_not_normalised_are_masked_with_black():
    explanation = explain(net(), images())
    assert explanation.baselines == 0 and "0, which is black" in repr(explanation)
    assert torch.equal(explanation.pictures, images())


def test_z_scored_images_are_scaled_to_be_seen_and_give_a_warning():
    inputs = torch.tensor([-1.0, 0, 1, 3]).repeat(2, 3, 8, 2)
    inputs[1] *= 2
    with pytest.warns(UserWarning, match="from -2 to 6, and no `mean` and `std`: what"):
        explanation = explain(net(), inputs, methods="gradcam")
    # (value + 1) / 4, each image by its own range.
    expected = torch.tensor([0.0, 0.25, 0.5, 1]).repeat(2, 3, 8, 2)
    torch.testing.assert_close(explanation.pictures, expected)
    assert "0, which is not black" in repr(explanation)
    assert "each scaled to its own range" in repr(explanation)


@pytest.mark.filterwarnings("error")
def test_a_baseline_or_bytes_leave_no_doubt():
    z_scored = 2 * images() - 1
    assert "given" in repr(explain(net(), z_scored, methods="gradcam", baselines=0))
    explanation = explain(net(), 255 * images(), methods="gradcam")
    assert "0, which is black" in repr(explanation)
    assert explanation.pictures.max() == 1
    constant = explain(net(), torch.full((1, 3, 8, 8), 7.0), methods="gradcam")
    assert not constant.pictures.any()


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_images_of_other_channels_are_shown_in_grey(channels):
    inputs = images(channels=channels)
    explanation = explain(net(channels), inputs, methods="gradcam")
    torch.testing.assert_close(explanation.pictures, inputs.mean(1, keepdim=True))
    grey = "the mean of the channels" in repr(explanation)
    assert grey == (channels != 1)
    assert explanation.overlays()["gradcam"].shape == (2, 8, 8, 3)


def test_pil_images_are_preprocessed():
    steps = [transforms.Resize((8, 8)), transforms.ToTensor()]
    preprocess = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])
    grey = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    pictures = [Image.fromarray(grey), Image.fromarray(grey[::-1].copy())]
    explanation = explain(net(), pictures, preprocess=preprocess)
    inputs = torch.stack([preprocess(picture) for picture in pictures])
    tensors = explain(net(), inputs, mean=MEAN, std=STD)
    torch.testing.assert_close(explanation.maps, tensors.maps)
    torch.testing.assert_close(explanation.pictures, tensors.pictures)
    assert "black, preprocessed" in repr(explanation)
    alone = explain(net(), pictures[1], preprocess=preprocess)
    torch.testing.assert_close(alone.maps["unioncam"], tensors.maps["unioncam"][1:])


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        (torch.rand(8, 8), {}, ValueError, r"`images` must be \(N, C, H, W\).*\(8, 8"),
        (torch.rand(0, 3, 8, 8), {}, ValueError, "and not empty, got"),
        ([torch.rand(3, 8, 8)], {}, TypeError, "or PIL images .*got a list"),
        ("cat.png", {}, TypeError, "or PIL images with `preprocess`, got a str"),
        ([], {"preprocess": len}, ValueError, "at least one image, got none"),
        (Image.new("RGB", (8, 8)), {}, TypeError, "PIL images, which need `preproc"),
        (
            torch.rand(1, 3, 8, 8),
            {"preprocess": len},
            ValueError,
            "`preprocess` is for",
        ),
        (
            Image.new("RGB", (8, 8)),
            {"preprocess": transforms.ToTensor(), "mean": 0.5},
            ValueError,
            "`mean` and `std` are for tensors",
        ),
        (
            [Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))],
            {"preprocess": transforms.ToTensor()},
            ValueError,
            r"one size \(C, H, W\) for all images, got \(3, 8, 8\), \(3, 8, 9\)",
        ),
        (
            Image.new("RGB", (8, 8)),
            {"preprocess": lambda image: torch.zeros(3, 8, 8)},
            DataError,
            "`preprocess` must tell a black image from a white one",
        ),
        (
            torch.rand(1, 3, 8, 8),
            {"mean": 5.0, "std": 2.0},
            ValueError,
            r"`images` must be in \[0, 1\] after undoing `mean` and `std`, got values",
        ),
        (
            torch.full((1, 3, 8, 8), 0.5),
            {"std": 0.0},
            ValueError,
            "`std` must not be 0",
        ),
        (
            torch.rand(1, 3, 8, 8),
            {"mean": [0.5, 0.5]},
            ValueError,
            "`mean` must be one",
        ),
    ],
)
def test_other_images_are_refused(given, options, error, message):
    with pytest.raises(error, match=message):
        explain(net(), given, **options)


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": "gradcan"}, ConfigError, "`methods`: .*did you mean 'gradcam'"),
        ({"methods": []}, ConfigError, "`methods` must name at least one method"),
        ({"thet": 3}, TypeError, "`thet` is an option of none .*did you mean 'theta'"),
        ({"methods": "gradcam", "theta": 3}, TypeError, "`theta` is an option of none"),
        ({"return_details": True}, TypeError, "`return_details` is an option of none"),
        ({"fidelity": 2}, ValueError, r"`fidelity` must be a finite number in \[0, 1"),
        ({"target": 4}, ValueError, r"`target` must be in \[0, 3\], got 4"),
        ({"target": -1}, ValueError, r"`target` must be in \[0, 3\], got -1"),
        ({"target": [0, 1, 2]}, ValueError, "one class, or one for each of 2 images"),
        ({"target": 1.5}, TypeError, "`target` must be whole numbers, got 1.5"),
        ({"target": True}, TypeError, "`target` must be whole numbers, got True"),
        ({"layer": "2"}, ValueError, "`layer` must have an activation"),
        ({"layer": "9"}, ValueError, "`layer`: Sequential has no layer '9'"),
        ({"layer": nn.ReLU()}, ValueError, "`layer` must be a module of `model`, got"),
        ({"categories": ["cat"]}, ValueError, "`categories` must be one name for .* 4"),
    ],
)
def test_other_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        explain(net(), images(), **options)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: x, TypeError, "`model` must be a torch.nn.Module"),
        (net().train(), ValueError, r"call model.eval\(\) first"),
        (nn.Identity().eval(), ConfigError, r"\(2, classes\), got the shape \(2, 3, 8"),
    ],
)
def test_other_models_are_refused(model, error, message):
    with pytest.raises(error, match=message):
        explain(model, images())


def test_scores_that_are_not_finite_are_refused():
    model, inputs = net(), images(3)
    inputs[1, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match=r"scores of the images \[1\] are not finite"):
        explain(model, inputs)


# What people take home


def test_the_overlays_are_images_of_the_same_size():
    explanation = explain(net(), images(), methods="gradcam,layercam")
    overlays = explanation.overlays(alpha=0)
    assert list(overlays) == ["gradcam", "layercam"]
    expected = (255 * images()).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(overlays["gradcam"], expected)
    assert not np.array_equal(explanation.overlays()["gradcam"], expected)


def test_the_figure_names_its_rows():
    explanation = explain(net(), images(), methods="gradcam", categories="abcd")
    figure = explanation.figure(color_bar=True, colormap="viridis", alpha=0.25)
    names = [axis.get_ylabel() for axis in figure.axes[:4:2]]
    assert names == [explanation.name_of(0), explanation.name_of(1)]
    assert figure.axes[1].images[-1].get_alpha() == 0.25


def test_the_numbers_are_arrays(tmp_path):
    explanation = explain(net(), images(), methods="unioncam,gradcam")
    path = tmp_path / "maps.npz"
    explanation.save(path)
    with np.load(path) as saved:
        assert set(saved) == {
            *("targets", "confidences", "maps/unioncam", "maps/gradcam"),
            "gains/unioncam",
        }
        details = explanation.details["unioncam"]
        gains = [details.denoised_gain, details.region_gain, details.fused_gain]
        np.testing.assert_array_equal(
            saved["gains/unioncam"], torch.stack(gains, 1).numpy()
        )
        for method, maps in explanation.maps.items():
            np.testing.assert_array_equal(saved[f"maps/{method}"], maps.numpy())
        assert saved["targets"].tolist() == explanation.targets.tolist()


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.png", b"\x89PNG"), ("b.PDF", b"%PDF"), ("c.svg", b"<?xml")],
)
def test_pictures_are_saved_by_the_end_of_their_name(name, start, tmp_path):
    explanation = explain(net(), images(1), methods="gradcam")
    explanation.save(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_other_files_are_refused(tmp_path):
    explanation = explain(net(), images(1), methods="gradcam")
    with pytest.raises(ValueError, match="`path` must end with .png, .pdf, .svg or .n"):
        explanation.save(str(tmp_path / "map.jpg"))
    assert not list(tmp_path.iterdir())


def test_a_dict_holds_what_json_can():
    explanation = explain(net(), images(), methods="unioncam,gradcam")
    result = json.loads(json.dumps(explanation.to_dict()))
    assert result["layer"] == "1" and result["methods"] == ["unioncam", "gradcam"]
    assert result["chosen"] == explanation.chosen
    details = explanation.details["unioncam"]
    for index, entry in enumerate(result["images"]):
        assert entry["target"] == entry["top"][0]
        assert entry["target"]["index"] == int(explanation.targets[index])
        assert len(entry["top"]) == 3
        numbers = entry["details"]["unioncam"]
        assert numbers["fused_gain"] == pytest.approx(details.fused_gain[index].item())
        better = numbers["fused_gain"] > numbers["region_gain"]
        assert numbers["selected"] == ("fused" if better else "region")
        assert list(entry["details"]) == ["unioncam"]


def test_a_class_that_is_not_predicted_is_unsure():
    model = net(scale=300)
    predicted = int(explain(model, images(1), methods="gradcam").targets)
    other = 1  # whose logit is 35 below that of the predicted class
    explanation = explain(model, images(1), other)
    assert explanation.unsure.tolist() == [True]
    assert "1 of 1; the confidence is about 0, and gains in it may say" in repr(
        explanation
    )
    assert not explain(model, images(1), predicted).unsure.any()
    by_logits = explain(model, images(1), other, score_func=lambda output: output)
    assert not by_logits.unsure.any()
    torch.testing.assert_close(
        by_logits.confidences, model(images(1))[:, other].detach()
    )
    assert by_logits.details["unioncam"].region_gain > 1


def test_a_long_batch_has_a_short_repr():
    explanation = explain(net(), images(8), methods="gradcam")
    (line,) = [line for line in repr(explanation).splitlines() if "target" in line]
    assert line.count("(") == 6 and line.endswith(", ...: predicted")


def test_the_model_and_the_images_stay_as_they_were():
    model, inputs = net(), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explanation = explain(model, inputs)
    assert isinstance(explanation, Explanation) and not model.training
    assert torch.equal(inputs, images())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module._forward_hooks for module in model.modules())
