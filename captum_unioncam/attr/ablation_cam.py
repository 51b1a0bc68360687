"""AblationCAM: channels under the confidence that is lost without them."""

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
from captum_unioncam._maps import shares
from captum_unioncam._scoring import ScoringOptions
from captum_unioncam.attr._base import PerturbingCAM, weighted_map


class AblationCAM(PerturbingCAM):
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
    because this method replaces them; a class token stays unchanged.

    Note: Where the layer runs several times in one forward pass, its last run is
    explained and replaced. In train mode every pass updates the running statistics of
    batch normalisation: call ``model.eval()`` first.

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
            max_channels (int, optional): Ablate at most this many channels of each
                example: those of the largest first-order effect, the sum of gradients
                times activations, times their standard deviation. The lost shares of
                the others are predicted in proportion to their first-order effects.
                Costs 1 forward and 1 backward pass of the batch. Default: None, which
                is all, the paper
            perturbations_per_eval (int, optional): Ablations for each example in one
                forward pass; only rounding depends on it. Default: None, which tries a
                few numbers in a long call, and stays with the fastest

        All other arguments, the return value and the errors are those of
        :meth:`ScoreCAM.attribute`. No input is masked, so that inputs may have any
        rank.
        """
        options = self._options(
            show_progress,
            score_func=score_func,
            max_channels=max_channels,
            perturbations_per_eval=perturbations_per_eval,
        )
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        layers = call.tensors(replaceable=True)
        gradients: list[Tensor | None] = [None] * len(layers)
        if max_channels is not None:
            differentiated = call.differentiated_tensors(None)
            gradients = [layer.gradients for layer in differentiated]
        maps = []
        for layer, gradient in zip(layers, gradients, strict=True):
            self._warn_of_zero_gradients(layer.activations, gradient, max_channels)
            maps.append(ablation_map(layer, options, gradient))
        return self._attributions(layers, maps)

    def _warn_of_zero_gradients(
        self, activations: Tensor, gradients: Tensor | None, max_channels: int | None
    ) -> None:
        """Warns of examples whose other channels cannot be predicted."""
        if gradients is None or max_channels is None:
            return
        others = activations.flatten(2).ne(0).any(2).sum(1) > max_channels  # (N,)
        zero = ~gradients.flatten(1).ne(0).any(1)
        self._warn(
            others & zero,
            "made without the channels that `max_channels` leaves out: all gradients "
            "are zero, so that nothing tells their effects",
        )


def ablation_map(
    layer: LayerTensor, options: ScoringOptions, gradients: Tensor | None
) -> Tensor:
    """Ablates the channels of a tensor, and sums them under the lost shares.

    With ``max_channels`` it ablates those that the gradients, (N, K, *spatial), say
    matter most, and predicts the lost shares of the others from the gradients.
    """
    activations = layer.activations
    scorer = ActivationScorer(layer, options)
    active = activations.flatten(2).ne(0).any(2)  # (N, K)
    active &= activations.isfinite().flatten(1).all(1, keepdim=True)
    ablated = active
    if gradients is not None and options.max_channels is not None:
        effects = first_order_effects(activations, gradients)
        ablated = active & _is_largest(
            torch.where(active, effects.abs() * _deviations(activations), -1),
            options.max_channels,
        )
    with progress_bar(options.progress, int(ablated.sum())) as bar:
        scores = scorer.score_edits(ablated, _ablate, bar)  # y_k
    weights = ablation_weights(scores, scorer.reference_scores)  # (N, K)
    if gradients is not None:
        predicted = predicted_weights(weights, effects, ablated)
        weights = torch.where(active & ~ablated, predicted, weights)
    return weighted_map(weights, activations, scores)


def ablation_weights(scores: Tensor, full_scores: Tensor) -> Tensor:
    """Returns the share of the score, (N,), that each ablation, (N, K), loses."""
    full = full_scores[:, None].to(scores)  # y: (N, 1)
    return (full - scores) / torch.where(full == 0, torch.inf, full.abs())


def first_order_effects(activations: Tensor, gradients: Tensor) -> Tensor:
    """Returns what the output loses without each channel to first order, (N, K).

    It is the sum of gradients times activations, up to a factor of each example.
    """
    return (shares(gradients) * shares(activations)).sum(2)


def predicted_weights(weights: Tensor, effects: Tensor, ablated: Tensor) -> Tensor:
    """Returns the lost shares in proportion to the first-order effects, (N, K).

    The factor is the least-squares one of the ablated channels.
    """
    known = torch.where(ablated, effects, 0)  # (N, K)
    squares = known.square().sum(1, keepdim=True)  # (N, 1)
    products = (known * weights).sum(1, keepdim=True)
    return products / torch.where(squares == 0, torch.inf, squares) * effects


def _deviations(activations: Tensor) -> Tensor:
    entries = shares(activations)
    # Not std, which warns of an empty batch.
    centred = entries - entries.mean(2, keepdim=True)
    return centred.square().mean(2).sqrt()  # (N, K)


def _is_largest(values: Tensor, count: int) -> Tensor:
    """Returns which values are the ``count`` largest of their row; NaN is none."""
    order = values.nan_to_num(-1).argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(values, dtype=torch.bool)
    return mask.scatter(1, order[:, :count], True)


def _ablate(activations: Tensor, examples: Tensor, channels: Tensor) -> Tensor:
    """Sets one channel of each example to zero."""
    activations[torch.arange(len(channels), device=channels.device), channels] = 0
    return activations
