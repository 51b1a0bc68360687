"""What ``explain`` shows: the result for a person, or as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from captum_unioncam._files import strict_json
from captum_unioncam.cli.files import write_file
from captum_unioncam.cli.options import ExplainOptions
from captum_unioncam.cli.terminal import Outcome
from captum_unioncam.errors import printable
from captum_unioncam.explanation import LOW_CONFIDENCE

FAILED = 3


def outcome(
    options: ExplainOptions, reports: Sequence[Mapping[str, Any]], several: bool
) -> Outcome:
    """Writes the JSON, and returns what is left to show, and the exit code."""
    failures = [report for report in reports if "error" in report]
    lines = _list_lines(reports, options.output) if several else _lines(reports[0])
    text = _aligned([*lines, *_notes(options, reports)])
    code = FAILED if failures else 0
    content = strict_json(list(reports) if several else reports[0], indent=2) + "\n"
    if options.json == "-":
        return Outcome(content, text, code)
    if options.json is not None:
        write_file(options.json, content.encode())
    return Outcome(f"{text}\n", code=code)


Line = tuple[str, str]


def _aligned(lines: Sequence[Line]) -> str:
    width = max(len(name) for name, _ in lines)
    return "\n".join(printable(f"{name:<{width}} {value}") for name, value in lines)


def _lines(report: Mapping[str, Any]) -> list[Line]:
    """Returns what a person wants to know of an image, by what it is about."""
    classes = report.get("classes") or [report]
    first = classes[0]
    channels = [first["total_channels"]] if "total_channels" in first else []
    size = " x ".join(map(str, [*channels, *first["layer_size"]]))
    top = ", ".join(f"{label(t)} {t['confidence']:.3f}" for t in report["top"])
    lines = [
        ("model", f"{report['model']}, layer {report['layer']} ({size})"),
        (f"top {len(report['top'])}", top),
    ]
    for number, one in enumerate(classes):
        target = one["target"]
        shown = f"{label(target)}, confidence {target['confidence']:.3f}"
        lines.insert(1 if len(classes) == 1 else len(lines), ("class", shown))
        lines += _class_lines(one)
    return [
        *lines,
        ("seconds", f"{report['seconds']:.1f}"),
        ("picture", report["picture"]),
    ]


def _class_lines(report: Mapping[str, Any]) -> list[Line]:
    """Returns the lines on the maps of a class."""
    if "methods" in report:
        return [
            (
                row["method"],
                f"keeps {row['confidence_kept']:.1%} of the confidence, "
                f"{row['seconds']:.1f} s",
            )
            for row in report["methods"]
        ]
    return [
        (
            "beta",
            f"denoised {report['denoised_gain']:.3f}, "
            f"region {report['region_gain']:.3f}, fused {report['fused_gain']:.3f} "
            f"(a black image scores {report['baseline_score']:.3f})",
        ),
        ("selected", f"the {report['selected']} map"),
        (
            "channels",
            f"{report['scored_channels']} scored of "
            f"{report['active_channels']} active of {report['total_channels']}",
        ),
        ("fidelity", _fidelity(report["fidelity"])),
    ]


def _list_lines(reports: Sequence[Mapping[str, Any]], folder: str) -> list[Line]:
    """Returns a line for each image, those that failed last, and where pictures are."""
    lines = [
        (
            report["image"],
            ", ".join(
                f"{label(one['target'])} {one['target']['confidence']:.3f}"
                for one in report.get("classes") or [report]
            ),
        )
        for report in reports
        if "error" not in report
    ]
    failed = [
        (name, f"failed: {report['error'].removeprefix(f'{name} ')}")
        for report in reports
        if "error" in report
        for name in [report["image"]]
    ]
    done = f"{len(lines)} in {folder}, {len(failed)} failed"
    return [*lines, ("pictures", done), *failed]


def _notes(options: ExplainOptions, reports: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Returns a line on classes whose gains, in probabilities, are about 0."""
    if options.score != "probability":
        return []
    unsure = [
        one["target"]
        for report in reports
        if "error" not in report
        for one in report.get("classes") or [report]
        if one["target"]["confidence"] < LOW_CONFIDENCE
    ]
    if not unsure:
        return []
    which = label(unsure[0]) if len(unsure) == 1 else f"{len(unsure)} classes"
    return [
        (
            "note",
            f"{which}: the confidence is about 0, and gains in it may say nothing; "
            "--score logit shows what speaks for a class that is not predicted",
        )
    ]


def _fidelity(estimate: float) -> str:
    if estimate == 1:
        return "1, the exact map"
    return f"{estimate:.4f} estimated (--fidelity 1 gives the exact map)"


def label(named: Mapping[str, Any]) -> str:
    """Returns a class in words: its index, and its name if it has one."""
    return f"{named['index']} {named['name'] or ''}".strip()
