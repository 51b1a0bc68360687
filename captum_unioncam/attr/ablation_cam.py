"""AblationCAM: channels under the confidence that is lost without them."""

import torch
from captum.attr import PerturbationAttribution
from torch import Tensor

from captum_unioncam._captum import TargetType, attribution_method, format_output
from captum_unioncam._maps import at_least_float32
from captum_unioncam._scoring import ActivationScorer, ScoreFunc
from captum_unioncam.attr._masking_cam import counted_channels
from captum_unioncam.attr._weighted_cam import (
    CAMAttribution,
    check_callable,
    check_positive,
    nan_unless_finite,
    weighted_map,
)


class AblationCAM(CAMAttribution, PerturbationAttribution):
    r"""Shows where the channels are that the model needs for the target.

    Each channel of the layer is set to zero, and the share of the score that is lost
    weights it:

    .. math::
        L = \mathrm{ReLU} \sum_k w_k A_k, \quad w_k = \frac{y - y_k}{y}

    where :math:`A_k` is the k-th channel of ``layer``, y the score of ``target``, and
    :math:`y_k` the score with :math:`A_k = 0`.

    Reference: Desai and Ramaswamy, Ablation-CAM, WACV 2020,
    doi:10.1109/WACV45572.2020.9093360.

    Note: Deviates from the paper in the score, which is a confidence like every score
    of the package; ``score_func=lambda output: output`` gives the raw output. The
    weights are divided by :math:`|y|`, because a negative raw output would invert the
    map, and are 0 where y is 0.

    Note: A ``reshape_transform`` may only move and drop entries of the layer's tensor,
    because others are put in their places; a class token stays as it is.

    Note: Where the layer runs several times in one forward pass, its last run is
    explained and replaced. In train mode every pass moves the buffers of batch
    normalisation: call ``model.eval()`` first.

    Cost: 2 forward passes of the batch (3 for a single example), and 1 for each channel
    of each example that is not all zero. Memory does not grow with the number of
    channels.
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
        max_channels: int | None = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            max_channels (int, optional): Ablate and sum only the live channels with the
                largest spatial variance, this many for each example. Default: None,
                which is all, the paper
            perturbations_per_eval (int, optional): Ablations for each example in one
                forward pass; the result does not depend on it. Default: None, which is
                6 in all on the CPU and 64 elsewhere

        All other arguments, the return value and the errors are those of
        :meth:`ScoreCAM.attribute`. No input is masked, so that inputs of any rank will
        do.
        """
        check_callable("score_func", score_func)
        check_positive("max_channels", max_channels)
        check_positive("perturbations_per_eval", perturbations_per_eval)
        call = self._prepare(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        description = self.get_name() if show_progress else None
        outputs = []
        for place, activations in enumerate(call.activations(replaceable=True)):
            scorer = ActivationScorer(
                call, activations, place, score_func, perturbations_per_eval
            )
            kept = activations.flatten(2).ne(0).any(2)
            if max_channels is not None:
                kept &= counted_channels(at_least_float32(activations), max_channels)
            kept &= activations.isfinite().flatten(1).all(1, keepdim=True)
            scores = scorer.score(kept, _ablate, description)
            weights = ablation_weights(scores, scorer.reference_scores)
            ablated = weighted_map(weights, activations)
            outputs.append(
                self._deliver(
                    nan_unless_finite(ablated, activations, scores), activations.dtype
                )
            )
        return format_output(tuple(outputs))


def ablation_weights(scores: Tensor, full_scores: Tensor) -> Tensor:
    """Returns the share of the score, (N,), that each ablation, (N, K), loses."""
    full = full_scores[:, None].to(scores)
    return (full - scores) / torch.where(full == 0, torch.inf, full.abs())


def _ablate(activations: Tensor, channels: Tensor) -> Tensor:
    """Sets one channel of each example to zero."""
    activations[torch.arange(len(channels), device=channels.device), channels] = 0
    return activations
