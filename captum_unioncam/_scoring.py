"""Scores of many perturbed examples, such as masked inputs.

The engine knows maps, masks and scores, and no CAM formula. The perturbed examples go
through the model in chunks, and only scores are kept: memory depends on the size of a
chunk, not on the number of maps.
"""

import re
from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._baselines import Baselines, format_baselines
from captum_unioncam._captum import TargetType
from captum_unioncam._checks import (
    check_callable,
    check_integer,
    check_number,
    warn_user,
)
from captum_unioncam._chunks import chunk_size
from captum_unioncam._confidence import (
    ScoreFunc,
    check_scores,
    score_func_for,
    scores_at_target,
)
from captum_unioncam._forward import ModelCall
from captum_unioncam._layouts import equal_outputs, laid_out, memory_formats
from captum_unioncam._maps import blend, is_active, to_mask

# From examples, (P,), and columns of the maps, (P,), to the inputs of a forward pass.
Perturb = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
# From examples, (P,), columns, (P,), and the spatial size of an input to masks for it,
# (P, 1, *size).
MakeMasks = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
# From an input's number, its examples' values, (P, C, *size), examples, (P,), and
# columns, (P,), to what the model sees of it.
Change = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ScoringOptions:
    """The options that the methods which score share, checked once.

    Attributes:
        baselines: What a mask of 0 shows, in the forms of Captum's FeatureAblation.
        score_func (Callable, optional): From the output to scores, read at the target.
        max_channels (int, optional): The most channels of each example to score.
        fidelity (float): Estimated correlation with the exact map to reach.
        perturbations_per_eval (int, optional): Perturbed inputs for each example in one
            forward pass.
        progress (str, optional): Name of the progress bar to show on stderr.
        memory_format (torch.memory_format, optional): Of the perturbed images.
    """

    baselines: Baselines = None
    score_func: ScoreFunc | None = None
    max_channels: int | None = None
    fidelity: float = 1.0
    perturbations_per_eval: int | None = None
    progress: str | None = None
    memory_format: torch.memory_format | None = None

    def __post_init__(self) -> None:
        check_callable("score_func", self.score_func)
        check_integer("max_channels", self.max_channels, or_none=True)
        check_number("fidelity", self.fidelity, 0, 1)
        check_integer(
            "perturbations_per_eval", self.perturbations_per_eval, or_none=True
        )


