"""The sections of a report, from the means of an evaluation."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captum_unioncam._files import strict_json
from captum_unioncam.evaluation.comparison import (
    CONFIDENCE,
    FEWEST_PAIRS,
    RESAMPLES,
    Comparison,
    Leaders,
    Paired,
    find_leaders,
)
from captum_unioncam.evaluation.config import ABLATION, BASELINES
from captum_unioncam.evaluation.document import Column, Picture, Section, Table
from captum_unioncam.evaluation.figures import bars_figure, curves_figure, png_of
from captum_unioncam.evaluation.statistics import Estimate, MapCounts, Summary
from captum_unioncam.evaluation.tables import (
    column_of,
    differences_table,
    means_table,
    summary_table,
)

COLUMNS_PER_TABLE = 4
DIFFERENCES_PER_TABLE = 3  # their intervals are wide
MOST_FAILURES_SHOWN = 100

DROP_INCREASE = ("drop", "increase")
# Broad maps lose less of the confidence: their area stands beside the drop.
AREA = "complexity"
INSERTION_DELETION = ("insertion", "deletion")
PAPER = DROP_INCREASE + INSERTION_DELETION
COST_COLUMNS = {
    "seconds": Column("seconds per image", None, 3),
    "forwards": Column("forward passes per image", None, 1),
}


@dataclass(frozen=True)
class Findings:
    """What the rows of an evaluation say.

    Attributes:
        summary (Summary): The means of each method.
        maps (Mapping[str, MapCounts]): The maps of each method that show nothing.
        curves (Mapping): The mean curves, by kind and method.
        failures (Mapping[str, Any]): The failures.
        paired (Paired): The values, image by image.
        comparison (Comparison): The methods, compared in pairs.
    """

    summary: Summary
    maps: Mapping[str, MapCounts]
    curves: Mapping[str, Mapping[str, list[Estimate]]]
    failures: Mapping[str, Any]
    paired: Paired
    comparison: Comparison

    @property
    def leaders(self) -> Mapping[str, Leaders]:
        """The best methods of each metric."""
        return self.comparison.leaders


def result_sections(context: Mapping[str, Any], found: Findings) -> Iterator[Section]:
    """Yields what was found, from top to bottom.

    Args:
        context (Mapping[str, Any]): What was run; see :func:`.write_report`.
        found (Findings): What the rows say.
    """
    columns = {name: column_of(name) for name in context["metrics"]}

    def chosen(names: Iterable[str]) -> dict[str, Column]:
        return {name: columns[name] for name in names if name in columns}

    def means(columns: Mapping[str, Column]) -> Table:
        return means_table(found.summary, found.maps, columns, found.leaders)

    yield _summary(context, found, columns)
    if shown := chosen(DROP_INCREASE):
        # The area stands behind the drop.
        shown = chosen(("drop", AREA, "increase") if "drop" in shown else DROP_INCREASE)
        yield _drop_increase(found, means(shown), shown)
    told = set(shown)
    shown = chosen(INSERTION_DELETION)
    if shown or found.curves:
        yield _insertion_deletion(found, [means(shown)] if shown else [])
    told |= set(shown)
    if others := [name for name in columns if name not in told]:
        tables = tuple(
            means(chosen(names)) for names in _few(others, COLUMNS_PER_TABLE)
        )
        yield Section("Further metrics", tables=tables)
    if found.comparison.differences and columns:
        yield _differences(context, found.comparison, columns)
    variants = _ablation(context["methods"]) if context.get("ablation") else {}
    if len(variants) > 1 and (shown := chosen(PAPER)):
        yield _variants(found, shown, variants)
    yield Section("Cost", tables=(means(COST_COLUMNS),))


def closing_sections(context: Mapping[str, Any], found: Findings) -> Iterator[Section]:
    """Yields what failed and how it was run; see :func:`result_sections`."""
    yield _failed(found.failures)
    yield _what_was_run(context)


def _few(names: Sequence[str], most: int) -> list[Sequence[str]]:
    """Returns the names in groups that a table has room for."""
    return [names[i : i + most] for i in range(0, len(names), most)]


def _summary(
    context: Mapping[str, Any], found: Findings, columns: Mapping[str, Column]
) -> Section:
    text = (
        f"Methods: {len(context['methods'])}. Images: {context['images']}. Failures: "
        f"{found.failures['count']}."
    )
    if "model" in context["config"]:
        text += f" Model: {context['config']['model']}."
    if "layer" in context:
        text += f" Layer: {context['layer']['name']}."
    text += " Bold is the best mean of a column, and what is not resolved from it."
    table = summary_table(found.summary, found.leaders, columns)
    return Section("Summary", text, tables=(table,), note=_how_to_read(context, found))


def _how_to_read(context: Mapping[str, Any], found: Findings) -> str:
    text = (
        f"Means over {context['images']} images. Bold are the best mean of a column "
        "and the means that are not resolved from it: those of methods whose paired "
        f"difference to the best one, image by image, has a {CONFIDENCE:.0%} interval "
        f"that contains 0 (percentile bootstrap, {RESAMPLES:,} resamples of the "
        f"images, seed {found.comparison.seed}). Nothing is bold where that is every "
        f"method, as with fewer than {FEWEST_PAIRS} images. Methods with maps that are "
        "constant or not finite, or with a mean over fewer images than others, are not "
        "ranked. The intervals are not corrected for the number of comparisons, and "
        "the best of many methods is partly luck: choose on some images, and report on "
        "others."
    )
    if any(name.partition(":")[0] in BASELINES for name in context["methods"]):
        text += (
            " random, gaussian and edges look at no model: a metric on which one of "
            "them is bold does not tell what the model looks at."
        )
    return text + (
        " In the tables below, a value is a mean ± one standard error (number of "
        "images). NaN counts the images for which it is undefined, which the mean "
        "leaves out. A constant map has one value everywhere; one that is not finite "
        "holds NaN or infinities."
    )


def _differences(
    context: Mapping[str, Any], comparison: Comparison, columns: Mapping[str, Column]
) -> Section:
    reference = comparison.reference
    text = (
        f"Each method minus {reference} on the same images: the mean difference, its "
        f"{CONFIDENCE:.0%} interval (as above), and the share of the images on which "
        f"the method is better than {reference} (equal ones count half). Bold is what "
        "an interval without 0 resolves, for better or for worse. A number in "
        "parentheses is that of the images, where some have no value."
    )
    tables = tuple(
        differences_table(
            comparison, {name: columns[name] for name in names}, context["images"]
        )
        for names in _few(list(columns), DIFFERENCES_PER_TABLE)
    )
    return Section(f"Differences to {reference}", text, tables=tables)


def _what_was_run(context: Mapping[str, Any]) -> Section:
    facts = [(name, context[name]) for name in ("images", "seed", "hardware")]
    facts += [*context["config"].items(), *context["versions"].items()]
    if "layer" in context:  # the one that was used, whether it was named or found
        size = " x ".join(map(str, context["layer"]["size"]))
        layer = f"{context['layer']['name']} ({size})"
        facts = [fact for fact in facts if fact[0] != "layer"] + [("layer", layer)]
    texts = [(n, v if isinstance(v, str) else strict_json(v)) for n, v in facts]
    rows = list(dict.fromkeys(texts))  # the seed may be in config too
    settings = Table(("setting", "value"), rows, left=2)
    return Section("What was run", "", context["command"], (settings,))


def _drop_increase(
    found: Findings, table: Table, columns: Mapping[str, Column]
) -> Section:
    caption = "Means, with one standard error each way"
    png = png_of(bars_figure(found.summary, columns))
    text = ""
    if AREA in columns:
        text = (
            "Broad maps lose less of the confidence, whatever they show: read the drop "
            "beside the complexity, which is the mean of the map as a mask."
        )
    return Section(
        "Average drop and increase",
        text,
        tables=(table,),
        pictures=(Picture("drop_increase.png", caption, png),),
    )


def _insertion_deletion(found: Findings, tables: Sequence[Table]) -> Section:
    reference = found.comparison.reference
    caption = (
        "Mean curves, with bands of one standard error each way; dashed are those of "
        f"{reference}"
    )
    pictures: tuple[Picture, ...] = ()
    if curves := found.curves:
        drawn = curves_figure(
            curves, {kind: column_of(kind) for kind in curves}, reference
        )
        pictures = (Picture("curves.png", caption, png_of(drawn)),)
    return Section("Insertion and deletion", "", "", tuple(tables), pictures)


def _variants(
    found: Findings, columns: Mapping[str, Column], variants: Mapping[str, str]
) -> Section:
    """Returns the ablation, whose best is that of the variants."""
    leaders = find_leaders(found.paired, found.summary, found.maps, list(variants))
    table = means_table(found.summary, found.maps, columns, leaders, variants)
    return Section("Ablation", tables=(table,))


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
