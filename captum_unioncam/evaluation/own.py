"""A model or a data set of the caller's own, in place of those with names."""

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import Module

from captum_unioncam.errors import ConfigError, DataError, one_line
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.data import Images, Item, plain_preprocessing
from captum_unioncam.evaluation.identity import DIGEST_LENGTH, model_digest
from captum_unioncam.metrics.localization import boxes_to_masks
from captum_unioncam.models import Classifier

Statistics = float | Sequence[float] | Tensor | None

ITEM = "(input, label) or (input, label, mask or boxes)"


@dataclass(frozen=True)
class Own:
    """What of an evaluation is the caller's own.

    Attributes:
        classifier (Classifier or None): The model.
        images (OwnImages or None): The images.
        known (dict): What two runs must share beside weights and items, in JSON.
    """

    classifier: Classifier | None = None
    images: "OwnImages | None" = None
    known: dict[str, Any] = field(default_factory=dict)

    def shown(self, classifier: Classifier) -> Classifier:
        """Returns a model with a name, whose plain images are of the items' size.

        Raises:
            ConfigError: If the items have another number of channels.
        """
        if self.images is None or self.classifier is not None:
            return classifier  # it is shown so already
        return _of_size(classifier, self.images.shape)

    def described(self, config: EvaluationConfig) -> EvaluationConfig:
        """Returns a configuration that names the model that is explained."""
        if self.classifier is None:
            return config
        return replace(config, model=self.classifier.name, weights="its own")


def check_own(config: EvaluationConfig, model: Any, dataset: Any) -> None:
    """Refuses arguments of the wrong kind, and options that go with names alone.

    Raises:
        ConfigError: Says what to give.
    """
    if model is not None and not isinstance(model, Module | Classifier):
        is_class = isinstance(model, type)
        kind = f"the {model.__name__} class" if is_class else f"{model!r}"
        raise ConfigError(
            f"`model` must be a torch.nn.Module or a Classifier, got {kind:.80}; a "
            "name goes into EvaluationConfig(model=...)"
        )
    if model is not None and config.weights != "default":
        raise ConfigError(
            f"`weights` are of a model with a name, got {config.weights!r} beside a "
            "model that has its own; leave it out"
        )
    if model is not None and config.metadata:
        name, value = next(iter(config.metadata.items()))
        raise ConfigError(
            f"`{name}` of a configuration is of a model with a name, got {value!r} "
            "beside a model; leave it out, and give the mean, std and categories of a "
            "Module as evaluate(config, mean=...)"
        )
    if dataset is not None and config.preprocessing != "model":
        raise ConfigError(
            "`preprocessing` is of image files, got 'unit' beside a `dataset`, whose "
            "inputs are what the model sees; leave it out"
        )
    if isinstance(model, Module) and dataset is None:
        raise ConfigError(
            "`model`: it is not known how to show an image file to a "
            f"{type(model).__name__}; give a Classifier, which has its preprocessing, "
            "or a `dataset`, whose inputs are what the model sees"
        )
    if dataset is not None and not (
        hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    ):
        raise ConfigError(
            "`dataset` must have a length and its items by index, got "
            f"a {type(dataset).__name__}; give a list, or a torch Dataset that is not "
            "iterable alone"
        )


def own_parts(
    model: Module | Classifier | None,
    dataset: Any,
    mean: Statistics,
    std: Statistics,
    categories: Sequence[str] | None,
) -> Own:
    """Returns the parts of an evaluation that are the caller's own, as it takes them.

    Raises:
        ConfigError: If an argument does not fit the others.
        DataError: If the first item of the data set is none.
    """
    given = {"mean": mean, "std": std, "categories": categories}
    if dataset is None or not isinstance(model, Module):
        for name, value in given.items():
            if value is not None:
                raise ConfigError(
                    f"`{name}` goes with a `model` that is a torch.nn.Module and a "
                    "`dataset`; a Classifier, and a model with a name, have their own"
                )
    images = None if dataset is None else OwnImages(dataset)
    if model is None:
        return Own(images=images)
    module = model.model if isinstance(model, Classifier) else model
    _check_eval(module)
    known: dict[str, Any] = {"architecture": model_digest(module)}
    if isinstance(model, Classifier):
        shown = model if images is None else _of_size(model, images.shape)
        return Own(shown, images, known)
    assert images is not None  # which check_own saw to
    channels = images.shape[0]
    shift = _statistic("mean", mean, 0.0, channels)
    scale = _statistic("std", std, 1.0, channels)
    known |= {"mean": shift.tolist(), "std": scale.tolist()}
    black, white = -shift / scale, (1 - shift) / scale
    preprocess = plain_preprocessing(images.shape, black, white, images.dtype)
    name = type(model).__qualname__
    return Own(
        Classifier(name, model, preprocess, list(categories or ())), images, known
    )


