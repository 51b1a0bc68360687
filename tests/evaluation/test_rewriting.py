"""The report of a folder once more: no model, no images, and the same files."""

import json
import shutil

import pytest
from runs import command, config, results

from captum_unioncam.cli import main
from captum_unioncam.errors import ConfigError
from captum_unioncam.evaluation import rewrite_report, runner, task
from captum_unioncam.evaluation.runner import evaluate

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_model")


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory, one_thread, tiny_model):
    """A folder of a finished run, with all that a report may have."""
    folder = tmp_path_factory.mktemp("finished")
    evaluate(config(images, folder, sanity=1), "the command")
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def report_only(folder, *options):
    return main(["evaluate", "--output", str(folder), "--report-only", *options])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_report_is_written_without_the_model(folder, monkeypatch, capsys):
    def never(*_):
        raise AssertionError("there is no model here")

    monkeypatch.setattr(task, "load_classifier", never)
    monkeypatch.setattr(runner, "evaluate", never)
    before = contents(folder)
    assert report_only(folder) == 0
    after = contents(folder)
    for name in ("report.md", "report.html", "report.tex", "results.csv"):
        assert after[name] == before[name], name
    assert json.loads(after["report.json"]) == json.loads(before["report.json"])
    assert after == before
    assert "10 rows, 0 failed" in capsys.readouterr().out


def test_lost_files_of_the_report_are_written_again(folder):
    before = contents(folder)
    for name in ("report.md", "report.html", "report.tex", "curves.png"):
        (folder / name).unlink()
    rewrite_report(folder)
    assert contents(folder) == before


def test_a_report_may_compare_with_another_method(folder):
    assert report_only(folder, "--reference", "gradcam", "--ablation") == 0
    text = (folder / "report.md").read_text()
    assert "## Differences to gradcam" in text
    content = json.loads((folder / "report.json").read_text())
    assert content["reference"] == "gradcam" and content["ablation"] is True
    rewrite_report(folder)  # as it was before
    assert "## Differences to gradcam" in (folder / "report.md").read_text()


def test_an_interrupted_run_has_a_report_of_what_is_there(folder, capsys):
    path = folder / "rows-00000.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:3]) + whole[3][:50])  # the last one is torn
    for name in ("report.json", "report.md"):
        (folder / name).unlink()
    assert report_only(folder) == 0
    assert "3 rows, 0 failed" in capsys.readouterr().out
    content = json.loads((folder / "report.json").read_text())
    assert (content["images"], content["hardware"]) == (2, "not recorded")
    assert content["command"].endswith("--report-only")
    assert content["config"]["theta"] == 10.0 and "torch" in content["versions"]
    assert {m: v["drop"]["n"] for m, v in results(folder).items()} == {
        "unioncam": 2,
        "gradcam": 1,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "holds rows without a config"),
        (lambda f: (f / "config.json").write_text("{}"), "no configuration of a run"),
        (lambda f: (f / "report.json").write_text("{"), "report.json is no report"),
        (
            lambda f: (f / "report.json").write_text('{"further": [{"title": 3}]}'),
            "a part of .*report.json cannot be read",
        ),
        (lambda f: (f / "gallery-001.jpg").unlink(), "delete the file to do without"),
        (shutil.rmtree, "there is no folder"),
        (lambda f: [p.unlink() for p in f.iterdir()], "holds no run to report on"),
    ],
)
def test_a_folder_without_a_run_is_refused(change, message, folder, capsys):
    change(folder)
    before = contents(folder) if folder.exists() else None
    with pytest.raises(ConfigError, match=f"`output`: .*{message}"):
        rewrite_report(folder)
    assert report_only(folder) == 2
    assert capsys.readouterr().err.startswith("captum-unioncam: error: --output: ")
    assert (contents(folder) if folder.exists() else None) == before


def test_other_options_and_methods_are_refused(folder, images, capsys):
    before = contents(folder)
    assert report_only(folder, "--theta", "3") == 2
    error = capsys.readouterr().err
    assert "--report-only takes --output, --reference, --ablation alone" in error
    assert "leave out --theta" in error
    assert report_only(folder, "--reference", "scorecam") == 2
    assert "--reference must be one of the methods, unioncam" in capsys.readouterr().err
    assert main([*command(images, folder), "--report-only"]) == 2
    assert "leave out --data" in capsys.readouterr().err
    assert contents(folder) == before
