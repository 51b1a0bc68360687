"""RISE: the confidence under random masks of the input."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum.attr import PerturbationAttribution
from torch import Tensor

from captum_unioncam._baselines import Baselines
from captum_unioncam._captum import TargetType, attribution_method, progress_bar
from captum_unioncam._checks import check_instance, check_integer, check_number
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam._forward import ModelCall
from captum_unioncam._maps import upsample
from captum_unioncam._scoring import MaskScorer, ScoringOptions
from captum_unioncam.attr._base import MapAttribution, nan_unless_finite

NUM_MASKS = 4000
GRID = 7
PROBABILITY = 0.5
# Masks that are held at once while they are summed.
SUMMED = 64


class RISE(MapAttribution, PerturbationAttribution):
    r"""Shows the regions of the input that random masks tell to matter.

    Each mask is a coarse grid of random cells, enlarged to soft blobs and shifted. The
    map is the mean of the masks under the scores of the masked inputs:

    .. math::
        S(p) = \frac{1}{n \, \rho} \sum_{i=1}^{n} f_c(x \odot M_i) \, M_i(p)

    where n is ``num_masks``, :math:`\rho` is ``probability``, that of a cell to be
    shown, x the input and :math:`f_c` the score, a confidence (see ``score_func``). It
    needs no layer: the map has the size of the input.

    Reference: Petsiuk, Das and Saenko, RISE, BMVC 2018, arXiv:1806.07421. A grid of s
    cells a side is resized to (s + 1) * ceil(side / s) linearly, and cropped at an
    offset smaller than a cell, as in the authors' code.

    Note: The defaults are those of the paper for VGG16, as remembered in public code;
    the authors' programs and others take 2,000 to 8,000 masks, 7 or 8 cells, and 0.1 or
    0.5.

    Note: All examples share the same masks, so that a map does not depend on the rest
    of its batch.

    Note: Call ``model.eval()`` first; the mode is not changed. In train mode every
    masked pass updates the running statistics of batch normalisation, and the score of
    an example depends on the others in its batch.

    Cost: 3 forward passes of the batch, and ``num_masks`` for each example. Masks are
    made when they are needed: memory depends on the size of a chunk.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        *,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        r"""
        Args:
            forward_func (Callable or torch.nn.Module): The model, or any function of
                the inputs that runs it.
            memory_format: See :class:`AblationCAM`.

        Raises:
            TypeError: If ``memory_format`` is not one.
        """
        PerturbationAttribution.__init__(self, forward_func)
        check_instance("memory_format", memory_format, torch.memory_format)
        self.memory_format = memory_format

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        num_masks: int = NUM_MASKS,
        grid: int = GRID,
        probability: float = PROBABILITY,
        generator: torch.Generator | None = None,
        baselines: Baselines = None,
        score_func: ScoreFunc | None = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        r"""
        Args:
            num_masks (int, optional): Random masks. Default: 4000
            grid (int, optional): Cells of a mask along each side. Default: 7
            probability (float, optional): Of a cell to be shown, in (0, 1]. Default:
                0.5
            generator (torch.Generator, optional): Draws the masks. The global generator
                is never used. Default: None, which is a new one with the seed 0 for
                each call, so that equal calls give equal maps

        All other arguments and errors are those of :meth:`ScoreCAM.attribute`. Of
        several inputs, those of the rank of the first are masked. A ``num_masks`` or
        ``grid`` that is not positive, or a ``probability`` outside (0, 1], is a
        ValueError.

        Returns:
            *Tensor* of **attributions**, (N, 1, *input_size), >= 0 for scores >= 0, not
            scaled, detached, of the type of the first input. An example whose scores
            are not finite is all NaN; such examples, and constant maps, give a warning
            that names them.

        Examples::

            >>> import torch
            >>> from captum_unioncam import RISE
            >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
            >>> maps = RISE(net).attribute(torch.rand(2, 3, 8, 8), target=1)
            >>> maps.shape
            torch.Size([2, 1, 8, 8])
        """
        check_integer("num_masks", num_masks)
        check_integer("grid", grid)
        check_number("probability", probability, 0, 1)
        if probability == 0:
            raise ValueError("`probability` must be above 0: every mask hides all.")
        check_instance("generator", generator, torch.Generator)
        options = ScoringOptions(
            baselines=baselines,
            score_func=score_func,
            perturbations_per_eval=perturbations_per_eval,
            progress=self.get_name() if show_progress else None,
            memory_format=self.memory_format,
        )
        call = ModelCall.prepare(
            self.forward_func, inputs, target, additional_forward_args
        )
        first = call.inputs[0]
        if not 3 <= first.dim() <= 5:
            raise ValueError(
                "`inputs` must start with a tensor (N, C, *spatial) with one to three "
                f"spatial dimensions, got {tuple(first.shape)}."
            )
        scorer = MaskScorer(call, first.dim(), options)
        masks = RandomMasks(num_masks, grid, first.dim() - 2, probability, generator)
        scores = self._scores(call, scorer, masks)  # (N, n)
        maps = masks.weighted_sum(scores, first.shape[2:]) / (num_masks * probability)
        return self._result(nan_unless_finite(maps[:, None], scores), first.dtype)

    def _scores(
        self, call: ModelCall, scorer: MaskScorer, masks: "RandomMasks"
    ) -> Tensor:
        """Returns the score of each example under each mask, (N, n)."""
        keep = torch.ones(
            call.batch_size, masks.count, dtype=torch.bool, device=call.inputs[0].device
        )

        def made(rows: Tensor, columns: Tensor, size: Sequence[int]) -> Tensor:
            return masks.of(columns, size)

        with progress_bar(scorer.options.progress, keep.numel()) as bar:
            return scorer.score(keep, scorer.masked_by(made), bar)


