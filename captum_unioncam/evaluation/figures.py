"""The figures of a report. Matplotlib is imported by the functions that draw."""

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from captum_unioncam.evaluation.document import Column
from captum_unioncam.evaluation.statistics import Estimate, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

DOTS_PER_INCH = 150
PANELS_PER_ROW = 4  # of curves
KIND_COLOURS = ("#1f6fb4", "#d0641a", "#2e8b57", "#8a5fb0")
LABEL_CHARACTERS = 26  # of a line of a label; longer ones break
TILE_INCHES = 1.0  # the width of a photograph in a strip
TILE_CHARACTERS = 16
TILE_DOTS_PER_INCH = 200
TILE_POINTS = 7.0
JPEG_QUALITY = 85
LINE_STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def bars_figure(summary: Summary, columns: Mapping[str, Column]) -> "Figure":
    """Draws a panel of bars a metric, a bar a method, with standard errors."""
    from matplotlib.figure import Figure

    labels = [broken_label(method, LABEL_CHARACTERS) for method in summary]
    lines = max((1 + label.count("\n") for label in labels), default=1)
    inches = 1.1 + max(0.32, 0.18 * lines) * max(len(labels), 1)
    figure = Figure(figsize=(2 + 3.6 * len(columns), inches), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, (name, column) in zip(panels, columns.items(), strict=True):
        estimates = [values[name] for values in summary.values()]
        means = [e.mean or 0.0 for e in estimates]
        errors = [e.standard_error or 0.0 for e in estimates]
        bars = axis.barh(
            range(len(labels)),
            means,
            xerr=errors,
            height=0.7,
            color="#6a9bc8",
            error_kw={"elinewidth": 1, "ecolor": "#333333"},
        )
        texts = [
            "n/a" if e.mean is None else f"{e.mean:.{column.decimals}f}"
            for e in estimates
        ]
        axis.bar_label(bars, texts, padding=4, fontsize="small")
        ends = [m + e for m, e in zip(means, errors, strict=True)]
        axis.set_xlim(0, 1.2 * max(ends, default=0) or 1)  # room for the numbers
        axis.set_title(column.heading, fontsize="medium")
        axis.locator_params(axis="x", nbins=6)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(max(len(summary), 1) - 0.5, -0.5)  # the first method on top
    return figure


def curves_figure(
    curves: Mapping[str, Mapping[str, list[Estimate]]],
    columns: Mapping[str, Column],
    reference: str | None = None,
) -> "Figure":
    """Draws a panel a method, a colour a kind of curve, with bands of standard errors.

    The panels share their axes. The curves of the ``reference``, dashed in each other
    panel, are there to compare with.
    """
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(m for kind in curves.values() for m in kind))
    across = min(PANELS_PER_ROW, max(len(methods), 1))
    down = math.ceil(max(len(methods), 1) / across)
    size = (1 + 2.4 * across, 1 + 2.1 * down)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.ravel())
    colours = dict(zip(curves, itertools.cycle(KIND_COLOURS)))
    lines = {}
    for axis, method in zip(panels, methods, strict=False):
        for kind, by_method in curves.items():
            if reference is not None and reference != method and reference in by_method:
                _curve(axis, by_method[reference], colours[kind], thin=True)
            if method in by_method:
                lines[kind] = _curve(axis, by_method[method], colours[kind])
        title = broken_label(method, LABEL_CHARACTERS)
        axis.set_title(f"{title}\n{_counts(curves, method)}", fontsize="small")
        axis.set_xlim(0, 1)
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for place, axis in enumerate(panels[len(methods) :], len(methods)):
        axis.remove()
        if place >= across:  # the panel above is the lowest of its column
            panels[place - across].xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel("fraction of the pixels", fontsize="medium")
    figure.supylabel("score of the class", fontsize="medium")
    headings = [columns[kind].heading for kind in lines]
    figure.legend(
        list(lines.values()),
        headings,
        loc="outside upper center",
        ncols=2,
        frameon=False,
    )
    return figure


def _curve(
    axis: "Axes", points: Sequence[Estimate], colour: str, thin: bool = False
) -> "Line2D":
    """Draws a mean curve, with its band unless it is thin, and returns the line."""
    fractions = [i / max(len(points) - 1, 1) for i in range(len(points))]
    means = [math.nan if p.mean is None else p.mean for p in points]
    style: dict[str, Any] = {"linestyle": "-", "linewidth": 1.8, "zorder": 3}
    if thin:
        style = {"linestyle": "--", "linewidth": 0.9, "alpha": 0.8, "zorder": 2}
    (line,) = axis.plot(fractions, means, color=colour, **style)
    if not thin:
        errors = [p.standard_error or 0.0 for p in points]
        axis.fill_between(
            fractions,
            [m - e for m, e in zip(means, errors, strict=True)],
            [m + e for m, e in zip(means, errors, strict=True)],
            color=colour,
            alpha=0.2,
            linewidth=0,
        )
    return line


