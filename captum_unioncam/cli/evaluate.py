"""``captum-unioncam evaluate``: measures methods on many images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captum_unioncam.cli.terminal import Outcome
from captum_unioncam.errors import printable
from captum_unioncam.evaluation.config import PRESETS, EvaluationConfig
from captum_unioncam.evaluation.row import Row
from captum_unioncam.evaluation.runner import evaluate
from captum_unioncam.evaluation.statistics import (
    count_maps,
    list_undefined,
    summarize,
)

FAILED = 3


def run(given: dict[str, Any], line: str) -> Outcome:
    """Evaluates, and returns what was done, and the exit code."""
    preset = PRESETS[given.pop("preset")] if "preset" in given else {}
    config = EvaluationConfig(**{**preset, **given})
    try:
        rows = evaluate(config, line)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("run it again with --resume to continue") from error
    return _outcome(config, rows) if rows else Outcome()


def _outcome(config: EvaluationConfig, rows: Sequence[Row]) -> Outcome:
    failures = sum("error" in row for row in rows)
    methods = list(dict.fromkeys(row["method"] for row in rows if "error" not in row))
    undefined = list_undefined(summarize(rows, methods, config.metrics), config.metrics)
    lines = [f"{len(rows) - failures} rows, {failures} failed"]
    lines += [
        f"{method}: {count.constant} constant maps, {count.broken} not finite"
        for method, count in count_maps(rows, methods).items()
        if not count.none
    ]
    lines += [f"{method}: {name} is undefined everywhere" for method, name in undefined]
    lines += [f"{Path(config.output) / 'report.md'}"]
    text = "".join(f"{printable(line)}\n" for line in lines)
    return Outcome(text, code=FAILED if failures or undefined else 0)
