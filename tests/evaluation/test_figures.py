"""The figures of a report: what is drawn, and that nothing is cut off."""

import io
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reports import context, row

from captum_unioncam.evaluation import document, figures, report, sections, statistics
from captum_unioncam.evaluation.document import Column, Picture, Section
from captum_unioncam.evaluation.figures import (
    bars_figure,
    broken_label,
    curves_figure,
    png_of,
    sanity_figure,
    strip_jpeg,
)
from captum_unioncam.evaluation.report import write_report
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


def test_each_method_has_a_panel_of_its_curves_with_bands_and_their_n():
    a = [Estimate(0.5, 4, 0.1, 0), Estimate(1.0, 3, 0.2, 1)]
    b = [Estimate(0.0, 1, None, 0), Estimate(None, 0, None, 1), Estimate(1, 1, None, 0)]
    drawn = {"insertion": {"a": a, "b": b}, "deletion": {"b": b}}
    figure = curves_figure(drawn, CURVES, "a")
    first, second = figure.axes
    assert [axis.get_title() for axis in (first, second)] == [
        "a\nn = 3 to 4",
        "b\nn = 0 to 1",
    ]
    (line,) = first.lines
    assert line.get_xydata().tolist() == [[0, 0.5], [1, 1]]
    band = first.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(0.4) and band.max() == pytest.approx(1.2)
    reference, insertion, deletion = second.lines
    assert reference.get_xydata().tolist() == line.get_xydata().tolist()
    assert reference.get_linestyle() == "--" != insertion.get_linestyle()
    assert reference.get_color() == insertion.get_color() == line.get_color()
    assert deletion.get_color() != insertion.get_color()
    assert insertion.get_xdata().tolist() == [0, 0.5, 1]
    assert math.isnan(insertion.get_ydata()[1])
    assert len(second.collections) == 2, "the reference has no band there"
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["insertion (higher is better)", "deletion (lower is better)"]


@pytest.mark.parametrize("count", [1, 4, 6, 9])
def test_curves_are_in_rows_of_four_panels_that_share_their_axes(count):
    points = {f"m{i}": [Estimate(i / 9, 9, 0.1, 0)] * 2 for i in range(count)}
    figure = curves_figure({"insertion": points}, CURVES)
    figure.draw_without_rendering()
    assert len(figure.axes) == count
    assert {len(axis.lines) for axis in figure.axes} == {1}
    rows = {round(axis.get_position().y0, 3) for axis in figure.axes}
    assert len(rows) == -(-count // 4)
    assert len({axis.get_ylim() for axis in figure.axes}) == 1
    # The lowest panel of each column tells the fractions.
    told = [axis.xaxis.get_tick_params().get("labelbottom") for axis in figure.axes]
    assert all(told[-min(count, 4) :])


def test_a_label_breaks_behind_a_colon_or_a_plus_alone():
    label = "unioncam:parts=denoisedgradcam+layercam+regioncam:select=None"
    lines = broken_label(label, 26).split("\n")
    assert lines == [
        "unioncam:",
        "parts=denoisedgradcam+",
        "layercam+regioncam:",
        "select=None",
    ]
    assert broken_label("a_name-without.any_place" * 3, 26).count("\n") == 0
    assert broken_label("", 26) == ""


def test_a_strip_is_one_row_under_its_titles():
    photographs = [np.full((20, 40, 3), 200, dtype=np.uint8)] * 5
    content = strip_jpeg(photographs, ["image", *["unioncam:\nx=1\ndrop 1"] * 4])
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == "JPEG"
        assert picture.width == 1000 > 4 * picture.height > 400
        # The last row is of photographs alone.
        assert picture.getpixel((500, picture.height - 20))[0] == pytest.approx(200, 9)


def test_nine_methods_and_six_strips_are_less_than_three_megabytes(tmp_path):
    labels = [f"method{i}" for i in range(9)]
    curves = {"insertion": [0.1, 0.5, 0.9], "deletion": [0.9, 0.2, 0.1]}
    rows = [row(i, m, drop=5.0, curves=curves) for i in range(6) for m in labels]
    noise = np.random.default_rng(0)
    # Photographs are smoother than this noise of 8 x 8 pixels.
    small = noise.integers(0, 255, (10, 28, 28, 3), dtype=np.uint8)
    photographs = list(small.repeat(8, 1).repeat(8, 2))
    strip = strip_jpeg(photographs, ["image", *labels])
    pictures = [Picture(f"gallery-{i}.jpg", "best", strip, 900) for i in range(6)]
    further = Section("Gallery", pictures=tuple(pictures))
    write_report(tmp_path, rows, context(labels), [further])
    assert (tmp_path / "report.html").stat().st_size < 3e6


@pytest.mark.parametrize("count", [1, 20])
def test_no_label_of_a_plot_is_cut_or_overlaps(count):
    long = ":parts=denoisedgradcam+layercam+regioncam:select=None"
    methods = [f"unioncam:theta={i}{long if i % 3 else ''}" for i in range(count)]
    value = Estimate(50.0, 9, 1.0, 0)
    columns = {name: column_of(name) for name in DROP_INCREASE}
    bars = bars_figure({m: dict.fromkeys(columns, value) for m in methods}, columns)
    points = {method: [value, value] for method in methods}
    lines = curves_figure({"insertion": points, "deletion": points}, CURVES)
    for figure in (bars, lines):
        figure.draw_without_rendering()
    labels = bars.axes[0].get_yticklabels()
    assert [label.get_text().replace("\n", "") for label in labels] == methods
    titles = [axis.title for axis in lines.axes]
    for figure, texts in ((bars, labels), (lines, titles)):
        boxes = [text.get_window_extent() for text in texts]
        for box in boxes:
            assert figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1)
            assert figure.bbox.containsy(box.y0) and figure.bbox.containsy(box.y1)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


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
