"""What ``explain`` writes and shows."""

import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from captum_unioncam._files import remove_temporaries, strict_json, write_whole
from captum_unioncam.cli.options import ExplainOptions
from captum_unioncam.cli.terminal import Outcome
from captum_unioncam.errors import UserError, one_line, printable
from captum_unioncam.evaluation.figures import png_of

DOTS_PER_INCH = 100


def check_files(options: ExplainOptions) -> None:
    """Refuses files that cannot be written, before there is anything to write."""
    if not options.output.lower().endswith(".png"):
        raise UserError(f"--output must end with .png, got {options.output!r}")
    used = [] if options.image is None else [Path(options.image).resolve()]
    for path in (options.output, options.json):
        if path is None or path == "-":
            continue
        target = Path(path).resolve()
        if target in used:
            raise UserError(f"{path} is named twice; choose another file to write")
        used.append(target)
        try:
            if target.exists() and not target.is_file():
                raise OSError("it is not a file")
            with tempfile.TemporaryFile(dir=target.parent):
                remove_temporaries(target.parent)
        except OSError as error:
            raise _cannot_write(path, error) from error


def write_report(
    options: ExplainOptions, figure: Figure, report: dict[str, Any]
) -> Outcome:
    """Writes the files, and returns what is left to show: for a person, or JSON."""
    _write(options.output, png_of(figure, DOTS_PER_INCH))
    content = f"{strict_json(report, indent=2)}\n"
    if options.json == "-":
        return Outcome(content, _text(report))
    if options.json is not None:
        _write(options.json, content.encode())
    return Outcome(f"{_text(report)}\n")


def _text(report: dict[str, Any]) -> str:
    """Returns what a person wants to know first."""
    lines = _lines(report)
    width = max(map(len, lines))
    return "\n".join(printable(f"{n:<{width}} {value}") for n, value in lines.items())


def _lines(report: dict[str, Any]) -> dict[str, str]:
    """Returns the lines to print, by what they are about."""
    target = report["target"]
    channels = [report["total_channels"]] if "total_channels" in report else []
    size = " x ".join(map(str, [*channels, *report["layer_size"]]))
    top = ", ".join(f"{_label(t)} {t['confidence']:.3f}" for t in report["top"])
    lines = {
        "model": f"{report['model']}, layer {report['layer']} ({size})",
        "class": f"{_label(target)}, confidence {target['confidence']:.3f}",
        f"top {len(report['top'])}": top,
    }
    if "methods" in report:
        for row in report["methods"]:
            lines[row["method"]] = (
                f"keeps {row['confidence_kept']:.1%} of the confidence, "
                f"{row['seconds']:.1f} s"
            )
    else:
        lines |= {
            "beta": f"denoised {report['denoised_gain']:.3f}, "
            f"region {report['region_gain']:.3f}, fused {report['fused_gain']:.3f} "
            f"(a black image scores {report['baseline_score']:.3f})",
            "selected": f"the {report['selected']} map",
            "channels": f"{report['scored_channels']} scored of "
            f"{report['active_channels']} active of {report['total_channels']}",
            "fidelity": _fidelity(report["fidelity"]),
        }
    return lines | {
        "seconds": f"{report['seconds']:.1f}",
        "picture": report["picture"],
    }


def _fidelity(estimate: float) -> str:
    if estimate == 1:
        return "1, the exact map"
    return f"{estimate:.4f} estimated (--fidelity 1 gives the exact map)"


def _label(named: dict[str, Any]) -> str:
    return f"{named['index']} {named['name'] or ''}".strip()


def _cannot_write(path: str, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written: {one_line(error)}; choose a file in a folder that "
        "exists and that you may write to"
    )


def _write(path: str, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise _cannot_write(path, error) from error
