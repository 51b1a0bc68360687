"""A classifier: a model, how it is shown an image, and how its layers are read."""

import functools
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import Module

from captum_unioncam._captum import HOOKS_LOCK
from captum_unioncam._layer_search import CONVOLUTIONS
from captum_unioncam._reshape import ReshapeTransform
from captum_unioncam.errors import ModelError, one_line
from captum_unioncam.layers import find_layer, named_layer
from captum_unioncam.models.architectures import architecture_of

# Side of the plain images that are shown to a model, and a grey level that is a fifth
# of the way from black to white.
SIDE, FIFTH = 256, 51

# How far a preprocessing may be from a mean and a std, as a share of its range.
ROUNDING = 1e-3


@dataclass(frozen=True)
class SpatialLayer:
    """A layer that has an activation at each of several positions.

    Attributes:
        name (str): The dotted name.
        kind (str): The module's class.
        shape (tuple[int, ...]): Of the activation of one image, without N.
    """

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Classifier:
    """A model in eval mode, and what it takes to show it an image.

    Attributes:
        name (str): Name of the model.
        model (Module): Returns logits, (N, classes).
        preprocess (Callable): From a PIL image to the model's input, (C, H, W).
        categories (list[str]): Class names by index; empty if they are not known.
        reshape (Callable or None): How to read layers that are no convolutions, if the
            model is not known; see :meth:`reshape_transform`.
    """

    name: str
    model: Module
    preprocess: Callable[[Image.Image], Tensor]
    categories: list[str]
    reshape: ReshapeTransform | None = None

    @property
    def mean(self) -> Tensor:
        """The mean of each channel that the preprocessing takes off, (1, C, 1, 1).

        ``x * std + mean`` are the images in [0, 1]. Like :attr:`std` and :attr:`black`,
        it is read from what the preprocessing makes of a black and a white image.

        Raises:
            ModelError: If the preprocessing is not a mean and a std of each channel.
        """
        black, span = self._black_and_span
        return 0 - black / span

    @property
    def std(self) -> Tensor:
        """What the preprocessing divides each channel by, (1, C, 1, 1).

        Raises:
            ModelError: As for :attr:`mean`.
        """
        return 1 / self._black_and_span[1]

    @property
    def black(self) -> Tensor:
        """A black pixel as the model sees it, (1, C, 1, 1), for ``baselines``.

        Raises:
            ModelError: As for :attr:`mean`.
        """
        return self._black_and_span[0]

    @functools.cached_property
    def _black_and_span(self) -> tuple[Tensor, Tensor]:
        """A black pixel, and what makes it white, (1, C, 1, 1) each."""
        black, grey, white = (self.plain(level) for level in (0, FIFTH, 255))
        span = white - black
        bound = ROUNDING * span.abs().max()
        pixel, step = black[..., :1, :1], span[..., :1, :1]
        if not (
            bool((step.abs() > bound).all())
            and bool(((span - step).abs() <= bound).all())
            and bool(((grey - pixel - step * FIFTH / 255).abs() <= bound).all())
        ):
            raise ModelError(
                f"{self.name}: its preprocessing is not a mean and a std of each "
                "channel (it pads, or changes colours otherwise); give black, mean and "
                "std yourself"
            )
        return pixel, step

    def plain(self, level: int) -> Tensor:
        """Returns a grey image as the model sees it, (1, C, H, W), on the CPU.

        Args:
            level (int): 0 for black, 255 for white.
        """
        image = Image.new("RGB", (SIDE, SIDE), (level, level, level))
        with torch.device("cpu"):  # where torchvision's transforms work
            return self.preprocess(image).unsqueeze(0)

    @functools.cached_property
    def default_layer(self) -> str:
        """The dotted name of the last spatial activation before the head.

        Of a vision transformer whose head reads the class token, the normalised input
        of the last block: the patch tokens after it change nothing. Cost: where the
        model is no transformer that is known, that of :func:`.find_layer`, the first
        time.

        Raises:
            ModelError: If the model has no such layer.
        """
        architecture = architecture_of(self.model)
        if architecture is not None and architecture.default_layer is not None:
            return architecture.default_layer
        try:
            layer = find_layer(self.model, self._grey())
        except ValueError as error:
            raise ModelError(
                f"{self.name}: {error} The command takes both: `--layer NAME` "
                "(--list-layers shows them), and `--model package.module:function` of "
                "a function that returns Classifier(..., reshape=...)"
            ) from error
        names: dict[Module, str] = {
            module: name for name, module in self.model.named_modules()
        }
        return names[layer]

    def _grey(self) -> Tensor:
        """Returns a grey image where the model is, (1, C, H, W)."""
        parameter = next(self.model.parameters(), None)
        return self.plain(128).to("cpu" if parameter is None else parameter.device)

    def layer(self, name: str | None = None) -> Module:
        """Returns the layer of a dotted name, or the default one.

        Raises:
            ModelError: If there is no layer of this name, or none to choose.
        """
        try:
            return named_layer(self.model, name or self.default_layer)
        except ModelError:
            raise
        except ValueError as error:
            raise ModelError(f"{self.name}: {error}") from error

    def reshape_transform(self, name: str | None = None) -> ReshapeTransform | None:
        """Returns how to read a layer, or the default one; None for channels first.

        What the model is decides: torchvision's ViT and Swin; timm's ViT, DeiT, BEiT,
        EVA, Swin and Mixer; HuggingFace's ViT, DeiT, DINOv2 and Swin. For other
        transformers it is ``reshape``, without which their layers of tokens are refused
        when they are explained.
        """
        if isinstance(self.layer(name), CONVOLUTIONS):
            return None
        if self.reshape is not None:
            return self.reshape
        architecture = architecture_of(self.model)
        if architecture is None:
            return None
        return architecture.reading(name or self.default_layer)

    def spatial_layers(self) -> list[SpatialLayer]:
        """Returns the layers that return one tensor of several positions, in order.

        Of these, any with channels first may be explained, and others with a
        ``reshape_transform``. Cost: 1 forward pass of a grey image.

        Raises:
            ModelError: If the model cannot run.
        """
        seen: dict[str, SpatialLayer] = {}

        def see(name: str, module: Module, output: Any) -> None:
            parts = output if isinstance(output, tuple | list) else (output,)
            tensors = [part for part in parts if isinstance(part, Tensor)]
            if len(tensors) == 1 and _has_positions(tensors[0]):
                kind, shape = type(module).__name__, tuple(tensors[0].shape[1:])
                seen.pop(name, None)  # its activation is that of its last run
                seen[name] = SpatialLayer(name, kind, shape)

        with HOOKS_LOCK, ExitStack() as stack:
            for name, module in self.model.named_modules():
                with suppress(RuntimeError):  # TorchScript modules take no hooks
                    handle = module.register_forward_hook(
                        lambda module, _, output, name=name: see(name, module, output)
                    )
                    stack.callback(handle.remove)
            self.logits()
        seen.pop("", None)  # the model itself
        return list(seen.values())

    def logits(self) -> Tensor:
        """Returns the model's logits for a grey image, (1, classes).

        Raises:
            ModelError: If the model cannot run, or returns anything else.
        """
        inputs = self._grey()
        shape = " x ".join(map(str, inputs.shape[1:]))
        try:
            with torch.no_grad():
                output = self.model(inputs)
        except Exception as error:  # models raise anything
            raise ModelError(
                f"{self.name} cannot run on an image of {shape}: {one_line(error)}"
            ) from error
        if not isinstance(output, Tensor):
            raise ModelError(
                f"{self.name} must return logits, (N, classes), got a "
                f"{type(output).__name__}; wrap it in SelectedOutput(model, key)"
            )
        if output.dim() != 2 or len(output) != 1 or output.shape[1] == 0:
            raise ModelError(
                f"{self.name} must return logits, (N, classes), got the shape "
                f"{tuple(output.shape)} for one image"
            )
        return output


def _has_positions(tensor: Tensor) -> bool:
    """Returns whether a tensor of one image has more than a position."""
    return tensor.dim() > 2 and len(tensor) == 1 and tensor[0, 0].numel() > 1
