"""What an evaluation found, as files; :func:`write_report` alone touches the disk."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from captum_unioncam._files import strict_json, write_whole
from captum_unioncam.errors import printable
from captum_unioncam.evaluation.comparison import Paired, compare
from captum_unioncam.evaluation.document import (
    Section,
    html,
    latex,
    markdown,
    section_to_dict,
)
from captum_unioncam.evaluation.row import Row
from captum_unioncam.evaluation.sections import (
    Findings,
    closing_sections,
    result_sections,
)
from captum_unioncam.evaluation.statistics import (
    COST,
    count_maps,
    list_failures,
    mean_curves,
    summarize,
)
from captum_unioncam.evaluation.tables import column_of

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
# How bytes of names that are no text are written.
ESCAPED = "backslashreplace"
# What a cell that a spreadsheet would run starts with, half and full width.
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def write_report(
    folder: Path,
    rows: Sequence[Row],
    context: Mapping[str, Any],
    further: Sequence[Section] = (),
) -> list[Path]:
    """Writes what an evaluation found, for people and for programs.

    The files are report.html (all in one), report.md with its plots (drop_increase.png
    and curves.png, where there are such values, and those of ``further``), report.tex
    (the tables), results.csv (a line a row) and, last, report.json. Each is written
    whole or not at all. In all of them escapes such as ``\\n`` show what is not
    printed; in results.csv an apostrophe stands before what a spreadsheet would run.

    Args:
        folder (Path): Where to write; made if it does not exist.
        rows (Sequence[Row]): The runner's rows, of all ranks, in their order.
        context (Mapping[str, Any]): What was run, all of it JSON: ``command`` (str),
            ``config`` (dict), ``hardware`` (str), ``images`` (int), ``methods`` (list
            of labels), ``metrics`` (list of names), ``seed`` (int), ``versions``
            (dict), and, if it is known, ``layer`` (dict of ``name`` and ``size``);
            ``reference`` (str) is the method to compare with, if it is not the first,
            and ``ablation`` (bool) whether to show the variants of UnionCAM apart.
            Further entries go to report.json.
        further (Sequence[Section], optional): What else was found, which
            stands before the failures and the settings. Default: ()

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
        ['report.md', 'report.html', 'report.tex', 'results.csv', 'report.json']
    """
    missing = [name for name in CONTEXT if name not in context]
    if missing:
        raise ValueError(f"`context` must have {list(CONTEXT)}; it lacks {missing}.")
    found = findings(rows, context)
    sections = [
        *result_sections(context, found),
        *further,
        *closing_sections(context, found),
    ]
    everything = {
        **dict(sorted(context.items())),
        "results": {
            method: {name: asdict(value) for name, value in values.items()}
            for method, values in found.summary.items()
        },
        "comparisons": found.comparison.to_dict(),
        "maps": {method: asdict(count) for method, count in found.maps.items()},
        "failures": found.failures,
        "further": [section_to_dict(section) for section in further],
    }
    texts = {
        "report.md": markdown(sections),
        "report.html": html(sections),
        "report.tex": latex(sections),
    }
    files = {p.file: p.content for section in sections for p in section.pictures}
    # A file's name may hold bytes that are no text; it must not cost the report.
    files |= {name: t.encode(errors=ESCAPED) for name, t in texts.items()}
    files["results.csv"] = _csv(rows, context["metrics"])
    files["report.json"] = f"{strict_json(everything, indent=2)}\n".encode(
        errors=ESCAPED
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
    return [folder / name for name in files]


def findings(rows: Sequence[Row], context: Mapping[str, Any]) -> Findings:
    """Returns what the rows of an evaluation say.

    Args:
        rows, context: As in :func:`write_report`.

    Raises:
        ValueError: If a row, or the reference, is of a method that is not in
            ``context``.
    """
    methods, metrics = context["methods"], context["metrics"]
    summary = summarize(rows, methods, metrics)
    maps = count_maps(rows, methods)
    better = {name: column_of(name).better for name in metrics}
    paired = Paired(rows, methods, better, context["seed"])
    return Findings(
        summary,
        maps,
        mean_curves(rows, methods),
        list_failures(rows),
        paired,
        compare(paired, summary, maps, context.get("reference")),
    )


def _csv(rows: Sequence[Row], metrics: Sequence[str]) -> bytes:
    """Returns a line a row, with the metrics as columns; undefined values are empty."""
    image = ("index", "id", "target", "target_name", "method")
    names = [*image, *metrics, "constant_map", "broken_map", *COST, "error"]
    buffer = io.BytesIO()
    text = io.TextIOWrapper(buffer, "utf-8", ESCAPED, newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    for row in rows:
        values = row.get("metrics", {})
        writer.writerow(
            [_cell(values[n] if n in values else row.get(n)) for n in names]
        )
    text.flush()
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    """Returns a value as a spreadsheet may open it."""
    if isinstance(value, str):
        text = printable(value)  # a tab or a line break would begin another cell
        return f"'{text}" if text.lstrip().startswith(FORMULA) else text
    undefined = isinstance(value, float) and not math.isfinite(value)
    return None if undefined else value
