"""FusionCAM: a gradient map and a region map, fused by their similarity."""

from typing import Any

import torch
from torch import Tensor

from captum_unioncam._captum import TargetType, attribution_method, format_output
from captum_unioncam._maps import at_least_float32, min_max, scale_as_mask, spatial_dims
from captum_unioncam._scoring import Baselines, ScoreFunc
from captum_unioncam.attr._fusion import (
    contribution_weights,
    similarity_fusion,
    weighted_union,
)
from captum_unioncam.attr._uniting_cam import Parts, UnitingCAM
from captum_unioncam.attr._weighted_cam import nan_unless_finite, weighted_map
from captum_unioncam.attr.denoised_grad_cam import THETA, denoise
from captum_unioncam.attr.score_cam import increase_weights


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

    Note: In train mode every masked pass moves the buffers of batch normalisation, and
    couples the examples. The mode is left as it is: call ``model.eval()`` first.

    Cost: 1 forward and 1 backward pass of the batch, 4 more forward passes of it (5 for
    a single example), and 1 for each live channel of each example. Memory does not grow
    with the number of channels.
    """

    def _gradient_map(
        self, activations: Tensor, gradients: Tensor, theta: float
    ) -> Tensor:
        weights = at_least_float32(gradients).mean(spatial_dims(gradients))
        denoised = denoise(weighted_map(weights, activations), theta)
        return nan_unless_finite(denoised, activations, gradients)

    def _region_weights(
        self, scores: Tensor, baseline_scores: Tensor, counted: Tensor
    ) -> Tensor:
        return increase_weights(scores, baseline_scores, counted)

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
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            theta (float, optional): Percentile, in [0, 100], below which the entries of
                the Grad-CAM map are dropped. Default: 10.0, the paper's

        All other arguments, the return value (in [0, 1]) and the errors are those of
        :meth:`UnionCAM.attribute`.
        """
        parts = self._parts(
            self._prepare(
                inputs, target, additional_forward_args, attribute_to_layer_input
            ),
            theta,
            baselines,
            score_func,
            max_channels,
            perturbations_per_eval,
            show_progress,
            grad_kwargs,
        )
        return format_output(
            tuple(self._deliver(_fuse(part), part.channels.dtype) for part in parts)
        )


def _fuse(parts: Parts) -> Tensor:
    """Unites and fuses the component maps of one layer tensor."""
    size = parts.scorer.mask_size
    components = torch.cat([parts.gradient_map, parts.region.map], 1)
    gains = parts.scorer.gains(components)
    scaled = scale_as_mask(components, size)
    union = weighted_union(scaled, contribution_weights(gains))
    union_gain = parts.scorer.gains(union)
    weights = contribution_weights(torch.cat([union_gain, gains[:, 1:]], 1))
    weighted = weights.view(*weights.shape, *[1] * (union.dim() - 2)) * torch.cat(
        [scale_as_mask(union, size), scaled[:, 1:]], 1
    )
    fused = similarity_fusion(weighted[:, :1], weighted[:, 1:])
    return nan_unless_finite(min_max(fused), components, gains, union_gain)
