"""``captum-unioncam evaluate``: measures methods on many images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captum_unioncam.cli.terminal import Outcome
from captum_unioncam.errors import ConfigError, printable
from captum_unioncam.evaluation.config import PRESETS, EvaluationConfig
from captum_unioncam.evaluation.document import plain_table
from captum_unioncam.evaluation.rewriting import rewrite_report
from captum_unioncam.evaluation.row import Row
from captum_unioncam.evaluation.runner import evaluate
from captum_unioncam.evaluation.statistics import (
    count_maps,
    list_undefined,
    summarize,
)
from captum_unioncam.evaluation.tables import brief_table

FAILED = 3

# What --report-only takes, beside the folder.
REPORT_OPTIONS = ("reference", "ablation")
MARKED = "* the best, and those not resolved from it (paired 95 % intervals)"


def run(given: dict[str, Any], line: str) -> Outcome:
    """Evaluates, and returns what was done, and the exit code."""
    if given.pop("report_only", False):
        return _report_only(given, line)
    preset = PRESETS[given.pop("preset")] if "preset" in given else {}
    config = EvaluationConfig(**{**preset, **given})
    try:
        rows = evaluate(config, line)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("run it again with --resume to continue") from error
    return _outcome(config.output, rows, config.metrics) if rows else Outcome()


def _report_only(given: dict[str, Any], line: str) -> Outcome:
    """Writes the report again, from what the folder holds."""
    output = given.pop("output")
    others = [name for name in given if name not in REPORT_OPTIONS]
    if others:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in REPORT_OPTIONS)
        raise ConfigError(
            f"`report_only` takes --output, {names} alone: the folder knows the rest; "
            f"leave out --{others[0].replace('_', '-')}"
        )
    rows = rewrite_report(output, line, **given)
    measured = (row["metrics"] for row in rows if "error" not in row)
    return _outcome(output, rows, list(dict.fromkeys(n for m in measured for n in m)))


def _outcome(output: str, rows: Sequence[Row], metrics: Sequence[str]) -> Outcome:
    failures = sum("error" in row for row in rows)
    methods = list(dict.fromkeys(row["method"] for row in rows if "error" not in row))
    undefined = list_undefined(summarize(rows, methods, metrics), metrics)
    report = json.loads((Path(output) / "report.json").read_bytes())
    table = brief_table(report)
    lines = [*plain_table(table).split("\n"), *([MARKED] if table.bold else []), ""]
    lines += [f"{len(rows) - failures} rows, {failures} failed"]
    lines += [
        f"{method}: {count.constant} constant maps, {count.broken} not finite"
        for method, count in count_maps(rows, methods).items()
        if not count.none
    ]
    lines += [f"{method}: {name} is undefined everywhere" for method, name in undefined]
    lines += [f"{Path(output) / 'report.md'}"]
    text = "".join(f"{printable(line)}\n" for line in lines)
    return Outcome(text, code=FAILED if failures or undefined else 0)
