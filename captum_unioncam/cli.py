"""The command ``captum-unioncam``.

Exit codes: 0 if all went well, 2 for bad options or input (one line on stderr), 3 if an
evaluation ended but some images or methods failed, 130 after Ctrl-C. Files are written
whole or not at all.
"""

import argparse
import dataclasses
import math
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam import UnionCAM, UnionCAMDetails, __version__
from captum_unioncam._captum import ReshapeTransform
from captum_unioncam._scoring import confidence
from captum_unioncam.evaluation import (
    METHODS,
    EvaluationConfig,
    Method,
    methods_table,
    metrics_table,
    parse_method,
)
from captum_unioncam.evaluation.config import (
    PRESETS,
    ConfigError,
    DataError,
    one_line,
    resolve_device,
)
from captum_unioncam.evaluation.report import png_of
from captum_unioncam.evaluation.rows import strict_json, write_whole
from captum_unioncam.layers import hint
from captum_unioncam.metrics import confidence_kept
from captum_unioncam.models import (
    DEFAULT_MODEL,
    Classifier,
    ModelError,
    load_classifier,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

Methods = dict[str, tuple[Method, dict[str, Any]]]

DEFAULT_OUTPUT = "unioncam.png"
DOTS_PER_INCH = 100
FAILED = 3
TOP = 3


class UsageError(ValueError):
    """An option or an input that the user has to change; the message says how."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
        return options.run(options) or 0
    except (UsageError, ModelError, DataError, ConfigError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130


class _Parser(argparse.ArgumentParser):
    """Reports bad options like every other user error: in one line, with code 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (try {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="captum-unioncam",
        description="Class activation maps of image classifiers.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    explain = commands.add_parser(
        "explain",
        help="show where a model sees its class in an image",
        description="Shows where a model sees its class in an image: UnionCAM, its "
        "component maps, and their scores; or the maps of several methods.",
        allow_abbrev=False,
    )
    explain.set_defaults(run=_explain)
    add = explain.add_argument
    add(
        "image",
        nargs="?",
        metavar="IMAGE",
        help="image file (default: scikit-image's photograph of the cat Chelsea)",
    )
    add(
        "--model",
        default=DEFAULT_MODEL,
        metavar="NAME",
        help="efficientnet_lite0, or a classification model of torchvision "
        "(default: %(default)s)",
    )
    add(
        "--weights",
        default="default",
        metavar="default|none|PATH",
        help="pretrained weights, random ones, or a state dict (default: %(default)s)",
    )
    add(
        "--layer",
        metavar="NAME",
        help="dotted name of the layer (default: the last spatial activation)",
    )
    add(
        "--target",
        metavar="CLASS",
        help="index or name of the class to explain (default: the predicted class)",
    )
    add(
        "--methods",
        metavar="NAMES",
        type=_method_names,
        help="methods to compare, one panel each, with commas: all, or any of "
        f"{', '.join(METHODS)}, with options as in unioncam:theta=30 (default: "
        "UnionCAM and its components)",
    )
    add(
        "--theta",
        type=_number(float, 0, 100),
        default=10.0,
        metavar="PERCENTILE",
        help="drop each channel's gradients below this percentile "
        "(default: %(default)s)",
    )
    add(
        "--max-channels",
        type=_number(int, 1, math.inf),
        metavar="K",
        help="score the K live channels of largest variance (default: all)",
    )
    add("--device", metavar="DEVICE", help="default: cuda where there is one, else cpu")
    add(
        "--output",
        default=DEFAULT_OUTPUT,
        metavar="PNG",
        help="picture to write (default: %(default)s)",
    )
    add("--json", metavar="FILE|-", help="write the result as JSON, - for stdout")
    _add_evaluate(commands)
    for name, table in (("methods", methods_table), ("metrics", metrics_table)):
        listing = commands.add_parser(
            name,
            help=f"list the {name}",
            description=f"Prints the table of all {name}, in Markdown.",
            allow_abbrev=False,
        )
        listing.set_defaults(run=_print_table, table=table)
    return parser


def _print_table(options: argparse.Namespace) -> None:
    print(options.table())


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="measure methods on many images",
        description="Measures methods on many images, alone or under torchrun, and "
        "writes a report. Every option is a field of EvaluationConfig.",
        allow_abbrev=False,
    )
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="options of the paper's protocol, which others override",
    )
    for field in dataclasses.fields(EvaluationConfig):
        default = field.default
        shown = "" if default in (None, False, dataclasses.MISSING) else default
        if isinstance(shown, tuple):
            shown = "all" if shown == tuple(METHODS) else ",".join(shown)
        text = field.metadata["help"].replace("%", "%%")
        arguments: dict[str, Any] = {
            "help": f"{text} (default: {shown})" if shown != "" else text,
            "default": argparse.SUPPRESS,
            "required": default is dataclasses.MISSING,
        }
        if field.type is bool:
            arguments["action"] = "store_true"
        else:
            arguments["metavar"] = field.name.upper().replace("_", "-")
            arguments["type"] = _parser_of(field)
        evaluate.add_argument(f"--{field.name.replace('_', '-')}", **arguments)


