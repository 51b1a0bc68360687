"""A finished folder gets more methods and images, and keeps its rows."""

import dataclasses
import json

import pytest
from folders import crop
from runs import command, config, results

from captum_unioncam.cli import main
from captum_unioncam.errors import ConfigError, DataError
from captum_unioncam.evaluation import measuring
from captum_unioncam.evaluation.runner import evaluate

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_model", "no_pictures")

# Metrics with noise, which must not depend on the other images.
ALL = {"methods": ("gradcam", "layercam"), "metrics": ("drop", "infidelity")}


@pytest.fixture
def data(images, tmp_path):
    """A folder of two images that a test may add to."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("2.png", "4.png"):
        (folder / name).write_bytes((images / name).read_bytes())
    return folder


@pytest.fixture
def measured(monkeypatch):
    """Lists the images and methods that are run."""
    measure, seen = measuring._measured, []

    def listed(task, label, shown, batch):
        seen.extend((image.item.name, label) for image in shown)
        return measure(task, label, shown, batch)

    monkeypatch.setattr(measuring, "_measured", listed)
    return seen


def lines(folder):
    return (folder / "rows-00000.jsonl").read_text().splitlines()


def test_a_method_is_added_and_the_rows_are_kept(data, tmp_path, measured):
    settings = config(data, tmp_path / "out", **ALL)
    evaluate(dataclasses.replace(settings, methods=("gradcam",)))
    before = lines(tmp_path / "out")
    measured.clear()
    more = dataclasses.replace(settings, methods=("layercam",), resume=True)
    rows = evaluate(more)
    assert measured == [("2.png", "layercam"), ("4.png", "layercam")]
    assert lines(tmp_path / "out")[:2] == before
    # The report is of all of them, those of before first.
    assert [row["method"] for row in rows] == ["gradcam", "layercam"] * 2
    known = json.loads((tmp_path / "out" / "config.json").read_text())
    assert known["methods"] == list(known["sources"]) == ["gradcam", "layercam"]
    evaluate(dataclasses.replace(settings, output=str(tmp_path / "whole")))
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    measured.clear()
    assert len(evaluate(more)) == 4 and not measured


def test_images_are_added_before_and_between_the_old_ones(data, tmp_path, measured):
    settings = config(data, tmp_path / "out", **ALL)
    evaluate(settings)
    before = lines(tmp_path / "out")
    for i in (1, 3):
        crop(20 * i).save(data / f"{i}.png")
    measured.clear()
    rows = evaluate(dataclasses.replace(settings, resume=True))
    assert {name for name, _ in measured} == {"1.png", "3.png"}
    assert lines(tmp_path / "out")[:4] == before
    assert [(row["id"], row["index"]) for row in rows[::2]] == [
        (f"{i}.png", i - 1) for i in (1, 2, 3, 4)
    ]
    evaluate(dataclasses.replace(settings, output=str(tmp_path / "whole")))
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_a_random_choice_of_images_grows(images, tmp_path, measured, capsys):
    arguments = [*command(images, tmp_path), "--methods", "gradcam"]
    assert main([*arguments, "--num-images", "2"]) == 0
    first = {name for name, _ in measured}
    measured.clear()
    assert main([*arguments, "--num-images", "4", "--resume"]) == 0
    assert "4 rows, 0 failed" in capsys.readouterr().out
    assert len(measured) == 2 and not first & {name for name, _ in measured}
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert main([*arguments, "--num-images", "2", "--resume"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--output: " in error and "and 1 more, which this run would leave" in error
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_an_added_image_under_an_old_name_is_refused(data, tmp_path):
    settings = config(data, tmp_path / "out", **ALL)
    evaluate(settings)
    crop(7).save(data / "2.png")
    crop(9).save(data / "3.png")
    with pytest.raises(DataError, match="`data`: 2.png has changed since its rows"):
        evaluate(dataclasses.replace(settings, resume=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("drop",)}, "measures.infidelity was"),
        ({"methods": ("xgradcam",), "theta": 5.0}, "theta was 10.0, is 5.0"),
        ({"seed": 1}, "seed was 0, is 1"),
    ],
    ids=str,
)
def test_everything_else_must_be_the_same(options, message, data, tmp_path):
    settings = config(data, tmp_path / "out", **ALL)
    evaluate(settings)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(ConfigError, match=message):
        evaluate(dataclasses.replace(settings, resume=True, **options))
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_the_noise_of_an_image_is_its_own():
    seeds = {measuring.noise_seed(s, n) for s in (0, 1) for n in ("a.png", "b.png")}
    assert len(seeds) == 4 and all(0 <= seed < 2**56 for seed in seeds)
    assert measuring.noise_seed(0, "\udcff.png") == measuring.noise_seed(
        0, "\udcff.png"
    )
