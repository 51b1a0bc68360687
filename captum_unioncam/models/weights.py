"""Weights from files: which forms are read, and whether they fit a model."""

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.errors import ModelError, one_line

# Weights that are no file: the best there are, and random ones.
DEFAULT, RANDOM = "default", "none"

# Where checkpoints of training programs hold their state dict.
NESTED = ("state_dict", "model", "model_state_dict")

# Before the names in the state dict of a DataParallel model, and of a compiled one.
PREFIXES = ("module.", "_orig_mod.")


def state_of(weights: str) -> dict[str, Tensor] | None:
    """Returns the state dict of a file; None for "default" and "none".

    Raises:
        ModelError: If the file is missing, or holds no state dict.
    """
    return None if weights in (DEFAULT, RANDOM) else read_state(weights)


def read_state(path: str) -> dict[str, Tensor]:
    """Reads a state dict, without running code from the file."""
    if not os.path.isfile(path):
        raise ModelError(
            f"there is no weights file {path!r}; give 'default', 'none' or a file"
        )
    try:
        return _state_in(_load(path))
    except ModelError:
        raise
    except Exception as error:  # the readers may raise anything for a broken file
        raise ModelError(
            f"the weights {path!r} must be a file that holds a state dict of tensors "
            f"({one_line(error)}); save it with torch.save(model.state_dict(), path)"
        ) from error


def _load(path: str) -> Any:
    """Returns what a file of torch.save or safetensors holds."""
    if not f"{path}".lower().endswith(".safetensors"):
        return torch.load(path, map_location="cpu", weights_only=True)
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(
            f"the weights {path!r} need a package; run `pip install safetensors`"
        ) from error
    return load_file(path, device="cpu")


def _state_in(loaded: Any) -> dict[str, Tensor]:
    """Returns the one state dict that a file's content is, or holds."""
    state = loaded
    if isinstance(loaded, dict) and not _is_state(loaded):
        nested = [name for name in NESTED if _is_state(loaded.get(name))]
        if len(nested) > 1:
            raise ValueError(f"it holds several: {', '.join(nested)}")
        state = loaded[nested[0]] if nested else None
    if not _is_state(state):
        raise ValueError(f"it holds a {type(loaded).__name__} without one")
    for name, value in state.items():
        if not _is_whole(value):
            raise ValueError(f"{name!r} has fewer values than {tuple(value.shape)}")
    return _without_prefix(state)


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(n, str) and isinstance(v, Tensor) for n, v in value.items())
    )


def _is_whole(value: Tensor) -> bool:
    """Returns whether a tensor has memory for all the values that it claims."""
    if value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict of the model that a wrapper such as DataParallel holds."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_prefix(_renamed(state, prefix))
    return state


def _renamed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    inner = OrderedDict((n.removeprefix(prefix), v) for n, v in state.items())
    # The versions of the modules, by which some of them read older files.
    versions = getattr(state, "_metadata", {})
    inner._metadata = {  # type: ignore[attr-defined]
        f"{name}.".removeprefix(prefix).rstrip("."): value
        for name, value in versions.items()
    }
    return inner


def num_classes(
    name: str, state: dict[str, Tensor] | None, build: Callable[..., Module]
) -> dict[str, int]:
    """Returns the number of classes of a state dict: the length of the head's bias.

    Nothing of that size is allocated before all shapes of the state dict are those of
    the model.
    """
    if state is None:
        return {}
    with torch.device("meta"):
        bias = list(build().state_dict())[-1]
    if bias not in state or state[bias].dim() != 1:
        return {}
    count = len(state[bias])
    if count == 0:
        raise ModelError(f"the weights of {name} have a head of 0 classes, {bias!r}")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # that nothing is copied
        try:
            build(num_classes=count).load_state_dict(state)
        except Exception as error:  # models read their own state
            raise _does_not_fit(name, error) from error
    return {"num_classes": count}


def fit(name: str, model: Module, state: dict[str, Tensor] | None) -> None:
    """Loads a state dict, if there is one.

    Raises:
        ModelError: If it is not the model's.
    """
    if state is None:
        return
    try:
        model.load_state_dict(state)
    except Exception as error:  # models read their own state
        raise _does_not_fit(name, error) from error


def last_length(model: Module) -> int:
    """Returns the length of a model's last tensor: in most, the bias of the head."""
    return len(list(model.state_dict().values())[-1])


def _does_not_fit(name: str, error: Exception) -> ModelError:
    reason = " ".join(f"{error}".split())[:200]
    return ModelError(f"the weights do not fit {name}: {reason} ...")
