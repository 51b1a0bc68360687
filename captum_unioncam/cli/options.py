"""The options of each command, as dataclasses."""

from dataclasses import dataclass
from typing import NamedTuple

from captum_unioncam._options import DEFAULT_MODEL, check_options, option
from captum_unioncam.evaluation.config import PRESETS, EvaluationConfig


@dataclass(frozen=True)
class ExplainOptions:
    """What to explain, and where to put the picture."""

    image: str | None = option(
        "image file (default: scikit-image's photograph of the cat Chelsea)",
        None,
        positional=True,
    )
    model: str = option(
        "efficientnet_lite0, or a classification model of torchvision",
        DEFAULT_MODEL,
        metavar="NAME",
    )
    weights: str = option(
        "pretrained weights, random ones, or a file: a state dict, or a checkpoint "
        "with one as state_dict or model, also in safetensors",
        "default",
        metavar="default|none|PATH",
    )
    layer: str | None = option(
        "dotted name of the layer (default: the last spatial activation)",
        None,
        metavar="NAME",
    )
    target: str | None = option(
        "class to explain: its index, its name, or its WordNet id such as n02123159 "
        "if there are 1,000 (default: the predicted class)",
        None,
        metavar="CLASS",
    )
    methods: tuple[str, ...] | None = option(
        "methods to compare, one panel each, with commas, in any case; all stands for "
        "those not named but cam, which needs a pooled linear head (`captum-unioncam "
        "methods` lists them); options as in "
        "unioncam:theta=30 (default: UnionCAM and its components)",
        None,
        metavar="NAMES",
    )
    theta: float = option(
        "drop each channel's gradients below this percentile",
        10.0,
        low=0,
        high=100,
        metavar="PERCENTILE",
    )
    fidelity: float = option(
        "score channels until the estimated correlation with the exact map reaches "
        "this, and predict the others; 1 scores all, and is the exact map",
        0.99,
        low=0,
        high=1,
    )
    max_channels: int | None = option(
        "score at most K active channels (default: no limit)", None, low=1, metavar="K"
    )
    device: str | None = option(
        "device of torch (default: cuda where there is one, else cpu)", None
    )
    output: str = option("picture to write", "unioncam.png", metavar="PNG")
    json: str | None = option(
        "write the result as JSON, - for stdout (default: no JSON)",
        None,
        metavar="FILE|-",
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class EvaluateOptions(EvaluationConfig):
    """What to evaluate; the options of a preset count where none are given."""

    preset: str | None = option(
        "options of the paper's protocol, which others override (default: none)",
        None,
        choices=sorted(PRESETS),
    )
    report_only: bool = option(
        "write the report of the folder again from its rows, without the model and the "
        "images; takes --output, --reference and --ablation alone",
        False,
    )


@dataclass(frozen=True)
class NoOptions:
    """The options of a command that has none."""


class Command(NamedTuple):
    """A command: a line of help, a description, and the dataclass of its options."""

    help: str
    description: str
    options: type


# By name, which is also the module's that runs it.
COMMANDS = {
    "explain": Command(
        "show where a model sees its class in an image",
        "Shows where a model sees its class in an image: UnionCAM, its component maps, "
        "and their scores; or the maps of several methods.",
        ExplainOptions,
    ),
    "evaluate": Command(
        "measure methods on many images",
        "Measures methods on many images, alone or under torchrun, and writes a "
        "report. Every option but --preset and --report-only is a field of "
        "EvaluationConfig.",
        EvaluateOptions,
    ),
    "methods": Command(
        "list the methods", "Prints the table of all methods, in Markdown.", NoOptions
    ),
    "metrics": Command(
        "list the metrics", "Prints the table of all metrics, in Markdown.", NoOptions
    ),
}
