"""The metrics by name, and what they measure: a batch of images and maps of them."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from captum.metrics import (
    infidelity,
    infidelity_perturb_func_decorator,
    sensitivity_max,
)
from torch import Tensor

from captum_unioncam import metrics
from captum_unioncam._forward import ModelCall
from captum_unioncam._scoring import MaskScorer, ScoringOptions
from captum_unioncam.captum_metrics import to_input
from captum_unioncam.metrics import fidelity, imputation
from captum_unioncam.metrics.confidence import confidences_under
from captum_unioncam.metrics.curves import (
    area_under,
    insertion_baselines,
    score_curve,
)

# The radius of Captum's infidelity, in standard deviations of the input.
NOISE = 0.1
NOISE_SAMPLES = 10


@dataclass(frozen=True)
class Batch:
    """Images, and the scores of them that all methods and metrics share.

    Attributes:
        forward_func (Callable): Runs the model.
        inputs (Tensor): The images, (N, C, H, W).
        target (list[int]): The class of each image.
        baselines (Tensor): A black image, (1, C, H, W).
        masks (list[Tensor]): The inside of each box of each image, (boxes, H, W).
        steps (int): Steps of the insertion and deletion curves.
        seeds (list[int]): Seeds of the noise for each image.
    """

    forward_func: Callable[..., Any]
    inputs: Tensor
    target: list[int]
    baselines: Tensor
    masks: list[Tensor]
    steps: int
    seeds: list[int]

    @functools.cached_property
    def scorer(self) -> MaskScorer:
        """Scores masks over black; the whole and the black images are scored once."""
        return self._scorer(self.baselines)

    @functools.cached_property
    def insertion_scorer(self) -> MaskScorer:
        """Scores masks over the blurred images."""
        return self._scorer(insertion_baselines((self.inputs,), self.inputs.dim()))

    def _scorer(self, baselines: Any) -> MaskScorer:
        call = ModelCall.prepare(self.forward_func, self.inputs, self.target, None)
        options = ScoringOptions(baselines=baselines)
        return MaskScorer(call, self.inputs.dim(), options)

    def alone(self, i: int) -> "Batch":
        """Returns one of the images."""
        one = slice(i, i + 1)
        return replace(
            self,
            inputs=self.inputs[one],
            target=self.target[one],
            masks=self.masks[one],
            seeds=self.seeds[one],
        )

    def generators(self) -> list[torch.Generator]:
        """Returns a new generator for each image, the same for every method."""
        return [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]

    def masks_of_any_box(self) -> Tensor:
        """Returns what is inside of any box, (N, 1, H, W)."""
        return torch.stack([masks.any(0, keepdim=True) for masks in self.masks])

    def boxes(self) -> list[Tensor]:
        """Returns the boxes, (boxes, 4) each, xyxy, of the parts that are shown."""
        return [
            masks.new_tensor(
                [_extent(mask) for mask in masks if mask.any()], dtype=torch.long
            ).view(-1, 4)
            for masks in self.masks
        ]


@dataclass(frozen=True)
class Measurement:
    """The maps of a batch by one method.

    Attributes:
        batch (Batch): The images.
        maps (Tensor): A map for each image, (N, 1, h, w), in float32 or float64.
        explain (Callable): Makes such maps, from inputs and ``target``.
    """

    batch: Batch
    maps: Tensor
    explain: Callable[..., Any]

    @functools.cached_property
    def confidences(self) -> tuple[Tensor, Tensor]:
        """The scores of the whole and of the masked images, (N,) each.

        Cost: 1 forward pass of the batch for all metrics that read them.
        """
        return confidences_under(self.batch.scorer, self.maps)

    @functools.cached_property
    def coherency(self) -> Tensor:
        """How similar the maps and those of the masked images are, (N,).

        Cost: 1 explanation of the batch for all metrics that read it.
        """
        batch = self.batch
        return metrics.coherency(
            self.explain, batch.inputs, self.maps, batch.target, batch.baselines
        )

    def alone(self) -> Iterator["Measurement"]:
        """Yields each image alone, under its own seed of torch's generator.

        What is random then does not depend on the batch.
        """
        for i, seed in enumerate(self.batch.seeds):
            maps = self.maps[i : i + 1]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                yield Measurement(self.batch.alone(i), maps, self.explain)


@dataclass(frozen=True)
class Metric:
    """A number for each map.

    Attributes:
        title (str): Name for tables.
        function (Callable): The public function that measures it.
        meaning (str): What it measures, in short.
        paper (str): Authors and year.
        better (str): "higher" or "lower".
        measure (Callable): From a :class:`Measurement` to values, (N,), or values and
            curves, (N, steps + 1).
        needs_boxes (bool): Whether it takes a data set with boxes.
    """

    title: str
    function: Callable[..., Any]
    meaning: str
    paper: str
    better: str
    measure: Callable[[Measurement], Any]
    needs_boxes: bool = False

    @property
    def function_name(self) -> str:
        """The function's name, with its module where it is not of this package."""
        module = ".".join(self.function.__module__.split(".")[:2])
        name = self.function.__name__
        return name if module.startswith("captum_unioncam") else f"{module}.{name}"


