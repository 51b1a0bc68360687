"""How few steps of insertion and deletion give the area of many. Not a test.

    pip install -c constraints.txt -e ".[demo]"
    python tests/steps.py FOLDER --count 30

Explains the predicted class of the first images of a folder by a few methods, takes the
curves of 100 steps, and compares their area with that of every second, fourth, ...
point: exactly the curve of 50, 25, ... steps, which shows the same pixels at its
points. For each number of steps it shows

- the mean and the largest absolute difference of an image's area,
- the largest absolute difference of a method's mean, which all methods share in part,
- the largest absolute difference of what sets two methods apart on the mean.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from captum_unioncam.evaluation.data import read_image
from captum_unioncam.evaluation.labels import parse_methods
from captum_unioncam.metrics import deletion, insertion
from captum_unioncam.metrics.curves import area_under
from captum_unioncam.models import load_classifier

MANY = 100
FEWER = (50, 25, 20, 10, 5)
EVERY = 5  # images, after which the table so far is shown
METHODS = ("gradcam", "layercam", "scorecam:max_channels=16", "random")


def coarser(curves: Tensor, steps: int) -> Tensor:
    """Returns every so many points of curves, (..., n + 1), of which n has a factor."""
    return curves[..., :: (curves.shape[-1] - 1) // steps]


def deviations(curves: Tensor, steps: int) -> dict[str, float]:
    """Returns how areas of fewer steps deviate.

    Args:
        curves (Tensor): (methods, images, n + 1).
        steps (int): A factor of n.
    """

    def areas(values: Tensor) -> Tensor:
        return area_under(values.flatten(0, 1)).view(values.shape[:2])

    differences = areas(coarser(curves, steps)) - areas(curves)  # (methods, images)
    means = differences.mean(1)
    apart = [float(a - b) for a, b in itertools.combinations(means.tolist(), 2)]
    return {
        "mean": float(differences.abs().mean()),
        "largest": float(differences.abs().max()),
        "of a mean": float(means.abs().max()),
        "between methods": max(map(abs, apart), default=0.0),
    }


def measured(
    paths: Sequence[Path], labels: Sequence[str]
) -> Iterator[dict[str, Tensor]]:
    """Yields the curves of each image, (methods, 101), by metric."""
    classifier = load_classifier()
    model = classifier.model
    black = classifier.preprocess(Image.new("RGB", (448, 448))).unsqueeze(0)
    layer = classifier.layer(classifier.default_layer)
    methods = parse_methods(labels).values()
    for path in paths:
        image = classifier.preprocess(read_image(str(path))).unsqueeze(0)
        with torch.no_grad():
            target = int(model(image).argmax())
        curves: dict[str, list[Tensor]] = {"insertion": [], "deletion": []}
        for method, options in methods:
            explain = method.explain(model, layer, options, baselines=black)
            given = (model, image, explain(image, target=target), target)
            _, curve = insertion(*given, steps=MANY, return_curve=True)
            curves["insertion"].append(curve[0].double())
            _, curve = deletion(*given, black, steps=MANY, return_curve=True)
            curves["deletion"].append(curve[0].double())
        yield {name: torch.stack(found) for name, found in curves.items()}


def table(curves: dict[str, Tensor]) -> str:
    """Returns the deviations in Markdown."""
    lines = [
        "| metric | steps | mean | largest | of a mean | between methods |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, steps in itertools.product(curves, FEWER):
        numbers = deviations(curves[name], steps).values()
        cells = " | ".join(f"{number:.4f}" for number in numbers)
        lines.append(f"| {name} | {steps} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    paths = sorted(options.folder.glob("*.jpg"))[: options.count]
    if not paths:
        parser.error(f"there is no JPEG file in {options.folder}")
    images = []
    for number, curves in enumerate(measured(paths, options.methods.split(",")), 1):
        images.append(curves)
        if number % EVERY == 0 or number == len(paths):
            together = {n: torch.stack([i[n] for i in images], 1) for n in curves}
            print(f"\n{number} images\n\n{table(together)}", flush=True)


if __name__ == "__main__":
    main()
