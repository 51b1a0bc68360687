"""Whether the map foretells how much the score drops when parts of the input go."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._baselines import Baselines
from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._checks import check_instance, check_integer
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam._forward import ModelCall
from captum_unioncam._maps import checked_maps, is_active, upsample
from captum_unioncam._scoring import MaskScorer, ScoringOptions
from captum_unioncam.metrics.coherence import mask_size

GRID = 9
NUM_SAMPLES = 200
# Share of the cells in a subset, where its size is not given.
SHARE = 0.2

# Values that differ by less than this many roundings are equal.
ROUNDINGS = 8


@attribution_method
def mu_fidelity(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor,
    target: TargetType = None,
    baselines: Baselines = None,
    additional_forward_args: object = None,
    *,
    grid: int | None = GRID,
    subset_size: int | None = None,
    num_samples: int = NUM_SAMPLES,
    generator: torch.Generator | None = None,
    score_func: ScoreFunc | None = None,
    perturbations_per_eval: int | None = None,
) -> Tensor:
    r"""Returns the correlation of the map's sums with the drops of the score.

    .. math:: \rho_S \Big( \sum_{i \in S} L_i, \;
        f_c(I_0) - f_c(I_0 \text{ with } I_b \text{ in } S) \Big)

    over random subsets S of the cells of a grid, where :math:`\rho` is Pearson's
    correlation, L is the map at the input's size, and :math:`I_b` is the baseline. More
    is better, from -1 to 1.

    Reference: Bhatt, Weller and Moura, Evaluating and Aggregating Feature-based Model
    Explanations (faithfulness correlation), IJCAI 2020, arXiv:2005.00631.

    Note: The paper's subsets are of pixels, ``grid=None``. Few of an image's pixels say
    little, so that the default is a grid of 9 x 9 cells, as in Xplique. Xplique puts
    each cell in a subset by chance, so that their sizes differ, and takes Spearman's
    correlation.

    Note: All examples share the subsets, so that a value does not depend on the batch.

    Cost: ``num_samples`` + 3 forward passes of the batch, in chunks.

    Args:
        forward_func (Callable or torch.nn.Module): The model, or any function of the
            inputs that runs it.
        inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first. Every input of
            the map's rank loses the same cells, at its own size, in all channels.
        attributions (Tensor): A map for each example, (N, 1, *size), of the layer's or
            the input's size and of any scale; it is resized to the first input of its
            rank.
        target (int, tuple, Tensor or list, optional): Output index, in the forms of
            :meth:`captum.attr.LayerGradCam.attribute`. Default: None
        baselines (Tensor, int, float, or tuple of them, optional): What a cell of a
            subset shows. Default: None, which is 0
        additional_forward_args (Any, optional): Further arguments of the model.
            Default: None
        grid (int, optional): Cells along each dimension of the input, and no more than
            it has pixels. None is a cell for each pixel. Default: 9
        subset_size (int, optional): Cells in each subset. Default: None, which is a
            fifth of the cells, rounded, and at least 1
        num_samples (int, optional): Subsets, at least 2. Default: 200
        generator (torch.Generator, optional): Draws the subsets. The global generator
            is never used. Default: None, which is a new one with the seed 0 for each
            call
        score_func (Callable, optional): From the output to scores of the same shape.
            Default: None, which is softmax, as in :class:`.UnionCAM`
        perturbations_per_eval (int, optional): Subsets for each example in one forward
            pass; the result does not depend on it. Default: None

    Returns:
        *Tensor*, (N,), in [-1, 1], 0 for a constant map, and where all sums or all
        drops are equal but for rounding, NaN where the map is not finite.

    Raises:
        TypeError: If ``grid``, ``subset_size`` or ``num_samples`` are no integers,
            ``generator`` is none, or as in :meth:`.ScoreCAM.attribute`.
        ValueError: If ``attributions`` are not (N, 1, *size), ``grid`` is not positive,
            ``subset_size`` is not from 1 to the number of cells, ``num_samples`` is
            below 2, or as in :meth:`.ScoreCAM.attribute`.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics import mu_fidelity
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2))
        >>> maps = torch.rand(3, 1, 4, 4)
        >>> mu_fidelity(net, torch.rand(3, 1, 8, 8), maps, target=1, grid=4).shape
        torch.Size([3])
    """
    check_integer("grid", grid, or_none=True)
    check_integer("num_samples", num_samples, 2)
    check_instance("generator", generator, torch.Generator)
    call = ModelCall.prepare(forward_func, inputs, target, additional_forward_args)
    maps = checked_maps(attributions, call.batch_size)
    generators = [generator or torch.Generator("cpu").manual_seed(0)]
    subsets = Subsets.drawn(
        mask_size(call.inputs, maps), generators, grid, subset_size, num_samples
    )
    options = ScoringOptions(
        baselines=baselines,
        score_func=score_func,
        perturbations_per_eval=perturbations_per_eval,
    )
    return fidelities(MaskScorer(call, maps.dim(), options), maps, subsets)


@dataclass(frozen=True)
class Subsets:
    """Random subsets of the cells of a grid over the input.

    Attributes:
        grid (tuple[int, ...]): Cells along each spatial dimension.
        members (Tensor): The cells of each subset, (N or 1, samples, cells).
    """

    grid: tuple[int, ...]
    members: Tensor

    @classmethod
    def drawn(
        cls,
        size: Sequence[int],
        generators: Sequence[torch.Generator],
        grid: int | None = GRID,
        subset_size: int | None = None,
        num_samples: int = NUM_SAMPLES,
    ) -> "Subsets":
        """Draws subsets for each example, or for all by one generator.

        Raises:
            TypeError: If ``subset_size`` is no integer.
            ValueError: If it is not from 1 to the number of cells.
        """
        shape = tuple(length if grid is None else min(grid, length) for length in size)
        cells = math.prod(shape)
        check_integer("subset_size", subset_size, 1, cells, or_none=True)
        if subset_size is None:
            subset_size = max(1, round(SHARE * cells))
        members = [
            torch.randperm(cells, generator=g, device=g.device)[:subset_size].cpu()
            for g in generators
            for _ in range(num_samples)
        ]
        drawn = torch.stack(members).view(len(generators), num_samples, subset_size)
        return cls(shape, drawn)

    @property
    def samples(self) -> int:
        """The number of subsets for each example."""
        return self.members.shape[1]

    def hidden(self, rows: Tensor, columns: Tensor, size: Sequence[int]) -> Tensor:
        """Returns which pixels are in subsets of some examples, bool, (P, pixels)."""
        members = self.members.to(rows.device)
        of = rows if len(members) > 1 else torch.zeros_like(rows)
        cells = members.new_zeros(len(rows), math.prod(self.grid), dtype=torch.bool)
        cells.scatter_(1, members[of, columns], True)
        return cells[:, self._cells(size).to(rows.device)]

    def _cells(self, size: Sequence[int]) -> Tensor:
        """Returns the cell of each pixel of an input, (pixels,)."""
        cells = torch.zeros(1, dtype=torch.long, device="cpu")
        for length, count in zip(size, self.grid, strict=True):
            along = torch.arange(length, device="cpu") * count // length
            cells = (cells[:, None] * count + along).flatten()
        return cells


def fidelities(scorer: MaskScorer, maps: Tensor, subsets: Subsets) -> Tensor:
    """Returns the correlation over the subsets for each example, (N,).

    Cost: 1 forward pass of the batch for each subset.
    """

    def masks(rows: Tensor, columns: Tensor, size: Sequence[int]) -> Tensor:
        shown = ~subsets.hidden(rows, columns, size)
        return shown.view(-1, 1, *size).to(maps.dtype)

    active = is_active(maps)  # (N, 1)
    scores = scorer.score(active.repeat(1, subsets.samples), scorer.masked_by(masks))
    full = scorer.full_scores.to(scores)[:, None]
    sums, size = _sums(maps, subsets, scorer.mask_size)  # (N, samples), (N, 1)
    drops = (full - scores).to(sums.device)
    largest = torch.maximum(full.abs(), scores.abs().amax(1, keepdim=True))
    equal = _are_equal(sums, size) | _are_equal(drops, largest.to(sums.device))
    found = torch.where(equal, 0, _correlation(sums, drops.to(sums.dtype)))
    found = torch.where(active[:, 0], found, 0)
    finite = maps.isfinite().flatten(1).all(1)
    return torch.where(finite, found, torch.nan)


def _sums(maps: Tensor, subsets: Subsets, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Returns the map's sum over each subset, and of all sizes, (N, 1)."""
    values = upsample(maps, size).flatten(1)  # (N, pixels)
    rows = torch.arange(len(values), device=values.device)
    # One subset at a time, so that memory does not grow with their number.
    sums = [
        (values * subsets.hidden(rows, torch.full_like(rows, i), size)).sum(1)
        for i in range(subsets.samples)
    ]
    return torch.stack(sums, 1), values.abs().sum(1, keepdim=True)


def _are_equal(values: Tensor, size: Tensor) -> Tensor:
    """Returns where numbers of a size, (N, 1), are equal but for rounding, (N,)."""
    spread = values.amax(1) - values.amin(1)
    return spread <= ROUNDINGS * torch.finfo(values.dtype).eps * size[:, 0]


def _correlation(values: Tensor, others: Tensor) -> Tensor:
    """Returns Pearson's correlation of each row, (N,), NaN where one is constant."""
    first, second = (_unit(numbers) for numbers in (values, others))
    return (first * second).sum(1).clamp(-1, 1)


def _unit(values: Tensor) -> Tensor:
    """Returns rows around their mean, of length 1."""
    centred = values - values.mean(1, keepdim=True)
    # Squares of what is very small or large would be 0 or infinite.
    centred = centred / centred.abs().amax(1, keepdim=True)
    return centred / centred.square().sum(1, keepdim=True).sqrt()