def _insertion(m: Measurement) -> tuple[Tensor, Tensor]:
    return _area_and_curve(m, m.batch.insertion_scorer, inserting=True)


def _deletion(m: Measurement) -> tuple[Tensor, Tensor]:
    return _area_and_curve(m, m.batch.scorer, inserting=False)


def _area_and_curve(
    m: Measurement, scorer: MaskScorer, inserting: bool
) -> tuple[Tensor, Tensor]:
    curve = score_curve(scorer, m.maps, m.batch.steps, inserting)
    return area_under(curve), curve


def _infidelity(m: Measurement) -> Tensor:
    """Captum's, under noise of a tenth of the input's deviation, normalised."""
    return torch.cat([_infidelity_of_one(one) for one in m.alone()])


def _infidelity_of_one(m: Measurement) -> Tensor:
    noise = NOISE * m.batch.inputs.std()

    @infidelity_perturb_func_decorator(False)  # type: ignore[untyped-decorator]
    def perturb(inputs: Tensor) -> Tensor:
        drawn = torch.randn(inputs.shape, device="cpu").to(
            inputs
        )  # the same on every device
        return inputs - noise * drawn

    values: Tensor = infidelity(
        m.batch.forward_func,
        perturb,
        m.batch.inputs,
        to_input(m.maps, m.batch.inputs),
        target=m.batch.target,
        n_perturb_samples=NOISE_SAMPLES,
        normalize=True,
    )
    return values


def _sensitivity(m: Measurement) -> Tensor:
    """Captum's, of maps under noise within its default radius."""

    def explanation(inputs: tuple[Tensor, ...], target: Any) -> tuple[Tensor, ...]:
        return (m.explain(inputs[0], target=target).contiguous(),)

    values = [
        sensitivity_max(explanation, one.batch.inputs, target=one.batch.target)
        for one in m.alone()
    ]
    return torch.cat(values)


def _complexity(m: Measurement) -> Tensor:
    return metrics.complexity(m.maps, m.batch.inputs.shape[2:])


def _adcc(m: Measurement) -> Tensor:
    drop = metrics.confidence_drop(*m.confidences)
    return metrics.adcc(m.coherency, _complexity(m), drop)


def _road(m: Measurement) -> Tensor:
    noise = imputation.PixelNoise(imputation.NOISE, m.batch.generators())
    curve = imputation.road_curve(m.batch.scorer, m.maps, imputation.PERCENTILES, noise)
    return curve.mean(1)


def _mu_fidelity(m: Measurement) -> Tensor:
    size = m.batch.inputs.shape[2:]
    subsets = fidelity.Subsets.drawn(size, m.batch.generators())
    return fidelity.fidelities(m.batch.scorer, m.maps, subsets)


def _extent(mask: Tensor) -> list[int]:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return [int(end) for end in ends]


