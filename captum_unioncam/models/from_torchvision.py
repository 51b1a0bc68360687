"""The classification models of torchvision."""

import functools
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captum_unioncam._options import DEFAULT_MODEL
from captum_unioncam.errors import ModelError
from captum_unioncam.models.classifier import Classifier
from captum_unioncam.models.request import Request
from captum_unioncam.models.weights import (
    DEFAULT,
    fit,
    last_length,
    num_classes,
    state_of,
)


def names() -> list[str]:
    """Returns the names of the models."""
    from torchvision import models

    known: list[str] = models.list_models(module=models)
    return known


def load(request: Request) -> Classifier:
    """Loads a model of torchvision, of which there is one of this name.

    Raises:
        ModelError: If the weights cannot be loaded.
    """
    from torchvision import models

    name = request.name
    metadata = models.get_model_weights(name).DEFAULT
    state = state_of(request.weights)
    build = functools.partial(models.get_model, name)
    try:
        if request.weights == DEFAULT:
            model = build(weights=metadata)
        else:
            build = functools.partial(build, weights=None, **_quirks(name, state))
            model = build(**num_classes(name, state, build))
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"the weights of {name} cannot be downloaded ({error}); give a state dict "
            f"as weights, or use {DEFAULT_MODEL}, whose weights need no download"
        ) from error
    categories = metadata.meta["categories"]
    if isinstance(model, models.DenseNet):
        # A module in place of a function, so that the layer is what the head sees.
        model.features.add_module("relu", torch.nn.ReLU())
    fit(name, model, state)
    if last_length(model) != len(categories):
        categories = []
    preprocess = _transforms(metadata.transforms, request)
    return Classifier(name, model.eval(), preprocess, categories)


def _transforms(own: Callable[..., Any], request: Request) -> Any:
    """Returns the preprocessing of the weights, with what was asked for in its place.

    A crop of another size is the same share of the image.
    """
    changed: dict[str, Any] = {}
    if request.size is not None:
        preset = own()
        (resize,), (crop,) = preset.resize_size, preset.crop_size
        changed["crop_size"] = request.size
        changed["resize_size"] = round(request.size * resize / crop)
    if request.mean is not None:
        changed["mean"] = request.mean
    if request.std is not None:
        changed["std"] = request.std
    return own(**changed)


def square_crop(
    size: int, resize: int, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image], Tensor]:
    """Returns a preprocessing: the centre of an image, of a mean and a std.

    Args:
        size (int): Side of the square.
        resize (int): What the shorter side becomes before.
        mean, std (Sequence[float]): Of each colour.
    """
    from torchvision import transforms

    preprocess: Callable[[Image.Image], Tensor] = transforms.Compose(
        [
            transforms.Resize(resize),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    return preprocess


def _quirks(name: str, state: dict[str, Tensor] | None) -> dict[str, bool]:
    """Returns what the builders of two models set for their pretrained weights."""
    if name not in ("googlenet", "inception_v3"):
        return {}
    auxiliary = any(key.lower().startswith("aux") for key in state or {})
    return {
        "transform_input": True,
        "init_weights": False,
        "aux_logits": auxiliary,
    }
