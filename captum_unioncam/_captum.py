"""The only import site of Captum's private helpers.

Nothing is promised for private names: ``tests/test_captum.py`` checks the facts that
the package leans on, and every other module takes them from here.
"""

import functools
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from captum._utils.common import (
    _expand_target,
    _extract_device,
    _format_additional_forward_args,
    _format_output,
    _format_tensor_into_tuples,
    _run_forward,
    _select_targets,
)
from captum._utils.gradient import (
    _forward_layer_eval,
    compute_layer_gradients_and_eval,
)
from captum._utils.progress import NullProgress, progress
from captum._utils.typing import TargetType
from captum.log import log_usage
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel.scatter_gather import scatter

from captum_unioncam._maps import disproportion, looks_channels_last

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

__all__ = [
    "LayerCall",
    "ModelCall",
    "ReshapeTransform",
    "TargetType",
    "as_tuple",
    "attribution_method",
    "expand_target",
    "format_output",
    "progress_bar",
    "select_targets",
    "warn_user",
]

Method = TypeVar("Method", bound=Callable[..., Any])

# From a layer's tensor, of any shape, to (N, K, *spatial).
ReshapeTransform = Callable[[Tensor], Tensor]

ONLY_MOVES = (
    "`reshape_transform` must only move and drop the entries of the layer's tensor: "
    "this method puts other entries in their places. Leave out its arithmetic."
)


def attribution_method(method: Method) -> Method:
    """Decorates every ``attribute`` method of the package.

    Captum's NoiseTunnel and TCAV call ``attribute.__wrapped__``, which ``log_usage``
    provides. The body runs outside of the caller's autograd and inference modes, which
    are restored after any exit: gradients work under ``torch.no_grad`` and
    ``torch.inference_mode``, and masked passes never record a graph.
    """

    @functools.wraps(method)
    def isolated(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return cast(Method, log_usage(part_of_slo=True)(isolated))


def warn_user(message: str) -> None:
    """Warns at the user's line: the first frame outside of Captum and this package."""
    depth, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "captum",
        "captum_unioncam",
    ):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, stacklevel=depth)


