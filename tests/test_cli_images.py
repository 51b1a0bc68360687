"""The command on many images: folders, failures, and what people take home."""

import dataclasses
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import tiny_classifier
from folders import crop, messy_folder
from PIL import Image

from captum_unioncam import UnionCAM
from captum_unioncam.cli import explain, main
from captum_unioncam.visualization import overlay_images

pytestmark = [
    pytest.mark.usefixtures("one_thread", "tiny"),
    pytest.mark.filterwarnings("ignore:.*the maps of examples"),
]

QUICK = ("--methods", "gradcam")


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Explains by a tiny model, in an empty folder."""
    monkeypatch.setattr(explain, "load_classifier", tiny_classifier)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos(tiny):
    """A folder of three images."""
    os.mkdir("photos")
    for number, name in enumerate(("a.png", "b.jpg", "c.png")):
        crop(40 * number).save(f"photos/{name}")
    return "photos"


def run(capsys, *arguments, code=0):
    """Runs the command, and returns what it shows."""
    assert main(["explain", *map(str, arguments)]) == code
    return capsys.readouterr()


def refused(capsys, *arguments):
    """Runs the command on what it refuses, and returns its line of error."""
    before = sorted(Path().rglob("*"))
    out, err = run(capsys, *arguments, code=2)
    assert not out and sorted(Path().rglob("*")) == before
    return err.rstrip("\n").split("captum-unioncam: error: ")[1]


def result(capsys, *arguments, code=0):
    """Runs the command, and returns its JSON."""
    return json.loads(run(capsys, *arguments, "--json", "-", code=code).out)


# Folders


def test_a_folder_gives_one_picture_for_each_image(photos, capsys):
    out, err = run(capsys, photos, "--output", "maps", "--json", "all.json", *QUICK)
    assert sorted(os.listdir("maps")) == ["a.png", "b.png", "c.png"]
    assert "images: 100%" in err and "attribution" not in err
    reports = json.loads(Path("all.json").read_text())
    assert [report["image"] for report in reports] == [
        *("photos/a.png", "photos/b.jpg", "photos/c.png")
    ]
    for name, report, line in zip("abc", reports, out.splitlines(), strict=False):
        assert report["picture"] == f"maps/{name}.png"
        target = report["target"]
        assert line.split()[1:] == (
            f"{target['index']} {target['name']} {target['confidence']:.3f}".split()
        )
        alone = result(capsys, report["image"], *QUICK)
        for values in (report, alone):
            for row in values["methods"]:
                row["seconds"] = 0
            values.update(seconds=0, picture="")
        assert alone == report
        pictures = [Image.open(p) for p in (f"maps/{name}.png", "unioncam.png")]
        assert np.array_equal(*pictures)
    assert "pictures     3 in maps, 0 failed" in out


def test_images_are_named_one_by_one_or_by_their_folders(photos, capsys):
    os.mkdir("other")
    crop(0).save("other/A.png")
    arguments = ("photos/b.jpg", "other", "photos/a.png", *QUICK)
    reports = result(capsys, *arguments, "--output", "maps")
    assert [(report["image"], report["picture"]) for report in reports] == [
        ("photos/b.jpg", "maps/b.png"),
        ("other/A.png", "maps/A.png"),
        ("photos/a.png", "maps/a-2.png"),
    ]
    assert sorted(os.listdir("maps")) == ["A.png", "a-2.png", "b.png"]


def test_a_single_image_may_have_a_folder(photos, capsys):
    for output in ("maps", "maps/", "version.2/"):
        (report,) = result(capsys, "photos/a.png", "--output", output, *QUICK)
        assert Path(report["picture"]) == Path(output) / "a.png"
        assert os.listdir(output) == ["a.png"]
    (report,) = result(capsys, "--output", "maps", *QUICK)
    assert (report["image"], report["picture"]) == ("coffee", "maps/coffee.png")


@pytest.mark.parametrize("size", [1, 2, 8])
def test_batches_change_nothing(size, photos, capsys):
    reports = result(capsys, photos, "--output", "maps", "--batch-size", size)
    for number, report in enumerate(reports):
        inputs = tiny_classifier().preprocess(crop(40 * number))[None]
        if number == 1:
            continue  # a JPEG, which is another image
        classifier = tiny_classifier()
        black = classifier.preprocess(Image.new("RGB", (300, 300)))[None]
        _, details = UnionCAM(classifier.model, classifier.layer()).attribute(
            inputs,
            classifier.model(inputs).argmax(1),
            baselines=black,
            fidelity=0.99,
            return_details=True,
        )
        for name in ("denoised_gain", "region_gain", "fused_gain"):
            expected = getattr(details, name).item()
            assert report[name] == pytest.approx(expected, abs=1e-5)


def test_standard_input_holds_one_image(monkeypatch, photos, capsys):
    class Stdin:
        buffer = io.BytesIO(Path("photos/a.png").read_bytes())

    monkeypatch.setattr(sys, "stdin", Stdin)
    report = result(capsys, "-", *QUICK)
    assert (report["image"], report["picture"]) == ("-", "unioncam.png")
    Stdin.buffer.seek(0)
    reports = result(capsys, "photos/a.png", "-", "--output", "maps", *QUICK)
    assert [r["picture"] for r in reports] == ["maps/a.png", "maps/stdin.png"]
    assert reports[0]["target"] == reports[1]["target"] == report["target"]
    assert "standard input cannot be read as an im" in refused(capsys, "-", *QUICK)
    monkeypatch.setattr(sys, "stdin", None)
    assert "standard input is closed; name an image" in refused(capsys, "-", *QUICK)


# Failures


@pytest.mark.parametrize("size", [1, 16])
def test_an_image_that_cannot_be_read_is_named_at_the_end(size, tmp_path, capsys):
    broken = messy_folder(tmp_path / "messy")
    arguments = ("messy", "--output", "maps", "--json", "all.json", *QUICK)
    out, _ = run(capsys, *arguments, "--batch-size", size, code=3)
    lines = out.splitlines()
    assert lines[-4].split(maxsplit=1) == ["pictures", "5 in maps, 3 failed"]
    for name, line in zip(broken, lines[-3:], strict=True):
        place, reason = line.split(" ", 1)
        assert place == f"messy/{name}"
        assert reason.strip().startswith("failed: cannot be read as an image (")
    reports = json.loads(Path("all.json").read_text())
    failed = [Path(report["image"]).name for report in reports if "error" in report]
    assert failed == broken and len(reports) == 8
    assert len(os.listdir("maps")) == 5


@pytest.mark.parametrize("size", [1, 3])
def test_an_image_without_finite_scores_fails_alone(size, photos, monkeypatch, capsys):
    def fragile(*arguments):
        classifier = tiny_classifier(*arguments)
        bright = classifier.preprocess(crop(80)).mean()

        def poison(module, inputs, output):
            output[(inputs[0].mean((1, 2, 3)) - bright).abs() < 1e-6] = torch.nan

        classifier.model.register_forward_hook(poison)
        return classifier

    monkeypatch.setattr(explain, "load_classifier", fragile)
    arguments = (photos, "--output", "maps", "--batch-size", size, *QUICK)
    reports = result(capsys, *arguments, code=3)
    assert ["error" in report for report in reports] == [False, False, True]
    assert "the model's scores of the image are not finite" in reports[2]["error"]
    assert sorted(os.listdir("maps")) == ["a.png", "b.png"]


def test_if_all_images_fail_there_is_no_folder(capsys):
    Path("one.png").write_text("no image")
    out, _ = run(capsys, "one.png", "two.png", "--output", "maps", code=3)
    assert "0 in maps, 2 failed" in out and not os.path.exists("maps")


def test_a_wrong_option_ends_the_run_at_once(photos, capsys):
    arguments = (photos, "--output", "maps", "--layer", "5", *QUICK)
    assert "--layer 5: `layer` must have an activation" in refused(capsys, *arguments)


# Several classes


def test_top_k_explains_the_classes_of_the_highest_scores(photos, capsys):
    out, err = run(capsys, "photos/a.png", "--top-k", 3, "--json", "one.json")
    report = json.loads(Path("one.json").read_text())
    targets = [one["target"] for one in report["classes"]]
    assert targets == report["top"]
    for target, one in zip(targets, report["classes"], strict=True):
        alone = result(capsys, "photos/a.png", "--target", target["index"])
        assert (one["target"], one["selected"]) == (alone["target"], alone["selected"])
        for name in ("region_gain", "fused_gain", "fidelity"):
            assert one[name] == pytest.approx(alone[name], rel=1e-3), name
        assert f"{target['index']} {target['name']}, confidence" in out
    assert out.count("beta") == 3 and "class " in out


def test_top_k_is_at_most_all_classes(photos, monkeypatch, capsys):
    def small(*arguments):
        classifier = tiny_classifier(*arguments)
        classifier.model[-1] = torch.nn.Linear(12 * 8 * 8, 3).eval()
        return dataclasses.replace(classifier, categories=[])

    monkeypatch.setattr(explain, "load_classifier", small)
    report = result(capsys, "photos/a.png", "--top-k", 20, *QUICK)
    assert {one["target"]["index"] for one in report["classes"]} == {0, 1, 2}
    assert {one["target"]["name"] for one in report["classes"]} == {None}


def test_methods_and_classes_go_together(photos, capsys):
    arguments = ("--methods", "gradcam,layercam", "--top-k", 2, "--output", "maps")
    reports = result(capsys, photos, *arguments)
    for report in reports:
        assert len(report["classes"]) == 2
        for one in report["classes"]:
            assert [row["method"] for row in one["methods"]] == ["gradcam", "layercam"]
    with Image.open("maps/a.png") as picture:  # two rows of three panels
        assert 1.3 < picture.width / picture.height < 1.7


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_a_class_that_is_not_predicted_has_a_map_by_logits(score, photos, capsys):
    model = tiny_classifier().model
    inputs = tiny_classifier().preprocess(crop(0))[None]
    target = int(model(inputs).sort(descending=True).indices[0, 50])
    arguments = ("photos/a.png", "--target", target, "--score", score)
    out, _ = run(capsys, *arguments, "--json", "one.json")
    report = json.loads(Path("one.json").read_text())
    confidence = model(inputs).softmax(1)[0, target].item()
    assert confidence < 0.01
    assert report["target"]["confidence"] == pytest.approx(confidence, rel=1e-3)
    assert report["score"] == score
    assert ("--score logit" in out) == (score == "probability")
    black = tiny_classifier().preprocess(Image.new("RGB", (300, 300)))[None]
    scores = model(black) if score == "logit" else model(black).softmax(1)
    expected = scores[0, target].item()
    assert report["baseline_score"] == pytest.approx(expected, rel=1e-3, abs=1e-6)


# Pictures and numbers


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.png", b"\x89PNG"), ("b.pdf", b"%PDF"), ("c.SVG", b"<?xml")],
)
@pytest.mark.parametrize("further", [(), ("--overlay-only",)])
def test_the_end_of_the_name_is_the_format(name, start, further, photos, capsys):
    run(capsys, "photos/a.png", "--output", name, *QUICK, *further)
    assert Path(name).read_bytes().startswith(start)


@pytest.mark.parametrize("methods", [(), QUICK])
def test_an_overlay_has_the_size_of_the_image_and_nothing_around_it(
    methods, photos, capsys
):
    further = ("--overlay-only", "--colormap", "viridis", "--alpha", "0.25")
    arguments = (photos, "--output", "maps", *methods, *further)
    run(capsys, *arguments, "--maps", "maps.npz")
    with np.load("maps.npz") as saved:
        (key,) = [key for key in saved if key.startswith("maps/")]
        maps = torch.from_numpy(saved[key])
    inputs = tiny_classifier().preprocess(crop(0))[None]
    expected = overlay_images(
        inputs, maps[:1], mean=0.5, std=0.25, colormap="viridis", alpha=0.25
    )
    with Image.open("maps/a.png") as picture:
        found = np.asarray(picture.convert("RGB"))
    assert found.shape == (32, 32, 3)
    assert np.abs(found.astype(int) - expected[0]).max() <= 1


def test_colours_are_those_of_the_panels_too(photos, capsys):
    run(capsys, "photos/a.png", "--output", "one.png", *QUICK)
    run(capsys, "photos/a.png", "--output", "two.png", *QUICK, "--colormap", "viridis")
    run(capsys, "photos/a.png", "--output", "three.png", *QUICK, "--alpha", "0.1")
    pictures = {Path(f"{name}.png").read_bytes() for name in ("one", "two", "three")}
    assert len(pictures) == 3


def test_the_maps_are_those_of_the_methods(photos, capsys):
    Path("photos/d.png").write_text("no image")
    arguments = ("--output", "pictures", "--maps", "maps.npz", "--batch-size", 2)
    reports = result(capsys, photos, "--top-k", 2, *arguments, code=3)
    with np.load("maps.npz") as saved:
        arrays = dict(saved)
    assert set(arrays) == {
        *("images", "targets", "confidences", "maps/unioncam", "gains/unioncam")
    }
    rows = [
        (report["image"], one)
        for report in reports
        if "error" not in report
        for one in report["classes"]
    ]
    assert arrays["maps/unioncam"].shape == (6, 1, *rows[0][1]["layer_size"])
    for place, (image, one) in enumerate(rows):
        assert arrays["images"][place] == image
        assert arrays["targets"][place] == one["target"]["index"]
        confidence = one["target"]["confidence"]
        assert arrays["confidences"][place] == pytest.approx(confidence)
        gains = [one[f"{name}_gain"] for name in ("denoised", "region", "fused")]
        assert arrays["gains/unioncam"][place] == pytest.approx(gains)


def test_every_method_has_its_maps(photos, capsys):
    methods = "gradcam,unioncam:theta=30"
    run(capsys, "photos/a.png", "--methods", methods, "--maps", "maps.npz")
    with np.load("maps.npz") as saved:
        maps = {key: saved[key].shape for key in saved if key.startswith("maps/")}
        assert saved["gains/unioncam:theta=30"].shape == (1, 3)
    assert maps == {f"maps/{name}": (1, 1, 8, 8) for name in methods.split(",")}


# What is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos"], "--output must be a folder for several images, got 'unioncam.png"),
        (
            ["photos/a.png", "photos/c.png", "--output", "x.png"],
            "--output must be a fo",
        ),
        (["photos", "--output", "photos"], "photos is named twice; choose another fol"),
        (["photos/a.png", "--output", "photos"], "photos/a.png is named twice; choose"),
        (["-", "-", "--output", "maps"], "- is named twice; standard input holds one"),
        (["photos", "--output", "no/such"], "no/such cannot be written: No such file"),
        (["photos", "--output", "note.txt"], "note.txt cannot be written: it is not a"),
        (["empty", "--output", "maps"], "there is no image (.jpg"),
        (["photos", "nowhere.png", "--output", "a.pdf"], "--output must be a folder"),
        (["--output", "x.jpg"], "must end with .png, .pdf, .svg, or with / if it is a"),
        (["--maps", "maps.npy"], "--maps must end with .npz, got 'maps.npy'"),
        (["--maps", "no/such.npz"], "no/such.npz cannot be written: No such file or"),
        (
            ["--maps", "a.npz", "--json", "a.npz"],
            "a.npz is named twice; choose another",
        ),
        (["--top-k", "2", "--target", "3"], "--top-k and --target exclude each other"),
        (["--overlay-only", "--top-k", "2"], "--overlay-only shows one map; give one"),
        (["--overlay-only", "--methods", "gradcam,rise"], "--overlay-only shows one m"),
        (
            ["--colormap", "virids"],
            "--colormap must be the name of a colour map of mat",
        ),
        (["--alpha", "1.5"], "--alpha: must be a finite number in [0, 1], got 1.5"),
        (["--score", "odds"], "--score: must be one of probability, logit, got 'odds'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_together_is_refused(arguments, message, photos, capsys):
    os.mkdir("empty")
    Path("note.txt").write_text("kept")
    assert message in refused(capsys, *arguments)


def test_maps_of_several_sizes_do_not_go_into_one_file(photos, monkeypatch, capsys):
    def free(*arguments):
        classifier = tiny_classifier(*arguments)
        pooling = torch.nn.AdaptiveAvgPool2d(1)
        layers = [*classifier.model[:4], pooling, torch.nn.Flatten()]
        model = torch.nn.Sequential(*layers, torch.nn.Linear(12, 1000)).eval()
        steps = classifier.preprocess.transforms[2:]
        classifier.preprocess.transforms[:] = steps
        return dataclasses.replace(classifier, model=model)

    monkeypatch.setattr(explain, "load_classifier", free)
    Image.open("photos/a.png").resize((40, 32)).save("photos/a.png")
    Image.open("photos/c.png").resize((32, 32)).save("photos/c.png")
    os.remove("photos/b.jpg")
    arguments = (photos, "--batch-size", 2, "--output", "pictures", *QUICK)
    assert len(result(capsys, *arguments)) == 2  # each alone
    _, err = run(capsys, *arguments, "--maps", "maps.npz", code=2)
    assert "--maps: the maps/gradcam of photos/c.png have another size" in err
