"""What to evaluate: one dataclass, which is the Python interface and the options."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from captum_unioncam.evaluation.registry import METHODS, METRICS
from captum_unioncam.models import DEFAULT_MODEL

PREPROCESSINGS = ("model", "unit")
TARGETS = ("predicted", "label")

REASON_LENGTH = 160

# Differences that do not change a row.
FREE = ("output", "resume", "workers", "device")


class ConfigError(ValueError):
    """An option that the user has to change; the message says how."""


class DataError(ValueError):
    """An image or a data set cannot be read; the message says what to do."""


def resolve_device(name: str | None) -> torch.device:
    """Returns the device of a name, once a tensor has been put there.

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


def one_line(error: BaseException) -> str:
    """Returns the first line of an error, in short."""
    text = getattr(error, "strerror", None) or f"{error}" or type(error).__name__
    line = text.splitlines()[0]
    if len(line) <= REASON_LENGTH:
        return line
    return f"{line[: REASON_LENGTH - 4]} ..."


def _option(help: str, default: Any = dataclasses.MISSING) -> Any:
    """A field with a help text for the command line."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class EvaluationConfig:
    """What to evaluate, on what, and where to put the results."""

    data: str = _option("imagefolder:DIR, imagenet:DIR or voc2007:DIR")
    output: str = _option("folder of the results; made if there is none")
    model: str = _option("efficientnet_lite0, or a model of torchvision", DEFAULT_MODEL)
    weights: str = _option("default, none, or a file with a state dict", "default")
    layer: str | None = _option(
        "dotted name (default: the last spatial activation)", None
    )
    methods: tuple[str, ...] = _option(
        "names with commas, all for all; options as in unioncam:theta=30",
        tuple(METHODS),
    )
    metrics: tuple[str, ...] = _option(
        f"names with commas, of {', '.join(METRICS)}",
        ("drop", "increase", "insertion", "deletion"),
    )
    num_images: int | None = _option("random images (default: all)", None)
    seed: int = _option("of the random images, and of the noise of metrics", 0)
    batch_size: int = _option("images explained together", 1)
    workers: int = _option("processes that read images", 0)
    target: str = _option("class to explain: predicted, or the label's", "predicted")
    preprocessing: str = _option(
        "the model's own, or unit: 224 x 224, scaled to [0, 1], no mean and std",
        "model",
    )
    theta: float = _option("percentile of the methods that denoise", 10.0)
    max_channels: int | None = _option("score this many channels (default: all)", None)
    steps: int = _option("points of the insertion and deletion curves", 50)
    sanity: int = _option("images of the randomisation check", 0)
    amp: bool = _option("run the model in bfloat16 where that is safe", False)
    compile: bool = _option("compile the model for the masked passes", False)
    device: str | None = _option("default: cuda where there is one, else cpu", None)
    resume: bool = _option("go on with an interrupted run in the same folder", False)

    def comparable(self) -> dict[str, Any]:
        """Returns what two runs must share for their rows to go together."""
        values = dataclasses.asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name not in FREE
        }


# Hu et al. 2024: the experiments' protocol.
PAPER: Mapping[str, Any] = {
    "model": "vgg16",
    "preprocessing": "unit",
    "theta": 10.0,
    "num_images": 2000,
    "metrics": ("drop", "increase", "insertion", "deletion"),
}

# The ablation of the paper: its modules alone, and theta.
ABLATION: Mapping[str, str] = {
    "denoisedgradcam": "AMD alone",
    "regioncam": "region map alone",
    "unioncam:select=False": "AMU, without selection",
    "unioncam": "UnionCAM",
    **{
        f"unioncam:theta={theta}": f"UnionCAM, theta {theta}"
        for theta in (0, 30, 50, 70, 90)
    },
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": PAPER,
    "ablation": {**PAPER, "methods": tuple(ABLATION)},
}
