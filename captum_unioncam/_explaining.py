"""The steps of ``explain``: the output, the class, the layer, the maps."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam._checks import check_number, did_you_mean
from captum_unioncam._confidence import score_func_for
from captum_unioncam.attr import UnionCAMDetails
from captum_unioncam.errors import ConfigError, DataError
from captum_unioncam.evaluation.labels import parse_methods
from captum_unioncam.evaluation.methods import Method
from captum_unioncam.layers import find_layer, resolved_layer
from captum_unioncam.wrappers import SelectedOutput, parts_of

# Options of constructors and of ``attribute`` that ``explain`` itself gives.
GIVEN = frozenset(
    ("self", "forward_func", "model", "layer", "device_ids", "inputs", "target")
    + ("additional_forward_args", "return_details")
)

Methods = Mapping[str, tuple[Method, Mapping[str, Any]]]


def parsed_methods(methods: str | Sequence[str]) -> Methods:
    """Returns the methods and their own options, by label."""
    names = methods.split(",") if isinstance(methods, str) else methods
    try:
        parsed = parse_methods([name.strip() for name in names])
    except ValueError as error:
        raise ConfigError(f"`methods`: {error}") from error
    if not parsed:
        raise ConfigError("`methods` must name at least one method, got none")
    return parsed


def known_options(method: Method) -> set[str]:
    """Returns the options of a method's constructor and of its ``attribute``."""
    functions = (method.attribution, method.attribution.attribute)
    names = [name for f in functions for name in inspect.signature(f).parameters]
    return set(names) - GIVEN


def check_call(
    model: Module, methods: Methods, fidelity: float, options: Mapping[str, Any]
) -> None:
    """Refuses a model that is none, or trains, and options that no method has."""
    if not isinstance(model, Module):
        raise TypeError(
            f"`model` must be a torch.nn.Module, got {model!r}; the attribution "
            "classes, such as UnionCAM, take any function."
        )
    if model.training:
        raise ValueError(
            "`model` must be in eval mode, or batch normalisation and dropout change "
            "the scores; call model.eval() first."
        )
    check_number("fidelity", fidelity, 0, 1)
    known = set().union(*(known_options(method) for method, _ in methods.values()))
    for name in options:
        if name not in known:
            raise TypeError(
                f"`{name}` is an option of none of the methods {', '.join(methods)}"
                f"{did_you_mean(name, sorted(known))}"
            )


def class_scores(
    model: Module, inputs: Tensor, options: Mapping[str, Any]
) -> tuple[Module, Tensor, str]:
    """Returns what to explain, the scores of all classes, and which output it is.

    Raises:
        ConfigError: If the output is not one row of class scores for each image.
        DataError: If the scores are not finite.
    """
    with torch.no_grad():
        output = model(inputs.clone())  # which a model may change in place
    words = "the model's"
    if not isinstance(output, Tensor):
        kind, parts = type(output).__name__, parts_of(output)
        key = _key_of_scores(parts, len(inputs), kind)
        model, output = _selected(model, key), parts[key]
        words = f"{key!r} of the model's {kind}"
    if output.dim() != 2 or len(output) != len(inputs):
        raise ConfigError(
            "`model` must return one row of class scores for each image, "
            f"({len(inputs)}, classes), got the shape {tuple(output.shape)}; wrap it, "
            "as captum_unioncam.wrappers does"
        )
    scores = score_func_for(output, options.get("score_func"))(output).detach()
    broken = (~scores.isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        which = "the image" if len(inputs) == 1 else f"the images {broken}"
        raise DataError(
            f"the model's scores of {which} are not finite (NaN); look at its weights"
        )
    return model, scores, words


def _key_of_scores(parts: Mapping[Any, Any], rows: int, kind: str) -> Any:
    """Returns the key of a model's class scores: "logits", or the only ones."""
    found = [
        key
        for key, part in parts.items()
        if isinstance(part, Tensor) and part.dim() == 2 and len(part) == rows
    ]
    if "logits" in found:
        return "logits"
    if len(found) != 1:
        raise ConfigError(
            f"`model` returns a {kind} with {len(found)} parts of shape ({rows}, "
            f"classes) among {list(parts)}; choose one, as in explain("
            'captum_unioncam.SelectedOutput(model, "logits"), ...)'
        )
    return found[0]


def _selected(model: Module, key: Any) -> Module:
    """Returns a model that returns one part of its output, in the model's mode."""
    selected = SelectedOutput(model, key)
    selected.training = model.training  # .eval() would change all modules in it
    return selected


def checked_categories(categories: Sequence[str], scores: Tensor) -> tuple[str, ...]:
    if len(categories) not in (0, scores.shape[1]):
        raise ValueError(
            f"`categories` must be one name for each of {scores.shape[1]} classes, got "
            f"{len(categories)}."
        )
    return tuple(categories)


def checked_targets(
    target: int | Sequence[int] | Tensor | None, scores: Tensor
) -> Tensor:
    """Returns the class to explain of each image, (N,)."""
    images, classes = scores.shape
    if target is None:
        return scores.argmax(1)
    targets = torch.as_tensor(target, device=scores.device)
    if targets.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
        raise TypeError(f"`target` must be whole numbers, got {target!r}.")
    if targets.dim() > 1 or targets.numel() not in (1, images):
        raise ValueError(
            f"`target` must be one class, or one for each of {images} images, got "
            f"{target!r}."
        )
    if not bool(((targets >= 0) & (targets < classes)).all()):
        raise ValueError(f"`target` must be in [0, {classes - 1}], got {target!r}.")
    return targets.long().expand(images)


def found_layer(
    model: Module, inputs: Tensor, layer: Module | str | None, methods: Methods
) -> tuple[Module | str, str | None]:
    """Returns the layer, and its name; "" and None if no method takes one.

    Raises:
        ValueError: If no layer is found, or the model does not have it.
    """
    if not any(method.takes_layer for method, _ in methods.values()):
        return "", None
    if layer is None:
        found = find_layer(model, inputs[:1])
    else:
        found = resolved_layer(model, layer)
    if isinstance(layer, str):
        return found, layer
    names = [name for name, module in model.named_modules() if module is found]
    if not names:
        raise ValueError(
            f"`layer` must be a module of `model`, got another {type(found).__name__}."
        )
    return found, names[0]


def fidelity_in_words(fidelity: float, methods: Methods) -> str:
    if not any("fidelity" in known_options(method) for method, _ in methods.values()):
        return "not used: the maps are exact"
    if fidelity == 1:
        return "1: the exact maps"
    return f"{fidelity:g} by estimate: some scores are predicted (1 scores all)"


def made_maps(
    model: Module,
    layer: Module | str,
    inputs: Tensor,
    targets: Tensor,
    methods: Methods,
    offered: Mapping[str, Any],
) -> tuple[dict[str, Tensor], dict[str, UnionCAMDetails]]:
    """Returns the maps of each method, and the details of those that have some."""
    maps, details = {}, {}
    for label, (method, own) in methods.items():
        signature = inspect.signature(method.attribution.attribute)
        detailed = "return_details" in signature.parameters
        if detailed:
            own = {**own, "return_details": True}
        attribute = method.explain(model, layer, own, **offered)
        found = attribute(inputs, target=targets)
        if detailed:
            found, details[label] = found
        if not isinstance(found, Tensor):
            raise ValueError("`layer` has several tensors; choose another")
        maps[label] = found
    return maps, details
