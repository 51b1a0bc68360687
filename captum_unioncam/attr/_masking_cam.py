"""What the CAMs that mask the inputs by the layer's channels share.

Each channel is scored as a mask on the inputs, and the scores become the weights of the
channels. A method brings the weights, and may vary the masks; :class:`MaskingCAM` is
the template.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captum_unioncam._captum import (
    LayerCall,
    TargetType,
    attribution_method,
    format_output,
)
from captum_unioncam._maps import at_least_float32, is_flat
from captum_unioncam._scoring import Baselines, MaskScorer, MaskVariant, ScoreFunc
from captum_unioncam.attr._weighted_cam import (
    ScoringCAM,
    check_callable,
    check_positive,
    nan_unless_finite,
    weighted_map,
)

ScoreWeights = Callable[[Tensor, Tensor, Tensor], Tensor]
MaskSizes = Sequence[tuple[int, ...]]


def _unvaried(sizes: MaskSizes) -> Sequence[MaskVariant]:
    """Leaves every mask as it is."""
    return (lambda mask: mask,)


class MaskingCAM(ScoringCAM, ABC):
    """Template of a CAM by scores: a subclass defines :meth:`weights`.

    Cost: 2 forward passes of the batch (3 for a single example), and 1 for each live
    channel of each example. The mask of a dead channel (one value everywhere) is all
    zeros, so that the baseline's score is its exact score. Memory does not grow with
    the number of channels.
    """

    @abstractmethod
    def weights(
        self, scores: Tensor, baseline_scores: Tensor, counted: Tensor
    ) -> Tensor:
        """Returns the weights of the channels, (N, K): the equation of the method.

        Args:
            scores (Tensor): f_c of the inputs under each channel as a mask, (N, K).
            baseline_scores (Tensor): f_c(Ib), (N, 1).
            counted (Tensor): Which channels take part, bool, (N, K): all, or those that
                ``max_channels`` leaves.
        """

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        baselines: Baselines = None,
        score_func: ScoreFunc | None = None,
        max_channels: int | None = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first. Every
                input of the layer's rank is masked, at its own size; the others pass
                unchanged. Move an input that must not be masked to
                ``additional_forward_args``. Integer inputs are masked as floats,
                rounded and cast back.
            target (int, tuple, Tensor or list, optional): Output index to explain, in
                the forms of :meth:`captum.attr.LayerGradCam.attribute`. Default: None
            additional_forward_args (Any, optional): Further arguments of the model,
                after the inputs. A list is one argument. A tensor with as many rows as
                there are examples follows its example; give any other tensor, such as
                class weights, a first dimension of 1. Default: None
            attribute_to_layer_input (bool, optional): Explain the layer's input in
                place of its output. Default: False
            baselines (Tensor, int, float, or tuple of them, optional): What a mask of 0
                shows, in the forms of Captum's FeatureAblation, broadcast to the
                inputs: ``(0 - mean) / std`` of shape (1, 3, 1, 1) is black for
                normalised images. Default: None, which is 0
            score_func (Callable, optional): From the model's output to scores of the
                same shape, such as torch.sigmoid. Default: None, which is softmax over
                dimension 1 if it is larger than 1, and not applied to probabilities
            max_channels (int, optional): Score and sum only the live channels with the
                largest spatial variance, this many for each example. Default: None,
                which is all, the paper
            perturbations_per_eval (int, optional): Masks for each example in one
                forward pass; the result does not depend on it. Default: None, which is
                6 masked inputs in all on the CPU and 64 elsewhere
            show_progress (bool, optional): Show a progress bar on stderr. Default:
                False

        Returns:
            *Tensor* of **attributions**, (N, 1, *layer_size), >= 0 for scores >= 0, not
            scaled, detached, of the layer's type; a tuple of them if the layer has
            several tensors. An example whose activations or scores are not finite is
            all NaN; such examples, and flat maps, give a warning that names them.

        Raises:
            ValueError: If the layer is not spatial, no input has the layer's rank,
                ``baselines`` do not fit, ``max_channels`` or ``perturbations_per_eval``
                is not positive, ``score_func`` has not one value for each example at
                the target, or the output does not grow with the batch.

        Examples::

            >>> import torch
            >>> from captum_unioncam import ScoreCAM
            >>> conv = torch.nn.Conv2d(3, 4, 3)
            >>> head = torch.nn.LazyLinear(2)
            >>> net = torch.nn.Sequential(conv, torch.nn.Flatten(), head)
            >>> ScoreCAM(net, conv).attribute(torch.rand(2, 3, 8, 8), target=1).shape
            torch.Size([2, 1, 6, 6])
        """
        return self._explain(
            self._prepare(
                inputs, target, additional_forward_args, attribute_to_layer_input
            ),
            baselines,
            score_func,
            max_channels,
            perturbations_per_eval,
            show_progress,
        )

    def _explain(
        self,
        call: LayerCall,
        baselines: Baselines,
        score_func: ScoreFunc | None,
        max_channels: int | None,
        perturbations_per_eval: int | None,
        show_progress: bool,
        variants: Callable[[MaskSizes], Sequence[MaskVariant]] = _unvaried,
    ) -> Tensor | tuple[Tensor, ...]:
        """Weighs the channels of each of the layer's tensors by their scores.

        ``variants`` gives, for the sizes of the masked inputs, what to make of each
        mask before it is laid on; the scores are averaged over them.
        """
        check_callable("score_func", score_func)
        check_positive("max_channels", max_channels)
        check_positive("perturbations_per_eval", perturbations_per_eval)
        scored = call.scored_by(self.scoring_func)
        description = self.get_name() if show_progress else None
        outputs = []
        for activations in call.activations():
            scorer = MaskScorer(
                scored, activations.dim(), baselines, score_func, perturbations_per_eval
            )
            region = score_regions(
                activations,
                scorer,
                self.weights,
                max_channels,
                description,
                variants(scorer.mask_sizes),
            )
            outputs.append(self._deliver(region.map, activations.dtype))
        return format_output(tuple(outputs))


