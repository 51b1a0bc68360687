"""Small evaluations, from Python and from the command line. Not a test itself."""

import json
import sys

from captum_unioncam.cli import main
from captum_unioncam.evaluation.config import EvaluationConfig

METHODS = ("unioncam", "gradcam")
QUICK = {"max_channels": 2, "steps": 2, "baseline_methods": ()}


def config(images, output, **options):
    values = {**QUICK, "methods": METHODS, **options}
    return EvaluationConfig(f"imagefolder:{images}", str(output), **values)


def command(images, output, *options):
    return [
        *("evaluate", "--data", f"imagefolder:{images}", "--output", str(output)),
        *("--methods", ",".join(METHODS), "--max-channels", "2", "--steps", "2"),
        *("--baseline-methods", "none"),
        *options,
    ]


def results(folder):
    """Returns the means of a report, without what differs between equal runs."""
    report = json.loads((folder / "report.json").read_text())
    return {
        method: {name: v for name, v in values.items() if name != "seconds"}
        for method, values in report["results"].items()
    }


def run_command(arguments):
    """Runs the command as a program: for a process of its own."""
    sys.exit(main(arguments))
