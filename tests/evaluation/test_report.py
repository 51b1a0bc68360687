"""The files of a report: exact numbers, every row, and files written whole."""

import csv
import json
import math
import os
import re

import pytest
from reports import PNG, context, failure, refuse_constant, row, tables, written

from captum_unioncam.evaluation.document import Picture, Section, Table
from captum_unioncam.evaluation.report import write_report
from captum_unioncam.evaluation.statistics import list_failures

NAN = math.nan


def test_a_report_says_what_was_run_and_what_was_found(tmp_path):
    curves = {"insertion": [0.0, 1.0], "deletion": [1.0, 0.0]}
    rows = [
        row(0, drop=10.0, increase=100.0, curves=curves),
        row(1, drop=20.0, increase=0.0, curves=curves),
        failure(2, "cannot be read as an image (truncated)"),
    ]
    texts = written(tmp_path / "new" / "folder", rows, context(note=[NAN, math.inf]))
    for name in ("report.md", "report.html"):
        for text in (
            "captum-unioncam evaluate --data images",
            "resnet18",
            "16 CPU cores",
            "2.14.1",
            "15.00 ± 5.00 (2)",
            "50.00 ± 50.00 (2)",
            "cannot be read as an image (truncated)",
            "Failures: 1.",
        ):
            assert text in texts[name], (name, text)
    (settings,) = tables(texts["report.md"], "What was run")
    names = ["images", "seed", "hardware", "model", "theta", "torch"]
    assert [cells[0] for cells in settings[1:]] == names, "each once"
    reasons, listed = tables(texts["report.md"], "Failures")
    assert reasons[1] == ["cannot be read as an image", "1"]
    assert listed[1][:2] == ["002.jpg", "(the image itself)"]
    content = json.loads(texts["report.json"], parse_constant=refuse_constant)
    asked = context(note=[None, None])
    assert {name: content[name] for name in asked} == asked
    drop = {"mean": 15.0, "n": 2, "standard_error": 5.0, "nan": 0}
    seconds = {"mean": 0.5, "n": 2, "standard_error": 0.0, "nan": 0}
    assert content["results"]["unioncam"]["drop"] == drop
    assert content["results"]["unioncam"]["seconds"] == seconds
    assert content["failures"] == list_failures(rows)


def test_markdown_links_to_the_plots_and_html_holds_them(tmp_path):
    rows = [row(0, drop=1.0, curves={"insertion": [0.0, 1.0]})]
    pictures = [Picture(f"own-{i}.png", f"Number {i}", PNG) for i in (1, 2)]
    texts = written(
        tmp_path, rows, context(), [Section("More", pictures=tuple(pictures))]
    )
    links = re.findall(r"!\[(.*)\]\((.*)\)", texts["report.md"])
    files = ["drop_increase.png", "curves.png", "own-1.png", "own-2.png"]
    assert [file for _, file in links] == files
    assert [caption for caption, _ in links[2:]] == ["Number 1", "Number 2"]
    for file in files:
        assert (tmp_path / file).read_bytes().startswith(PNG)
    assert texts["report.html"].count('src="data:image/png;base64,') == len(files)
    sources = re.findall('(?:src|href)="(data:|#section-)?', texts["report.html"])
    assert set(sources) == {"data:", "#section-"}, "the file must need no network"


def test_the_json_holds_the_comparisons_and_what_is_further(tmp_path):
    rows = [row(i, m, drop=float(i + k)) for i in range(6) for k, m in enumerate("ab")]
    table = Table(("x", "y"), [("p", "q")], 1, frozenset({(0, 1)}))
    further = Section("More", "Text.", "code", (table,), (Picture("p.png", "c", PNG),))
    written(tmp_path, rows, context("ab", ["drop"], seed=5), [further])
    content = json.loads((tmp_path / "report.json").read_text())
    less = {"mean": 1.0, "low": 1.0, "high": 1.0, "wins": 0.0, "n": 6}
    assert content["comparisons"] == {
        "confidence": 0.95,
        "resamples": 2000,
        "seed": 5,
        "reference": "a",
        "to_reference": {"b": {"drop": less}},
        "to_best": {
            "drop": {
                "best": "a",
                "not_resolved": ["a"],
                "marked": ["a"],
                "differences": {"b": less},
            }
        },
    }
    (section,) = content["further"]
    assert section == {
        "title": "More",
        "text": "Text.",
        "code": "code",
        "tables": [
            {"header": ["x", "y"], "rows": [["p", "q"]], "left": 1, "bold": [[0, 1]]}
        ],
        "pictures": [{"file": "p.png", "caption": "c", "least_width": 0}],
        "note": "",
    }


