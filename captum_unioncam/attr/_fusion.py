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


def select_by_gain(maps: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
    """Keeps the map of each example that has the highest score gain; the first of ties.

    Hu et al. 2024, Eq. 8 (AMS), where the maps are the region map and the fused map.

    Args:
        maps (Tensor): The maps to choose from, (N, M, *spatial).
        gains (Tensor): Their score gains, (N, M).

    Returns:
        The selected maps, (N, 1, *spatial), and their indices, (N,).
    """
    selected = gains.argmax(1)  # the first of equal ones
    return maps[torch.arange(len(maps), device=maps.device), selected, None], selected


def select_union(
    maps: Tensor, gains: Tensor, select: str | None
) -> tuple[Tensor, Tensor]:
    """Returns UnionCAM's maps, (N, 1, *spatial), and their numbers, (N,).

    Args:
        maps (Tensor): Of the parts and, last, the fused ones, (N, M + 1, *spatial).
        gains (Tensor): Their score gains, (N, M + 1).
        select (str, optional): See :class:`UnionCAM`.
    """
    fused = maps.shape[1] - 1
    region, others = fused - 1, range(fused - 1)
    candidates = {
        None: [fused],
        "region": [region, fused],
        "best": [region, *others, fused],
    }[select]
    selected, chosen = select_by_gain(maps[:, candidates], gains[:, candidates])
    return selected, torch.tensor(candidates, device=maps.device)[chosen]


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
