"""Confidences of many perturbed examples: masked inputs, or replaced activations.

The engine knows maps, masks and scores, and no CAM formula. The perturbed examples go
through the model in chunks, and only scores are kept: memory depends on the size of a
chunk, not on the number of maps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._captum import (
    LayerCall,
    ModelCall,
    TargetType,
    expand_target,
    progress_bar,
    select_targets,
    warn_user,
)
from captum_unioncam._maps import (
    at_least_float32,
    blend,
    gaussian_blur,
    is_flat,
    to_mask,
)

ScoreFunc = Callable[[Tensor], Tensor]
MaskVariant = Callable[[Tensor], Tensor]
Baselines = Tensor | int | float | tuple[Tensor | int | float, ...] | None

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

# How far from 1 the sum of an output's probabilities may be.
PROBABILITY_TOLERANCE = 1e-4


def confidence(output: Tensor) -> Tensor:
    """Turns a model's output into confidences: the default ``score_func``.

    Softmax over dimension 1 if that is a class dimension (larger than 1), else the
    output itself. Examples whose dimension 1 holds probabilities already (non-negative,
    with a sum of 1 to within 1e-4, or the resolution of a coarser type) are taken as
    they are.
    """
    if output.dim() < 2 or output.shape[1] == 1:
        return output
    values = at_least_float32(output)
    tolerance = PROBABILITY_TOLERANCE
    if output.dtype.is_floating_point:
        tolerance = max(tolerance, torch.finfo(output.dtype).eps)
    off_one = (values.sum(1, keepdim=True) - 1).abs()
    probabilities = ((values >= 0) & (off_one <= tolerance)).flatten(1).all(1)
    per_example = probabilities.view(-1, *[1] * (values.dim() - 1))
    return torch.where(per_example, values, values.softmax(1))


class _PairScorer(ABC):
    """Scores perturbed examples, packed densely across the batch, in chunks.

    Each pair of an example and a column, such as a channel, costs one forward pass. The
    constructor of a subclass ends with :meth:`_score_reference`, so that mistakes show
    before any perturbed pass.

    Attributes:
        reference_scores (Tensor): The score of each example's reference, (N,).
    """

    reference_scores: Tensor

    def __init__(
        self,
        call: ModelCall,
        score_func: ScoreFunc | None,
        perturbations_per_eval: int | None,
        device: torch.device,
    ) -> None:
        self._call = call
        self._inputs = call.inputs
        self._score_func = confidence if score_func is None else score_func
        if perturbations_per_eval is None:
            self._chunk = CPU_CHUNK if device.type == "cpu" else ACCELERATOR_CHUNK
        else:
            self._chunk = perturbations_per_eval * call.batch_size
        self._target = call.target
        if isinstance(self._target, Tensor) and self._target.numel() == 1:
            self._target = self._target.item()  # which Captum would ask of each chunk

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
        # A single example goes twice where perturbed ones will go together, to see that
        # the output grows with the batch.
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
        self._check_scores(output, target)
        if isinstance(call.target, list) and isinstance(call.target[0], int):
            # A list would be copied to the device for each chunk.
            self._target = torch.tensor(call.target, device=output.device)
        return self._scores_at_target(output, target)[:size]

    def _score_pairs(
        self,
        keep: Tensor,
        perturbed_output: Callable[[Tensor, Tensor, int], Tensor],
        description: str | None,
        rounds: int = 1,
    ) -> Tensor:
        """Returns the mean score of each pair over the rounds, (N, M).

        Args:
            keep (Tensor): Which pairs to score, bool, (N, M). The others get the
                reference's score.
            perturbed_output (Callable): Runs the model on P pairs, given by examples,
                (P,), columns, (P,), and the number of the round.
            description (str, optional): Shows a progress bar of this name.
            rounds (int, optional): How often to score each pair. Default: 1
        """
        scores = self.reference_scores[:, None].repeat(1, keep.shape[1]).to(keep.device)
        examples, columns = keep.nonzero(as_tuple=True)
        numbers = examples.tolist()  # nothing in the loop waits for the device
        totals = scores.new_zeros(len(numbers))
        first_chunk = self._chunk
        with progress_bar(description, rounds * len(numbers)) as bar:
            for turn in range(rounds):
                start = 0
                while start < len(numbers):
                    chunk = slice(start, start + self._chunk)
                    rows = examples[chunk]
                    target = _pick(self._target, rows, numbers[chunk])
                    run = partial(perturbed_output, rows, columns[chunk], turn)
                    picked = self._score_chunk(run, target, alone=len(rows) == 1)
                    if picked is None:
                        self._chunk = len(rows) // 2
                        torch.cuda.empty_cache()
                        continue
                    totals[chunk] += picked.to(totals)
                    bar.update(len(picked))
                    start += len(picked)
        if self._chunk < first_chunk:
            self._warn_of_memory(first_chunk, self._chunk)
        scores[examples, columns] = totals / rounds
        return scores

    def _score_chunk(
        self, run: Callable[[], Tensor], target: TargetType, alone: bool
    ) -> Tensor | None:
        """Scores a chunk; returns None if memory is too small for more than one."""
        try:
            return self._scores_at_target(run(), target)
        except torch.cuda.OutOfMemoryError:
            if alone:
                raise
            return None  # with the exception go the tensors that its traceback holds

    def _warn_of_memory(self, first_chunk: int, chunk: int) -> None:
        warn_user(
            f"{first_chunk} perturbed inputs did not fit the device's memory together; "
            f"went on with {chunk}. Pass a smaller `perturbations_per_eval`."
        )

    def _picked_arguments(self, examples: Tensor) -> tuple[Any, ...] | None:
        """Returns the additional arguments of the given examples."""
        args = self._call.additional_forward_args
        if args is None:
            return None
        size = self._call.batch_size
        return tuple(_pick_argument(arg, examples, size) for arg in args)

    def _scores_at_target(self, output: Tensor, target: TargetType) -> Tensor:
        """Returns the confidence of each row of a model's output, (P,)."""
        scores = select_targets(self._score_func(output), target)
        return at_least_float32(scores).reshape(-1)

    def _check_scores(self, output: Tensor, target: TargetType) -> None:
        """Refuses scores without one value for each row at the target."""
        rows, scores = len(output), self._score_func(output)
        if not isinstance(scores, Tensor):
            raise TypeError(
                f"`score_func` must return a Tensor, got a {type(scores).__name__}."
            )
        try:
            shape = tuple(select_targets(scores, target).shape)
        except (AssertionError, IndexError, RuntimeError) as error:
            select_targets(output, target)  # raises Captum's error for a wrong target
            raise self._score_func_error(scores, f"{error}") from error
        if shape not in ((rows,), (rows, 1)):
            # The type and the text that Captum's gradient methods have for this.
            assert scores.shape != output.shape, (
                "Target not provided when necessary, cannot score multiple outputs: "
                f"`target` {target} leaves {shape} for {rows} examples."
            )
            raise self._score_func_error(scores, f"{shape} at the target")

    def _score_func_error(self, scores: Tensor, reason: str) -> ValueError:
        return ValueError(
            "`score_func` must return one value for each example at `target`, got the "
            f"shape {tuple(scores.shape)} ({reason}); keep the output's shape, as "
            "torch.sigmoid does."
        )


