"""HuggingFace's image classifiers: from its hub, or a folder."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from captum_unioncam.errors import ModelError, one_line
from captum_unioncam.models.classifier import Classifier
from captum_unioncam.models.request import Request
from captum_unioncam.models.weights import DEFAULT, fit, state_of
from captum_unioncam.wrappers import SelectedOutput

PREFIX = "hf:"


@dataclass(frozen=True)
class ProcessedImage:
    """A preprocessing: what an image processor makes of an image, (C, H, W)."""

    processor: Any

    def __call__(self, image: Image.Image) -> Tensor:
        pixels: Tensor = self.processor(image, return_tensors="pt")["pixel_values"][0]
        return pixels


def load(request: Request) -> Classifier:
    """Loads an image classifier of transformers.

    Its layers have names that start with ``model.``.

    Raises:
        ModelError: If transformers is missing, there is no such model or folder, it has
            no head, or its weights cannot be loaded.
    """
    try:
        import transformers
    except ImportError as error:
        raise ModelError(
            f"{PREFIX}{request.name} needs the hf extra; run "
            '`pip install "captum-unioncam[hf]"`'
        ) from error
    name = f"{PREFIX}{request.name}"
    state = state_of(request.weights)
    source = _source(request.name)
    auto = transformers.AutoModelForImageClassification
    try:
        config = transformers.AutoConfig.from_pretrained(**source)
        processor = _processor(transformers.AutoImageProcessor, source, request)
        if request.weights == DEFAULT:
            model, loading = auto.from_pretrained(**source, output_loading_info=True)
            _check_complete(name, loading)
        else:
            model = auto.from_config(config)
    except ModelError:
        raise
    except Exception as error:  # of the network, of the hub, of the files
        raise ModelError(
            f"{name} cannot be loaded: {one_line(error)}; a folder that "
            "save_pretrained wrote needs no network"
        ) from error
    fit(name, model, state)
    labels: Mapping[int, str] = config.id2label
    categories = [labels[index] for index in range(len(labels))]
    wrapped = SelectedOutput(model, "logits").eval()
    return Classifier(name, wrapped, ProcessedImage(processor), categories)


def _source(name: str) -> dict[str, Any]:
    """Returns where a model is: a folder, or a name of the hub."""
    local = os.path.isdir(name)
    if not local and (
        name.startswith((".", "~", os.sep)) or name.count("/") > 1 or not name
    ):
        raise ModelError(
            f"there is no folder {name!r}; give one that save_pretrained wrote, with "
            "the image processor's configuration, or a name of HuggingFace's hub"
        )
    return {
        "pretrained_model_name_or_path": name,
        "local_files_only": local,
        "trust_remote_code": False,  # no code of the checkpoint's runs
    }


def _check_complete(name: str, loading: Mapping[str, Any]) -> None:
    """Refuses a checkpoint without weights for all of the model: they are random."""
    missing = sorted(loading.get("missing_keys") or ())
    if missing:
        raise ModelError(
            f"{name} has no weights for {', '.join(missing[:3])}: it was not trained "
            "to classify images; choose another checkpoint"
        )


def _processor(auto: Any, source: Mapping[str, Any], request: Request) -> Any:
    """Returns the image processor, with what was asked for in place of its own.

    A crop of another size is the same share of the image.
    """
    processor = auto.from_pretrained(**source)
    changed: dict[str, Any] = {}
    if request.mean is not None:
        changed["image_mean"] = list(request.mean)
    if request.std is not None:
        changed["image_std"] = list(request.std)
    side, size = request.size, _sides(processor.size)
    if side is not None and getattr(processor, "do_center_crop", False):
        crop = _sides(processor.crop_size)
        changed["crop_size"] = dict.fromkeys(crop, side)
        share = max(size.values()) / max(crop.values())
        changed["size"] = dict.fromkeys(size, round(side * share))
    elif side is not None:
        changed["size"] = dict.fromkeys(size, side)
    return auto.from_pretrained(**source, **changed) if changed else processor


def _sides(size: Any) -> dict[str, int]:
    """Returns the sides that a size of a processor sets, by their names."""
    return {name: side for name, side in dict(size or {}).items() if side}
