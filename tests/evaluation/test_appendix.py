"""What follows the tables of a report: the gallery and the sanity check."""

import json
import re

import pytest
from runs import config

from captum_unioncam.evaluation import appendix, runner
from captum_unioncam.evaluation.runner import evaluate

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_model")


def test_a_sanity_check_and_a_gallery_are_part_of_the_report(images, tmp_path):
    evaluate(config(images, tmp_path, methods=("gradcam",), sanity=1))
    text = (tmp_path / "report.md").read_text()
    assert "## Randomisation of the model" in text and "| gradcam | 1.00 |" in text
    assert text.count("](gallery-") == 4  # two best and two worst of five
    html = (tmp_path / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 7


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
    text = (tmp_path / "out" / "report.md").read_text()
    captions = re.findall(r"!\[(?:best|worst): (.*\.png) ", text)
    values = [
        (row["metrics"]["insertion"], row["id"])
        for row in map(json.loads, (tmp_path / "out/rows-00000.jsonl").open())
    ]
    ranked = [name for _, name in sorted(values, reverse=True)]
    assert captions == [n for n in ranked[:2] + ranked[-2:] if n != "2.png"]


def test_a_sanity_check_that_fails_does_not_cost_the_report(
    images, tmp_path, monkeypatch
):
    def fail(*_):
        raise RuntimeError("no memory\nleft")

    monkeypatch.setattr(appendix, "_curve", fail)
    monkeypatch.setattr(runner, "make_gallery", lambda *_: {})
    options = {"methods": ("gradcam",), "metrics": ("drop",), "num_images": 1}
    rows = evaluate(config(images, tmp_path, sanity=1, **options))
    assert len(rows) == 1
    text = (tmp_path / "report.md").read_text()
    assert "## Randomisation of the model" in text
    assert "It failed: RuntimeError: no memory\n" in text
