"""The report: exact numbers, what is shown of them, and files written whole."""

import csv
import json
import math
import os
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from captum_unioncam.evaluation import report
from captum_unioncam.evaluation.registry import Metric
from captum_unioncam.evaluation.report import Column, Estimate, GalleryItem

NAN = math.nan
PNG = b"\x89PNG\r\n\x1a\n"
EVIL = "<script>alert(1)</script>|_x_.jpg"


def row(index, method="unioncam", curves=None, seconds=0.5, forwards=7, **metrics):
    return {
        "index": index,
        "id": f"{index:03}.jpg",
        "target": 285,
        "target_name": "Egyptian cat",
        "method": method,
        "metrics": metrics,
        "curves": curves or {},
        "seconds": seconds,
        "forwards": forwards,
    }


def failure(index, error, method=None):
    return {"index": index, "id": f"{index:03}.jpg", "method": method, "error": error}


def context(methods=("unioncam",), metrics=("drop", "increase"), **more):
    return {
        "command": "captum-unioncam evaluate --data images",
        "config": {"model": "resnet18", "theta": 10.0, "seed": 0},
        "hardware": "16 CPU cores",
        "images": 3,
        "methods": list(methods),
        "metrics": list(metrics),
        "seed": 0,
        "versions": {"torch": "2.14.1"},
    } | more


def written(folder, rows, context, gallery=None):
    """Writes a report and returns its texts by their file's name."""
    paths = report.write_report(folder, rows, context, gallery)
    assert sorted(paths) == sorted(folder.iterdir())
    return {p.name: p.read_text() for p in paths if p.suffix != ".png"}


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def tables(markdown, title):
    """Returns the cells of each table of a section, without the header's rule."""
    section = re.split(rf"^## {title}$", markdown, flags=re.M)[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^\|.*\n)+", section, flags=re.M)
    rows = [[x.strip("| ").split(" | ") for x in b.splitlines()] for b in blocks]
    return [table[:1] + table[2:] for table in rows]


def test_an_estimate_by_hand():
    # Mean 10 / 4; squared distances 2.25 + 0.25 + 0.25 + 2.25 = 5; root of 5 / 3 / 4.
    values = [1.0, 2, None, 3, 4, NAN, math.inf]
    assert report.estimate(values) == Estimate(2.5, 4, math.sqrt(5 / 12), 3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], Estimate(None, 0, None, 0)),
        ([None, NAN], Estimate(None, 0, None, 2)),
        ([7], Estimate(7.0, 1, None, 0)),
        ([5.0, 5.0], Estimate(5.0, 2, 0.0, 0)),
    ],
)
def test_an_estimate_of_few_values(values, expected):
    assert report.estimate(values) == expected


def test_the_order_of_the_rows_changes_no_bit():
    random.seed(0)
    values = [random.gauss(0, 10 ** random.randint(-8, 8)) for _ in range(999)]
    shuffled = random.sample(values, len(values))
    assert sum(values) != sum(shuffled), "a plain sum would not do"
    assert report.estimate(values) == report.estimate(shuffled)


def test_summarize_is_by_method_and_leaves_failures_out():
    rows = [
        row(0, "a", drop=10.0, seconds=1.0, forwards=3),
        row(0, "b", drop=None),
        row(1, "a", drop=20.0, seconds=2.0, forwards=5),
        failure(1, "out of memory", "b"),
        row(2, "b"),  # it has no such value
        failure(2, "cannot be read"),
    ]
    summary = report.summarize(rows, ["b", "a"], ["drop"])
    assert list(summary) == ["b", "a"]
    assert summary["a"] == {
        "drop": Estimate(15.0, 2, 5.0, 0),
        "seconds": Estimate(1.5, 2, 0.5, 0),
        "forwards": Estimate(4.0, 2, 1.0, 0),
    }
    assert summary["b"]["drop"] == Estimate(None, 0, None, 2)
    assert summary["b"]["seconds"].n == 2


def test_rows_of_an_unknown_method_are_refused():
    with pytest.raises(ValueError, match=r"methods \['a'\], got one of 'b'; report"):
        report.summarize([row(0, "b")], ["a"], [])


def test_mean_curves_of_methods_with_different_n():
    rows = [
        row(0, "a", curves={"insertion": [0.0, 1.0], "deletion": [1.0, 0.0]}),
        row(1, "a", curves={"insertion": [0.5, None], "deletion": None}),
        row(0, "b", curves={"insertion": [0.0, 0.5, 1.0]}),
        row(1, "b") | {"curves": None},
        row(0, "c"),
    ]
    curves = report.mean_curves(rows, ["a", "b", "c"])
    assert curves == {
        "insertion": {
            "a": [Estimate(0.25, 2, 0.25, 0), Estimate(1.0, 1, None, 1)],
            "b": [Estimate(v, 1, None, 0) for v in (0.0, 0.5, 1.0)],
        },
        "deletion": {"a": [Estimate(v, 1, None, 0) for v in (1.0, 0.0)]},
    }


