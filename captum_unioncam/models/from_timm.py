"""The models of timm, with the preprocessing and the class names of its metadata."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from captum_unioncam._checks import did_you_mean
from captum_unioncam.errors import ModelError, one_line
from captum_unioncam.models.classifier import Classifier
from captum_unioncam.models.request import CHANNELS, Request
from captum_unioncam.models.weights import DEFAULT, fit, state_of

PREFIX = "timm:"


def names() -> list[str]:
    """Returns the names of the models, with the prefix; none without timm."""
    if find_spec("timm") is None:
        return []
    import timm

    return [f"{PREFIX}{name}" for name in timm.list_models()]


def load(request: Request) -> Classifier:
    """Loads a model of timm.

    Raises:
        ModelError: If timm is missing, the model is unknown or has no head, or its
            weights cannot be loaded.
    """
    try:
        import timm
        from timm import data
    except ImportError as error:
        raise ModelError(
            f"{PREFIX}{request.name} needs the timm extra; run "
            '`pip install "captum-unioncam[timm]"`'
        ) from error
    name = f"{PREFIX}{request.name}"
    _check_name(timm, request.name)
    state = state_of(request.weights)
    if request.weights == DEFAULT:
        model = _pretrained(timm, request.name)
    else:
        model = timm.create_model(request.name, **_classes_of(timm, request, state))
        fit(name, model, state)
    if model.num_classes == 0:
        raise ModelError(
            f"{name} has no classes: it makes features; choose a model, or a tag after "
            "a dot, that was trained to classify"
        )
    if request.size is not None and hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(request.size, request.size))
    config = data.resolve_model_data_config(model, args=_changes(request))
    preprocess = data.create_transform(**config, is_training=False)
    return Classifier(name, model.eval(), preprocess, _categories(data, model))


def _check_name(timm: Any, name: str) -> None:
    """Refuses a name that timm does not know, and names the closest."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        known = names()
        raise ModelError(
            f"there is no model {PREFIX + name!r}"
            f"{did_you_mean(PREFIX + architecture, known)}"
        )
    tags = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in tags:
        have = ", ".join(known.partition(".")[2] for known in tags) or "none"
        raise ModelError(
            f"{PREFIX}{architecture} has no weights {tag!r}; it has {have}"
        )


def _pretrained(timm: Any, name: str) -> Any:
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # of the network, of the hub, of the file
        raise ModelError(
            f"the weights of {PREFIX}{name} cannot be downloaded ({one_line(error)}); "
            "give a state dict as weights"
        ) from error


def _classes_of(
    timm: Any, request: Request, state: Mapping[str, Tensor] | None
) -> dict[str, int]:
    """Returns the number of classes of a state dict: the rows of the head's weight."""
    if state is None:
        return {}
    known = timm.get_pretrained_cfg(request.name)
    head = getattr(known, "classifier", None)
    first = head[0] if isinstance(head, tuple | list) else head
    weight = state.get(f"{first}.weight")
    if weight is None or weight.dim() < 2 or len(weight) == 0:
        return {}  # what does not fit says so when it is loaded
    return {"num_classes": len(weight)}


def _changes(request: Request) -> dict[str, Any]:
    """Returns what takes the place of a model's data configuration."""
    size = request.size
    side = {} if size is None else {"input_size": (CHANNELS, size, size)}
    return {**side, "mean": request.mean, "std": request.std}


def _categories(data: Any, model: Any) -> list[str]:
    """Returns the names of the classes that the model was published with."""
    own: Mapping[str, Any] = model.pretrained_cfg or {}
    if own.get("num_classes") != model.num_classes:
        return []
    labels = own.get("label_names")
    if labels:
        described = own.get("label_descriptions") or {}
        return [described.get(label, label) for label in labels]
    subset = data.infer_imagenet_subset(model)
    if subset is None:
        return []
    described_by_index: list[str] = data.ImageNetInfo(subset).label_descriptions()
    return described_by_index
