"""``captum-unioncam explain``: a picture of the maps of an image, and their scores."""

import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import Module

from captum_unioncam import UnionCAMDetails
from captum_unioncam._confidence import confidence
from captum_unioncam._reshape import ReshapeTransform
from captum_unioncam.cli.files import check_files, write_report
from captum_unioncam.cli.listing import listing
from captum_unioncam.cli.options import ExplainOptions
from captum_unioncam.cli.terminal import Outcome
from captum_unioncam.errors import UserError
from captum_unioncam.evaluation.data import read_image
from captum_unioncam.evaluation.labels import parse_methods
from captum_unioncam.evaluation.methods import METHODS, Method
from captum_unioncam.metrics import confidence_kept, masked_confidences
from captum_unioncam.models import (
    Classifier,
    class_index,
    load_classifier,
    resolve_device,
)
from captum_unioncam.visualization import panels

Methods = dict[str, tuple[Method, dict[str, Any]]]

TOP = 3


def run(given: dict[str, Any], line: str) -> Outcome:
    """Explains an image, writes the picture and the JSON, and returns the result."""
    options = ExplainOptions(**given)
    if options.list_models is not None or options.list_layers:
        return listing(options)
    check_files(options)
    figure, report = explain(options)
    return write_report(options, figure, report)


def explain(options: ExplainOptions) -> tuple[Figure, dict[str, Any]]:
    """Returns the picture, and what the maps and their scores are.

    Raises:
        UserError: If an option or the image is wrong.
    """
    started = time.perf_counter()
    methods = None if options.methods is None else _methods(options.methods)
    device = resolve_device(options.device)
    image = _image(options.image)
    classifier = load_classifier(options.model, options.weights, **options.metadata)
    layer_name = options.layer or classifier.default_layer
    scene, scores = _scene(classifier, layer_name, image, options.target, device)
    if methods is None:
        figure, result = _components(scene, options)
    else:
        figure, result = _comparison(scene, methods, options)
    report = {
        "image": options.image or "chelsea",
        "model": options.model,
        "weights": options.weights,
        "layer": layer_name,
        "theta": options.theta,
        **_classes(scene.target, scores, classifier.categories),
        **result,
        "seconds": time.perf_counter() - started,
        "picture": options.output,
    }
    return figure, report


@dataclass(frozen=True)
class _Scene:
    """What is explained: a model, a layer, an image and a class."""

    model: Module
    layer: Module
    layer_name: str
    reshape_transform: ReshapeTransform | None
    inputs: Tensor  # (1, 3, H, W)
    black: Tensor  # a black image, as the model sees it
    picture: Tensor  # the image in [0, 1], as the model sees it
    target: int


def _scene(
    classifier: Classifier,
    layer_name: str,
    image: Image.Image,
    target: str | None,
    device: torch.device,
) -> tuple[_Scene, Tensor]:
    """Returns what is explained, and the confidences in all classes, (classes,)."""
    layer = classifier.layer(layer_name)
    reshape_transform = classifier.reshape_transform(layer_name)
    model = classifier.model.to(device)
    inputs, black, white = (
        classifier.preprocess(view).unsqueeze(0).to(device)  # (1, 3, H, W)
        for view in (image, _uniform(image, 0), _uniform(image, 255))
    )
    with torch.no_grad():
        scores = confidence(model(inputs))[0]
    if not bool(scores.isfinite().all()):
        raise UserError(
            "the model's scores of the image are not finite (NaN); look at its weights"
        )
    if target is None:
        index = int(scores.argmax())
    else:
        index = class_index(target, classifier.categories, len(scores))
    picture = ((inputs - black) / (white - black)).clamp(0, 1)
    scene = _Scene(
        model, layer, layer_name, reshape_transform, inputs, black, picture, index
    )
    return scene, scores


def _methods(names: tuple[str, ...]) -> Methods:
    try:
        return parse_methods(names)
    except ValueError as error:
        raise UserError(f"`methods`: {error}") from error


