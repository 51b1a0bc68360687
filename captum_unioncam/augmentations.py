"""Copies of an image, rotated, shifted, flipped or brightened, and their way back.

For :class:`.AugmentedCAM`, which explains each copy and undoes it on its map.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_unioncam._checks import check_integer, check_number
from captum_unioncam._maps import as_floats, in_type

__all__ = ["Augmentation", "flip_and_gain_augmentations", "random_augmentations"]


@dataclass(frozen=True)
class Augmentation:
    r"""How a copy of an image differs from it: flipped, then rotated, then shifted.

    Attributes:
        rotation (float): Around the centre, in radians, counter-clockwise. Default: 0.0
        translation (tuple[float, float]): To the right and down, as shares of the width
            and of the height. Default: (0.0, 0.0)
        flip (bool): Whether left and right change places. Default: False
        gain (float): Factor on the input's values. Default: 1.0

    Raises:
        TypeError or ValueError: If a value is not as above, or not finite.

    Examples::

        >>> from captum_unioncam import Augmentation
        >>> Augmentation(flip=True, gain=0.9)
        Augmentation(rotation=0.0, translation=(0.0, 0.0), flip=True, gain=0.9)
    """

    rotation: float = 0.0
    translation: tuple[float, float] = (0.0, 0.0)
    flip: bool = False
    gain: float = 1.0

    def __post_init__(self) -> None:
        check_number("rotation", self.rotation)
        check_number("gain", self.gain)
        if not isinstance(self.translation, tuple) or len(self.translation) != 2:
            raise TypeError(
                "`translation` must be a tuple of two numbers, (right, down), got "
                f"{self.translation!r}."
            )
        for share in self.translation:
            check_number("translation", share)
        if not isinstance(self.flip, bool):
            raise TypeError(f"`flip` must be a bool, got {self.flip!r}.")

    @property
    def is_resampled(self) -> bool:
        """Whether the copy has pixels between those of the image."""
        return self.rotation != 0 or any(self.translation)


def random_augmentations(
    count: int = 100,
    rotation: float = 0.5,
    translation: float = 30 / 224,
    seed: int = 0,
) -> tuple[Augmentation, ...]:
    r"""Draws the copies of Augmented Grad-CAM: rotated and shifted at random.

    Reference: Morbidelli et al., Augmented Grad-CAM, ICASSP 2020, and the authors'
    code, whose values the defaults are.

    Args:
        count (int, optional): Copies, the first of which is the image itself. Default:
            100
        rotation (float, optional): Largest rotation to either side, in radians, >= 0.
            Default: 0.5
        translation (float, optional): Largest shift in any direction, as a share of the
            sides, >= 0. Default: 30 / 224
        seed (int, optional): Equal seeds give equal copies; no global generator is
            used. Default: 0

    Returns:
        *tuple* of :class:`Augmentation`.

    Raises:
        TypeError or ValueError: If an argument is not as above.

    Examples::

        >>> from captum_unioncam import random_augmentations
        >>> first, second = random_augmentations(2)
        >>> first
        Augmentation(rotation=0.0, translation=(0.0, 0.0), flip=False, gain=1.0)
    """
    check_integer("count", count)
    check_number("rotation", rotation, 0)
    check_number("translation", translation, 0)
    check_integer("seed", seed, 0)
    uniform = random.Random(seed).uniform
    drawn = [
        Augmentation(
            rotation=uniform(-rotation, rotation),
            translation=(
                uniform(-translation, translation),
                uniform(-translation, translation),
            ),
        )
        for _ in range(count - 1)
    ]
    return (Augmentation(), *drawn)


def flip_and_gain_augmentations() -> tuple[Augmentation, ...]:
    r"""Returns six copies: as it is and flipped, each times 1, 0.9 and 1.1.

    They are those of ``aug_smooth`` in pytorch-grad-cam. Its maps are scaled to [0, 1]
    before their mean is taken; :class:`.AugmentedCAM` takes them as they are.

    Returns:
        *tuple* of :class:`Augmentation`, the first of which is the image itself.

    Examples::

        >>> from captum_unioncam import flip_and_gain_augmentations
        >>> [copy.gain for copy in flip_and_gain_augmentations() if copy.flip]
        [1.0, 0.9, 1.1]
    """
    return tuple(
        Augmentation(flip=flip, gain=gain)
        for flip in (False, True)
        for gain in (1.0, 0.9, 1.1)
    )


def affine_matrix(augmentation: Augmentation, size: Sequence[int]) -> Tensor:
    r"""Returns where a pixel of the image is in the copy, (2, 3), in float64.

    From (x, y, 1) to (x, y) in the coordinates of torch.nn.functional.grid_sample, in
    which the image's sides are at -1 and 1. The rotation is one of pixels, so that the
    matrix depends on the sides' ratio.

    Args:
        augmentation (Augmentation): What is done to the image.
        size (Sequence[int]): Height and width of the image.
    """
    ratio = size[0] / size[1]
    cosine, sine = math.cos(augmentation.rotation), math.sin(augmentation.rotation)
    sign = -1.0 if augmentation.flip else 1.0
    right, down = augmentation.translation
    # y points down, where a counter-clockwise rotation takes (1, 0) to (cos, -sin).
    rows = [
        [sign * cosine, ratio * sine, 2 * right],
        [-sign * sine / ratio, cosine, 2 * down],
    ]
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def inverse(matrix: Tensor) -> Tensor:
    """Returns the inverse of an affine matrix, (2, 3)."""
    (a, b, right), (c, d, down) = matrix.tolist()
    determinant = a * d - b * c
    a, b, c, d = (entry / determinant for entry in (d, -b, -c, a))
    rows = [[a, b, -a * right - b * down], [c, d, -c * right - d * down]]
    return matrix.new_tensor(rows)


def pixel_centres(places: Tensor, length: int) -> Tensor:
    """Returns where pixels are between the sides at -1 and 1, as their places are."""
    return (2 * places + 1) / length - 1


def sampling_grid(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Returns where an affine map takes each point of a grid, (h, w, 2), as x and y.

    Args:
        matrix (Tensor): (2, 3).
        rows, columns (Tensor): The points' y, (h,), and x, (w,).
    """
    # Not torch's affine_grid, a matrix product, which autocast would run in half.
    (a, b, right), (c, d, down) = matrix.tolist()
    x, y = columns[None, :], rows[:, None]
    return torch.stack([a * x + b * y + right, c * x + d * y + down], 2)