def _check_eval(model: Module) -> None:
    """Refuses a model in training mode: dropout and batch norm would follow batches."""
    # A wrapper that was made around a model in eval mode is in training mode itself.
    leaves = [m for m in model.modules() if next(m.children(), None) is None]
    training = [type(m).__name__ for m in leaves if m.training]
    if training:
        raise ConfigError(
            f"`model` must be in eval mode, and its {training[0]} is in training mode; "
            "call model.eval() first"
        )


def _statistic(name: str, value: Statistics, default: float, channels: int) -> Tensor:
    """Returns a number for each channel, (channels,), in float64."""
    rule = f"`{name}` must be one number, or one for each of {channels} channels"
    try:
        values = torch.as_tensor(default if value is None else value).detach()
        values = values.cpu().double().flatten()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{rule}, got {value!r:.80}") from error
    if len(values) not in (1, channels):
        raise ConfigError(f"{rule}, got {len(values)}")
    if not values.isfinite().all() or (name == "std" and (values <= 0).any()):
        bound = " and above 0" if name == "std" else ""
        raise ConfigError(f"{rule}, finite{bound}, got {values.tolist()}")
    return values.expand(channels)


def _of_size(classifier: Classifier, shape: tuple[int, ...]) -> Classifier:
    """Returns a classifier whose plain images, black and others, are of another size.

    Raises:
        ConfigError: If it takes another number of channels.
    """
    black, white = (
        classifier.preprocess(Image.new("RGB", (256, 256), colour))
        for colour in ("black", "white")
    )
    if len(black) != shape[0]:
        raise ConfigError(
            f"`dataset`: its inputs have {shape[0]} channels, {classifier.name} takes "
            f"{len(black)}"
        )
    middle = (slice(None), black.shape[1] // 2, black.shape[2] // 2)
    preprocess = plain_preprocessing(shape, black[middle], white[middle], black.dtype)
    return replace(classifier, preprocess=preprocess)


class Parts(NamedTuple):
    """An item, checked: the input (C, H, W), the label, and masks (objects, H, W)."""

    inputs: Tensor
    label: str | None
    masks: Tensor | None

    @property
    def objects(self) -> list[str]:
        """The name of the object in each mask: the label."""
        return [self.label or ""] * len(() if self.masks is None else self.masks)

    def digest(self) -> str:
        """Returns a digest of all of it."""
        digest = hashlib.sha256(f"{self.label!r}".encode())
        for values in (self.inputs, self.masks):
            if values is not None:
                digest.update(f"{values.dtype} {tuple(values.shape)}\n".encode())
                flat = values.detach().cpu().contiguous().flatten()
                content: Any = flat.view(torch.uint8).numpy()
                digest.update(content)
        return digest.hexdigest()[:DIGEST_LENGTH]


@dataclass(frozen=True)
class OwnEntry:
    """An item of a data set, by its number; it is read where its parts are needed."""

    images: "OwnImages"
    index: int

    @property
    def name(self) -> str:
        """Its number, which identifies it."""
        return f"{self.index}"

    @property
    def label(self) -> str | None:
        """Its label, as text."""
        return self._read().label

    @property
    def has_boxes(self) -> bool:
        """Whether items have masks or boxes, which the first one tells."""
        return self.images.has_boxes

    def object_names(self) -> list[str]:
        """Returns the label for each of its objects."""
        return self._read().objects

    def digest(self) -> str:
        """Returns the digest of the item as it is now."""
        return self._read().digest()

    def _read(self) -> Parts:
        try:
            return self.images.parts(self.index)
        except DataError:
            raise
        except Exception as error:  # a data set may raise anything
            raise DataError(f"{type(error).__name__}: {one_line(error)}") from error


class OwnImages(Images):
    """The items of a data set of the caller's own.

    Args:
        dataset (Sequence or torch Dataset): Its items are (input, label), or (input,
            label, mask or boxes).

    Attributes:
        shape (tuple[int, ...]): The shape of every input, (C, H, W), the first one's.
        dtype (torch.dtype): The type of the first one.
        has_boxes (bool): Whether items have masks or boxes, which the first one tells.

    Raises:
        DataError: If there is no item, or the first one is none.
    """

    def __init__(self, dataset: Any) -> None:
        if not len(dataset):
            raise DataError("`dataset` must hold at least one item, got none")
        self.dataset = dataset
        self.shape: tuple[int, ...] = ()
        self.entries = [OwnEntry(self, index) for index in range(len(dataset))]
        try:
            first = self.entries[0]._read()
        except DataError as error:
            raise DataError(f"`dataset`: item 0: {error}") from error
        self.shape, self.dtype = tuple(first.inputs.shape), first.inputs.dtype
        self.has_boxes = first.masks is not None

    def parts(self, index: int) -> Parts:
        """Reads an item.

        Raises:
            DataError: If it is none; and what the data set raises.
        """
        item = self.dataset[index]
        if not isinstance(item, tuple | list) or len(item) not in (2, 3):
            kind = type(item).__name__
            size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
            raise DataError(f"an item must be {ITEM}, got a {kind}{size}")
        inputs, label, *region = item
        self._check_input(inputs)
        masks = _masks(region[0], inputs.shape[1:]) if region else None
        return Parts(inputs.detach(), _label(label), masks)

    def _check_input(self, inputs: Any) -> None:
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            kind = type(inputs).__name__
            got = f"{inputs.dtype}" if isinstance(inputs, Tensor) else f"a {kind}"
            raise DataError(
                f"its input must be a Tensor of floats, (C, H, W), got {got}; give the "
                "data set the model's own transforms"
            )
        shape = tuple(inputs.shape)
        if len(shape) != 3 or 0 in shape:
            raise DataError(f"its input must be (C, H, W), got {shape}")
        if self.shape and shape != self.shape:
            raise DataError(
                f"its input is {shape}, and the first item's {self.shape}; bring all "
                "to one size"
            )

    def _item(self, index: int, entry: Any) -> Item:
        parts = self.parts(index)
        return Item(
            index,
            entry.name,
            parts.inputs,
            parts.label,
            parts.digest(),
            parts.masks,
            objects=tuple(parts.objects),
        )


def _label(label: Any) -> str | None:
    """Returns a label as text: a name, or the digits of an index."""
    if label is None or isinstance(label, str):
        return label
    try:
        return f"{operator.index(label)}"  # of NumPy and torch too
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"its label must be a class index, a name or None, got {label!r:.80}"
        ) from error


