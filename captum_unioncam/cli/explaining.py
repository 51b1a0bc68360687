"""What ``explain`` does with a batch of images: explanations, reports and figures."""

import dataclasses
import io
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.image import imsave
from PIL import Image
from torch import Tensor
from torch.nn import Module

from captum_unioncam import UnionCAMDetails
from captum_unioncam._confidence import confidence, unchanged
from captum_unioncam._explaining import class_scores, known_options, parsed_methods
from captum_unioncam._pictures import DOTS_PER_INCH, figure_content, suffix_of
from captum_unioncam._progress import tell_progress
from captum_unioncam._reshape import ReshapeTransform
from captum_unioncam.cli.options import ExplainOptions
from captum_unioncam.errors import DataError, UserError
from captum_unioncam.explanation import Explanation, explain, title_of
from captum_unioncam.metrics import confidence_kept, masked_confidences
from captum_unioncam.models import Classifier, class_index
from captum_unioncam.visualization import overlay_images, panels

COMPONENTS = "unioncam"  # the method whose component maps are shown by default


@dataclass(frozen=True)
class Setup:
    """What all images share: the options, a model on its device, and a layer."""

    options: ExplainOptions
    classifier: Classifier
    layer: Module
    layer_name: str
    reshape_transform: ReshapeTransform | None
    methods: Sequence[str] | None  # by label; None for UnionCAM and its components

    @property
    def drawing(self) -> dict[str, Any]:
        """The options of pictures."""
        return {"colormap": self.options.colormap, "alpha": self.options.alpha}


@dataclass(frozen=True)
class ClassExplanation:
    """One class of each image of a batch, by all methods.

    Attributes:
        explanation (Explanation): Its scores are confidences, whatever the gains are
            made of.
        kept (dict[str, Tensor]): The share of the confidence that is left under the map
            of each method, (N,).
        seconds (dict[str, float]): What each method took for an image.
    """

    explanation: Explanation
    kept: dict[str, Tensor]
    seconds: dict[str, float]


def explain_classes(
    setup: Setup, images: Sequence[Image.Image], show_progress: bool
) -> list[ClassExplanation]:
    """Explains one class of each image or, with ``top_k``, several of them.

    Raises:
        UserError: If an option is wrong, or the images cannot be explained
            (a DataError).
    """
    options, target = setup.options, None
    if options.target is not None:
        inputs = setup.classifier.preprocess(images[0])[None]
        device = next(setup.classifier.model.parameters()).device
        _, scores, _ = class_scores(setup.classifier.model, inputs.to(device), {})
        target = class_index(
            options.target, setup.classifier.categories, scores.shape[1]
        )
    first = _by_methods(setup, images, target, show_progress)
    targets, scores = first.explanation.targets, first.explanation.scores
    others = scores.scatter(1, targets[:, None], -torch.inf)
    count = min(options.top_k, scores.shape[1]) - 1
    order = others.topk(count).indices  # (N, count)
    return [
        first,
        *(_by_methods(setup, images, chosen, show_progress) for chosen in order.T),
    ]


def _by_methods(
    setup: Setup,
    images: Sequence[Image.Image],
    target: int | Tensor | None,
    show_progress: bool,
) -> ClassExplanation:
    """Explains one class of each image by each method."""
    found: list[Explanation] = []
    kept, seconds = {}, {}
    labels = setup.methods or (COMPONENTS,)
    for number, label in enumerate(labels):
        tell_progress(title_of(label), number, len(labels))
        started = time.perf_counter()
        explanation = _explained(setup, label, images, target, show_progress)
        found.append(explanation)
        seconds[label] = (time.perf_counter() - started) / len(images)
        if setup.methods is not None:
            confidences = masked_confidences(
                explanation.model,
                explanation.images,
                explanation.maps[label],
                explanation.targets,
                explanation.baselines,
            )
            kept[label] = confidence_kept(*confidences)
    scores = found[0].scores
    if setup.options.score == "logit":
        scores = confidence(scores)
    together = dataclasses.replace(
        found[0],
        maps={label: maps for one in found for label, maps in one.maps.items()},
        details={label: d for one in found for label, d in one.details.items()},
        scores=scores,
        confidences=scores.gather(1, found[0].targets[:, None])[:, 0],
    )
    return ClassExplanation(together, kept, seconds)


def _explained(
    setup: Setup,
    label: str,
    images: Sequence[Image.Image],
    target: int | Tensor | None,
    show_progress: bool,
) -> Explanation:
    """Explains images by one method; whatever it raises names what is wrong."""
    options, classifier = setup.options, setup.classifier
    ((method, own),) = parsed_methods([label]).values()
    known = known_options(method)
    offered: dict[str, Any] = {
        "theta": options.theta,
        "max_channels": options.max_channels,
        "score_func": None if options.score == "probability" else unchanged,
    }
    try:
        explanation = explain(
            classifier.model,
            list(images),
            target,
            methods=[label],
            layer=setup.layer,
            preprocess=classifier.preprocess,
            categories=classifier.categories,
            reshape_transform=setup.reshape_transform,
            fidelity=options.fidelity,
            show_progress=show_progress,
            **{name: value for name, value in offered.items() if name in known},
        )
    except UserError:
        raise
    # The model, the layer and the options of a method may raise anything.
    except Exception as error:
        raise _blamed(error, setup.layer_name, label, own) from error
    if not bool(explanation.maps[label].isfinite().all()):
        raise DataError(
            f"the map of {label} is not finite (NaN); leave this method out, or choose "
            "another layer"
        )
    return explanation


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
    return DataError(f"{label} cannot explain this image: {text}")


