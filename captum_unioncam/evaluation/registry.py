"""The one list of methods: the command, the tests and the README's table read it."""

import ast
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from captum.attr import LayerAttribution
from captum.metrics import (
    infidelity,
    infidelity_perturb_func_decorator,
    sensitivity_max,
)
from torch import Tensor
from torch.nn import Module

from captum_unioncam import attr, metrics
from captum_unioncam.adapters import to_input
from captum_unioncam.layers import hint


@dataclass(frozen=True)
class Method:
    """A way to make a map for each example of a batch.

    Attributes:
        title (str): Name for tables and pictures.
        attribution (type[LayerAttribution]): The class.
        paper (str): Authors and year.
        link (str): Where to read the paper.
        needs_gradients (bool): Whether the model must be differentiable.
        forwards (str): Forward passes for each example of a batch of several, in
            numbers, ``live`` channels (not flat), ``used`` channels (not all zero) and
            ``positions`` of the layer.
        departures (str): How the map departs from the paper's, in short.
        ignores (frozenset[str]): Options of the same name as other methods' that mean
            something else here.
    """

    title: str
    attribution: type[LayerAttribution]
    paper: str
    link: str
    needs_gradients: bool
    forwards: str
    departures: str
    ignores: frozenset[str] = frozenset()

    def explain(
        self,
        forward_func: Callable[..., Any],
        layer: Module | str,
        own: Mapping[str, Any] | None = None,
        **offered: Any,
    ) -> Callable[..., Any]:
        """Returns ``attribute`` of an instance, with those options that the class has.

        Args:
            forward_func (Callable or torch.nn.Module): The model.
            layer (torch.nn.Module or str): The layer, or its dotted name.
            own (Mapping[str, Any], optional): Options of ``attribute`` for this method.
                Default: None
            offered (Any): Options of the constructor and of ``attribute`` for several
                methods. Those that the class does not have, or gives another meaning,
                are left out.

        Raises:
            TypeError: If a ``reshape_transform`` would be left out.
        """
        offered = {k: v for k, v in offered.items() if k not in self.ignores}
        built = _known(self.attribution, offered)
        if offered.get("reshape_transform") and "reshape_transform" not in built:
            raise TypeError(
                f"`reshape_transform`: {self.title} does not take one, and would read "
                "the layer as it is; leave this method out, or give it the option."
            )
        cam = self.attribution(forward_func, layer, **built)
        known = _known(self.attribution.attribute, offered)
        explain: Callable[..., Any] = partial(cam.attribute, **{**known, **(own or {})})
        return explain


