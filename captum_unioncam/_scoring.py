"""Scores of many perturbed examples: masked inputs, or replaced activations.

The engine knows maps, masks and scores, and no CAM formula. The perturbed examples go
through the model in chunks, and only scores are kept: memory depends on the size of a
chunk, not on the number of maps.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._baselines import Baselines, format_baselines
from captum_unioncam._captum import TargetType, expand_target
from captum_unioncam._checks import check_callable, check_integer, warn_user
from captum_unioncam._confidence import (
    ScoreFunc,
    check_scores,
    confidence,
    scores_at_target,
)
from captum_unioncam._forward import LayerTensor, ModelCall
from captum_unioncam._maps import blend, is_active, to_mask

# From examples, (P,), and columns of the maps, (P,), to the inputs of a forward pass.
Perturb = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
# From examples, (P,), columns, (P,), and the spatial size of an input to masks for it,
# (P, 1, *size).
MakeMasks = Callable[[Tensor, Tensor, Sequence[int]], Tensor]

# Perturbed examples in one forward pass. On a CPU, batches of two to eight ran about
# twice as fast for each image as batches of 64. Six were best for a light net and near
# the best for heavy ones: at eight, some activations of 224 x 224 images pass the 32
# MiB above which glibc takes every buffer anew from the system. An accelerator needs
# more to be busy.
CPU_CHUNK = 6
ACCELERATOR_CHUNK = 64

# What PyTorch says of a model that views a channels_last activation, such as
# x.view(len(x), -1), where it could reshape it.
VIEW_ERROR = "view size is not compatible"


@dataclass(frozen=True)
class ScoringOptions:
    """The options that the methods which score share, checked once.

    Attributes:
        baselines: What a mask of 0 shows, in the forms of Captum's FeatureAblation.
        score_func (Callable, optional): From the output to scores, read at the target.
        max_channels (int, optional): Channels of each example to score.
        perturbations_per_eval (int, optional): Perturbed inputs for each example in one
            forward pass.
        progress (str, optional): Name of the progress bar to show on stderr.
    """

    baselines: Baselines = None
    score_func: ScoreFunc | None = None
    max_channels: int | None = None
    perturbations_per_eval: int | None = None
    progress: str | None = None

    def __post_init__(self) -> None:
        check_callable("score_func", self.score_func)
        check_integer("max_channels", self.max_channels, or_none=True)
        check_integer(
            "perturbations_per_eval", self.perturbations_per_eval, or_none=True
        )


class Scorer(ABC):
    """Scores perturbed examples, packed densely across the batch, in chunks.

    Each pair of an example and a column, such as a channel, costs one forward pass. The
    constructor of a subclass ends with :meth:`_score_reference`, so that mistakes show
    before any perturbed pass.

    Attributes:
        options (ScoringOptions): How to perturb and to score.
        reference_scores (Tensor): The score of each example's reference, (N,).
    """

    reference_scores: Tensor

    def __init__(
        self, call: ModelCall, options: ScoringOptions, device: torch.device
    ) -> None:
        self.options = options
        self._call = call
        self._inputs = call.inputs
        self._score_func = options.score_func or confidence
        if options.perturbations_per_eval is None:
            self._chunk = CPU_CHUNK if device.type == "cpu" else ACCELERATOR_CHUNK
        else:
            self._chunk = options.perturbations_per_eval * call.batch_size
        self._target = call.target
        if isinstance(self._target, Tensor) and self._target.numel() == 1:
            self._target = self._target.item()  # which Captum would read in each chunk

    def score(self, keep: Tensor, perturb: Perturb, bar: Any = None) -> Tensor:
        """Returns the score of each perturbed example, (N, M).

        Cost: 1 forward pass for each pair that is kept.

        Args:
            keep (Tensor): Which pairs of an example and a column to score, bool, (N,
                M). The others get the reference's score.
            perturb (Callable): Makes the inputs of a chunk of pairs.
            bar (optional): A progress bar to update by the pairs that are done.
        """
        scores = self.reference_scores[:, None].repeat(1, keep.shape[1])  # (N, M)
        scores = scores.to(keep.device)
        examples, columns = keep.nonzero(as_tuple=True)  # (pairs,) each
        numbers = examples.tolist()  # nothing in the loop waits for the device
        scored = scores.new_empty(len(numbers))
        first_chunk, start = self._chunk, 0
        while start < len(numbers):
            chunk = slice(start, start + self._chunk)
            rows = examples[chunk]
            target = _pick(self._target, rows, numbers[chunk])
            try:
                # The inputs have no name, so that they are freed before the next chunk.
                output = self._call.run(
                    perturb(rows, columns[chunk]), self._call.arguments_of(rows)
                )
                scored[chunk] = scores_at_target(output, self._score_func, target)
            except torch.cuda.OutOfMemoryError:
                if len(rows) == 1:
                    raise
                self._chunk = len(rows) // 2
            else:
                start += len(rows)
                if bar is not None:
                    bar.update(len(rows))
                continue
            # The error's traceback, which held the chunk's tensors, is gone here.
            torch.cuda.empty_cache()
        if self._chunk < first_chunk:
            self._warn_of_memory(first_chunk, self._chunk)
        scores[examples, columns] = scored
        return scores

    @abstractmethod
    def _reference_output(self, examples: Tensor) -> Tensor:
        """Runs the model on the references of the given examples, (P,)."""

    def _lay_out(self, layout: torch.memory_format) -> None:
        """Brings the images among the inputs into a memory format."""
        self._layout = layout
        self._inputs = tuple(_laid_out(inp, layout) for inp in self._inputs)

    def _score_reference(self) -> None:
        """Scores the reference of each example, and validates options and output."""
        # Two-dimensional convolutions run fastest on channels_last images, and no other
        # model that was measured runs slower.
        self._lay_out(torch.channels_last)
        try:
            self.reference_scores = self._checked_reference()
        except RuntimeError as error:
            if VIEW_ERROR not in str(error):
                raise
            self._lay_out(torch.contiguous_format)
            self.reference_scores = self._checked_reference()

    def _checked_reference(self) -> Tensor:
        call, size = self._call, self._call.batch_size
        if size == 0:
            return torch.zeros(0)
        # A single example is repeated where several perturbed ones will share a batch,
        # to check that the output has one row per input.
        repeats = 2 if size == 1 and self._chunk > 1 else 1
        target = expand_target(call.target, repeats)
        try:
            output = self._reference_output(torch.arange(size).repeat(repeats))
        except torch.cuda.OutOfMemoryError:
            if repeats == 1:
                raise
            output = None
        if output is None:
            self._warn_of_memory(self._chunk, 1)
            self._chunk = 1
            return self._checked_reference()
        check_scores(output, self._score_func, target)
        if isinstance(call.target, list) and isinstance(call.target[0], int):
            # A list would be copied to the device for each chunk.
            self._target = torch.tensor(call.target, device=output.device)
        return scores_at_target(output, self._score_func, target)[:size]

    def _warn_of_memory(self, first_chunk: int, chunk: int) -> None:
        warn_user(
            f"{first_chunk} perturbed inputs did not fit the device's memory together; "
            f"went on with {chunk}. Pass a smaller `perturbations_per_eval`."
        )


class MaskScorer(Scorer):
    """Scores masks for the examples of one call.

    Every input whose rank is ``dim`` is masked, each at its own size; the others pass
    unchanged. The constructor scores the baseline, f_c(Ib), in one forward pass.

    Args:
        call (ModelCall): The model and the batch.
        dim (int): Rank of the maps, (N, K, *spatial), and of the inputs to mask.
        options (ScoringOptions): How to mask and to score.

    Raises:
        ValueError: If no input has the rank ``dim``, ``baselines`` do not fit the
            inputs, the model's output has not one row for each example, or
            ``score_func`` has not one value for each example at the target.
        AssertionError: If the target selects more than one value for each example.

    Attributes:
        reference_scores (Tensor): f_c(Ib) of each example, (N,).
        mask_sizes (list[tuple[int, ...]]): Spatial size of each masked input.
    """

    def __init__(self, call: ModelCall, dim: int, options: ScoringOptions) -> None:
        masked = [inp for inp in call.inputs if inp.dim() == dim]
        if not masked:
            raise ValueError(
                f"`inputs` must hold a tensor of the layer's rank, {dim}, to mask, got "
                f"the shapes {[tuple(inp.shape) for inp in call.inputs]}; choose a "
                "layer whose spatial dimensions are the input's."
            )
        super().__init__(call, options, masked[0].device)
        self.mask_sizes = [tuple(inp.shape[2:]) for inp in masked]
        self._baselines = format_baselines(options.baselines, call.inputs, dim)
        self._score_reference()

    @property
    def mask_size(self) -> tuple[int, ...]:
        """Spatial size of the first masked input."""
        return self.mask_sizes[0]

    def masking(
        self, maps: Tensor, change: Callable[[Tensor], Tensor] | None = None
    ) -> Perturb:
        """Returns how each map masks its example, for :meth:`score`.

        Args:
            maps (Tensor): Maps of any scale, (N, M, *spatial). The mask of a constant
                one is all zeros: the reference's score is its exact score.
            change (Callable, optional): What to make of each mask, (P, 1, *size),
                before it is applied. Default: None
        """

        def masks(rows: Tensor, columns: Tensor, size: Sequence[int]) -> Tensor:
            mask = to_mask(maps[rows, columns].unsqueeze(1), size)  # (P, 1, *size)
            return mask if change is None else change(mask)

        return self.masked_by(masks)

    def masked_by(self, masks: MakeMasks) -> Perturb:
        """Returns how masks that are made when needed mask the examples."""

        def perturb(rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
            inputs = []
            for inp, baseline in zip(self._inputs, self._baselines, strict=True):
                picks = rows.to(inp.device)
                picked = inp[picks]  # (P, C, *size)
                if baseline is not None:
                    mask = masks(rows, columns, inp.shape[2:]).to(inp.device)
                    shown = baseline if len(baseline) == 1 else baseline[picks]
                    picked = _laid_out(blend(picked, mask, shown), self._layout)
                inputs.append(picked)
            return tuple(inputs)

        return perturb

    def gains(self, maps: Tensor, bar: Any = None) -> Tensor:
        """Returns the score gain of each map, beta = f_c(L * I0) - f_c(Ib), (N, M).

        Hu et al. 2024, Eqs. 4, 5 and 7.
        """
        scores = self.score(is_active(maps), self.masking(maps), bar)
        return scores - self.reference_scores[:, None].to(maps.device)

    @functools.cached_property
    def full_scores(self) -> Tensor:
        """f_c(x), the score of each example unmasked, (N,), scored when first read."""
        every = torch.ones(self._call.batch_size, 1, dtype=torch.bool)
        return self.score(every, self.masked_by(_plain_masks(1.0)))[:, 0]

    def _lay_out(self, layout: torch.memory_format) -> None:
        super()._lay_out(layout)
        self._baselines = tuple(
            None if baseline is None else _laid_out(baseline, layout)
            for baseline in self._baselines
        )

    def _reference_output(self, examples: Tensor) -> Tensor:
        inputs = self.masked_by(_plain_masks(0.0))(examples, examples)
        return self._call.run(inputs, self._call.arguments_of(examples))


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
        super().__init__(layer.call, options, layer.activations.device)
        self._layer, self._runs = layer, 1
        self._score_reference()

    def score_edits(
        self,
        keep: Tensor,
        edit: Callable[[Tensor, Tensor], Tensor],
        bar: Any = None,
    ) -> Tensor:
        """Returns the score of each edit of the layer's tensor, (N, M).

        Cost: 1 forward pass for each edit that is kept.

        Args:
            keep (Tensor): Which edits to score, bool, (N, M). The others get f_c(x).
            edit (Callable): From copies of the layer's tensor, (P, K, *spatial), and
                the columns of ``keep``, (P,), to what takes their place.
            bar (optional): A progress bar to update by the edits that are done.
        """
        call, index = self._layer.call, self._layer.index
        with call.replacing(index, self._runs) as replacement:

            def perturb(rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
                replacement.put(edit(self._layer.activations[rows], columns))
                return self._picked_inputs(rows)

            return self.score(keep, perturb, bar)

    def _reference_output(self, examples: Tensor) -> Tensor:
        output, self._runs = self._layer.call.run_counting(
            self._picked_inputs(examples), self._call.arguments_of(examples)
        )
        return output

    def _picked_inputs(self, examples: Tensor) -> tuple[Tensor, ...]:
        picked = (inp[examples.to(inp.device)] for inp in self._inputs)
        return tuple(_laid_out(inp, self._layout) for inp in picked)


def _plain_masks(value: float) -> MakeMasks:
    """Returns what makes masks of one value everywhere."""

    def masks(rows: Tensor, columns: Tensor, size: Sequence[int]) -> Tensor:
        return torch.full((len(rows), *[1] * (1 + len(size))), value)

    return masks


def _laid_out(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """Returns images, (N, C, H, W), in a memory format; other ranks have none."""
    return tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor


def _pick(target: TargetType, examples: Tensor, numbers: list[int]) -> TargetType:
    """Returns the targets of the given examples; one target for all stays unchanged.

    ``numbers`` are ``examples`` on the host, where a list is picked from.
    """
    if isinstance(target, list):
        return [target[number] for number in numbers]
    if isinstance(target, Tensor):
        return target[examples.to(target.device)]
    return target
