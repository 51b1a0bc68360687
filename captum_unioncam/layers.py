"""Which layer to explain, and how to read it.

A layer may be given as a module, or by its dotted name. :func:`find_layer` finds one by
running the model. A transformer's layer has tokens, or its channels last: a
``reshape_transform`` such as :func:`vit_reshape` makes them the channels of a map.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Module

from captum_unioncam._checks import did_you_mean
from captum_unioncam._layer_search import spatial_layers

__all__ = ["find_layer", "find_layers", "swin_reshape", "vit_reshape"]


def find_layer(
    model: Module,
    inputs: Tensor | tuple[Tensor, ...],
    additional_forward_args: Any = None,
) -> Module:
    r"""Returns the layer of the last spatial activation before the model's head.

    The model runs with a hook on every module. The answer is the last tensor (N, K,
    *spatial) that has more than one position and as many dimensions as the inputs, and
    that the whole output depends on; of several modules that return it, the outermost.
    Two kinds of layers are left out. The head: adaptive pooling, and a 1 x 1
    convolution whose channels are the model's scores, if no module with weights runs
    after it. And side branches, such as an attention gate: if the tensor is kept, the
    output must stay the same for other inputs. Names play no part.

    Warns:
        UserWarning: If the model applies a ReLU to the layer by a function, as DenseNet
            does: the head then sees another tensor than the layer's.

    Cost: 3 forward passes, 2 more for each activation that the output does not depend
    on alone, and a copy of the model's buffers.

    ``next(name for name, module in model.named_modules() if module is layer)`` is the
    name of the layer.

    Args:
        model (torch.nn.Module): The model, in eval mode.
        inputs (Tensor or tuple[Tensor, ...]): Inputs for it, batch first; one example
            is enough.
        additional_forward_args (Any, optional): Further arguments of the model, after
            the inputs. Default: None

    Returns:
        *torch.nn.Module*, for ``layer``.

    Raises:
        TypeError: If ``model`` is not a module, or ``inputs`` are no tensors.
        ValueError: If there is no example, no input is (N, C, *spatial), or the model
            has no such layer: tokens or channels that come last (a transformer) lie
            between the last spatial activation and the output, the output is itself a
            map (segmentation), or it depends on no single activation. Then name the
            layer yourself.

    Examples::

        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from captum_unioncam import find_layer
        >>> model = resnet18().eval()
        >>> find_layer(model, torch.rand(1, 3, 64, 64)) is model.layer4
        True
    """
    (layer,) = spatial_layers(model, inputs, additional_forward_args, only_last=True)
    return layer


def find_layers(
    model: Module,
    inputs: Tensor | tuple[Tensor, ...],
    additional_forward_args: Any = None,
) -> list[Module]:
    r"""Returns the layer of the last activation of each resolution, from the first on.

    What :func:`find_layer` finds is the last of them; the others are the last ones of
    their spatial size that the whole output depends on alone. They are for methods
    that take a list of layers, whose maps :func:`.fuse` joins.

    Cost, warnings, arguments and errors are those of :func:`find_layer`.

    Returns:
        *list[torch.nn.Module]*, in the order in which they run.

    Examples::

        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from captum_unioncam import find_layers
        >>> model = resnet18().eval()
        >>> layers = find_layers(model, torch.rand(1, 3, 64, 64))
        >>> [name for name, module in model.named_modules() if module in layers]
        ['relu', 'layer1', 'layer2', 'layer3', 'layer4']
    """
    return spatial_layers(model, inputs, additional_forward_args, only_last=False)


def named_layer(model: Module, name: str, argument: str = "layer") -> Module:
    """Returns the module of a dotted name, as in ``model.named_modules()``.

    ``argument`` is what the errors name.

    Raises:
        ValueError: If there is none; the message names the closest.
    """
    # A module that has several names may be given by any.
    layers: dict[str, Module] = dict(model.named_modules(remove_duplicate=False))
    del layers[""]
    if name not in layers:
        raise ValueError(
            f"`{argument}`: {type(model).__name__} has no layer {name!r}"
            f"{did_you_mean(name, layers) or f'; it has {_listed(layers)}.'}"
        )
    return layers[name]


def resolved_layers(forward_func: Any, layer: Any) -> Module | list[Module]:
    """Returns a layer, or a list of layers, as :func:`resolved_layer`.

    Raises:
        TypeError or ValueError: As :func:`resolved_layer`, or for an empty list.
    """
    if not isinstance(layer, list | tuple):
        return resolved_layer(forward_func, layer)
    if not layer:
        raise ValueError("`layer` must name at least one layer, got an empty list.")
    return [resolved_layer(forward_func, one) for one in layer]


def resolved_layer(
    forward_func: Any, layer: Module | str, argument: str = "layer"
) -> Module:
    """Returns a layer that is given as a module, or by its dotted name.

    ``argument`` is what the errors name.

    Raises:
        TypeError: If it is neither, or a name without a model to look it up in.
        ValueError: If the model has no layer of this name.
    """
    if isinstance(layer, Module):
        return layer
    if not isinstance(layer, str):
        raise TypeError(
            f"`{argument}` must be a torch.nn.Module or its dotted name, got "
            f"{layer!r}; pass the module itself, such as model.layer4."
        )
    if not isinstance(forward_func, Module):
        raise TypeError(
            f"`{argument}` may be a name, {layer!r}, only if `forward_func` is the "
            f"module to look it up in, got {forward_func!r}; pass the {argument}'s "
            "module itself."
        )
    return named_layer(forward_func, layer, argument)


def _listed(names: Iterable[str]) -> str:
    top = [repr(name) for name in names if "." not in name]
    return ", ".join(top) or "none"


def vit_reshape(
    tokens: Tensor, prefix_tokens: int = 1, grid: Sequence[int] | None = None
) -> Tensor:
    r"""Makes the tokens of a vision transformer the channels of a map.

    A ``reshape_transform`` for the layers of a ViT, DeiT or DINO: the class token and
    the register tokens are dropped, and the patch tokens, row by row, form the grid.
    ``functools.partial(vit_reshape, prefix_tokens=5)`` sets its arguments.

    In a ViT whose head reads the class token, the patch tokens after the last attention
    change nothing, and have zero gradients: explain the input of the last block, such
    as ``model.encoder.layers[-1].ln_1`` of torchvision's.

    Args:
        tokens (Tensor): The layer's tensor, (N, prefix_tokens + positions, D).
        prefix_tokens (int, optional): Tokens before those of the patches: 1 for a class
            token, 5 with four registers, 0 for none, as in HuggingFace's Swin. Default:
            1
        grid (Sequence[int], optional): Positions in each direction, (rows, columns), or
            three numbers for a video. Default: None, which is the square that the
            patch tokens form: an image that is not a square needs it

    Returns:
        *Tensor*, (N, D, *grid).

    Raises:
        ValueError: If the tensor is not (N, T, D), ``prefix_tokens`` is negative,
            ``grid`` is not positive, or the patch tokens do not form it.

    Examples::

        >>> import torch
        >>> from captum_unioncam import vit_reshape
        >>> vit_reshape(torch.rand(2, 197, 768)).shape
        torch.Size([2, 768, 14, 14])
        >>> vit_reshape(torch.rand(2, 20, 8), prefix_tokens=5, grid=(3, 5)).shape
        torch.Size([2, 8, 3, 5])
    """
    if tokens.dim() != 3:
        raise ValueError(
            "`vit_reshape` takes tokens of shape (N, T, D), got "
            f"{tuple(tokens.shape)}; a layer of shape (N, H, W, D) takes `swin_reshape`"
        )
    if prefix_tokens < 0:
        raise ValueError(f"`prefix_tokens` must be >= 0, got {prefix_tokens}.")
    count = tokens.shape[1] - prefix_tokens
    if grid is None:
        grid = (math.isqrt(max(count, 1)),) * 2
    if isinstance(grid, int) or any(side < 1 for side in grid):
        raise ValueError(f"`grid` must be positive numbers, one a side, got {grid}.")
    if count < 1 or math.prod(grid) != count:
        raise ValueError(
            f"`vit_reshape`: {tokens.shape[1]} tokens without {prefix_tokens} of "
            f"`prefix_tokens` leave {count}, which do not form a grid of {tuple(grid)};"
            " give both, as in functools.partial(vit_reshape, prefix_tokens=5, "
            "grid=(rows, columns))"
        )
    patches = tokens[:, prefix_tokens:].transpose(1, 2)
    return patches.reshape(*patches.shape[:2], *grid)


def swin_reshape(maps: Tensor) -> Tensor:
    r"""Moves the channels from the last dimension to the second, (N, *spatial, K).

    A ``reshape_transform`` for the layers of torchvision's and timm's Swin
    transformers.

    Args:
        maps (Tensor): The layer's tensor, (N, *spatial, K).

    Returns:
        *Tensor*, (N, K, *spatial).

    Examples::

        >>> import torch
        >>> from captum_unioncam import swin_reshape
        >>> swin_reshape(torch.rand(2, 7, 7, 768)).shape
        torch.Size([2, 768, 7, 7])
    """
    return maps.movedim(-1, 1)
