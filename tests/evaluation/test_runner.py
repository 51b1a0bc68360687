"""The runner: rows, resuming after any death, ranks, failures, and the folder."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from captum.attr import LayerGradCam
from folders import messy_folder, voc_folder
from PIL import Image
from skimage.data import chelsea

from captum_unioncam import UnionCAM, metrics
from captum_unioncam.cli import main
from captum_unioncam.evaluation import registry, runner
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.distributed import Processes
from captum_unioncam.evaluation.data import unit_range
from captum_unioncam.evaluation.runner import evaluate
from captum_unioncam.models import load_classifier

QUICK = {"max_channels": 2, "steps": 2}
METHODS = ("unioncam", "gradcam")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of five crops of the photograph."""
    folder = tmp_path_factory.mktemp("images")
    cat = Image.fromarray(chelsea())
    for i in range(5):
        cat.crop((20 * i, 0, 300 + 20 * i, 300)).save(folder / f"{i}.png")
    return folder


def config(images, output, **options):
    values = {**QUICK, "methods": METHODS, **options}
    return EvaluationConfig(f"imagefolder:{images}", str(output), **values)


def results(folder):
    """Returns the means of a report, without what differs between equal runs."""
    report = json.loads((folder / "report.json").read_text())
    return {
        method: {name: v for name, v in values.items() if name != "seconds"}
        for method, values in report["results"].items()
    }


@pytest.fixture(scope="module")
def reference(images, tmp_path_factory):
    """The results of one undisturbed process."""
    folder = tmp_path_factory.mktemp("reference")
    rows = evaluate(config(images, folder))
    assert len(rows) == 10 and not any("error" in row for row in rows)
    return results(folder)


def test_a_row_holds_what_the_methods_and_the_metrics_say(images, tmp_path):
    rows = evaluate(config(images, tmp_path, num_images=1, theta=30.0))
    assert [row["method"] for row in rows] == list(METHODS)
    classifier = load_classifier()
    model, layer = classifier.model, classifier.layer()
    with Image.open(images / rows[0]["id"]) as image:
        x = classifier.preprocess(image.convert("RGB"))[None]
    black = classifier.preprocess(Image.new("RGB", (300, 300)))[None]
    with torch.no_grad():
        target = int(model(x).argmax())
    maps = {
        "unioncam": UnionCAM(model, layer).attribute(
            x, target, baselines=black, theta=30, max_channels=2
        ),
        "gradcam": LayerGradCam(model, layer).attribute(
            x, target, relu_attributions=True
        ),
    }
    for row in rows:
        given = (model, x, maps[row["method"]], target, black)
        area, curve = metrics.deletion(*given, steps=2, return_curve=True)
        shown = metrics.insertion(*given[:4], steps=2)
        expected = {
            "drop": 100 * metrics.confidence_drop(*given).item(),
            "increase": 100 * metrics.confidence_increase(*given).item(),
            "insertion": shown.item(),
            "deletion": area.item(),
        }
        assert row["metrics"] == pytest.approx(expected, rel=1e-4)
        assert row["curves"]["deletion"] == pytest.approx(curve[0].tolist(), rel=1e-4)
        assert (row["target"], row["target_name"]) == (
            target,
            classifier.categories[target],
        )
    # 2 channels, the activations, the baseline twice, the components and the union.
    assert [row["forwards"] for row in rows] == [2 + 1 + 2 + 2 + 1, 1]


def test_every_metric_runs_on_every_kind_of_data(tmp_path):
    voc_folder(tmp_path / "voc", [(21, 11, 80, 60)])
    (row,) = evaluate(
        EvaluationConfig(
            f"voc2007:{tmp_path / 'voc'}",
            str(tmp_path / "out"),
            methods=("gradcam",),
            metrics=tuple(registry.METRICS),
            **QUICK,
        )
    )
    assert list(row["metrics"]) == list(registry.METRICS)
    assert all(isinstance(value, float) for value in row["metrics"].values())
    assert 0 < row["metrics"]["energy"] < 1


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

    monkeypatch.setattr(runner, "_measured", never)
    rows = evaluate(dataclasses.replace(settings, resume=True))
    assert len(rows) == 10 and results(tmp_path) == reference


