"""Bridges between layer attributions and Captum's metrics.

Captum's ``infidelity`` and ``sensitivity_max`` are made for attributions of the input's
shape, from explanation functions that answer a tuple with a tuple.
"""

from collections.abc import Callable
from typing import Any

from captum.attr import Attribution
from torch import Tensor

from captum_unioncam._captum import as_tuple
from captum_unioncam._maps import upsample


def to_input(
    attributions: Tensor, inputs: Tensor | tuple[Tensor, ...]
) -> Tensor | tuple[Tensor, ...]:
    r"""Resizes maps to the inputs, and expands them over the channels, for infidelity.

    Linear, bilinear or trilinear by the number of spatial dimensions, without aligned
    corners. All channels of an input get the same map, so that ``infidelity`` counts it
    once for each channel; its ``normalize=True`` removes that factor.

    Args:
        attributions (Tensor): Maps of a layer attribution, (N, 1, *layer_size).
        inputs (Tensor or tuple[Tensor, ...]): The inputs, (N, C, *size) each.

    Returns:
        *Tensor* of each input's shape (a view, expanded over the channels); a tuple of
        them for a tuple of inputs.

    Raises:
        ValueError: If the maps are not (N, 1, *layer_size), or an input has another
            rank or number of examples.

    Examples::

        >>> import torch
        >>> from captum_unioncam import to_input
        >>> to_input(torch.rand(2, 1, 7, 7), torch.rand(2, 3, 224, 224)).shape
        torch.Size([2, 3, 224, 224])
    """
    shape = tuple(attributions.shape)
    if not 3 <= len(shape) <= 5 or shape[1] != 1:
        raise ValueError(
            "`attributions` must be maps of shape (N, 1, *layer_size) with one to "
            f"three spatial dimensions, got {shape}."
        )
    resized = []
    for inp in as_tuple(inputs):
        if inp.dim() != len(shape) or len(inp) != len(attributions):
            raise ValueError(
                "`inputs` must have the rank and the number of examples of "
                f"`attributions` {shape}, got the shape {tuple(inp.shape)}."
            )
        # (N, 1, *size) to (N, C, *size), without a copy.
        resized.append(upsample(attributions, inp.shape[2:]).expand(inp.shape))
    return tuple(resized) if isinstance(inputs, tuple) else resized[0]


def as_explanation_func(
    attribution: Attribution,
) -> Callable[..., tuple[Tensor, ...]]:
    r"""Makes an attribution the explanation function that sensitivity_max needs.

    Captum's ``sensitivity_max`` calls its ``explanation_func`` with a tuple of inputs,
    and takes the result for a tuple of attributions. A layer attribution answers with
    one tensor, whose examples are then taken for different attributions: several
    samples for several examples raise, and every other call returns a wrong number
    without a word.

    Args:
        attribution (Attribution): Any attribution, of this package or of Captum.

    Returns:
        *Callable*, with the arguments of ``attribution.attribute``, that returns a
        tuple of contiguous tensors.

    Raises:
        TypeError: When called, if ``attribute`` returns anything but tensors, as with
            ``return_details=True``.

    Examples::

        >>> import torch
        >>> from captum.metrics import sensitivity_max
        >>> from captum_unioncam import DenoisedGradCAM, as_explanation_func
        >>> conv = torch.nn.Conv2d(3, 4, 3)
        >>> head = torch.nn.LazyLinear(2)
        >>> net = torch.nn.Sequential(conv, torch.nn.Flatten(), head)
        >>> explain = as_explanation_func(DenoisedGradCAM(net, conv))
        >>> sensitivity_max(explain, torch.rand(2, 3, 8, 8), target=1).shape
        torch.Size([2])
    """

    def explanation_func(
        inputs: Tensor | tuple[Tensor, ...], *args: Any, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        attributions = attribution.attribute(inputs, *args, **kwargs)
        if not isinstance(attributions, tuple):
            attributions = (attributions,)
        if not all(isinstance(maps, Tensor) for maps in attributions):
            kinds = [type(maps).__name__ for maps in attributions]
            raise TypeError(
                f"`attribute` must return tensors only, got {kinds}; leave out "
                "`return_details`."
            )
        return tuple(maps.contiguous() for maps in attributions)

    return explanation_func
