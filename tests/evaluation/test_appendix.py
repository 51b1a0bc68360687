"""What follows the tables of a report: the gallery and the sanity check."""

import json
import re

import pytest
from PIL import Image
from runs import config

from captum_unioncam.evaluation import appendix, measuring, runner
from captum_unioncam.evaluation.runner import evaluate

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_model")


def captions(text):
    """Returns the lines of the gallery's pictures."""
    return re.findall(r"!\[(.*)\]\(gallery-\d+.jpg\)", text)


def ranked(folder, method="gradcam", metric="insertion"):
    """Returns the images by falling values of a method, as the gallery names them."""
    rows = map(json.loads, (folder / "rows-00000.jsonl").open())
    chosen = [row for row in rows if row["method"] == method]
    chosen.sort(key=lambda row: -row["metrics"][metric])
    return [
        f"{row['id']}, {row['target_name']} "
        f"({metric} of {method}: {row['metrics'][metric]:.4g})"
        for row in chosen
    ]


def test_a_sanity_check_and_a_gallery_are_part_of_the_report(images, tmp_path):
    evaluate(config(images, tmp_path, methods=("gradcam", "layercam"), sanity=1))
    text = (tmp_path / "report.md").read_text()
    assert "## Randomisation of the model" in text and "| gradcam | 1.00 |" in text
    html = (tmp_path / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 3
    assert html.count("data:image/jpeg;base64,") == 5
    assert "best and the worst insertion of gradcam, under all methods" in text
    names = ranked(tmp_path)
    best, worst = names[:3], names[3:]
    assert captions(text) == [f"best: {n}" for n in best] + [
        f"worst: {n}" for n in worst
    ]
    assert "The number above a map is its insertion." in text
    for number in range(1, 6):
        with Image.open(tmp_path / f"gallery-00{number}.jpg") as picture:
            # The image and five maps in one row, under two lines of titles.
            assert 600 == picture.width > 2 * picture.height
    titles = ("Gallery", "Randomisation of the model", "Failures", "What was run")
    places = [text.index(f"## {title}") for title in titles]
    assert places == sorted(places)


def test_a_strip_names_each_method_and_its_value(images, tmp_path, monkeypatch):
    drawn = []
    strip = appendix.strip_jpeg

    def spying(photographs, titles):
        drawn.append((len(photographs), titles))
        return strip(photographs, titles)

    monkeypatch.setattr(appendix, "strip_jpeg", spying)
    labels = ("gradcam", "unioncam:parts=gradcam+regioncam:select=None")
    evaluate(config(images, tmp_path, methods=labels, num_images=1))
    rows = map(json.loads, (tmp_path / "rows-00000.jsonl").open())
    values = {row["method"]: f"{row['metrics']['insertion']:.4g}" for row in rows}
    ((count, titles),) = drawn
    assert count == len(titles) and titles[0] == "image"
    assert titles[1] == f"gradcam\ninsertion {values['gradcam']}"
    parts = "unioncam:\nparts=gradcam+\nregioncam:\nselect=None"
    assert titles[2] == f"{parts}\ninsertion {values[labels[1]]}"


def test_the_gallery_is_by_the_reference_and_the_first_metric(images, tmp_path):
    options = {"metrics": ("drop", "complexity"), "reference": "layercam"}
    evaluate(config(images, tmp_path, methods=("gradcam", "layercam"), **options))
    text = (tmp_path / "report.md").read_text()
    assert "the best and the worst average drop, % of layercam, under all" in text
    names = ranked(tmp_path, "layercam", "drop")[::-1]
    assert captions(text)[0] == f"best: {names[0]}"


def test_one_image_is_the_best_and_no_image_is_worst(images, tmp_path):
    evaluate(config(images, tmp_path, methods=("gradcam",), num_images=1))
    (line,) = captions((tmp_path / "report.md").read_text())
    assert line.startswith("best: ")


def test_images_without_a_sound_map_of_each_method_are_left_out(
    images, tmp_path, monkeypatch
):
    measure = measuring._measured

    def failing(task, label, shown, batch):
        if label == "layercam" or shown[0].item.name in ("0.png", "1.png", "2.png"):
            raise RuntimeError("too bad")
        return measure(task, label, shown, batch)

    monkeypatch.setattr(measuring, "_measured", failing)
    evaluate(config(images, tmp_path, methods=("gradcam", "layercam")))
    lines = captions((tmp_path / "report.md").read_text())
    assert {re.search("(.).png", line)[1] for line in lines} == {"3", "4"}
    assert [line.split(":")[0] for line in lines] == ["best", "worst"]


def test_an_image_that_is_gone_is_left_out_of_the_gallery(
    images, tmp_path, monkeypatch
):
    (tmp_path / "data").mkdir()
    for path in images.iterdir():
        (tmp_path / "data" / path.name).write_bytes(path.read_bytes())
    report = runner._report

    def removing(*arguments):
        (tmp_path / "data" / "2.png").unlink()
        return report(*arguments)

    monkeypatch.setattr(runner, "_report", removing)
    settings = config(tmp_path / "data", tmp_path / "out", methods=("gradcam",))
    evaluate(settings)
    names = ranked(tmp_path / "out")
    shown = [f"best: {n}" for n in names[:3]] + [f"worst: {n}" for n in names[3:]]
    text = (tmp_path / "out" / "report.md").read_text()
    assert captions(text) == [line for line in shown if "2.png" not in line]


def test_a_sanity_check_that_fails_does_not_cost_the_report(
    images, tmp_path, monkeypatch
):
    def fail(*_):
        raise RuntimeError("no memory\nleft")

    monkeypatch.setattr(appendix, "_curve", fail)
    monkeypatch.setattr(runner, "make_gallery", lambda *_: [])
    options = {"methods": ("gradcam",), "metrics": ("drop",), "num_images": 1}
    rows = evaluate(config(images, tmp_path, sanity=1, **options))
    assert len(rows) == 1
    text = (tmp_path / "report.md").read_text()
    assert "## Randomisation of the model" in text
    assert "It failed: RuntimeError: no memory\n" in text
