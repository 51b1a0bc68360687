"""Whether the map lies on the object, given regions or boxes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from captum_unioncam._checks import check_number
from captum_unioncam._maps import (
    checked_maps,
    extremes,
    is_constant,
    spatial_dims,
    to_mask,
    upsample,
)

# Resized values are equal if they are so many units of rounding of the map's largest
# magnitude apart: interpolating between two equal values may not return them exactly.
EQUAL_WITHIN = 8


def boxes_to_masks(boxes: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    r"""Returns the region that the boxes of each example cover together.

    A box covers the pixels [x0, x1) x [y0, y1). Its coordinates are rounded to the
    nearest whole pixels (halves up) and clipped to the image, so that a box may vanish.

    Args:
        boxes (Sequence[Tensor]): For each of the N examples its boxes, (B_i, 4), with
            rows x0, y0, x1, y1 in pixels. An example without boxes has (0, 4).
        size (Sequence[int]): Size of the image, (H, W).

    Returns:
        *Tensor* of bool, (N, 1, H, W), on the device of the boxes; all False where no
        box is left.

    Raises:
        TypeError: If an entry of ``boxes`` is not a tensor.
        ValueError: If an entry of ``boxes`` is not (B_i, 4), a box ends before it
            starts or has NaN, or ``size`` is not two positive numbers.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics.localization import boxes_to_masks
        >>> boxes = [torch.tensor([[1.0, 0.0, 3.0, 1.0]]), torch.zeros(0, 4)]
        >>> boxes_to_masks(boxes, (2, 4)).int()[:, 0].tolist()
        [[[0, 1, 1, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]]]
    """
    pixel_boxes = _pixel_boxes(boxes, size)
    masks = torch.zeros(len(pixel_boxes), 1, *size, dtype=torch.bool, device="cpu")
    for mask, boxes_of_one in zip(masks[:, 0], pixel_boxes, strict=True):
        for x0, y0, x1, y1 in boxes_of_one.tolist():
            mask[y0:y1, x0:x1] = True
    return masks.to(boxes[0].device) if len(boxes) else masks


@torch.no_grad()
def pointing_game(
    attributions: Tensor, masks: Tensor, *, tolerance: float = 0
) -> Tensor:
    r"""Returns whether the largest value of the map lies in the region.

    1 is a hit and 0 a miss; more is better. Of several equal largest values (equal to
    within rounding) the share of hits counts.

    Reference: Zhang et al., Top-down Neural Attention by Excitation Backprop, IJCV
    2018, arXiv:1608.00507, with a tolerance of 15 pixels. The pointing accuracy is the
    mean over the examples.

    Cost: no forward pass.

    Args:
        attributions (Tensor): A map for each example, (N, 1, *size), of the layer's or
            the input's size and of any scale, resized to ``masks``.
        masks (Tensor): The region of each example, bool, (N, 1, *input_size); see
            :func:`boxes_to_masks`.
        tolerance (float, optional): How many pixels from the region, in a straight
            line, still count as a hit. Default: 0

    Returns:
        *Tensor*, (N,), in [0, 1], NaN where the region is empty or the map is constant
        or not finite.

    Raises:
        TypeError: If ``masks`` are not bool.
        ValueError: If ``attributions`` are not (N, 1, *size), ``masks`` do not fit
            them, or ``tolerance`` is negative or not finite.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics.localization import pointing_game
        >>> maps = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]])
        >>> masks = torch.tensor([[[[False, False], [True, False]]]])
        >>> pointing_game(maps, masks).tolist()
        [0.0]
        >>> pointing_game(maps, masks, tolerance=1).tolist()
        [1.0]
    """
    check_number("tolerance", tolerance, 0)
    maps, masks = _checked(attributions, masks)
    resized = upsample(maps, masks.shape[2:])
    low, high = extremes(resized)
    slack = EQUAL_WITHIN * torch.finfo(resized.dtype).eps
    peaks = resized >= high - slack * torch.maximum(low.abs(), high.abs())
    hits = peaks & _grown(masks, tolerance)  # (N, 1, *input_size)
    share = _total(hits).to(maps) / _total(peaks)
    defined = _is_defined(maps, resized) & masks.flatten(1).any(1)
    return torch.where(defined, share, torch.nan)


@torch.no_grad()
def energy_pointing_game(attributions: Tensor, masks: Tensor) -> Tensor:
    r"""Returns the share of the map's positive values that lies in the region.

    .. math:: \sum_{p \in R} L^+_p / \sum_p L^+_p, \quad L^+ = \max(L, 0)

    where :math:`L^+` is resized to the region R. More is better; a map that is the same
    everywhere has the region's share of the image.

    Reference: Wang et al., Score-CAM, CVPR Workshops 2020, arXiv:1910.01279v2, section
    4.3, "the proportion".

    Cost: no forward pass.

    Args:
        attributions (Tensor): A map for each example, (N, 1, *size), of the layer's or
            the input's size and of any scale, resized to ``masks``. Values below 0
            count as 0.
        masks (Tensor): The region of each example, bool, (N, 1, *input_size); see
            :func:`boxes_to_masks`.

    Returns:
        *Tensor*, (N,), in [0, 1], NaN where the region is empty, no value is positive
        or the map is not finite.

    Raises:
        TypeError: If ``masks`` are not bool.
        ValueError: If ``attributions`` are not (N, 1, *size), or ``masks`` do not fit
            them.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics.localization import energy_pointing_game
        >>> maps = torch.tensor([[[[-2.0, 1.0], [3.0, 4.0]]]])
        >>> masks = torch.tensor([[[[True, False], [True, False]]]])
        >>> energy_pointing_game(maps, masks).tolist()
        [0.375]
    """
    maps, masks = _checked(attributions, masks)
    energy = maps.clamp(min=0)
    # Shares of the largest value: the sums of huge or tiny values stay in range.
    energy = upsample(energy / extremes(energy)[1], masks.shape[2:])
    inside, total = _total(energy.where(masks, 0)), _total(energy)
    finite = maps.isfinite().flatten(1).all(1)
    defined = finite & (total > 0) & masks.flatten(1).any(1)
    return torch.where(defined, inside / total, torch.nan)


@torch.no_grad()
def box_iou(
    attributions: Tensor,
    boxes: Sequence[Tensor],
    size: Sequence[int],
    *,
    threshold: float = 0.15,
) -> Tensor:
    r"""Returns how well a box around the map's bright part meets one of the boxes.

    The map is resized to the image and scaled to [0, 1]. Of the pixels of at least
    ``threshold`` the largest part that hangs together (corners touch, the first of
    equals) gives a box, whose best intersection over union with the example's boxes is
    returned. More is better.

    Reference: Choe et al., Evaluating Weakly Supervised Object Localization Methods
    Right, CVPR 2020, arXiv:2001.07437. Their BoxAcc at a threshold is the mean of
    ``box_iou(...) >= 0.5`` over the examples, and MaxBoxAcc the best of all thresholds.
    Theirs is the largest contour in OpenCV's measure of area, here the most pixels.

    Cost: no forward pass; the parts are found on the CPU, by SciPy.

    Args:
        attributions (Tensor): A map for each example, (N, 1, h, w), of the layer's or
            the input's size and of any scale.
        boxes (Sequence[Tensor]): The boxes of each example, as in
            :func:`boxes_to_masks`, which rounds and clips them equally.
        size (Sequence[int]): Size of the image, (H, W).
        threshold (float, optional): The least value of a bright pixel, in [0, 1].
            Default: 0.15

    Returns:
        *Tensor*, (N,), in [0, 1], NaN where no box is left or the map is constant or
        not finite.

    Raises:
        ImportError: If SciPy is missing.
        TypeError: If an entry of ``boxes`` is not a tensor.
        ValueError: If ``attributions`` are not (N, 1, h, w), ``threshold`` is outside
            [0, 1], or as in :func:`boxes_to_masks`.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics.localization import box_iou
        >>> maps = torch.tensor([[[[0.0, 8.0, 9.0], [0.0, 7.0, 9.0]]]])
        >>> box_iou(maps, [torch.tensor([[2.0, 0.0, 3.0, 2.0]])], (2, 3)).tolist()
        [0.5]
    """
    check_number("threshold", threshold, 0, 1)
    pixel_boxes = _pixel_boxes(boxes, size)
    maps = checked_maps(attributions, len(pixel_boxes))
    if maps.dim() != 4:
        raise ValueError(
            "`attributions` must have the two spatial dimensions of `size`, got "
            f"{tuple(maps.shape)}."
        )
    masks = to_mask(maps, size)
    defined = _is_defined(maps, masks).tolist()
    bright = (masks[:, 0] >= threshold).cpu()  # (N, H, W)
    best = [
        _best_iou(_largest_box(region), own) if usable and len(own) else math.nan
        for region, own, usable in zip(bright, pixel_boxes, defined, strict=True)
    ]
    return maps.new_tensor(best)


def _checked(attributions: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Returns maps and regions, ready for arithmetic, once they fit each other."""
    if masks.dtype != torch.bool:
        raise TypeError(
            f"`masks` must be bool, got {masks.dtype}; pass a comparison, `masks > 0`."
        )
    maps, shape = checked_maps(attributions, len(masks)), tuple(masks.shape)
    if len(shape) != maps.dim() or shape[1] != 1:
        raise ValueError(
            f"`masks` must be of the rank of the maps {tuple(maps.shape)}, "
            f"({len(masks)}, 1, *input_size), got {shape}."
        )
    return maps, masks.to(maps.device)


