"""The template of the CAMs that mask the inputs by the layer's channels.

Each channel is scored as a mask on the inputs, and the scores become the weights of the
channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_unioncam._baselines import Baselines
from captum_unioncam._captum import (
    TargetType,
    attribution_method,
    progress_bar,
)
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam._layer_call import LayerCall
from captum_unioncam._maps import is_active
from captum_unioncam._scoring import MaskScorer, ScoringOptions
from captum_unioncam.attr._base import ScoringCAM, weighted_map
from captum_unioncam.attr._channel_scores import ChannelScores

# From scores to the weights of the channels, (N, K) each.
ScoreWeights = Callable[[Tensor], Tensor]
# From a mask, (P, 1, *size), to what is applied in its place; None leaves it unchanged.
MaskChange = Callable[[Tensor], Tensor] | None


class MaskingCAM(ScoringCAM, ABC):
    """Template of a CAM by scores: a subclass defines :meth:`weights`.

    Cost: 3 forward passes of the batch, and 1 for each active channel of each example.
    The mask of a constant channel (one value everywhere) is all zeros, so that the
    baseline's score is its exact score. Memory does not grow with the number of
    channels.
    """

    @abstractmethod
    def weights(self, scores: Tensor) -> Tensor:
        """Returns the weights of the channels, (N, K): the equation of the method.

        Args:
            scores (Tensor): f_c of the inputs under each channel as a mask, (N, K).
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
        fidelity: float = 1.0,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first. Every
                input with as many dimensions as the layer is masked, at its own size;
                the others are passed unchanged. Move an input that must not be masked
                to ``additional_forward_args``. Integer inputs are masked as floats,
                rounded and cast back.
            target (int, tuple, Tensor or list, optional): Output index to explain, one
                for all examples or one for each, in the forms of
                :meth:`captum.attr.LayerGradCam.attribute`. Default: None, for models
                that return one value for each example; it never means the predicted
                class
            additional_forward_args (Any, optional): Further arguments of the model,
                after the inputs; several as a tuple. A list is one argument. A tensor
                with one row for each example is split with the examples; give any
                other tensor, such as class weights, a first dimension of 1. Default:
                None
            attribute_to_layer_input (bool, optional): Explain the layer's input in
                place of its output. Default: False
            baselines (Tensor, int, float, or tuple of them, optional): What a mask of 0
                shows, in the forms of Captum's FeatureAblation, broadcast to the
                inputs: ``(0 - mean) / std`` of shape (1, 3, 1, 1) is black for
                normalised images. Default: None, which is 0: black for images in
                [0, 1], but the mean colour for normalised ones
            score_func (Callable, optional): A function from the model's output to
                scores of the same shape, such as torch.sigmoid for independent labels.
                Default: None, which is softmax over dimension 1; outputs that are
                probabilities already, or have one column, are scores as they are
            max_channels (int, optional): Score at most this many active channels of
                each example, and predict the scores of the others from them: see
                :ref:`predicted-scores`. Default: None, which scores all, as in the
                paper
            fidelity (float, optional): Score channels in rounds until the estimated
                correlation of the score-weighted map with the exact one reaches this
                value, in [0, 1], such as 0.99, and predict the scores of the others.
                Each example has its own estimate. A warning names the examples that
                ``max_channels`` keeps below it. Default: 1.0, the exact map
            perturbations_per_eval (int, optional): Masks for each example in one
                forward pass; the map depends on it only by rounding. Default: None,
                which times a few numbers in a long call, and keeps the fastest
            show_progress (bool, optional): Show a progress bar on stderr. Default:
                False

        Returns:
            *Tensor* of **attributions**, (N, 1, *layer_size), >= 0 for scores >= 0, not
            scaled, detached, of the layer's type; a tuple of them if the layer has
            several tensors, or ``layer`` is a list. An example whose activations or
            scores are not finite is all NaN; such examples, and constant maps, give a
            warning that names them.

        Raises:
            ValueError: If the layer is not spatial, no input has as many dimensions as
                the layer, ``baselines`` do not fit, ``max_channels`` or
                ``perturbations_per_eval`` is not positive, ``score_func`` does not give
                one value for each example at the target, or the output does not have
                one row for each example.

        Examples::

            >>> import torch
            >>> from captum_unioncam import ScoreCAM
            >>> conv = torch.nn.Conv2d(3, 4, 3)
            >>> head = torch.nn.LazyLinear(2)
            >>> net = torch.nn.Sequential(conv, torch.nn.Flatten(), head)
            >>> ScoreCAM(net, conv).attribute(torch.rand(2, 3, 8, 8), target=1).shape
            torch.Size([2, 1, 6, 6])
        """
        options = self._options(
            show_progress,
            baselines=baselines,
            score_func=score_func,
            max_channels=max_channels,
            fidelity=fidelity,
            perturbations_per_eval=perturbations_per_eval,
        )
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        return self._explain(call, options)

    def _explain(
        self,
        call: LayerCall,
        options: ScoringOptions,
        changes: Callable[[MaskScorer], Sequence[MaskChange]] = lambda scorer: (None,),
    ) -> Tensor | tuple[Tensor, ...]:
        """Returns the map of each of the layer's tensors under the method's weights.

        ``changes`` gives what to make of each mask; the scores are averaged over them.
        """
        layers = call.tensors()
        maps = []
        for layer in layers:
            scorer = self._scorer(layer, options)
            scored = scored_map(
                self.weights, scorer, layer.activations, changes(scorer)
            )
            self._warn_of_fidelity(scored.fidelity, options)
            maps.append(scored.maps)
        return self._attributions(layers, maps)


class ScoredMap(NamedTuple):
    """A map whose weights come from scores.

    Attributes:
        maps (Tensor): (N, 1, *spatial).
        channels (Tensor): How many channels were scored, int, (N,).
        fidelity (Tensor): Estimated correlation of the score-weighted sum of the
            channels with the exact one, (N,); 1 where no score is predicted, NaN where
            the map is.
    """

    maps: Tensor
    channels: Tensor
    fidelity: Tensor


def scored_map(
    weights: ScoreWeights,
    scorer: MaskScorer,
    activations: Tensor,
    changes: Sequence[MaskChange] = (None,),
) -> ScoredMap:
    """Scores the channels as masks, and sums them under weights from their scores."""
    limit, fidelity = scorer.options.max_channels, scorer.options.fidelity
    most = is_active(activations).sum(1).clamp(max=limit or activations.shape[1])
    result = ChannelScores(activations, scorer.reference_scores, limit, fidelity)
    with progress_bar(scorer.options.progress, len(changes) * int(most.sum())) as bar:
        for chosen in result:
            totals: Any = 0  # over the changes, outside of the engine
            for change in changes:
                masking = scorer.masking(activations, change)
                totals = totals + scorer.score(chosen, masking, bar)
            result.record(totals / len(changes))
        bar.update(len(changes) * int((most - result.measured.sum(1)).sum()))
    maps = weighted_map(weights(result.scores), activations, result.scores)
    broken = maps.isnan().flatten(1).any(1)
    fidelities = result.fidelity.masked_fill(broken, torch.nan)
    return ScoredMap(maps, result.measured.sum(1), fidelities)
