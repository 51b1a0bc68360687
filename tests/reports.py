"""Rows of an evaluation, and the report that is written of them. Not a test itself."""

import re

from captum_unioncam.evaluation.report import write_report

PNG = b"\x89PNG\r\n\x1a\n"


def row(index, method="unioncam", curves=None, seconds=0.5, forwards=7, **metrics):
    return {
        "index": index,
        "id": f"{index:03}.jpg",
        "file": f"digest of {index}",
        "target": 285,
        "target_name": "Egyptian cat",
        "method": method,
        "metrics": metrics,
        "curves": curves or {},
        "constant_map": False,
        "broken_map": False,
        "seconds": seconds,
        "forwards": forwards,
    }


def failure(index, error, method=None):
    return {"index": index, "id": f"{index:03}.jpg", "method": method, "error": error}


def context(methods=("unioncam",), metrics=("drop", "increase"), **more):
    return {
        "command": "captum-unioncam evaluate --data images",
        "config": {"model": "resnet18", "theta": 10.0, "seed": 0},
        "hardware": "16 CPU cores",
        "images": 3,
        "methods": list(methods),
        "metrics": list(metrics),
        "seed": 0,
        "versions": {"torch": "2.14.1"},
    } | more


def written(folder, rows, context, further=()):
    """Writes a report and returns its texts by their file's name."""
    paths = write_report(folder, rows, context, further)
    assert sorted(paths) == sorted(folder.iterdir())
    return {p.name: p.read_text() for p in paths if p.suffix != ".png"}


def tables(markdown, title):
    """Returns the cells of each table of a section, without the header's rule."""
    section = re.split(rf"^## {title}$", markdown, flags=re.M)[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^\|.*\n)+", section, flags=re.M)
    rows = [[x.strip("| ").split(" | ") for x in b.splitlines()] for b in blocks]
    return [table[:1] + table[2:] for table in rows]


def refuse_constant(name):
    """For json.loads, which takes NaN and infinities by default."""
    raise AssertionError(f"{name} is no JSON")