def _parser_of(field: "dataclasses.Field[Any]") -> Callable[[str], Any]:
    """Returns the argparse type of a field."""
    if field.name == "methods":
        return _method_names
    if field.type == tuple[str, ...]:
        return _names
    if field.type in (int, int | None):
        return _number(int, -math.inf, math.inf)
    if field.type is float:
        return _number(float, -math.inf, math.inf)
    return str


def _method_names(text: str) -> tuple[str, ...]:
    return tuple(METHODS) if text == "all" else _names(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",")))


def _evaluate(options: argparse.Namespace) -> int:
    from captum_unioncam.evaluation.runner import evaluate

    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(EvaluationConfig)
        if hasattr(options, field.name)
    }
    preset = PRESETS[options.preset] if options.preset else {}
    config = EvaluationConfig(**{**preset, **given})
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    try:
        rows = evaluate(config, command)
    except KeyboardInterrupt:
        print("\nrun it again with --resume to go on", file=sys.stderr)
        raise
    failures = sum("error" in row for row in rows)
    if rows:
        print(f"{len(rows) - failures} rows, {failures} failed")
        print(Path(config.output) / "report.md")
    return FAILED if failures else 0


def _number(
    kind: type[int] | type[float], low: float, high: float
) -> Callable[[str], float]:
    """Returns an argparse type: a number of a kind, within bounds."""
    bounds = "number" if kind is float else "whole number"
    if high < math.inf:
        bounds += f" in [{low}, {high}]"
    elif low > -math.inf:
        bounds += f" >= {low}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be a {bounds}, got {text!r}")
        return value

    return parse


@dataclass(frozen=True)
class _Scene:
    """What is explained: a model, a layer, an image and a class."""

    model: Module
    layer: Module
    reshape_transform: ReshapeTransform | None
    inputs: Tensor  # (1, 3, H, W)
    black: Tensor  # a black image, as the model sees it
    picture: Tensor  # the image in [0, 1], as the model sees it
    target: int


