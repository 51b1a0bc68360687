"""One map from the maps of several layers."""

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from captum_unioncam._checks import check_choice, check_number
from captum_unioncam._maps import min_max, upsample

__all__ = ["fuse"]

Combination = Callable[[Tensor, Tensor], Tensor]
COMBINATIONS: dict[str, Combination] = {
    "max": torch.maximum,
    "mean": torch.add,
    "product": torch.mul,
}


def fuse(
    maps: Sequence[Tensor],
    size: Sequence[int],
    how: str = "max",
    gamma: float | None = None,
) -> Tensor:
    r"""Fuses the maps of several layers: fine ones of early, sure ones of late layers.

    Each map is scaled to [0, 1] for each example, sharpened if ``gamma`` is given, and
    resized linearly; then they are combined position by position:

    .. math::
        M = \max_i \mathrm{resize}\Big(\tanh\big(\gamma \frac{M_i - \min M_i}{\max M_i -
        \min M_i}\big)\Big)

    With ``how="max"`` and ``gamma=2`` that is LayerCAM's fusion, with "product" that of
    RefineCAM, with "mean" what pytorch-grad-cam does with several layers.

    References: Jiang et al., LayerCAM, IEEE Trans. Image Process. 30, 2021,
    doi:10.1109/TIP.2021.3089943; RefineCAM, How to evaluate and refine your CAM, 2026,
    arXiv:2605.14641.

    Note: All maps are sharpened, as in torchcam. The paper of LayerCAM sharpens those
    of shallow layers.

    Note: The result is not scaled again: a product has its maximum below 1 where the
    maps differ.

    Cost: none of the model. The maps of a method take its passes for each layer.

    Args:
        maps (Sequence[Tensor]): A map of each example for each layer, (N, 1,
            *layer_size), with one to three spatial dimensions.
        size (Sequence[int]): The size of the result, such as ``inputs.shape[2:]``.
        how (str, optional): "max", "mean" or "product". Default: "max"
        gamma (float, optional): Sharpness of the tanh, > 0. Default: None, without it

    Returns:
        *Tensor*, (N, 1, *size), in [0, 1], detached, in the maps' floating type. A
        constant map counts as 0 everywhere. An example with a map that is not finite is
        all NaN.

    Raises:
        TypeError: If ``maps`` is no sequence of tensors, or ``gamma`` no number.
        ValueError: If ``maps`` is empty or has other shapes, ``size`` another rank, or
            ``how`` or ``gamma`` another value.

    Examples::

        >>> import torch
        >>> from captum_unioncam import fuse
        >>> maps = [torch.rand(2, 1, 28, 28), torch.rand(2, 1, 7, 7)]
        >>> fuse(maps, (224, 224), how="max", gamma=2.0).shape
        torch.Size([2, 1, 224, 224])
    """
    check_choice("how", how, COMBINATIONS)
    if gamma is not None:
        check_number("gamma", gamma)
        if gamma <= 0:
            raise ValueError(f"`gamma` must be > 0 or None, got {gamma}.")
    _check_maps(maps, size)
    dtype = reduce(torch.promote_types, [one.dtype for one in maps])
    computed = torch.promote_types(dtype, torch.float32)
    fused = reduce(
        COMBINATIONS[how], (_prepared(one.to(computed), size, gamma) for one in maps)
    )
    if how == "mean":
        fused = fused / len(maps)
    return fused.to(dtype) if dtype.is_floating_point else fused


def _prepared(maps: Tensor, size: Sequence[int], gamma: float | None) -> Tensor:
    """Returns maps scaled, sharpened and resized, (N, 1, *size)."""
    maps = maps.detach()
    finite = maps.isfinite().flatten(1).all(1).view(-1, *[1] * (maps.dim() - 1))
    scaled = min_max(torch.where(finite, maps, torch.nan))
    if gamma is not None:
        scaled = torch.tanh(gamma * scaled)
    return upsample(scaled, size)


def _check_maps(maps: Sequence[Tensor], size: Sequence[int]) -> None:
    """Refuses what are not maps of the same examples, or another size's rank."""
    tensors = isinstance(maps, list | tuple) and all(
        isinstance(one, Tensor) for one in maps
    )
    if not tensors:
        raise TypeError(
            "`maps` must be a list or tuple of tensors, one for each layer, got "
            f"{type(maps).__name__}."
        )
    if not maps:
        raise ValueError("`maps` must have the maps of one layer at least, got 0.")
    rank = len(size)
    for one in maps:
        shape = tuple(one.shape)
        if not 1 <= rank <= 3 or len(shape) != rank + 2 or shape[1] != 1:
            raise ValueError(
                "`maps` must be (N, 1, *layer_size), with the one to three spatial "
                f"dimensions of `size` {tuple(size)}, got {shape}."
            )
        if len(one) != len(maps[0]):
            raise ValueError(
                "`maps` must be of the same examples, got "
                f"{[len(other) for other in maps]}."
            )
