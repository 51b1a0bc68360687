"""FDCAM: channels under gradients and the scores of groups of similar channels."""

from functools import partial
from typing import Any, NamedTuple

import torch
from captum.attr import GradientAttribution
from torch import Tensor

from captum_unioncam._activation_scoring import ActivationScorer
from captum_unioncam._captum import (
    TargetType,
    attribution_method,
    progress_bar,
)
from captum_unioncam._checks import check_number
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam._layer_call import LayerTensor
from captum_unioncam._maps import min_max, percentile as percentile_of, spatial_dims
from captum_unioncam._prediction import precise_type
from captum_unioncam._scoring import ScoringOptions
from captum_unioncam.attr._base import PerturbingCAM, weighted_map

# Li et al. 2022: the quantile .95.
PERCENTILE = 95.0
# Cosines that agree up to here are equal: rounding does not tell channels apart.
DECIMALS = 6


class FDCAM(PerturbingCAM, GradientAttribution):
    r"""Shows where channels are that both gradients and the scores of groups favour.

    The channels that are most similar to a channel are kept alone, and left out; what
    the two do to the score weights the channel, beside its gradients:

    .. math::
        L &= \mathrm{ReLU} \sum_k w_k A_k, \quad
        w_k = \exp(\mathrm{mm}(s)_k) \, \mathrm{mm}(a)_k - \tfrac12 \\
        s_k &= f_c(A \odot [\text{channel} \in G_k])
        + f_c(A) - f_c(A \odot [\text{channel} \notin G_k]) \\
        G_k &= \{ l : \cos(A_k, A_l) > \mathrm{percentile}(\cos(A_k, \cdot)) \}

    where :math:`A_k` is the k-th channel of ``layer``, :math:`a_k` the mean of the
    gradient of the raw output at ``target`` with respect to it, :math:`f_c` the score,
    a confidence (see ``score_func``), and mm scales to [0, 1] over the channels.

    Reference: Li et al., FD-CAM: Improving Faithfulness and Discriminability of Visual
    Explanation for CNNs, ICPR 2022, arXiv:2206.08792.

    Note: Deviates from the paper in the score, which is a confidence like every score
    of the package; ``score_func=lambda output: output`` gives the paper's raw output.

    Note: What is the same for all channels, scores or gradients, is 0 where the paper
    divides by zero. Cosines are rounded to 6 decimals, so that rounding errors do not
    choose among equally similar channels.

    Note: The cosines of a channel of zeros are 0, and its group is empty: it has the
    score of a layer of zeros. It counts in mm, and in the percentiles.

    Note: A ``reshape_transform`` may only move and drop entries of the layer's tensor,
    because this method replaces them; a class token stays unchanged.

    Note: Where the layer runs several times in one forward pass, its last run is
    explained and replaced. In train mode every pass updates the running statistics of
    batch normalisation: call ``model.eval()`` first.

    Cost: 2 forward passes (3 for a single example) and 1 backward pass of the batch,
    and 2 forward passes for each different group of each example. Memory grows with the
    number of channels times the largest group.
    """

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        percentile: float = PERCENTILE,
        score_func: ScoreFunc | None = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            percentile (float, optional): Percentile, in [0, 100], of the cosines with a
                channel that those of its group exceed. Default: 95.0, as in the paper
            perturbations_per_eval (int, optional): Groups for each example in one
                forward pass, kept and left out; only rounding depends on it. Default:
                None, which tries a few numbers in a long call, and stays with the
                fastest
            grad_kwargs (dict, optional): See :meth:`GradCAM.attribute`. Default: None

        All other arguments, the return value and the errors are those of
        :meth:`ScoreCAM.attribute`. No input is masked, so that inputs may have any
        rank. A ``percentile`` outside [0, 100] is a ValueError.
        """
        check_number("percentile", percentile, 0, 100)
        options = self._options(
            show_progress,
            score_func=score_func,
            perturbations_per_eval=perturbations_per_eval,
        )
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        layers = call.differentiated_tensors(grad_kwargs, replaceable=True)
        maps = [group_score_map(layer, options, percentile) for layer in layers]
        return self._attributions(layers, maps)


class Groups(NamedTuple):
    """A group of channels for each channel.

    Attributes:
        members (Tensor): The channels of each group in ascending order, and after them
            K as often as the largest group has more, (N, K, M).
        first (Tensor): The first channel of the same group, (N, K).
    """

    members: Tensor
    first: Tensor


def group_score_map(
    layer: LayerTensor, options: ScoringOptions, percentile: float
) -> Tensor:
    """Scores the groups of a tensor's channels, and sums the channels, as a map."""
    activations, gradients = layer.activations, layer.gradients
    scorer = ActivationScorer(layer, options)
    groups = similar_channels(activations, percentile)
    channels = torch.arange(activations.shape[1], device=activations.device)
    scored = (groups.first == channels) & _is_finite(activations)  # (N, K)
    with progress_bar(options.progress, 2 * int(scored.sum())) as bar:
        edit = partial(_keep_or_drop, groups.members)
        both = scorer.score_edits(scored.repeat(1, 2), edit, bar)  # (N, 2 K)
    alone, without = (
        scores.gather(1, groups.first) for scores in both.tensor_split(2, dim=1)
    )
    # s: (N, K)
    scores = alone + scorer.full_scores[:, None].to(without) - without
    weights = scores_times_gradients(scores, gradients.mean(spatial_dims(gradients)))
    return weighted_map(weights, activations, gradients, scores)


