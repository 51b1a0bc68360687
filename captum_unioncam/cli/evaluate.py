"""``captum-unioncam evaluate``: measures methods on many images."""

import shlex
import sys
from pathlib import Path
from typing import Any

from captum_unioncam.evaluation.config import PRESETS, EvaluationConfig
from captum_unioncam.evaluation.runner import evaluate

FAILED = 3


def run(given: dict[str, Any]) -> int:
    """Evaluates, prints what was done, and returns the exit code."""
    preset = PRESETS[given.pop("preset")] if "preset" in given else {}
    config = EvaluationConfig(**{**preset, **given})
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    try:
        rows = evaluate(config, command)
    except KeyboardInterrupt:
        print("\nrun it again with --resume to continue", file=sys.stderr)
        raise
    failures = sum("error" in row for row in rows)
    if rows:
        print(f"{len(rows) - failures} rows, {failures} failed")
        print(Path(config.output) / "report.md")
    return FAILED if failures else 0
