"""Images as a person sees them: in [0, 1], after undoing mean and std."""

import io
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._maps import at_least_float32

Statistics = float | Sequence[float] | Tensor | None

# How far un-normalised images may leave [0, 1] by rounding.
RANGE_TOLERANCE = 1e-2

# How the names of pictures end.
SUFFIXES = (".png", ".pdf", ".svg")
DOTS_PER_INCH = 100


def for_channels(name: str, values: Statistics, images: Tensor) -> Tensor:
    """Returns a number for each channel, (channels, 1, 1), or one for all.

    Raises:
        ValueError: If there is another number of them; ``name`` is what it names.
    """
    dtype = torch.promote_types(images.dtype, torch.float32)
    numbers = torch.as_tensor(values, dtype=dtype, device=images.device).flatten()
    if len(numbers) not in (1, images.shape[1]):
        raise ValueError(
            f"`{name}` must be one number, or one for each of {images.shape[1]} "
            f"channels, got {len(numbers)}."
        )
    return numbers.view(-1, 1, 1)


def without_statistics(images: Tensor, mean: Statistics, std: Statistics) -> Tensor:
    """Undoes (images - mean) / std, in at least 32 bits; None is 0 and 1."""
    images = at_least_float32(images.detach())
    if std is not None:
        images = images * for_channels("std", std, images)
    if mean is not None:
        images = images + for_channels("mean", mean, images)
    return images


def in_unit_range(images: Tensor) -> bool:
    """Returns whether images are in [0, 1] but for rounding; NaN is not."""
    if not images.numel():
        return True
    low, high = (float(value) for value in images.aminmax())
    return -RANGE_TOLERANCE <= low and high <= 1 + RANGE_TOLERANCE


def check_unit_range(name: str, images: Tensor, undone: bool) -> None:
    """Refuses images outside of [0, 1].

    Args:
        name (str): What the error names.
        images (Tensor): The images, un-normalised.
        undone (bool): Whether a mean or a std was given and undone.
    """
    if in_unit_range(images):
        return
    low, high = (float(value) for value in images.aminmax())
    after = " after undoing `mean` and `std`" if undone else ""
    which = "those" if undone else "the `mean` and the `std`"
    raise ValueError(
        f"`{name}` must be in [0, 1]{after}, got values from {low:.3g} to {high:.3g}; "
        f"give {which} by which they were normalised (0 and 1 / 255 for bytes)."
    )


def note_of(values: Tensor) -> str:
    """Returns what a picture of a map does not show by itself."""
    if not values.isfinite().all():
        return "the map is not finite"
    low, high = (float(value) for value in values.aminmax())
    if low == high:
        return "the map is constant"
    # Zero is another colour than the lowest value, of 256.
    shifted = -low > (high - low) / 256
    return f"from {low:.2g} to {high:.2g}" if shifted else ""


def suffix_of(path: str) -> str:
    """Returns how a picture's name ends, in lower case; "" if it is no picture's."""
    suffix = PurePath(path).suffix.lower()
    return suffix if suffix in SUFFIXES else ""


def figure_content(figure: Any, path: str) -> bytes:
    """Returns a figure as the content of a file, in the format of its name's end."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix_of(path)[1:], dpi=DOTS_PER_INCH)
    return buffer.getvalue()
