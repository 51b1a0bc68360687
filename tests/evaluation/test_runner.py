"""The runner: rows, resuming, failures, targets, and the folder."""

import dataclasses
import json

import pytest
import torch
from folders import messy_folder, voc_folder
from runs import QUICK, command, config, results

from captum_unioncam.cli import main
from captum_unioncam.evaluation import measuring
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.distributed import Processes
from captum_unioncam.evaluation.methods import METHODS
from captum_unioncam.evaluation.metrics import METRICS
from captum_unioncam.evaluation.runner import evaluate

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_model", "no_pictures")


@pytest.fixture(scope="module")
def reference(images, tmp_path_factory, one_thread, tiny_model, no_pictures):
    """The results of one undisturbed process."""
    folder = tmp_path_factory.mktemp("reference")
    rows = evaluate(config(images, folder))
    assert len(rows) == 10 and not any("error" in row for row in rows)
    return results(folder)


def test_every_metric_runs_on_every_kind_of_data(tmp_path):
    voc_folder(tmp_path / "voc", [(21, 11, 80, 60)])
    (row,) = evaluate(
        EvaluationConfig(
            f"voc2007:{tmp_path / 'voc'}",
            str(tmp_path / "out"),
            methods=("gradcam",),
            metrics=tuple(METRICS),
            **QUICK,
        )
    )
    assert list(row["metrics"]) == list(METRICS)
    assert all(isinstance(value, float) for value in row["metrics"].values())
    assert 0 < row["metrics"]["energy"] < 1


def test_all_methods_are_run_and_the_run_is_known_by_their_names(images, tmp_path):
    options = {"methods": ("all",), "metrics": ("drop",), "num_images": 1}
    rows = evaluate(config(images, tmp_path, **options))
    baselines = ("random", "gaussian", "edges")
    every = [n for n, m in METHODS.items() if m.any_model and n not in baselines]
    assert [row["method"] for row in rows] == every
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["methods"] == every


def test_batches_give_what_single_images_give(images, tmp_path, reference):
    evaluate(config(images, tmp_path, batch_size=3, workers=1))
    for method, values in results(tmp_path).items():
        for name in ("drop", "insertion", "deletion"):
            expected = reference[method][name]["mean"]
            assert values[name]["mean"] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_finished_run_is_not_run_again(images, tmp_path, reference, monkeypatch):
    settings = config(images, tmp_path)
    evaluate(settings)

    def never(*_):
        raise AssertionError("there was nothing left to do")

    monkeypatch.setattr(measuring, "_measured", never)
    rows = evaluate(dataclasses.replace(settings, resume=True))
    assert len(rows) == 10 and results(tmp_path) == reference


def test_ctrl_c_leaves_a_folder_to_resume(images, tmp_path, reference, monkeypatch):
    measured, calls = measuring._measured, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(measuring, "_measured", interrupted)
    assert main(command(images, tmp_path)) == 130
    monkeypatch.undo()
    assert main(command(images, tmp_path, "--resume")) == 0
    assert results(tmp_path) == reference


def test_a_messy_folder_ends_with_every_file_accounted_for(tmp_path, capsys):
    broken = messy_folder(tmp_path / "images")
    code = main(command(tmp_path / "images", tmp_path / "out"))
    assert code == 3
    assert "10 rows, 3 failed" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["failures"]["count"] == 3
    assert [f["id"] for f in report["failures"]["list"]] == broken
    assert report["results"]["unioncam"]["drop"]["n"] == 5
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert all(id in text for id in broken)


def test_a_failing_example_is_recorded_and_the_others_go_on(
    images, tmp_path, monkeypatch
):
    measure = measuring._measured

    def failing(task, label, shown, batch):
        if label == "gradcam" and any(image.item.name == "2.png" for image in shown):
            raise RuntimeError("too bad\nfor this one")
        return measure(task, label, shown, batch)

    monkeypatch.setattr(measuring, "_measured", failing)
    rows = evaluate(config(images, tmp_path, batch_size=5))
    assert len(rows) == 10
    (failed,) = [row for row in rows if "error" in row]
    assert (failed["id"], failed["method"]) == ("2.png", "gradcam")
    assert failed["error"] == "RuntimeError: too bad"


