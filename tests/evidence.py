"""The results of the README: which method is best at what, in pairs. Not a test.

    pip install -c constraints.txt -e ".[demo,evaluate]"
    python tests/evidence.py --images DIR --boxes VOC --object-names FILE --output OUT

Runs each study as ``captum-unioncam evaluate`` does, into a folder of its own with a
whole report, and prints its summary. ``--studies`` names some of them; what is finished
is not run again. A study of all images takes about an hour on one core.

The parts of the union were chosen on every second image (``tests/union_parts.py``): the
studies of all images show their other half apart.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captum_unioncam.evaluation import METHODS, METRICS, EvaluationConfig, evaluate
from captum_unioncam.evaluation.config import ABLATION, BASELINES
from captum_unioncam.evaluation.document import Section, Table, markdown
from captum_unioncam.evaluation.report import write_report
from captum_unioncam.evaluation.row import Row
from captum_unioncam.evaluation.tables import brief_table, column_of

BEST = "unioncam:parts=denoisedgradcam+layercam+groupcam+regioncam:select=best"
GRADIENT = ("denoisedgradcam", "gradcam", "gradcamplusplus", "layercam", "hirescam")
MAIN = (BEST, "unioncam", "regioncam", *GRADIENT, "scorecam", "groupcam")
MORE = ("fusioncam", "xgradcam", "ablationcam:max_channels=64", "reciprocam")
MORE += ("eigengradcam", "eigencam", "integratedgradcam")
CONFIDENCE = ("drop", "complexity", "increase", "insertion", "deletion")
BOXES = ("energy", "pointing", "iou")
EARLIER = "_blocks.10._swish"  # 14 x 14 in lite0, where gradients vary in space
EARLIER_OF_LITE1 = "_blocks.14._swish"  # the last one before the same stride

ABOUT: Mapping[str, Any] = {
    "model": "efficientnet_lite0",
    "methods": (*MAIN, *MORE),
    "metrics": CONFIDENCE,
    "steps": 25,
    "fidelity": 0.99,
    "reference": BEST,
}
LITE1 = {"model": "efficientnet_lite1", "methods": MAIN, "num_images": 50}
IN_BOXES = {"metrics": BOXES, "boxes": "target"}
EXACT = {
    "methods": tuple(ABLATION),
    "fidelity": 1.0,
    "num_images": 30,
    "reference": "unioncam",
    "ablation": True,
    "baseline_methods": (),
}
# Minutes for each image, which coherency and adcc make three times as many.
SLOW = ("sscam", "iscam", "rise", "augmentedgradcam")
LEFT_OUT = (*BASELINES, *SLOW)  # the baselines are in every study
ALL = {
    "methods": (BEST, *(name for name in METHODS if name not in LEFT_OUT)),
    "metrics": tuple(name for name in METRICS if name not in (*BOXES, "sensitivity")),
    "num_images": 10,
}
SANITY = {"methods": MAIN, "metrics": ("drop",), "num_images": 10, "sanity": 10}

STUDIES: Mapping[str, Mapping[str, Any]] = {
    "final": {},
    "earlier": {"layer": EARLIER},
    "boxes-final": IN_BOXES,
    "boxes-earlier": {**IN_BOXES, "layer": EARLIER},
    "lite1-final": LITE1,
    "lite1-earlier": {**LITE1, "layer": EARLIER_OF_LITE1},
    "ablation-final": EXACT,
    "ablation-earlier": {**EXACT, "layer": EARLIER},
    "all-final": ALL,
    "sanity-final": SANITY,
    "sanity-earlier": {**SANITY, "layer": EARLIER},
}


def configured(name: str, options: argparse.Namespace) -> EvaluationConfig:
    """Returns what a study evaluates."""
    chosen = {**ABOUT, **STUDIES[name]}
    folder = Path(options.output) / name
    data = f"imagefolder:{options.images}"
    if "boxes" in chosen:
        data = f"voc2007:{options.boxes}"
        chosen["object_names"] = options.object_names
    return EvaluationConfig(data, str(folder), resume=folder.exists(), **chosen)


def show(folder: Path, title: str) -> None:
    """Prints the summary of a report, and its reference minus each other method."""
    report = json.loads((folder / "report.json").read_text())
    tables = [brief_table(report), minus_table(report)]
    for section in report["further"]:  # the randomisation of the model
        tables += [Table(**table) for table in section["tables"]]
    title = f"{title}, {report['images']} images"
    print(markdown([Section(title, tables=tuple(tables))]))


def minus_table(report: Mapping[str, Any]) -> Table:
    """Returns the reference minus each other method, with its 95 % interval."""
    found = report["comparisons"]
    rows, bold = [], set()
    for y, (method, values) in enumerate(found["to_reference"].items()):
        cells = []
        for x, (name, value) in enumerate(values.items()):
            if value["mean"] is None:
                cells.append("n/a")
                continue
            digits = column_of(name).decimals
            # Less than 0, and not its negative: 0 has no sign.
            ends = (0 - value["mean"], 0 - value["high"], 0 - value["low"])
            mean, low, high = (f"{end:+.{digits}f}" for end in ends)
            cells.append(f"{mean} [{low}, {high}]")
            if value["low"] > 0 or value["high"] < 0:
                bold.add((y, 1 + x))
        rows.append((method, *cells))
    header = (f"{found['reference']} minus", *report["metrics"])
    return Table(header, rows, bold=frozenset(bold))


def show_other_half(folder: Path, title: str, rows: Sequence[Row]) -> None:
    """Writes and prints the report of the images that chose nothing."""
    report = json.loads((folder / "report.json").read_text())
    others = [row for row in rows if row["index"] % 2]
    report["images"] = len({row["id"] for row in others})
    apart = folder.with_name(f"{folder.name}-other-half")
    for key in ("results", "comparisons", "maps", "failures", "further"):
        del report[key]
    write_report(apart, others, report)
    show(apart, f"{title}, images on which nothing was chosen")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", required=True, help="folder of images")
    parser.add_argument("--boxes", required=True, help="folder of VOC 2007's layout")
    parser.add_argument("--object-names", help="JSON file, as that of evaluate")
    parser.add_argument("--output", required=True, help="folder of the results")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    options = parser.parse_args()
    for name in options.studies:
        config = configured(name, options)
        rows = evaluate(config)
        folder = Path(config.output)
        show(folder, name)
        if config.num_images is None:
            show_other_half(folder, name, rows)


if __name__ == "__main__":
    main()