class Region(NamedTuple):
    """A map of scored regions, and how many channels of each example were scored."""

    map: Tensor  # (N, 1, *spatial), NaN where the evidence is not finite
    scored: Tensor  # channels that cost forward passes, (N,)


def score_regions(
    activations: Tensor,
    scorer: MaskScorer,
    weights: ScoreWeights,
    max_channels: int | None,
    description: str | None,
    variants: Sequence[MaskVariant] = _unvaried(()),
) -> Region:
    """Scores the channels as masks, and sums them under weights from their scores."""
    channels = at_least_float32(activations)
    kept = counted_channels(channels, max_channels)
    scores = scorer.score(channels, kept, description, variants)
    counted = torch.ones_like(kept) if max_channels is None else kept
    baseline_scores = scorer.reference_scores[:, None].to(scores)
    summed = weighted_map(weights(scores, baseline_scores, counted), channels)
    return Region(nan_unless_finite(summed, channels, scores), kept.sum(1))


def counted_channels(activations: Tensor, max_channels: int | None) -> Tensor:
    """Returns which channels to score, (N, K): all live ones, or the most varied."""
    live = live_channels(activations)
    if max_channels is None:
        return live
    return live & _has_top_variance(activations, live, max_channels)


def live_channels(activations: Tensor) -> Tensor:
    """Returns which channels are worth a mask, (N, K).

    Not the flat ones, whose mask is all zeros, and none of an example that is not
    finite.
    """
    finite = activations.isfinite().flatten(1).all(1, keepdim=True)
    return ~is_flat(activations) & finite


def _has_top_variance(activations: Tensor, live: Tensor, count: int) -> Tensor:
    """Returns whether a channel is among the live ones of largest variance, (N, K)."""
    entries = activations.flatten(2)
    variance = (entries - entries.mean(2, keepdim=True)).square().mean(2)
    # Dead channels last; among equals, a stable sort prefers the first channel.
    order = torch.where(live, variance, -1).argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(live).scatter(1, order[:, :count], True)