def _explain(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    methods = _methods(options.methods)
    _check_files(options.image, options.output, options.json)
    device = resolve_device(options.device)
    image = _read_image(options.image)
    classifier = load_classifier(options.model, options.weights)
    layer_name = options.layer or classifier.default_layer
    layer = classifier.layer(layer_name)
    reshape_transform = classifier.reshape_transform(layer_name)
    model = classifier.model.to(device)
    inputs = _shown(classifier, image, device)
    black = _shown(classifier, _plain(image, 0), device)
    white = _shown(classifier, _plain(image, 255), device)

    with torch.no_grad():
        scores = confidence(model(inputs))[0]
    target = _target(options.target, classifier.categories, scores)
    picture = ((inputs - black) / (white - black)).clamp(0, 1)
    scene = _Scene(model, layer, reshape_transform, inputs, black, picture, target)
    try:
        if methods is None:
            figure, result = _components(scene, options)
        else:
            figure, result = _comparison(scene, methods, options)
    # The layer is the one option left to be wrong; Captum asserts that it runs.
    except (ValueError, AssertionError) as error:
        raise UsageError(f"--layer {layer_name}: {error}") from error
    _write(options.output, png_of(figure, DOTS_PER_INCH))
    report = {
        "image": options.image or "chelsea",
        "model": options.model,
        "weights": options.weights,
        "layer": layer_name,
        "theta": options.theta,
        **_classes(target, scores, classifier.categories),
        **result,
        "seconds": time.perf_counter() - started,
        "picture": options.output,
    }
    if options.json == "-":
        print(strict_json(report, indent=2))
    elif options.json is not None:
        _write(options.json, f"{strict_json(report, indent=2)}\n".encode())
    _print_report(report, sys.stderr if options.json == "-" else sys.stdout)


def _methods(names: tuple[str, ...] | None) -> Methods | None:
    if names is None:
        return None
    try:
        return {label: parse_method(label) for label in names}
    except ValueError as error:
        raise UsageError(f"--methods: {error}") from error


def _one_map(maps: Tensor | tuple[Tensor, ...]) -> Tensor:
    if isinstance(maps, tuple):
        raise ValueError("it has several tensors; choose another")
    return maps


def _components(
    scene: _Scene, options: argparse.Namespace
) -> tuple["Figure", dict[str, Any]]:
    """Draws the paper's Figure 1 for an image: components, fusion, selection."""
    cam = UnionCAM(scene.model, scene.layer, reshape_transform=scene.reshape_transform)
    attributions, details = cam.attribute(
        scene.inputs,
        target=scene.target,
        theta=options.theta,
        baselines=scene.black,
        max_channels=options.max_channels,
        show_progress=True,
        return_details=True,
    )
    union = _one_map(attributions)
    assert isinstance(details, UnionCAMDetails)
    figure = _components_figure(scene.picture, union, details)
    return figure, {"layer_size": list(union.shape[2:]), **_numbers(details)}


def _comparison(
    scene: _Scene, methods: Methods, options: argparse.Namespace
) -> tuple["Figure", dict[str, Any]]:
    """Draws the map of each method, under the share of the confidence that it keeps."""
    from captum_unioncam.visualization import panels

    panel_maps, rows = {}, []
    for label, (method, own) in methods.items():
        started = time.perf_counter()
        explain = method.explain(
            scene.model,
            scene.layer,
            own,
            reshape_transform=scene.reshape_transform,
            theta=options.theta,
            baselines=scene.black,
            max_channels=options.max_channels,
            show_progress=True,
        )
        maps = _one_map(explain(scene.inputs, target=scene.target))
        seconds = time.perf_counter() - started
        kept = confidence_kept(
            scene.model, scene.inputs, maps, scene.target, scene.black
        ).item()
        rows.append({"method": label, "confidence_kept": kept, "seconds": seconds})
        title = ":".join([method.title, *label.split(":")[1:]])
        panel_maps[f"{title}\nkeeps {kept:.0%}"] = maps
    size = list(maps.shape[2:])
    return panels(scene.picture, panel_maps), {"layer_size": size, "methods": rows}


def _classes(target: int, scores: Tensor, categories: list[str]) -> dict[str, Any]:
    """Reports the class that is explained, and the most confident ones."""

    def named(index: int) -> dict[str, Any]:
        name = categories[index] if categories else None
        return {"index": index, "name": name, "confidence": scores[index].item()}

    top = scores.topk(min(TOP, len(scores))).indices.tolist()
    return {"target": named(target), "top": [named(index) for index in top]}


def _numbers(details: UnionCAMDetails) -> dict[str, Any]:
    """Reports the scores, the choice and the channels of a single example."""
    names = ("baseline_score", "denoised_gain", "region_gain", "fused_gain")
    channels = ("total_channels", "live_channels", "scored_channels")
    return {
        **{name: getattr(details, name).item() for name in (*names, *channels)},
        "selected": "fused" if details.fused_selected.item() else "region",
    }


def _print_report(report: dict[str, Any], stream: TextIO) -> None:
    """Prints what a person wants to know first."""
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
            f"(over {report['baseline_score']:.3f} for a black image)",
            "selected": f"the {report['selected']} map",
            "channels": f"{report['scored_channels']} scored of "
            f"{report['live_channels']} live of {report['total_channels']}",
        }
    lines |= {"seconds": f"{report['seconds']:.1f}", "picture": report["picture"]}
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}} {value}", file=stream)


