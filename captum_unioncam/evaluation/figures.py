"""The figures of a report. Matplotlib is imported by the functions that draw."""

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from captum_unioncam.evaluation.document import Column
from captum_unioncam.evaluation.statistics import Estimate, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
FEW = 6  # lines that a reader can follow over each other's bands
LINE_STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def bars_figure(summary: Summary, columns: Mapping[str, Column]) -> "Figure":
    """Draws a panel of bars a metric, a bar a method, with standard errors."""
    from matplotlib.figure import Figure

    inches = 1.1 + 0.32 * max(len(summary), 1)
    figure = Figure(figsize=(2 + 3.6 * len(columns), inches), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, (name, column) in zip(panels, columns.items(), strict=True):
        estimates = [values[name] for values in summary.values()]
        means = [e.mean or 0.0 for e in estimates]
        errors = [e.standard_error or 0.0 for e in estimates]
        bars = axis.barh(
            list(summary),
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
    panels[0].set_ylim(max(len(summary), 1) - 0.5, -0.5)  # the first method on top
    return figure


def curves_figure(
    curves: Mapping[str, Mapping[str, list[Estimate]]], columns: Mapping[str, Column]
) -> "Figure":
    """Draws a panel a kind of curve, with bands of one standard error each way."""
    from matplotlib.figure import Figure

    methods = list(dict.fromkeys(m for kind in curves.values() for m in kind))
    size = (2.5 + 4 * len(curves), max(3.6, 0.5 + 0.22 * len(methods)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    few = len(methods) <= FEW
    lines = {}
    for axis, (kind, by_method) in zip(panels, curves.items(), strict=True):
        for method, points in by_method.items():
            place = methods.index(method)
            fractions = [i / max(len(points) - 1, 1) for i in range(len(points))]
            means = [math.nan if p.mean is None else p.mean for p in points]
            errors = [p.standard_error or 0.0 for p in points]
            (lines[method],) = axis.plot(
                fractions,
                means,
                color=f"C{place % 10}",
                linestyle=("-", "--", ":")[place // 10 % 3],
                linewidth=1.8 if few else 1.2,
                zorder=3 - place / len(methods),  # the first method on top
            )
            axis.fill_between(
                fractions,
                [m - e for m, e in zip(means, errors, strict=True)],
                [m + e for m, e in zip(means, errors, strict=True)],
                color=f"C{place % 10}",
                alpha=0.2 if few else 0.08,
                linewidth=0,
            )
        axis.set_title(columns[kind].heading, fontsize="medium")
        axis.set_xlabel("fraction of the pixels")
        axis.set_xlim(0, 1)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("score of the class")
    figure.legend(
        [lines[method] for method in methods],
        [f"{method} ({_counts(curves, method)})" for method in methods],
        loc="outside right upper",
        fontsize="small",
        frameon=False,
    )
    return figure


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
