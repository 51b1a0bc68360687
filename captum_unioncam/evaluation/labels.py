"""Methods with their options as labels, such as unioncam:theta=30.

The parts of a union are names with + between them: unioncam:parts=layercam+regioncam.
``package.module:Class`` is a class of the user's own, which may have options too.
"""

import ast
import inspect
from collections.abc import Sequence
from typing import Any

from captum.attr import Attribution

from captum_unioncam._checks import did_you_mean
from captum_unioncam._objects import named_object
from captum_unioncam.evaluation.methods import METHODS, Method

# Captum's common arguments, what only Python has, and what changes more than the map.
NOT_IN_LABELS = (
    *("self", "inputs", "target", "additional_forward_args"),
    *("attribute_to_layer_input", "return_details", "show_progress"),
    *("forward_func", "model", "layer", "device_ids", "reshape_transform", "head"),
    *("scoring_func", "memory_format"),
)


def parse_method(label: str) -> tuple[Method, dict[str, Any]]:
    """Returns the method of a label such as unioncam:theta=30, and its options.

    Raises:
        ValueError: If there is no such method, or the method has no such option.
    """
    name, *pairs = _normal(label).split(":")
    if name in METHODS:
        method = METHODS[name]
    elif pairs and "=" not in pairs[0]:  # a class, and no option
        name = f"{name}:{pairs.pop(0)}"
        method = own_method(name)
    else:
        raise ValueError(
            f"there is no method {name!r}{did_you_mean(name.lower(), METHODS)}; known "
            f"are {', '.join(METHODS)}, and package.module:Class is one of your own"
        )
    parameters = {
        **inspect.signature(method.attribution.attribute).parameters,
        **inspect.signature(method.attribution).parameters,
    }
    known = [name for name in parameters if name not in NOT_IN_LABELS]
    options: dict[str, Any] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        if key not in known:
            raise ValueError(
                f"{label!r}: {name} has no option {key!r}{did_you_mean(key, known)}; "
                f"it has {', '.join(known)}"
            )
        if key in options:
            raise ValueError(f"{label!r}: {key!r} is given twice; give one value")
        if key == "parts":
            options[key] = _parts(label, text)
            continue
        if isinstance(parameters[key].default, str) and text.isidentifier():
            options[key] = None if text == "None" else text
            continue
        try:
            options[key] = _number(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as e:
            raise ValueError(
                f"{label!r}: the value of {key!r} must be a number, True, False or "
                f"None, got {text!r}"
            ) from e
    return method, options


def _parts(label: str, text: str) -> tuple[Method, ...]:
    """Returns the methods whose maps a union unites."""
    names = [_normal(name) for name in text.split("+")]
    layered = [name for name, method in METHODS.items() if method.takes_layer]
    for name in names:
        if name not in layered:
            raise ValueError(
                f"{label!r}: `parts` must be names of methods that explain a layer, "
                f"with + between them, got {text!r}{did_you_mean(name, layered)}"
            )
    return tuple(METHODS[name] for name in names)


def own_method(spec: str) -> Method:
    """Returns a class of the user's own as a method.

    Args:
        spec (str): ``package.module:Class``, a :class:`captum.attr.Attribution` with a
            constructor that takes the model and, if it explains one, a ``layer``.

    Raises:
        ValueError: If there is no such class, or it is no attribution.
    """
    found = named_object(spec, spec)
    if not (isinstance(found, type) and issubclass(found, Attribution)):
        raise ValueError(
            f"{spec!r} must be a class that derives from captum.attr.Attribution, got "
            f"{found!r}"
        )
    if inspect.isabstract(found):
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ValueError(f"{spec!r} is abstract; it must define {missing}")
    return Method(
        found,
        paper="your own",
        link="",
        needs_gradients=True,
        forwards="unknown",
        deviations="none",
    )


def _normal(label: str) -> str:
    """Returns a label with the name of its method as it is registered."""
    name, *pairs = label.split(":")
    if name not in METHODS:
        same = [known for known in METHODS if known.casefold() == name.casefold()]
        name = same[0] if len(same) == 1 else name
    return ":".join([name, *pairs])


def _number(text: str) -> float | None:
    """Returns the value of an option: a number, True, False or None."""
    value = ast.literal_eval(text)
    if value is not None and not isinstance(value, int | float):
        raise TypeError(f"it is a {type(value).__name__}")
    return value


def parse_methods(labels: Sequence[str]) -> dict[str, tuple[Method, dict[str, Any]]]:
    """Returns the methods and their options by label, each once.

    Names may be in any case; ``all`` stands for every name that is not among them,
    explains any model, and is no baseline.

    Raises:
        ValueError: As :func:`parse_method`.
    """
    every: list[str] = []
    of_all = [n for n, m in METHODS.items() if m.any_model and not m.baseline]
    for label in labels:
        every += of_all if label.casefold() == "all" else [_normal(label)]
    return {label: parse_method(label) for label in dict.fromkeys(every)}


def parse_baselines(labels: Sequence[str]) -> dict[str, tuple[Method, dict[str, Any]]]:
    """Returns the methods of labels that look at no model; of ``none``, no methods.

    Raises:
        ValueError: As :func:`parse_method`, or if a method looks at a model.
    """
    if [label.casefold() for label in labels] == ["none"]:
        return {}
    parsed = parse_methods(labels)
    for label, (method, _) in parsed.items():
        if not method.baseline:
            known = [name for name, method in METHODS.items() if method.baseline]
            raise ValueError(
                f"{label} looks at the model; name it under `methods`, as these are "
                f"{', '.join(known)}, or none"
            )
    return parsed