METRICS: dict[str, Metric] = {
    "drop": Metric(
        "average drop, %",
        metrics.confidence_drop,
        "share of the confidence that is lost under the map, 0 to 1 (here in %)",
        "Chattopadhay et al. 2018",
        "lower",
        lambda m: 100 * metrics.confidence_drop(*m.confidences),
    ),
    "increase": Metric(
        "average increase, %",
        metrics.confidence_increase,
        "whether the confidence is higher under the map, 0 or 1 (here in %)",
        "Chattopadhay et al. 2018",
        "higher",
        lambda m: 100 * metrics.confidence_increase(*m.confidences),
    ),
    "gain": Metric(
        "average gain, %",
        metrics.average_gain,
        "share of the missing confidence that is won under the map, 0 to 1 (here in %)",
        "Zhang et al. 2024",
        "higher",
        lambda m: 100 * metrics.average_gain(*m.confidences),
    ),
    "insertion": Metric(
        "insertion",
        metrics.insertion,
        "area under the confidence as pixels appear on a blurred image, 0 to 1",
        "Petsiuk et al. 2018",
        "higher",
        _insertion,
    ),
    "deletion": Metric(
        "deletion",
        metrics.deletion,
        "area under the confidence as pixels disappear, 0 to 1",
        "Petsiuk et al. 2018",
        "lower",
        _deletion,
    ),
    "complexity": Metric(
        "complexity",
        metrics.complexity,
        "mean of the map in [0, 1]",
        "Poppi et al. 2021",
        "lower",
        _complexity,
    ),
    "coherency": Metric(
        "coherency",
        metrics.coherency,
        "correlation with the map of the masked image, 0 to 1",
        "Poppi et al. 2021",
        "higher",
        lambda m: m.coherency,
    ),
    "adcc": Metric(
        "ADCC",
        metrics.adcc,
        "harmonic mean of coherency, 1 - complexity and 1 - drop, 0 to 1",
        "Poppi et al. 2021",
        "higher",
        _adcc,
    ),
    "road": Metric(
        "ROAD",
        metrics.road,
        "half of the confidence without the least relevant pixels minus that without "
        "the most, imputed, -0.5 to 0.5",
        "Rong et al. 2022",
        "higher",
        _road,
    ),
    "mu_fidelity": Metric(
        "mu-fidelity",
        metrics.mu_fidelity,
        "correlation of the map's sums over random cells with the drops, -1 to 1",
        "Bhatt et al. 2020",
        "higher",
        _mu_fidelity,
    ),
    "infidelity": Metric(
        "infidelity (Captum)",
        infidelity,
        "error of the map as a linear model under noise, normalised, >= 0",
        "Yeh et al. 2019",
        "lower",
        _infidelity,
    ),
    "sensitivity": Metric(
        "max-sensitivity (Captum)",
        sensitivity_max,
        "largest relative change of the map under small noise, >= 0",
        "Yeh et al. 2019",
        "lower",
        _sensitivity,
    ),
    "pointing": Metric(
        "pointing game",
        metrics.pointing_game,
        "whether the map's maximum is in a box of any object, 0 to 1",
        "Zhang et al. 2018",
        "higher",
        lambda m: metrics.pointing_game(m.maps, m.batch.masks_of_any_box()),
        needs_boxes=True,
    ),
    "energy": Metric(
        "energy pointing game",
        metrics.energy_pointing_game,
        "share of the map's energy in the boxes of all objects, 0 to 1",
        "Wang et al. 2020",
        "higher",
        lambda m: metrics.energy_pointing_game(m.maps, m.batch.masks_of_any_box()),
        needs_boxes=True,
    ),
    "iou": Metric(
        "IoU of the box",
        metrics.box_iou,
        "overlap of the largest part of the map with the best box, 0 to 1",
        "Choe et al. 2020",
        "higher",
        lambda m: metrics.box_iou(m.maps, m.batch.boxes(), m.batch.inputs.shape[2:]),
        needs_boxes=True,
    ),
}
