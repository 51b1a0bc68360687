"""How the score falls as pixels are removed, and imputed from those around them."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._checks import check_choice, check_instance, check_number
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam._forward import ModelCall
from captum_unioncam._maps import at_least_float32, blend, checked_maps
from captum_unioncam._scoring import Change, MaskScorer, ScoringOptions
from captum_unioncam.metrics.curves import pixel_ranks

PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
ORDERS = ("combined", "morf", "lerf")

# Rong et al. 2022, the authors' code: the standard deviation of the noise.
NOISE = 0.01


@attribution_method
def road(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    attributions: Tensor,
    target: TargetType = None,
    additional_forward_args: object = None,
    *,
    percentiles: Sequence[float] = PERCENTILES,
    order: str = "combined",
    noise: float = NOISE,
    generator: torch.Generator | None = None,
    score_func: ScoreFunc | None = None,
    perturbations_per_eval: int | None = None,
    return_curve: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Returns how much more the score needs the most than the least relevant pixels.

    .. math:: \frac{1}{2 |P|} \sum_{p \in P}
        \big( f_c(\mathrm{LeRF}_p(I_0)) - f_c(\mathrm{MoRF}_p(I_0)) \big)

    where MoRF removes the p percent of the pixels of the largest values of the map
    (most relevant first), and LeRF those of the smallest (least relevant first). More
    is better, from -1 / 2 to 1 / 2 for confidences.

    A removed pixel is imputed: its value is the mean of the eight around it, of which
    the four direct ones weigh 1 / 6, and the four diagonal ones 1 / 12. Those that are
    removed too solve the same linear system, and at the border the weights of the
    others are scaled to sum to 1. Noise is added to every removed pixel. The model
    hardly sees where pixels are missing, unlike with a constant colour, whose shape
    gives the map away; but large regions, as a CAM removes, become smooth.

    Reference: Rong et al., A Consistent and Efficient Evaluation Strategy for
    Attribution Methods (ROAD: Remove and Debias), ICML 2022, arXiv:2202.00449.

    Note: Deviates from the paper, which reports the accuracy over a data set for each
    p and order: this is a value for each example, of its scores. ``order`` has the two
    orders alone.

    Note: Pixels of equal importance go in a fixed random order, which favours no place
    and is the same in both orders. A constant map has a value of exactly 0.

    Note: All examples, percentiles and orders share the noise, which is a value for
    each pixel of each channel. The noise of the paper is new each time.

    Note: Inputs of one and of three dimensions, of which the paper does not speak, have
    the weights of the same rule, half for each step aside: 1 / 2 for both neighbours;
    1 / 14, 1 / 28 and 1 / 56 for those over faces, edges and corners.

    Cost: 2 forward passes of the batch for each percentile (1 for one order), and 3
    more; and a sparse linear system for each, which SciPy solves on the CPU.

    Args:
        forward_func (Callable or torch.nn.Module): The model, or any function of the
            inputs that runs it.
        inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first. Every input of
            the map's rank loses its pixels, at its own size, in all channels.
        attributions (Tensor): A map for each example, (N, 1, *size), of the layer's or
            the input's size and of any scale; it is resized to the input.
        target (int, tuple, Tensor or list, optional): Output index, in the forms of
            :meth:`captum.attr.LayerGradCam.attribute`. Default: None
        additional_forward_args (Any, optional): Further arguments of the model.
            Default: None
        percentiles (Sequence[float], optional): Percentages of the pixels to remove,
            between 0 and 100, rounded down to whole pixels. Default: 10, 20, ..., 90
        order (str, optional): "combined", or the mean score of one order alone: "morf"
            (less is better) or "lerf" (more is better). Default: "combined"
        noise (float, optional): Standard deviation of the noise, in the input's unit.
            Default: 0.01, the authors'
        generator (torch.Generator, optional): Draws the noise. The global generator is
            never used. Default: None, which is a new one with the seed 0 for each call
        score_func (Callable, optional): From the output to scores of the same shape.
            Default: None, which is softmax, as in :class:`.UnionCAM`
        perturbations_per_eval (int, optional): Imputed inputs for each example in one
            forward pass; the result does not depend on it. Default: None
        return_curve (bool, optional): Return the values of each percentile too.
            Default: False

    Returns:
        *Tensor*, (N,), NaN where the map is not finite. With ``return_curve=True``,
        also the values that it is the mean of, (N, percentiles).

    Raises:
        ImportError: If SciPy is not installed.
        TypeError: If ``percentiles`` or ``noise`` are no numbers, ``generator`` is
            none, or as in :meth:`.ScoreCAM.attribute`.
        ValueError: If ``attributions`` are not (N, 1, *size), ``percentiles`` are
            empty, or not between 0 and 100, ``order`` is another, ``noise`` is
            negative, or as in :meth:`.ScoreCAM.attribute`.

    Examples::

        >>> import torch
        >>> from captum_unioncam.metrics import road
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(2))
        >>> maps = torch.rand(3, 1, 4, 4)
        >>> road(net, torch.rand(3, 1, 8, 8), maps, target=1).shape
        torch.Size([3])
    """
    percentiles = _checked_percentiles(percentiles)
    check_choice("order", order, ORDERS)
    check_number("noise", noise, 0)
    check_instance("generator", generator, torch.Generator)
    _sparse_solver()  # or its error, before any pass
    call = ModelCall.prepare(forward_func, inputs, target, additional_forward_args)
    maps = checked_maps(attributions, call.batch_size)
    options = ScoringOptions(
        score_func=score_func, perturbations_per_eval=perturbations_per_eval
    )
    scorer = MaskScorer(call, maps.dim(), options)
    drawn = PixelNoise(noise, [generator or torch.Generator("cpu").manual_seed(0)])
    curve = road_curve(scorer, maps, percentiles, drawn, order)
    return (curve.mean(1), curve) if return_curve else curve.mean(1)