def start(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(images, output, *options):
    return [
        *("evaluate", "--data", f"imagefolder:{images}", "--output", str(output)),
        *("--methods", ",".join(METHODS), "--max-channels", "2", "--steps", "2"),
        *options,
    ]


def test_a_run_killed_at_random_moments_ends_with_the_same_table(
    images, tmp_path, reference
):
    chance = random.Random(0)
    program = [sys.executable, "-m", "captum_unioncam", *command(images, tmp_path)]
    path = tmp_path / "rows-00000.jsonl"
    for death in range(3):
        process = start([*program, *(["--resume"] if death else [])])
        wanted = 2 * death + 1
        while process.poll() is None and (
            not path.exists() or path.read_bytes().count(b"\n") < wanted
        ):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        rows = path.read_bytes().count(b"\n")
        assert wanted <= rows < 10
        assert not (tmp_path / "report.json").exists()
    with path.open("ab") as file:
        file.write(b'{"index": 4, "id": "4.p')  # torn in the middle of a line
    process = start([*program, "--resume"])
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert results(tmp_path) == reference


def test_ctrl_c_leaves_a_folder_to_resume(images, tmp_path, reference, monkeypatch):
    measured, calls = runner._measured, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measured(*arguments)

    monkeypatch.setattr(runner, "_measured", interrupted)
    assert main(command(images, tmp_path)) == 130
    monkeypatch.undo()
    assert main(command(images, tmp_path, "--resume")) == 0
    assert results(tmp_path) == reference


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_give_the_figures_of_one(images, tmp_path, reference, ranks):
    # Three ranks and two images: one rank has nothing to do.
    options = ["--num-images", "2"] if ranks == 3 else []
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += [f"--nproc-per-node={ranks}", "-m", "captum_unioncam"]
    process = start([*torchrun, *command(images, tmp_path / "many", *options)])
    output, error = process.communicate()
    assert process.returncode == 0, error
    if ranks == 3:
        evaluate(config(images, tmp_path / "one", num_images=2))
        reference = results(tmp_path / "one")
    assert results(tmp_path / "many") == reference
    counts = [
        len(path.read_text().splitlines())
        for path in sorted((tmp_path / "many").glob("rows-*.jsonl"))
    ]
    assert counts == ([6, 4] if ranks == 2 else [2, 2, 0])
    assert output.count("report.md") == 1


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
    method, measure = registry.METHODS["gradcam"], runner._measured

    def failing(task, label, batch):
        if label == "gradcam" and any(item.name == "2.png" for item, *_ in batch):
            raise RuntimeError("too bad\nfor this one")
        return measure(task, label, batch)

    monkeypatch.setattr(runner, "_measured", failing)
    rows = evaluate(config(images, tmp_path, batch_size=5))
    assert len(rows) == 10 and method.needs_gradients
    (failed,) = [row for row in rows if "error" in row]
    assert (failed["id"], failed["method"]) == ("2.png", "gradcam")
    assert failed["error"] == "RuntimeError: too bad"


def test_an_example_whose_target_cannot_be_told_is_recorded(
    images, tmp_path, monkeypatch
):
    target = runner._target

    def failing(task, item):
        if item.name == "1.png":
            raise RuntimeError("no output")
        return target(task, item)

    monkeypatch.setattr(runner, "_target", failing)
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


def test_other_images_in_the_folder_are_another_run(images, tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes((images / "0.png").read_bytes())
    settings = config(tmp_path / "data", tmp_path / "out", methods=("gradcam",))
    evaluate(settings)
    (tmp_path / "data" / "a.png").rename(tmp_path / "data" / "c.png")
    with pytest.raises(ValueError, match="another configuration .names was "):
        evaluate(dataclasses.replace(settings, resume=True))


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


def test_a_sanity_check_and_a_gallery_are_part_of_the_report(images, tmp_path):
    evaluate(config(images, tmp_path, methods=("gradcam",), sanity=1))
    text = (tmp_path / "report.md").read_text()
    assert "## Randomisation of the model" in text and "| gradcam | 1.00 |" in text
    assert text.count("](gallery-") == 4  # two best and two worst of five
    html = (tmp_path / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 7


def test_another_run_is_refused_and_nothing_is_touched(images, tmp_path, capsys):
    assert main(command(images, tmp_path, "--num-images", "1")) == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for options, message in [
        (["--num-images", "1"], "holds a run already; pass --resume"),
        (["--num-images", "2", "--resume"], "(num_images was 1, is 2)"),
        (["--num-images", "1", "--resume", "--theta", "5"], "(theta was 10.0, is 5.0)"),
    ]:
        capsys.readouterr()
        assert main(command(images, tmp_path, *options)) == 2
        assert message in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("scorcam",)}, "no method 'scorcam'; did you mean 'scorecam'"),
        ({"methods": ()}, "`methods` must name one method at least"),
        ({"methods": ("unioncam:thet=3",)}, "no option 'thet'; did you mean 'theta'"),
        ({"methods": ("unioncam:theta=x",)}, "the value of 'theta' must be a number"),
        ({"methods": ("unioncam:return_details=True",)}, "no option 'return_details'"),
        ({"methods": ("unioncam:theta=300",)}, r"`theta` must be in \[0, 100\]"),
        ({"metrics": ("dropp",)}, "no metric 'dropp'; did you mean 'drop'"),
        ({"metrics": ()}, "`metrics` must name one metric at least"),
        ({"metrics": ("iou",)}, "iou needs boxes, which voc2007:DIR has"),
        ({"target": "best"}, "`target` must be one of"),
        ({"num_images": 0}, "`num_images` must be at least 1, got 0"),
        ({"theta": 101.0}, r"`theta` must be in \[0, 100\], got 101"),
        ({"layer": "_fc"}, "unioncam cannot run: `layer` must have an activation"),
        ({"layer": "none"}, "has no layer 'none'"),
        ({"device": "tpu9000"}, "`device` tpu9000 cannot be used"),
        ({"weights": "missing.pt"}, "there is no weights file"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_anything_is_written(
    images, tmp_path, options, message
):
    with pytest.raises(ValueError, match=message):
        evaluate(config(images, tmp_path / "out", **options))
    assert not list(tmp_path.glob("out/rows-*"))
    refused = tmp_path / "out" / "config.json"
    assert not refused.exists()


def test_the_papers_protocol_is_a_preset(images, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(runner, "evaluate", lambda c, _: seen.append(c) or [])
    arguments = ["evaluate", "--data", f"imagefolder:{images}", "--output", "x"]
    assert main([*arguments, "--preset", "paper", "--num-images", "7"]) == 0
    assert main([*arguments, "--preset", "ablation", "--methods", "all"]) == 0
    paper, ablation = seen
    assert (paper.model, paper.preprocessing, paper.theta) == ("vgg16", "unit", 10)
    assert (paper.num_images, ablation.num_images) == (7, 2000)
    assert ablation.methods == tuple(registry.METHODS)


def test_the_papers_preprocessing_has_no_mean_and_std():
    white = unit_range(224)(Image.new("RGB", (50, 90), "white"))
    assert white.shape == (3, 224, 224) and (white == 1).all()


@pytest.mark.parametrize("options", [{"amp": True}, {"compile": True}], ids=str)
def test_faster_ways_give_nearly_the_same(
    images, tmp_path, reference, options, monkeypatch
):
    if "compile" in options:  # which takes half a minute for real
        monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    evaluate(config(images, tmp_path, **options))
    values = results(tmp_path)["unioncam"]["insertion"]["mean"]
    expected = reference["unioncam"]["insertion"]["mean"]
    assert values == pytest.approx(expected, abs=0.05)