def test_an_example_whose_target_cannot_be_told_is_recorded(
    images, tmp_path, monkeypatch
):
    target = measuring._target

    def failing(task, item):
        if item.name == "1.png":
            raise RuntimeError("no output")
        return target(task, item)

    monkeypatch.setattr(measuring, "_target", failing)
    settings = config(images, tmp_path)
    rows = evaluate(settings)
    (failed,) = [row for row in rows if "error" in row]
    assert (failed["id"], failed["method"]) == ("1.png", None)
    assert failed["error"] == "RuntimeError: no output"
    monkeypatch.undo()  # what failed is tried again
    rows = evaluate(dataclasses.replace(settings, resume=True))
    assert len(rows) == 10 and not any("error" in row for row in rows)


def test_a_folder_without_a_readable_image_still_gets_a_report(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "text.jpg").write_text("no image")
    assert main([*command(tmp_path / "images", tmp_path / "out"), "--sanity", "2"]) == 3
    assert "There is no image to explain" in (tmp_path / "out/report.md").read_text()


def test_noise_does_not_depend_on_the_batch(images, tmp_path):
    values = []
    for size in (1, 4):
        rows = evaluate(
            config(
                images,
                tmp_path / str(size),
                methods=("gradcam",),
                metrics=("infidelity", "sensitivity"),
                batch_size=size,
            )
        )
        values.append([list(row["metrics"].values()) for row in rows])
    for one, four in zip(*values, strict=True):
        assert one == pytest.approx(four, rel=1e-3)


def test_rows_that_are_missing_are_no_report(images, tmp_path, monkeypatch):
    shard = Processes.shard
    monkeypatch.setattr(Processes, "shard", lambda self, all: shard(self, all)[1:])
    with pytest.raises(ValueError, match="`output`: 2 rows are missing; all processes"):
        evaluate(config(images, tmp_path))
    assert not (tmp_path / "report.json").exists()


def test_images_that_are_gone_are_another_run(images, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes((images / "0.png").read_bytes())
    settings = config(tmp_path / "data", tmp_path / "out", methods=("gradcam",))
    evaluate(settings)
    (tmp_path / "data" / "a.png").rename(tmp_path / "data" / "c.png")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match="holds rows of a.png, which this run would"):
        evaluate(dataclasses.replace(settings, resume=True))
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_labels_are_classes_of_the_model(images, tmp_path):
    for folder in ("281", "tiger_cat", "no such class"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        content = (images / "0.png").read_bytes()
        (tmp_path / "data" / folder / "cat.png").write_bytes(content)
    rows = evaluate(
        config(
            tmp_path / "data", tmp_path / "out", target="label", methods=("gradcam",)
        )
    )
    assert [row.get("target") for row in rows] == [281, None, 282]
    assert "its label is no class of the model" in rows[1]["error"]


def test_another_run_is_refused_and_nothing_is_touched(images, tmp_path, capsys):
    assert main(command(images, tmp_path, "--num-images", "1")) == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for options, message in [
        (["--num-images", "1"], "holds a run already; pass --resume"),
        (["--num-images", "1", "--resume", "--steps", "3"], "(steps was 2, is 3)"),
        (["--num-images", "1", "--resume", "--theta", "5"], "(theta was 10.0, is 5.0)"),
    ]:
        capsys.readouterr()
        assert main(command(images, tmp_path, *options)) == 2
        assert message in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("options", [{"amp": True}, {"compile": True}], ids=str)
def test_faster_ways_give_nearly_the_same(
    images, tmp_path, reference, options, monkeypatch
):
    compiled = []
    if "compile" in options:  # which takes half a minute for real
        monkeypatch.setattr(torch, "compile", lambda m, **_: compiled.append(m) or m)
    evaluate(config(images, tmp_path, **options))
    values = results(tmp_path)["unioncam"]["insertion"]["mean"]
    expected = reference["unioncam"]["insertion"]["mean"]
    assert expected > 0.1, "a score of nothing is always nearly the same"
    assert values == pytest.approx(expected, abs=0.05)
    assert len(compiled) == ("compile" in options)
    if "amp" in options:
        assert values != expected, "bfloat16 rounds to three digits"