def test_curves_of_different_lengths_have_no_mean():
    rows = [row(i, curves={"deletion": [1.0] * (i + 2)}) for i in range(2)]
    with pytest.raises(ValueError, match=r"deletion curves of unioncam .* \[2, 3\]"):
        report.mean_curves(rows, ["unioncam"])


def test_failures_are_listed_and_counted_by_reason():
    errors = ["out of memory", "cannot be read (a)", "cannot be read (b)"]
    failures = [failure(i, error, "unioncam") for i, error in enumerate(errors)]
    assert report.list_failures([row(9), *failures]) == {
        "count": 3,
        "by_reason": {"cannot be read": 2, "out of memory": 1},
        "list": [
            {"id": f"{i:03}.jpg", "method": "unioncam", "error": error}
            for i, error in enumerate(errors)
        ],
    }


def test_bars_are_the_means_with_their_errors_from_the_top_down():
    summary = {
        "a": {"drop": Estimate(20.0, 4, 2.0, 0)},
        "b": {"drop": Estimate(None, 0, None, 4)},
        "c": {"drop": Estimate(5.0, 1, None, 0)},
    }
    figure = report.bars_figure(summary, {"drop": Column("average drop", "lower", 1)})
    (axis,) = figure.axes
    bars, errors = axis.containers[1], axis.containers[0]
    assert [bar.get_width() for bar in bars] == [20.0, 0.0, 5.0]
    segments = errors.lines[2][0].get_segments()
    assert [(s[0][0], s[1][0]) for s in segments] == [(18, 22), (0, 0), (5, 5)]
    assert [text.get_text() for text in axis.texts] == ["20.0", "n/a", "5.0"]
    assert axis.get_title() == "average drop (lower is better)"
    assert axis.yaxis_inverted()


def test_curves_have_bands_and_their_n_in_the_legend():
    a = [Estimate(0.5, 4, 0.1, 0), Estimate(1.0, 3, 0.2, 1)]
    b = [Estimate(0.0, 1, None, 0), Estimate(None, 0, None, 1), Estimate(1, 1, None, 0)]
    figure = report.curves_figure({"insertion": {"a": a, "b": b}, "deletion": {"b": b}})
    insertion, deletion = figure.axes
    first, second = insertion.lines
    assert first.get_xydata().tolist() == [[0, 0.5], [1, 1]]
    assert second.get_xdata().tolist() == [0, 0.5, 1]
    assert math.isnan(second.get_ydata()[1])
    band = insertion.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(0.4) and band.max() == pytest.approx(1.2)
    (line,) = deletion.lines
    assert line.get_color() == second.get_color() != first.get_color()
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["a (n = 3 to 4)", "b (n = 0 to 1)"]


@pytest.mark.parametrize("count", [1, 20])
def test_no_label_of_a_plot_is_cut_or_overlaps(count):
    methods = [f"unioncam:theta={i}" for i in range(count)]
    value = Estimate(50.0, 9, 1.0, 0)
    columns = {name: report._column(name) for name in report.DROP_INCREASE}
    bars = report.bars_figure(
        {m: dict.fromkeys(columns, value) for m in methods}, columns
    )
    points = {method: [value, value] for method in methods}
    lines = report.curves_figure({"insertion": points, "deletion": points})
    for figure in (bars, lines):
        figure.draw_without_rendering()
    labels = bars.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == methods
    for figure, texts in ((bars, labels), (lines, lines.legends[0].texts)):
        boxes = [text.get_window_extent() for text in texts]
        for box in boxes:
            assert figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1)
            assert figure.bbox.containsy(box.y0) and figure.bbox.containsy(box.y1)
        assert all(a.y0 > b.y1 for a, b in zip(boxes, boxes[1:], strict=False))
    colours = {(x.get_color(), x.get_linestyle()) for x in lines.axes[0].lines}
    assert len(colours) == count


def test_markdown_says_mean_error_n_and_nan():
    rows = [
        row(0, "a", drop=10.0, increase=0.0),
        row(1, "a", drop=20.0, increase=None),
        row(0, "b", drop=30.0, increase=None),
    ]
    summary = report.summarize(rows, ["a", "b"], ["drop", "increase"])
    columns = {name: report._column(name) for name in report.DROP_INCREASE}
    table = report._means(summary, columns)
    assert report._markdown_table(table).splitlines() == [
        "| method | average drop, % (lower is better) "
        "| average increase, % (higher is better) |",
        "| --- | ---: | ---: |",
        "| a | **15.00 ± 5.00 (2)** | 0.00 (1, 1 NaN) |",
        "| b | 30.00 (1) | n/a (1 NaN) |",
    ]


