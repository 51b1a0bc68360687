"""The sections of a report: which tables there are, and what is in them."""

import json
import re

import pytest
from reports import context, failure, row, tables, written

from captum_unioncam.evaluation import sections
from captum_unioncam.evaluation import tables as numbers
from captum_unioncam.evaluation.metrics import Metric

MAPS = ["constant maps", "maps not finite"]


def measured(label, values, metric="drop"):
    """Returns the rows of a method, one for each image."""
    return [row(i, label, **{metric: value}) for i, value in enumerate(values)]


def bold_methods(table):
    return [cells[0] for cells in table[1:] if "**" in cells[1]]


NEAR = [10.0, 22, 30, 42, 50, 62, 70, 82]  # 1 more than FIRST on the mean, never less
FIRST = [10.0, 20, 30, 40, 50, 60, 70, 80]
MIXED = [11.0, 19, 31, 39, 51, 59, 71, 79.5]  # as often more as less


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # Some differ by nothing, but enough do not: 0 is outside of the interval.
        ({"a": FIRST, "b": NEAR}, ["a"]),
        ({"b": NEAR, "a": FIRST, "c": MIXED}, ["a", "c"]),
        # All are level: there is nothing to mark.
        ({"a": FIRST, "c": MIXED}, []),
        ({"a": FIRST, "d": FIRST}, []),
        # Five images resolve nothing.
        ({"a": FIRST[:5], "b": [v + 9 for v in FIRST[:5]]}, []),
        # A mean that leaves an image out is not ranked, though it is the lowest.
        ({"a": FIRST, "b": NEAR, "e": [0.0] * 7 + [None]}, ["a"]),
        ({"a": FIRST}, []),
    ],
    ids=["two", "three", "all level", "equal", "few", "undefined", "alone"],
)
def test_the_best_and_those_not_resolved_from_it_are_bold(values, expected, tmp_path):
    rows = [r for label, column in values.items() for r in measured(label, column)]
    text = written(tmp_path, rows, context(values, ["drop"]))["report.md"]
    for title in ("Summary", "Average drop and increase"):
        (table,) = tables(text, title)
        assert sorted(bold_methods(table)) == expected
    content = json.loads((tmp_path / "report.json").read_text())
    best = content["comparisons"]["to_best"]["drop"]
    assert best["best"] == "a" and sorted(best["marked"]) == expected


def test_the_summary_comes_first_and_has_a_column_for_each_metric(tmp_path):
    names = ["drop", "own", "insertion", "complexity"]
    labels = ["unioncam", "random:seed=3"]
    rows = [row(0, "unioncam", drop=1.0, insertion=0.25, complexity=0.5)]
    text = written(tmp_path, rows, context(labels, names))["report.md"]
    titles = re.findall("^## (.*)$", text, flags=re.M)
    assert titles[0] == "Summary" and titles[-2:] == ["Failures", "What was run"]
    first = text.split("\n## ")[1]
    assert "random, gaussian and edges look at no model" in first
    (table,) = tables(text, "Summary")
    assert table == [
        [
            "method",
            "average drop, % (lower is better)",
            "own",
            "insertion (higher is better)",
            "complexity (lower is better)",
        ],
        ["unioncam", "1.00", "n/a", "0.2500", "0.5000"],
        ["random:seed=3", "n/a", "n/a", "n/a", "n/a"],
    ]
    text = written(tmp_path, rows, context(labels[:1], names))["report.md"]
    assert "look at no model" not in text


