"""What the app computes: one model in memory, and one request at a time."""

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from captum_unioncam._explaining import class_scores
from captum_unioncam._progress import Listener, progress_to
from captum_unioncam.cli.explaining import ClassExplanation, Setup, explain_classes
from captum_unioncam.cli.listing import default_layer_of
from captum_unioncam.cli.options import AppOptions, ExplainOptions
from captum_unioncam.errors import ConfigError, DataError
from captum_unioncam.evaluation.data import read_image
from captum_unioncam.models import (
    Classifier,
    list_models,
    load_classifier,
    resolve_device,
)

MEGABYTE = 2**20
LARGEST_UPLOAD = 20 * MEGABYTE
# Larger files do not reach the disk; of those between, the user reads what is wrong.
LARGEST_BODY = 5 * LARGEST_UPLOAD

Choice = tuple[str, str]  # what is shown, and its value


@dataclass(frozen=True)
class Photo:
    """An image of a user.

    Attributes:
        name (str): The name of its file, without a folder.
        path (str or None): The file; None for an example of scikit-image.
    """

    name: str
    path: str | None = None

    @property
    def example(self) -> str | None:
        """The name of scikit-image's photograph, or None."""
        return Path(self.name).stem if self.path is None else None

    def read(self) -> Image.Image:
        """Returns the image as RGB, upright, under the command's own checks.

        Raises:
            DataError: If it cannot be read, or is too large.
        """
        if self.path is None:
            return Image.fromarray(_examples()[Path(self.name).stem]())
        file = Path(self.path)
        if not file.is_file():
            raise DataError(
                f"the image {self.name} is not kept any more; drop it again"
            )
        if file.stat().st_size > LARGEST_UPLOAD:
            raise DataError(
                f"The image {self.name} has more than {LARGEST_UPLOAD // MEGABYTE} MB; "
                "scale it down first"
            )
        return read_image(f"The image {self.name}", file.read_bytes())


@dataclass(frozen=True)
class Result:
    """One class of an image, by several methods. It holds no model.

    Attributes:
        photo (Photo): The image.
        options (ExplainOptions): With which the command makes the same maps.
        found (ClassExplanation): The maps, and what they keep.
    """

    photo: Photo
    options: ExplainOptions
    found: ClassExplanation


class Engine:
    """Holds a model, and explains images by it, one after the other."""

    def __init__(self, options: AppOptions) -> None:
        self._options = options
        self._device = resolve_device(options.device)
        self._lock = threading.RLock()
        self._loaded: tuple[str, Classifier] | None = None

    @property
    def device(self) -> str | None:
        """The device that the command named."""
        return self._options.device

    def models(self) -> list[str]:
        """Returns the models to choose from: the command's, and all known names.

        Names such as package.module:function, which run code, and files are for the
        one who starts the app.
        """
        return list(dict.fromkeys([self._options.model, *list_models()]))

    def model_options(self, model: str) -> dict[str, Any]:
        """Returns a model's options; those of the command are its own model's.

        Raises:
            ConfigError: If the model is not one to choose.
        """
        if model != self._options.model:
            if model not in self.models():
                raise ConfigError(f"`model` must be one of the list, got {model!r}")
            return {"model": model}
        weights = self._options.weights
        return {"model": model, "weights": weights, **self._options.metadata}

    def layers(self, model: str) -> tuple[list[Choice], str | None]:
        """Returns the spatial layers with their sizes, and the default one."""
        with self._lock:
            classifier = self._classifier(model)
            layers, default = classifier.spatial_layers(), default_layer_of(classifier)
        choices = [
            (f"{layer.name} ({layer.kind}, {' x '.join(map(str, layer.shape))})", name)
            for layer in layers
            for name in [layer.name]
        ]
        names = [name for _, name in choices]
        if default is not None and default not in names:
            choices.append((default, default))
        return choices, default or (names[-1] if names else None)

    def classes(self, model: str, photo: Photo) -> list[tuple[str, int]]:
        """Returns all classes with their confidences, those most confident first."""
        image = photo.read()
        with self._lock:
            classifier = self._classifier(model)
            inputs = classifier.preprocess(image)[None].to(self._device)
            _, scores, _ = class_scores(classifier.model, inputs, {})
        names = classifier.categories or [""] * scores.shape[1]
        return [
            (f"{index} {names[index]} {score:.1%}".replace("  ", " "), index)
            for score, index in zip(
                *(values.tolist() for values in scores[0].sort(descending=True)),
                strict=True,
            )
        ]

    def explain(
        self, photo: Photo, options: ExplainOptions, listener: Listener
    ) -> Result:
        """Explains a class of an image; the listener hears of it, and may end it.

        Raises:
            UserError: If the image, the model or an option is wrong.
        """
        image = photo.read()
        with self._lock, progress_to(listener):
            classifier = self._classifier(options.model)
            layer = options.layer or classifier.default_layer
            setup = Setup(
                options,
                classifier,
                classifier.layer(layer),
                layer,
                classifier.reshape_transform(layer),
                options.methods,
            )
            (found,) = explain_classes(setup, [image], show_progress=True)
        # The results of all users would keep their models in memory.
        explanation = dataclasses.replace(found.explanation, model=nn.Identity())
        found = dataclasses.replace(found, explanation=explanation)
        return Result(photo, options, found)

    def _classifier(self, model: str) -> Classifier:
        """Returns a classifier on the device, in place of the one in memory."""
        if self._loaded is not None and self._loaded[0] == model:
            return self._loaded[1]
        options = self.model_options(model)
        self._loaded = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        classifier = load_classifier(options.pop("model"), **options)
        classifier.model.to(self._device)
        self._loaded = (model, classifier)
        return classifier


def example_names() -> list[str]:
    """Returns the names of the examples; none without scikit-image."""
    try:
        return list(_examples())
    except ImportError:
        return []


def _examples() -> dict[str, Callable[[], Any]]:
    from skimage import data

    return {"coffee": data.coffee, "chelsea": data.chelsea}
