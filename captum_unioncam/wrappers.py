"""Models that do not return one row of class scores, as forward functions.

Each is a module around the model, for ``forward_func``. The names of its layers start
with ``model.``; other targets take one line (see the tutorials): regression,
several labels, and similarity to an embedding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam._maps import at_least_float32

__all__ = ["BoxScore", "MeanOverMask", "SelectedOutput"]

DETECTION = {"boxes", "labels", "scores"}


class SelectedOutput(Module):
    """A model that returns a dict, a tuple or an object: one tensor of it.

    Args:
        model (torch.nn.Module): The model, such as one of HuggingFace.
        key (str or int): The tensor's key or attribute, such as "logits", or its place
            in a tuple.

    Examples::

        >>> import torch
        >>> from captum_unioncam import SelectedOutput
        >>> class Dict(torch.nn.Linear):
        ...     def forward(self, inputs):
        ...         return {"logits": super().forward(inputs)}
        >>> SelectedOutput(Dict(3, 2), "logits")(torch.rand(4, 3)).shape
        torch.Size([4, 2])
    """

    def __init__(self, model: Module, key: str | int) -> None:
        super().__init__()
        self.model, self.key = model, key

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the tensor.

        Raises:
            ValueError: If the output has no such part.
            TypeError: If the part is not a tensor.
        """
        output = self.model(*args, **kwargs)
        parts = parts_of(output)
        if self.key not in parts:
            # A ModelOutput of HuggingFace counts its parts too, also from the end.
            if isinstance(self.key, int) and isinstance(output, Mapping | tuple | list):
                places = list(parts.values())
                parts = dict(enumerate(places, -len(places) if self.key < 0 else 0))
            elif isinstance(self.key, str) and hasattr(output, self.key):
                parts[self.key] = getattr(output, self.key)  # a property
        if self.key not in parts:
            listed = ", ".join(map(repr, parts)) or "no parts"
            raise ValueError(
                f"`key`: the model's {type(output).__name__} has no {self.key!r}; it "
                f"has {listed}."
            )
        found = parts[self.key]
        if not isinstance(found, Tensor):
            raise TypeError(
                f"`key`: {self.key!r} of the model's {type(output).__name__} must be a "
                f"Tensor, got a {type(found).__name__}."
            )
        return found


def parts_of(output: Any) -> dict[Any, Any]:
    """Returns the parts of an output by their keys, places or attributes."""
    if isinstance(output, Mapping):
        return dict(output)
    if hasattr(output, "_asdict"):  # a namedtuple
        return dict(output._asdict())
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    if dataclasses.is_dataclass(output):
        names = [field.name for field in dataclasses.fields(output)]
        return {name: getattr(output, name) for name in names}
    if isinstance(output, Tensor) or not hasattr(output, "__dict__"):
        return {}
    return {name: part for name, part in vars(output).items() if name[0] != "_"}


class MeanOverMask(Module):
    r"""A segmentation model: the mean output over the pixels of a mask.

    The masks, one for each example, are an additional argument, so that they follow
    their examples through the masked passes: ``attribute(inputs, target=label,
    additional_forward_args=(masks,))``. A single pixel needs no wrapper: Captum's
    target ``(label, row, column)`` selects it.

    Args:
        model (torch.nn.Module): Returns (N, classes, *size).

    Examples::

        >>> import torch
        >>> from captum_unioncam import MeanOverMask
        >>> segment = MeanOverMask(torch.nn.Conv2d(3, 5, 1))
        >>> masks = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
        >>> masks[..., 2:4, 2:4] = True
        >>> segment(torch.rand(2, 3, 8, 8), masks).shape
        torch.Size([2, 5])
    """

    def __init__(self, model: Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, masks: Tensor) -> Tensor:
        """Returns the mean over each mask, (N, classes); 0 where a mask is empty.

        Args:
            inputs (Tensor): (N, C, *size).
            masks (Tensor): The pixels that count, bool, or their weights >= 0, (N, 1,
                *output_size).

        Raises:
            TypeError: If the model returns no tensor.
            ValueError: If the masks do not have the output's size.
        """
        output = self.model(inputs)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"`model` must return a Tensor, got a {type(output).__name__}; give "
                'MeanOverMask(SelectedOutput(model, "out")), with the key of yours.'
            )
        expected = (len(output), 1, *output.shape[2:])
        if tuple(masks.shape) != expected:
            raise ValueError(
                "`masks` must have the size of the model's output: expected "
                f"{expected}, got {tuple(masks.shape)}."
            )
        values = at_least_float32(output).flatten(2)  # sums may leave a half type
        weights = masks.to(values.dtype).flatten(2)  # (N, 1, pixels)
        total = weights.sum(2).clamp_min(torch.finfo(values.dtype).tiny)
        shown = torch.where(weights > 0, values, 0)  # what is outside may be infinite
        return ((shown * weights).sum(2) / total).to(output.dtype)