class Scorer(ABC):
    """Scores perturbed examples, packed densely across the batch, in chunks.

    Each pair of an example and a column, such as a channel, costs one forward pass. The
    constructor of a subclass ends with :meth:`_score_references`, so that mistakes show
    before any perturbed pass.

    Args:
        call (ModelCall): The model and the batch.
        options (ScoringOptions): How to perturb and to score.
        device (torch.device): Where the perturbed inputs are.
        output (Tensor, optional): The model's output for the batch, from which its
            scores are decided. Default: None, which runs the model

    Attributes:
        options (ScoringOptions): How to perturb and to score.
        reference_scores (Tensor): The score of each example's reference, (N,).
        full_scores (Tensor): f_c(x), the score of each example unmasked, (N,).
    """

    reference_scores: Tensor
    full_scores: Tensor

    def __init__(
        self,
        call: ModelCall,
        options: ScoringOptions,
        device: torch.device,
        output: Tensor | None,
    ) -> None:
        self.options = options
        self._call = call
        self._inputs = call.inputs
        self._device = device
        given = options.perturbations_per_eval
        given = given and given * max(1, call.batch_size)
        self._chunk = chunk_size(call.forward_func, call.inputs, given)
        self._target = call.target
        if isinstance(self._target, Tensor) and self._target.numel() == 1:
            self._target = self._target.item()  # which Captum would read in each chunk
        if call.batch_size == 0:
            output = None
        elif output is None:
            output = call.run(call.cloned_inputs(), call.cloned_arguments())
        self._output = output

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
        scored = scores.new_empty(len(examples))
        for chunk, output, target in self._outputs(examples, columns, perturb):
            scored[chunk] = scores_at_target(output, self._score_func, target)
            if bar is not None:
                bar.update(len(output))
        scores[examples, columns] = scored
        return scores

    def _outputs(
        self, examples: Tensor, columns: Tensor, perturb: Perturb
    ) -> Iterator[tuple[slice, Tensor, TargetType]]:
        """Yields the model's output for each chunk of the pairs, and its targets.

        A chunk that does not fit the device's memory is halved.
        """
        numbers = examples.tolist()  # nothing in the loop waits for the device
        start, too_many = 0, 0
        while start < len(numbers):
            chunk = slice(start, start + self._chunk.now)
            rows = examples[chunk]
            started = self._chunk.clock(self._device, len(numbers) - start)
            try:
                # The inputs have no name, so that they are freed before the next chunk.
                output = self._call.run(
                    perturb(rows, columns[chunk]), self._call.arguments_of(rows)
                )
            except torch.cuda.OutOfMemoryError:
                if len(rows) == 1:
                    raise
            else:
                self._chunk.record(started, self._device)
                yield chunk, output, _pick(self._target, rows, numbers[chunk])
                start += len(rows)
                continue
            # The error's traceback, which held the chunk's tensors, is gone here.
            too_many = max(too_many, len(rows))
            self._chunk.halve(len(rows))
            torch.cuda.empty_cache()
        if too_many:
            warn_user(
                f"{too_many} perturbed inputs did not fit the device's memory "
                f"together; continued with {self._chunk.now}. Pass a smaller "
                "`perturbations_per_eval`."
            )

    def _lay_out(self, layout: torch.memory_format) -> None:
        """Brings the images among the inputs into a memory format."""
        self._layout = layout
        self._inputs = tuple(laid_out(inp, layout) for inp in self._inputs)

    def _score_references(self, columns: int, perturb: Perturb) -> Tensor:
        """Validates the scores, chooses a memory format, and scores the references.

        Args:
            columns (int): References of each example. The first is the example itself.
            perturb (Callable): Makes the inputs of a chunk of references.

        Returns:
            *Tensor*, their scores, (N, columns).
        """
        call, output = self._call, self._output
        self._output = None  # it may be large
        if output is None:
            return torch.zeros(0, columns, device=self._inputs[0].device)
        self._score_func = score_func_for(output, self.options.score_func)
        check_scores(output, self._score_func, call.target)
        if isinstance(call.target, list) and isinstance(call.target[0], int):
            # A list would be copied to the device for each chunk.
            self._target = torch.tensor(call.target, device=output.device)
        *fast, own = memory_formats(call.inputs, self.options.memory_format)
        for layout in fast:
            self._lay_out(layout)
            try:
                scores, same = self._scored_references(columns, perturb, output)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception:  # what the caller's own layout does not raise
                continue
            if same:
                return scores
        self._lay_out(own)
        with _naming_scalars(call):
            return self._scored_references(columns, perturb, output)[0]

    def _scored_references(
        self, columns: int, perturb: Perturb, whole: Tensor
    ) -> tuple[Tensor, bool]:
        """Returns the references' scores, (N, columns), and if the layout is harmless.

        It is where the first references have the outputs of the whole examples.
        """
        size, same, scores = len(whole), True, []
        pairs = torch.arange(size * columns, device=self._inputs[0].device)
        rows, columns_of = pairs % size, pairs // size  # the examples come in turn
        for chunk, output, target in self._outputs(rows, columns_of, perturb):
            expected = whole[chunk]  # none after the first column
            same = same and equal_outputs(output[: len(expected)], expected)
            scores.append(scores_at_target(output, self._score_func, target))
        return torch.cat(scores).view(columns, size).T, same


