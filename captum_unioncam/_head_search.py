"""Finds the linear head that reads the mean of a layer, by running the model."""

import math
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils.hooks import RemovableHandle

from captum_unioncam._layer_call import LayerCall, LayerTensor
from captum_unioncam._layer_search import CONVOLUTIONS, has_weights

# How far equal means may be apart by rounding: so many steps of their type, and of the
# activations' type, as shares of the largest of each.
MEAN_STEPS, ACTIVATION_STEPS = 8, 64

FIX = (
    "Give `head`, the linear layer or 1 x 1 convolution whose weights to use, or take "
    "GradCAM, which needs none."
)
LISTED_MODULES = 3


class HeadSearch:
    """Sees the modules with weights that run after a layer, inside of its context.

    Where ``forward_func`` is a function, the hooks are PyTorch's for all modules. They
    see the passes of this thread alone.

    Args:
        call (LayerCall): The model.
        layer (torch.nn.Module): The layer of it.
    """

    def __init__(self, call: LayerCall, layer: Module) -> None:
        self._call, self._layer = call, layer
        self._of_input = call.attribute_to_layer_input
        self._thread = threading.get_ident()
        self._after: list[Module] = []  # in the order of their runs
        self._read: Tensor | None = None  # by the first of them

    def __enter__(self) -> "HeadSearch":
        model = self._call.forward_func
        modules = set(model.modules()) if isinstance(model, Module) else set()
        self._handles: list[RemovableHandle] = []
        if self._layer not in modules:
            self._handles += [
                register_module_forward_pre_hook(self._start),
                # Not with keywords: PyTorch never removes that flag of such a hook.
                register_module_forward_hook(self._end),
            ]
            return self
        # PyTorch warns of hooks for all modules where one is compiled.
        for module in modules:
            self._handles += [
                module.register_forward_pre_hook(self._start),
                module.register_forward_hook(self._end, with_kwargs=True),
            ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _start(self, module: Module, args: Any) -> None:
        ours = threading.get_ident() == self._thread
        if ours and module is self._layer and self._of_input:
            self._forget()

    def _end(self, module: Module, args: Any, *rest: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        if module is self._layer and not self._of_input:
            self._forget()  # what ran before its last run
        elif _has_weights(module):
            self._after.append(module)
            *keywords, _ = rest  # and the output
            values = [*args, *(v for known in keywords for v in known.values())]
            read = values[0] if values else None
            # The inputs of several modules are not needed, and may be large.
            first = len(self._after) == 1
            self._read = read.detach() if first and isinstance(read, Tensor) else None

    def _forget(self) -> None:
        self._after, self._read = [], None

    def head(self, layer: LayerTensor) -> Module:
        """Returns the head of a tensor of the layer.

        Raises:
            ValueError: If something else runs between the layer and the output than
                its mean and one linear layer; says what.
        """
        if len(self._after) != 1:
            raise _not_found(self._names(self._after))
        (module,) = self._after
        name = self._name(module)
        if not _is_linear(module):
            raise _not_found(
                f"{name}, the only module with weights after `layer`, is neither a "
                "linear layer nor a 1 x 1 convolution"
            )
        difference = _difference(layer.activations, self._read, module)
        if difference:
            raise _not_found(
                f"{name} does not read the mean of `layer` over its positions, but "
                f"{difference}"
            )
        return module

    def _names(self, modules: Iterable[Module]) -> str:
        names = [self._name(module) for module in modules]
        if not names:
            return "no module with weights runs after `layer`"
        more = ", ..." if len(names) > LISTED_MODULES else ""
        return (
            f"{len(names)} modules with weights run after `layer`, where one linear "
            f"layer may: {', '.join(names[:LISTED_MODULES])}{more}"
        )

    def _name(self, module: Module) -> str:
        """Returns the type of a module, after its name where the model has one."""
        kind, model = type(module).__name__, self._call.forward_func
        names = model.named_modules() if isinstance(model, Module) else ()
        found = next((name for name, other in names if other is module), "")
        return f"{found} ({kind})" if found else f"a {kind}"


def head_weights(head: Module, channels: int) -> Tensor:
    """Returns the weights of a head that reads a number for each channel, (C, K).

    Raises:
        TypeError: If it is neither a linear layer nor a 1 x 1 convolution.
        ValueError: If it reads another number of channels.
    """
    weights = getattr(head, "weight", None)
    if (
        not isinstance(weights, Tensor)
        or weights.dim() < 2
        or weights[0, 0].numel() > 1
    ):
        raise TypeError(
            "`head` must be a linear layer or a 1 x 1 convolution, with weights of "
            f"shape (classes, channels), got {head!r}."
        )
    weights = weights.detach().flatten(1)
    if weights.shape[1] != channels:
        raise ValueError(
            f"`head` must read the {channels} channels of `layer`, got weights of "
            f"shape {tuple(weights.shape)}; give the layer that it reads the mean of, "
            "or another head."
        )
    return weights


def _has_weights(module: Module) -> bool:
    if isinstance(module, ParametrizationList):  # of a module that runs too
        return False
    return has_weights(module)


def _is_linear(module: Module) -> bool:
    if isinstance(module, CONVOLUTIONS):
        return set(module.kernel_size) == {1} and module.groups == 1
    return isinstance(module, nn.Linear)


def _not_found(found: str) -> ValueError:
    return ValueError(f"`head` is not given, and none was found: {found}. {FIX}")


def _difference(activations: Tensor, read: Tensor | None, module: Module) -> str | None:
    """Returns what a module reads in place of the activations' mean, else None."""
    if read is None:
        return "something that is no tensor, or is given by a keyword"
    entries = activations.flatten(2)  # (N, K, positions)
    largest = entries.abs().amax((1, 2))  # (N,)

    def is_equal(expected: Tensor) -> bool:
        return _is_equal(read.reshape(expected.shape), expected, largest)

    if read.shape == activations.shape and isinstance(module, CONVOLUTIONS):
        if is_equal(activations):
            return None  # the mean over the positions commutes with the convolution
        return "something else of its size, such as after an activation or a norm"
    values, channels = math.prod(read.shape[1:]), entries.shape[1]  # of each example
    if read.shape[:1] != activations.shape[:1]:
        return f"a tensor of shape {tuple(read.shape)}"
    if values == channels and is_equal(entries.mean(2)):
        return None
    if values == math.prod(activations.shape[1:]) and is_equal(activations):
        return f"all of its {tuple(activations.shape[2:])} positions, without a pooling"
    if values != channels:
        return f"a tensor of shape {tuple(read.shape)}"
    if is_equal(entries.relu().mean(2)):
        return "the mean after a ReLU: explain the ReLU, where it is a module"
    if is_equal(entries.amax(2)):
        return "the largest value of each channel (max pooling)"
    return (
        "something else, such as after an activation, a norm, a scaling, or a dropout "
        "in train mode"
    )


def _is_equal(read: Tensor, expected: Tensor, largest: Tensor) -> bool:
    """Returns whether what is finite is equal but for rounding.

    ``largest`` are the largest activations of each example, (N,).
    """
    others = expected.flatten(1)
    values = read.flatten(1).to(others)
    step = torch.finfo(read.dtype if read.is_floating_point() else others.dtype).eps
    bound = ACTIVATION_STEPS * torch.finfo(others.dtype).eps * largest[:, None]
    bound = bound + MEAN_STEPS * step * others.abs().amax(1, keepdim=True)
    return not bool(((values - others).abs() > bound).any())  # NaN is not