@pytest.mark.parametrize(
    ("means", "better", "expected"),
    [
        ([1.0, 3.0, None], "lower", [0]),
        ([1.0, 3.0, 3.0], "higher", [1, 2]),
        ([1.0, 3.0], None, []),
        ([1.0, None], "lower", []),
        ([], "lower", []),
    ],
)
def test_the_best_of_several_is_bold(means, better, expected):
    assert report._best(means, better) == expected


def test_every_metric_has_its_table(tmp_path, monkeypatch):
    share = Metric(
        "share of hits, %", "hits", "hits", "Someone 2020", "higher", lambda m: m.maps
    )
    monkeypatch.setattr(report, "METRICS", dict(report.METRICS, hits=share))
    names = ["a", "insertion", "drop", "hits", "b", "c", "d"]
    values = {name: i / 10 for i, name in enumerate(names)}
    text = written(tmp_path, [row(0, **values)], context(metrics=names))["report.md"]
    (drop,) = tables(text, "Average drop and increase")
    assert drop == [
        ["method", "average drop, % (lower is better)"],
        ["unioncam", "0.20 (1)"],
    ]
    (insertion,) = tables(text, "Insertion and deletion")
    assert insertion[1] == ["unioncam", "0.1000 (1)"]
    four, one = tables(text, "Further metrics")
    assert four == [
        ["method", "a", "share of hits, % (higher is better)", "b", "c"],
        ["unioncam", "0.0000 (1)", "0.30 (1)", "0.4000 (1)", "0.5000 (1)"],
    ]
    assert one == [["method", "d"], ["unioncam", "0.6000 (1)"]]
    (cost,) = tables(text, "Cost")
    assert cost[1] == ["unioncam", "0.500 (1)", "7.0 (1)"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (
            [
                "unioncam:theta=30",
                "unioncam",
                "gradcam",
                "unioncam:theta=5",
                "regioncam",
                "unioncam:select=False",
                "unioncam:theta=x",
                "denoisedgradcam",
            ],
            [
                ["AMD alone", "denoisedgradcam"],
                ["region map alone", "regioncam"],
                ["AMU, without selection", "unioncam:select=False"],
                ["UnionCAM", "unioncam"],
                ["UnionCAM, theta 5", "unioncam:theta=5"],
                ["UnionCAM, theta 30", "unioncam:theta=30"],
            ],
        ),
        (
            ["unioncam", "regioncam"],
            [["region map alone", "regioncam"], ["UnionCAM", "unioncam"]],
        ),
        (["unioncam", "gradcam"], None),  # nothing to compare it with
        (["scorecam", "gradcam"], None),
    ],
)
def test_the_ablation_is_in_the_papers_order(tmp_path, labels, expected):
    rows = [row(0, label, drop=float(i)) for i, label in enumerate(labels)]
    text = written(tmp_path, rows, context(labels))["report.md"]
    assert ("## Ablation" in text) == (expected is not None)
    if expected:
        (table,) = tables(text, "Ablation")
        assert [cells[:2] for cells in table[1:]] == expected
        drops = {cells[1]: cells[2].strip("*") for cells in table[1:]}
        assert drops["regioncam"] == f"{labels.index('regioncam')}.00 (1)"


def test_an_ablation_needs_a_metric_of_the_paper(tmp_path):
    asked = context(["unioncam", "regioncam"], ["own"])
    assert "Ablation" not in written(tmp_path, [], asked)["report.md"]


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
    assert content["failures"] == report.list_failures(rows)


def test_markdown_links_to_the_plots_and_html_holds_them(tmp_path):
    rows = [row(0, drop=1.0, curves={"insertion": [0.0, 1.0]})]
    gallery = {"unioncam": [GalleryItem("best", "7.jpg", 0.25, PNG)]}
    gallery["a/b"] = [GalleryItem("worst", "8.jpg", None, PNG)]
    texts = written(tmp_path, rows, context(), gallery)
    links = re.findall(r"!\[(.*)\]\((.*)\)", texts["report.md"])
    files = ["drop_increase.png", "curves.png", "gallery-001.png", "gallery-002.png"]
    assert [file for _, file in links] == files
    assert [caption for caption, _ in links[2:]] == ["best: 7.jpg (0.25)"] + [
        "worst: 8.jpg (n/a)"
    ]
    for file in files:
        assert (tmp_path / file).read_bytes().startswith(PNG)
    assert texts["report.html"].count('src="data:image/png;base64,') == len(files)
    sources = re.findall('(?:src|href)="(.{5})', texts["report.html"])
    assert set(sources) == {"data:"}, "the file must need no network"