def strip_jpeg(photographs: Sequence[Any], titles: Sequence[str]) -> bytes:
    """Returns photographs in one row, each under its title, as a JPEG.

    Args:
        photographs (Sequence): Arrays of one size, uint8, RGB, (H, W, 3).
        titles (Sequence[str]): One for each; lines are broken already.
    """
    from matplotlib.figure import Figure

    height, width = photographs[0].shape[:2]
    lines = max(title.count("\n") + 1 for title in titles)
    margin = (lines + 0.6) * 1.25 * TILE_POINTS / 72
    inches = TILE_INCHES * height / width + margin
    figure = Figure(figsize=(TILE_INCHES * len(photographs), inches))
    share = 1 / len(photographs)
    for place, (photograph, title) in enumerate(zip(photographs, titles, strict=True)):
        bounds = (place * share, 0, share * 0.97, 1 - margin / inches)
        axis = figure.add_axes(bounds)
        axis.imshow(photograph)
        axis.set_axis_off()
        axis.set_title(title, fontsize=TILE_POINTS, pad=3)
    buffer = io.BytesIO()
    figure.savefig(
        buffer,
        format="jpeg",
        dpi=TILE_DOTS_PER_INCH,
        pil_kwargs={"quality": JPEG_QUALITY},
    )
    return buffer.getvalue()


def broken_label(label: str, characters: int) -> str:
    """Returns a label in lines, which break behind a : or + alone.

    Examples::

        >>> from captum_unioncam.evaluation.figures import broken_label
        >>> broken_label("unioncam:parts=gradcam+layercam:theta=30", 24).split("\\n")
        ['unioncam:parts=gradcam+', 'layercam:theta=30']
    """
    lines = [""]
    for part in re.findall(r"[^:+]*[:+]|[^:+]+", label):
        if lines[-1] and len(lines[-1]) + len(part) > characters:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _counts(curves: Mapping[str, Mapping[str, list[Estimate]]], method: str) -> str:
    """Returns how many images a method's curves are the means of, as text."""
    counts = [p.n for kind in curves.values() for p in kind.get(method, [])]
    low, high = min(counts), max(counts)
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def png_of(figure: "Figure", dots_per_inch: int = DOTS_PER_INCH) -> bytes:
    """Returns a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch)
    return buffer.getvalue()


def sanity_figure(curves: Mapping[str, list[tuple[str, float]]]) -> "Figure":
    r"""Draws the mean rank correlation of each method over the stages.

    Args:
        curves (Mapping[str, list[tuple[str, float]]]): For each method, the stages and
            the mean over the examples of :func:`.randomization_curves`. All methods
            have the same stages. NaN leaves a gap.

    Returns:
        *matplotlib.figure.Figure*, not shown.

    Raises:
        ValueError: If the methods have different stages.

    Examples::

        >>> from captum_unioncam.evaluation.figures import sanity_figure
        >>> curves = {"GradCAM": [("trained", 1.0), ("head", 0.4), ("features", 0.1)]}
        >>> sanity_figure(curves).axes[0].get_ylabel()
        'mean rank correlation (lower is better)'
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    stages = [name for name, _ in next(iter(curves.values()), [])]
    for method, points in curves.items():
        if [name for name, _ in points] != stages:
            raise ValueError(
                "`curves` must have the same stages for each method, expected "
                f"{stages}, got {[name for name, _ in points]} for {method!r}."
            )
    height = max(5, 0.26 * len(curves) + 1)
    figure = Figure(figsize=(max(7.5, 0.6 * len(stages) + 3), height))
    figure.set_layout_engine("constrained")
    axis = figure.add_subplot()
    axis.axhline(0, color="0.6", linewidth=0.8)
    colours = colormaps["tab10"]
    for index, (method, points) in enumerate(curves.items()):
        # Colours return after ten methods, together with another line and marker.
        axis.plot(
            range(len(stages)),
            [value for _, value in points],
            label=method,
            color=colours(index % colours.N),
            linestyle=LINE_STYLES[index // colours.N % len(LINE_STYLES)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4.5,
            linewidth=1.4,
        )
    # The model itself, which may own parameters, has an empty name.
    labels = [name or "(model)" for name in stages]
    axis.set_xticks(range(len(stages)), labels)
    axis.tick_params(axis="x", labelrotation=40)
    for label in axis.get_xticklabels():
        label.set(horizontalalignment="right", rotation_mode="anchor")
    axis.set_ylim(top=1.05)
    axis.set_xlabel("randomized from the head down to")
    axis.set_ylabel("mean rank correlation (lower is better)")
    axis.grid(axis="y", alpha=0.3)
    if curves:
        figure.legend(loc="outside right upper", fontsize="small")
    return figure