def _known(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options that a function has as keywords."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in names}


# They change more than the map.
NOT_IN_LABELS = ("return_details", "show_progress")


def parse_method(label: str) -> tuple[Method, dict[str, Any]]:
    """Returns the method of a label such as unioncam:theta=30, and its options.

    Raises:
        ValueError: If there is no such method, or the method has no such option.
    """
    name, *pairs = label.split(":")
    if name not in METHODS:
        raise ValueError(
            f"there is no method {name!r}{hint(name, METHODS)}; known are "
            f"{', '.join(METHODS)}"
        )
    method = METHODS[name]
    parameters = list(inspect.signature(method.attribution.attribute).parameters)[5:]
    known = [name for name in parameters if name not in NOT_IN_LABELS]
    options = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        try:
            options[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            raise ValueError(
                f"{label!r}: the value of {key!r} must be a number, True, False or "
                f"None, got {text!r}"
            ) from None
        if key not in known:
            raise ValueError(
                f"{label!r}: {name} has no option {key!r}{hint(key, known)}; it has "
                f"{', '.join(known)}"
            )
    return method, options


METHODS: dict[str, Method] = {
    "unioncam": Method(
        "UnionCAM",
        attr.UnionCAM,
        "Hu et al. 2024",
        "https://doi.org/10.3389/fnbot.2024.1490198",
        needs_gradients=True,
        forwards="live + 5",
        departures="ReLU on both component maps",
    ),
    "denoisedgradcam": Method(
        "DenoisedGradCAM",
        attr.DenoisedGradCAM,
        "Hu et al. 2024 (AMD)",
        "https://doi.org/10.3389/fnbot.2024.1490198",
        needs_gradients=True,
        forwards="1",
        departures="ReLU on the map",
    ),
    "regioncam": Method(
        "RegionCAM",
        attr.RegionCAM,
        "Hu et al. 2024 (region map)",
        "https://doi.org/10.3389/fnbot.2024.1490198",
        needs_gradients=False,
        forwards="live + 2",
        departures="ReLU on the map",
    ),
    "fusioncam": Method(
        "FusionCAM",
        attr.FusionCAM,
        "Dekdegue et al. 2026",
        "https://arxiv.org/abs/2603.05386",
        needs_gradients=True,
        forwards="live + 5",
        departures="negative contributions count as 0; fused at the layer's size",
    ),
    "gradcam": Method(
        "GradCAM",
        attr.GradCAM,
        "Selvaraju et al. 2017",
        "https://arxiv.org/abs/1610.02391",
        needs_gradients=True,
        forwards="1",
        departures="none; Captum's LayerGradCam with relu_attributions=True",
    ),
    "gradcamplusplus": Method(
        "GradCAMPlusPlus",
        attr.GradCAMPlusPlus,
        "Chattopadhay et al. 2018",
        "https://arxiv.org/abs/1710.11063",
        needs_gradients=True,
        forwards="1",
        departures="without the factor exp(score)",
    ),
    "xgradcam": Method(
        "XGradCAM",
        attr.XGradCAM,
        "Fu et al. 2020",
        "https://arxiv.org/abs/2008.02312",
        needs_gradients=True,
        forwards="1",
        departures="none",
    ),
    "hirescam": Method(
        "HiResCAM",
        attr.HiResCAM,
        "Draelos and Carin 2020",
        "https://arxiv.org/abs/2011.08891",
        needs_gradients=True,
        forwards="1",
        departures="ReLU on the map",
    ),
    "layercam": Method(
        "LayerCAM",
        attr.LayerCAM,
        "Jiang et al. 2021",
        "https://doi.org/10.1109/TIP.2021.3089943",
        needs_gradients=True,
        forwards="1",
        departures="one layer, without the tanh for fusing several",
    ),
    "scorecam": Method(
        "ScoreCAM",
        attr.ScoreCAM,
        "Wang et al. 2020",
        "https://arxiv.org/abs/1910.01279",
        needs_gradients=False,
        forwards="live + 2",
        departures="none",
    ),
    "sscam": Method(
        "SSCAM",
        attr.SSCAM,
        "Wang et al. 2020 (smoothed)",
        "https://arxiv.org/abs/2006.14255",
        needs_gradients=False,
        forwards="35 * live + 2",
        departures="all channels share the noise",
    ),
    "iscam": Method(
        "ISCAM",
        attr.ISCAM,
        "Naidu et al. 2020",
        "https://arxiv.org/abs/2010.03023",
        needs_gradients=False,
        forwards="10 * live + 2",
        departures="steps i/n of the mask, not their sum",
    ),
    "groupcam": Method(
        "GroupCAM",
        attr.GroupCAM,
        "Zhang et al. 2021",
        "https://arxiv.org/abs/2103.13859",
        needs_gradients=True,
        forwards="32 + 2",
        departures="groups of nearly equal size",
        ignores=frozenset({"baselines"}),  # its own are blurred inputs
    ),
    "ablationcam": Method(
        "AblationCAM",
        attr.AblationCAM,
        "Desai and Ramaswamy 2020",
        "https://doi.org/10.1109/WACV45572.2020.9093360",
        needs_gradients=False,
        forwards="used + 2",
        departures="confidence for the raw output, divided by its size",
    ),
    "reciprocam": Method(
        "ReciproCAM",
        attr.ReciproCAM,
        "Byun and Lee 2022",
        "https://arxiv.org/abs/2209.14074",
        needs_gradients=False,
        forwards="positions + 2",
        departures="none",
    ),
}


@dataclass(frozen=True)
class Measurement:
    """A batch of maps, and all that a metric may ask for."""

    forward_func: Callable[..., Any]
    inputs: Tensor
    maps: Tensor
    target: list[int]
    baselines: Tensor
    explain: Callable[..., Any]
    masks: list[Tensor]  # the inside of each box, (boxes, H, W), of each example
    steps: int
    seeds: list[int]  # of the noise for each example

    def alone(self) -> Iterator["Measurement"]:
        """Yields each example alone, under its own seed of torch's generator.

        What is random is then the same in whatever batch an example comes.
        """
        for i, seed in enumerate(self.seeds):
            one = slice(i, i + 1)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                yield replace(
                    self,
                    inputs=self.inputs[one],
                    maps=self.maps[one],
                    target=self.target[one],
                    masks=self.masks[one],
                    seeds=[seed],
                )

    def masks_of_any_box(self) -> Tensor:
        """Returns what is inside of any box, (N, 1, H, W)."""
        return torch.stack([masks.any(0, keepdim=True) for masks in self.masks])

    def boxes(self) -> list[Tensor]:
        """Returns the boxes, (boxes, 4) each, xyxy, of the parts that are shown."""
        return [
            torch.tensor([_extent(mask) for mask in masks if mask.any()]).view(-1, 4)
            for masks in self.masks
        ]


def _extent(mask: Tensor) -> list[int]:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return [int(end) for end in ends]


@dataclass(frozen=True)
class Metric:
    """A number for each map.

    Attributes:
        title (str): Name for tables.
        function (str): The function that measures it.
        meaning (str): What it measures, in short.
        paper (str): Authors and year.
        better (str): "higher" or "lower".
        measure (Callable): From a measurement to values, (N,), or values and curves,
            (N, steps + 1).
        needs_boxes (bool): Whether it takes a data set with boxes.
    """

    title: str
    function: str
    meaning: str
    paper: str
    better: str
    measure: Callable[[Measurement], Any]
    needs_boxes: bool = False


def _by_confidence(function: Callable[..., Tensor], scale: float = 1) -> Any:
    def measure(m: Measurement) -> Tensor:
        return scale * function(m.forward_func, m.inputs, m.maps, m.target, m.baselines)

    return measure


def _curve(function: Callable[..., Any], blurred: bool) -> Any:
    def measure(m: Measurement) -> Any:
        return function(
            m.forward_func,
            m.inputs,
            m.maps,
            m.target,
            None if blurred else m.baselines,
            steps=m.steps,
            return_curve=True,
        )

    return measure


def _infidelity(m: Measurement) -> Tensor:
    """Captum's, under noise of a tenth of the input's deviation, normalized."""
    return torch.cat([_infidelity_of_one(one) for one in m.alone()])


def _infidelity_of_one(m: Measurement) -> Tensor:
    noise = 0.1 * m.inputs.std()

    @infidelity_perturb_func_decorator(False)  # type: ignore[untyped-decorator]
    def perturb(inputs: Tensor) -> Tensor:
        drawn = torch.randn(inputs.shape).to(inputs)  # the same on every device
        return inputs - noise * drawn

    values: Tensor = infidelity(
        m.forward_func,
        perturb,
        m.inputs,
        to_input(m.maps, m.inputs),
        target=m.target,
        n_perturb_samples=10,
        normalize=True,
    )
    return values


def _sensitivity(m: Measurement) -> Tensor:
    """Captum's, of maps under noise within its default radius."""

    def explanation(inputs: tuple[Tensor, ...], target: Any) -> tuple[Tensor, ...]:
        return (m.explain(inputs[0], target=target).contiguous(),)

    values = [
        sensitivity_max(explanation, one.inputs, target=one.target) for one in m.alone()
    ]
    return torch.cat(values)


METRICS: dict[str, Metric] = {
    "drop": Metric(
        "average drop, %",
        "confidence_drop",
        "share of the confidence that is lost under the map, 0 to 1 (here in %)",
        "Chattopadhay et al. 2018",
        "lower",
        _by_confidence(metrics.confidence_drop, 100),
    ),
    "increase": Metric(
        "average increase, %",
        "confidence_increase",
        "whether the confidence is higher under the map, 0 or 1 (here in %)",
        "Chattopadhay et al. 2018",
        "higher",
        _by_confidence(metrics.confidence_increase, 100),
    ),
    "insertion": Metric(
        "insertion",
        "insertion",
        "area under the confidence as pixels appear on a blurred image, 0 to 1",
        "Petsiuk et al. 2018",
        "higher",
        _curve(metrics.insertion, True),
    ),
    "deletion": Metric(
        "deletion",
        "deletion",
        "area under the confidence as pixels disappear, 0 to 1",
        "Petsiuk et al. 2018",
        "lower",
        _curve(metrics.deletion, False),
    ),
    "complexity": Metric(
        "complexity",
        "complexity",
        "mean of the map in [0, 1]",
        "Poppi et al. 2021",
        "lower",
        lambda m: metrics.complexity(m.maps, m.inputs.shape[2:]),
    ),
    "coherency": Metric(
        "coherency",
        "coherency",
        "correlation with the map of the masked image, 0 to 1",
        "Poppi et al. 2021",
        "higher",
        lambda m: metrics.coherency(m.explain, m.inputs, m.maps, m.target, m.baselines),
    ),
    "infidelity": Metric(
        "infidelity (Captum)",
        "captum.metrics.infidelity",
        "error of the map as a linear model under noise, normalised, >= 0",
        "Yeh et al. 2019",
        "lower",
        _infidelity,
    ),
    "sensitivity": Metric(
        "max-sensitivity (Captum)",
        "captum.metrics.sensitivity_max",
        "largest relative change of the map under small noise, >= 0",
        "Yeh et al. 2019",
        "lower",
        _sensitivity,
    ),
    "pointing": Metric(
        "pointing game",
        "pointing_game",
        "whether the map's maximum is in a box of any object, 0 to 1",
        "Zhang et al. 2018",
        "higher",
        lambda m: metrics.pointing_game(m.maps, m.masks_of_any_box()),
        needs_boxes=True,
    ),
    "energy": Metric(
        "energy pointing game",
        "energy_pointing_game",
        "share of the map's energy in the boxes of all objects, 0 to 1",
        "Wang et al. 2020",
        "higher",
        lambda m: metrics.energy_pointing_game(m.maps, m.masks_of_any_box()),
        needs_boxes=True,
    ),
    "iou": Metric(
        "IoU of the box",
        "box_iou",
        "overlap of the largest part of the map with the best box, 0 to 1",
        "Choe et al. 2020",
        "higher",
        lambda m: metrics.box_iou(m.maps, m.boxes(), m.inputs.shape[2:]),
        needs_boxes=True,
    ),
}


def methods_table() -> str:
    """Returns all methods as a table in Markdown, the README's."""
    header = (
        "name",
        "class",
        "paper",
        "gradients",
        "forward passes",
        "departs from it by",
    )
    return _markdown(
        header,
        (
            (
                f"`{name}`",
                f"`{method.title}`",
                f"[{method.paper}]({method.link})",
                "yes" if method.needs_gradients else "no",
                method.forwards.replace("*", "x"),
                method.departures,
            )
            for name, method in METHODS.items()
        ),
    )


def metrics_table() -> str:
    """Returns all metrics as a table in Markdown, the README's."""
    header = ("name", "function", "measures", "better", "paper", "boxes")
    return _markdown(
        header,
        (
            (
                f"`{name}`",
                f"`{metric.function}`",
                metric.meaning,
                metric.better,
                metric.paper,
                "needed" if metric.needs_boxes else "",
            )
            for name, metric in METRICS.items()
        ),
    )


def _markdown(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