def scores_times_gradients(scores: Tensor, gradients: Tensor) -> Tensor:
    """Returns the weights w, (N, K), of scores and mean gradients, (N, K) each."""
    scaled_scores, scaled = (
        min_max(values[:, None])[:, 0] for values in (scores, gradients)
    )
    return scaled_scores.exp() * scaled - 0.5


def similar_channels(activations: Tensor, percentile: float) -> Groups:
    """Returns the group of each channel, from activations (N, K, *spatial).

    The examples come in turn, because the cosines of one may be large, (K, K).
    """
    found = [_groups_of_one(entries, percentile) for entries in activations.flatten(2)]
    if not found:
        nothing = activations.new_zeros(activations.shape[:2], dtype=torch.long)
        return Groups(nothing[:, :, None], nothing)
    return Groups(*map(torch.stack, zip(*found, strict=True)))


def _groups_of_one(entries: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """Returns members, (K, M), and first, (K,), from channels, (K, positions)."""
    count = len(entries)
    largest = entries.abs().amax(1, keepdim=True)  # (K, 1)
    # Shares of it, whose squares stay in range.
    values = entries / torch.where(largest > 0, largest, 1)
    values = values.to(precise_type(values.device))
    norms = values.norm(dim=1, keepdim=True)
    values = values / torch.where(norms > 0, norms, 1)
    with torch.autocast(values.device.type, enabled=False):
        cosines = (values @ values.T).round(decimals=DECIMALS)  # (K, K)
        threshold = percentile_of(cosines[None], percentile)[0]  # (K, 1)
        exceeds = cosines > threshold
        # Equal groups share as many channels as each of them has.
        shown = exceeds.float()
        shared, sizes = shown @ shown.T, shown.sum(1)  # exact: whole numbers
    same = (shared == sizes) & (shared == sizes[:, None])
    # An entry of rank int((K - 1) q) or below does not exceed the threshold.
    most = count - 1 - int((count - 1) * (percentile / 100))
    channels = torch.arange(count, device=entries.device)
    members = torch.where(exceeds, channels, count).sort(dim=1).values
    # A copy, because a view would hold all of (K, K).
    return members[:, :most].clone(), same.byte().argmax(1)  # the first of equal ones


def _keep_or_drop(
    members: Tensor, activations: Tensor, examples: Tensor, columns: Tensor
) -> Tensor:
    """Keeps only a group of channels, or for columns from K on all but the group."""
    count = activations.shape[1]
    inside = activations.new_zeros(len(columns), count + 1, dtype=torch.bool)
    inside = inside.scatter(1, members[examples, columns % count], True)[:, :count]
    kept = inside == (columns < count)[:, None]  # (P, K)
    kept = kept.view(*kept.shape, *[1] * (activations.dim() - 2))
    return torch.where(kept, activations, 0)


def _is_finite(activations: Tensor) -> Tensor:
    """Returns whether all of an example's activations are finite, (N, 1)."""
    return activations.isfinite().flatten(1).all(1, keepdim=True)