def test_methods_are_compared_with_a_reference_on_the_same_images(tmp_path):
    rows = measured("a", FIRST) + measured("b", [v + 2 for v in FIRST[:7]] + [None])
    rows += measured("c", [5.0, *FIRST[1:]])
    asked = context(["a", "b", "c"], ["drop"], images=8)
    text = written(tmp_path, rows, asked)["report.md"]
    (table,) = tables(text, "Differences to a")
    assert table == [
        ["minus a", "average drop, % (lower is better)"],
        ["b", "**+2.00 \\[+2.00, +2.00\\], 0 % (7)**"],
        ["c", "-0.62 \\[-1.88, +0.00\\], 56 %"],  # a win, and seven draws
    ]
    text = written(tmp_path, rows, asked | {"reference": "b"})["report.md"]
    (table,) = tables(text, "Differences to b")
    assert [cells[0] for cells in table] == ["minus b", "a", "c"]
    assert (
        "## Differences"
        not in written(tmp_path, measured("a", FIRST), context(["a"], ["drop"]))[
            "report.md"
        ]
    )


def test_the_area_stands_beside_the_drop_alone(tmp_path):
    rows = [row(0, drop=1.0, increase=0.0, complexity=0.5)]
    names = ["increase", "complexity", "drop"]
    text = written(tmp_path, rows, context(metrics=names))["report.md"]
    (table,) = tables(text, "Average drop and increase")
    assert table[1][:4] == ["unioncam", "1.00 (1)", "0.5000 (1)", "0.00 (1)"]
    assert "Broad maps lose less" in text and "Further metrics" not in text
    text = written(tmp_path, rows, context(metrics=names[:2]))["report.md"]
    (table,) = tables(text, "Further metrics")
    assert table[1][:2] == ["unioncam", "0.5000 (1)"]
    assert "Broad maps" not in text


def test_every_metric_has_its_table(tmp_path, monkeypatch):
    share = Metric(
        "share of hits, %", len, "hits", "Someone 2020", "higher", lambda m: m.maps
    )
    monkeypatch.setattr(numbers, "METRICS", dict(numbers.METRICS, hits=share))
    names = ["a", "insertion", "drop", "hits", "b", "c", "d"]
    values = {name: i / 10 for i, name in enumerate(names)}
    text = written(tmp_path, [row(0, **values)], context(metrics=names))["report.md"]
    (drop,) = tables(text, "Average drop and increase")
    assert drop == [
        ["method", "average drop, % (lower is better)", *MAPS],
        ["unioncam", "0.20 (1)", "0", "0"],
    ]
    (insertion,) = tables(text, "Insertion and deletion")
    assert insertion[1] == ["unioncam", "0.1000 (1)", "0", "0"]
    four, one = tables(text, "Further metrics")
    assert four == [
        ["method", "a", "share of hits, % (higher is better)", "b", "c", *MAPS],
        ["unioncam", "0.0000 (1)", "0.30 (1)", "0.4000 (1)", "0.5000 (1)", "0", "0"],
    ]
    assert one == [["method", "d", *MAPS], ["unioncam", "0.6000 (1)", "0", "0"]]
    (cost,) = tables(text, "Cost")
    assert cost[1] == ["unioncam", "0.500 (1)", "7.0 (1)", "0", "0"]


def test_maps_that_show_nothing_are_counted_in_every_table_and_win_none(tmp_path):
    constant, broken = {"constant_map": True}, {"broken_map": True}
    metrics = ["drop", "insertion", "coherency"]
    labels = ["unioncam", "regioncam", "gradcam", "layercam"]
    # The best values are those of maps that show nothing.
    values = {
        "unioncam": {"drop": 1.0, "insertion": 0.9, "coherency": 1.0},
        "regioncam": {"drop": 0.0, "insertion": 1.0, "coherency": 1.0},
        "gradcam": {"drop": 2.0, "insertion": 0.8, "coherency": 0.2},
        "layercam": {"drop": 3.0, "insertion": 0.7, "coherency": 0.1},
    }
    rows = [row(i, label, **values[label]) for i in range(7) for label in labels]
    rows[0] |= constant
    rows[1] |= broken
    rows += [failure(8, "broken", "gradcam")]
    texts = written(tmp_path, rows, context(labels, metrics, ablation=True))
    counts = {"unioncam": ["1", "0"], "regioncam": ["0", "1"]}
    titles = ["Average drop and increase", "Insertion and deletion", "Further metrics"]
    for title in [*titles, "Ablation", "Cost"]:
        (table,) = tables(texts["report.md"], title)
        first = 1 if title == "Ablation" else 0
        assert table[0][-2:] == MAPS
        for cells in table[1:]:
            assert cells[-2:] == counts.get(cells[first], ["0", "0"])
            best = cells[first] == "gradcam" and title in titles
            assert any("**" in cell for cell in cells) == best
    maps = json.loads(texts["report.json"])["maps"]
    assert maps["unioncam"] == {"constant": 1, "broken": 0}
    assert maps["regioncam"] == {"constant": 0, "broken": 1}
    assert "True" in texts["results.csv"].splitlines()[1]


