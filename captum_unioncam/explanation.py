"""One call for people in a hurry: maps, and everything that it took to make them.

The attribution classes choose nothing for the user. :func:`explain` does: the class,
the layer, the baseline, the output of the model. What it chose is in its result.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn import Module

from captum_unioncam._baselines import Baselines
from captum_unioncam._explaining import (
    check_call,
    checked_categories,
    checked_targets,
    class_scores,
    fidelity_in_words,
    found_layer,
    made_maps,
    parsed_methods,
)
from captum_unioncam._files import write_whole
from captum_unioncam._images import Preprocess, image_batch
from captum_unioncam._maps import at_least_float32
from captum_unioncam._pictures import (
    SUFFIXES,
    Statistics,
    figure_content,
    suffix_of,
)
from captum_unioncam._reshape import ReshapeTransform
from captum_unioncam.attr import UnionCAMDetails
from captum_unioncam.visualization import overlay_images, panels

__all__ = ["Explanation", "explain"]

FIDELITY = 0.99

# Below this, the gains in confidence are mostly 0, whatever a mask shows.
LOW_CONFIDENCE = 0.01
UNSURE = (
    "the confidence is about 0, and gains in it may say nothing: "
    "`score_func=lambda output: output` scores by logits"
)

TOP = 3  # classes in a dict
SHOWN = 6  # images in a repr


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Maps of images, and everything that it took to make them.

    Attributes:
        images (Tensor): The images as the model saw them, (N, C, H, W).
        pictures (Tensor): The images as a person sees them, (N, 1 or 3, H, W), in
            [0, 1].
        maps (dict[str, Tensor]): By method, as it was named: a map for each image, (N,
            1, h, w).
        targets (Tensor): The class that was explained of each image, int, (N,).
        confidences (Tensor): The score of each image in its target, (N,): the
            confidence, or what ``score_func`` makes of the outputs.
        scores (Tensor): The scores in all classes, (N, classes).
        details (dict[str, UnionCAMDetails]): Component maps, gains and the choice, of
            the methods that have them, by method.
        layer (str or None): Name of the layer; None if no method has one.
        baselines (Tensor or float): What a mask of 0 showed.
        model (torch.nn.Module): What was explained: the model, or the
            :class:`.SelectedOutput` around it.
        categories (tuple[str, ...]): The names of the classes; empty if not given.
        chosen (dict[str, str]): What was chosen, and why, in words.
    """

    images: Tensor
    pictures: Tensor
    maps: dict[str, Tensor]
    targets: Tensor
    confidences: Tensor
    scores: Tensor
    details: dict[str, UnionCAMDetails]
    layer: str | None
    baselines: Baselines
    model: Module
    categories: tuple[str, ...] = ()
    chosen: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def __repr__(self) -> str:
        count = f"{len(self)} image{'' if len(self) == 1 else 's'}"
        shown = [self.name_of(index) for index in range(min(len(self), SHOWN))]
        more = ", ..." if len(self) > SHOWN else ""
        sizes = [
            f"{label} of {' x '.join(map(str, maps.shape[2:]))}"
            for label, maps in self.maps.items()
        ]
        lines = {
            "maps": ", ".join(sizes),
            **self.chosen,
            "target": f"{', '.join(shown)}{more}: {self.chosen['target']}",
        }
        unsure = int(self.unsure.sum())
        if unsure:
            lines["unsure"] = f"{unsure} of {len(self)}; {UNSURE}"
        width = max(map(len, lines))
        rows = [f"  {name:<{width}}  {text}" for name, text in lines.items()]
        return "\n".join([f"Explanation of {count}", *rows])

    @property
    def unsure(self) -> Tensor:
        """Whether the confidence in each target is below 0.01, bool, (N,).

        Whatever a mask shows, the gains in confidence are mostly 0 then. Scores that
        are no confidences, such as logits, are never unsure.
        """
        confidences = bool(((self.scores >= 0) & (self.scores <= 1)).all())
        return (self.confidences < LOW_CONFIDENCE) & confidences

    def name_of(self, index: int) -> str:
        """Returns the target of an image in words: its name, and the confidence."""
        entry = self._class(index, int(self.targets[index]))
        name = f"{entry['index']} {entry['name'] or ''}".strip()
        return f"{name} ({entry['confidence']:.3f})"

    def _class(self, index: int, target: int) -> dict[str, Any]:
        return {
            "index": target,
            "name": self.categories[target] if self.categories else None,
            "confidence": self.scores[index, target].item(),
        }

    def figure(
        self, *, color_bar: bool = False, colormap: str = "jet", alpha: float = 0.5
    ) -> Figure:
        """Draws a row for each image: the image, and its map by each method.

        Args:
            color_bar, colormap, alpha: See :func:`.overlays`.

        Returns:
            *matplotlib.figure.Figure*, not shown.
        """
        return panels(
            self.pictures,
            {title_of(label): maps for label, maps in self.maps.items()},
            names=[self.name_of(index) for index in range(len(self))],
            color_bar=color_bar,
            colormap=colormap,
            alpha=alpha,
        )

    def overlays(
        self, *, colormap: str = "jet", alpha: float = 0.5
    ) -> dict[str, npt.NDArray[np.uint8]]:
        """Returns the images under the colours of their maps, by method.

        Args:
            colormap, alpha: See :func:`.overlay_images`.

        Returns:
            *dict* of uint8 arrays, (N, H, W, 3).
        """
        return {
            label: overlay_images(self.pictures, maps, colormap=colormap, alpha=alpha)
            for label, maps in self.maps.items()
        }

    def save(self, path: str) -> None:
        """Writes the picture, or the numbers, as the name's end says.

        Args:
            path (str): ``.png``, ``.pdf`` or ``.svg`` for :meth:`figure`, ``.npz`` for
                :meth:`arrays`. A file that is there is replaced.

        Raises:
            ValueError: If the name ends otherwise.
            OSError: If the file cannot be written.
        """
        path = str(path)
        if path.lower().endswith(".npz"):
            write_whole(path, npz_content(self.arrays()))
        elif suffix_of(path):
            write_whole(path, figure_content(self.figure(), path))
        else:
            known = ", ".join(SUFFIXES)
            raise ValueError(f"`path` must end with {known} or .npz, got {path!r}.")

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the numbers that further work needs, as arrays by name.

        Returns:
            *dict*: ``targets`` and ``confidences``, (N,); for each method
            ``maps/METHOD``, (N, 1, h, w), as they are, not scaled; and where there are
            details ``gains/METHOD``, (N, M + 1): the score gains of the M parts and,
            last, of the fused map.
        """
        arrays = {"targets": self.targets, "confidences": self.confidences}
        for label, maps in self.maps.items():
            arrays[f"maps/{label}"] = at_least_float32(maps)
        for label, details in self.details.items():
            gains = [details.part_gains, details.fused_gain[:, None]]
            arrays[f"gains/{label}"] = torch.cat(gains, 1)
        return {name: values.cpu().numpy() for name, values in arrays.items()}

    def to_dict(self) -> dict[str, Any]:
        """Returns what JSON can hold: everything but images and maps.

        Returns:
            *dict*: ``layer``, ``methods``, ``chosen``, and ``images``: for each its
            ``target``, the ``top`` three classes, and the ``details`` of each method
            that has them.
        """
        return {
            "layer": self.layer,
            "methods": list(self.maps),
            "chosen": dict(self.chosen),
            "images": [self._image(index) for index in range(len(self))],
        }

    def _image(self, index: int) -> dict[str, Any]:
        top = self.scores[index].topk(min(TOP, self.scores.shape[1])).indices
        return {
            "target": self._class(index, int(self.targets[index])),
            "top": [self._class(index, target) for target in top.tolist()],
            "details": {
                label: _numbers(details, index)
                for label, details in self.details.items()
            },
        }


def title_of(label: str) -> str:
    """Returns the label of a method with its class in place of its name."""
    (method, _), *_ = parsed_methods([label]).values()
    return ":".join([method.title, *label.split(":")[1:]])


def npz_content(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Returns arrays as the content of a compressed file for numpy.load."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _numbers(details: UnionCAMDetails, index: int) -> dict[str, Any]:
    """Returns the scores, the choice and the channels of one image."""
    names = ("baseline_score", "denoised_gain", "region_gain", "fused_gain", "fidelity")
    channels = ("total_channels", "active_channels", "scored_channels")
    kept, parts = int(details.kept[index]), details.part_maps.shape[1]
    known = {0: "denoised", parts - 1: "region", parts: "fused"}
    return {
        **{name: getattr(details, name)[index].item() for name in (*names, *channels)},
        "selected": known.get(kept, f"part {kept}"),
    }


def explain(
    model: Module,
    images: Tensor | Image.Image | Sequence[Image.Image],
    target: int | Sequence[int] | Tensor | None = None,
    *,
    methods: str | Sequence[str] = "unioncam",
    layer: Module | str | None = None,
    mean: Statistics = None,
    std: Statistics = None,
    preprocess: Preprocess | None = None,
    categories: Sequence[str] = (),
    reshape_transform: ReshapeTransform | None = None,
    baselines: Baselines = None,
    fidelity: float = FIDELITY,
    show_progress: bool = False,
    **options: Any,
) -> Explanation:
    r"""Explains what a classifier sees in images, in one call.

    What you do not give is chosen for you; ``print(explanation)`` says what was chosen.

    - The class of each image is the one that the model predicts.
    - The layer is what :func:`.find_layer` finds.
    - What a mask hides is black: ``(0 - mean) / std``. Without ``mean`` and ``std`` it
      is 0, which is black for images in [0, 1].
    - If the model returns a dict, a tuple or an object, its output is the entry
      "logits", or else the only tensor of shape (N, classes).

    Note: By default the maps are those of UnionCAM with ``fidelity=0.99``: some scores
    are predicted, as in the command ``captum-unioncam explain``. ``fidelity=1`` gives
    the paper's exact maps.

    Cost: 1 forward pass of the images, and the costs of :func:`.find_layer` and of each
    method.

    Args:
        model (torch.nn.Module): A classifier in eval mode. The images are moved to its
            device.
        images (Tensor, PIL.Image or list[PIL.Image]): A batch as the model takes it,
            (N, C, H, W), or one image, (C, H, W); or PIL images, for ``preprocess``.
        target (int, Sequence[int] or Tensor, optional): The class to explain, one for
            all images or one for each. Default: None, the predicted ones
        methods (str or Sequence[str], optional): Names of methods, as
            ``captum-unioncam methods`` lists them, such as
            ``"gradcam,unioncam:theta=30"``. Default: "unioncam"
        layer (torch.nn.Module or str, optional): The layer, or its dotted name.
            Default: None, the last spatial activation
        mean, std (float, Sequence[float] or Tensor, optional): The numbers by which the
            images were normalised, one for each channel or one for all, in the units in
            which black is 0 and white is 1. Default: None
        preprocess (Callable, optional): A function from a PIL image to the model's
            input, (C, H, W). It is applied to a black and to a white image to find
            ``mean`` and ``std``. Default: None
        categories (Sequence[str], optional): Names of the classes, by index, for
            pictures and text. Default: ()
        reshape_transform (Callable, optional): A function from the layer's tensor to
            (N, K, *spatial), such as :func:`.vit_reshape` for tokens. Default: None
        baselines (Tensor or float, optional): What a mask of 0 shows. Default: None,
            black
        fidelity (float, optional): Score channels until the estimated correlation with
            the exact map reaches this, in [0, 1]. Default: 0.99
        show_progress (bool, optional): Show progress bars on stderr. Default: False
        options (Any, optional): Further options of the methods, such as ``theta``,
            ``max_channels`` or ``score_func``. Each method takes those that it has.

    Returns:
        :class:`Explanation`

    Raises:
        TypeError: If the model is not a module, the images have another type, or an
            option belongs to none of the methods.
        ValueError: If the model is in train mode, does not return one row of class
            scores for each image, or these are not finite; if a method, layer or class
            does not exist, no layer is found, or the images are not in [0, 1] after
            ``mean`` and ``std`` are undone; or as the methods themselves.

    Examples::

        >>> import torch
        >>> from captum_unioncam import explain
        >>> conv, head = torch.nn.Conv2d(3, 4, 3), torch.nn.LazyLinear(2)
        >>> net = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten(), head)
        >>> explanation = explain(net.eval(), torch.rand(2, 3, 8, 8))
        >>> explanation.layer, explanation.maps["unioncam"].shape
        ('1', torch.Size([2, 1, 6, 6]))
    """
    parsed = parsed_methods(methods)
    check_call(model, parsed, fidelity, options)
    batch = image_batch(
        images,
        mean=mean,
        std=std,
        preprocess=preprocess,
        baselines=baselines,
        device=next((p.device for p in model.parameters()), None),
    )
    offered = {
        **options,
        "reshape_transform": reshape_transform,
        "baselines": batch.baselines,
        "fidelity": fidelity,
        "show_progress": show_progress,
    }
    scored, scores, output_from = class_scores(model, batch.inputs, offered)
    categories = checked_categories(categories, scores)
    targets = checked_targets(target, scores)
    found, name = found_layer(model, batch.inputs, layer, parsed)
    maps, details = made_maps(scored, found, batch.inputs, targets, parsed, offered)
    how = "given" if layer is not None else "found: the last spatial activation"
    return Explanation(
        images=batch.inputs,
        pictures=batch.pictures,
        maps=maps,
        targets=targets,
        confidences=scores.gather(1, targets[:, None])[:, 0],
        scores=scores,
        details=details,
        layer=name,
        baselines=batch.baselines,
        model=scored,
        categories=categories,
        chosen={
            "target": "predicted" if target is None else "given",
            "layer": "none: no method takes one" if name is None else f"{name}, {how}",
            "output": output_from,
            "baselines": batch.baselines_from,
            "pictures": batch.pictures_from,
            "fidelity": fidelity_in_words(fidelity, parsed),
        },
    )
