"""Confidences of many masked inputs.

The engine knows maps, masks and scores, and no CAM formula. Each map masks its
example's inputs, the masked inputs go through the model in chunks, and only scores are
kept: memory depends on the size of a chunk, not on the number of maps.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._captum import (
    LayerCall,
    TargetType,
    expand_target,
    progress_bar,
    select_targets,
    warn_user,
)
from captum_unioncam._maps import at_least_float32, blend, is_flat, to_mask

ScoreFunc = Callable[[Tensor], Tensor]
Baselines = Tensor | int | float | tuple[Tensor | int | float, ...] | None

# Masked inputs in one forward pass. On a CPU, batches of two to eight ran about twice
# as fast for each image as batches of 64. Six were best for a light net and near the
# best for heavy ones: at eight, some activations of 224 x 224 images pass the 32 MiB
# above which glibc takes every buffer anew from the system. An accelerator needs more
# to be busy.
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


class MaskScorer:
    """Scores masks for the examples of one call.

    Every input whose rank is ``dim`` is masked, each at its own size; the others pass
    unchanged. The constructor validates the options and scores the baseline, f_c(Ib),
    in one forward pass, so that mistakes show before any masked pass.

    Args:
        call (LayerCall): The model and the batch.
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
        baseline_scores (Tensor): f_c(Ib) of each example, (N,).
        mask_size (tuple[int, ...]): Spatial size of the first masked input.
    """

    def __init__(
        self,
        call: LayerCall,
        dim: int,
        baselines: Baselines = None,
        score_func: ScoreFunc | None = None,
        perturbations_per_eval: int | None = None,
    ) -> None:
        self._call = call
        self._score_func = confidence if score_func is None else score_func
        masked = [inp for inp in call.inputs if inp.dim() == dim]
        if not masked:
            raise ValueError(
                f"`inputs` must hold a tensor of the layer's rank, {dim}, to mask, got "
                f"the shapes {[tuple(inp.shape) for inp in call.inputs]}; choose a "
                "layer whose spatial dimensions are the input's."
            )
        self.mask_size = tuple(masked[0].shape[2:])
        self._inputs = call.inputs
        self._baselines = _format_baselines(baselines, call.inputs, dim)
        if perturbations_per_eval is None:
            on_cpu = masked[0].device.type == "cpu"
            self._chunk = CPU_CHUNK if on_cpu else ACCELERATOR_CHUNK
        else:
            self._chunk = perturbations_per_eval * call.batch_size
        # Two-dimensional convolutions run fastest on channels_last images, and no other
        # model that was measured runs slower.
        self._lay_out(torch.channels_last)
        try:
            self.baseline_scores = self._score_baseline()
        except RuntimeError as error:
            if VIEW_ERROR not in str(error):
                raise
            self._lay_out(torch.contiguous_format)
            self.baseline_scores = self._score_baseline()
        self._target = call.target
        if isinstance(self._target, Tensor) and self._target.numel() == 1:
            self._target = self._target.item()  # which Captum would ask of each chunk

    def _lay_out(self, layout: torch.memory_format) -> None:
        """Brings the masked images, of four dimensions, into a memory format."""
        self._layout = layout
        pairs = tuple(zip(self._inputs, self._baselines, strict=True))
        self._inputs = tuple(
            inp if baseline is None else _laid_out(inp, layout)
            for inp, baseline in pairs
        )
        self._baselines = tuple(
            None if baseline is None else _laid_out(baseline, layout)
            for _, baseline in pairs
        )

    def score(
        self, maps: Tensor, keep: Tensor, description: str | None = None
    ) -> Tensor:
        """Returns the score of each map as a mask on its example, (N, M).

        Cost: one forward pass for each map that is kept, in chunks.

        Args:
            maps (Tensor): Maps of any scale, (N, M, *spatial).
            keep (Tensor): Which maps to score, bool, (N, M). The others get the
                baseline score, which is exact for flat maps: their mask is all zeros.
            description (str, optional): Shows a progress bar of this name.
        """
        scores = self.baseline_scores[:, None].repeat(1, maps.shape[1]).to(maps.device)
        examples, columns = keep.nonzero(as_tuple=True)
        numbers = examples.tolist()  # nothing in the loop waits for the device
        start, first_chunk = 0, self._chunk
        with progress_bar(description, len(numbers)) as bar:
            while start < len(numbers):
                chunk = slice(start, start + self._chunk)
                places = examples[chunk], columns[chunk]
                target = _pick(self._target, places[0], numbers[chunk])
                picked = self._score_chunk(maps[places], places[0], target)
                if picked is None:
                    self._chunk = len(places[0]) // 2
                    torch.cuda.empty_cache()
                    continue
                scores[places] = picked.to(maps.device)
                bar.update(len(picked))
                start += len(picked)
        if self._chunk < first_chunk:
            self._warn_of_memory(first_chunk, self._chunk)
        return scores

    def _score_chunk(
        self, maps: Tensor, examples: Tensor, target: TargetType
    ) -> Tensor | None:
        """Scores maps, (P, *spatial); returns None if memory is too small for them."""
        try:
            output = self._output(maps.unsqueeze(1), examples)
            return self._scores_at_target(output, target)
        except torch.cuda.OutOfMemoryError:
            if len(maps) == 1:
                raise
            return None  # with the exception go the tensors that its traceback holds

    def _warn_of_memory(self, first_chunk: int, chunk: int) -> None:
        warn_user(
            f"{first_chunk} masked inputs did not fit the device's memory together; "
            f"went on with {chunk}. Pass a smaller `perturbations_per_eval`."
        )

    def gains(self, maps: Tensor) -> Tensor:
        """Returns the score contribution of each map, f_c(mask) - f_c(Ib), (N, M)."""
        keep = ~is_flat(maps) & maps.isfinite().flatten(1).all(1, keepdim=True)
        scores = self.score(maps, keep)
        return scores - self.baseline_scores[:, None].to(maps.device)

    def _score_baseline(self) -> Tensor:
        """Scores the all-zero mask for each example, and validates the output."""
        call, size = self._call, self._call.batch_size
        if size == 0:
            return torch.zeros(0)
        # A single example goes twice where masks will go together, to see that the
        # output grows with the batch.
        repeats = 2 if size == 1 and self._chunk > 1 else 1
        target = expand_target(call.target, repeats)
        try:
            output = self._output(None, torch.arange(size).repeat(repeats))
        except torch.cuda.OutOfMemoryError:
            if repeats == 1:
                raise
            output = None
        if output is None:
            self._warn_of_memory(self._chunk, 1)
            self._chunk = 1
            return self._score_baseline()
        self._check_scores(output, target)
        return self._scores_at_target(output, target)[:size]

    def _output(self, maps: Tensor | None, examples: Tensor) -> Tensor:
        """Runs the model on the examples masked by one map each; None masks all."""
        call = self._call
        inputs = []
        for inp, baseline in zip(self._inputs, self._baselines, strict=True):
            rows = examples.to(inp.device)
            picked = inp[rows]
            if baseline is not None:
                mask = torch.zeros(len(rows), *[1] * (inp.dim() - 1), device=inp.device)
                if maps is not None:
                    mask = to_mask(maps, inp.shape[2:]).to(inp.device)
                shown = baseline if len(baseline) == 1 else baseline[rows]
                picked = _laid_out(blend(picked, mask, shown), self._layout)
            inputs.append(picked)
        args = call.additional_forward_args
        if args is not None:
            args = tuple(_pick_argument(arg, examples, call.batch_size) for arg in args)
        return call.run(tuple(inputs), args)

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


def _laid_out(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """Returns images, (N, C, H, W), in a memory format; other ranks have none."""
    return tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor


def _format_baselines(
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
