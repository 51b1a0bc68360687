"""ReciproCAM: the confidence of each position of the layer alone."""

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

    Reference: Byun and Lee, ReciproCAM, CVPR Workshops 2024; Recipro-CAM, 2022,
    arXiv:2209.14074.

    Note: The masks are single positions, the default of the authors' code. Its
    alternative, a Gaussian of 3 x 3 positions, is left out.

    Note: A ``reshape_transform`` may only move and drop entries of the layer's tensor,
    because this method replaces them; a class token stays unchanged.

    Note: Where the layer runs several times in one forward pass, its last run is
    explained and replaced. In train mode every pass moves the buffers of batch
    normalisation: call ``model.eval()`` first.

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
        score_func: ScoreFunc | None = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
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
        return self._attributions(
            layers, [position_map(layer, options) for layer in layers]
        )


def position_map(layer: LayerTensor, options: ScoringOptions) -> Tensor:
    """Scores each position of a tensor alone, and scales the scores, as a map."""
    activations = layer.activations
    scorer = ActivationScorer(layer, options)
    finite = activations.isfinite().flatten(1).all(1, keepdim=True)
    positions = activations[0, 0].numel() if len(activations) else 0
    isolated = finite.expand(-1, positions)  # (N, positions)
    with progress_bar(options.progress, int(isolated.sum())) as bar:
        scores = scorer.score_edits(isolated, _isolate, bar)  # s_p
    maps = scores.view(len(activations), 1, *activations.shape[2:])
    return nan_unless_finite(min_max(maps), activations, scores)


def _isolate(activations: Tensor, positions: Tensor) -> Tensor:
    """Sets all positions of each example to zero but one."""
    kept = torch.zeros_like(activations.flatten(2)[:, :1], dtype=torch.bool)
    kept.scatter_(2, positions.view(-1, 1, 1), True)  # (P, 1, positions)
    return torch.where(kept.view(-1, 1, *activations.shape[2:]), activations, 0)
