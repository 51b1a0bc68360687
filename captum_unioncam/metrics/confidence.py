"""What the model still believes when it sees no more than the map shows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._captum import ModelCall, TargetType, attribution_method
from captum_unioncam._maps import at_least_float32, is_flat
from captum_unioncam._scoring import Baselines, MaskScorer, ScoreFunc


@attribution_method
def confidence_kept(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor,
    target: TargetType = None,
    baselines: Baselines = None,
    additional_forward_args: object = None,
    *,
    score_func: ScoreFunc | None = None,
    perturbations_per_eval: int | None = None,
) -> Tensor:
    r"""Returns the share of the score that the map keeps, o / y.

    .. math:: o / y, \quad y = f_c(I_0), \quad o = f_c(\mathrm{mask}(L) \odot I_0)

    where L is the map, :math:`\mathrm{mask}` resizes it to the input and scales it to
    [0, 1], and :math:`f_c` is the score, a confidence (see ``score_func``). More is
    better; above 1 the masked input scores higher than the input.

    Cost: 3 forward passes of the batch (4 for a single example).

    Args:
        forward_func (Callable or torch.nn.Module): The model, or any function of the
            inputs that runs it.
        inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first. Every input
            of the map's rank is masked, at its own size.
        attributions (Tensor): A map for each example, (N, 1, *size), of the layer's or
            the input's size and of any scale.
        target (int, tuple, Tensor or list, optional): Output index, in the forms of
            :meth:`captum.attr.LayerGradCam.attribute`. Default: None
        baselines (Tensor, int, float, or tuple of them, optional): What a mask of 0
            shows. Default: None, which is 0
        additional_forward_args (Any, optional): Further arguments of the model.
            Default: None
        score_func (Callable, optional): From the output to scores of the same shape.
            Default: None, which is softmax, as in :class:`.UnionCAM`
        perturbations_per_eval (int, optional): Masks for each example in one forward
            pass. Default: None

    Returns:
        *Tensor*, (N,), NaN where y is 0 or the map is not finite.

    Raises:
        ValueError: If ``attributions`` are not (N, 1, *size), or as in
            :meth:`.ScoreCAM.attribute`.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics import confidence_kept
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2))
        >>> maps = torch.rand(3, 1, 4, 4)
        >>> confidence_kept(net, torch.rand(3, 1, 8, 8), maps, target=1).shape
        torch.Size([3])
    """
    full, masked = _full_and_masked(
        ModelCall.prepare(forward_func, inputs, target, additional_forward_args),
        attributions,
        baselines,
        score_func,
        perturbations_per_eval,
    )
    return masked / _nonzero(full)


@attribution_method
def confidence_drop(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor,
    target: TargetType = None,
    baselines: Baselines = None,
    additional_forward_args: object = None,
    *,
    score_func: ScoreFunc | None = None,
    perturbations_per_eval: int | None = None,
) -> Tensor:
    r"""Returns the share of the score that is lost under the map, max(0, y - o) / y.

    The mean over images, times 100, is the average drop (Chattopadhay et al. 2018;
    Hu et al. 2024). Less is better, from 0 to 1.

    y, o, the cost, the arguments and the errors are those of :func:`confidence_kept`.

    Returns:
        *Tensor*, (N,), NaN where y is 0 or the map is not finite.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics import confidence_drop
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2))
        >>> maps = torch.rand(3, 1, 4, 4)
        >>> confidence_drop(net, torch.rand(3, 1, 8, 8), maps, target=1).shape
        torch.Size([3])
    """
    full, masked = _full_and_masked(
        ModelCall.prepare(forward_func, inputs, target, additional_forward_args),
        attributions,
        baselines,
        score_func,
        perturbations_per_eval,
    )
    return (full - masked).clamp(min=0) / _nonzero(full)


@attribution_method
def confidence_increase(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor,
    target: TargetType = None,
    baselines: Baselines = None,
    additional_forward_args: object = None,
    *,
    score_func: ScoreFunc | None = None,
    perturbations_per_eval: int | None = None,
) -> Tensor:
    r"""Returns 1 where the masked input scores higher than the input, y < o, else 0.

    The mean over images, times 100, is the average increase (Chattopadhay et al. 2018;
    Hu et al. 2024). More is better.

    y, o, the cost, the arguments and the errors are those of :func:`confidence_kept`.

    Returns:
        *Tensor*, (N,), NaN where the map is not finite.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics import confidence_increase
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2))
        >>> maps = torch.rand(3, 1, 4, 4)
        >>> confidence_increase(net, torch.rand(3, 1, 8, 8), maps, target=1).shape
        torch.Size([3])
    """
    full, masked = _full_and_masked(
        ModelCall.prepare(forward_func, inputs, target, additional_forward_args),
        attributions,
        baselines,
        score_func,
        perturbations_per_eval,
    )
    return torch.where(masked.isnan(), torch.nan, (full < masked).to(masked))


def _full_and_masked(
    call: ModelCall,
    attributions: Tensor,
    baselines: Baselines,
    score_func: ScoreFunc | None,
    perturbations_per_eval: int | None,
) -> tuple[Tensor, Tensor]:
    """Returns y and o, (N,) each; o is NaN for a map that is not finite."""
    maps = checked_maps(attributions, call.batch_size)
    scorer = MaskScorer(call, maps.dim(), baselines, score_func, perturbations_per_eval)
    finite = maps.isfinite().flatten(1).all(1, keepdim=True)
    masked = scorer.score(maps, ~is_flat(maps) & finite)
    full = scorer.full_scores().to(masked)
    return full, torch.where(finite, masked, torch.nan)[:, 0]


def _nonzero(scores: Tensor) -> Tensor:
    return torch.where(scores == 0, torch.nan, scores)


def checked_maps(attributions: Tensor, examples: int) -> Tensor:
    """Returns maps in at least 32 bits; refuses what is not one for each example."""
    shape = tuple(attributions.shape)
    if not 3 <= len(shape) <= 5 or shape[:2] != (examples, 1):
        raise ValueError(
            f"`attributions` must have one map for each example, ({examples}, 1, "
            f"*size), got {shape}."
        )
    return at_least_float32(attributions.detach())
