"""Maps and scores that say nothing: counted, and no success."""

import dataclasses
import json

import pytest
import torch
from captum.attr import LayerGradCam
from classifiers import tiny_classifier
from runs import command, config

from captum_unioncam import GradientCAM
from captum_unioncam.cli import main
from captum_unioncam.evaluation import METRICS, appendix, measuring, runner, task
from captum_unioncam.evaluation.methods import METHODS, Method
from captum_unioncam.evaluation.runner import evaluate

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_model", "no_pictures")


def register(monkeypatch, name, change):
    """Registers Grad-CAM with changed maps."""

    class Changed(LayerGradCam):
        def attribute(self, inputs, target=None, *args, **kwargs):
            maps = super().attribute(inputs, target=target, relu_attributions=True)
            return change(maps.detach())

    entry = Method(Changed, "nobody 2026", "https://example.org", True, "1", "none")
    monkeypatch.setitem(METHODS, name, entry)


def one_nan(maps):
    maps[:, :, 0, 0] = torch.nan
    return maps


def infinite(maps):
    return torch.full_like(maps, torch.inf)


@pytest.fixture
def degenerate(monkeypatch):
    register(monkeypatch, "constant", torch.ones_like)
    register(monkeypatch, "nan", one_nan)
    register(monkeypatch, "infinite", infinite)
    return ("constant", "nan", "infinite", "gradcam")


def test_rows_and_the_report_say_which_maps_show_nothing(images, tmp_path, degenerate):
    options = {"methods": degenerate, "metrics": ("complexity", "drop")}
    rows = evaluate(config(images, tmp_path, batch_size=2, **options))
    kinds = {row["method"]: (row["constant_map"], row["broken_map"]) for row in rows}
    assert kinds == {
        "constant": (True, False),
        "nan": (False, True),
        "infinite": (False, True),
        "gradcam": (False, False),
    }
    stored = [json.loads(line) for line in (tmp_path / "rows-00000.jsonl").open()]
    assert all(("map" in row) != row["broken_map"] for row in stored)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["maps"] == {
        "constant": {"constant": 5, "broken": 0},
        "nan": {"constant": 0, "broken": 5},
        "infinite": {"constant": 0, "broken": 5},
        "gradcam": {"constant": 0, "broken": 0},
    }
    text = (tmp_path / "report.md").read_text()
    # In the tables of drop and complexity, and of the cost.
    assert text.count("| 5 | 0 |") == text.count("| 0 | 5 |") / 2 == 2


def test_the_command_counts_them_too(images, tmp_path, degenerate, capsys):
    arguments = command(images, tmp_path, "--methods", "constant,gradcam")
    assert main([*arguments, "--metrics", "complexity"]) == 0
    out = capsys.readouterr().out
    assert "constant: 5 constant maps, 0 not finite\n" in out
    assert "gradcam:" not in out


def test_a_metric_without_any_value_is_no_success(
    images, tmp_path, degenerate, monkeypatch, capsys
):
    arguments = command(images, tmp_path, "--methods", "nan,gradcam")
    assert main([*arguments, "--metrics", "drop,complexity"]) == 3
    out = capsys.readouterr().out
    assert "10 rows, 0 failed\n" in out
    assert "nan: drop is undefined everywhere\n" in out
    assert "gradcam: " not in out


def test_a_metric_with_some_values_is_a_success(images, tmp_path, monkeypatch, capsys):
    measure = METRICS["drop"].measure
    calls = []

    def first_undefined(m):
        calls.append(1)
        return measure(m) * (torch.nan if len(calls) == 2 else 1)  # one was the trial

    changed = dataclasses.replace(METRICS["drop"], measure=first_undefined)
    monkeypatch.setitem(METRICS, "drop", changed)
    arguments = command(images, tmp_path, "--methods", "gradcam", "--metrics", "drop")
    assert main(arguments) == 0
    assert "(4, 1 NaN)" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("target", ["predicted", "label"])
def test_a_model_whose_output_is_not_finite_fails_for_the_image(
    target, images, tmp_path, monkeypatch
):
    (tmp_path / "data" / "tabby").mkdir(parents=True)
    for i in range(2):
        content = (images / f"{i}.png").read_bytes()
        (tmp_path / "data" / "tabby" / f"{i}.png").write_bytes(content)

    def broken(name="tiny", weights="none"):
        classifier = tiny_classifier(name, weights)
        with torch.no_grad():
            classifier.model[-1].bias[3] = torch.nan
        return classifier

    monkeypatch.setattr(task, "load_classifier", broken)
    arguments = command(tmp_path / "data", tmp_path / "out", "--target", target)
    assert main(arguments) == 3
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    reason = "the model's scores of the image are not finite"
    assert report["failures"]["by_reason"] == {reason: 2}


class Overflowing(GradientCAM):
    """Is not finite where a weight is."""

    def weights(self, activations, gradients):
        return gradients.flatten(2).mean(2) * torch.inf


def test_maps_that_are_not_finite_stay_out_of_the_gallery(
    images, tmp_path, monkeypatch
):
    entry = Method(Overflowing, "nobody 2026", "https://a.org", True, "1", "none")
    monkeypatch.setitem(METHODS, "overflowing", entry)
    always = dataclasses.replace(
        METRICS["drop"], measure=lambda m: torch.ones(len(m.maps))
    )
    monkeypatch.setitem(METRICS, "drop", always)
    monkeypatch.setattr(runner, "make_gallery", appendix.make_gallery)
    options = {"methods": ("overflowing", "gradcam"), "metrics": ("drop",)}
    rows = evaluate(config(images, tmp_path, sanity=2, **options))
    assert [row["broken_map"] for row in rows] == [True, False] * 5
    text = (tmp_path / "report.md").read_text()
    gallery = text.split("## Gallery")[1].split("## ")[0]
    assert "the worst average drop, % of gradcam, under all" in gallery
    assert gallery.count("![best: ") == 3 and gallery.count("![worst: ") == 2
    assert "| overflowing | 1.00 | n/a (2 NaN) |" in text


def test_a_row_of_a_batch_says_what_its_own_map_is():
    maps = torch.rand(4, 1, 3, 3)
    maps[1], maps[2, 0, 0, 0] = 0.5, torch.inf
    entries = [measuring._map_entries(maps[i : i + 1]) for i in range(4)]
    assert [e["constant_map"] for e in entries] == [False, True, False, False]
    assert [e["broken_map"] for e in entries] == [False, False, True, False]
