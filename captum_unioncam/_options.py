"""Options as fields of a dataclass: one declaration for Python and the command line."""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import Field, dataclass, field
from typing import Any

from captum_unioncam._checks import (
    check_choice,
    check_integer,
    check_number,
    check_text,
)
from captum_unioncam.errors import ConfigError

DEFAULT_MODEL = "efficientnet_lite0"


MODEL_HELP = (
    "efficientnet_lite0, 1 or 2; a classification model of torchvision; timm:NAME; "
    "hf:NAME or hf:FOLDER, an image classifier of transformers; or "
    "package.module:function, which returns a model, (model, preprocess, class names), "
    "or a Classifier"
)


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    choices: Sequence[str] = (),
    positional: bool = False,
    metavar: str | None = None,
    const: str | None = None,
    unless: str | None = None,
) -> Any:
    """Declares an option as a field of a dataclass.

    Args:
        help (str): One line for the command line's help, without the default.
        default (Any, optional): Its default; an option without one is required.
        low, high (float, optional): The bounds of a number.
        choices (Sequence[str], optional): The values of a string.
        positional (bool, optional): Whether the command takes it without a name.
        metavar (str, optional): What the help shows for its value.
        const (str, optional): Its value where the name stands alone.
        unless (str, optional): With this other option of the command, it is not
            required.
    """
    declared = {
        "help": help,
        "low": low,
        "high": high,
        "choices": choices,
        "positional": positional,
        "metavar": metavar,
        "const": const,
        "unless": unless,
    }
    return field(default=default, metadata=declared)


def kind_of(declared: "Field[Any]") -> Any:
    """Returns the type of a field's value, without None."""
    if isinstance(declared.type, types.UnionType):
        return next(k for k in typing.get_args(declared.type) if k is not type(None))
    return declared.type


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and what takes the place of its own metadata."""

    model: str = option(MODEL_HELP, DEFAULT_MODEL, metavar="NAME")
    weights: str = option(
        "pretrained weights, random ones, or a file: a state dict, or a checkpoint "
        "with one as state_dict or model, also in safetensors",
        "default",
        metavar="default|none|PATH",
    )
    categories: str | None = option(
        "file of the class names, one a line, or a JSON list (default: the model's "
        "own)",
        None,
        metavar="FILE",
    )
    size: int | None = option(
        "side of the square that images are cropped to, in pixels (default: the "
        "model's own)",
        None,
        low=1,
        metavar="PIXELS",
    )
    mean: tuple[float, ...] | None = option(
        "what is taken off colours in [0, 1], one number, or three with commas "
        "(default: the model's own)",
        None,
        metavar="NUMBERS",
    )
    std: tuple[float, ...] | None = option(
        "what colours are then divided by, one number, or three with commas "
        "(default: the model's own)",
        None,
        metavar="NUMBERS",
    )

    @property
    def metadata(self) -> dict[str, Any]:
        """What was given in place of the model's own metadata."""
        names = ("categories", "size", "mean", "std")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def check_option(declared: "Field[Any]", value: Any, name: str | None = None) -> None:
    """Refuses a value that is outside of what the field declares.

    Raises:
        ValueError or TypeError: Names the option, by ``name`` if it is given.
    """
    name, rules = name or declared.name, declared.metadata
    if value is None and declared.default is None:
        return
    if rules["choices"]:
        check_choice(name, value, rules["choices"])
    elif kind_of(declared) is int:
        or_none = declared.default is None
        check_integer(name, value, rules["low"], rules["high"], or_none=or_none)
    elif kind_of(declared) is float:
        check_number(name, value, rules["low"], rules["high"])
    elif kind_of(declared) == tuple[float, ...]:
        if not isinstance(value, tuple):
            raise TypeError(f"`{name}` must be a tuple of numbers, got {value!r}.")
        for number in value:
            check_number(name, number, rules["low"], rules["high"])
    elif kind_of(declared) is str:
        check_text(name, value)


def check_options(config: Any) -> None:
    """Refuses a configuration that has a wrong value.

    Raises:
        ConfigError: Names the field.
    """
    for declared in dataclasses.fields(config):
        try:
            check_option(declared, getattr(config, declared.name))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{error}") from error