class PixelNoise:
    """Noise for each value of the inputs, drawn once, when it is needed.

    Args:
        std (float): Standard deviation.
        generators (Sequence[torch.Generator]): One for each example, or one for all.
    """

    def __init__(self, std: float, generators: Sequence[torch.Generator]) -> None:
        self._std, self._generators = std, generators
        self._drawn: dict[int, Tensor] = {}  # by the number of the input

    def of(self, number: int, picked: Tensor, rows: Tensor) -> Tensor:
        """Returns the noise for some examples, (P or 1, C, *size)."""
        if number not in self._drawn:
            noise = [
                self._std
                * torch.randn(
                    picked.shape[1:], generator=g, device=g.device, dtype=torch.float32
                )
                for g in self._generators
            ]
            self._drawn[number] = torch.stack(noise).to(picked.device)
        drawn = self._drawn[number]
        return drawn if len(drawn) == 1 else drawn[rows.to(drawn.device)]


def road_curve(
    scorer: MaskScorer,
    maps: Tensor,
    percentiles: Sequence[float],
    noise: PixelNoise,
    order: str = "combined",
) -> Tensor:
    """Returns the values of an order at each percentile, (N, percentiles).

    Cost: 1 forward pass of the batch for each percentile and order.
    """
    finite = maps.isfinite().flatten(1).all(1, keepdim=True)  # (N, 1)
    keep = finite.repeat(1, len(percentiles))

    def scores(ordered: Tensor) -> Tensor:
        change = _imputing(scorer, ordered, percentiles, noise)
        return scorer.score(keep, scorer.changed_by(change))

    if order == "combined":
        curve = (scores(-maps) - scores(maps)) / 2
    else:
        curve = scores(maps if order == "morf" else -maps)
    return torch.where(finite, curve, torch.nan)


