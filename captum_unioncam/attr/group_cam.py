"""GroupCAM: groups of channels, denoised and scored over a blurred image."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import GradientAttribution
from torch import Tensor

from captum_unioncam._baselines import Baselines, blurred
from captum_unioncam._captum import (
    TargetType,
    attribution_method,
    progress_bar,
)
from captum_unioncam._checks import check_integer, check_number
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam._layer_call import LayerTensor
from captum_unioncam._maps import (
    is_active,
    percentile as percentile_of,
    scale_as_mask,
    spatial_dims,
)
from captum_unioncam._scoring import ScoringOptions
from captum_unioncam.attr._base import ScoringCAM, nan_unless_finite
from captum_unioncam.attr._fusion import weighted_union

# Zhang et al. 2021.
GROUPS = 32
PERCENTILE = 70.0
# Of the blurred baseline: the authors' code, a kernel of 51 entries.
BLUR_SIGMA = 50.0
BLUR_RADIUS = 25


class GroupCAM(ScoringCAM, GradientAttribution):
    r"""Shows the regions that raise the confidence, with a few dozen masked passes.

    The channels, weighted as in Grad-CAM, are summed in groups; each group is denoised,
    masks the inputs over a blurred copy, and is weighted by what it adds:

    .. math::
        M_l &= \mathrm{ReLU} \sum_{k \in G_l} a_k A_k, \quad
        a_k = \mathrm{mean}_{ij} \, g^k_{ij} \\
        M'_l &= M_l \, [M_l > \mathrm{percentile}(M_l)] \\
        L &= \mathrm{ReLU} \sum_l s_l \, H_l, \quad
        s_l = f_c(H_l \odot I_0 + (1 - H_l) \odot \tilde I) - f_c(\tilde I)

    where :math:`A_k` is the k-th channel of ``layer``, :math:`g^k` the gradient of the
    raw output at ``target`` with respect to it, :math:`G_l` the l-th group of
    neighbouring channels, :math:`H_l` is :math:`M'_l` scaled to [0, 1] as a mask,
    :math:`I_0` the input, :math:`\tilde I` the blurred input and :math:`f_c` the score,
    a confidence (see ``score_func``).

    Reference: Zhang, Rao and Yang, Group-CAM, 2021, arXiv:2103.13859v4.

    Note: The blur has the sigma of the authors' code, 50; another implementation that
    is in use has 25. Borders are mirrored.

    Note: Groups need not divide the channels: their sizes differ by one at most, and
    there are never more groups than channels. The authors' code makes groups of equal
    size, and a smaller last one.

    Note: Call ``model.eval()`` first; the mode is not changed. In train mode every
    masked pass updates the running statistics of batch normalisation, and the score of
    an example depends on the others in its batch.

    Cost: 1 forward and 1 backward pass of the batch, 2 more forward passes of it, and 1
    for each group of each example that is not constant.
    """

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        groups: int = GROUPS,
        percentile: float = PERCENTILE,
        baselines: Baselines = None,
        score_func: ScoreFunc | None = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            groups (int, optional): Groups of channels. Default: 32, as in the paper
            percentile (float, optional): Percentile, in [0, 100], up to which the
                entries of a group's map are dropped. Default: 70.0, as in the paper
            baselines (Tensor, int, float, or tuple of them, optional): What a mask of 0
                shows. Default: None, which is the blurred input

        All other arguments, the return value and the errors are those of
        :meth:`UnionCAM.attribute`; the maps are not scaled. A ``groups`` that is not
        positive, or a ``percentile`` outside [0, 100], is a ValueError.
        """
        check_integer("groups", groups)
        check_number("percentile", percentile, 0, 100)
        options = self._options(
            show_progress,
            baselines=baselines,
            score_func=score_func,
            perturbations_per_eval=perturbations_per_eval,
        )
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        layers = call.differentiated_tensors(grad_kwargs)
        maps = []
        for layer in layers:
            masks = group_maps(layer.activations, layer.gradients, groups, percentile)
            maps.append(self._union_of_groups(layer, masks, options))
        return self._attributions(layers, maps)

    def _union_of_groups(
        self, layer: LayerTensor, masks: Tensor, options: ScoringOptions
    ) -> Tensor:
        """Returns the sum of the groups' masks under their gains, (N, 1, *spatial)."""
        if options.baselines is None:
            inputs = layer.call.inputs
            blurry = blurred(inputs, masks.dim(), BLUR_SIGMA, BLUR_RADIUS)
            options = replace(options, baselines=blurry)
        scorer = self._scorer(layer, options)
        passes = int(is_active(masks).sum())
        with progress_bar(options.progress, passes) as bar:
            gains = scorer.gains(masks, bar)  # s_l: (N, groups)
        united = F.relu(weighted_union(scale_as_mask(masks, scorer.mask_size), gains))
        return nan_unless_finite(united, layer.activations, layer.gradients, gains)


def group_maps(
    activations: Tensor, gradients: Tensor, groups: int, percentile: float
) -> Tensor:
    """Returns the denoised map of each group of channels, (N, groups, *spatial)."""
    weights = gradients.mean(spatial_dims(gradients), keepdim=True)  # a: (N, K, 1, ...)
    products = weights * activations  # (N, K, *spatial)
    parts = products.tensor_split(min(groups, products.shape[1]), 1)
    # One map for each group: (N, groups, *spatial).
    maps = F.relu(torch.cat([part.sum(1, keepdim=True) for part in parts], 1))
    return torch.where(maps > percentile_of(maps, percentile), maps, 0)