def image_reports(classes: Sequence[ClassExplanation]) -> list[dict[str, Any]]:
    """Returns what the maps of each image are: of its one class, or of several."""
    by_class = [_class_reports(one) for one in classes]
    if len(classes) == 1:
        return by_class[0]
    return [
        {
            "top": reports[0]["top"],
            "classes": [
                {key: value for key, value in report.items() if key != "top"}
                for report in reports
            ],
        }
        for reports in zip(*by_class, strict=True)
    ]


def _class_reports(one: ClassExplanation) -> list[dict[str, Any]]:
    """Returns what the maps of one class of each image are."""
    explanation = one.explanation
    *_, maps = explanation.maps.values()
    reports = []
    for index, entry in enumerate(explanation.to_dict()["images"]):
        report = {
            "target": entry["target"],
            "top": entry["top"],
            "layer_size": list(maps.shape[2:]),
        }
        if one.kept:
            report["methods"] = [
                {
                    "method": label,
                    "confidence_kept": kept[index].item(),
                    "seconds": one.seconds[label],
                }
                for label, kept in one.kept.items()
            ]
        else:
            report |= entry["details"][COMPONENTS]
        reports.append(report)
    return reports


def picture_content(
    setup: Setup, classes: Sequence[ClassExplanation], index: int, path: str
) -> bytes:
    """Returns the picture of an image, as the content of a file of this name."""
    first = classes[0].explanation
    picture = first.pictures[index : index + 1]
    if setup.options.overlay_only:
        (maps,) = first.maps.values()
        chosen = maps[index : index + 1]
        (pixels,) = overlay_images(picture, chosen, **setup.drawing)
        buffer = io.BytesIO()
        imsave(buffer, pixels, format=suffix_of(path)[1:], dpi=DOTS_PER_INCH)
        return buffer.getvalue()
    return figure_content(_figure(setup, classes, index, picture), path)


def _figure(
    setup: Setup, classes: Sequence[ClassExplanation], index: int, picture: Tensor
) -> Figure:
    if len(classes) > 1:
        maps = [_class_maps(setup, one.explanation, index) for one in classes]
        return panels(
            picture.expand(len(classes), -1, -1, -1),
            {title: torch.cat([one[title] for one in maps]) for title in maps[0]},
            names=[one.explanation.name_of(index) for one in classes],
            **setup.drawing,
        )
    (one,) = classes
    if setup.methods is None:
        maps_of_class = _class_maps(setup, one.explanation, index)
        details = one.explanation.details[COMPONENTS]
        return _components_figure(setup, picture, maps_of_class, details, index)
    return methods_figure(one, index, **setup.drawing)


def methods_figure(one: ClassExplanation, index: int, **drawing: Any) -> Figure:
    """Draws an image, and its map by each method with what it keeps."""
    explanation = one.explanation
    titled = {
        f"{title_of(label)}\nkeeps {kept[index]:.0%}": (
            explanation.maps[label][index : index + 1]
        )
        for label, kept in one.kept.items()
    }
    return panels(explanation.pictures[index : index + 1], titled, **drawing)


def _class_maps(
    setup: Setup, explanation: Explanation, index: int
) -> dict[str, Tensor]:
    """Returns the maps to draw of an image, (1, 1, h, w), by their titles."""
    maps = {title_of(label): maps for label, maps in explanation.maps.items()}
    if setup.methods is None:
        details = explanation.details[COMPONENTS]
        components = {
            "denoised": details.denoised_map,
            "region": details.region_map,
            "fused": details.fused_map,
        }
        maps = {**components, **maps}
    return {title: values[index : index + 1] for title, values in maps.items()}


def _components_figure(
    setup: Setup,
    picture: Tensor,
    maps: Mapping[str, Tensor],
    details: UnionCAMDetails,
    index: int,
) -> Figure:
    """Draws the paper's Figure 1 for an image: components, fusion, selection."""
    fused_selected = bool(details.fused_selected[index])
    selected = "fused" if fused_selected else "region"
    union = title_of(COMPONENTS)
    titled, marked = {}, []
    for title, values in maps.items():
        gain = getattr(details, f"{title}_gain", None)
        if gain is not None:
            shown = f"{title}, β = {gain[index].item():.3f}"
        else:
            shown = f"{title} ({selected})" if title == union else title
        if title in (selected, union):
            marked.append(shown)
        titled[shown] = values
    return panels(picture, titled, marked, **setup.drawing)