def augmented(images: Tensor, augmentation: Augmentation) -> Tensor:
    """Returns the copies of images, (N, C, H, W), in their type and memory format.

    What enters the frame is 0.
    """
    values = as_floats(images)
    if augmentation.is_resampled:
        back = inverse(affine_matrix(augmentation, images.shape[2:]))
        values = _sampled(values, _grid(back, values), "zeros")
    elif augmentation.flip:
        values = values.flip(3)
    copies = in_type(augmentation.gain * values, images.dtype)
    return torch.empty_like(images).copy_(copies)


def restored(maps: Tensor, augmentation: Augmentation) -> tuple[Tensor, Tensor]:
    """Returns maps of copies as maps of the images, and which pixels the copies show.

    Args:
        maps (Tensor): (N, K, H, W), of the images' size, in float32 or float64.
        augmentation (Augmentation): What was done to the images.

    Returns:
        *tuple* of the maps, (N, K, H, W), and the pixels of the image that are inside
        of the copy's frame, bool, (H, W).
    """
    if not augmentation.is_resampled:
        shown = torch.ones(maps.shape[2:], dtype=torch.bool, device=maps.device)
        return maps.flip(3) if augmentation.flip else maps, shown
    grid = _grid(affine_matrix(augmentation, maps.shape[2:]), maps)  # (H, W, 2)
    return _sampled(maps, grid, "border"), (grid.abs() <= 1).all(2)


def _grid(matrix: Tensor, images: Tensor) -> Tensor:
    """Returns where an affine map takes each pixel of images, (H, W, 2)."""
    rows, columns = (
        pixel_centres(
            torch.arange(length, dtype=images.dtype, device=images.device), length
        )
        for length in images.shape[2:]
    )
    return sampling_grid(matrix, rows, columns)


def _sampled(values: Tensor, grid: Tensor, outside: str) -> Tensor:
    """Reads images at the points of a grid, bilinearly."""
    grids = grid.expand(len(values), *grid.shape)  # (N, H, W, 2)
    return F.grid_sample(
        values, grids, mode="bilinear", padding_mode=outside, align_corners=False
    )
