"""ReciproCAM: the confidence of each position of the layer alone."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from captum_unioncam._activation_scoring import ActivationScorer
from captum_unioncam._captum import (
    TargetType,
    attribution_method,
    progress_bar,
)
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam._layer_call import LayerTensor
from captum_unioncam._maps import min_max
from captum_unioncam._scoring import ScoringOptions
from captum_unioncam.attr._base import PerturbingCAM, nan_unless_finite


class ReciproCAM(PerturbingCAM):
    r"""Shows the positions of a layer that are enough for the target.

    The layer's tensor is reduced to one position at a time, all channels of it, and the
    score of the target is the value of the map there:

    .. math::
        L_p = \frac{s_p - \min s}{\max s - \min s}, \quad
        s_p = f_c(A \odot [\,\text{position} = p\,])

    where A is the layer's tensor and :math:`f_c` the score of the rest of the model, a
    confidence (see ``score_func``).

    With ``gaussian=True`` the neighbours of the position are kept too, with their own
    activations, under a Gaussian of three positions along each dimension:

    .. math::
        s_p = f_c(A \odot G_p), \quad
        G_p(q) = \prod_d \frac{\max(2 - |q_d - p_d|, 0)}{4}

    which in two dimensions is the kernel [[1, 2, 1], [2, 4, 2], [1, 2, 1]] / 16; what
    lies outside of the layer is dropped. For the tokens of a vision transformer, by
    ``reshape_transform=vit_reshape``, and the layer that the last block reads, this is
    ViT-ReciproCAM: the class token stays.

    Reference: Byun and Lee, ReciproCAM, CVPR Workshops 2024; Recipro-CAM, 2022,
    arXiv:2209.14074. Byun and Lee, ViT-ReciproCAM, 2023, arXiv:2310.02588.

    Note: Single positions are the default of the authors' code for ConvNets. The
    Gaussian there spreads the activations of the position itself over its neighbours;
    here, as in the code for vision transformers, each neighbour keeps its own.

    Note: Deviates from ViT-ReciproCAM in the place of the mask: it is at the layer's
    output, where the authors mask the last block twice, after its first normalisation
    and on the skip connection. A token of zeros is normalised to the norm's bias. Their
    score is the raw output: ``score_func=lambda output: output``.

    Note: A ``reshape_transform`` may only move and drop entries of the layer's tensor,
    because this method replaces them; a class token stays unchanged.

    Note: Where the layer runs several times in one forward pass, its last run is
    explained and replaced. In train mode every pass updates the running statistics of
    batch normalisation: call ``model.eval()`` first.

    Cost: 2 forward passes of the batch (3 for a single example), and 1 for each
    position of the layer and example. Each runs the whole model: a hook replaces the
    layer's tensor, so that any model works.
    """

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        gaussian: bool = False,
        score_func: ScoreFunc | None = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            gaussian (bool, optional): Keep the neighbours of each position too, less
                the further they are. Default: False, the position alone
            perturbations_per_eval (int, optional): Positions for each example in one
                forward pass; only rounding depends on it. Default: None, which tries a
                few numbers in a long call, and stays with the fastest

        All other arguments, the return value (in [0, 1]) and the errors are those of
        :meth:`ScoreCAM.attribute`. No input is masked, so that inputs may have any
        rank.
        """
        options = self._options(
            show_progress,
            score_func=score_func,
            perturbations_per_eval=perturbations_per_eval,
        )
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        layers = call.tensors(replaceable=True)
        maps = []
        for layer in layers:
            maps.append(position_map(layer, options, gaussian))
        return self._attributions(layers, maps)


def position_map(layer: LayerTensor, options: ScoringOptions, gaussian: bool) -> Tensor:
    """Scores each position of a tensor alone, and scales the scores, as a map.

    With ``gaussian`` it also keeps the neighbours of the position, at lower weights.
    """
    activations = layer.activations
    scorer = ActivationScorer(layer, options)
    finite = activations.isfinite().flatten(1).all(1, keepdim=True)
    positions = activations[0, 0].numel() if len(activations) else 0
    isolated = finite.expand(-1, positions)  # (N, positions)
    with progress_bar(options.progress, int(isolated.sum())) as bar:
        edit = partial(_isolate, gaussian=gaussian)
        scores = scorer.score_edits(isolated, edit, bar)  # s_p
    maps = scores.view(len(activations), 1, *activations.shape[2:])
    return nan_unless_finite(min_max(maps), activations, scores)


def _isolate(
    activations: Tensor, examples: Tensor, positions: Tensor, gaussian: bool
) -> Tensor:
    """Sets all positions of each example to zero but one, or its neighbourhood."""
    size = activations.shape[2:]
    if gaussian:
        return activations * gaussian_masks(positions, size).to(activations)
    kept = torch.zeros_like(activations.flatten(2)[:, :1], dtype=torch.bool)
    kept.scatter_(2, positions.view(-1, 1, 1), True)  # (P, 1, positions)
    return torch.where(kept.view(-1, 1, *size), activations, 0)


def gaussian_masks(positions: Tensor, size: Sequence[int]) -> Tensor:
    """Returns the product of (1, 2, 1) / 4 along each dimension, (P, 1, *size).

    Args:
        positions (Tensor): The centre of each mask as a flat index, (P,).
        size (Sequence[int]): Spatial size of the layer.
    """
    masks = torch.ones(len(positions), 1, *size, device=positions.device)
    rest = positions
    for dim in reversed(range(len(size))):
        centres, rest = rest % size[dim], rest // size[dim]  # (P,)
        places = torch.arange(size[dim], device=positions.device)
        steps = (places - centres[:, None]).abs()  # (P, length)
        # Along its own dimension of the masks, (P, 1, ..., length, ...).
        shape = [len(positions), *[1] * (1 + len(size))]
        shape[2 + dim] = size[dim]
        masks = masks * ((2 - steps).clamp(min=0) / 4).view(shape)
    return masks
