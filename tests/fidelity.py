"""How good maps of few scored channels are, beside the exact ones. Not a test.

    pip install -c constraints.txt -e ".[demo]"
    python tests/fidelity.py --images FOLDER --layers default _blocks.10._swish

For each image of the folder and each layer of efficientnet_lite0, the class that the
model predicts is explained. All active channels are scored once. Then the region map is
made from some of these scores, by the functions that RegionCAM and UnionCAM use, and so
are UnionCAM and the metrics, on the model. Shown are:

- the correlation of the region map with the exact one; that of their class-specific
  parts, where the mean score is taken off each score, and the ratio of their sizes; the
  mean difference of their masks;
- paired differences of the metrics from those of the exact maps, with their standard
  errors, in points; and how often Eq. 8 selects the same map;
- how often the estimated fidelity is more than 0.01 above the true correlation.

``--start 1 --step 2`` takes every second image: those on which nothing was chosen.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from captum.attr import LayerAttribution
from PIL import Image
from torch import Tensor, nn

from captum_unioncam import DenoisedGradCAM, UnionCAM
from captum_unioncam._layer_call import LayerCall
from captum_unioncam._maps import is_active, min_max
from captum_unioncam._scoring import MaskScorer, ScoringOptions
from captum_unioncam.attr._base import weighted_map
from captum_unioncam.attr._channel_scores import FEWEST, ChannelScores
from captum_unioncam.metrics import (
    confidence_drop,
    deletion,
    insertion,
    masked_confidences,
)
from captum_unioncam.models import Classifier, load_classifier

COUNTS = (16, 32, 64, 128)
FIDELITY = 0.99
CALIBRATED = (16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256)
STEPS = 14  # of insertion and deletion
METRICS = ("drop", "insertion", "deletion")


@dataclass(frozen=True)
class Exact:
    """A layer's channels for an image, and the score of each as a mask."""

    activations: Tensor  # (1, K, h, w)
    active: Tensor  # (1, K)
    scores: Tensor  # (1, K)
    baseline: Tensor  # (1,)

    def few(self, count: int | None, fidelity: float = 1.0) -> tuple[Any, ...]:
        """Returns scores from a few of them, how many, and the estimated fidelity."""
        result = ChannelScores(self.activations, self.baseline, count, fidelity)
        for chosen in result:
            result.record(torch.where(chosen, self.scores, self.baseline[:, None]))
        return result.scores, int(result.measured.sum()), float(result.fidelity)

    def region(self, scores: Tensor) -> Tensor:
        """Returns the region map, (1, 1, h, w)."""
        return weighted_map(scores, self.activations)

    def specific(self, scores: Tensor) -> Tensor:
        """Returns the class-specific part of the map, (1, 1, h, w)."""
        rest = torch.where(self.active, scores - scores[self.active].mean(), 0)
        return (rest[..., None, None] * self.activations).sum(1, keepdim=True)


class Given(LayerAttribution):
    """An attribution that is known, to be a part of UnionCAM."""

    def __init__(self, model: nn.Module, layer: nn.Module, maps: Tensor) -> None:
        super().__init__(model, layer)
        self.maps = maps

    def attribute(self, inputs: Tensor, **_: object) -> Tensor:
        """Returns the map."""
        return self.maps


def read(classifier: Classifier, path: Path) -> tuple[Tensor, Tensor]:
    """Returns an image and a black one as the model sees them."""
    image = Image.open(path).convert("RGB")
    black = Image.new("RGB", image.size)
    views = [classifier.preprocess(view).unsqueeze(0) for view in (image, black)]
    return views[0], views[1]


def exact(
    model: nn.Module, layer: nn.Module, inputs: Tensor, target: int, black: Tensor
) -> Exact:
    """Scores all active channels."""
    call = LayerCall.prepare(
        model,
        inputs,
        target,
        None,
        layer=layer,
        device_ids=None,
        attribute_to_layer_input=False,
        reshape_transform=None,
    )
    (tensor,) = call.tensors()
    scorer = MaskScorer(call, 4, ScoringOptions(baselines=black), tensor.output)
    active = is_active(tensor.activations)
    scores = scorer.score(active, scorer.masking(tensor.activations))
    return Exact(tensor.activations, active, scores, scorer.reference_scores)


def correlation(ours: Tensor, theirs: Tensor) -> float:
    """Returns Pearson's correlation of two maps; 0 where one is constant."""
    pair = torch.stack([ours.flatten(), theirs.flatten()]).double()
    return float(torch.corrcoef(pair)[0, 1].nan_to_num(0.0))


def agreement(known: Exact, scores: Tensor) -> dict[str, float]:
    """Compares the region map with the exact one."""
    ours, theirs = known.region(scores), known.region(known.scores)
    parts = known.specific(scores), known.specific(known.scores)
    return {
        "correlation": correlation(ours, theirs),
        "specific": correlation(*parts),
        "size": float(parts[0].norm() / parts[1].norm()),
        "difference": float((min_max(ours) - min_max(theirs)).abs().mean()),
    }


