"""Finds the layer to explain by running the model, without guessing from names."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from captum_unioncam._captum import HOOKS_LOCK, as_tuple
from captum_unioncam._checks import warn_user
from captum_unioncam._forward import ModelCall
from captum_unioncam._maps import at_least_float32, spatial_dims
from captum_unioncam._reshape import looks_channels_last
from captum_unioncam.wrappers import parts_of

# Their outputs have the features in the last dimension, by definition.
CHANNELS_LAST = (nn.Linear, nn.MultiheadAttention, nn.RNNBase)

# The first step of a head: their outputs do not count as activations.
ADAPTIVE_POOLING = tuple(
    getattr(nn, f"Adaptive{kind}Pool{rank}d")
    for kind in ("Avg", "Max")
    for rank in (1, 2, 3)
)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

# How far equal outputs of a model may be apart, as a share of the largest.
ROUNDING = 1e-3


@dataclass(eq=False)
class _Seen:
    """A spatial activation, and what lies between it and the output."""

    makers: list[tuple[str, int]]  # modules that return it, in which run
    other: str | None  # a module that later returns something else, not pooled
    size: tuple[int, ...] = ()  # its spatial size
    rectified_later: bool = False  # whether a later module reads the ReLU's


@dataclass
class _Trace:
    """Follows a run of a model to its last spatial activation."""

    rows: int
    sizes: list[tuple[int, ...]]  # spatial sizes of the inputs
    tensor: Tensor | None = None  # of the last activation
    signed: Tensor | None = None  # a copy of it, if it has negative values
    pooled: Tensor | None = None
    seen: list[_Seen] = field(default_factory=lambda: [_Seen([], None)])
    before_head: tuple[int, int] | None = None  # activations then, and head's channels
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
            and inputs[0] is self.tensor
        ):
            # If no other weights follow, it is a linear head at each position.
            self.before_head = len(self.seen), module.out_channels
        elif has_weights(module):
            self.before_head = None
        if inputs and isinstance(inputs[0], Tensor):
            self._see_input(inputs[0])
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor) and _has_positions(tensor):
                self._see_tensor(name, module, tensor)

    def _see_input(self, tensor: Tensor) -> None:
        """Records whether a module reads the ReLU of the last activation, or its mean.

        It is what a functional ReLU between the two leaves.
        """
        if self.signed is None or tensor is self.tensor:  # a module in place
            return
        rectified, dims = self.signed.relu(), spatial_dims(self.signed)
        for known, relu in (
            (self.signed, rectified),
            (self.signed.mean(dims), rectified.mean(dims)),
        ):
            if tensor.numel() == known.numel():
                values = tensor.detach().reshape(known.shape)
                if _equal(relu, values) and not _equal(known, values):
                    self.seen[-1].rectified_later = True

    def _see_tensor(self, name: str, module: Module, tensor: Tensor) -> None:
        maker = (name, self.runs[name])
        if isinstance(module, ADAPTIVE_POOLING):
            self.pooled = tensor
        if tensor is self.pooled:
            return
        if tensor is self.tensor:
            self.seen[-1].makers.append(maker)
            self.signed = _signed(tensor)  # an operation in place may have changed it
        elif _is_channels_last(module, tensor) or not self._is_spatial(tensor):
            self.seen[-1].other = name
        else:
            # Along one direction, it cannot be told from tokens that came before.
            other = self.seen[-1].other if tensor.dim() == 3 else None
            self.tensor, self.signed = tensor, _signed(tensor)
            self.seen.append(_Seen([maker], other, tuple(tensor.shape[2:])))

    def _is_spatial(self, tensor: Tensor) -> bool:
        return (
            len(tensor) == self.rows
            and any(len(size) == tensor.dim() - 2 for size in self.sizes)
            and not looks_channels_last(tensor.shape, self.sizes)
        )

    def candidates(self, widths: set[int]) -> Iterator[tuple[str, _Seen]]:
        """Yields activations and the outermost module of each, the last one first.

        Args:
            widths (set[int]): The numbers of scores that the model returns.
        """
        other, seen = self.seen[-1].other, self.seen
        if self.before_head is not None and self.before_head[1] in widths:
            seen = seen[: self.before_head[0]]
        if other is not None:
            raise ValueError(
                "`model` has tokens, channels in the last dimension, or other rows "
                f"than the inputs ({other!r}) before its output; name the layer "
                "yourself, and for a transformer give a `reshape_transform`, such as "
                "captum_unioncam.vit_reshape or captum_unioncam.swin_reshape."
            )
        for activation in reversed(seen):
            # The activations of a layer are those of its last run.
            makers = activation.makers
            names = [name for name, run in makers if run == self.runs[name]]
            if names:
                # Of equally deep ones the last.
                yield min(reversed(names), key=lambda name: name.count(".")), activation
            elif activation is seen[-1]:
                again = ", ".join(repr(name) for name, _ in makers)
                raise ValueError(
                    "`model` has no layer whose last run returns a spatial activation "
                    "(N, K, *spatial) of more than one position before the head"
                    f"{f': {again} runs again later' if again else ''}; name the layer "
                    "yourself."
                )


def has_weights(module: Module) -> bool:
    """Returns whether a module has parameters of its own."""
    has_parameters = next(module.parameters(recurse=False), None) is not None
    return has_parameters or is_parametrized(module)


def _is_channels_last(module: Module, tensor: Tensor) -> bool:
    if isinstance(module, nn.LayerNorm):  # or a subclass that moves the channels
        *others, features = module.normalized_shape
        return not others and tensor.shape[1] != features
    return isinstance(module, CHANNELS_LAST)


def _has_positions(tensor: Tensor) -> bool:
    return tensor.dim() > 2 and len(tensor) > 0 and tensor[0, 0].numel() > 1


def _signed(tensor: Tensor) -> Tensor | None:
    """Returns a copy of real activations with negative values, else None."""
    if not tensor.is_floating_point() or not bool((tensor < 0).any()):
        return None
    return at_least_float32(tensor.detach()).clone()


def spatial_layers(
    model: Module,
    inputs: Tensor | tuple[Tensor, ...],
    additional_forward_args: Any,
    only_last: bool,
) -> list[Module]:
    """Returns the layer of the last activation, or of the last of each resolution.

    See :func:`captum_unioncam.find_layer` and :func:`captum_unioncam.find_layers`.
    """
    sizes = _checked_sizes(model, inputs)
    call = ModelCall.prepare(model, inputs, None, additional_forward_args)
    trace = _Trace(len(as_tuple(inputs)[0]), sizes)
    modules: dict[str, Module] = {
        name: module
        for name, module in model.named_modules()
        if name and "parametrizations" not in name.split(".")  # they return weights
    }
    with HOOKS_LOCK, torch.no_grad(), _restored_buffers(model):
        with _hooked(modules, trace):
            output = model(*call.cloned_inputs(), *(call.cloned_arguments() or ()))
        scores = _scores(output)
        widths = {part.shape[1] for part in scores if part.dim() > 1}
        found: dict[tuple[int, ...], Module] = {}  # by size, the last layer first
        for name, activation in trace.candidates(widths):
            if activation.size in found or not _decides_output(call, modules[name]):
                continue
            if activation.rectified_later:
                _warn_of_relu(name)
            found[activation.size] = modules[name]
            if only_last:
                break
    if not found:
        raise ValueError(
            "`model` has no layer that its whole output depends on: it has branches "
            "from the inputs on, or is random; name the layer yourself."
        )
    return list(found.values())[::-1]


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


@contextlib.contextmanager
def _hooked(modules: Mapping[str, Module], trace: _Trace) -> Iterator[None]:
    """Hooks every module that takes hooks, and removes the hooks after any exit."""
    handles = []
    try:
        for name, module in modules.items():
            # TorchScript modules take none; what is around them does.
            with contextlib.suppress(RuntimeError):
                handles.append(
                    module.register_forward_hook(
                        lambda *run, name=name: trace.see(name, *run)
                    )
                )
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _restored_buffers(model: Module) -> Iterator[None]:
    """Restores the buffers that a run in train mode changes or assigns."""
    before = [
        (module, name, buffer, _copy(buffer))
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for module, name, buffer, copied in before:
            module._buffers[name] = buffer
            if buffer is not None and copied is not None:
                if not torch.equal(buffer, copied):
                    buffer.copy_(copied)


def _copy(buffer: Tensor | None) -> Tensor | None:
    """Returns a copy of a buffer that holds plain values, else None."""
    if buffer is None or is_lazy(buffer) or buffer.is_meta:
        return None
    return buffer.clone() if buffer.layout == torch.strided else None


def _scores(output: Any) -> list[Tensor]:
    """Returns the tensors of a model's output, or refuses them."""
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
    return scores