def _imputing(
    scorer: MaskScorer, maps: Tensor, percentiles: Sequence[float], noise: PixelNoise
) -> Change:
    """Returns how the pixels of the largest values are removed, and imputed."""
    ranks, counts = {}, {}  # by spatial size
    for size in dict.fromkeys(scorer.mask_sizes):
        ranks[size] = pixel_ranks(maps, size)  # (N, pixels)
        pixels = math.prod(size)
        counts[size] = torch.tensor(
            [int(pixels * p / 100) for p in percentiles], device=maps.device
        )

    def change(number: int, picked: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        size = tuple(picked.shape[2:])
        gone = ranks[size][rows] < counts[size][columns, None]  # (P, pixels)
        gone = gone.view(-1, *size).to(picked.device)
        filled = imputed(picked, gone) + noise.of(number, picked, rows)
        return blend(picked, ~gone.unsqueeze(1), filled)

    return change


def imputed(images: Tensor, gone: Tensor) -> Tensor:
    """Returns images, (P, C, *size), with what is gone of them, (P, *size), imputed.

    Each image is a linear system of its own, solved in float64 on the CPU.
    """
    values = at_least_float32(images)
    if not len(values):
        return values
    if values.is_complex():
        return torch.complex(imputed(values.real, gone), imputed(values.imag, gone))
    pairs = zip(values.cpu().double(), gone.cpu(), strict=True)
    return torch.stack([_impute(image, holes) for image, holes in pairs]).to(values)


def _impute(image: Tensor, gone: Tensor) -> Tensor:
    """Returns an image, (C, *size), with its holes, (*size), filled from their borders.

    For each hole i, the sum over its neighbours j of w_ij (x_j - x_i) is 0.
    """
    holes = gone.nonzero()  # (U, rank)
    if not len(holes):
        return image
    offsets, weights = _neighbours(gone.dim())  # (O, rank), (O,)
    around = holes[:, None] + offsets  # (U, O, rank)
    size = torch.tensor(gone.shape, device="cpu")
    inside = ((around >= 0) & (around < size)).all(2)  # (U, O)
    strides = torch.tensor(gone.stride(), device="cpu")
    places = torch.where(inside, (around * strides).sum(2), 0)  # (U, O)
    missing = gone.flatten()[places] & inside
    present = ~gone.flatten()[places] & inside
    pixels = image.flatten(1).T  # (pixels, C)
    known = torch.where(present[..., None], pixels[places], 0)  # (U, O, C)
    right = (weights[:, None] * known).sum(1)  # (U, C)
    # Equations (rows) and unknowns (columns) are numbered as the holes.
    numbers = gone.flatten().cumsum(0) - 1
    rows, directions = missing.nonzero(as_tuple=True)
    columns, diagonal = numbers[places[missing]], numbers[gone.flatten()]
    entries = torch.cat([-weights[directions], (weights * inside).sum(1)])
    index = (torch.cat([rows, diagonal]), torch.cat([columns, diagonal]))
    filled = pixels.clone()
    filled[gone.flatten()] = _solved(entries, index, right)
    return filled.T.reshape(image.shape)


def _solved(entries: Tensor, index: tuple[Tensor, Tensor], right: Tensor) -> Tensor:
    """Returns the solution of a sparse, symmetric, diagonally dominant system."""
    matrix, factorize = _sparse_solver()
    rows, columns = index
    left = matrix(
        (entries.numpy(), (rows.numpy(), columns.numpy())), (len(right), len(right))
    )
    # Such a system needs no pivots, and fills in least in an order for symmetric ones.
    factors = factorize(
        left,
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    return torch.from_numpy(factors.solve(right.numpy()))


def _neighbours(rank: int) -> tuple[Tensor, Tensor]:
    """Returns the offsets of a pixel's neighbours, (O, rank), and their weights, (O,).

    Rong et al. 2022: 1 / 6 for the direct and 1 / 12 for the diagonal ones in two
    dimensions.
    """
    around = [o for o in itertools.product((-1, 0, 1), repeat=rank) if any(o)]
    offsets = torch.tensor(around, device="cpu")
    weights = 0.5 ** (offsets != 0).sum(1).double()
    return offsets, weights / weights.sum()


def _checked_percentiles(percentiles: Sequence[float]) -> Sequence[float]:
    """Returns percentiles; refuses none, all pixels, and what is no sequence."""
    if not isinstance(percentiles, Sequence):
        raise TypeError(
            "`percentiles` must be a sequence of numbers, got "
            f"{percentiles!r} ({type(percentiles).__name__})."
        )
    for p in percentiles:
        check_number("percentiles", p)
        if not 0 < p < 100:
            raise ValueError(
                f"`percentiles` must be above 0 and below 100, got {p}; they are the "
                "percentages of the pixels to remove."
            )
    if not len(percentiles):
        raise ValueError(f"`percentiles` must not be empty, got {percentiles}.")
    return percentiles


def _sparse_solver() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns SciPy's constructor of sparse matrices, and its factorization of them."""
    try:
        from scipy.sparse import csc_matrix
        from scipy.sparse.linalg import splu
    except ImportError as error:
        raise ImportError(
            "`road` solves sparse linear systems with SciPy; run "
            '`pip install "captum-unioncam[evaluate]"`'
        ) from error
    return csc_matrix, splu
