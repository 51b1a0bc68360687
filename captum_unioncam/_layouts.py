"""Memory formats of images: which to try, and whether a model's outputs stay in them.

Two-dimensional convolutions run fastest on channels_last images, (N, H, W, C) in
memory. A model may rely on the layout of its images, by a view for example, and fail on
another one, or read another image.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from captum_unioncam._maps import at_least_float32

# How far the outputs of two memory formats may be apart by rounding, as a share of the
# largest output, by the type that the model computes in. A model that reads another
# image in channels_last is off by far more.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}
TF32_ROUNDING = 1e-2
HALF_ROUNDING = 1e-1


def memory_formats(
    inputs: Sequence[Tensor], chosen: torch.memory_format | None
) -> list[torch.memory_format]:
    """Returns what to try, the fastest first; the last one is the caller's own."""
    if chosen not in (None, torch.preserve_format):
        return [chosen]
    channels_last = all(
        inp.is_contiguous(memory_format=torch.channels_last)
        for inp in inputs
        if inp.dim() == 4
    )
    if channels_last:
        return [torch.channels_last]
    if chosen is torch.preserve_format:
        return [torch.contiguous_format]
    return [torch.channels_last, torch.contiguous_format]


def laid_out(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """Returns images, (N, C, H, W), in a memory format; other ranks have none."""
    return tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor


def equal_outputs(output: Tensor, expected: Tensor) -> bool:
    """Returns whether a model's outputs are equal but for rounding."""
    if output.shape != expected.shape:
        return False
    values, others = (at_least_float32(o.detach()) for o in (output, expected))
    largest = others.nan_to_num(0, 0, 0).abs().max() if others.numel() else 0
    bound = _rounding(expected) * float(largest)
    return torch.allclose(values, others, rtol=0, atol=bound, equal_nan=True)


def _rounding(output: Tensor) -> float:
    """Returns by which share of the largest output memory formats may differ."""
    half = output.dtype in (torch.float16, torch.bfloat16)
    if half or torch.is_autocast_enabled(output.device.type):
        return HALF_ROUNDING
    if output.device.type != "cpu" and output.dtype == torch.float32:
        return TF32_ROUNDING
    return ROUNDING.get(output.dtype, ROUNDING[torch.float32])
