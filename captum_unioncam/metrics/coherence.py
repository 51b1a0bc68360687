"""How simple a map is, whether the masked input has the same map, and both in ADCC."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_unioncam._baselines import Baselines, format_baselines
from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._forward import ModelCall
from captum_unioncam._maps import (
    at_least_float32,
    blend,
    checked_maps,
    is_constant,
    to_mask,
)


@attribution_method
def coherency(
    explain_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor,
    target: TargetType = None,
    baselines: Baselines = None,
    additional_forward_args: object = None,
    **kwargs: Any,
) -> Tensor:
    r"""Returns how similar the map and the map of the masked input are.

    .. math:: (1 + \rho(L(I_0), L(\mathrm{mask}(L(I_0)) \odot I_0))) / 2

    where L is the map, :math:`\mathrm{mask}` resizes it to the input and scales it to
    [0, 1], and :math:`\rho` is Pearson's correlation over the pixels of the input.
    Higher is better: at 1 the two maps agree, and 0.5 is no relation.

    Reference: Poppi et al., Revisiting the Evaluation of Class Activation Mapping for
    Explainability, CVPR Workshops 2021, arXiv:2104.10252, scaled to [0, 1] as for
    their ADCC.

    Cost: one explanation of the batch.

    Args:
        explain_func (Callable): From inputs, and ``target``,
            ``additional_forward_args`` and ``kwargs`` by name, to maps (N, 1, *size),
            such as the ``attribute`` of a layer attribution.
        inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first. Every input
            of the map's rank is masked, at its own size.
        attributions (Tensor): What ``explain_func`` gives for ``inputs``, (N, 1,
            *size), of the layer's or the input's size and of any scale.
        target (int, tuple, Tensor or list, optional): Output index, in the forms of
            :meth:`captum.attr.LayerGradCam.attribute`. Default: None
        baselines (Tensor, int, float, or tuple of them, optional): What a mask of 0
            shows. ``explain_func`` does not get them: bind its own with
            functools.partial. Default: None, which is 0
        additional_forward_args (Any, optional): Further arguments of the model.
            Default: None
        kwargs (Any): Further arguments of ``explain_func``.

    Returns:
        *Tensor*, (N,), in [0, 1], NaN where either map is constant or not finite.

    Raises:
        TypeError: If ``explain_func`` returns no Tensor.
        ValueError: If ``attributions`` or the maps of ``explain_func`` are not (N, 1,
            *size), no input has their rank, or ``baselines`` do not fit.

    Examples::

        >>> import torch
        >>> from captum_unioncam import DenoisedGradCAM
        >>> from captum_unioncam.metrics.coherence import coherency
        >>> conv = torch.nn.Conv2d(3, 4, 3)
        >>> head = torch.nn.LazyLinear(2)
        >>> net = torch.nn.Sequential(conv, torch.nn.Flatten(), head)
        >>> inputs = torch.rand(2, 3, 8, 8)
        >>> explain = DenoisedGradCAM(net, conv).attribute
        >>> maps = explain(inputs, target=1)
        >>> coherency(explain, inputs, maps, target=1).shape
        torch.Size([2])
    """
    call = ModelCall.prepare(explain_func, inputs, target, additional_forward_args)
    maps = checked_maps(attributions, call.batch_size)
    size = mask_size(call.inputs, maps)
    formatted = format_baselines(baselines, call.inputs, maps.dim())
    # A broken map shows the baseline, so that it cannot break the explanation of the
    # other examples.
    finite = _is_finite(maps)
    shown = torch.where(finite.view(-1, *[1] * (maps.dim() - 1)), maps, 0)
    seen = tuple(
        inp if baseline is None else blend(inp, to_mask(shown, inp.shape[2:]), baseline)
        for inp, baseline in zip(call.cloned_inputs(), formatted, strict=True)
    )
    again = explain_func(
        seen if isinstance(inputs, tuple) else seen[0],
        target=call.target,
        additional_forward_args=call.additional_forward_args,
        **kwargs,
    )
    again = _checked_answer(again, maps)
    correlation = _correlation(to_mask(maps, size), to_mask(again, size))
    defined = finite & _is_finite(again)
    return torch.where(defined, (1 + correlation) / 2, torch.nan)


@torch.no_grad()
def complexity(attributions: Tensor, size: Sequence[int] | None = None) -> Tensor:
    r"""Returns the mean of the map, scaled to [0, 1]: the share that it lights up.

    .. math:: \lVert \mathrm{mask}(L) \rVert_1 / P

    where L is the map, :math:`\mathrm{mask}` resizes it and scales it to [0, 1], and P
    is the number of pixels. Less is simpler, and better among maps that explain as
    much.

    Reference: Poppi et al., Revisiting the Evaluation of Class Activation Mapping for
    Explainability, CVPR Workshops 2021, arXiv:2104.10252.

    Cost: no forward pass.

    Args:
        attributions (Tensor): A map for each example, (N, 1, *size), of any scale.
        size (Sequence[int], optional): Size to judge the map at, such as the input's.
            Default: None, which is the map's own

    Returns:
        *Tensor*, (N,), in [0, 1], 0 for a constant map, NaN where the map is not
        finite.

    Raises:
        ValueError: If ``attributions`` are not (N, 1, *size), or ``size`` has another
            number of dimensions.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics.coherence import complexity
        >>> complexity(torch.tensor([[[[3.0, 5.0], [3.0, 4.0]]]])).tolist()
        [0.375]
    """
    maps = checked_maps(attributions, len(attributions))
    if size is None:
        size = maps.shape[2:]
    if len(size) != maps.dim() - 2:
        raise ValueError(
            f"`size` must have the {maps.dim() - 2} spatial dimensions of the maps "
            f"{tuple(maps.shape)}, got {tuple(size)}."
        )
    means = to_mask(maps, size).flatten(1).mean(1)
    return torch.where(_is_finite(maps), means, torch.nan)


def adcc(coherency: Tensor, complexity: Tensor, drop: Tensor) -> Tensor:
    r"""Returns the harmonic mean of coherency, simplicity and confidence, ADCC.

    .. math:: 3 \left( \frac{1}{\mathrm{coherency}} + \frac{1}{1 - \mathrm{complexity}}
        + \frac{1}{1 - \mathrm{drop}} \right)^{-1}

    More is better, from 0 to 1. It is not more than three times the smallest part, so
    that a map which is good in one respect alone has no high value.

    Reference: Poppi et al., Revisiting the Evaluation of Class Activation Mapping for
    Explainability, CVPR Workshops 2021, arXiv:2104.10252.

    Note: A value for each example, whose mean is to be taken last. The authors' code
    leaves out the power -1 of the equation.

    Args:
        coherency (Tensor): Of :func:`coherency`, (N,).
        complexity (Tensor): Of :func:`complexity` at the input's size, (N,).
        drop (Tensor): Of :func:`confidence_drop`, (N,), a share.

    Returns:
        *Tensor*, (N,), 0 where a part is 0, NaN where an argument is NaN or not in
        [0, 1].

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics import adcc
        >>> coherency, complexity = torch.tensor([1.0]), torch.tensor([0.5])
        >>> adcc(coherency, complexity, drop=torch.tensor([0.5])).tolist()
        [0.6000000238418579]
    """
    parts = torch.stack([coherency, 1 - complexity, 1 - drop])  # (3, N)
    parts = torch.where((parts >= 0) & (parts <= 1), parts, torch.nan)
    return len(parts) / (1 / parts).sum(0)


def mask_size(inputs: tuple[Tensor, ...], maps: Tensor) -> tuple[int, ...]:
    """Returns the spatial size of the first input that the maps can mask."""
    for inp in inputs:
        if inp.dim() == maps.dim():
            return tuple(inp.shape[2:])
    raise ValueError(
        f"`inputs` must hold a tensor of the maps' rank, {maps.dim()}, to mask, got "
        f"the shapes {[tuple(inp.shape) for inp in inputs]}."
    )


def _checked_answer(answer: object, maps: Tensor) -> Tensor:
    """Returns what an explanation function gave, as maps like those before."""
    if not isinstance(answer, Tensor):
        raise TypeError(
            f"`explain_func` must return a Tensor, got a {type(answer).__name__}; pass "
            "`attribute` of a layer attribution, for a layer of one tensor."
        )
    shape = tuple(answer.shape)
    if len(shape) != maps.dim() or shape[:2] != maps.shape[:2]:
        raise ValueError(
            "`explain_func` must return one map for each example, of the rank of "
            f"`attributions`, ({len(maps)}, 1, *size), got {shape}."
        )
    return at_least_float32(answer.detach()).to(maps.device)


def _is_finite(maps: Tensor) -> Tensor:
    """Returns whether each map is finite, (N,)."""
    return maps.isfinite().flatten(1).all(1)


def _correlation(masks: Tensor, others: Tensor) -> Tensor:
    """Returns Pearson's correlation of two masks, (N,); NaN where one is constant."""
    constant = (is_constant(masks) | is_constant(others))[:, 0]  # (N,)
    # Pixels around their mean, of length 1: (N, pixels) each.
    centred = [
        F.normalize(pixels - pixels.mean(1, keepdim=True), dim=1)
        for pixels in (masks.flatten(1), others.flatten(1))
    ]
    products = (centred[0] * centred[1]).sum(1)
    return torch.where(constant, torch.nan, products.clamp(-1, 1))