def quality(
    model: nn.Module,
    layer: nn.Module,
    inputs: Tensor,
    target: int,
    black: Tensor,
    region: Tensor,
) -> dict[str, float]:
    """Returns the metrics of a region map and of its UnionCAM, on the model."""
    parts = [DenoisedGradCAM(model, layer), Given(model, layer, region)]
    cam = UnionCAM(model, layer, parts=parts)
    union, details = cam.attribute(inputs, target, baselines=black, return_details=True)
    row = {"selected": float(details.fused_selected)}
    for name, maps in (("region", region), ("union", union)):
        pair = masked_confidences(model, inputs, maps, target, black)
        row[f"{name} drop"] = float(confidence_drop(*pair))
        row[f"{name} insertion"] = float(
            insertion(model, inputs, maps, target, steps=STEPS)
        )
        row[f"{name} deletion"] = float(
            deletion(model, inputs, maps, target, black, steps=STEPS)
        )
    return row


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields a row for each layer, image and way of scoring."""
    classifier = load_classifier()
    model = classifier.model
    paths = sorted(Path(options.images).glob("*.jpg"))[options.start :: options.step]
    for name in options.layers:
        layer = classifier.layer(
            classifier.default_layer if name == "default" else name
        )
        for path in paths[: options.count]:
            inputs, black = read(classifier, path)
            with torch.no_grad():
                target = int(model(inputs).argmax())
            known = exact(model, layer, inputs, target, black)
            place = {"layer": name, "image": path.name}

            def on_model(scores: Tensor) -> dict[str, float]:
                if not options.metrics:
                    return {}
                region = known.region(scores)
                return quality(model, layer, inputs, target, black, region)

            for count in CALIBRATED:
                scores, scored, estimate = known.few(count)
                row = {"estimate": estimate, "scored": scored}
                row |= agreement(known, scores)
                yield {**place, "what": f"round {count}", **row}
            yield {**place, "what": "exact", **on_model(known.scores)}
            ways = {f"{count}": known.few(count) for count in COUNTS}
            ways[f"fidelity {FIDELITY}"] = known.few(None, FIDELITY)
            for what, (scores, scored, estimate) in ways.items():
                row = {"estimate": estimate, "scored": scored}
                row |= agreement(known, scores) | on_model(scores)
                yield {**place, "what": what, **row}
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def summary(rows: list[dict[str, Any]], key: str, worst: Callable | None = None) -> str:
    """Returns the mean of a value over the images, and the worst one."""
    values = [row[key] for row in rows]
    text = f"{statistics.mean(values):.4f}"
    return text if worst is None else f"{text} ({worst(values):.3f})"


def paired(rows: list[dict], exact_rows: list[dict], key: str) -> str:
    """Returns a mean paired difference and its standard error, in points."""
    differences = [
        100 * (row[key] - mine[key]) for row, mine in zip(rows, exact_rows, strict=True)
    ]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.mean(differences):+.1f} ± {error:.1f}"


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the Markdown tables of the measurements."""
    lines = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        ours = [row for row in rows if row["layer"] == layer]
        groups: dict[str, list[dict]] = {}
        for row in ours:
            groups.setdefault(row["what"], []).append(row)
        known = groups.pop("exact")
        rounds = [row for what in list(groups) if what.startswith("round ")
                  for row in groups.pop(what)]  # fmt: skip
        lines += [f"\n{layer}, {len(known)} images\n"]
        lines += [
            "| scored | mean, most | correlation (worst) | class-specific part | its "
            "size | mask difference | estimate |",
            "|---|---|---|---|---|---|---|",
        ]
        for what, group in groups.items():
            scored = [row["scored"] for row in group]
            lines.append(
                f"| {what} | {statistics.mean(scored):.0f}, {max(scored)} | "
                f"{summary(group, 'correlation', min)} | {summary(group, 'specific')} "
                f"| {summary(group, 'size')} | {summary(group, 'difference')} | "
                f"{summary(group, 'estimate')} |"
            )
        above = [row["estimate"] - row["correlation"] > 0.01 for row in rounds]
        lines.append(
            f"\nFrom {FEWEST} scored channels on, the estimate is more than 0.01 above "
            f"the truth in {statistics.mean(above):.1%} of {len(above)} cases.\n"
        )
        if "selected" in known[0]:
            lines += metrics_table(groups, known)
    return "\n".join(lines)


def metrics_table(groups: dict[str, list[dict]], known: list[dict]) -> list[str]:
    """Returns the lines of the table of the metrics, as paired differences."""
    keys = [f"{part} {name}" for part in ("region", "union") for name in METRICS]
    lines = [f"| scored | {' | '.join(keys)} | same selection |"]
    lines.append("|---" * (len(keys) + 2) + "|")
    means = [f"{100 * statistics.mean(row[key] for row in known):.1f}" for key in keys]
    lines.append(f"| exact | {' | '.join(means)} | |")
    for what, group in groups.items():
        cells = [paired(group, known, key) for key in keys]
        same = [
            row["selected"] == mine["selected"]
            for row, mine in zip(group, known, strict=True)
        ]
        lines.append(f"| {what} | {' | '.join(cells)} | {statistics.mean(same):.0%} |")
    unions = [
        {name: row[f"union {name}"] - row[f"region {name}"] for name in METRICS}
        for row in known
    ]
    nothing = [dict.fromkeys(METRICS, 0.0)] * len(known)
    gains = [f"{name} {paired(unions, nothing, name)}" for name in METRICS]
    lines.append(f"\nExact UnionCAM less the exact region map: {', '.join(gains)}.")
    return lines


def main() -> None:
    """Measures, prints the tables, and writes the rows as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", required=True, metavar="FOLDER")
    parser.add_argument("--layers", nargs="+", default=["default"])
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--no-metrics", dest="metrics", action="store_false")
    parser.add_argument("--json", metavar="FILE", help="a row in each line")
    options = parser.parse_args()
    if not Path(options.images).is_dir():
        parser.error(f"--images must be a folder, got {options.images}")
    rows = []
    for row in measure(options):
        rows.append(row)
        if options.json:
            with Path(options.json).open("a") as file:
                file.write(json.dumps(row) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
