"""Scores of many examples whose activations in a layer are replaced."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from captum_unioncam._captum import TargetType
from captum_unioncam._layer_call import LayerTensor, eager
from captum_unioncam._layouts import laid_out
from captum_unioncam._replacement import Replacement
from captum_unioncam._scoring import Perturb, Scorer, ScoringOptions


class ActivationScorer(Scorer):
    """Scores what the model says when a tensor of its layer is replaced.

    The constructor scores the examples as they are, f_c(x), in one forward pass.

    Args:
        layer (LayerTensor): The tensor to replace.
        options (ScoringOptions): How to score.

    Raises:
        ValueError: As :class:`MaskScorer`.

    Attributes:
        reference_scores (Tensor): f_c(x) of each example, (N,).
    """

    def __init__(self, layer: LayerTensor, options: ScoringOptions) -> None:
        super().__init__(layer.call, options, layer.activations.device, layer.output)
        self._layer = layer

        def unedited(rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
            return self._picked_inputs(rows)

        # A single example is repeated where several edits will share a batch, to check
        # that the output has one row per input.
        repeats = 2 if layer.call.batch_size == 1 and self._chunk.now > 1 else 1
        self._replacement: Replacement | None = None
        with eager():  # as the edits will run, to the last bit
            scores = self._score_references(repeats, unedited)
        self.full_scores = self.reference_scores = scores[:, 0]

    def score_edits(
        self,
        keep: Tensor,
        edit: Callable[[Tensor, Tensor, Tensor], Tensor],
        bar: Any = None,
    ) -> Tensor:
        """Returns the score of each edit of the layer's tensor, (N, M).

        Cost: 1 forward pass for each edit that is kept.

        Args:
            keep (Tensor): Which edits to score, bool, (N, M). The others get f_c(x).
            edit (Callable): From copies of the layer's tensor, (P, K, *spatial), the
                examples, (P,), and the columns of ``keep``, (P,), to what takes their
                place.
            bar (optional): A progress bar to update by the edits that are done.
        """
        with self._layer.call.replacing(self._layer) as replacement:

            def perturb(rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
                replacement.put(edit(self._layer.activations[rows], rows, columns))
                return self._picked_inputs(rows)

            self._replacement = replacement
            return self.score(keep, perturb, bar)

    def _outputs(
        self, examples: Tensor, columns: Tensor, perturb: Perturb
    ) -> Iterator[tuple[slice, Tensor, TargetType]]:
        for chunk in super()._outputs(examples, columns, perturb):
            if self._replacement is not None:
                self._replacement.check()
            yield chunk

    def _picked_inputs(self, examples: Tensor) -> tuple[Tensor, ...]:
        picked = (inp[examples.to(inp.device)] for inp in self._inputs)
        return tuple(laid_out(inp, self._layout) for inp in picked)