def as_tuple(tensors: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns a tensor, or a tuple of tensors, as a tuple."""
    return cast(tuple[Tensor, ...], _format_tensor_into_tuples(tensors))


def format_output(outputs: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """Returns one tensor for a layer of one tensor, else the tuple, as Captum does."""
    return cast(Tensor | tuple[Tensor, ...], _format_output(len(outputs) > 1, outputs))


def select_targets(output: Tensor, target: TargetType) -> Tensor:
    """Returns each example's value at ``target``; Captum's errors pass."""
    return cast(Tensor, _select_targets(output, target))


def expand_target(target: TargetType, repeats: int) -> TargetType:
    """Repeats the target of each example, as Captum does for expanded inputs."""
    return _expand_target(target, repeats)


def progress_bar(description: str | None, total: int) -> AbstractContextManager[Any]:
    """Returns Captum's progress bar (on stderr), or for None one that does nothing."""
    if description is None:
        return cast(AbstractContextManager[Any], NullProgress())
    bar = progress(desc=f"{description} attribution", total=total)
    return cast(AbstractContextManager[Any], bar)


def _outside_inference_mode(value: Any) -> Any:
    """Copies a tensor that inference mode made: autograd refuses the original."""
    if isinstance(value, Tensor) and value.is_inference():
        return value.clone()
    return value


@contextmanager
def _naming_layer() -> Iterator[None]:
    """Names the layer where Captum asserts that it has tensors."""
    try:
        yield
    except AssertionError as error:
        if "input is not a torch.Tensor" not in f"{error}":
            raise  # of targets, or of a layer that does not run
        raise TypeError(
            "`layer` must have a tensor, or a tuple of tensors; this one has something "
            "else, such as a dict: choose a layer inside of it."
        ) from error


def _sources(original: Tensor, reshape_transform: ReshapeTransform) -> Tensor:
    """Returns where a transform takes each entry from, as places in the flat tensor.

    A transform moves a tensor of places as it moves any other.
    """
    places = torch.arange(original.numel(), device=original.device)
    try:
        moved = reshape_transform(places.view(original.shape))
    except (RuntimeError, TypeError) as error:  # arithmetic that refuses integers
        raise ValueError(ONLY_MOVES) from error
    if moved.dtype != places.dtype:
        raise ValueError(ONLY_MOVES)
    return moved.flatten()


def _check_only_moves(
    original: Tensor, reshaped: Tensor, reshape_transform: ReshapeTransform
) -> None:
    """Refuses a transform whose entries cannot be put back."""
    if original.numel() == 0:
        return
    sources = _sources(original, reshape_transform)
    own, entries = original.flatten(), reshaped.flatten()
    if not (
        len(sources) == len(entries) == len(torch.unique(sources))
        and 0 <= sources.min()
        and sources.max() < len(own)
        and torch.equal(own[sources].nan_to_num(), entries.nan_to_num())
    ):
        raise ValueError(ONLY_MOVES)


def _put_back(
    original: Tensor, reshaped: Tensor, reshape_transform: ReshapeTransform
) -> Tensor:
    """Returns the original with entries where a transform would take them from."""
    sources = _sources(original, reshape_transform)
    entries = reshaped.flatten().to(original.dtype)
    return original.flatten().scatter(0, sources, entries).view(original.shape)


def _check_rows(output: Any, rows: int) -> Tensor:
    """Refuses an output that is no tensor with a row for each example."""
    if not isinstance(output, Tensor):
        raise TypeError(
            f"`forward_func` must return a Tensor, got a {type(output).__name__}; give "
            "captum_unioncam.SelectedOutput(model, key), or your own function that "
            "returns the tensor to explain."
        )
    if output.dim() == 0 or output.shape[0] != rows:
        raise ValueError(
            "`forward_func` must return one row for each example: expected a first "
            f"dimension of {rows} for {rows} examples, got the shape "
            f"{tuple(output.shape)}; do not reduce over the batch (a model that takes "
            "one example at a time needs `perturbations_per_eval=1`)."
        )
    return output


@dataclass(frozen=True)
class ModelCall:
    """A model and the batch to run it on, in Captum's internal forms."""

    forward_func: Callable[..., Any]
    inputs: tuple[Tensor, ...]
    target: TargetType
    additional_forward_args: tuple[Any, ...] | None

    @classmethod
    def prepare(
        cls,
        forward_func: Callable[..., Any],
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType,
        additional_forward_args: object,
        **layer: Any,
    ) -> "Self":
        """Brings the arguments of ``attribute`` into Captum's internal forms."""
        args = _format_additional_forward_args(additional_forward_args)
        return cls(
            forward_func,
            tuple(_outside_inference_mode(inp) for inp in as_tuple(inputs)),
            _outside_inference_mode(target),
            None if args is None else tuple(map(_outside_inference_mode, args)),
            **layer,
        )

    @property
    def batch_size(self) -> int:
        """The number of examples."""
        return self.inputs[0].shape[0]

    def cloned_inputs(self) -> tuple[Tensor, ...]:
        """Returns copies of the inputs, which a model or a hook may change."""
        return tuple(inp.detach().clone() for inp in self.inputs)

    def cloned_arguments(self) -> tuple[Any, ...] | None:
        """Returns the additional arguments, with copies of the tensors among them."""
        if self.additional_forward_args is None:
            return None
        return tuple(
            arg.detach().clone() if isinstance(arg, Tensor) else arg
            for arg in self.additional_forward_args
        )

    def scored_by(self, scoring_func: Callable[..., Any] | None) -> "Self":
        """Returns this call with a function in place of the model, if there is one."""
        if scoring_func is None:
            return self
        return replace(self, forward_func=scoring_func)

    def run(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> Tensor:
        """Returns the model's whole output for other inputs and arguments."""
        output: Any = _run_forward(self.forward_func, inputs, None, args)
        if hasattr(output, "wait"):
            # Future.then returns an instance of the private base class of Future.
            output = output.wait()
        return _check_rows(output, len(inputs[0]))


@dataclass(frozen=True)
class LayerCall(ModelCall):
    """One call of ``attribute``: a model call, and the layer to explain."""

    layer: Module
    device_ids: list[int] | None
    attribute_to_layer_input: bool
    reshape_transform: ReshapeTransform | None

    def activations(self, replaceable: bool = False) -> tuple[Tensor, ...]:
        """Returns the layer's tensors, reshaped. Cost: one forward pass of the batch.

        Args:
            replaceable (bool, optional): Refuse a ``reshape_transform`` that
                ``run_replacing`` cannot undo. Default: False
        """
        with _naming_layer():
            originals = _forward_layer_eval(
                self.forward_func,
                self.cloned_inputs(),
                self.layer,
                self.cloned_arguments(),
                device_ids=self.device_ids,
                attribute_to_layer_input=self.attribute_to_layer_input,
            )
        activations = self._reshaped(originals)
        if replaceable and self.reshape_transform is not None:
            for pair in zip(originals, activations, strict=True):
                _check_only_moves(*pair, self.reshape_transform)
        return activations

    def activations_and_gradients(
        self, grad_kwargs: dict[str, Any] | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Returns the layer's tensors and the gradients of the raw output at target.

        A layer that the output does not depend on has zero gradients. Cost: one forward
        and one backward pass of the batch.
        """
        if self.batch_size == 0:  # Captum reads the first example's output
            activations = self.activations()
            return activations, tuple(map(torch.zeros_like, activations))

        @functools.wraps(self.forward_func)  # Captum reads signature and device_ids
        def forward_func(*args: Any) -> Tensor:
            output = _check_rows(self.forward_func(*args), self.batch_size)
            if output.requires_grad:
                return output
            warn_user(
                "The output does not depend on `layer` in a way that autograd can see: "
                "its gradients are taken for zero. Does `forward_func` detach its "
                "output, or run under torch.no_grad?"
            )
            return output.detach().requires_grad_()

        with torch.enable_grad(), _naming_layer():
            # Inputs that require grad give frozen models a graph. The model gets a
            # clone, because an in-place first operation is not allowed on a leaf;
            # Captum then finds a tensor that requires grad already, and leaves the
            # caller's alone.
            inputs = tuple(
                inp.requires_grad_().clone() if inp.is_floating_point() else inp
                for inp in self.cloned_inputs()
            )
            gradients, activations = compute_layer_gradients_and_eval(
                forward_func,
                self.layer,
                inputs,
                self.target,
                self.cloned_arguments(),
                device_ids=self.device_ids,
                attribute_to_layer_input=self.attribute_to_layer_input,
                grad_kwargs={"materialize_grads": True, **(grad_kwargs or {})},
            )
        return self._reshaped(activations), tuple(map(self._transformed, gradients))

    def run_counting(
        self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None
    ) -> tuple[Tensor, int]:
        """Returns the model's output, and how often the layer runs in one pass."""
        runs: Counter[torch.device] = Counter()

        def count(module: Module, inp: Any, out: Any = None) -> None:
            runs[_extract_device(module, inp, out)] += 1

        with self._hooked(count):
            output = self.run(inputs, args)
        return output, max(runs.values())

    def run_replacing(
        self,
        inputs: tuple[Tensor, ...],
        args: tuple[Any, ...] | None,
        place: int,
        replacement: Tensor,
        runs: int,
    ) -> Tensor:
        """Returns the model's output with a tensor of the layer replaced.

        Args:
            inputs (tuple[Tensor, ...]): Inputs, (P, ...) each.
            args (tuple): Additional arguments for them.
            place (int): Which of the layer's tensors to replace.
            replacement (Tensor): Its new value, (P, K, *spatial), as if it had been
                reshaped. The model may change it.
            runs (int): How often the layer runs in one pass. The last run is the one
                that the activations are of.
        """
        device_ids = self.device_ids or getattr(self.forward_func, "device_ids", None)
        parts = scatter(replacement, device_ids) if device_ids else (replacement,)
        by_device = {part.device: part for part in parts}
        seen: Counter[torch.device] = Counter()

        def replaced(module: Module, inp: Any, out: Any = None) -> Any:
            device = _extract_device(module, inp, out)
            seen[device] += 1
            if seen[device] < runs:
                return None
            tensors = inp if out is None else out
            if not isinstance(tensors, tuple | list):
                return self._in_place_of(tensors, by_device[device])
            own = self._in_place_of(tensors[place], by_device[device])
            parts = [*tensors[:place], own, *tensors[place + 1 :]]
            made: Any = getattr(tensors, "_make", type(tensors))  # a namedtuple's
            return made(parts)

        with self._hooked(replaced):
            return self.run(inputs, args)

    @contextmanager
    def _hooked(self, hook: Callable[..., Any]) -> Iterator[None]:
        """Hooks the layer's input or output, and removes the hook after any exit."""
        if self.attribute_to_layer_input:
            handle = self.layer.register_forward_pre_hook(hook)
        else:
            handle = self.layer.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def _in_place_of(self, original: Tensor, replacement: Tensor) -> Tensor:
        """Returns a copy of the replacement, in the original's form and layout.

        What the transform drops, such as a class token, stays the original's.
        """
        if self.reshape_transform is not None:
            replacement = _put_back(original, replacement, self.reshape_transform)
        # With the strides that a model may rely on, to view it.
        return torch.empty_like(original).copy_(replacement)

    def _reshaped(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns detached tensors (N, K, *spatial), or refuses them."""
        reshaped = []
        for tensor in tensors:
            transformed = self._transformed(tensor)
            self._check_spatial(transformed)
            # A transform that changes nothing says that the layer is right as it is.
            changed = transformed.shape != tensor.shape
            if self.reshape_transform is None or changed:
                self._refuse_tokens(tuple(transformed.shape))
            if changed:
                self._warn_of_proportions(tuple(transformed.shape[2:]))
            reshaped.append(transformed)
        return tuple(reshaped)

    def _transformed(self, tensor: Tensor) -> Tensor:
        """Returns a tensor of the layer, detached, in the form (N, K, *spatial)."""
        detached = tensor.detach()
        if self.reshape_transform is None:
            return detached
        return self.reshape_transform(detached)

    def _check_spatial(self, tensor: Any) -> None:
        name = "`layer`" if self.reshape_transform is None else "`reshape_transform`"
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} must return a Tensor, got a {type(tensor).__name__}."
            )
        shape = tuple(tensor.shape)
        if not 3 <= len(shape) <= 5:
            raise ValueError(
                f"{name} must have an activation of shape (N, K, *spatial) with one to "
                f"three spatial dimensions, got {shape}; choose a layer before pooling "
                "and flattening."
            )
        if shape[0] != self.batch_size:
            raise ValueError(
                f"{name} must keep one row for each example: expected a first "
                f"dimension of {self.batch_size}, got the shape {shape}."
            )

    def _refuse_tokens(self, shape: tuple[int, ...]) -> None:
        """Refuses what would be taken for channels, and is something else."""
        sizes = [tuple(inp.shape[2:]) for inp in self.inputs]
        ranks = {len(size) for size in sizes}
        if len(shape) == 3 and 1 not in ranks and ranks & {2, 3}:
            reason, helper = "tokens, (N, T, D), of images", "vit_reshape"
        elif len(shape) == 3 and any(
            tuple(inp.shape) == shape[:2] for inp in self.inputs
        ):
            reason, helper = "tokens, (N, T, D), of a sequence", "swin_reshape"
        elif looks_channels_last(shape, sizes):
            reason, helper = "its channels in the last place", "swin_reshape"
        else:
            return
        raise ValueError(
            f"`layer` has {reason}: an activation of shape {shape} for inputs of the "
            f"sizes {sizes}; give reshape_transform=captum_unioncam.{helper}, or your "
            "own function to (N, K, *spatial). If the second dimension does hold the "
            "channels, give torch.nn.Identity()."
        )

    def _warn_of_proportions(self, size: tuple[int, ...]) -> None:
        """Warns of a transform whose rows and columns are unlike the images'."""
        images = [
            inp.shape[-2:] for inp in self.inputs if inp.dim() == len(size) + 2 >= 4
        ]
        if images and all(disproportion(size[-2:], image) >= 2 for image in images):
            warn_user(
                f"`reshape_transform` makes a grid of {size} for images of "
                f"{tuple(images[0])}: are these its rows and columns? For tokens, give "
                "them, as in functools.partial(vit_reshape, grid=(rows, columns))."
            )
