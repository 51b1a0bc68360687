"""How the score grows or falls as pixels come or go in the order of the map."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._baselines import Baselines, blurred
from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._checks import check_integer
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam._forward import ModelCall
from captum_unioncam._maps import checked_maps, is_constant, upsample
from captum_unioncam._scoring import MaskScorer, ScoringOptions

# Of the image that insertion starts from: the authors' code, a kernel of 11 entries.
BLUR_SIGMA = 5.0
BLUR_RADIUS = 5

STEPS = 50


@attribution_method
def insertion(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor,
    target: TargetType = None,
    baselines: Baselines = None,
    additional_forward_args: object = None,
    *,
    steps: int = STEPS,
    score_func: ScoreFunc | None = None,
    perturbations_per_eval: int | None = None,
    return_curve: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Returns the area under the score as pixels are shown, the most important first.

    Whole pixels, over all channels, replace a blurred image in the order of the map;
    the score is taken after each of ``steps`` equal shares of them. The area is by the
    trapezoid rule over the fraction shown, from 0 to 1. More is better, from 0 to 1 for
    confidences.

    Reference: Petsiuk, Das and Saenko, RISE, BMVC 2018, arXiv:1806.07421.

    Note: Pixels of equal importance come in a fixed random order, which favours no
    place, and is the same for every map of a size.

    Cost: ``steps`` + 2 forward passes of the batch, in chunks.

    Args:
        forward_func (Callable or torch.nn.Module): The model, or any function of the
            inputs that runs it.
        inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first. Every input of
            the map's rank gains its pixels, at its own size.
        attributions (Tensor): A map for each example, (N, 1, *size), of the layer's or
            the input's size and of any scale; it is resized to the input.
        target (int, tuple, Tensor or list, optional): Output index, in the forms of
            :meth:`captum.attr.LayerGradCam.attribute`. Default: None
        baselines (Tensor, int, float, or tuple of them, optional): What a pixel shows
            before it is inserted. Default: None, which is the blurred input
        additional_forward_args (Any, optional): Further arguments of the model.
            Default: None
        steps (int, optional): Points of the curve after the first. Default: 50
        score_func (Callable, optional): From the output to scores of the same shape.
            Default: None, which is softmax, as in :class:`.UnionCAM`
        perturbations_per_eval (int, optional): Points for each example in one forward
            pass; the result does not depend on it. Default: None
        return_curve (bool, optional): Return the scores too. Default: False

    Returns:
        *Tensor*, (N,), NaN where the map is not finite. With ``return_curve=True``,
        also the scores at the fractions 0, 1 / steps, ..., 1: (N, steps + 1).

    Raises:
        TypeError: If ``steps`` is not an integer, or as in
            :meth:`.ScoreCAM.attribute`.
        ValueError: If ``attributions`` are not (N, 1, *size), ``steps`` is not
            positive, or as in :meth:`.ScoreCAM.attribute`.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics import insertion
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2))
        >>> maps = torch.rand(3, 1, 4, 4)
        >>> insertion(net, torch.rand(3, 1, 8, 8), maps, target=1, steps=8).shape
        torch.Size([3])
    """
    check_integer("steps", steps)
    call = ModelCall.prepare(forward_func, inputs, target, additional_forward_args)
    maps = checked_maps(attributions, call.batch_size)
    if baselines is None:
        baselines = insertion_baselines(call.inputs, maps.dim())
    options = ScoringOptions(
        baselines=baselines,
        score_func=score_func,
        perturbations_per_eval=perturbations_per_eval,
    )
    scorer = MaskScorer(call, maps.dim(), options)
    curve = score_curve(scorer, maps, steps, inserting=True)
    return (area_under(curve), curve) if return_curve else area_under(curve)


@attribution_method
def deletion(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor,
    target: TargetType = None,
    baselines: Baselines = None,
    additional_forward_args: object = None,
    *,
    steps: int = STEPS,
    score_func: ScoreFunc | None = None,
    perturbations_per_eval: int | None = None,
    return_curve: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Returns the area under the score as pixels are removed, most important first.

    As :func:`insertion`, from the whole input to ``baselines`` (default 0). Less is
    better, from 0 to 1 for confidences. The cost, the arguments, the result and the
    errors are those of :func:`insertion`.

    Reference: Petsiuk, Das and Saenko, RISE, BMVC 2018, arXiv:1806.07421.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics import deletion
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2))
        >>> maps = torch.rand(3, 1, 4, 4)
        >>> deletion(net, torch.rand(3, 1, 8, 8), maps, target=1, steps=8).shape
        torch.Size([3])
    """
    check_integer("steps", steps)
    call = ModelCall.prepare(forward_func, inputs, target, additional_forward_args)
    maps = checked_maps(attributions, call.batch_size)
    options = ScoringOptions(
        baselines=baselines,
        score_func=score_func,
        perturbations_per_eval=perturbations_per_eval,
    )
    scorer = MaskScorer(call, maps.dim(), options)
    curve = score_curve(scorer, maps, steps, inserting=False)
    return (area_under(curve), curve) if return_curve else area_under(curve)


def insertion_baselines(inputs: tuple[Tensor, ...], dim: int) -> Baselines:
    """Returns the blurred inputs that insertion starts from."""
    return blurred(inputs, dim, BLUR_SIGMA, BLUR_RADIUS)


def score_curve(
    scorer: MaskScorer, maps: Tensor, steps: int, inserting: bool
) -> Tensor:
    """Returns the scores as pixels are inserted or deleted, (N, steps + 1).

    Cost: ``steps`` - 1 forward passes of the batch.
    """
    finite = maps.isfinite().flatten(1).all(1, keepdim=True)  # (N, 1)
    ranks = {size: pixel_ranks(maps, size) for size in dict.fromkeys(scorer.mask_sizes)}

    def masks(rows: Tensor, columns: Tensor, size: Sequence[int]) -> Tensor:
        ranked = ranks[tuple(size)][rows]  # (P, pixels)
        counts = (columns * ranked.shape[1] / steps).round()
        touched = ranked < counts[:, None]
        shown = touched if inserting else ~touched
        return shown.view(-1, 1, *size).to(maps.dtype)

    # One end of the curve is the reference, and the other one the whole example.
    keep = finite.repeat(1, steps + 1)
    keep[:, [0, steps]] = False
    scores = scorer.score(keep, scorer.masked_by(masks))
    scores[:, steps if inserting else 0] = scorer.full_scores.to(scores)
    return torch.where(finite, scores, torch.nan)


def area_under(curve: Tensor) -> Tensor:
    """Returns the area over the fraction from 0 to 1 by the trapezoid rule, (N,)."""
    return torch.trapezoid(curve, dx=1 / (curve.shape[1] - 1), dim=1)


def pixel_ranks(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Returns the place of each pixel in falling order of the map, (N, pixels)."""
    # The rounding of resizing would put the pixels of a constant map in an order.
    constant = is_constant(maps).view(-1, *[1] * (maps.dim() - 1))
    values = upsample(torch.where(constant, 0, maps), size).flatten(1)  # (N, pixels)
    generator = torch.Generator("cpu").manual_seed(0)
    shuffled = torch.randperm(values.shape[1], generator=generator, device="cpu")
    shuffled = shuffled.to(values.device)
    # A stable sort leaves equal pixels in the shuffled order.
    order = values[:, shuffled].argsort(dim=1, descending=True, stable=True)
    places = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, shuffled[order], places)
