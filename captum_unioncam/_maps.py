"""Pure tensor operations on maps: scaling, resizing, percentiles and masking.

Maps are batched, ``(N, K, *spatial)``, with one, two or three spatial dimensions. Every
operation treats each of the N x K maps on its own, so a result never depends on the
other examples of a batch.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# torch.nn.functional.interpolate's name of linear interpolation, by spatial dimensions.
INTERPOLATION_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def at_least_float32(tensor: Tensor) -> Tensor:
    """Returns ``tensor`` in a floating type of at least 32 bits, for arithmetic."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def checked_maps(attributions: Tensor, examples: int) -> Tensor:
    """Returns maps in at least 32 bits; refuses what is not one for each example."""
    shape = tuple(attributions.shape)
    if not 3 <= len(shape) <= 5 or shape[:2] != (examples, 1):
        raise ValueError(
            f"`attributions` must have one map for each example, ({examples}, 1, "
            f"*size), got {shape}."
        )
    return at_least_float32(attributions.detach())


def spatial_dims(maps: Tensor) -> tuple[int, ...]:
    """Returns the indices of the dimensions after the batch and the channels."""
    return tuple(range(2, maps.dim()))


def extremes(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the smallest and the largest value of each map, (N, K, 1, ...)."""
    dims = spatial_dims(maps)
    return maps.amin(dims, keepdim=True), maps.amax(dims, keepdim=True)


def is_constant(maps: Tensor) -> Tensor:
    """Returns whether each map has one value everywhere, (N, K); NaN is not one."""
    low, high = extremes(maps)  # (N, K, 1, ...)
    return (low == high).flatten(1)  # (N, K)


def is_active(maps: Tensor) -> Tensor:
    """Returns which maps are worth a mask, (N, K).

    Not the constant ones, whose mask is all zeros, and none of an example that is not
    finite.
    """
    finite = maps.isfinite().flatten(1).all(1, keepdim=True)  # (N, 1)
    return ~is_constant(maps) & finite


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes maps to ``size``: linear, bilinear or trilinear, corners not aligned."""
    if maps.shape[2:] == torch.Size(size):
        return maps
    mode = INTERPOLATION_MODES[maps.dim() - 2]
    return F.interpolate(maps, tuple(size), mode=mode, align_corners=False)


def _scale(maps: Tensor, low: Tensor, high: Tensor, constant: Tensor) -> Tensor:
    """Maps ``low`` to 0 and ``high`` to 1; constant maps become 0."""
    span = high - low  # (N, K, 1, ...)
    blank = (span == 0) | constant.view_as(span)
    return (maps - low) / torch.where(blank, torch.inf, span)


def min_max(maps: Tensor) -> Tensor:
    """Scales each map to [0, 1]; a constant map becomes all zeros."""
    return _scale(maps, *extremes(maps), is_constant(maps))


def to_mask(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Turns maps into masks: resized to ``size`` first, then scaled to [0, 1].

    A constant map gives the all-zero mask. It is recognised before resizing, whose
    rounding could otherwise be scaled up to a mask.
    """
    resized = upsample(maps, size)  # (N, K, *size)
    return _scale(resized, *extremes(resized), is_constant(maps))


def scale_as_mask(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Applies to maps, at their own size, the scaling that :func:`to_mask` applies.

    Interpolation commutes with affine maps, so resizing the result gives the mask. At
    their own size the values may leave [0, 1] a little, because a resized map need not
    reach the extremes of the original.
    """
    return _scale(maps, *extremes(upsample(maps, size)), is_constant(maps))


def percentile(maps: Tensor, q: float) -> Tensor:
    """Returns the q-th percentile of each map, (N, K, 1, ...), as numpy.percentile.

    Linear interpolation between the two nearest entries. Sorting each map has no limit
    on the size of the tensor, unlike torch.quantile.
    """
    entries = maps.flatten(2).sort(dim=2).values  # (N, K, h * w)
    position = (entries.shape[2] - 1) * (q / 100)
    below = int(position)
    above = min(below + 1, entries.shape[2] - 1)
    threshold = torch.lerp(entries[..., below], entries[..., above], position - below)
    return threshold.view(*maps.shape[:2], *[1] * (maps.dim() - 2))


def gaussian_blur(maps: Tensor, sigma: float, radius: int) -> Tensor:
    """Blurs each map along every spatial dimension, mirrored at its borders.

    The kernel has 2 * radius + 1 entries, which sum to 1. A map may be smaller than
    the kernel.
    """
    values = at_least_float32(maps)
    offsets = torch.arange(-radius, radius + 1, device=values.device)
    kernel = torch.exp(-0.5 * (offsets.to(values.dtype) / sigma) ** 2)
    for dim in spatial_dims(values):
        length = values.shape[dim]
        places = torch.arange(length, device=values.device)
        period = max(2 * (length - 1), 1)
        # The entry that each place of the kernel falls on: (length, kernel).
        sources = (places[:, None] + offsets).remainder(period)
        sources = torch.where(sources < length, sources, period - sources)
        weights = values.new_zeros(length, length)  # from sources (columns) to places
        weights.scatter_add_(1, sources, (kernel / kernel.sum()).expand(length, -1))
        with torch.autocast(values.device.type, enabled=False):
            values = (values.movedim(dim, -1) @ weights.T).movedim(-1, dim)
    return values


def blend(inputs: Tensor, masks: Tensor, baselines: Tensor) -> Tensor:
    """Masks inputs: m * x + (1 - m) * b, in the type and memory format of ``inputs``.

    Integer inputs are blended as floats, rounded, and kept within their type's range.
    """
    values = at_least_float32(inputs)
    if inputs.dtype in (torch.int32, torch.int64):  # which float32 cannot hold
        values = inputs.double()
    blended = torch.lerp(baselines.to(values), values, masks.to(values))
    return in_type(blended, inputs.dtype)


def in_type(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns values in a type: rounded, and kept in its range, if it is an integer."""
    if dtype.is_floating_point or dtype.is_complex:
        return values.to(dtype)
    if dtype == torch.bool:
        return values >= 0.5
    bounds = torch.iinfo(dtype)  # a cast would wrap what leaves them
    largest = float(bounds.max)
    if largest > bounds.max:  # int64, whose largest number no float is
        largest = math.nextafter(largest, 0)
    return values.round().clamp(bounds.min, largest).to(dtype)
