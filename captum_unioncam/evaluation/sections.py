"""The sections of a report, from the means of an evaluation."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from captum_unioncam._files import strict_json
from captum_unioncam.evaluation.config import ABLATION
from captum_unioncam.evaluation.document import Column, Picture, Section, Table
from captum_unioncam.evaluation.figures import bars_figure, curves_figure, png_of
from captum_unioncam.evaluation.metrics import METRICS
from captum_unioncam.evaluation.row import Row
from captum_unioncam.evaluation.statistics import (
    Estimate,
    MapCounts,
    Summary,
    count_maps,
    mean_curves,
)

COLUMNS_PER_TABLE = 4
MOST_FAILURES_SHOWN = 100

DROP_INCREASE = ("drop", "increase")
INSERTION_DELETION = ("insertion", "deletion")
PAPER = DROP_INCREASE + INSERTION_DELETION
MAP_COLUMNS = ("constant maps", "maps not finite")
COST_COLUMNS = {
    "seconds": Column("seconds per image", None, 3),
    "forwards": Column("forward passes per image", None, 1),
}


@dataclass(frozen=True)
class GalleryItem:
    """A picture that stands for a method: one of its best or worst images.

    Attributes:
        label (str): Why it is shown, such as "best drop".
        id (str): The image's.
        value (float or None): The value that it was chosen for.
        png (bytes): The picture, a PNG file.
    """

    label: str
    id: str
    value: float | None
    png: bytes


def report_sections(
    rows: Sequence[Row],
    context: Mapping[str, Any],
    summary: Summary,
    failures: Mapping[str, Any],
    gallery: Mapping[str, Sequence[GalleryItem]],
) -> Iterator[Section]:
    """Yields the report from top to bottom.

    Args:
        rows (Sequence[Row]): The runner's rows.
        context (Mapping[str, Any]): What was run; see :func:`.write_report`.
        summary (Summary): The means of the rows.
        failures (Mapping[str, Any]): The failures among the rows.
        gallery (Mapping[str, Sequence[GalleryItem]]): Pictures to show for methods.
    """
    columns = {name: _column(name) for name in context["metrics"]}
    maps = count_maps(rows, context["methods"])

    def chosen(names: Iterable[str]) -> dict[str, Column]:
        return {name: columns[name] for name in names if name in columns}

    yield _what_was_run(context, failures)
    if shown := chosen(DROP_INCREASE):
        yield _drop_increase(summary, maps, shown)
    shown = chosen(INSERTION_DELETION)
    curves = mean_curves(rows, context["methods"])
    if shown or curves:
        yield _insertion_deletion(summary, maps, shown, curves)
    if others := [name for name in columns if name not in PAPER]:
        starts = range(0, len(others), COLUMNS_PER_TABLE)
        groups = [chosen(others[i : i + COLUMNS_PER_TABLE]) for i in starts]
        tables = tuple(_means(summary, maps, group) for group in groups)
        yield Section("Further metrics", tables=tables)
    variants = _ablation(context["methods"])
    if len(variants) > 1 and (shown := chosen(PAPER)):
        yield Section("Ablation", tables=(_means(summary, maps, shown, variants),))
    yield Section("Cost", tables=(_means(summary, maps, COST_COLUMNS),))
    yield _failed(failures)
    yield from _gallery(gallery)


def _what_was_run(context: Mapping[str, Any], failures: Mapping[str, Any]) -> Section:
    text = (
        f"Methods: {len(context['methods'])}. Images: {context['images']}. Failures: "
        f"{failures['count']}. A value is a mean ± one standard error (number of "
        "images). NaN counts the images for which it is undefined, which the mean "
        "leaves out. A constant map has one value everywhere; one that is not finite "
        "holds NaN or infinities. The best mean of a column is bold, of the methods "
        "without such maps, over the most images."
    )
    facts = [(name, context[name]) for name in ("images", "seed", "hardware")]
    facts += [*context["config"].items(), *context["versions"].items()]
    if "layer" in context:  # the one that was used, whether it was named or found
        size = " x ".join(map(str, context["layer"]["size"]))
        layer = f"{context['layer']['name']} ({size})"
        facts = [fact for fact in facts if fact[0] != "layer"] + [("layer", layer)]
    texts = [(n, v if isinstance(v, str) else strict_json(v)) for n, v in facts]
    rows = list(dict.fromkeys(texts))  # the seed may be in config too
    settings = Table(("setting", "value"), rows, left=2)
    return Section("What was run", text, context["command"], (settings,))


def _drop_increase(
    summary: Summary, maps: Mapping[str, MapCounts], columns: Mapping[str, Column]
) -> Section:
    caption = "Means, with one standard error each way"
    png = png_of(bars_figure(summary, columns))
    return Section(
        "Average drop and increase",
        tables=(_means(summary, maps, columns),),
        pictures=(Picture("drop_increase.png", caption, png),),
    )


def _insertion_deletion(
    summary: Summary,
    maps: Mapping[str, MapCounts],
    columns: Mapping[str, Column],
    curves: Mapping[str, Mapping[str, list[Estimate]]],
) -> Section:
    caption = "Mean curves, with bands of one standard error each way"
    pictures: tuple[Picture, ...] = ()
    if curves:
        drawn = curves_figure(curves, {kind: _column(kind) for kind in curves})
        pictures = (Picture("curves.png", caption, png_of(drawn)),)
    return Section(
        "Insertion and deletion",
        tables=(_means(summary, maps, columns),) if columns else (),
        pictures=pictures,
    )


def _means(
    summary: Summary,
    maps: Mapping[str, MapCounts],
    columns: Mapping[str, Column],
    variants: Mapping[str, str] | None = None,
) -> Table:
    """Returns a table of means, a row a method, or a variant by its name too."""
    labels = list(summary if variants is None else variants)
    first = [(m,) if variants is None else (variants[m], m) for m in labels]
    cells = [
        tuple(_cell(summary[m][name], column) for name, column in columns.items())
        + (f"{maps[m].constant}", f"{maps[m].broken}")
        for m in labels
    ]
    left = 1 if variants is None else 2
    # A map that shows nothing is the least complex of all.
    ranked = {m: summary[m] for m in labels if maps[m].none}
    bold = {
        (labels.index(list(ranked)[row]), left + place)
        for place, (name, column) in enumerate(columns.items())
        for row in _best([v[name] for v in ranked.values()], column.better)
    }
    return Table(
        ("variant", "method")[-left:]
        + tuple(column.heading for column in columns.values())
        + MAP_COLUMNS,
        [names + values for names, values in zip(first, cells, strict=True)],
        left,
        frozenset(bold),
    )


def _cell(value: Estimate, column: Column) -> str:
    """Returns a mean as text, such as "12.30 ± 0.41 (98, 2 NaN)"."""
    counts = [f"{value.n}"] if value.n else []
    counts += [f"{value.nan} NaN"] if value.nan else []
    note = f" ({', '.join(counts)})" if counts else ""
    if value.mean is None:
        return f"n/a{note}"
    text = f"{value.mean:.{column.decimals}f}"
    if value.standard_error is not None:
        text += f" ± {value.standard_error:.{column.decimals}f}"
    return text + note


def _best(values: Sequence[Estimate], better: str | None) -> list[int]:
    """Returns the places of the best mean, of two at least.

    A mean that leaves out images that others have is not compared with theirs.
    """
    most = max((value.n for value in values), default=0)
    means = [value.mean if value.n == most else None for value in values]
    known = [mean for mean in means if mean is not None]
    if better is None or len(known) < 2:
        return []
    best = max(known) if better == "higher" else min(known)
    return [place for place, mean in enumerate(means) if mean == best]


def _column(name: str) -> Column:
    """Returns how the registry's metric of a name is shown, or else any other."""
    if name not in METRICS:
        return Column(name)
    metric = METRICS[name]
    return Column(metric.title, metric.better, 2 if "%" in metric.title else 4)


