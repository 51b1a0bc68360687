"""Runs a model on a batch, and refuses what is none."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from captum_unioncam._captum import TargetType, as_arguments, as_tuple

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on


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
        args = as_arguments(additional_forward_args)
        tensors = tuple(_outside_inference_mode(inp) for inp in as_tuple(inputs))
        _check_batch(tensors)
        return cls(
            forward_func,
            tensors,
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

    def arguments_of(self, examples: Tensor) -> tuple[Any, ...] | None:
        """Returns the additional arguments of some of the examples, (P,).

        A tensor with one row for each example is picked from. Any other argument (a
        number, None, a list, a tensor of another length) is passed unchanged. Tensors
        are copies, because a model may change them in place.
        """
        if self.additional_forward_args is None:
            return None

        def pick(argument: Any) -> Any:
            if not isinstance(argument, Tensor):
                return argument
            if argument.dim() and argument.shape[0] == self.batch_size:
                return argument[examples.to(argument.device)]
            return argument.clone()

        return tuple(map(pick, self.additional_forward_args))

    def scored_by(self, scoring_func: Callable[..., Any] | None) -> "ModelCall":
        """Returns this call with a scoring function instead of the model, if given."""
        return ModelCall(
            self.forward_func if scoring_func is None else scoring_func,
            self.inputs,
            self.target,
            self.additional_forward_args,
        )

    def run(self, inputs: tuple[Tensor, ...], args: tuple[Any, ...] | None) -> Tensor:
        """Returns the model's whole output for other inputs and arguments."""
        output: Any = self.forward_func(*inputs, *(args or ()))
        if hasattr(output, "wait"):
            # Future.then returns an instance of the private base class of Future.
            output = output.wait()
        return check_rows(output, len(inputs[0]))


def _outside_inference_mode(value: Any) -> Any:
    """Copies the tensors that inference mode made: autograd refuses the originals."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if type(value) in (list, tuple):
        return type(value)(map(_outside_inference_mode, value))
    if type(value) is dict:
        return {key: _outside_inference_mode(entry) for key, entry in value.items()}
    return value


def _check_batch(inputs: tuple[Tensor, ...]) -> None:
    """Refuses inputs of different numbers of examples."""
    if any(inp.dim() == 0 or len(inp) != len(inputs[0]) for inp in inputs):
        raise ValueError(
            "`inputs` must all have one row for each example, got the shapes "
            f"{[tuple(inp.shape) for inp in inputs]}; move what all examples share to "
            "`additional_forward_args`."
        )


def check_rows(output: Any, rows: int) -> Tensor:
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