class BoxScore(Module):
    r"""A detector: the confidence in a class at a box, for each image.

    The score is that of the most confident detection of the class whose box overlaps
    the given box, IoU >= ``iou_threshold``; 0 if there is none. Boxes and classes, one
    of each for each example, are additional arguments, so that they follow their
    examples through the masked passes: ``attribute(images, additional_forward_args=
    (boxes, labels))``, with no target.

    Note: torchvision's detectors resize their images, and pad them to a multiple of 32
    pixels. The layer covers the padding too, so that its map is shifted over the image:
    give images whose resized sides are multiples of 32, or a ``reshape_transform`` that
    crops the layer.

    Args:
        model (torch.nn.Module): A detector that takes images, (N, C, H, W), and returns
            for each a dict of "boxes" (D, 4), "labels" (D,) and "scores" (D,), as those
            of torchvision do in eval mode.
        iou_threshold (float, optional): Least overlap of a detection with the box, in
            (0, 1]. Default: 0.5

    Raises:
        ValueError: If ``iou_threshold`` is not in (0, 1].
    """

    def __init__(self, model: Module, iou_threshold: float = 0.5) -> None:
        super().__init__()
        if not 0 < iou_threshold <= 1:
            raise ValueError(
                f"`iou_threshold` must be in (0, 1], got {iou_threshold!r}."
            )
        self.model, self.iou_threshold = model, iou_threshold

    def forward(self, images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Returns the score of each image, (N,), in [0, 1].

        Args:
            images (Tensor): (N, C, H, W).
            boxes (Tensor): A box for each image, xyxy in pixels, (N, 4).
            labels (Tensor): Its class, int, (N,).

        Raises:
            TypeError: If the model returns other than dicts of detections.
            ValueError: If there is not one box and one label for each image.
        """
        if boxes.shape != (len(images), 4) or labels.shape != (len(images),):
            raise ValueError(
                f"`boxes` and `labels` must be ({len(images)}, 4) and ({len(images)},)"
                f" for {len(images)} images, got {tuple(boxes.shape)} and "
                f"{tuple(labels.shape)}."
            )
        found = [images.new_zeros(0)]
        for detections, box, label in zip(
            self.model(images), boxes, labels, strict=True
        ):
            parts = parts_of(detections)
            if not DETECTION <= parts.keys():
                raise TypeError(
                    "`model` must return for each image a dict of 'boxes', 'labels' "
                    f"and 'scores', got {list(parts)} of a "
                    f"{type(detections).__name__}; wrap it in a module that does."
                )
            scores = parts["scores"]
            overlap = _iou(parts["boxes"].detach(), box)
            fits = (overlap >= self.iou_threshold) & (parts["labels"] == label)
            # A zero that the scores depend on: no detection is no reason to fail.
            best = torch.cat([0 * scores.sum()[None], scores * fits]).max()
            found.append(best[None])
        return torch.cat(found)


def _iou(boxes: Tensor, box: Tensor) -> Tensor:
    """Returns the overlap of each box, (D, 4), with one, (4,)."""
    # Sides of each intersection, (D, 2), negative where there is none.
    sides = torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2])
    shared = sides.clamp_min(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return shared / (areas - shared)