class MaskScorer(_PairScorer):
    """Scores masks for the examples of one call.

    Every input whose rank is ``dim`` is masked, each at its own size; the others pass
    unchanged. The constructor validates the options and scores the baseline, f_c(Ib),
    in one forward pass, so that mistakes show before any masked pass.

    Args:
        call (ModelCall): The model and the batch.
        dim (int): Rank of the maps, (N, K, *spatial), and of the inputs to mask.
        baselines: What a mask of 0 shows, in the forms of Captum's FeatureAblation.
        score_func (Callable, optional): From the output to scores, read at the target.
        perturbations_per_eval (int, optional): Masks per example in one forward pass.

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
        baselines: Baselines = None,
        score_func: ScoreFunc | None = None,
        perturbations_per_eval: int | None = None,
    ) -> None:
        masked = [inp for inp in call.inputs if inp.dim() == dim]
        if not masked:
            raise ValueError(
                f"`inputs` must hold a tensor of the layer's rank, {dim}, to mask, got "
                f"the shapes {[tuple(inp.shape) for inp in call.inputs]}; choose a "
                "layer whose spatial dimensions are the input's."
            )
        super().__init__(call, score_func, perturbations_per_eval, masked[0].device)
        self.mask_sizes = [tuple(inp.shape[2:]) for inp in masked]
        self._baselines = format_baselines(baselines, call.inputs, dim)
        self._score_reference()

    @property
    def mask_size(self) -> tuple[int, ...]:
        """Spatial size of the first masked input."""
        return self.mask_sizes[0]

    def _lay_out(self, layout: torch.memory_format) -> None:
        super()._lay_out(layout)
        self._baselines = tuple(
            None if baseline is None else _laid_out(baseline, layout)
            for baseline in self._baselines
        )

    def score(
        self,
        maps: Tensor,
        keep: Tensor,
        description: str | None = None,
        variants: Sequence[MaskVariant] = (lambda mask: mask,),
    ) -> Tensor:
        """Returns the score of each map as a mask on its example, (N, M).

        Cost: one forward pass for each map that is kept and each variant, in chunks.

        Args:
            maps (Tensor): Maps of any scale, (N, M, *spatial).
            keep (Tensor): Which maps to score, bool, (N, M). The others get the
                baseline score, which is exact for flat maps: their mask is all zeros.
            description (str, optional): Shows a progress bar of this name.
            variants (Sequence[Callable], optional): What to make of each mask, (P, 1,
                *size), before it is laid on; the scores are averaged over them.
                Default: the mask itself
        """

        def masks(
            rows: Tensor, columns: Tensor, turn: int, size: Sequence[int]
        ) -> Tensor:
            return variants[turn](to_mask(maps[rows, columns].unsqueeze(1), size))

        return self.score_masks(keep, masks, description, len(variants))

    def score_masks(
        self,
        keep: Tensor,
        masks: Callable[[Tensor, Tensor, int, Sequence[int]], Tensor],
        description: str | None = None,
        rounds: int = 1,
    ) -> Tensor:
        """Returns the mean score of masks that are made when they are needed, (N, M).

        Args:
            keep (Tensor): Which masks to score, bool, (N, M).
            masks (Callable): From examples, (P,), columns, (P,), the number of the
                round and the size of an input to masks for it, (P, 1, *size).
            description (str, optional): Shows a progress bar of this name.
            rounds (int, optional): How often to score each mask. Default: 1
        """

        def masked_output(rows: Tensor, columns: Tensor, turn: int) -> Tensor:
            return self._masked_output(rows, partial(masks, rows, columns, turn))

        return self._score_pairs(keep, masked_output, description, rounds)

    def gains(self, maps: Tensor, description: str | None = None) -> Tensor:
        """Returns the score contribution of each map, f_c(mask) - f_c(Ib), (N, M)."""
        keep = ~is_flat(maps) & maps.isfinite().flatten(1).all(1, keepdim=True)
        scores = self.score(maps, keep, description)
        return scores - self.reference_scores[:, None].to(maps.device)

    def full_scores(self) -> Tensor:
        """Returns f_c(x), the score of each example unmasked, (N,)."""
        every = torch.ones(self._call.batch_size, 1, dtype=torch.bool)

        def whole(
            rows: Tensor, columns: Tensor, turn: int, size: Sequence[int]
        ) -> Tensor:
            return torch.ones(len(rows), *[1] * (1 + len(size)))

        return self.score_masks(every, whole)[:, 0]

    def _reference_output(self, examples: Tensor) -> Tensor:
        shape = (len(examples), *[1] * (1 + len(self.mask_size)))
        return self._masked_output(examples, lambda size: torch.zeros(shape))

    def _masked_output(
        self, examples: Tensor, mask: Callable[[Sequence[int]], Tensor]
    ) -> Tensor:
        """Runs the model on examples, under masks, (P, 1, *size), for a size."""
        inputs = []
        for inp, baseline in zip(self._inputs, self._baselines, strict=True):
            rows = examples.to(inp.device)
            picked = inp[rows]
            if baseline is not None:
                shown = baseline if len(baseline) == 1 else baseline[rows]
                masks = mask(inp.shape[2:]).to(inp.device)
                picked = _laid_out(blend(picked, masks, shown), self._layout)
            inputs.append(picked)
        return self._call.run(tuple(inputs), self._picked_arguments(examples))


def blurred(
    inputs: tuple[Tensor, ...], dim: int, sigma: float, radius: int
) -> Baselines:
    """Returns baselines: blurred copies of the inputs of a rank, 0 for the others."""
    return tuple(
        gaussian_blur(inp, sigma, radius) if inp.dim() == dim else 0 for inp in inputs
    )


class ActivationScorer(_PairScorer):
    """Scores what the model says when a tensor of its layer is replaced.

    The constructor scores the examples as they are, f_c(x), in one forward pass.

    Args:
        call (LayerCall): The model, its layer and the batch.
        activations (Tensor): The tensor of the layer to replace, (N, K, *spatial).
        place (int): Which of the layer's tensors it is.
        score_func (Callable, optional): From the output to scores, read at the target.
        perturbations_per_eval (int, optional): Replacements per example in one pass.

    Raises:
        ValueError: As :class:`MaskScorer`.

    Attributes:
        reference_scores (Tensor): f_c(x) of each example, (N,).
    """

    def __init__(
        self,
        call: LayerCall,
        activations: Tensor,
        place: int,
        score_func: ScoreFunc | None = None,
        perturbations_per_eval: int | None = None,
    ) -> None:
        super().__init__(call, score_func, perturbations_per_eval, activations.device)
        self._layer_call = call
        self._activations, self._place = activations, place
        self._runs = 1
        self._score_reference()

    def score(
        self,
        keep: Tensor,
        edit: Callable[[Tensor, Tensor], Tensor],
        description: str | None = None,
    ) -> Tensor:
        """Returns the score of each edit of the layer's tensor, (N, M).

        Cost: one forward pass for each edit that is kept, in chunks.

        Args:
            keep (Tensor): Which edits to score, bool, (N, M). The others get f_c(x).
            edit (Callable): From copies of the layer's tensor, (P, K, *spatial), and
                the columns of ``keep``, (P,), to what takes their place.
            description (str, optional): Shows a progress bar of this name.
        """

        def edited_output(rows: Tensor, columns: Tensor, turn: int) -> Tensor:
            replacement = edit(self._activations[rows], columns)
            return self._layer_call.run_replacing(
                self._picked_inputs(rows),
                self._picked_arguments(rows),
                self._place,
                replacement,
                self._runs,
            )

        return self._score_pairs(keep, edited_output, description)

    def _reference_output(self, examples: Tensor) -> Tensor:
        output, self._runs = self._layer_call.run_counting(
            self._picked_inputs(examples), self._picked_arguments(examples)
        )
        return output

    def _picked_inputs(self, examples: Tensor) -> tuple[Tensor, ...]:
        picked = (inp[examples.to(inp.device)] for inp in self._inputs)
        return tuple(_laid_out(inp, self._layout) for inp in picked)


def _laid_out(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """Returns images, (N, C, H, W), in a memory format; other ranks have none."""
    return tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor


def format_baselines(
    baselines: Baselines, inputs: tuple[Tensor, ...], dim: int
) -> tuple[Tensor | None, ...]:
    """Returns a baseline for each input, or None where none is masked.

    A baseline has its input's rank, and one row for each example, or one for all.
    """
    if baselines is None:
        baselines = (0,) * len(inputs)
    elif not isinstance(baselines, tuple):
        baselines = (baselines,)
    if len(baselines) != len(inputs):
        raise ValueError(
            "`baselines` must have one entry for each input: expected "
            f"{len(inputs)}, got {len(baselines)}; pass a tuple (the entries of inputs "
            "that are not masked are not used)."
        )
    formatted: list[Tensor | None] = []
    for baseline, inp in zip(baselines, inputs, strict=True):
        if not isinstance(baseline, Tensor | int | float):
            raise TypeError(
                "`baselines` must be a Tensor, a number, or a tuple of them, got a "
                f"{type(baseline).__name__}."
            )
        if inp.dim() != dim:
            formatted.append(None)
            continue
        dtype = torch.promote_types(inp.dtype, torch.float32)
        values = torch.as_tensor(baseline, dtype=dtype, device=inp.device)
        shape = tuple(values.shape) or (1,) * dim
        fits = len(shape) == dim and all(
            length in (1, whole) for length, whole in zip(shape, inp.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                "`baselines` must have the rank of their input and broadcast to it: "
                f"expected a shape such as {(1, *inp.shape[1:])}, got {shape}."
            )
        formatted.append(values.view(shape))
    return tuple(formatted)


def _pick(target: TargetType, examples: Tensor, numbers: list[int]) -> TargetType:
    """Returns the targets of the given examples; one target for all stays as it is.

    ``numbers`` are ``examples`` on the host, where a list is picked from.
    """
    if isinstance(target, list):
        return [target[number] for number in numbers]
    if isinstance(target, Tensor):
        return target[examples.to(target.device)]
    return target


def _pick_argument(argument: Any, examples: Tensor, batch_size: int) -> Any:
    """Returns the rows of the given examples, for a tensor with one row for each.

    Any other argument (a number, None, a list, a tensor of another length) goes to the
    model whole, in every chunk. Tensors are copies, because a model may change them in
    place.
    """
    if not isinstance(argument, Tensor):
        return argument
    if argument.dim() and argument.shape[0] == batch_size:
        return argument[examples.to(argument.device)]
    return argument.clone()
