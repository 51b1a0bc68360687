"""What an evaluation found: rows become means, means become tables, plots and files.

Every step is a pure function, and :func:`write_report` alone touches the disk. The
Markdown and the HTML report are two renderings of the same sections, so that they
cannot say different things. Matplotlib is imported by the functions that draw.
"""

import base64
import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from captum_unioncam.evaluation.config import ABLATION
from captum_unioncam.evaluation.registry import METRICS
from captum_unioncam.evaluation.rows import Row, strict_json, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Evaluation of class activation maps"
CONTEXT = (
    "command",
    "config",
    "hardware",
    "images",
    "methods",
    "metrics",
    "seed",
    "versions",
)
DOTS_PER_INCH = 150
COLUMNS_PER_TABLE = 4
MOST_FAILURES_SHOWN = 100
FORMULA = ("=", "+", "-", "@")
FEW = 6  # lines that a reader can follow over each other's bands


class Column(NamedTuple):
    """How the values of a metric are shown."""

    heading: str
    better: str | None = None  # "higher", "lower", or None: neither
    decimals: int = 4


DROP_INCREASE = ("drop", "increase")
INSERTION_DELETION = ("insertion", "deletion")
PAPER = DROP_INCREASE + INSERTION_DELETION
COST = {
    "seconds": Column("seconds per image", None, 3),
    "forwards": Column("forward passes per image", None, 1),
}


@dataclass(frozen=True)
class Estimate:
    """A mean over images, and how far it can be trusted.

    Attributes:
        mean (float or None): Mean of the finite values; None if there are none.
        n (int): Number of finite values.
        standard_error (float or None): Sample standard deviation (of n - 1 degrees of
            freedom) over the root of n; None if n < 2.
        nan (int): Number of values that are undefined: None, NaN or infinite.
    """

    mean: float | None
    n: int
    standard_error: float | None
    nan: int


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


Summary = Mapping[str, Mapping[str, Estimate]]


def estimate(values: Iterable[float | None]) -> Estimate:
    """Returns the mean of values and its standard error, the same in any order.

    Args:
        values (Iterable[float or None]): None, NaN and infinities are counted apart.

    Examples::
        >>> estimate([1.0, 3.0, None])
        Estimate(mean=2.0, n=2, standard_error=1.0, nan=1)
    """
    values = list(values)
    finite = [float(v) for v in values if v is not None and math.isfinite(v)]
    n = len(finite)
    mean = math.fsum(finite) / n if n else None
    error = None
    if mean is not None and n > 1:
        variance = math.fsum((value - mean) ** 2 for value in finite) / (n - 1)
        error = math.sqrt(variance / n)
    return Estimate(mean, n, error, len(values) - n)


