"""Reads, differentiates and replaces a layer of a model that runs on a batch."""

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam._captum import (
    device_of_run,
    expand_target,
    layer_activations,
    layer_gradients,
)
from captum_unioncam._checks import warn_user
from captum_unioncam._forward import ModelCall, check_rows
from captum_unioncam._maps import at_least_float32
from captum_unioncam._replacement import Replacement
from captum_unioncam._reshape import (
    ReshapeTransform,
    check_only_moves,
    read_activations,
    transformed,
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class LayerCall(ModelCall):
    """A call of ``attribute``: a model, a batch, and the layer to explain, or several.

    Attributes:
        layer (torch.nn.Module or list[torch.nn.Module]): What Captum takes as a layer.
        device_ids (list[int], optional): See Captum's layer attributions.
        attribute_to_layer_input (bool): Whether the layer's input is explained.
        reshape_transform (Callable, optional): Of every layer's tensors.
    """

    layer: Module | list[Module]
    device_ids: list[int] | None
    attribute_to_layer_input: bool
    reshape_transform: ReshapeTransform | None
    warns: bool = True  # of an output without a graph
    # What was read and differentiated, while the parts of a union share it.
    _read_once: dict[str, Any] | None = field(default=None, compare=False, repr=False)

    @property
    def layers(self) -> list[Module]:
        """The layers; most calls have one."""
        return [self.layer] if isinstance(self.layer, Module) else self.layer

    def like(self, **other: Any) -> "LayerCall":
        """Returns this call where all of ``other`` are its own, else one with them."""
        if all(getattr(self, name) == value for name, value in other.items()):
            return self
        return replace(self, **other, _read_once=None)

    @contextmanager
    def shared(self) -> Iterator["LayerCall"]:
        """Yields this call, whose passes are made once inside of the context.

        Afterwards nothing keeps the tensors, which know their call.
        """
        if self._read_once is not None:  # of a union of unions
            yield self
            return
        call = replace(self, _read_once={})
        try:
            yield call
        finally:
            assert call._read_once is not None
            call._read_once.clear()

    def formatted(
        self, tensors: Sequence["LayerTensor"], results: Sequence[Result]
    ) -> Any:
        """Returns results of the layers' tensors in the form of Captum's attributions.

        It is the result itself for a layer of one tensor, and a tuple for a layer of
        several; for a list of layers, it is a tuple of these.
        """
        by_layer: list[list[Result]] = [[] for _ in self.layers]
        for tensor, result in zip(tensors, results, strict=True):
            by_layer[tensor.place].append(result)
        forms = [part[0] if len(part) == 1 else tuple(part) for part in by_layer]
        return forms[0] if isinstance(self.layer, Module) else tuple(forms)

    def copies(self, inputs: tuple[Tensor, ...], count: int) -> "LayerCall":
        """Returns this call for altered copies of its batch.

        Args:
            inputs (tuple[Tensor, ...]): What the model gets instead: the copies, one
                after the other, (count * N, ...) each. Every example keeps its target
                and its additional arguments.
            count (int): The number of copies.
        """
        rows = torch.arange(self.batch_size, device=self.inputs[0].device)
        return replace(
            self,
            inputs=inputs,
            target=expand_target(self.target, count),
            additional_forward_args=self.arguments_of(rows.repeat(count)),
            _read_once=None,
        )

    def tensors(self, replaceable: bool = False) -> tuple["LayerTensor", ...]:
        """Returns the tensors of all layers. Cost: 1 forward pass of the batch.

        Args:
            replaceable (bool, optional): Refuse a ``reshape_transform`` that
                :meth:`replacing` cannot undo. Default: False
        """
        kept = {} if self._read_once is None else self._read_once
        known: tuple[LayerTensor, ...] | None = kept.get("tensors")
        if known is not None and not replaceable:
            return known
        recorder = _Recorder(self)
        with eager(), _naming_layer(), self._counted(recorder):
            originals = layer_activations(
                recorder.forward_func,
                self.cloned_inputs(),
                self.layer,
                self.cloned_arguments(),
                device_ids=self.device_ids,
                attribute_to_layer_input=self.attribute_to_layer_input,
            )
        tensors = self._read(originals, recorder, replaceable)
        kept["tensors"] = tensors
        return tensors

    def differentiated_tensors(
        self, grad_kwargs: dict[str, Any] | None, replaceable: bool = False
    ) -> tuple["LayerTensor", ...]:
        """Returns the tensors of all layers with gradients of the raw output at target.

        A layer that the output does not depend on has zero gradients. Cost: 1 forward
        and 1 backward pass of the batch.

        Args:
            grad_kwargs (dict, optional): Keywords for torch.autograd.grad.
            replaceable (bool, optional): As of :meth:`tensors`. Default: False
        """
        if self.batch_size == 0:  # Captum reads the first example's output
            empty = self.tensors(replaceable)
            return tuple(tensor.with_gradients(tensor.activations) for tensor in empty)
        kept = {} if self._read_once is None else self._read_once
        known: tuple[LayerTensor, ...] | None = kept.get("differentiated")
        if known is not None and not replaceable and kept["grad_kwargs"] == grad_kwargs:
            return known
        recorder = _Recorder(self)
        counting = self._counted(recorder) if replaceable else nullcontext()
        with eager(), torch.enable_grad(), _naming_layer(), counting:
            gradients, originals = layer_gradients(
                recorder.differentiable_forward_func,
                self.layer,
                self.cloned_inputs(),
                self.target,
                self.cloned_arguments(),
                device_ids=self.device_ids,
                attribute_to_layer_input=self.attribute_to_layer_input,
                grad_kwargs={"materialize_grads": True, **(grad_kwargs or {})},
            )
        tensors = tuple(
            tensor.with_gradients(transformed(gradient, self.reshape_transform))
            for tensor, gradient in zip(
                self._read(originals, recorder, replaceable),
                self._flat(gradients),
                strict=True,
            )
        )
        kept["grad_kwargs"] = grad_kwargs
        kept["differentiated"] = kept["tensors"] = tensors
        return tensors

    def _by_layer(self, found: Any) -> list[tuple[Tensor, ...]]:
        """Returns what Captum found, a tuple or for several layers a list of them."""
        return [found] if isinstance(self.layer, Module) else found

    def _flat(self, found: Any) -> list[Tensor]:
        return [tensor for tensors in self._by_layer(found) for tensor in tensors]

    def _read(
        self, originals: Any, recorder: "_Recorder", replaceable: bool
    ) -> tuple["LayerTensor", ...]:
        """Brings what the layers returned into the form (N, K, *spatial)."""
        tensors = []
        for place, found in enumerate(self._by_layer(originals)):
            for index, original in enumerate(found):
                values = read_activations(original, self.reshape_transform, self.inputs)
                tensors.append(
                    LayerTensor(
                        self,
                        place,
                        index,
                        at_least_float32(values),
                        values.dtype,
                        recorder.output,
                        max(recorder.runs[place].values(), default=0),
                    )
                )
        if replaceable and self.reshape_transform is not None:
            for original in self._flat(originals):
                check_only_moves(original, self.reshape_transform)
        return tuple(tensors)

    @contextmanager
    def _counted(self, recorder: "_Recorder") -> Iterator[None]:
        """Lets the recorder count the runs of each layer."""
        with ExitStack() as hooks:
            for place in range(len(self.layers)):
                hooks.enter_context(self._hooked(place, recorder.counting(place)))
            yield

    @contextmanager
    def replacing(self, tensor: "LayerTensor") -> Iterator[Replacement]:
        """Replaces one of the layers' tensors in every pass inside of the context."""
        replacement = Replacement(
            tensor.index,
            tensor.runs,
            self.device_ids or getattr(self.forward_func, "device_ids", None),
            self.reshape_transform,
        )
        with eager(), self._hooked(tensor.place, replacement.hook):
            yield replacement

    @contextmanager
    def _hooked(self, place: int, hook: Callable[..., Any]) -> Iterator[None]:
        """Hooks a layer's input or output, and removes the hook after any exit."""
        if self.attribute_to_layer_input:
            handle = self.layers[place].register_forward_pre_hook(hook)
        else:
            handle = self.layers[place].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


class _Recorder:
    """Runs a layer call's model, and records its output and the runs of the layers."""

    def __init__(self, call: LayerCall) -> None:
        self._call = call
        self.output: Tensor | None = None
        self.runs: list[Counter[torch.device]] = [Counter() for _ in call.layers]
        wrap = functools.wraps(call.forward_func)  # Captum reads signature, device_ids
        self.forward_func = wrap(lambda *args: self._recorded(*args))
        self.differentiable_forward_func = wrap(lambda *args: self._with_graph(*args))

    def counting(self, place: int) -> Callable[..., None]:
        """Returns a hook that counts the runs of a layer."""

        def count(module: Module, inp: Any, out: Any = None) -> None:
            self.runs[place][device_of_run(module, inp, out)] += 1

        return count

    def _recorded(self, *args: Any) -> Tensor:
        output: Any = self._call.forward_func(*args)
        if hasattr(output, "wait"):
            output = output.wait()
        checked = check_rows(output, self._call.batch_size)
        self.output = checked.detach()
        return checked

    def _with_graph(self, *args: Any) -> Tensor:
        output = self._recorded(*args)
        if output.requires_grad:
            return output
        if self._call.warns:
            warn_user(
                "The output does not depend on `layer` in a way that autograd can see: "
                "its gradients are taken for zero. Does `forward_func` detach its "
                "output, or run under torch.no_grad?"
            )
        return output.detach().requires_grad_()


@dataclass(frozen=True)
class LayerTensor:
    """One tensor of a layer in one call; most layers have one.

    Attributes:
        call (LayerCall): The model, the batch and the layers.
        place (int): Which of the call's layers it is of.
        index (int): Which of the layer's tensors it is.
        activations (Tensor): Its channels, detached, (N, K, *spatial), in float32 or
            float64.
        dtype (torch.dtype): The type of the layer itself.
        output (Tensor or None): The model's output for the batch, detached.
        runs (int): How often the layer runs in one pass. The last run is the one that
            the activations are of. 0 where it was not counted.
    """

    call: LayerCall
    place: int
    index: int
    activations: Tensor
    dtype: torch.dtype
    output: Tensor | None
    runs: int
    _gradients: Tensor | None = None

    @property
    def gradients(self) -> Tensor:
        """Gradients of the raw output with respect to the activations, like them."""
        assert self._gradients is not None, "this call did not differentiate the layer"
        return self._gradients

    def with_gradients(self, gradients: Tensor) -> "LayerTensor":
        """Returns this tensor with its gradients, (N, K, *spatial)."""
        return replace(self, _gradients=at_least_float32(gradients))


def eager() -> AbstractContextManager[Any]:
    """Runs compiled models uncompiled, because a compiled one skips new hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled
        return nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


@contextmanager
def _naming_layer() -> Iterator[None]:
    """Names the layer where Captum or autograd do not say what its tensors lack."""
    try:
        yield
    except KeyError as error:
        if not isinstance(error.args[0], torch.device):
            raise  # the model's own; Captum's where one of several layers does not run
        raise AssertionError(
            "Forward hook did not obtain any outputs for given layer: one of the "
            "layers in `layer` does not run."
        ) from error
    except AssertionError as error:
        if "input is not a torch.Tensor" not in f"{error}":
            raise  # of targets, or of a layer that does not run
        raise TypeError(
            "`layer` must have a tensor, or a tuple of tensors; this one has something "
            "else, such as a dict: choose a layer inside of it."
        ) from error
    except RuntimeError as error:
        if "differentiated Tensors does not require grad" not in f"{error}":
            raise
        raise TypeError(
            "`layer` must have activations that have gradients, got integers or "
            "quantized ones; choose another layer, or a method without gradients."
        ) from error