def _masks(region: Any, size: Sequence[int]) -> Tensor:
    """Returns the inside of each object, bool, (objects, H, W), of a mask or boxes.

    What has the input's size is a mask, and None is of no object.
    """
    if region is None:
        return torch.zeros(0, *size, dtype=torch.bool)
    # torchvision's boxes may be of another form than corners.
    form = getattr(getattr(region, "format", None), "value", "XYXY")
    try:
        values = torch.as_tensor(region).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"its mask or boxes must be a Tensor, got a {type(region).__name__}"
        ) from error
    shape, size = tuple(values.shape), tuple(size)
    if len(shape) in (2, 3) and shape[-2:] == size:
        binary = (values == 0) | (values == 1)
        if values.is_floating_point() and not binary.all():
            raise DataError(
                "its mask must be bool, integers, or 0 and 1, got other numbers; give "
                "a comparison, such as mask > 0.5"
            )
        return (values != 0).reshape(-1, *size)
    if len(shape) != 2 or shape[1] != 4 or form != "XYXY":
        raise DataError(
            f"its third part must be a mask {size}, masks (objects, {size[0]}, "
            f"{size[1]}), or boxes (objects, 4) of x0, y0, x1, y1, got {shape} "
            f"({form})"
        )
    try:
        return boxes_to_masks([box[None] for box in values], size)[:, 0]
    except ValueError as error:
        raise DataError(f"its boxes are wrong: {one_line(error)}") from error
