"""What a masked input shows where its mask is 0."""

from torch import Tensor
import torch

from captum_unioncam._maps import gaussian_blur

Baselines = Tensor | int | float | tuple[Tensor | int | float, ...] | None


def blurred(
    inputs: tuple[Tensor, ...], dim: int, sigma: float, radius: int
) -> Baselines:
    """Returns baselines: blurred copies of the inputs of a rank, 0 for the others."""
    return tuple(
        gaussian_blur(inp, sigma, radius) if inp.dim() == dim else 0 for inp in inputs
    )


def format_baselines(
    baselines: Baselines, inputs: tuple[Tensor, ...], dim: int | None = None
) -> tuple[Tensor | None, ...]:
    """Returns a baseline for each input, or None where it has another rank.

    A baseline has its input's rank, and one row for each example, or one for all.

    Args:
        baselines: In the forms of Captum's FeatureAblation.
        inputs (tuple[Tensor, ...]): The model's inputs.
        dim (int, optional): Rank of the inputs that are masked. Default: None, which is
            any

    Raises:
        TypeError: If a baseline is neither a tensor nor a number.
        ValueError: If there is not one for each input, or it does not broadcast.
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
    for baseline in baselines:
        if not isinstance(baseline, Tensor | int | float):
            raise TypeError(
                "`baselines` must be a Tensor, a number, or a tuple of them, got a "
                f"{type(baseline).__name__}."
            )
    return tuple(
        _formatted(baseline, inp) if dim in (None, inp.dim()) else None
        for baseline, inp in zip(baselines, inputs, strict=True)
    )


def _formatted(baseline: Tensor | int | float, inp: Tensor) -> Tensor:
    """Returns a baseline of the input's rank, in the type to mask it in."""
    dtype = torch.promote_types(inp.dtype, torch.float32)
    values = torch.as_tensor(baseline, dtype=dtype, device=inp.device)
    shape = tuple(values.shape) or (1,) * inp.dim()  # a number fits every input
    fits = len(shape) == inp.dim() and all(
        length in (1, whole) for length, whole in zip(shape, inp.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            "`baselines` must have the rank of their input and broadcast to it: "
            f"expected a shape such as {(1, *inp.shape[1:])}, got {shape}."
        )
    return values.view(shape)
