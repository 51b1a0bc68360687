"""What to evaluate: one dataclass, which is the Python interface and the options."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from captum_unioncam._options import ModelOptions, check_options, option
from captum_unioncam.errors import ConfigError

PREPROCESSINGS = ("model", "unit")
TARGETS = ("predicted", "label")
BOXES = ("any", "target")

# What is given to `evaluate` in place of the name that an option takes.
NOT_A_NAME = {
    "data": "a data set of your own is given as evaluate(config, dataset=...), and "
    "`data` names it",
    "model": "a network of your own is given as evaluate(config, model=...)",
    "layer": "give its dotted name, as in model.named_modules()",
}

# Methods that look at no model, which stand in every table.
BASELINES = ("random", "gaussian", "edges")

# Options that do not change a row. Which methods are baselines is told by ``methods``.
FREE = (
    *("output", "resume", "workers", "device"),
    *("baseline_methods", "reference", "ablation"),
)


@dataclass(frozen=True)
class EvaluationConfig(ModelOptions):
    """What to evaluate, on what, and where to put the results.

    Raises:
        ConfigError: If an option has a wrong value.
    """

    data: str = option(
        "imagefolder:DIR, imagenet:DIR, voc2007:DIR or coco:IMAGES,ANNOTATIONS",
        unless="report_only",
    )
    output: str = option("folder of the results; created if it does not exist")
    layer: str | None = option(
        "dotted name (default: the last spatial activation)", None
    )
    methods: tuple[str, ...] = option(
        "names with commas, in any case; all stands for those not named but cam, which "
        "needs a pooled linear head, and the baselines (`captum-unioncam methods` "
        "lists them); options as in unioncam:theta=30; package.module:Class is a class "
        "of your own",
        ("all",),
    )
    baseline_methods: tuple[str, ...] = option(
        "methods that look at no model, added to every table; none: none", BASELINES
    )
    metrics: tuple[str, ...] = option(
        "names with commas (`captum-unioncam metrics` lists them)",
        ("drop", "complexity", "increase", "insertion", "deletion"),
    )
    num_images: int | None = option("random images (default: all)", None, low=1)
    seed: int = option(
        "seed of the random images, of the noise of metrics, and of random weights",
        0,
        low=0,
        high=2**31 - 1,
    )
    batch_size: int = option("images explained together", 1, low=1)
    workers: int = option("processes that read images", 0, low=0)
    target: str = option(
        "class to explain: predicted, or the label's: the name of the image's folder, "
        "which is an index, a class name, or a WordNet id if there are 1,000 classes",
        "predicted",
        choices=TARGETS,
    )
    boxes: str = option(
        "boxes for the metrics that need them: of any object, or of the target, the "
        "explained class alone, by its name, its WordNet id or object_names",
        "any",
        choices=BOXES,
    )
    object_names: str | None = option(
        "JSON file of a list of objects' names for each class index, for the boxes of "
        "the target (default: the model's own names and WordNet ids)",
        None,
    )
    preprocessing: str = option(
        "the model's own, or unit: 224 x 224, scaled to [0, 1], no mean and std",
        "model",
        choices=PREPROCESSINGS,
    )
    theta: float = option(
        "percentile of the methods that denoise", 10.0, low=0, high=100
    )
    fidelity: float = option(
        "score channels until the estimated correlation with the exact map reaches "
        "this, and predict the others; 1 scores all, and is the exact map",
        1.0,
        low=0,
        high=1,
    )
    max_channels: int | None = option(
        "score at most this many active channels (default: no limit)", None, low=1
    )
    steps: int = option("points of the insertion and deletion curves", 50, low=1)
    sanity: int = option("images of the randomisation check", 0, low=0)
    reference: str | None = option(
        "method that the others are compared with (default: the first)", None
    )
    ablation: bool = option(
        "show the variants of UnionCAM in a table of their own", False
    )
    amp: bool = option("run the model in bfloat16 where that is safe", False)
    compile: bool = option("compile the model for the masked passes", False)
    device: str | None = option(
        "device of torch (default: cuda where there is one, else cpu)", None
    )
    resume: bool = option(
        "continue an interrupted run in the same folder, or add methods or images to a "
        "finished one, if other options, weights, sources and versions are the same",
        False,
    )

    def __post_init__(self) -> None:
        for name, advice in NOT_A_NAME.items():
            value = getattr(self, name)
            if not isinstance(value, str) and not (value is None and name == "layer"):
                raise ConfigError(
                    f"`{name}` must be text, got a {type(value).__name__}; {advice}"
                )
        check_options(self)
        changed = [name for name in self.metadata if name != "categories"]
        if self.preprocessing != "model" and changed:
            raise ConfigError(
                f"`{changed[0]}` changes the model's own preprocessing; leave it out, "
                f"or `preprocessing`, got {self.preprocessing!r}"
            )

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
    "metrics": ("drop", "complexity", "increase", "insertion", "deletion"),
}

# The ablation of the paper: its modules alone, and theta.
ABLATION: Mapping[str, str] = {
    "denoisedgradcam": "AMD alone",
    "regioncam": "region map alone",
    "unioncam:select=None": "AMU, without selection",
    "unioncam": "UnionCAM",
    **{
        f"unioncam:theta={theta}": f"UnionCAM, theta {theta}"
        for theta in (0, 30, 50, 70, 90)
    },
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": PAPER,
    "ablation": {**PAPER, "methods": tuple(ABLATION), "ablation": True},
}
