"""Models that a function of the user's returns."""

import dataclasses
from typing import Any

from torch.nn import Module

from captum_unioncam._checks import warn_user
from captum_unioncam._objects import named_object
from captum_unioncam.errors import ConfigError, ModelError, UserError, one_line
from captum_unioncam.models.classes import checked_categories
from captum_unioncam.models.classifier import Classifier
from captum_unioncam.models.from_torchvision import square_crop
from captum_unioncam.models.request import Request
from captum_unioncam.models.weights import RANDOM, fit, state_of

# What images become where the function says nothing: ImageNet's usual.
SIZE, RESIZE = 224, 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

FORMS = "a torch.nn.Module, (model, preprocess, class names), or a Classifier"


def load(request: Request) -> Classifier:
    """Calls a function, and returns the classifier that it makes.

    Raises:
        ConfigError: If there is no such function, or an option contradicts it.
        ModelError: If the function fails, or returns anything but a model.
    """
    name = request.name
    function = named_object(name, "model")
    if isinstance(function, Module) or not callable(function):
        raise ConfigError(
            f"`model`: {name} must be a function that returns {FORMS}, got a "
            f"{type(function).__name__}"
        )
    if request.weights == RANDOM:
        raise ConfigError(
            f"`weights`: {name} decides on its weights; leave 'none' out, or give a "
            "file"
        )
    state = state_of(request.weights)
    try:
        made = function()
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise ModelError(
            f"{name}() failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    classifier = _classifier(name, made, request)
    fit(name, classifier.model, state)
    classifier.model.eval()
    return classifier


def _classifier(name: str, made: Any, request: Request) -> Classifier:
    if isinstance(made, Module):
        return Classifier(name, made, _usual(name, request), [])
    if request.changed:
        raise ConfigError(
            f"`{request.changed[0]}`: {name} has its own preprocessing; change it "
            "there, or return the model alone"
        )
    if isinstance(made, Classifier):
        return dataclasses.replace(made, name=name)
    if isinstance(made, tuple) and len(made) == 3:
        model, preprocess, categories = made
        if isinstance(model, Module) and callable(preprocess):
            known = checked_categories(categories, name) if categories else []
            return Classifier(name, model, preprocess, known)
    kinds = made if isinstance(made, tuple) else (made,)
    got = ", ".join(type(part).__name__ for part in kinds)
    raise ModelError(f"{name}() must return {FORMS}, got {got}")


def _usual(name: str, request: Request) -> Any:
    """Returns the preprocessing of a model that brings none."""
    size = request.size or SIZE
    mean, std = request.mean or MEAN, request.std or STD
    if not request.mean or not request.std:
        warn_user(
            f"{name} returns no preprocessing: images are normalised by mean {mean} "
            f"and std {std}, as ImageNet's usually are. Give mean and std, or return "
            "(model, preprocess, class names)."
        )
    return square_crop(size, round(size * RESIZE / SIZE), mean, std)
