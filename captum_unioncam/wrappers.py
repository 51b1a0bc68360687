"""Models that do not return one row of class scores, as forward functions.

Each is a module around the model, for ``forward_func``. The names of its layers start
with ``model.``; other targets take one line (see the tutorials): regression,
several labels, and similarity to an embedding. :class:`Contrast` asks another question
of a classifier: what tells a class from those most like it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam._checks import check_choice, check_integer, check_number
from captum_unioncam._maps import at_least_float32

__all__ = ["BoxScore", "Contrast", "MeanOverMask", "SelectedOutput"]

DETECTION = {"boxes", "labels", "scores"}
WEIGHTINGS = ("mean", "probability")


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


class Contrast(Module):
    r"""A classifier: how much more each class scores than the classes most like it.

    A map of it shows what tells a class from its neighbours, in place of what they
    share: the wing bars of a bird, and not the bird. Column c of the output is

    .. math::
        y_c - \gamma \sum_{j \in R_c} q_j y_j, \quad q_j = 1 / |R_c|

    where :math:`y` are the logits, and the references :math:`R_c` the other classes
    whose logits are nearest to :math:`y_c`. Gradients flow through their logits, and
    not through the choice. Classes are ordered by logit, then by index: of classes that
    are equally far, those nearer in this order are chosen, then the lower one.

    Reference: Zhang et al., Finer-CAM: spotting the difference reveals finer details
    for visual explanation, CVPR 2025, arXiv:2501.11309.

    Note: The authors' code has :math:`q_j = p_j / \sum_i p_i`, the probabilities among
    the references, and differentiates them too, so that reference j gets the weight
    :math:`q_j (1 + y_j - \sum_i q_i y_i)`: one far below the others is pushed up. That
    is ``weighting="probability"``, with ``gamma=1`` there. The default is the mean,
    whose weights are what the formula says.

    Note: A masked image has references of its own. Methods that score by a confidence
    would take a softmax over the contrasts: give them ``score_func=lambda output:
    output``, which is the contrast itself.

    Cost: 1 pass of the model, and one sort of the logits.

    Args:
        model (torch.nn.Module): Returns logits, (N, C), in which C > ``references``.
        references (int, optional): Classes to compare each class with. Default: 3
        gamma (float, optional): Strength of the comparison, >= 0; with 0 the output is
            the model's. Default: 0.6
        weighting (str, optional): "mean" or "probability". Default: "mean"

    Raises:
        TypeError or ValueError: If an option is not as above.

    Examples::

        >>> import torch
        >>> from captum_unioncam import Contrast
        >>> contrast = Contrast(torch.nn.Identity(), references=2, gamma=0.5)
        >>> contrast(torch.tensor([[4.0, 3.0, 1.0, 0.0]]))
        tensor([[ 3.0000,  1.7500,  0.2500, -1.0000]])
    """

    def __init__(
        self,
        model: Module,
        references: int = 3,
        gamma: float = 0.6,
        weighting: str = "mean",
    ) -> None:
        super().__init__()
        check_integer("references", references)
        check_number("gamma", gamma, 0)
        check_choice("weighting", weighting, WEIGHTINGS)
        self.model, self.references = model, references
        self.gamma, self.weighting = gamma, weighting

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the contrasts, (N, C), in their type; a row with NaN is all NaN.

        Raises:
            TypeError: If the model returns no tensor.
            ValueError: If its output is not (N, C), or has too few classes.
        """
        output = self.model(*args, **kwargs)
        self._check(output)
        logits = at_least_float32(output)  # (N, C)
        nearest = nearest_classes(logits.detach(), self.references)  # (N, C, R)
        others = logits.gather(1, nearest.flatten(1)).view(nearest.shape)
        if self.weighting == "mean":
            reference = others.mean(2)  # (N, C)
        else:
            reference = (others.softmax(2) * others).sum(2)
        contrasts = logits - self.gamma * reference
        undefined = logits.isnan().any(1, keepdim=True)  # (N, 1)
        contrasts = torch.where(undefined, torch.nan, contrasts)
        return contrasts.to(output.dtype) if output.is_floating_point() else contrasts

    def _check(self, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"`model` must return a Tensor, got a {type(output).__name__}; give "
                'Contrast(SelectedOutput(model, "logits")), with the key of yours.'
            )
        if output.dim() != 2:
            raise ValueError(
                "`model` must return one row of logits for each example, (N, C), got "
                f"the shape {tuple(output.shape)}."
            )
        if output.shape[1] <= self.references:
            raise ValueError(
                "`references` must be fewer than the classes of the model, "
                f"{output.shape[1]}, got {self.references}."
            )


def nearest_classes(logits: Tensor, count: int) -> Tensor:
    """Returns the ``count`` other classes nearest to each, (N, C, count), of (N, C).

    Those are among the ``count`` neighbours on either side in the order of the logits.
    """
    classes = logits.shape[1]
    ordered, order = logits.sort(dim=1, stable=True)  # (N, C) each
    steps = torch.arange(1, count + 1, device=logits.device)
    offsets = torch.stack([-steps, steps], 1).flatten()  # -1, 1, -2, 2, ...
    places = torch.arange(classes, device=logits.device)[:, None] + offsets
    inside = (places >= 0) & (places < classes)  # (C, 2 * count)
    places = places.clamp(0, classes - 1)
    distances = (ordered[:, places] - ordered[:, :, None]).abs()  # (N, C, 2 * count)
    distances = torch.where(inside, distances, torch.nan)  # which is sorted last
    chosen = distances.sort(dim=2, stable=True).indices[..., :count]
    found = places.expand_as(distances).gather(2, chosen)  # (N, C, count), places
    found = order.gather(1, found.flatten(1)).view(found.shape)  # as classes
    # From the order of the logits to that of the classes.
    return torch.empty_like(found).scatter_(
        1, order[:, :, None].expand_as(found), found
    )


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