class RandomMasks:
    """Random masks in [0, 1], which are kept as coarse grids and made when needed.

    Args:
        count (int): How many.
        grid (int): Cells along each side.
        rank (int): Spatial dimensions.
        probability (float): Of a cell to be 1, else 0.
        generator (torch.Generator, optional): Draws them. Default: None, which is a new
            one with the seed 0
    """

    def __init__(
        self,
        count: int,
        grid: int,
        rank: int,
        probability: float,
        generator: torch.Generator | None,
    ) -> None:
        generator = generator or torch.Generator(device="cpu").manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.rand(
                shape,
                generator=generator,
                device=generator.device,
                dtype=torch.float32,
            )

        self.count = count
        self._grids = (drawn(count, 1, *[grid] * rank) < probability).float()
        self._shifts = drawn(count, rank)

    def of(self, numbers: Tensor, size: Sequence[int]) -> Tensor:
        """Returns some of the masks at a size, (P, 1, *size), on their device."""
        device = numbers.device
        grids = self._grids.to(device)[numbers]
        shifts = self._shifts.to(device)[numbers]  # (P, rank), in [0, 1)
        cells = [math.ceil(side / grids.shape[2]) for side in size]
        enlarged = [(grids.shape[2] + 1) * cell for cell in cells]
        masks = upsample(grids, enlarged)
        for dim, (side, cell) in enumerate(zip(size, cells, strict=True)):
            start = (shifts[:, dim] * cell).long()  # (P,)
            places = start[:, None] + torch.arange(side, device=device)  # (P, side)
            shape = [len(places), 1, *[1] * len(size)]
            shape[2 + dim] = side
            masks = torch.take_along_dim(masks, places.view(shape), 2 + dim)
        return masks

    def weighted_sum(self, weights: Tensor, size: Sequence[int]) -> Tensor:
        """Returns the sum of all masks under weights, (N, n), as (N, *size)."""
        total = weights.new_zeros(len(weights), *size)
        for start in range(0, self.count, SUMMED):
            stop = min(start + SUMMED, self.count)
            numbers = torch.arange(start, stop, device=weights.device)
            masks = self.of(numbers, size).flatten(1).to(weights)  # (m, positions)
            # Not a matrix product, which autocast would run in half precision.
            with torch.autocast(weights.device.type, enabled=False):
                total += (weights[:, start:stop] @ masks).view_as(total)
        return total
