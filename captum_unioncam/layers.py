"""Which layer to explain, and how to read it.

A layer may be given as a module, or by its dotted name. :func:`find_layer` finds one by
running the model. A transformer's layer has tokens, or its channels last: a
``reshape_transform`` such as :func:`vit_reshape` makes them the channels of a map.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from captum_unioncam._captum import as_tuple
from captum_unioncam._checks import did_you_mean
from captum_unioncam._forward import ModelCall
from captum_unioncam._reshape import looks_channels_last
from captum_unioncam.wrappers import parts_of

__all__ = ["find_layer", "swin_reshape", "vit_reshape"]

# Their outputs have the features in the last dimension, by definition.
CHANNELS_LAST = (nn.Linear, nn.MultiheadAttention, nn.RNNBase)

# The first step of a head: their outputs do not count as activations.
ADAPTIVE_POOLING = tuple(
    getattr(nn, f"Adaptive{kind}Pool{rank}d")
    for kind in ("Avg", "Max")
    for rank in (1, 2, 3)
)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def named_layer(model: Module, name: str) -> Module:
    """Returns the module of a dotted name, as in ``model.named_modules()``.

    Raises:
        ValueError: If there is none; the message names the closest.
    """
    # A module that has several names may be given by any.
    layers: dict[str, Module] = dict(model.named_modules(remove_duplicate=False))
    del layers[""]
    if name not in layers:
        raise ValueError(
            f"`layer`: {type(model).__name__} has no layer {name!r}"
            f"{did_you_mean(name, layers) or f'; it has {_listed(layers)}.'}"
        )
    return layers[name]


def resolved_layer(forward_func: Any, layer: Module | str) -> Module:
    """Returns a layer that is given as a module, or by its dotted name.

    Raises:
        TypeError: If it is neither, or a name without a model to look it up in.
        ValueError: If the model has no layer of this name.
    """
    if isinstance(layer, Module):
        return layer
    if not isinstance(layer, str):
        raise TypeError(
            f"`layer` must be a torch.nn.Module or its dotted name, got {layer!r}; "
            "pass the module itself, such as model.layer4."
        )
    if not isinstance(forward_func, Module):
        raise TypeError(
            f"`layer` may be a name, {layer!r}, only if `forward_func` is the module "
            f"to look it up in, got {forward_func!r}; pass the layer's module itself."
        )
    return named_layer(forward_func, layer)


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
    r"""Moves the channels from the last place to the first, (N, *spatial, K).

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


@dataclass(frozen=True)
class _Seen:
    """A spatial activation, and what lies between it and the output."""

    tensor: Tensor | None = None
    makers: tuple[tuple[str, int], ...] = ()  # modules that return it, in which run
    other: str | None = None  # a module that later returns something else, not pooled


@dataclass
class _Trace:
    """Follows a run of a model to its last spatial activation."""

    rows: int
    sizes: list[tuple[int, ...]]  # spatial sizes of the inputs
    last: _Seen = _Seen()
    before_head: tuple[_Seen, int] | None = None  # and the channels of the head
    pooled: Tensor | None = None
    runs: Counter[str] = field(default_factory=Counter)

    def see(
        self, name: str, module: Module, inputs: tuple[Any, ...], output: Any
    ) -> None:
        """Records one run of a module, when it ends."""
        self.runs[name] += 1
        if (
            isinstance(module, CONVOLUTIONS)
            and set(module.kernel_size) == {1}
            and inputs
            and inputs[0] is self.last.tensor
        ):
            # If no other weights follow, it is a linear head at each position.
            self.before_head = self.last, module.out_channels
        elif _has_weights(module):
            self.before_head = None
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor) and _has_positions(tensor):
                self._see_tensor(name, module, tensor)

    def _see_tensor(self, name: str, module: Module, tensor: Tensor) -> None:
        maker = (name, self.runs[name])
        if isinstance(module, ADAPTIVE_POOLING):
            self.pooled = tensor
        if tensor is self.pooled:
            return
        if tensor is self.last.tensor:
            self.last = replace(self.last, makers=(*self.last.makers, maker))
        elif _is_channels_last(module, tensor) or not self._is_spatial(tensor):
            self.last = replace(self.last, other=name)
        else:
            # Along one direction, it cannot be told from tokens that came before.
            other = self.last.other if tensor.dim() == 3 else None
            self.last = _Seen(tensor, (maker,), other)

    def _is_spatial(self, tensor: Tensor) -> bool:
        return (
            len(tensor) == self.rows
            and any(len(size) == tensor.dim() - 2 for size in self.sizes)
            and not looks_channels_last(tensor.shape, self.sizes)
        )

    def layer(self, widths: set[int]) -> str:
        """Returns the name of the outermost module that the head follows.

        ``widths`` are the numbers of scores that the model returns.
        """
        other, seen = self.last.other, self.last
        if self.before_head is not None and self.before_head[1] in widths:
            seen, _ = self.before_head
        if other is not None:
            raise ValueError(
                f"`model` has tokens, channels in the last place, or other rows than "
                f"the inputs ({other!r}) before its output; name the layer yourself, "
                "and for a transformer give a `reshape_transform`, such as "
                "captum_unioncam.vit_reshape or captum_unioncam.swin_reshape."
            )
        # The activations of a layer are those of its last run.
        names = [name for name, run in seen.makers if run == self.runs[name]]
        if not names:
            again = ", ".join(repr(name) for name, _ in seen.makers)
            raise ValueError(
                "`model` has no layer whose last run returns a spatial activation (N, "
                "K, *spatial) of more than one position before the head"
                f"{f': {again} runs again later' if again else ''}; name the layer "
                "yourself."
            )
        return min(reversed(names), key=lambda name: name.count("."))


