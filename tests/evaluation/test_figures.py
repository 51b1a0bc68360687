"""The figures of a report: what is drawn, and that nothing is cut off."""

import math
import re
from pathlib import Path

import pytest

from captum_unioncam.evaluation import document, figures, report, sections, statistics
from captum_unioncam.evaluation.document import Column
from captum_unioncam.evaluation.figures import (
    bars_figure,
    curves_figure,
    png_of,
    sanity_figure,
)
from captum_unioncam.evaluation.sections import (
    DROP_INCREASE,
    INSERTION_DELETION,
    column_of,
)
from captum_unioncam.evaluation.statistics import Estimate

CURVES = {name: column_of(name) for name in INSERTION_DELETION}


def test_bars_are_the_means_with_their_errors_from_the_top_down():
    summary = {
        "a": {"drop": Estimate(20.0, 4, 2.0, 0)},
        "b": {"drop": Estimate(None, 0, None, 4)},
        "c": {"drop": Estimate(5.0, 1, None, 0)},
    }
    figure = bars_figure(summary, {"drop": Column("average drop", "lower", 1)})
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
    drawn = {"insertion": {"a": a, "b": b}, "deletion": {"b": b}}
    figure = curves_figure(drawn, CURVES)
    insertion, deletion = figure.axes
    assert insertion.get_title() == "insertion (higher is better)"
    assert deletion.get_title() == "deletion (lower is better)"
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
    columns = {name: column_of(name) for name in DROP_INCREASE}
    bars = bars_figure({m: dict.fromkeys(columns, value) for m in methods}, columns)
    points = {method: [value, value] for method in methods}
    lines = curves_figure({"insertion": points, "deletion": points}, CURVES)
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


@pytest.mark.parametrize("methods", [0, 1, 15])
def test_the_sanity_figure_has_a_line_for_each_method(methods):
    points = [("trained", 1.0), ("head", 0.5), ("", math.nan)]
    curves = {f"method {index}": points for index in range(methods)}
    figure = sanity_figure(curves)
    figure.draw_without_rendering()
    (axis,) = figure.axes
    lines = [line for line in axis.lines if line.get_marker() != "None"]
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(lines) == len(looks) == methods
    if methods:
        assert lines[0].get_ydata()[:2].tolist() == [1, 0.5]
        labels = [label.get_text() for label in axis.get_xticklabels()]
        assert labels == ["trained", "head", "(model)"]
        assert axis.get_xticklabels()[0].get_rotation() == 40
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        assert texts == list(curves)


def test_the_sanity_figure_refuses_different_stages():
    curves = {"one": [("trained", 1.0)], "two": [("trained", 1.0), ("head", 0.5)]}
    with pytest.raises(ValueError, match="`curves` must have the same stages .*'two'"):
        sanity_figure(curves)


def test_a_png_has_the_dots_that_it_is_given():
    points = [("trained", 1.0), ("head", 0.5)]
    figure = sanity_figure({"unioncam": points})
    width, height = figure.get_size_inches()
    for dots in (20, 40):
        header = png_of(figure, dots)[:24]
        assert header.startswith(b"\x89PNG")
        size = [int.from_bytes(header[i : i + 4], "big") for i in (16, 20)]
        assert size == [int(width * dots), int(height * dots)]


def test_matplotlib_is_imported_where_a_figure_is_drawn_and_never_pyplot():
    # Captum, which the package needs, imports pyplot itself: only the source can tell.
    source = Path(figures.__file__).read_text()
    assert "    from matplotlib.figure import Figure\n" in source
    for module in (document, figures, report, sections, statistics):
        source = Path(module.__file__).read_text()
        assert not re.search("^(from|import) matplotlib|pyplot", source, flags=re.M)