def _one_map(maps: Tensor | tuple[Tensor, ...], layer_name: str, label: str) -> Tensor:
    """Returns the map of a method; refuses several, and one with NaN."""
    if isinstance(maps, tuple):
        raise UserError(f"`layer` {layer_name}: it has several tensors; choose another")
    if not bool(maps.isfinite().all()):
        raise UserError(
            f"the map of {label} is not finite (NaN); leave this method out, or choose "
            "another layer"
        )
    return maps


def _blamed(
    error: Exception, layer_name: str, label: str, chosen: Mapping[str, Any]
) -> UserError:
    """Returns an error of a method that names what is wrong.

    Args:
        error (Exception): What the method raised.
        layer_name (str): The layer.
        label (str): The method, with the options that it was given.
        chosen (Mapping[str, Any]): These options.
    """
    text = " ".join(f"{error}".split()) or type(error).__name__
    subject = re.match(r"`(\w+)`", text)
    name = subject[1] if subject else ""
    if name in chosen:
        return UserError(f"`methods`: {label}: {text}")
    # Captum asserts that the layer runs.
    if name == "layer" or isinstance(error, AssertionError):
        return UserError(f"`layer` {layer_name}: {text}")
    return UserError(f"{label} cannot explain this image: {text}")


def _attribute(
    scene: _Scene,
    options: ExplainOptions,
    label: str,
    method: Method,
    chosen: Mapping[str, Any],
) -> Any:
    """Returns what a method's ``attribute`` returns, under its own options."""
    try:
        attribute = method.explain(
            scene.model,
            scene.layer,
            chosen,
            reshape_transform=scene.reshape_transform,
            theta=options.theta,
            baselines=scene.black,
            fidelity=options.fidelity,
            max_channels=options.max_channels,
            show_progress=sys.stderr is not None,
        )
        return attribute(scene.inputs, target=scene.target)
    # The model, the layer and the options of a method may raise anything.
    except Exception as error:
        raise _blamed(error, scene.layer_name, label, chosen) from error


def _components(
    scene: _Scene, options: ExplainOptions
) -> tuple[Figure, dict[str, Any]]:
    """Draws the paper's Figure 1 for an image: components, fusion, selection."""
    attributions, details = _attribute(
        scene, options, "unioncam", METHODS["unioncam"], {"return_details": True}
    )
    union = _one_map(attributions, scene.layer_name, "unioncam")
    assert isinstance(details, UnionCAMDetails)
    figure = _components_figure(scene.picture, union, details)
    return figure, {"layer_size": list(union.shape[2:]), **_numbers(details)}


def _comparison(
    scene: _Scene, methods: Methods, options: ExplainOptions
) -> tuple[Figure, dict[str, Any]]:
    """Draws the map of each method, under the share of the confidence that it keeps."""
    panel_maps, rows = {}, []
    for label, (method, chosen) in methods.items():
        started = time.perf_counter()
        attributions = _attribute(scene, options, label, method, chosen)
        maps = _one_map(attributions, scene.layer_name, label)
        seconds = time.perf_counter() - started
        kept = confidence_kept(
            *masked_confidences(
                scene.model, scene.inputs, maps, scene.target, scene.black
            )
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
    names = ("baseline_score", "denoised_gain", "region_gain", "fused_gain", "fidelity")
    channels = ("total_channels", "active_channels", "scored_channels")
    return {
        **{name: getattr(details, name).item() for name in (*names, *channels)},
        "selected": "fused" if details.fused_selected.item() else "region",
    }


def _components_figure(
    picture: Tensor, attributions: Tensor, details: UnionCAMDetails
) -> Figure:
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


def _image(path: str | None) -> Image.Image:
    """Reads the image, or scikit-image's photograph of the cat Chelsea."""
    if path is not None:
        return read_image(path)
    try:
        from skimage.data import chelsea
    except ImportError as error:
        raise UserError(
            "the default image needs the demo extra; run "
            '`pip install "captum-unioncam[demo]"`, or name an IMAGE'
        ) from error
    return Image.fromarray(chelsea())  # type: ignore[no-untyped-call]


def _uniform(image: Image.Image, grey: int) -> Image.Image:
    """Returns an image of the same size in one colour."""
    return Image.new("RGB", image.size, (grey, grey, grey))
