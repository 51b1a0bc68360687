"""Fuses and selects maps by their scores: AMU and AMS of UnionCAM, and FusionCAM.

Pure functions of maps and score gains; examples do not depend on each other.
"""

import torch
from torch import Tensor


def weighted(maps: Tensor, weights: Tensor) -> Tensor:
    """Multiplies each map, (N, M, *spatial), by its weight, (N, M)."""
    return weights.view(*weights.shape, *[1] * (maps.dim() - 2)) * maps


def weighted_union(maps: Tensor, gains: Tensor) -> Tensor:
    """Sums maps weighted by their score gains.

    Hu et al. 2024, Eq. 6 (AMU): L_de_region = sum_i beta_i L_i.

    Args:
        maps (Tensor): The maps of each example, scaled as their masks, (N, M,
            *spatial).
        gains (Tensor): Their score gains, of either sign, (N, M).

    Returns:
        *Tensor*, (N, 1, *spatial).
    """
    return weighted(maps, gains).sum(1, keepdim=True)


def select_by_gain(
    fused: Tensor, region: Tensor, fused_gain: Tensor, region_gain: Tensor
) -> tuple[Tensor, Tensor]:
    """Keeps the fused map of an example where it scores higher than the region map.

    Hu et al. 2024, Eq. 8 (AMS); ties go to the region map.

    Args:
        fused (Tensor): Fused maps, (N, 1, *spatial).
        region (Tensor): Region maps, of the same shape.
        fused_gain (Tensor): Score gains of the fused maps, (N,).
        region_gain (Tensor): Score gains of the region maps, (N,).

    Returns:
        The selected maps, (N, 1, *spatial), and whether they are the fused ones, (N,).
    """
    selected = fused_gain > region_gain
    per_example = selected.view(-1, *[1] * (fused.dim() - 1))
    return torch.where(per_example, fused, region), selected


def contribution_weights(gains: Tensor) -> Tensor:
    """Turns score gains into weights of a sum of 1, (N, M).

    Dekdegue et al. 2026 divide the contributions by their sum. A negative one counts as
    0, because a sum near zero or below would invert a map, and so does one that is no
    more than the rounding of confidences; where none is left, all weights are equal.
    """
    positive = torch.where(gains > torch.finfo(gains.dtype).eps, gains, 0)
    total = positive.sum(1, keepdim=True)  # (N, 1)
    return torch.where(total > 0, positive / total, 1 / gains.shape[1])


def similarity_fusion(pair: Tensor) -> Tensor:
    """Joins two maps in [0, 1]: their maximum where they agree, else their mean.

    Dekdegue et al. 2026: S = 1 - |P - Q|, and S max(P, Q) + (1 - S) (P + Q) / 2.

    Args:
        pair (Tensor): P and Q of each example, (N, 2, *spatial).

    Returns:
        *Tensor*, (N, 1, *spatial).
    """
    first, second = pair[:, :1], pair[:, 1:]  # P and Q
    similarity = (1 - (first - second).abs()).clamp(0, 1)  # S
    return torch.lerp((first + second) / 2, torch.maximum(first, second), similarity)