def _has_weights(module: Module) -> bool:
    has_parameters = next(module.parameters(recurse=False), None) is not None
    return has_parameters or is_parametrized(module)


def _is_channels_last(module: Module, tensor: Tensor) -> bool:
    if isinstance(module, nn.LayerNorm):  # or a subclass that moves the channels
        *others, features = module.normalized_shape
        return not others and tensor.shape[1] != features
    return isinstance(module, CHANNELS_LAST)


def _has_positions(tensor: Tensor) -> bool:
    return tensor.dim() > 2 and len(tensor) > 0 and tensor[0, 0].numel() > 1


def find_layer(
    model: Module,
    inputs: Tensor | tuple[Tensor, ...],
    additional_forward_args: Any = None,
) -> Module:
    r"""Returns the layer of the last spatial activation before the model's head.

    The model runs once, with a hook on every module: the answer is the last tensor (N,
    K, *spatial) with more than one position, of the inputs' rank, and of the modules
    that return it, the outermost. What belongs to the head is left out: adaptive
    pooling, and a 1 x 1 convolution whose channels are the model's scores, if no module
    with weights runs after it. It does not guess from names.

    Cost: 1 forward pass, and a copy of the model's buffers.

    Its name: ``next(name for name, module in model.named_modules() if module is
    layer)``.

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
            between the last spatial activation and the output, or the output is itself
            a map (segmentation). Name the layer yourself then.

    Examples::

        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from captum_unioncam import find_layer
        >>> model = resnet18().eval()
        >>> find_layer(model, torch.rand(1, 3, 64, 64)) is model.layer4
        True
    """
    sizes = _checked_sizes(model, inputs)
    trace = _Trace(len(as_tuple(inputs)[0]), sizes)
    modules: dict[str, Module] = {
        name: module
        for name, module in model.named_modules()
        if name and "parametrizations" not in name.split(".")  # they return weights
    }
    call = ModelCall.prepare(model, inputs, None, additional_forward_args)
    output = _traced(model, modules, call, trace)
    parts = [output] if isinstance(output, Tensor) else parts_of(output).values()
    scores = [part for part in parts if isinstance(part, Tensor)]
    if not scores:
        raise ValueError(
            f"`model` must return a tensor, or tensors in a dict, a tuple or an object,"
            f" got a {type(output).__name__}; name the layer yourself."
        )
    if any(map(_has_positions, scores)):
        raise ValueError(
            "`model` returns a map, so that there is no head after the last layer; "
            "name the layer yourself, such as the last of the backbone."
        )
    return modules[trace.layer({part.shape[1] for part in scores if part.dim() > 1})]


def _checked_sizes(model: Any, inputs: Any) -> list[tuple[int, ...]]:
    """Returns the spatial sizes of the inputs, or refuses them."""
    if not isinstance(model, Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {model!r}.")
    if not isinstance(inputs, Tensor | tuple):
        raise TypeError(
            "`inputs` must be a Tensor or a tuple of them, got a "
            f"{type(inputs).__name__}."
        )
    tensors = as_tuple(inputs)
    sizes = [tuple(tensor.shape[2:]) for tensor in tensors if 3 <= tensor.dim() <= 5]
    if not sizes:
        raise ValueError(
            "`inputs` must have a tensor of shape (N, C, *spatial) with one to three "
            f"spatial dimensions, got {[tuple(tensor.shape) for tensor in tensors]}; "
            "name the layer yourself."
        )
    if len(tensors[0]) == 0:
        raise ValueError("`inputs` must hold at least one example, got none.")
    return sizes


def _traced(
    model: Module, modules: Mapping[str, Module], call: ModelCall, trace: _Trace
) -> Any:
    """Runs the model once under hooks, and restores its buffers."""
    handles = [
        module.register_forward_hook(lambda *run, name=name: trace.see(name, *run))
        for name, module in modules.items()
    ]
    # What the model may change: its arguments, and in train mode its buffers.
    buffers = [
        (buffer, buffer.clone()) for buffer in model.buffers() if not is_lazy(buffer)
    ]
    with torch.no_grad():
        try:
            return model(*call.cloned_inputs(), *(call.cloned_arguments() or ()))
        finally:
            for handle in handles:
                handle.remove()
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
