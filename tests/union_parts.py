"""Which parts UnionCAM should unite. Not a test.

    pip install -c constraints.txt -e ".[demo]"
    python tests/union_parts.py --images FOLDER --boxes VOC --object-names FILE

Chooses on the first, third, fifth, ... image of the folder, and of VOC 2007's test
images, so that a choice can be judged on the others (``tests/evidence.py``). For the
predicted class, at each layer, it

- makes the map of each part, and the fused map (Eq. 6) of each set of parts;
- keeps one of them by their scores, as each ``select`` of UnionCAM does;
- measures drop, increase, insertion and deletion, and on photographs with boxes the
  share of the map's energy in the boxes of the class, and whether its maximum is there.

The table is sorted by the weakest column of a setting: the paired difference to the
setting with the best mean, in standard errors of the difference.
"""

import argparse
import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam import UnionCAM, attr
from captum_unioncam._maps import min_max, scale_as_mask
from captum_unioncam.attr._fusion import weighted_union
from captum_unioncam.evaluation import METRICS
from captum_unioncam.evaluation.data import Images, Item
from captum_unioncam.evaluation.metrics import Batch, Measurement
from captum_unioncam.evaluation.objects import ClassObjects, read_object_names
from captum_unioncam.evaluation.sources import open_data
from captum_unioncam.models import Classifier, load_classifier

PARTS = (
    *(attr.DenoisedGradCAM, attr.GradCAM, attr.GradCAMPlusPlus, attr.HiResCAM),
    *(attr.LayerCAM, attr.GroupCAM, attr.ScoreCAM, attr.ReciproCAM, attr.RegionCAM),
)
NAMES = tuple(part.__name__ for part in PARTS)
REGION = "RegionCAM"
GRADIENT = ("DenoisedGradCAM", "LayerCAM")
# Each with the region map, after it.
UNITED = (
    *((name,) for name in NAMES if name != REGION),
    GRADIENT,
    *((name, "GroupCAM") for name in GRADIENT),
    *((*GRADIENT, name) for name in ("GroupCAM", "HiResCAM", "ReciproCAM")),
    (*GRADIENT, "GroupCAM", "ReciproCAM"),
    NAMES[:-1],
)
SELECTIONS = ("None", "region", "best")
FIDELITY = 0.99
CONFIDENCE = ("drop", "increase", "insertion", "deletion")
BOXES = ("energy", "pointing")
STEPS = 10

Values = dict[str, float]  # of one map, by metric


class Setting(NamedTuple):
    """What to unite, and what to keep; a single part is itself."""

    parts: tuple[str, ...]
    select: str

    def __str__(self) -> str:
        return f"{' + '.join(self.parts)}, {self.select}"

    def kept(self, measured: Mapping[tuple[str, ...], Values]) -> Values:
        """Returns the values of the map that is kept, in the order of ties."""
        fused, single = self.parts, [(part,) for part in self.parts]
        candidates = {
            "None": [fused],
            "region": [single[-1], fused],
            "best": [single[-1], *single[:-1], fused],
        }[self.select]
        return max(
            (measured[name] for name in candidates), key=lambda found: found["kept"]
        )


SETTINGS = [
    *(Setting((name,), "None") for name in NAMES),
    *(
        Setting((*parts, REGION), select)
        for parts, select in itertools.product(UNITED, SELECTIONS)
    ),
]


def all_maps(
    classifier: Classifier, layer: Module, inputs: Tensor, target: int
) -> dict[tuple[str, ...], Tensor]:
    """Returns the map of each part and each set of parts, (1, 1, h, w)."""
    model = classifier.model
    parts = [part(model, layer) for part in PARTS]
    _, details = UnionCAM(model, layer, parts=parts).attribute(
        inputs,
        target=target,
        baselines=classifier.black,
        fidelity=FIDELITY,
        return_details=True,
    )
    maps, gains = details.part_maps, details.part_gains
    scaled = scale_as_mask(maps, inputs.shape[2:])
    found = {(name,): maps[:, [i]] for i, name in enumerate(NAMES)}
    for united in UNITED:
        names = (*united, REGION)
        places = [NAMES.index(name) for name in names]
        found[names] = weighted_union(scaled[:, places], gains[:, places])
    return {names: min_max(each) for names, each in found.items()}


