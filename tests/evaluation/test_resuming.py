"""One run in a folder at a time, and a run continues with what it began with."""

import dataclasses
import importlib
import json
import os
import sys

import pytest
import torch
from classifiers import SMALL, tiny_classifier
from folders import crop, voc_folder
from runs import QUICK, command, config

from captum_unioncam import GradCAM
from captum_unioncam.cli import main
from captum_unioncam.errors import ConfigError, DataError
from captum_unioncam.evaluation import appendix, measuring, runner, task
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.distributed import Processes
from captum_unioncam.evaluation.methods import METHODS, Method
from captum_unioncam.evaluation.runner import evaluate
from captum_unioncam.models import load_classifier

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_model", "no_pictures")

ONE = {"methods": ("gradcam",), "metrics": ("drop",)}


@pytest.fixture
def data(images, tmp_path):
    """A folder of three images that a test may change."""
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes((images / f"{i}.png").read_bytes())
    return folder


def continued(settings):
    return evaluate(dataclasses.replace(settings, resume=True))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# One at a time


@pytest.mark.parametrize("moment", ["loading", "running"])
def test_a_second_start_in_the_folder_of_a_run_is_refused(
    moment, images, tmp_path, monkeypatch
):
    place = (runner, "load_task") if moment == "loading" else (measuring, "_measured")
    original, refused = getattr(*place), []
    other = config(images, tmp_path / "out", theta=50.0, resume=True)

    def meanwhile(*arguments):
        if not refused:
            with pytest.raises(ConfigError, match="another run writes to .*out; wait"):
                evaluate(other)
            refused.append(contents(tmp_path / "out"))
        return original(*arguments)

    monkeypatch.setattr(*place, meanwhile)
    rows = evaluate(config(images, tmp_path / "out", **ONE))
    assert len(rows) == 5 and len(refused) == 1
    assert bool(refused[0]) == (moment == "running")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["theta"] == 10.0


@pytest.mark.parametrize(
    "options",
    [
        {"methods": ("scorcam",)},
        {"data": "imagefolder:nowhere"},
        {"layer": "nowhere"},
        {"methods": ("unioncam:theta=300",)},
        {"target": "label"},
    ],
    ids=str,
)
def test_a_start_that_is_refused_leaves_no_folder(options, images, tmp_path):
    settings = config(images, tmp_path / "new" / "out", **ONE)
    with pytest.raises(ValueError):
        evaluate(dataclasses.replace(settings, **options))
    assert not os.listdir(tmp_path)


def test_rows_of_something_else_are_refused_before_anything_is_written(
    images, tmp_path, capsys
):
    arguments = command(images, tmp_path, "--num-images", "1")
    assert main(arguments) == 0
    with (tmp_path / "rows-00000.jsonl").open("a") as file:
        file.write('{"index": 0}\n')
    before = contents(tmp_path)
    assert main([*arguments, "--resume"]) == 2
    assert "line 3 of" in (error := capsys.readouterr().err.splitlines()[-1])
    assert error.startswith("captum-unioncam: error: --output: line 3 of ")
    assert contents(tmp_path) == before


# The same images


def test_a_row_knows_the_file_that_it_came_from(data, tmp_path):
    rows = evaluate(config(data, tmp_path / "out", **ONE))
    assert len({row["file"] for row in rows}) == 3
    rows = continued(config(data, tmp_path / "out", **ONE))
    assert len(rows) == 3


@pytest.mark.parametrize("size", ["same size", "another size"])
def test_a_changed_image_is_refused_by_its_name(size, data, tmp_path):
    settings = config(data, tmp_path / "out", **ONE)
    evaluate(settings)
    before = contents(tmp_path / "out")
    changed = bytearray((data / "1.png").read_bytes())
    if size == "same size":
        changed[-1] ^= 1
        (data / "1.png").write_bytes(changed)
    else:
        crop(7).save(data / "1.png")
    with pytest.raises(DataError, match="`data`: 1.png has changed since its rows"):
        continued(settings)
    assert contents(tmp_path / "out") == before
    (data / "1.png").unlink()
    (data / "1.png").mkdir()  # its name is still there
    (data / "1.png" / "2.png").write_bytes(b"")
    with pytest.raises(DataError, match="holds images and folders"):
        continued(settings)


def test_an_image_without_a_finished_row_may_be_mended(data, tmp_path):
    whole = (data / "1.png").read_bytes()
    (data / "1.png").write_bytes(whole[:99])
    settings = config(data, tmp_path / "out", **ONE)
    rows = evaluate(settings)
    assert ["error" in row for row in rows] == [False, True, False]
    (data / "1.png").write_bytes(whole)
    assert not any("error" in row for row in continued(settings))