def _is_defined(maps: Tensor, resized: Tensor) -> Tensor:
    """Returns whether each map is finite and has a largest value, (N,).

    Judged before and after resizing: rounding may hide a constant map, and shrinking
    may make one.
    """
    finite = maps.isfinite().flatten(1).all(1)
    return finite & ~is_constant(maps)[:, 0] & ~is_constant(resized)[:, 0]


def _total(maps: Tensor) -> Tensor:
    """Returns the sum of each map, (N,)."""
    return maps.flatten(1).sum(1)


def _grown(masks: Tensor, distance: float) -> Tensor:
    """Adds to each region the pixels that are at most so far away.

    Exact: the squared distance to the region is the least sum of squared steps along
    the axes, which are minimised one axis after the other. An empty region has no
    distance, and any result.
    """
    if distance < 1 or not masks.numel():
        return masks
    extent = sum(length**2 for length in masks.shape[2:])  # past every distance inside
    squared = torch.where(masks, 0, extent)
    for dim in spatial_dims(masks):
        nearest, length = squared.clone(), masks.shape[dim]
        for step in range(1, min(int(distance), length - 1) + 1):
            rest = length - step
            for start, other in ((0, step), (step, 0)):
                part = nearest.narrow(dim, start, rest)
                moved = squared.narrow(dim, other, rest) + step**2
                torch.minimum(part, moved, out=part)
        squared = nearest
    return squared <= min(distance, extent) ** 2