def _decides_output(call: ModelCall, module: Module) -> bool:
    """Returns whether the output depends on the inputs through a module's output alone.

    The model runs twice, the second time on other inputs, with what the module last
    returned in the first run in place of its output.
    """
    recorded: list[Any] = []
    replaced: list[Any] = []

    def record(module: Module, inputs: Any, output: Any) -> None:
        recorded.append(_detached(output))

    def replace(module: Module, inputs: Any, output: Any) -> Any:
        replaced.append(None)
        return _detached(recorded[-1]) if len(replaced) == len(recorded) else None

    with torch.random.fork_rng(devices=[]):
        outputs = []
        for inputs, hook in (
            (call.cloned_inputs(), record),
            (tuple(map(_other_image, call.cloned_inputs())), replace),
        ):
            torch.manual_seed(0)  # so that dropout is the same
            handle = module.register_forward_hook(hook)
            try:
                args = call.cloned_arguments() or ()
                outputs.append(_scores(call.forward_func(*inputs, *args)))
            finally:
                handle.remove()
    return len(outputs[0]) == len(outputs[1]) and all(
        _equal(*pair) for pair in zip(*outputs, strict=True)
    )


def _equal(first: Tensor, second: Tensor) -> bool:
    """Returns whether two outputs are equal but for rounding."""
    if first.shape != second.shape:
        return False
    values = at_least_float32(first.detach()).nan_to_num()
    others = at_least_float32(second.detach()).nan_to_num()
    bound = ROUNDING * values.abs().max() if values.numel() else 0
    return bool(((values - others).abs() <= bound).all())


def _detached(output: Any) -> Any:
    """Returns a copy of a module's output, whose tensors the model may change."""
    if isinstance(output, Tensor):
        return output.detach().clone()
    if type(output) in (list, tuple):
        return type(output)(map(_detached, output))
    return output


def _other_image(inp: Tensor) -> Tensor:
    """Returns noise in the range of an input with positions; others unchanged."""
    if not 3 <= inp.dim() <= 5 or not inp.numel():
        return inp
    low, high = (float(value) for value in at_least_float32(inp).aminmax())
    generator = torch.Generator(device="cpu").manual_seed(0)
    noise = torch.rand(inp.shape, generator=generator, device="cpu")
    return (low + max(high - low, 1.0) * noise).to(inp)


def _warn_of_relu(name: str) -> None:
    warn_user(
        f"The head reads the ReLU of the layer {name!r}, which is a function: the "
        "layer's own values are signed, and its maps differ from those of what the "
        "head sees. Make the ReLU a module, as in "
        f"`model.{name}.add_module('relu', torch.nn.ReLU())`, which changes no output."
    )
