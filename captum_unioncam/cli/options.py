"""The options of each command, as dataclasses."""

from dataclasses import dataclass
from typing import NamedTuple

from captum_unioncam._options import ModelOptions, check_options, option
from captum_unioncam.evaluation.config import PRESETS, EvaluationConfig


@dataclass(frozen=True)
class ExplainOptions(ModelOptions):
    """What to explain, and where to put the pictures."""

    images: tuple[str, ...] | None = option(
        "image files, folders of them, or - for one on standard input (default: "
        "scikit-image's photograph of a cup of coffee)",
        None,
        positional=True,
        metavar="IMAGE",
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
    top_k: int = option(
        "explain this many classes of each image, those of the highest scores, in a "
        "row each",
        1,
        low=1,
        high=20,
        metavar="K",
    )
    score: str = option(
        "what gains and weights are made of: by logits, also classes that the model "
        "does not predict have a map that says something",
        "probability",
        choices=("probability", "logit"),
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
    batch_size: int = option("images explained together", 1, low=1, metavar="N")
    output: str = option(
        "picture to write, .png, .pdf or .svg; or a folder, for one PNG for each image",
        "unioncam.png",
        metavar="FILE|FOLDER",
    )
    overlay_only: bool = option(
        "write the image under the colours of one map, at the image's own size, "
        "without titles and margins",
        False,
    )
    colormap: str = option("colour map of matplotlib", "jet", metavar="NAME")
    alpha: float = option("share of the colours over the image", 0.5, low=0, high=1)
    maps: str | None = option(
        "write the raw maps, the targets and the gains for numpy.load (default: none)",
        None,
        metavar="FILE.npz",
    )
    json: str | None = option(
        "write the result as JSON, - for stdout; a list if the output is a folder "
        "(default: no JSON)",
        None,
        metavar="FILE|-",
    )

    list_layers: bool = option(
        "print the name, type and activation shape of the model's spatial layers, and "
        "explain nothing",
        False,
    )
    list_models: str | None = option(
        "print the names of all models, or of those that hold TEXT, in which * and ? "
        "stand for others (default: explain an image)",
        None,
        const="*",
        metavar="TEXT",
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
class AppOptions(ModelOptions):
    """Which model the app shows first, and where it listens."""

    device: str | None = option(
        "device of torch (default: cuda where there is one, else cpu)", None
    )
    host: str = option(
        "address to listen on; with any but the default, other machines may use the "
        "app, and it asks for no password",
        "127.0.0.1",
        metavar="ADDRESS",
    )
    port: int = option(
        "port to listen on; 0 for any that is free", 7860, low=0, high=65535
    )

    def __post_init__(self) -> None:
        check_options(self)


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
        "show where a model sees its class in images",
        "Shows where a model sees its class in an image: UnionCAM, its component maps, "
        "and their scores; or the maps of several methods. Several images, or a "
        "folder of them, need a folder as --output.",
        ExplainOptions,
    ),
    "evaluate": Command(
        "measure methods on many images",
        "Measures methods on many images, alone or under torchrun, and writes a "
        "report. Every option but --preset and --report-only is a field of "
        "EvaluationConfig.",
        EvaluateOptions,
    ),
    "app": Command(
        "explain images in the browser",
        "Explains images in the browser: drop an image, choose a class, compare "
        "methods. Serves this machine alone by default, and asks no other host for "
        "anything but the weights of a model that is chosen.",
        AppOptions,
    ),
    "methods": Command(
        "list the methods", "Prints the table of all methods, in Markdown.", NoOptions
    ),
    "metrics": Command(
        "list the metrics", "Prints the table of all metrics, in Markdown.", NoOptions
    ),
}