def test_a_changed_annotation_is_refused(tmp_path):
    voc_folder(tmp_path / "voc", [(21, 11, 80, 60)])
    settings = EvaluationConfig(
        f"voc2007:{tmp_path / 'voc'}",
        str(tmp_path / "out"),
        methods=("gradcam",),
        metrics=("energy",),
        **QUICK,
    )
    evaluate(settings)
    path = tmp_path / "voc/VOCdevkit/VOC2007/Annotations/000001.xml"
    path.write_text(path.read_text().replace("<xmin>21<", "<xmin>31<"))
    with pytest.raises(DataError, match="`data`: 000001.jpg has changed since"):
        continued(settings)


def test_an_image_that_has_changed_is_not_shown_with_the_old_map(
    data, tmp_path, monkeypatch
):
    report = runner._report

    def changing(*arguments):
        crop(7).save(data / "2.png")
        return report(*arguments)

    monkeypatch.setattr(runner, "_report", changing)
    monkeypatch.setattr(runner, "make_gallery", appendix.make_gallery)
    evaluate(config(data, tmp_path / "out", sanity=3, **ONE))
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Mean rank correlation of the maps of 2 images" in text
    assert "best: " in text and "gallery-001.jpg" in text
    assert "2.png" not in text


# The same weights


def with_a_bias(value):
    def load(name="tiny", weights="none"):
        classifier = tiny_classifier(name, weights)
        with torch.no_grad():
            classifier.model[-1].bias[0] += value
        return classifier

    return load


def test_changed_weights_are_refused(images, tmp_path, monkeypatch):
    settings = config(images, tmp_path / "out", weights="own.pt", **ONE)
    evaluate(settings)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(task, "load_classifier", with_a_bias(1e-3))
    message = "the values of the weights have changed: weights_digest was '"
    with pytest.raises(ConfigError, match=message):
        continued(settings)
    assert contents(tmp_path / "out") == before


def test_processes_with_different_weights_are_refused(images, tmp_path, monkeypatch):
    gather = Processes.gather

    def of_two(self, value):
        digest = isinstance(value, str) and len(value) == 32
        return [value, "another"] if digest else gather(self, value)

    monkeypatch.setattr(Processes, "gather", of_two)
    with pytest.raises(ConfigError, match="the processes loaded different values"):
        evaluate(config(images, tmp_path / "out", **ONE))
    assert not os.listdir(tmp_path)


def test_random_weights_are_drawn_from_the_seed_alone(images, tmp_path, monkeypatch):
    monkeypatch.setattr(task, "load_classifier", load_classifier)
    options = {"model": SMALL, "weights": "none", "num_images": 1, **ONE}
    torch.manual_seed(1)
    state = torch.get_rng_state()
    settings = config(images, tmp_path / "out", **options)
    evaluate(settings)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)  # in another process
    (row,) = continued(settings)
    known, other = (
        json.loads((tmp_path / name / "config.json").read_text())
        for name in ("out", "other")
        if name == "out" or evaluate(config(images, tmp_path / name, seed=1, **options))
    )
    assert known["weights_digest"] != other["weights_digest"]


def test_a_default_device_of_the_user_changes_nothing(images, tmp_path):
    options = {"num_images": 1, "sanity": 1, **ONE, "methods": ("unioncam",)}
    (expected,) = evaluate(config(images, tmp_path / "one", **options))
    torch.set_default_device("meta")
    try:
        (row,) = evaluate(config(images, tmp_path / "two", **options))
    finally:
        torch.set_default_device(None)
    assert row["metrics"] == expected["metrics"]


# The same methods

CODE = """
from captum_unioncam import GradientCAM

class EditedCAM(GradientCAM):
    def weights(self, activations, gradients):
        return gradients.flatten(2).amax(2)
"""


def test_an_edited_method_is_refused_and_any_other_is_not(
    images, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def register(code):
        (tmp_path / "edited_cam.py").write_text(code)
        sys.modules.pop("edited_cam", None)
        importlib.invalidate_caches()
        cls = importlib.import_module("edited_cam").EditedCAM
        entry = Method(cls, "nobody 2026", "https://example.org", True, "1", "none")
        monkeypatch.setitem(METHODS, "editedcam", entry)

    register(CODE)
    settings = config(images, tmp_path / "out", methods=("editedcam", "gradcam"))
    evaluate(settings)
    register(CODE.replace("amax(2)", "mean(2)"))
    with pytest.raises(ConfigError, match="the source of editedcam has changed"):
        continued(settings)
    register(CODE)
    assert len(continued(settings)) == 10
    sys.modules.pop("edited_cam")
    assert METHODS["gradcam"].attribution is GradCAM