def test_the_layer_that_was_used_is_told_with_its_size(tmp_path):
    asked = context(config={"model": "resnet18", "layer": None})
    asked["layer"] = {"name": "layer4.1", "size": [512, 7, 7]}
    texts = written(tmp_path, [], asked)
    (settings,) = tables(texts["report.md"], "What was run")
    assert ["layer", "layer4.1 (512 x 7 x 7)"] in settings
    assert [cells[0] for cells in settings].count("layer") == 1
    assert json.loads(texts["report.json"])["layer"] == asked["layer"]


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
                "unioncam:select=None",
                "unioncam:theta=x",
                "denoisedgradcam",
            ],
            [
                ["AMD alone", "denoisedgradcam"],
                ["region map alone", "regioncam"],
                ["AMU, without selection", "unioncam:select=None"],
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
    assert "## Ablation" not in text, "it was not asked for"
    text = written(tmp_path, rows, context(labels, ablation=True))["report.md"]
    assert ("## Ablation" in text) == (expected is not None)
    if expected:
        (table,) = tables(text, "Ablation")
        assert [cells[:2] for cells in table[1:]] == expected
        drops = {cells[1]: cells[2].strip("*") for cells in table[1:]}
        assert drops["regioncam"] == f"{labels.index('regioncam')}.00 (1)"


def test_the_best_of_an_ablation_is_that_of_its_variants(tmp_path):
    rows = measured("gradcam", FIRST) + measured("unioncam", NEAR)
    rows += measured("regioncam", [v + 9 for v in NEAR])
    labels = ["gradcam", "unioncam", "regioncam"]
    text = written(tmp_path, rows, context(labels, ["drop"], ablation=True))[
        "report.md"
    ]
    (table,) = tables(text, "Ablation")
    assert [cells[1] for cells in table[1:] if "**" in cells[2]] == ["unioncam"]
    (table,) = tables(text, "Summary")
    assert bold_methods(table) == ["gradcam"]


def test_an_ablation_needs_a_metric_of_the_paper(tmp_path):
    asked = context(["unioncam", "regioncam"], ["own"], ablation=True)
    assert "Ablation" not in written(tmp_path, [], asked)["report.md"]


def test_without_curves_or_bars_there_is_no_plot(tmp_path):
    rows = [row(0, insertion=0.5)]
    texts = written(tmp_path, rows, context(metrics=["insertion"]))
    assert "png" not in texts["report.md"] and not list(tmp_path.glob("*.png"))
    assert tables(texts["report.md"], "Insertion and deletion")


def test_many_failures_are_counted_and_not_all_shown(tmp_path):
    rows = [failure(i, "broken") for i in range(sections.MOST_FAILURES_SHOWN + 5)]
    texts = written(tmp_path, rows, context())
    _, listed = tables(texts["report.md"], "Failures")
    assert len(listed) == 1 + sections.MOST_FAILURES_SHOWN
    assert "5 more are in results.csv" in texts["report.md"]
    assert len(json.loads(texts["report.json"])["failures"]["list"]) == len(rows)