@torch.no_grad()
def measured(
    classifier: Classifier,
    inputs: Tensor,
    target: int,
    maps: Mapping[tuple[str, ...], Tensor],
    masks: Tensor | None,
) -> dict[tuple[str, ...], Values]:
    """Returns the values of each map, and the confidence that is kept under it."""
    count = len(maps)
    batch = Batch(
        classifier.model,
        inputs.expand(count, -1, -1, -1),
        target=[target] * count,
        baselines=classifier.black,
        masks=[masks if masks is not None else inputs.new_zeros(0)] * count,
        steps=STEPS,
        seeds=[0] * count,
    )
    measurement = Measurement(batch, torch.cat(list(maps.values())), explain=_none)
    names = CONFIDENCE if masks is None else BOXES
    values = {name: METRICS[name].measure(measurement) for name in names}
    values = {k: v[0] if isinstance(v, tuple) else v for k, v in values.items()}
    values["kept"] = measurement.confidences[1]
    return {
        names: {metric: float(each[i]) for metric, each in values.items()}
        for i, names in enumerate(maps)
    }


def _none(*args: object, **kwargs: object) -> Tensor:
    raise NotImplementedError("no metric of this program explains anew")


def boxes_of(item: Item, target: int, objects: ClassObjects) -> Tensor | None:
    """Returns the boxes of the class, (boxes, H, W); None where there are none."""
    assert item.masks is not None
    counts = [target in objects.classes(name) for name in item.objects]
    return item.masks[torch.tensor(counts)] if any(counts) else None


def weakest(
    columns: Mapping[str, Mapping[Setting, list[float]]],
) -> dict[Setting, float]:
    """Returns how far each setting is behind the best, in its weakest column."""
    behind: dict[Setting, float] = dict.fromkeys(SETTINGS, 0.0)
    for column, values in columns.items():
        sign = 1 if METRICS[column.rpartition(" ")[2]].better == "higher" else -1
        best = max(SETTINGS, key=lambda each: sign * statistics.fmean(values[each]))
        for setting in SETTINGS:
            less = [sign * (b - v) for b, v in zip(values[best], values[setting])]
            behind[setting] = max(behind[setting], in_errors(less))
    return behind


def in_errors(differences: Sequence[float]) -> float:
    """Returns a mean in its standard errors."""
    mean = statistics.fmean(differences)
    if mean == 0:
        return 0.0
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return mean / error if error else math.inf


def show(columns: Mapping[str, Mapping[Setting, list[float]]]) -> None:
    """Prints the table, the best setting first."""
    behind = weakest(columns)
    counts = {column: len(values[SETTINGS[0]]) for column, values in columns.items()}
    print(", ".join(f"{column}: {n} images" for column, n in counts.items()), "\n")
    print(f"| parts, select | behind, SE | {' | '.join(columns)} |")
    print(f"|---|---|{'---|' * len(columns)}")
    for setting in sorted(SETTINGS, key=behind.__getitem__):
        means = [statistics.fmean(values[setting]) for values in columns.values()]
        cells = " | ".join(f"{mean:.4g}" for mean in means)
        print(f"| {setting} | {behind[setting]:.1f} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, help="folder of images")
    parser.add_argument("--boxes", required=True, help="folder in VOC 2007's layout")
    parser.add_argument(
        "--object-names", required=True, help="JSON file, as of evaluate"
    )
    parser.add_argument("--layers", nargs="+", default=["default", "_blocks.10._swish"])
    options = parser.parse_args()
    classifier = load_classifier("efficientnet_lite0")
    named = read_object_names(options.object_names)
    objects = ClassObjects(classifier.categories, 1000, named)
    columns: dict[str, dict[Setting, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for spec in (f"imagefolder:{options.images}", f"voc2007:{options.boxes}"):
        entries = open_data(spec)[::2]
        images = Images(entries, classifier.preprocess)
        for item in (images[i] for i in range(len(entries))):
            assert item.inputs is not None
            inputs = item.inputs[None]
            target = int(classifier.model(inputs).argmax())
            masks = None
            if item.masks is not None:
                masks = boxes_of(item, target, objects)
                if masks is None:
                    continue
            for name in options.layers:
                layer = classifier.layer(None if name == "default" else name)
                maps = all_maps(classifier, layer, inputs, target)
                found = measured(classifier, inputs, target, maps, masks)
                for setting in SETTINGS:
                    for metric, value in setting.kept(found).items():
                        if metric != "kept":
                            columns[f"{name} {metric}"][setting].append(value)
    show(columns)


if __name__ == "__main__":
    main()