def test_without_curves_or_bars_there_is_no_plot(tmp_path):
    rows = [row(0, insertion=0.5)]
    texts = written(tmp_path, rows, context(metrics=["insertion"]))
    assert "png" not in texts["report.md"] and not list(tmp_path.glob("*.png"))
    assert tables(texts["report.md"], "Insertion and deletion")


class Balance(HTMLParser):
    """Checks that tags close in turn, and collects the tags and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], set(), ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_nothing_of_the_users_is_taken_for_markup(tmp_path):
    rows = [
        row(0, EVIL, drop=1.0),
        failure(1, f"bad {EVIL}\nin two lines") | {"id": EVIL},
    ]
    asked = context([EVIL], command=EVIL, hardware=EVIL, config={EVIL: EVIL})
    gallery = {EVIL: [GalleryItem(EVIL, EVIL, 1.0, PNG)]}
    texts = written(tmp_path, rows, asked, gallery)
    page = Balance()
    page.feed(texts["report.html"])
    assert not page.open and "script" not in page.tags
    assert page.text.count(EVIL) >= 9
    lines = texts["report.md"].splitlines()
    shown = [line for line in lines if not line.startswith("    ")]  # it is code
    assert not any("<script>" in line for line in shown)
    escaped = r"&lt;script&gt;alert(1)&lt;/script&gt;\|\_x\_.jpg"
    assert f"| {escaped} | 1.00 (1) | n/a (1 NaN) |" in lines
    assert f"| {escaped} | (the image itself) | bad {escaped} in two lines |" in lines
    assert f"![{escaped}: {escaped} (1)](gallery-001.png)" in lines


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
        "seconds",
        "forwards",
        "error",
    ]
    assert first["id"] == tricky and first["target_name"] == "Egyptian cat"
    assert float(first["drop"]) == 0.1 + 0.2 and float(first["seconds"]) == 1e-7
    assert first["increase"] == first["error"] == second["drop"] == ""
    assert third["error"] == "cannot be read (é, ü)" and third["method"] == ""


@pytest.mark.parametrize("methods", [[], ["unioncam", "gradcam"]])
def test_no_rows_are_a_report_too(tmp_path, methods):
    asked = context(methods, ["drop", "insertion", "own"], images=0)
    texts = written(tmp_path, [], asked)
    for title in ("Average drop and increase", "Insertion and deletion", "Cost"):
        (table,) = tables(texts["report.md"], title)
        assert [cells[0] for cells in table[1:]] == methods
        assert {cell for cells in table[1:] for cell in cells[1:]} <= {"n/a"}
    content = json.loads(texts["report.json"], parse_constant=refuse_constant)
    nothing = {"mean": None, "n": 0, "standard_error": None, "nan": 0}
    for method in methods:
        assert content["results"][method]["drop"] == nothing
    assert content["failures"] == {"count": 0, "by_reason": {}, "list": []}


def test_many_failures_are_counted_and_not_all_shown(tmp_path):
    rows = [failure(i, "broken") for i in range(report.MOST_FAILURES_SHOWN + 5)]
    texts = written(tmp_path, rows, context())
    _, listed = tables(texts["report.md"], "Failures")
    assert len(listed) == 1 + report.MOST_FAILURES_SHOWN
    assert "5 more are in results.csv" in texts["report.md"]
    assert len(json.loads(texts["report.json"])["failures"]["list"]) == len(rows)


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
        report.write_report(tmp_path, [], context(metrics=[]))
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "old"


def test_a_report_that_cannot_be_made_writes_nothing(tmp_path):
    folder = tmp_path / "report"
    with pytest.raises(ValueError, match=r"lacks \['command', 'seed'\]"):
        asked = context()
        del asked["seed"], asked["command"]
        report.write_report(folder, [], asked)
    with pytest.raises(ValueError, match="got one of 'gradcam'"):
        report.write_report(folder, [row(0, "gradcam")], context())
    assert not folder.exists()


def test_the_same_rows_are_the_same_files(tmp_path):
    rows = [row(0, drop=1.0, curves={"insertion": [0.0, 1.0]})]
    for name in "ab":
        report.write_report(tmp_path / name, rows, context())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_module_imports_matplotlib_where_it_draws_and_never_pyplot():
    # Captum, which the package needs, imports pyplot itself: only the source can tell.
    source = Path(report.__file__).read_text()
    assert "    from matplotlib.figure import Figure\n" in source
    assert not re.search("^(from|import) matplotlib|pyplot", source, flags=re.M)
