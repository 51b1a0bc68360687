"""The fine map whose copies, resized to the layer, come closest to the copies' maps."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_unioncam.augmentations import (
    Augmentation,
    affine_matrix,
    inverse,
    pixel_centres,
    sampling_grid,
)

# Morbidelli et al. 2020: of the total variation and of the squares, for each copy.
VARIATION, SQUARES = 0.002, 0.0001
# Adam's rate and steps, as in the authors' code, and its usual constants.
RATE, STEPS = 0.001, 200
MOMENTUM, SQUARED_MOMENTUM, EPSILON = 0.9, 0.999, 1e-8


def energy(fine: Tensor, projected: Tensor, observed: Tensor) -> Tensor:
    r"""Returns what a fine map is minimised for, (N,).

    .. math::
        \sum_l \|D T_l h - g_l\|^2 + \lambda_{tv} \sum (|\partial_x h| +
        |\partial_y h|) + \lambda_e \sum h^2

    Args:
        fine (Tensor): h, (N, 1, H, W).
        projected (Tensor): Its copies at the layer's size, D T_l h, (N, L, h, w).
        observed (Tensor): The copies' maps, g_l, (N, L, h, w).
    """
    copies = observed.shape[1]
    fidelity = _total((projected - observed) ** 2)
    variation = _total(fine.diff(dim=2).abs()) + _total(fine.diff(dim=3).abs())
    return fidelity + copies * (VARIATION * variation + SQUARES * _total(fine**2))


def _total(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)  # (N,)


def projection(
    augmentations: Sequence[Augmentation],
    size: Sequence[int],
    layer_size: Sequence[int],
    like: Tensor,
) -> Callable[[Tensor], Tensor]:
    """Returns D T_l for all copies: from (N, 1, H, W) to (N, L, h, w).

    Resizing reads at most four pixels of a copy for each position of the layer. Only
    those are made, for all copies and examples in one call.
    """
    (rows, row_shares), (columns, column_shares) = (
        _resizing(length, target, like)
        for length, target in zip(size, layer_size, strict=True)
    )
    copies = [inverse(affine_matrix(one, size)) for one in augmentations]
    points = torch.cat([sampling_grid(one, rows, columns) for one in copies])
    points = points[None]  # (1, L * 2h, 2w, 2)
    shares = row_shares[:, :, None, None] * column_shares  # (h, 2, w, 2)

    def project(fine: Tensor) -> Tensor:
        # The examples as channels, (1, N, H, W), because they share the points.
        read = F.grid_sample(fine.transpose(0, 1), points, align_corners=False)
        read = read.view(len(fine), len(augmentations), *shares.shape)
        return (read * shares).sum((3, 5))  # (N, L, h, w)

    return project


def _resizing(length: int, target: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what linear resizing reads: pixels' centres, (2 * target,), and shares.

    Two pixels for each position, with their shares of it, (target, 2).
    """
    places = torch.arange(target, dtype=like.dtype, device=like.device)
    sources = ((places + 0.5) * length / target - 0.5).clamp(0, length - 1)
    below = sources.floor()
    pixels = torch.stack([below, (below + 1).clamp_max(length - 1)], 1)
    share = sources - below
    return pixel_centres(pixels.flatten(), length), torch.stack([1 - share, share], 1)


def super_resolved(
    observed: Tensor, augmentations: Sequence[Augmentation], size: Sequence[int]
) -> Tensor:
    """Returns the fine maps of least energy that Adam finds, (N, 1, H, W), from 0 on.

    Adam treats every pixel on its own, so that examples do not depend on each other.

    Args:
        observed (Tensor): The map of each copy, divided by its own maximum, (N, L, h,
            w).
        augmentations (Sequence[Augmentation]): What was done to each copy, L of them.
        size (Sequence[int]): Height and width of the images.
    """
    project = projection(augmentations, size, observed.shape[2:], observed)
    fine = observed.new_zeros(len(observed), 1, *size)
    mean, square = torch.zeros_like(fine), torch.zeros_like(fine)
    # Not torch.optim's, which imports the compiler.
    for step in range(1, STEPS + 1):
        with torch.enable_grad():
            fine.requires_grad_()
            total = energy(fine, project(fine), observed).sum()
            (gradient,) = torch.autograd.grad(total, fine)
        fine = fine.detach()
        mean = torch.lerp(gradient, mean, MOMENTUM)
        square = torch.lerp(gradient**2, square, SQUARED_MOMENTUM)
        deviation = (square / (1 - SQUARED_MOMENTUM**step)).sqrt() + EPSILON
        fine = fine - RATE * mean / (1 - MOMENTUM**step) / deviation
    return fine
