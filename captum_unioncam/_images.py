"""Images for :func:`captum_unioncam.explain`: for the model, and for a person."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captum_unioncam._baselines import Baselines
from captum_unioncam._checks import warn_user
from captum_unioncam._maps import at_least_float32
from captum_unioncam._pictures import (
    Statistics,
    check_unit_range,
    for_channels,
    in_unit_range,
    without_statistics,
)
from captum_unioncam.errors import DataError

Preprocess = Callable[[Image.Image], Tensor]


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images as a model and as a person sees them.

    Attributes:
        inputs (Tensor): (N, C, H, W), for the model.
        pictures (Tensor): (N, 1 or 3, H, W), in [0, 1].
        baselines (Baselines): What a mask of 0 shows.
        baselines_from (str): What they are, in words.
        pictures_from (str): How the pictures were made, in words.
    """

    inputs: Tensor
    pictures: Tensor
    baselines: Baselines
    baselines_from: str
    pictures_from: str


def image_batch(
    images: Any,
    *,
    mean: Statistics,
    std: Statistics,
    preprocess: Preprocess | None,
    baselines: Baselines,
    device: torch.device | None,
) -> ImageBatch:
    """Returns images of any form that ``explain`` takes, as a batch.

    Raises:
        TypeError: If they are neither tensors nor PIL images, or the latter come
            without ``preprocess``.
        ValueError: If their shape or their range is wrong, or the options exclude each
            other.
    """
    if isinstance(images, Tensor):
        if preprocess is not None:
            raise ValueError(
                "`preprocess` is for PIL images, and `images` is a Tensor; leave it "
                "out, and give `mean` and `std`."
            )
        inputs = _checked_tensor(images).to(device)
        batch = _of_tensor(inputs, mean, std, baselines is None)
    else:
        if mean is not None or std is not None:
            raise ValueError(
                "`mean` and `std` are for tensors; leave them out: `preprocess` shows "
                "what black and white are."
            )
        batch = _of_files(_checked_images(images), preprocess, device)
    if baselines is None:
        return batch
    return ImageBatch(
        batch.inputs, batch.pictures, baselines, "given", batch.pictures_from
    )


def _checked_tensor(images: Tensor) -> Tensor:
    """Returns a batch; one image, (C, H, W), is a batch of one."""
    shape = tuple(images.shape)
    if images.dim() == 3:
        images = images[None]
    if images.dim() != 4 or 0 in images.shape:
        raise ValueError(
            "`images` must be (N, C, H, W), or one image (C, H, W), and not empty, got "
            f"the shape {shape}."
        )
    return images


def _of_tensor(
    inputs: Tensor, mean: Statistics, std: Statistics, warn: bool
) -> ImageBatch:
    """Undoes the statistics, or scales what leaves [0, 1] without them."""
    undone = mean is not None or std is not None
    images = without_statistics(inputs, mean, std)  # (N, C, H, W)
    if undone:
        check_unit_range("images", images, undone)
        black = -for_channels("mean", 0.0 if mean is None else mean, images)
        black = black / for_channels("std", 1.0 if std is None else std, images)
        if not bool(black.isfinite().all()):
            raise ValueError(f"`std` must not be 0, got {std}.")
        black = black.expand(images.shape[1], 1, 1)[None]  # (1, C, 1, 1)
        return _batch(
            inputs, images, black, "black, from mean and std", "un-normalised"
        )
    if in_unit_range(images):
        return _batch(inputs, images, 0, "0, which is black", "as given")
    low, high = (float(value) for value in images.aminmax())
    if low < 0 and warn:
        warn_user(
            f"`images` have values from {low:.3g} to {high:.3g}, and no `mean` and "
            "`std`: what a mask hides becomes 0, which is not black. Give `mean` and "
            "`std`, or `baselines` (0 for what it is now)."
        )
    least = images.amin((1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    most = images.amax((1, 2, 3), keepdim=True)
    scaled = (images - least) / torch.where(most > least, most - least, 1)
    what = "0, which is black" if low >= 0 else "0, which is not black"
    return _batch(inputs, scaled, 0, what, "each scaled to its own range")


def _checked_images(images: Any) -> list[Image.Image]:
    """Returns PIL images as a list."""
    listed = [images] if isinstance(images, Image.Image) else images
    if not isinstance(listed, list | tuple) or not all(
        isinstance(image, Image.Image) for image in listed
    ):
        raise TypeError(
            "`images` must be a Tensor, (N, C, H, W), or PIL images with `preprocess`, "
            f"got a {type(images).__name__}."
        )
    if not listed:
        raise ValueError("`images` must hold at least one image, got none.")
    return list(listed)


def _of_files(
    images: list[Image.Image],
    preprocess: Preprocess | None,
    device: torch.device | None,
) -> ImageBatch:
    """Preprocesses PIL images; a black and a white one show what it does to colours."""
    if preprocess is None:
        raise TypeError(
            "`images` are PIL images, which need `preprocess`: a function from one to "
            "the model's input, (C, H, W), such as `weights.transforms()` of "
            "torchvision's models."
        )
    tensors = [preprocess(image) for image in images]
    sizes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(sizes) > 1 or len(sizes[0]) != 3:
        raise ValueError(
            "`preprocess` must return one size (C, H, W) for all images, got "
            f"{', '.join(map(str, sizes))}; add a resize and a crop to it, or explain "
            "one image at a time."
        )
    black, white = (
        preprocess(Image.new(images[0].mode, images[0].size, colour))[None].to(device)
        for colour in ("black", "white")
    )
    inputs = torch.stack(tensors).to(device)
    span = at_least_float32(white) - at_least_float32(black)
    if span.shape[1:] != inputs.shape[1:] or not bool((span.abs() > 0).all()):
        raise DataError(
            "`preprocess` must tell a black image from a white one, and got NaN or the "
            "same for both; give tensors, with `baselines`."
        )
    pictures = (inputs - black) / span
    return _batch(inputs, pictures, black, "black, preprocessed", "un-normalised")


def _batch(
    inputs: Tensor,
    images: Tensor,
    baselines: Baselines,
    baselines_from: str,
    pictures_from: str,
) -> ImageBatch:
    """Returns images with what is shown of them: colours, or grey."""
    if images.shape[1] not in (1, 3):
        images = images.mean(1, keepdim=True)  # (N, 1, H, W)
        pictures_from += ", the mean of the channels"
    return ImageBatch(
        inputs, images.detach().clamp(0, 1), baselines, baselines_from, pictures_from
    )