def _ablation(methods: Sequence[str]) -> dict[str, str]:
    """Returns the variants of UnionCAM among methods, in the paper's order."""
    modules = {
        label: name
        for label, name in ABLATION.items()
        if label in methods and ":theta=" not in label
    }
    matches = [re.fullmatch("unioncam:theta=([0-9.]+)", label) for label in methods]
    thetas = sorted((float(m[1]), m[0]) for m in matches if m)
    return modules | {label: f"UnionCAM, theta {theta:g}" for theta, label in thetas}


def _failed(failures: Mapping[str, Any]) -> Section:
    if not failures["count"]:
        return Section("Failures", "None.")
    reasons = [(reason, str(n)) for reason, n in failures["by_reason"].items()]
    rows = [
        (str(item["id"]), item["method"] or "(the image itself)", item["error"])
        for item in failures["list"][:MOST_FAILURES_SHOWN]
    ]
    more = failures["count"] - len(rows)
    return Section(
        "Failures",
        f"{more} more are in results.csv and report.json." if more else "",
        tables=(
            Table(("reason", "count"), reasons),
            Table(("image", "method", "error"), rows, left=3),
        ),
    )


def _gallery(gallery: Mapping[str, Sequence[GalleryItem]]) -> Iterator[Section]:
    # Ids may hold what a file's name may not, so that numbers name the files.
    numbers = count(1)
    for method, items in gallery.items():
        pictures = tuple(
            Picture(f"gallery-{next(numbers):03}.png", _caption(item), item.png)
            for item in items
        )
        yield Section(f"Gallery of {method}", pictures=pictures)


def _caption(item: GalleryItem) -> str:
    value = "n/a" if item.value is None else f"{item.value:.4g}"
    return f"{item.label}: {item.id} ({value})"