class MaskScorer(Scorer):
    """Scores masks for the examples of one call.

    Every input whose rank is ``dim`` is masked, each at its own size; the others pass
    unchanged. The constructor scores the whole examples and their baseline, f_c(Ib), in
    2 forward passes of the batch, and 1 more where ``output`` is not given.

    Args:
        call (ModelCall): The model and the batch.
        dim (int): Rank of the maps, (N, K, *spatial), and of the inputs to mask.
        options (ScoringOptions): How to mask and to score.
        output (Tensor, optional): The model's output for the batch. Default: None

    Raises:
        ValueError: If no input has the rank ``dim``, ``baselines`` do not fit the
            inputs, the model's output has not one row for each example, or
            ``score_func`` has not one value for each example at the target.
        AssertionError: If the target selects more than one value for each example.

    Attributes:
        reference_scores (Tensor): f_c(Ib) of each example, (N,).
        mask_sizes (list[tuple[int, ...]]): Spatial size of each masked input.
    """

    def __init__(
        self,
        call: ModelCall,
        dim: int,
        options: ScoringOptions,
        output: Tensor | None = None,
    ) -> None:
        masked = [inp for inp in call.inputs if inp.dim() == dim]
        if not masked:
            raise ValueError(
                f"`inputs` must hold a tensor of the layer's rank, {dim}, to mask, got "
                f"the shapes {[tuple(inp.shape) for inp in call.inputs]}; choose a "
                "layer whose spatial dimensions are the input's."
            )
        self.mask_sizes = [tuple(inp.shape[2:]) for inp in masked]
        self._baselines = format_baselines(options.baselines, call.inputs, dim)
        super().__init__(call, options, masked[0].device, output)

        def whole_or_hidden(
            rows: Tensor, columns: Tensor, size: Sequence[int]
        ) -> Tensor:
            shown = (columns == 0).float()  # (P,)
            return shown.view(-1, *[1] * (1 + len(size)))

        scores = self._score_references(2, self.masked_by(whole_or_hidden))
        self.full_scores, self.reference_scores = scores.unbind(1)

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

        def mask(number: int, picked: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
            shown = self._baselines[number]
            assert shown is not None
            if len(shown) > 1:
                shown = shown[rows.to(shown.device)]
            mask = masks(rows, columns, picked.shape[2:]).to(picked.device)
            return blend(picked, mask, shown)

        return self.changed_by(mask)

    def changed_by(self, change: Change) -> Perturb:
        """Returns how a change of the inputs that are masked perturbs the examples."""

        def perturb(rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
            inputs = []
            for number, inp in enumerate(self._inputs):
                picked = inp[rows.to(inp.device)]  # (P, C, *size)
                if self._baselines[number] is not None:
                    changed = change(number, picked, rows, columns)
                    picked = laid_out(changed, self._layout)
                inputs.append(picked)
            return tuple(inputs)

        return perturb

    def gains(self, maps: Tensor, bar: Any = None) -> Tensor:
        """Returns the score gain of each map, beta = f_c(L * I0) - f_c(Ib), (N, M).

        Hu et al. 2024, Eqs. 4, 5 and 7.
        """
        scores = self.score(is_active(maps), self.masking(maps), bar)
        return scores - self.reference_scores[:, None].to(maps.device)

    def _lay_out(self, layout: torch.memory_format) -> None:
        super()._lay_out(layout)
        self._baselines = tuple(
            None if baseline is None else laid_out(baseline, layout)
            for baseline in self._baselines
        )


@contextmanager
def _naming_scalars(call: ModelCall) -> Iterator[None]:
    """Names an argument of one element that was repeated where a number was meant."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # of Tensor.item, of float(tensor)
        single = [
            arg
            for arg in call.additional_forward_args or ()
            if isinstance(arg, Tensor) and arg.shape[:1] == (1,) and arg.numel() == 1
        ]
        if not single or not re.search("converted to (Python s|S)calar", f"{error}"):
            raise
        raise ValueError(
            "`additional_forward_args` has a tensor of one element for one example, "
            "which is repeated for each perturbed one; give a number, or a tensor "
            "without dimensions, for what all of them share."
        ) from error


def _pick(target: TargetType, examples: Tensor, numbers: list[int]) -> TargetType:
    """Returns the targets of the given examples; one target for all stays unchanged.

    ``numbers`` are ``examples`` on the host, where a list is picked from.
    """
    if isinstance(target, list):
        return [target[number] for number in numbers]
    if isinstance(target, Tensor):
        return target[examples.to(target.device)]
    return target
