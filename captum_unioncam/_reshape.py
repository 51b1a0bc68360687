"""Reads the tensors of a layer as channels of a map, (N, K, *spatial).

Tokens and channels that come last are recognised by their shape, and refused unless a
``reshape_transform`` moves them. Methods that replace a layer's tensor put its entries
back through the transform, which may then only move and drop entries.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._checks import warn_user

# From a layer's tensor, of any shape, to (N, K, *spatial).
ReshapeTransform = Callable[[Tensor], Tensor]

ONLY_MOVES = (
    "`reshape_transform` must only move and drop the entries of the layer's tensor: "
    "this method replaces them. Leave out its arithmetic."
)


def transformed(tensor: Tensor, reshape_transform: ReshapeTransform | None) -> Tensor:
    """Returns a tensor of the layer, detached, in the form (N, K, *spatial)."""
    detached = tensor.detach()
    return detached if reshape_transform is None else reshape_transform(detached)


def read_activations(
    tensor: Tensor,
    reshape_transform: ReshapeTransform | None,
    inputs: Sequence[Tensor],
) -> Tensor:
    """Returns the activations of a layer, (N, K, *spatial), or refuses them.

    Args:
        tensor (Tensor): What the layer returned.
        reshape_transform (Callable or None): From ``tensor`` to (N, K, *spatial).
        inputs (Sequence[Tensor]): The model's inputs, beside which shapes are judged.
    """
    activations = transformed(tensor, reshape_transform)
    name = "`layer`" if reshape_transform is None else "`reshape_transform`"
    _check_spatial(name, activations, len(inputs[0]))
    # A transform that changes nothing says that the channels come first.
    changed = activations.shape != tensor.shape
    if reshape_transform is None or changed:
        _check_channels_first(tuple(activations.shape), inputs)
    if changed:
        _warn_of_proportions(tuple(activations.shape[2:]), inputs)
    return activations


def looks_channels_last(shape: Sequence[int], sizes: Sequence[Sequence[int]]) -> bool:
    """Returns whether a layer of this shape must be (N, *spatial, K).

    A layer keeps the proportions of the image, (..., H, W). Where its second and third
    last dimensions do, and its last two do not, even if a position was gained on one
    side and lost on the other, the channels are last. A single channel does
    not count, and one spatial dimension has no proportions.

    Args:
        shape (Sequence[int]): Shape of the layer's tensor.
        sizes (Sequence[Sequence[int]]): Spatial sizes of the inputs; those of another
            rank do not count.
    """
    images = [size[-2:] for size in sizes if len(size) == len(shape) - 2 >= 2]
    return (
        shape[-1] > 1
        and any(_disproportion(shape[-3:-1], image) < 1 for image in images)
        and all(_disproportion(shape[-2:], image) >= 2 for image in images)
    )


def check_only_moves(original: Tensor, reshape_transform: ReshapeTransform) -> None:
    """Refuses a transform whose entries cannot be put back."""
    if original.numel() == 0:
        return
    sources = _sources(original, reshape_transform)
    available = original.detach().flatten()
    entries = transformed(original, reshape_transform).flatten()
    # No entry is taken twice, and none is changed.
    if not (
        len(sources) == len(entries) == len(torch.unique(sources))
        and 0 <= sources.min()
        and sources.max() < len(available)
        and torch.equal(available[sources].nan_to_num(), entries.nan_to_num())
    ):
        raise ValueError(ONLY_MOVES)


def put_back(
    original: Tensor, activations: Tensor, reshape_transform: ReshapeTransform
) -> Tensor:
    """Returns the original with activations where a transform takes entries from.

    What the transform drops, such as a class token, stays the original's.
    """
    sources = _sources(original, reshape_transform)
    entries = activations.flatten().to(original.dtype)  # in the transform's order
    return original.flatten().scatter(0, sources, entries).view(original.shape)


def _sources(original: Tensor, reshape_transform: ReshapeTransform) -> Tensor:
    """Returns the flat indices of the entries that a transform takes, in its order.

    A transform moves a tensor of indices as it moves any other.
    """
    indices = torch.arange(original.numel(), device=original.device)
    try:
        moved = reshape_transform(indices.view(original.shape))
    except (RuntimeError, TypeError) as error:  # arithmetic that refuses integers
        raise ValueError(ONLY_MOVES) from error
    if moved.dtype != indices.dtype:
        raise ValueError(ONLY_MOVES)
    return moved.flatten()


def _check_spatial(name: str, activations: Any, batch_size: int) -> None:
    """Refuses anything but a tensor (N, K, *spatial)."""
    if not isinstance(activations, Tensor):
        raise TypeError(
            f"{name} must return a Tensor, got a {type(activations).__name__}."
        )
    if activations.is_complex() or activations.is_quantized:
        kind = "complex" if activations.is_complex() else "quantized"
        raise TypeError(
            f"{name} must have real activations, got {kind} ones ({activations.dtype});"
            " choose another layer, or give a `reshape_transform` that makes them real,"
            " such as torch.abs or torch.dequantize."
        )
    shape = tuple(activations.shape)
    if not 3 <= len(shape) <= 5:
        raise ValueError(
            f"{name} must have an activation of shape (N, K, *spatial) with one to "
            f"three spatial dimensions, got {shape}; choose a layer before pooling and "
            "flattening."
        )
    if shape[0] != batch_size:
        raise ValueError(
            f"{name} must keep one row for each example: expected a first dimension of "
            f"{batch_size}, got the shape {shape}."
        )


def _check_channels_first(shape: tuple[int, ...], inputs: Sequence[Tensor]) -> None:
    """Refuses tokens, and channels in the last dimension."""
    sizes = [tuple(inp.shape[2:]) for inp in inputs]
    ranks = {len(size) for size in sizes}
    if len(shape) == 3 and 1 not in ranks and ranks & {2, 3}:
        reason, helper = "tokens, (N, T, D), of images", "vit_reshape"
    elif len(shape) == 3 and any(tuple(inp.shape) == shape[:2] for inp in inputs):
        reason, helper = "tokens, (N, T, D), of a sequence", "swin_reshape"
    elif looks_channels_last(shape, sizes):
        reason, helper = "its channels in the last dimension", "swin_reshape"
        if any(_is_strided(shape[2:], size) for size in sizes):
            warn_user(
                f"`layer` has an activation of shape {shape} for inputs of the sizes "
                f"{sizes}, and its second dimension is taken for the channels. If the "
                "last one holds them, give reshape_transform=captum_unioncam."
                f"{helper}, else torch.nn.Identity()."
            )
            return
    else:
        return
    raise ValueError(
        f"`layer` has {reason}: an activation of shape {shape} for inputs of the sizes "
        f"{sizes}; give reshape_transform=captum_unioncam.{helper}, or your own "
        "function to (N, K, *spatial). If the second dimension does hold the channels, "
        "give torch.nn.Identity()."
    )


def _warn_of_proportions(size: tuple[int, ...], inputs: Sequence[Tensor]) -> None:
    """Warns of a transform whose rows and columns are unlike the images'."""
    images = [inp.shape[-2:] for inp in inputs if inp.dim() == len(size) + 2 >= 4]
    if images and all(_disproportion(size[-2:], image) >= 2 for image in images):
        warn_user(
            f"`reshape_transform` makes a grid of {size} for images of "
            f"{tuple(images[0])}: are these its rows and columns? For tokens, give "
            "them, as in functools.partial(vit_reshape, grid=(rows, columns))."
        )


def _is_strided(size: Sequence[int], image: Sequence[int]) -> bool:
    """Returns whether strides of whole numbers can make a size from the image's."""
    return len(size) == len(image) and all(
        any(
            length in (whole // step, -(-whole // step)) for step in range(1, whole + 1)
        )
        for length, whole in zip(size, image, strict=True)
    )


def _disproportion(size: Sequence[int], image: Sequence[int]) -> float:
    """Returns how many positions a size is off the image's proportions."""
    (height, width), (rows, columns) = image, size
    return abs(rows * width - columns * height) / max(height, width)
