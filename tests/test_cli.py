"""The command, end to end on the real model and photograph, and on bad input."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image
from skimage.data import chelsea

from captum_unioncam import GroupCAM, ScoreCAM, UnionCAM, __version__
from captum_unioncam._maps import to_mask
from captum_unioncam.cli import explain, main
from captum_unioncam.errors import ConfigError
from captum_unioncam.evaluation import METHODS, METRICS, labels
from captum_unioncam.models import class_index, load_classifier

pytestmark = pytest.mark.usefixtures("one_thread")

# Where the face is in the photograph as the model sees it, 224 x 224: from the forehead
# to the chin, and from cheek to cheek.
FACE = (slice(40, 215), slice(20, 205))


@pytest.fixture
def cat(tmp_path):
    """The photograph as a file."""
    path = tmp_path / "cat.png"
    Image.fromarray(chelsea()).save(path)
    return str(path)


def fails(capsys, *arguments):
    """Runs the command on bad input, and returns its one line of error."""
    before = set(os.listdir("."))
    assert main(["explain", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out
    prefix, error = err.rstrip("\n").split(": error: ")
    assert prefix == "captum-unioncam" and "\n" not in error
    assert set(os.listdir(".")) == before
    return error


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))


def test_explains_the_photograph(capsys):
    assert main(["explain", "--json", "result.json"]) == 0
    out, err = capsys.readouterr()
    assert sorted(os.listdir(".")) == ["result.json", "unioncam.png"]
    assert "UnionCAM attribution: 100%" in err
    result = json.loads(open("result.json").read())
    assert result["target"]["name"] == "espresso"
    assert [top["index"] for top in result["top"]] == [967, 968, 925]
    assert result["target"]["index"] == 967
    assert result["target"] == result["top"][0]
    assert result["target"]["confidence"] == pytest.approx(0.957, abs=0.01)
    assert result["layer"] == "_swish" and result["layer_size"] == [7, 7]
    assert 16 <= result["scored_channels"] < 100 and 0.99 <= result["fidelity"] < 1
    assert result["active_channels"] < result["total_channels"] == 1280
    better = result["fused_gain"] > result["region_gain"]
    assert result["selected"] == ("fused" if better else "region")
    assert min(result["denoised_gain"], result["region_gain"]) > 0.2
    for shown in ("967 espresso", f"the {result['selected']} map", "unioncam.png"):
        assert shown in out
    scored = f"{result['scored_channels']} scored of {result['active_channels']} active"
    assert f"{scored} of 1280" in out
    assert f"{result['fidelity']:.4f} estimated (--fidelity 1 gives the exact" in out
    with Image.open("unioncam.png") as picture:
        width, height = picture.size
        assert picture.format == "PNG" and width > 4 * height


def test_a_fidelity_of_1_is_the_exact_map(capsys):
    assert main(["explain", "--fidelity", "1", "--max-channels", "2000"]) == 0
    assert "fidelity 1, the exact map" in capsys.readouterr().out


def test_the_map_is_on_the_cats_face():
    classifier = load_classifier()
    image = Image.fromarray(chelsea())
    inputs = classifier.preprocess(image).unsqueeze(0)
    black = classifier.preprocess(Image.new("RGB", image.size)).unsqueeze(0)
    attributions = UnionCAM(classifier.model, classifier.layer()).attribute(
        inputs, target=282, baselines=black, max_channels=64
    )
    energy = to_mask(attributions, (224, 224))[0, 0]
    share = energy[FACE].sum() / energy.sum()
    area = np.prod([s.stop - s.start for s in FACE]) / 224**2
    assert area == pytest.approx(0.645, abs=0.001)
    assert share == pytest.approx(0.785, abs=0.01)  # measured
    peak = np.unravel_index(int(energy.argmax()), energy.shape)
    assert all(s.start <= i < s.stop for s, i in zip(FACE, peak, strict=True))


def test_every_option_reaches_the_method(cat, capsys):
    arguments = ["explain", cat, "--model", "resnet18", "--weights", "none"]
    arguments += ["--layer", "layer3", "--target", "Tabby", "--theta", "70.5"]
    arguments += ["--max-channels", "2", "--device", "cpu", "--output", "out.png"]
    assert main([*arguments, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["target"]["index"], result["target"]["name"]) == (281, "tabby")
    assert (result["model"], result["weights"]) == ("resnet18", "none")
    assert (result["layer"], result["layer_size"]) == ("layer3", [14, 14])
    assert (result["theta"], result["scored_channels"]) == (70.5, 2)
    assert (result["image"], result["picture"]) == (cat, "out.png")
    assert os.listdir(".") == ["out.png"]
    assert "281 tabby" in err  # the report makes way for the JSON


def test_theta_changes_the_map_where_gradients_vary(cat, capsys):
    gains = []
    for theta in ("0", "90"):
        arguments = ["--layer", "_blocks.10", "--max-channels", "1", "--theta", theta]
        assert main(["explain", cat, *arguments, "--json", "-"]) == 0
        gains.append(json.loads(capsys.readouterr().out)["denoised_gain"])
    assert gains[0] != gains[1]


def test_a_class_may_be_an_index_and_have_no_name(cat, tmp_path, capsys):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    torch.save(resnet18(num_classes=3).state_dict(), tmp_path / "own.pt")
    arguments = ["--model", "resnet18", "--weights", str(tmp_path / "own.pt")]
    arguments += ["--target", "2", "--max-channels", "1", "--json", "-"]
    assert main(["explain", cat, *arguments]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["target"]["index"], result["target"]["name"]) == (2, None)
    assert len(result["top"]) == 3


def test_runs_as_a_module():
    command = [sys.executable, "-m", "captum_unioncam", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == __version__


def test_methods_are_compared_by_the_confidence_that_their_maps_keep(cat, capsys):
    methods = "scorecam, gradcam,groupcam,groupcam:groups=2,gradcam"
    arguments = ["--methods", methods, "--theta", "0"]
    arguments += ["--max-channels", "3", "--layer", "_blocks.15"]
    assert main(["explain", cat, *arguments, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    rows = {row["method"]: row["confidence_kept"] for row in result["methods"]}
    assert list(rows) == ["scorecam", "gradcam", "groupcam", "groupcam:groups=2"]
    assert "ScoreCAM attribution: 100%" in err
    shown = f"scorecam +keeps {rows['scorecam']:.1%} of the confidence"
    assert re.search(shown, err)
    assert "selected" not in result and result["layer_size"] == [7, 7]

    classifier = load_classifier()
    layer = classifier.layer("_blocks.15")
    image = Image.fromarray(chelsea())
    inputs = classifier.preprocess(image).unsqueeze(0)
    black = classifier.preprocess(Image.new("RGB", image.size)).unsqueeze(0)
    maps = {
        "scorecam": ScoreCAM(classifier.model, layer).attribute(
            inputs, 282, baselines=black, max_channels=3
        ),
        "gradcam": LayerGradCam(classifier.model, layer).attribute(
            inputs, 282, relu_attributions=True
        ),
        # Over blurred images, as in its paper, not over black ones.
        "groupcam": GroupCAM(classifier.model, layer).attribute(inputs, 282),
        "groupcam:groups=2": GroupCAM(classifier.model, layer).attribute(
            inputs, 282, groups=2
        ),
    }
    for name, attributions in maps.items():
        mask = to_mask(attributions, (224, 224))
        with torch.no_grad():
            masked = classifier.model(mask * inputs + (1 - mask) * black)
            scores = torch.cat([masked, classifier.model(inputs)]).softmax(1)[:, 282]
        assert rows[name] == pytest.approx((scores[0] / scores[1]).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("all", ["layercam", "gradcam"]),
        ("gradcam,all", ["gradcam", "layercam"]),
    ],
)
def test_all_stands_for_every_method(given, expected, cat, monkeypatch, capsys):
    few = {name: METHODS[name] for name in ("layercam", "gradcam")}
    monkeypatch.setattr(labels, "METHODS", few)
    assert main(["explain", cat, "--methods", given, "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in result["methods"]] == expected
    with Image.open("unioncam.png") as picture:
        assert picture.width > 2.5 * picture.height


def test_the_methods_and_the_metrics_are_listed(capsys):
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    assert all(f"| `{name}` | `{m.title}` |" in table for name, m in METHODS.items())
    assert main(["metrics"]) == 0
    table = capsys.readouterr().out
    assert all(f"| `{name}` |" in table for name in METRICS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--theta", "101"], "--theta: must be a finite number in [0, 100], got 101"),
        (["--theta", "nan"], "--theta: must be a finite number in [0, 100], got nan"),
        (["--theta", "x"], "--theta: must be a number, got 'x'"),
        (
            ["--max-channels", "0"],
            "--max-channels: must be a positive int or None, got",
        ),
        (["--max-channels", "2.5"], "--max-channels: must be a whole number, got '2.5"),
        (["--methods", "scorcam"], "no method 'scorcam'; did you mean 'scorecam'"),
        (
            ["--methods", ""],
            "--methods: there is no method ''; known are unioncam, ",
        ),
        (["--methods", "scorecam", "--layer", "_fc"], "--layer _fc: `layer` must have"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["--out", "x.png"], "unrecognized arguments: --out"),
        (["--output", ""], "argument --output: must not be empty (try captum-unioncam"),
        (["--json", ""], "argument --json: must not be empty (try captum-unioncam"),
        (["--output", "x.jpg"], "--output must end with .png, .pdf, .svg, or with /"),
        (["--output", "no/such/folder.png"], "folder.png cannot be written: No such"),
        (["--json", "no/such/folder.json"], "folder.json cannot be written: No such"),
        (["--json", "."], ". cannot be written: it is not a file"),
        (["--json", "/dev/null"], "/dev/null cannot be written: it is not a file"),
        (["--json", "a.png", "--output", "a.png"], "a.png is named twice; choose"),
        (["photo.png", "--output", "photo.png"], "photo.png is named twice; choose"),
        (["--device", "meta"], "--device meta cannot be used: "),
        (["--target", "²"], "there is no class '²'"),
        (["--device", "tpu9000"], "--device tpu9000 cannot be used: "),
        (["missing.jpg"], "missing.jpg cannot be read as an image (No such file"),
        (["--model", "resnet81"], "there is no model 'resnet81'; did you mean"),
        (["--weights", "missing.pt"], "there is no weights file 'missing.pt'"),
        (["--layer", "swish"], "no layer 'swish'; did you mean '_swish'?"),
        (["--layer", "_fc"], "--layer _fc: `layer` must have an activation"),
        (["--layer", "_blocks"], "--layer _blocks: Forward hook did not obtain"),
        (["--target", "1000"], "--target must be in [0, 999], got 1000"),
        (["--target", "-1"], "--target must be in [0, 999], got -1"),
        (["--target", "tigercat"], "there is no class 'tigercat'; did you mean 'tiger"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, capsys):
    assert message in fails(capsys, *arguments)


def test_a_name_of_several_classes_wants_an_index():
    categories = ["crane", "tabby", "crane"]
    with pytest.raises(ConfigError, match=r"several classes, \[0, 2\]; give an index"):
        class_index("Crane", categories, 3)


def test_a_huge_image_is_refused_before_it_is_decoded(cat, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "more than 1000 pixels; scale it down first" in fails(capsys, cat)


def test_a_broken_image_is_refused(tmp_path, capsys):
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no image")
    assert "cannot be read as an image" in fails(capsys, path)


def test_a_picture_that_cannot_be_written_is_one_line(monkeypatch, cat, capsys):
    def fail(*_):
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    error = fails(capsys, cat, "--methods", "gradcam")
    assert "unioncam.png cannot be written: disk is gone; choose a file" in error


def test_the_default_image_needs_the_demo_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    assert 'pip install "captum-unioncam[demo]"' in fails(capsys)


def test_ctrl_c_ends_with_130_and_writes_nothing(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(explain, "load_classifier", interrupt)
    assert main(["explain"]) == 130
    assert "captum-unioncam: interrupted" in capsys.readouterr().err
    assert not os.listdir(".")


def test_a_layer_of_several_tensors_is_refused(monkeypatch, cat, capsys):
    class Split(torch.nn.Module):
        def forward(self, x):
            return x[:, :8], x[:, 8:]

    classifier = load_classifier("resnet18", "none")
    split = Split()
    classifier.model.layer4.add_module("split", split)

    def forward(x):
        for block in list(classifier.model.layer4)[:2]:
            x = block(x)
        return torch.cat(split(x), 1)

    classifier.model.layer4.forward = forward
    monkeypatch.setattr(explain, "load_classifier", lambda *_: classifier)
    assert main(["explain", cat, "--layer", "layer4.split", "--max-channels", "1"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(
        "--layer layer4.split: `layer` has several tensors; choose another"
    )
    assert not os.listdir(".")
