"""The template of the CAMs whose gradients come from several inputs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from captum.attr import GradientAttribution
from torch import Tensor

from captum_unioncam._layer_call import LayerCall, LayerTensor
from captum_unioncam.attr._base import CAMAttribution


class SampledGradientCAM(CAMAttribution, GradientAttribution):
    """Template of a CAM by the gradients of several altered copies of each example.

    A subclass makes the copies, and accumulates what it needs of each sample, so that
    memory does not grow with their number.
    """

    def _samples(
        self,
        call: LayerCall,
        copies: Iterable[tuple[Tensor, ...]],
        perturbations_per_eval: int,
        grad_kwargs: dict[str, Any] | None,
    ) -> Iterator[tuple[LayerTensor, ...]]:
        """Yields the tensors of the layers for one copy of the batch after another.

        Cost: 1 forward and 1 backward pass of each copy.

        Args:
            call (LayerCall): The call of ``attribute``.
            copies (Iterable[tuple[Tensor, ...]]): The altered inputs, like the call's.
            perturbations_per_eval (int): Copies in one pass.
            grad_kwargs (dict, optional): Keywords for torch.autograd.grad.
        """
        remaining, size = iter(copies), call.batch_size
        while chunk := list(islice(remaining, perturbations_per_eval)):
            # (copies * N, ...) each, in the order that the call expects.
            inputs = tuple(torch.cat(parts) for parts in zip(*chunk, strict=True))
            altered = call.copies(inputs, len(chunk))
            layers = altered.differentiated_tensors(grad_kwargs)
            for i in range(len(chunk)):
                rows = slice(i * size, (i + 1) * size)
                yield tuple(
                    replace(
                        layer,
                        activations=layer.activations[rows],
                        _gradients=layer.gradients[rows],
                    )
                    for layer in layers
                )
            call = replace(call, warns=False)  # one warning is enough


def is_alterable(inp: Tensor) -> bool:
    """Returns whether an input has numbers that may be changed a little.

    Those of integers may if they are an image, (N, C, *spatial), and no indices.
    """
    if inp.dtype.is_floating_point or inp.dtype.is_complex:
        return True
    return inp.dim() > 2 and inp.dtype != torch.bool


def check_alterable(inputs: Sequence[Tensor]) -> None:
    """Refuses a batch of which nothing can be altered."""
    if not any(map(is_alterable, inputs)):
        kinds = [(str(inp.dtype), tuple(inp.shape)) for inp in inputs]
        raise ValueError(
            "`inputs` must hold a floating tensor, or an integer image (N, C, "
            f"*spatial), to alter, got {kinds}; give embedded tokens to a part of the "
            "model, or choose a method that explains the inputs as they are."
        )