def _components_figure(
    picture: Tensor, attributions: Tensor, details: UnionCAMDetails
) -> "Figure":
    from captum_unioncam.visualization import panels

    def title(name: str, gain: Tensor, selected: bool = False) -> str:
        mark = " (selected)" if selected else ""
        return f"{name}, $\\beta$ = {gain.item():.3f}{mark}"

    fused_selected = bool(details.fused_selected)
    denoised = title("denoised", details.denoised_gain)
    region = title("region", details.region_gain, not fused_selected)
    fused = title("fused", details.fused_gain, fused_selected)
    maps = {
        denoised: details.denoised_map,
        region: details.region_map,
        fused: details.fused_map,
        "UnionCAM": attributions,
    }
    return panels(picture, maps, (fused if fused_selected else region, "UnionCAM"))


def _read_image(path: str | None) -> "Image":
    from PIL import Image

    from captum_unioncam.evaluation.data import read_image

    return Image.fromarray(_chelsea()) if path is None else read_image(path)


def _chelsea() -> Any:
    try:
        from skimage.data import chelsea
    except ImportError as error:
        raise UsageError(
            "the default image needs the demo extra; run "
            '`pip install "captum-unioncam[demo]"`, or name an IMAGE'
        ) from error
    return chelsea()  # type: ignore[no-untyped-call]


def _plain(image: "Image", grey: int) -> "Image":
    """Returns an image of the same size in one colour."""
    from PIL import Image

    return Image.new("RGB", image.size, (grey, grey, grey))


def _shown(classifier: Classifier, image: "Image", device: torch.device) -> Tensor:
    """Returns a batch of the image as the model sees it."""
    return classifier.preprocess(image).unsqueeze(0).to(device)


def _target(name: str | None, categories: list[str], scores: Tensor) -> int:
    """Returns the index of a class by index or name; None is the predicted class."""
    if name is None:
        return int(scores.argmax())
    if re.fullmatch("-?[0-9]+", name):
        if not 0 <= int(name) < len(scores):
            raise UsageError(
                f"--target must be in [0, {len(scores) - 1}], got {int(name)}"
            )
        return int(name)
    wanted = name.casefold()
    found = [i for i, c in enumerate(categories) if c.casefold() == wanted]
    if not found:
        close = hint(wanted, [category.casefold() for category in categories])
        raise UsageError(f"--target: there is no class {name!r}{close}")
    if len(found) > 1:
        raise UsageError(
            f"--target: {name!r} is several classes, {found}; give an index"
        )
    return found[0]


def _label(named: dict[str, Any]) -> str:
    return f"{named['index']} {named['name'] or ''}".strip()


def _check_files(image: str | None, output: str, report: str | None) -> None:
    """Refuses files that cannot be written, before there is anything to write."""
    if not output.lower().endswith(".png"):
        raise UsageError(f"--output must end with .png, got {output!r}")
    used = [] if image is None else [Path(image).resolve()]
    for path in (output, report):
        if path in (None, "-"):
            continue
        target = Path(path).resolve()
        if target in used:
            raise UsageError(f"{path} is named twice; choose another file to write")
        used.append(target)
        try:
            if target.exists() and not target.is_file():
                raise OSError("it is not a file")
            with tempfile.TemporaryFile(dir=target.parent):
                pass
        except OSError as error:
            raise _cannot_write(path, error) from error


def _cannot_write(path: str, error: OSError) -> UsageError:
    return UsageError(
        f"{path} cannot be written: {one_line(error)}; choose a file in a folder that "
        "exists and that you may write to"
    )


def _write(path: str, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise _cannot_write(path, error) from error
