"""Captum's private names, for the rest of the package: their only import site.

Nothing is promised for private names: ``tests/test_captum.py`` checks the facts that
the package relies on.
"""

import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction
from typing import Any, TypeVar, cast

import torch
from captum._utils.common import (
    _expand_target,
    _extract_device,
    _format_additional_forward_args,
    _format_tensor_into_tuples,
    _select_targets,
)
from captum._utils.gradient import (
    _forward_layer_eval,
    compute_layer_gradients_and_eval,
)
from captum._utils.progress import NullProgress, progress
from captum._utils.typing import TargetType
from captum.attr._utils.approximation_methods import (
    SUPPORTED_METHODS,
    approximation_parameters,
)
from captum.log import log_usage
from torch import Tensor

from captum_unioncam._progress import HeardProgress, current_listener

__all__ = [
    "HOOKS_LOCK",
    "INTEGRATION_METHODS",
    "TargetType",
    "as_arguments",
    "as_tuple",
    "attribution_method",
    "device_of_run",
    "expand_target",
    "integration_steps",
    "layer_activations",
    "layer_gradients",
    "progress_bar",
    "select_targets",
]

Method = TypeVar("Method", bound=Callable[..., Any])

# Hooks on a layer see the passes of every thread that runs the model.
HOOKS_LOCK = threading.RLock()

# Used as they are.
INTEGRATION_METHODS = SUPPORTED_METHODS
device_of_run = _extract_device
layer_activations = _forward_layer_eval
layer_gradients = compute_layer_gradients_and_eval


def attribution_method(method: Method) -> Method:
    """Decorates every ``attribute`` method of the package.

    Captum's NoiseTunnel and TCAV call ``attribute.__wrapped__``, which ``log_usage``
    provides. The body runs outside of the caller's autograd and inference modes, which
    are restored after any exit: gradients work under ``torch.no_grad`` and
    ``torch.inference_mode``, and masked passes never record a graph. Calls from several
    threads run one after the other.
    """

    @functools.wraps(method)
    def isolated(*args: Any, **kwargs: Any) -> Any:
        with HOOKS_LOCK, torch.inference_mode(False), torch.no_grad():
            return method(*args, **kwargs)

    return cast(Method, log_usage(part_of_slo=True)(isolated))


def as_tuple(tensors: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Returns a tensor, or a tuple of tensors, as a tuple."""
    return cast(tuple[Tensor, ...], _format_tensor_into_tuples(tensors))


def as_arguments(arguments: object) -> tuple[Any, ...] | None:
    """Returns ``additional_forward_args`` as a tuple; a list is one argument."""
    return cast(tuple[Any, ...] | None, _format_additional_forward_args(arguments))


def select_targets(output: Tensor, target: TargetType) -> Tensor:
    """Returns each example's value at ``target``; Captum's errors pass."""
    return cast(Tensor, _select_targets(output, target))


def expand_target(target: TargetType, repeats: int) -> TargetType:
    """Repeats the target of each example, as Captum does for expanded inputs."""
    return _expand_target(target, repeats)


def integration_steps(method: str, steps: int) -> list[tuple[float, float]]:
    """Returns the points in [0, 1] of a rule of integration, and their step sizes."""
    step_sizes, alphas = approximation_parameters(method)
    with torch.device("cpu"):  # whatever the default device
        points = alphas(steps)
    if method != "gausslegendre":
        # Multiples of 1 / (2 steps) or 1 / (steps - 1), which Captum rounds to the
        # default type.
        exact = [Fraction(point).limit_denominator(2 * steps) for point in points]
        points = list(map(float, exact))
    return list(zip(points, step_sizes(steps), strict=True))


def progress_bar(description: str | None, total: int) -> AbstractContextManager[Any]:
    """Returns Captum's progress bar (on stderr), or for None one that does nothing.

    Where somebody listens, they hear of it in place of the bar.
    """
    if description is None:
        return cast(AbstractContextManager[Any], NullProgress())
    listener = current_listener()
    if listener is not None:
        return HeardProgress(listener, description, total)
    bar = progress(desc=f"{description} attribution", total=total)
    return cast(AbstractContextManager[Any], bar)