def _pixel_boxes(boxes: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
    """Returns the boxes in whole pixels of the image, without those that are empty."""
    if not isinstance(size, Sequence) or len(size) != 2 or min(size) < 1:
        raise ValueError(f"`size` must be the image's height and width, got {size}.")
    limits = torch.tensor([size[1], size[0]] * 2, device="cpu")
    found = []
    for index, own in enumerate(boxes):
        if not isinstance(own, Tensor):
            raise TypeError(
                "`boxes` must hold a Tensor for each example, got a "
                f"{type(own).__name__} at {index}."
            )
        if own.dim() != 2 or own.shape[1] != 4:
            raise ValueError(
                "`boxes` must hold (B, 4) for each example, got "
                f"{tuple(own.shape)} at {index}; no boxes are torch.zeros(0, 4)."
            )
        corners = own.detach().cpu().double()
        ordered = (corners[:, :2] <= corners[:, 2:]).all(1)
        if not ordered.all():
            wrong = corners[~ordered][0].tolist()
            raise ValueError(
                "`boxes` must be x0, y0, x1, y1 with x0 <= x1 and y0 <= y1, got "
                f"{wrong} at {index}; add x0 and y0 to a width and a height."
            )
        whole = (corners + 0.5).floor().clamp(min=0).minimum(limits).long()
        found.append(whole[(whole[:, :2] < whole[:, 2:]).all(1)])
    return found


def _largest_box(region: Tensor) -> Tensor:
    """Returns the box around the largest connected part of a region, (4,)."""
    try:
        from scipy import ndimage
    except ImportError as error:
        raise ImportError(
            "`box_iou` finds connected parts with SciPy; run "
            '`pip install "captum-unioncam[evaluate]"`'
        ) from error
    labels, _ = ndimage.label(region.numpy(), structure=[[1] * 3] * 3)
    pixels = torch.from_numpy(labels).flatten().bincount()[1:]  # without the rest
    rows, columns = ndimage.find_objects(labels)[int(pixels.argmax())]
    corners = [columns.start, rows.start, columns.stop, rows.stop]
    return torch.tensor(corners, device="cpu")


def _best_iou(box: Tensor, boxes: Tensor) -> float:
    """Returns the largest intersection over union of a box, (4,), and boxes, (B, 4)."""
    # Corners of each intersection: (B, 2) each.
    low, high = box[:2].maximum(boxes[:, :2]), box[2:].minimum(boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)  # (B,)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared
    return float((shared.double() / union).max())
