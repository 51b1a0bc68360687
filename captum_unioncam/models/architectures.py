"""How to read the layers of transformers, by what a model is.

A model's class, and of HuggingFace's its configuration, say what its layers hold:
tokens with how many before those of the patches, or channels that come last. Nothing is
guessed from names of unknown models, or from shapes: for these, there is no answer.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.nn import Module

from captum_unioncam._reshape import ReshapeTransform
from captum_unioncam.layers import swin_reshape, vit_reshape
from captum_unioncam.wrappers import SelectedOutput

# Where the layers of a wrapped model are.
WRAPPED = "model."


@dataclass(frozen=True)
class Architecture:
    """How to read the layers of one model.

    Attributes:
        readings (Mapping[str, Callable]): By a regular expression of whole names of
            layers, what makes channels of a map of them.
        default_layer (str or None): The layer to explain; None if a run of the model
            finds it.
        prefix (str): What the names of all layers start with.
    """

    readings: Mapping[str, ReshapeTransform]
    default_layer: str | None
    prefix: str = ""

    def reading(self, name: str) -> ReshapeTransform | None:
        """Returns how to read a layer; None if its channels come first."""
        inner = name.removeprefix(self.prefix)
        for pattern, reshape_transform in self.readings.items():
            if re.fullmatch(pattern, inner):
                return reshape_transform
        return None


def architecture_of(model: Module) -> Architecture | None:
    """Returns how to read the layers of a transformer that is known, else None.

    A subclass counts as what it inherits from.
    """
    if isinstance(model, SelectedOutput):
        inner = architecture_of(model.model)
        if inner is None:
            return None
        prefix = f"{WRAPPED}{inner.prefix}"
        default = inner.default_layer and f"{WRAPPED}{inner.default_layer}"
        return Architecture(inner.readings, default, prefix)
    for kind in type(model).__mro__:
        package = kind.__module__.partition(".")[0]
        if package == "transformers":
            return _transformers(model)
        if (package, kind.__name__) in ARCHITECTURES:
            return ARCHITECTURES[package, kind.__name__](model)
    return None


def _named(model: Module, pattern: str) -> str | None:
    """Returns the last layer whose name matches as a whole."""
    names = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    return names[-1] if names else None


def _torchvision_vit(model: Any) -> Architecture:
    # The normalised input of the last block: the patch tokens after it change nothing.
    return Architecture(
        {r"encoder(\..*)?": vit_reshape}, _named(model, r"encoder\..*\.ln_1")
    )


def _torchvision_swin(model: Any) -> Architecture:
    # The default is a module that moves the channels first, which a run finds.
    return Architecture({r"(features|norm)(\..*)?": swin_reshape}, None)


# Blocks of timm that normalise their input: others normalise what they add.
PRE_NORM = ("Block", "EvaBlock", "RelPosBlock")


def _timm_vit(model: Any) -> Architecture:
    tokens = partial(vit_reshape, prefix_tokens=model.num_prefix_tokens)
    last = len(model.blocks) - 1
    if model.global_pool != "token":  # the head reads the patch tokens
        default = f"blocks.{last}"
    elif type(model.blocks[last]).__name__ in PRE_NORM:
        default = f"blocks.{last}.norm1"
    else:
        default = f"blocks.{last - 1}"
    return Architecture({r"(pos_drop|norm_pre|blocks|norm)(\..*)?": tokens}, default)


def _timm_mixer(model: Any) -> Architecture:
    # Within a block, tokens and features change places.
    tokens = partial(vit_reshape, prefix_tokens=0)
    return Architecture({r"blocks|blocks\.\d+(\.norm[12])?|norm": tokens}, "norm")


def _timm_swin(model: Any) -> Architecture:
    # Within a block, there are windows and tokens too.
    inner = r"(\.(downsample|blocks|blocks\.\d+(\.norm1)?))?"
    pattern = rf"patch_embed|layers|layers\.\d+{inner}|norm"
    return Architecture({pattern: swin_reshape}, "norm")


ARCHITECTURES: Mapping[tuple[str, str], Callable[[Any], Architecture]] = {
    ("torchvision", "VisionTransformer"): _torchvision_vit,
    ("torchvision", "SwinTransformer"): _torchvision_swin,
    ("timm", "VisionTransformer"): _timm_vit,
    ("timm", "VisionTransformerRelPos"): _timm_vit,
    ("timm", "Eva"): _timm_vit,
    ("timm", "Beit"): _timm_vit,
    ("timm", "SwinTransformer"): _timm_swin,
    ("timm", "SwinTransformerV2"): _timm_swin,
    ("timm", "MlpMixer"): _timm_mixer,
}

# Of HuggingFace's models, by their type in the configuration: the tokens before those
# of the patches, and the end of the name of the layer to explain.
TRANSFORMERS = {
    "vit": (1, "layernorm_before"),
    "vit_msn": (1, "layernorm_before"),
    "deit": (2, "layernorm_before"),
    "dinov2": (1, "norm1"),
    "dinov2_with_registers": (1, "norm1"),
    "swin": (0, None),
    "swinv2": (0, None),
}


def _transformers(model: Any) -> Architecture | None:
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in TRANSFORMERS:
        return None
    prefix, end = TRANSFORMERS[kind]
    prefix += getattr(config, "num_register_tokens", 0)
    tokens = partial(vit_reshape, prefix_tokens=prefix)
    # The backbone is the only module of its depth that holds these.
    readings: dict[str, ReshapeTransform] = {
        r"\w+\.(encoder|layers|layernorm)(\..*)?": tokens
    }
    pattern = r"\w+\.layernorm" if end is None else rf"\w+\..*\.{end}"
    return Architecture(readings, _named(model, pattern))
