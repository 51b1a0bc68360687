"""FusionCAM: a gradient map and a region map, fused by their similarity."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._baselines import Baselines
from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._checks import check_number
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam._layer_call import LayerTensor
from captum_unioncam._maps import min_max, scale_as_mask, spatial_dims
from captum_unioncam._scoring import MaskScorer
from captum_unioncam.attr._base import nan_unless_finite, weighted_map
from captum_unioncam.attr._fusion import (
    contribution_weights,
    similarity_fusion,
    weighted,
    weighted_union,
)
from captum_unioncam.attr._uniting_cam import UnitingCAM
from captum_unioncam.attr.denoised_grad_cam import THETA, denoise
from captum_unioncam.attr.score_cam import increase_weights


def denoised_grad_cam_map(
    activations: Tensor, gradients: Tensor, theta: float
) -> Tensor:
    """Returns G, Grad-CAM without entries below its percentile, (N, 1, *spatial)."""
    weights = gradients.mean(spatial_dims(gradients))  # (N, K)
    denoised = denoise(weighted_map(weights, activations), theta)
    return nan_unless_finite(denoised, activations, gradients)


class FusionCAM(UnitingCAM):
    r"""Shows the evidence for the target where gradients and scored regions agree.

    The gradient map G is Grad-CAM without its entries below the ``theta``-th
    percentile, the region map R is :class:`ScoreCAM`. Both are scaled as masks, summed
    to the union U under their score contributions, and U and R are joined by their
    similarity, pixel by pixel:

    .. math::
        \beta_i &= f_c(L_i \odot I_0) - f_c(I_b) \\
        U &= w_G G + w_R R, \quad w = (\beta_G, \beta_R) / (\beta_G + \beta_R) \\
        P &= v_U U, \quad Q = v_R R, \quad
        v = (\beta_U, \beta_R) / (\beta_U + \beta_R) \\
        L &= S \max(P, Q) + (1 - S) (P + Q) / 2, \quad S = 1 - |P - Q|

    where :math:`f_c` is the score, a confidence (see ``score_func``), :math:`I_0` the
    input and :math:`I_b` the baseline. In place of the selection of :class:`UnionCAM`,
    the region map always stays part of the result.

    Reference: Dekdegue et al., Fusion-CAM, 2026, arXiv:2603.05386.

    Note: Deviates from the paper where a contribution is negative: it counts as 0, and
    where none is positive, both weights are 1/2. The authors' code divides by a sum
    that may vanish, or invert the map.

    Note: Deviates from the paper in that maps are thresholded and fused at the layer's
    size, where the attributions are wanted, and not at the input's.

    Note: Call ``model.eval()`` first; the mode is not changed. In train mode every
    masked pass updates the running statistics of batch normalisation, and the score of
    an example depends on the others in its batch.

    Cost: 1 forward and 1 backward pass of the batch, 5 more forward passes of it, and 1
    for each active channel of each example. Memory does not grow with the number of
    channels.
    """

    _gradient_map = staticmethod(denoised_grad_cam_map)
    _region_weights = staticmethod(increase_weights)

    _most_parts = 2

    def _fusion(
        self,
        layer: LayerTensor,
        scorer: MaskScorer,
        theta: float,
        given: Mapping[str, Any],
    ) -> Tensor:
        """Returns the fusion of the two maps, in the order of the class's equations."""
        parts = self._part_maps(layer, scorer, theta, given)  # G and R
        maps = torch.cat([part.maps for part in parts], 1)  # (N, 2, *spatial)
        gains = scorer.gains(maps)  # beta_G, beta_R: (N, 2)
        scaled = scale_as_mask(maps, scorer.mask_size)
        union = weighted_union(scaled, contribution_weights(gains))  # U
        union_gain = scorer.gains(union)  # beta_U: (N, 1)
        pair = torch.cat([scale_as_mask(union, scorer.mask_size), scaled[:, 1:]], 1)
        weights = contribution_weights(torch.cat([union_gain, gains[:, 1:]], 1))  # v
        fused = similarity_fusion(weighted(pair, weights))  # L: (N, 1, *spatial)
        return nan_unless_finite(min_max(fused), maps, gains, union_gain)

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        theta: float = THETA,
        baselines: Baselines = None,
        score_func: ScoreFunc | None = None,
        max_channels: int | None = None,
        fidelity: float = 1.0,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            theta (float, optional): Percentile, in [0, 100], below which the entries of
                the Grad-CAM map are dropped. Default: 10.0, as in the paper

        All other arguments, the return value (in [0, 1]) and the errors are those of
        :meth:`UnionCAM.attribute`.
        """
        check_number("theta", theta, 0, 100)
        options, given = self._options_of_call(
            show_progress,
            theta,
            grad_kwargs,
            baselines=baselines,
            score_func=score_func,
            max_channels=max_channels,
            fidelity=fidelity,
            perturbations_per_eval=perturbations_per_eval,
        )
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        with call.shared() as call:
            scored = self._scored_layers(call, options, grad_kwargs)
            maps = []
            for layer, scorer in scored:
                maps.append(self._fusion(layer, scorer, theta, given))
            return self._attributions([layer for layer, _ in scored], maps)