def summarize(
    rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    """Returns the mean of each metric, and of the cost, for each method.

    Args:
        rows (Sequence[Row]): The runner's rows; those with an error are left out.
        methods (Sequence[str]): Labels of the methods, in the order of the report.
        metrics (Sequence[str]): Names of the metrics, in the order of the report.

    Returns:
        *dict* of an :class:`Estimate` for each method and each of ``metrics``,
        "seconds" and "forwards". A metric that a row lacks counts as NaN.

    Raises:
        ValueError: If a row is of a method that is not in ``methods``.

    Examples::
        >>> row = {"method": "unioncam", "metrics": {"drop": 10.0}, "seconds": 0.5}
        >>> summarize([row], ["unioncam"], ["drop"])["unioncam"]["drop"]
        Estimate(mean=10.0, n=1, standard_error=None, nan=0)
    """
    summary = {}
    for method, done in _by_method(rows, methods).items():
        summary[method] = {
            name: estimate(row["metrics"].get(name) for row in done) for name in metrics
        } | {name: estimate(row.get(name) for row in done) for name in COST}
    return summary


def mean_curves(
    rows: Sequence[Row], methods: Sequence[str]
) -> dict[str, dict[str, list[Estimate]]]:
    """Returns the mean curve of each kind and method, a point an :class:`Estimate`.

    Args:
        rows (Sequence[Row]): The runner's rows; those without a curve are left out.
        methods (Sequence[str]): Labels of the methods, in the order of the report.

    Returns:
        *dict* of the points for each kind, such as "insertion", and each method that
        has such curves.

    Raises:
        ValueError: If curves of one kind and method differ in length, or a row is of a
            method that is not in ``methods``.
    """
    kinds: dict[str, dict[str, list[Estimate]]] = {}
    for method, done in _by_method(rows, methods).items():
        curves: dict[str, list[list[float | None]]] = {}
        for row in done:
            for kind, curve in (row.get("curves") or {}).items():
                if curve:
                    curves.setdefault(kind, []).append(curve)
        for kind, values in curves.items():
            lengths = sorted({len(curve) for curve in values})
            if len(lengths) > 1:
                raise ValueError(
                    f"the {kind} curves of {method} must all have the same number of "
                    f"points, got {lengths}."
                )
            points = [estimate(point) for point in zip(*values, strict=True)]
            kinds.setdefault(kind, {})[method] = points
    return kinds


def list_failures(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns the failures: their count, the count of each reason, and all of them.

    The reason is the error up to its details in parentheses.
    """
    failed = [row for row in rows if "error" in row]
    reasons = Counter(row["error"].split(" (", 1)[0] for row in failed)
    return {
        "count": len(failed),
        "by_reason": dict(reasons.most_common()),
        "list": [
            {name: row.get(name) for name in ("id", "method", "error")}
            for row in failed
        ],
    }


def _by_method(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, list[Row]]:
    """Returns the rows without an error of each method."""
    groups: dict[str, list[Row]] = {method: [] for method in methods}
    for row in rows:
        if "error" in row:
            continue
        if row["method"] not in groups:
            raise ValueError(
                f"`rows` must be of the methods {list(methods)}, got one of "
                f"{row['method']!r}; report it too, or leave its rows out."
            )
        groups[row["method"]].append(row)
    return groups


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
        axis.set_title(_heading(column), fontsize="medium")
        axis.locator_params(axis="x", nbins=6)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(max(len(summary), 1) - 0.5, -0.5)  # the first method on top
    return figure


def curves_figure(curves: Mapping[str, Mapping[str, list[Estimate]]]) -> "Figure":
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
        axis.set_title(_heading(_column(kind)), fontsize="medium")
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


def _png(figure: "Figure") -> bytes:
    return png_of(figure, DOTS_PER_INCH)


def png_of(figure: "Figure", dots_per_inch: int) -> bytes:
    """Returns a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch)
    return buffer.getvalue()


@dataclass(frozen=True)
class Table:
    """Cells as plain text; ``left`` columns are words, and the others numbers."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    left: int = 1
    bold: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A PNG file of the report."""

    file: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A piece of the report, as plain text that is still to be escaped."""

    title: str
    text: str = ""
    code: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


def _sections(
    rows: Sequence[Row],
    context: Mapping[str, Any],
    summary: Summary,
    failures: Mapping[str, Any],
    gallery: Mapping[str, Sequence[GalleryItem]],
) -> Iterator[Section]:
    """Yields the report from top to bottom."""
    columns = {name: _column(name) for name in context["metrics"]}

    def chosen(names: Iterable[str]) -> dict[str, Column]:
        return {name: columns[name] for name in names if name in columns}

    yield _what_was_run(context, failures)
    if shown := chosen(DROP_INCREASE):
        yield _drop_increase(summary, shown)
    shown = chosen(INSERTION_DELETION)
    curves = mean_curves(rows, context["methods"])
    if shown or curves:
        yield _insertion_deletion(summary, shown, curves)
    if others := [name for name in columns if name not in PAPER]:
        starts = range(0, len(others), COLUMNS_PER_TABLE)
        groups = [chosen(others[i : i + COLUMNS_PER_TABLE]) for i in starts]
        tables = tuple(_means(summary, group) for group in groups)
        yield Section("Further metrics", tables=tables)
    variants = _ablation(context["methods"])
    if len(variants) > 1 and (shown := chosen(PAPER)):
        yield Section("Ablation", tables=(_means(summary, shown, variants),))
    yield Section("Cost", tables=(_means(summary, COST),))
    yield _failed(failures)
    yield from _gallery(gallery)


def _what_was_run(context: Mapping[str, Any], failures: Mapping[str, Any]) -> Section:
    text = (
        f"Methods: {len(context['methods'])}. Images: {context['images']}. Failures: "
        f"{failures['count']}. A value is a mean ± one standard error (number of "
        "images). NaN counts the images for which it is undefined, which the mean "
        "leaves out. The best mean of a column is bold."
    )
    facts = [(name, context[name]) for name in ("images", "seed", "hardware")]
    facts += [*context["config"].items(), *context["versions"].items()]
    texts = [(n, v if isinstance(v, str) else strict_json(v)) for n, v in facts]
    rows = list(dict.fromkeys(texts))  # the seed may be in config too
    settings = Table(("setting", "value"), rows, left=2)
    return Section("What was run", text, context["command"], (settings,))


def _drop_increase(summary: Summary, columns: Mapping[str, Column]) -> Section:
    caption = "Means, with one standard error each way"
    png = _png(bars_figure(summary, columns))
    return Section(
        "Average drop and increase",
        tables=(_means(summary, columns),),
        pictures=(Picture("drop_increase.png", caption, png),),
    )


def _insertion_deletion(
    summary: Summary,
    columns: Mapping[str, Column],
    curves: Mapping[str, Mapping[str, list[Estimate]]],
) -> Section:
    caption = "Mean curves, with bands of one standard error each way"
    pictures: tuple[Picture, ...] = ()
    if curves:
        pictures = (Picture("curves.png", caption, _png(curves_figure(curves))),)
    return Section(
        "Insertion and deletion",
        tables=(_means(summary, columns),) if columns else (),
        pictures=pictures,
    )


def _means(
    summary: Summary,
    columns: Mapping[str, Column],
    variants: Mapping[str, str] | None = None,
) -> Table:
    """Returns a table of means, a row a method, or a variant by its name too."""
    labels = list(summary if variants is None else variants)
    first = [(m,) if variants is None else (variants[m], m) for m in labels]
    cells = [
        tuple(_cell(summary[m][name], column) for name, column in columns.items())
        for m in labels
    ]
    left = 1 if variants is None else 2
    bold = {
        (row, left + place)
        for place, (name, column) in enumerate(columns.items())
        for row in _best([summary[m][name].mean for m in labels], column.better)
    }
    return Table(
        ("variant", "method")[-left:] + tuple(map(_heading, columns.values())),
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


def _best(means: Sequence[float | None], better: str | None) -> list[int]:
    """Returns the places of the best mean, of two at least."""
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


def _heading(column: Column) -> str:
    note = f" ({column.better} is better)" if column.better else ""
    return column.heading + note


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


def markdown(sections: Iterable[Section]) -> str:
    """Returns a report in GitHub's Markdown, which links to its pictures."""
    blocks = [f"# {TITLE}"]
    for section in sections:
        blocks.append(f"## {_plain(section.title)}")
        blocks += [_plain(section.text)] if section.text else []
        if section.code:
            blocks.append("\n".join(f"    {x}" for x in section.code.splitlines()))
        blocks += map(_markdown_table, section.tables)
        blocks += [f"![{_plain(p.caption)}]({p.file})" for p in section.pictures]
    blocks.append("Every value: [results.csv](results.csv), [report.json](report.json)")
    return "\n\n".join(blocks) + "\n"


def _markdown_table(table: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    right = len(table.header) - table.left
    lines = [line(map(_plain, table.header))]
    lines.append(line(["---"] * table.left + ["---:"] * right))
    for y, row in enumerate(table.rows):
        bold = ("**" if (y, x) in table.bold else "" for x in range(len(row)))
        cells = zip(bold, map(_plain, row), strict=True)
        lines.append(line(f"{mark}{text}{mark}" for mark, text in cells))
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Escapes text, so that Markdown shows it as it is, in one line."""
    text = escape(" ".join(text.split()), quote=False)
    # An underscore within a word means nothing.
    return re.sub(r"[\\`*\[\]|~#$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd; }
pre { background: #f5f5f5; padding: .75rem; overflow-x: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #e5e5e5; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #999; overflow-wrap: normal; }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #666; overflow-wrap: anywhere; }
""".strip()

# The policy makes the browser hold the promise that the file needs no network.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def html(sections: Iterable[Section]) -> str:
    """Returns a report as one HTML file, with its pictures in it."""
    blocks = []
    for section in sections:
        blocks.append(f"<h2>{escape(section.title)}</h2>")
        blocks += [f"<p>{escape(section.text)}</p>"] if section.text else []
        blocks += [f"<pre>{escape(section.code)}</pre>"] if section.code else []
        blocks += map(_html_table, section.tables)
        if section.pictures:
            figures = "\n".join(map(_html_picture, section.pictures))
            blocks.append(f'<div class="pictures">\n{figures}\n</div>')
    return PAGE.format(title=escape(TITLE), style=STYLE, body="\n".join(blocks))


def _html_table(table: Table) -> str:
    def line(tag: str, cells: Sequence[str], row: int | None = None) -> str:
        parts = []
        for x, text in enumerate(cells):
            kind = ' class="number"' if x >= table.left else ""
            text = escape(text)
            text = f"<b>{text}</b>" if (row, x) in table.bold else text
            parts.append(f"<{tag}{kind}>{text}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    body = "\n".join(line("td", row, y) for y, row in enumerate(table.rows))
    return (
        f'<div class="wide"><table>\n<thead>{line("th", table.header)}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _html_picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = escape(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _csv(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """Returns a line a row, with the metrics as columns; undefined values are empty."""

    def cell(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(FORMULA):
            return f"'{value}"  # which spreadsheets would run
        undefined = isinstance(value, float) and not math.isfinite(value)
        return None if undefined else value

    image = ("index", "id", "target", "target_name", "method")
    names = [*image, *metrics, *COST, "error"]
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(names)
    for row in rows:
        values = {**row.get("metrics", {}), **row}
        writer.writerow([cell(values.get(name)) for name in names])
    return buffer.getvalue()


def write_report(
    folder: Path,
    rows: Sequence[Row],
    context: Mapping[str, Any],
    gallery: Mapping[str, Sequence[GalleryItem]] | None = None,
    further: Sequence[Section] = (),
) -> list[Path]:
    """Writes what an evaluation found, for people and for programs.

    The files are report.html (all in one), report.md with its plots (drop_increase.png
    and curves.png, where there are such values, and gallery-001.png and so on),
    results.csv (a line a row) and, last, report.json. Each is written whole or not at
    all.

    Args:
        folder (Path): Where to write; made if it does not exist.
        rows (Sequence[Row]): The runner's rows, of all ranks, in their order.
        context (Mapping[str, Any]): What was run, all of it JSON: ``command`` (str),
            ``config`` (dict), ``hardware`` (str), ``images`` (int), ``methods`` (list
            of labels), ``metrics`` (list of names), ``seed`` (int), ``versions``
            (dict). Further entries go to report.json.
        gallery (Mapping[str, Sequence[GalleryItem]], optional): Pictures to show for
            methods. Default: None
        further (Sequence[Section], optional): What else to say, at the end. Default: ()

    Returns:
        *list* of the files.

    Raises:
        OSError: If a file cannot be written.
        ValueError: If ``context`` lacks an entry, or ``rows`` do not fit it.

    Examples::
        >>> import tempfile
        >>> context = dict(command="", config={}, hardware="CPU", images=0, seed=0)
        >>> context |= dict(methods=["unioncam"], metrics=["insertion"], versions={})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = write_report(Path(folder), [], context)
        >>> [file.name for file in files]
        ['report.md', 'report.html', 'results.csv', 'report.json']
    """
    missing = [name for name in CONTEXT if name not in context]
    if missing:
        raise ValueError(f"`context` must have {list(CONTEXT)}; it lacks {missing}.")
    summary = summarize(rows, context["methods"], context["metrics"])
    failures = list_failures(rows)
    sections = [*_sections(rows, context, summary, failures, gallery or {}), *further]
    results = {
        method: {name: asdict(value) for name, value in values.items()}
        for method, values in summary.items()
    }
    texts = {
        "report.md": markdown(sections),
        "report.html": html(sections),
        "results.csv": _csv(rows, context["metrics"]),
        "report.json": strict_json(
            {**context, "results": results, "failures": failures}, indent=2
        )
        + "\n",
    }
    files = {p.file: p.png for section in sections for p in section.pictures}
    # A file's name may hold bytes that are no text; it must not cost the report.
    files |= {name: t.encode(errors="backslashreplace") for name, t in texts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
    return [folder / name for name in files]
