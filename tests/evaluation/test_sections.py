"""The sections of a report: which tables there are, and what is in them."""

import json

import pytest
from reports import context, failure, row, tables, written

from captum_unioncam.evaluation import sections
from captum_unioncam.evaluation.metrics import Metric
from captum_unioncam.evaluation.statistics import estimate

MAPS = ["constant maps", "maps not finite"]


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
    values = [estimate([mean, mean]) for mean in means]
    assert sections._best(values, better) == expected


def test_a_mean_that_leaves_images_out_is_not_the_best():
    values = [estimate([1.0, None]), estimate([2.0, 2.0]), estimate([3.0, 3.0])]
    assert sections._best(values, "lower") == [1]
    assert sections._best(values[:2], "lower") == []


def test_every_metric_has_its_table(tmp_path, monkeypatch):
    share = Metric(
        "share of hits, %", len, "hits", "Someone 2020", "higher", lambda m: m.maps
    )
    monkeypatch.setattr(sections, "METRICS", dict(sections.METRICS, hits=share))
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
    metrics = ["drop", "insertion", "complexity"]
    labels = ["unioncam", "regioncam", "gradcam", "layercam"]
    rows = [
        # The best values are those of maps that show nothing.
        row(0, "unioncam", drop=1.0, insertion=0.9, complexity=0.0) | constant,
        row(1, "unioncam", drop=1.0, insertion=0.9, complexity=0.0),
        row(0, "regioncam", drop=0.0, insertion=1.0, complexity=0.0) | broken,
        row(0, "gradcam", drop=2.0, insertion=0.8, complexity=0.2),
        row(0, "layercam", drop=3.0, insertion=0.7, complexity=0.3),
        failure(2, "broken", "gradcam"),
    ]
    texts = written(tmp_path, rows, context(labels, metrics))
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
    assert ("## Ablation" in text) == (expected is not None)
    if expected:
        (table,) = tables(text, "Ablation")
        assert [cells[:2] for cells in table[1:]] == expected
        drops = {cells[1]: cells[2].strip("*") for cells in table[1:]}
        assert drops["regioncam"] == f"{labels.index('regioncam')}.00 (1)"


def test_an_ablation_needs_a_metric_of_the_paper(tmp_path):
    asked = context(["unioncam", "regioncam"], ["own"])
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