def test_csv_holds_every_row_and_digit(tmp_path):
    tricky = 'a,"b"\nc.jpg'
    rows = [
        row(0, drop=0.1 + 0.2, increase=NAN, seconds=1e-7) | {"id": tricky},
        row(1, drop=None),
        failure(2, "cannot be read (é, ü)"),
    ]
    written(tmp_path, rows, context())
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        first, second, third = csv.DictReader(file)
    assert list(first) == ["index", "id", "target", "target_name", "method"] + [
        "drop",
        "increase",
        "constant_map",
        "broken_map",
        "seconds",
        "forwards",
        "error",
    ]
    assert first["id"] == 'a,"b"\\nc.jpg' and first["target_name"] == "Egyptian cat"
    assert float(first["drop"]) == 0.1 + 0.2 and float(first["seconds"]) == 1e-7
    assert first["increase"] == first["error"] == second["drop"] == ""
    assert first["constant_map"] == first["broken_map"] == "False"
    assert third["constant_map"] == ""
    assert third["error"] == "cannot be read (é, ü)" and third["method"] == ""


@pytest.mark.parametrize("methods", [[], ["unioncam", "gradcam"]])
def test_no_rows_are_a_report_too(tmp_path, methods):
    asked = context(methods, ["drop", "insertion", "own"], images=0)
    texts = written(tmp_path, [], asked)
    for title in ("Average drop and increase", "Insertion and deletion", "Cost"):
        (table,) = tables(texts["report.md"], title)
        assert [cells[0] for cells in table[1:]] == methods
        assert {cell for cells in table[1:] for cell in cells[1:]} <= {"n/a", "0"}
    assert bool(methods) == ("## Differences to unioncam" in texts["report.md"])
    content = json.loads(texts["report.json"], parse_constant=refuse_constant)
    nothing = {"mean": None, "n": 0, "standard_error": None, "nan": 0}
    for method in methods:
        assert content["results"][method]["drop"] == nothing
    assert content["failures"] == {"count": 0, "by_reason": {}, "list": []}


def test_a_file_name_that_is_no_text_does_not_cost_the_report(tmp_path):
    odd = os.fsdecode(b"\xff.jpg")
    texts = written(tmp_path, [failure(0, "broken") | {"id": odd}], context())
    assert "\\udcff.jpg" in texts["report.html"]
    assert "\\udcff.jpg" in texts["results.csv"]


def test_a_report_replaces_an_old_one_and_obeys_the_mode_mask(tmp_path):
    written(tmp_path, [row(0, drop=1.0)], context())
    mask = os.umask(0o027)
    try:
        text = written(tmp_path, [row(0, drop=2.0)], context())["report.md"]
    finally:
        os.umask(mask)
    assert "2.00 (1)" in text and "1.00 (1)" not in text
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_killed_write_leaves_the_old_file_alone(tmp_path, monkeypatch, error):
    def fail(*paths):
        raise error

    (tmp_path / "report.md").write_text("old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        write_report(tmp_path, [], context(metrics=[]))
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "old"


def test_a_report_that_cannot_be_made_writes_nothing(tmp_path):
    folder = tmp_path / "report"
    with pytest.raises(ValueError, match=r"lacks \['command', 'seed'\]"):
        asked = context()
        del asked["seed"], asked["command"]
        write_report(folder, [], asked)
    with pytest.raises(ValueError, match="got one of 'gradcam'"):
        write_report(folder, [row(0, "gradcam")], context())
    with pytest.raises(ValueError, match="`reference` must be one of .*, got 'union'"):
        write_report(folder, [], context(reference="union"))
    assert not folder.exists()


def test_the_same_rows_are_the_same_files(tmp_path):
    rows = [row(0, drop=1.0, curves={"insertion": [0.0, 1.0]})]
    for name in "ab":
        write_report(tmp_path / name, rows, context())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


STARTS = ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"]


@pytest.mark.parametrize("before", ["", " ", "\xa0 ", "\u3000"])
@pytest.mark.parametrize("start", STARTS)
def test_no_name_is_a_formula_of_a_spreadsheet(tmp_path, before, start):
    name = f"{before}{start}1+1.jpg"
    rows = [
        row(0, drop=-1.5) | {"id": name, "target_name": name},
        failure(1, f"{before}{start}SUM(A1)", f"{before}{start}cam"),
        row(2) | {"id": "a = 1 - 1.jpg"},
    ]
    write_report(tmp_path, rows, context())
    with open(tmp_path / "results.csv", newline="", encoding="utf-8") as file:
        first, second, third = csv.DictReader(file)
    assert first["id"] == first["target_name"] == f"'{name}"
    assert third["id"] == "a = 1 - 1.jpg"
    assert first["drop"] == "-1.5", "a number is no text"
    assert second["method"] == f"'{before}{start}cam"
    assert second["error"] == f"'{before}{start}SUM(A1)"


@pytest.mark.parametrize("hidden", ["\t", "\r", "\n", "\ufeff", "\x1b[2J", "\u202e"])
@pytest.mark.parametrize("place", ["{}=1+1.jpg", "cat{}=1.jpg"])
def test_what_no_cell_shows_is_escaped_in_it(tmp_path, hidden, place):
    name = place.format(hidden)
    write_report(tmp_path, [row(0) | {"id": name}], context())
    text = (tmp_path / "results.csv").read_bytes().decode()
    assert hidden not in text.replace("\r\n", "")
    assert place.format(hidden.encode("unicode_escape").decode()) in text
