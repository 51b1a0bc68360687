"""How much confidence is left when the model sees only what the map shows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._baselines import Baselines
from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam._forward import ModelCall
from captum_unioncam._maps import checked_maps, is_active
from captum_unioncam._scoring import MaskScorer, ScoringOptions


@attribution_method
def masked_confidences(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor,
    target: TargetType = None,
    baselines: Baselines = None,
    additional_forward_args: object = None,
    *,
    score_func: ScoreFunc | None = None,
    perturbations_per_eval: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Returns the scores of each example, whole and masked by its map.

    .. math:: y = f_c(I_0), \quad o = f_c(\mathrm{mask}(L) \odot I_0)

    where L is the map, :math:`\mathrm{mask}` resizes it to the input and scales it to
    [0, 1], and :math:`f_c` is the score, a confidence (see ``score_func``).
    :func:`confidence_drop`, :func:`confidence_increase`, :func:`average_gain` and
    :func:`confidence_kept` are functions of the two.

    Cost: 4 forward passes of the batch.

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
        Two *Tensors*, ``full`` (y) and ``masked`` (o), (N,) each; ``masked`` is NaN
        where the map is not finite.

    Raises:
        ValueError: If ``attributions`` are not (N, 1, *size), or as in
            :meth:`.ScoreCAM.attribute`.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics import confidence_drop, masked_confidences
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2))
        >>> inputs, maps = torch.rand(3, 1, 8, 8), torch.rand(3, 1, 4, 4)
        >>> full, masked = masked_confidences(net, inputs, maps, target=1)
        >>> confidence_drop(full, masked).shape
        torch.Size([3])
    """
    options = ScoringOptions(
        baselines=baselines,
        score_func=score_func,
        perturbations_per_eval=perturbations_per_eval,
    )
    call = ModelCall.prepare(forward_func, inputs, target, additional_forward_args)
    maps = checked_maps(attributions, call.batch_size)
    return confidences_under(MaskScorer(call, maps.dim(), options), maps)


def confidences_under(scorer: MaskScorer, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns y and o, (N,) each; o is NaN for a map that is not finite.

    Cost: 1 forward pass of the batch.
    """
    scores = scorer.score(is_active(maps), scorer.masking(maps))  # (N, 1)
    finite = maps.isfinite().flatten(1).all(1, keepdim=True)  # (N, 1)
    masked = torch.where(finite, scores, torch.nan)[:, 0]
    return scorer.full_scores.to(masked), masked


def confidence_kept(full: Tensor, masked: Tensor) -> Tensor:
    r"""Returns the share of the score that the map keeps, o / y.

    More is better; above 1 the masked input scores higher than the input.

    Args:
        full (Tensor): The scores of the whole examples, y, (N,); see
            :func:`masked_confidences`.
        masked (Tensor): The scores of the masked examples, o, (N,).

    Returns:
        *Tensor*, (N,), NaN where y is 0 or o is NaN.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics import confidence_kept
        >>> full, masked = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 1.0])
        >>> confidence_kept(full, masked).tolist()
        [0.5, 2.0]
    """
    return masked / _nonzero(full)


def confidence_drop(full: Tensor, masked: Tensor) -> Tensor:
    r"""Returns the share of the score that is lost under the map, max(0, y - o) / y.

    The mean over images, times 100, is the average drop (Chattopadhay et al. 2018;
    Hu et al. 2024). Less is better, from 0 to 1.

    Args:
        full, masked (Tensor): As in :func:`confidence_kept`.

    Returns:
        *Tensor*, (N,), NaN where y is 0 or o is NaN.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics import confidence_drop
        >>> full, masked = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 1.0])
        >>> confidence_drop(full, masked).tolist()
        [0.5, 0.0]
    """
    return (full - masked).clamp(min=0) / _nonzero(full)


def confidence_increase(full: Tensor, masked: Tensor) -> Tensor:
    r"""Returns 1 where the masked input scores higher than the input, y < o, else 0.

    The mean over images, times 100, is the average increase (Chattopadhay et al. 2018;
    Hu et al. 2024). More is better.

    Args:
        full, masked (Tensor): As in :func:`confidence_kept`.

    Returns:
        *Tensor*, (N,), NaN where o is NaN.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics import confidence_increase
        >>> full, masked = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 1.0])
        >>> confidence_increase(full, masked).tolist()
        [0.0, 1.0]
    """
    return torch.where(masked.isnan(), torch.nan, (full < masked).to(masked))


def average_gain(full: Tensor, masked: Tensor) -> Tensor:
    r"""Returns the share of the missing score that is won, max(0, o - y) / (1 - y).

    The mean over images, times 100, is the average gain (Zhang et al., Opti-CAM, CVIU
    2024, arXiv:2301.07002). More is better, from 0 to 1.

    Args:
        full, masked (Tensor): As in :func:`confidence_kept`; confidences in [0, 1].

    Returns:
        *Tensor*, (N,), 0 where y is 1, which leaves nothing to win, NaN where y is more
        than 1 or o is NaN.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics import average_gain
        >>> full, masked = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
        >>> average_gain(full, masked).tolist()
        [0.0, 0.5]
    """
    missing = torch.where(full == 1, torch.inf, 1 - full)
    missing = torch.where(missing < 0, torch.nan, missing)
    return (masked - full).clamp(min=0) / missing


def _nonzero(scores: Tensor) -> Tensor:
    return torch.where(scores == 0, torch.nan, scores)
