"""What follows the tables of a report: maps to look at, and the sanity check."""

import itertools
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.errors import one_line
from captum_unioncam.evaluation.data import Images
from captum_unioncam.evaluation.document import Picture, Section, Table
from captum_unioncam.evaluation.figures import (
    TILE_CHARACTERS,
    broken_label,
    png_of,
    sanity_figure,
    strip_jpeg,
)
from captum_unioncam.evaluation.metrics import METRICS
from captum_unioncam.evaluation.row import Row
from captum_unioncam.evaluation.sanity import randomization_curves
from captum_unioncam.evaluation.storage import read_maps
from captum_unioncam.evaluation.task import Task
from captum_unioncam.visualization import overlay_images

GALLERY = 3  # best and worst images
TILE_PIXELS = 92  # of a page that a photograph of a strip needs to be read


def make_gallery(
    task: Task, images: Images, rows: Sequence[Row], folder: Path
) -> list[Section]:
    """Draws the best and the worst images of a method, under all methods.

    The method is the one that the others are compared with, or else the first with a
    sound map, and the metric insertion if it is there. Images that cannot be read any
    more, or have changed since, and those without a sound map of each method are left
    out, and so are methods without any.
    """
    metrics = task.config.metrics
    metric = "insertion" if "insertion" in metrics else metrics[0]
    sound = [row for row in rows if "error" not in row and not row["broken_map"]]
    methods = [m for m in task.methods if any(row["method"] == m for row in sound)]
    if not methods:
        return [Section("Gallery", "There is no map to show.")]
    reference = task.config.reference
    reference = reference if reference in methods else methods[0]
    counts = Counter(row["id"] for row in sound)
    ranked = [
        row
        for row in sound
        if row["method"] == reference
        and row["metrics"].get(metric) is not None
        and counts[row["id"]] == len(methods)
    ]
    sign = 1 if METRICS[metric].better == "lower" else -1
    ranked.sort(key=lambda row: sign * row["metrics"][metric])
    best = min(GALLERY, (len(ranked) + 1) // 2)
    worst = min(GALLERY, len(ranked) - best)
    chosen = [("best", row) for row in ranked[:best]]
    chosen += [("worst", row) for row in ranked[len(ranked) - worst :]]
    shown = [(end, row, _inputs(images, row)) for end, row in chosen]
    known = [(end, row, inputs) for end, row, inputs in shown if inputs is not None]
    if not known:
        return [Section("Gallery", "There is no image with a map of every method.")]
    text = (
        f"The images of the best and the worst {METRICS[metric].title} of {reference}, "
        f"under all methods, a row each. The number above a map is its {metric}. They "
        "are not typical: the tables above are of all images."
    )
    values = {(row["id"], row["method"]): row["metrics"].get(metric) for row in sound}
    maps = read_maps(folder, {(row["id"], m) for _, row, _ in known for m in methods})
    pictures = tuple(
        Picture(
            f"gallery-{number:03}.jpg",
            f"{_line(end, row, reference, metric)}",
            _strip(task, row["id"], inputs, methods, maps, (metric, values)),
            TILE_PIXELS * (1 + len(methods)),
        )
        for number, (end, row, inputs) in enumerate(known, 1)
    )
    return [Section("Gallery", text, pictures=pictures)]


def _strip(
    task: Task,
    name: str,
    inputs: Tensor,
    methods: Sequence[str],
    maps: Mapping[tuple[str, str], Any],
    measured: tuple[str, Mapping[tuple[str, str], float | None]],
) -> bytes:
    """Returns an image and its maps by all methods in one row, with their values."""
    metric, values = measured
    image = task.picture(inputs[None]).cpu()  # (1, 3, H, W)
    # Maps are of different sizes, so that each is drawn alone.
    drawn = [
        overlay_images(image, torch.tensor([[maps[name, method]]], device="cpu"))[0]
        for method in methods
    ]
    (plain,) = overlay_images(image, torch.zeros(1, 1, 1, 1))
    labels = [broken_label(method, TILE_CHARACTERS) for method in methods]
    shown = [values[name, method] for method in methods]
    texts = ["n/a" if value is None else f"{value:.4g}" for value in shown]
    titles = [f"{a}\n{metric} {b}" for a, b in zip(labels, texts, strict=True)]
    return strip_jpeg([plain, *drawn], ["image", *titles])


def _line(end: str, row: Row, reference: str, metric: str) -> str:
    """Returns what a strip of the gallery shows."""
    name = row["target_name"] or row["target"]
    value = f"{row['metrics'][metric]:.4g}"
    return f"{end}: {row['id']}, {name} ({metric} of {reference}: {value})"


def _inputs(images: Images, row: Row) -> Tensor | None:
    """Returns the image of a row, unless it is gone, or another one by now."""
    item = images[row["index"]]
    return item.inputs if item.file == row["file"] else None


def check_sanity(task: Task, images: Images, rows: Sequence[Row]) -> Section:
    """Randomises the model, and tells how the maps of the first images change."""
    title = "Randomisation of the model"
    targets = {row["index"]: row for row in rows if "target" in row}
    chosen = [
        (inputs, row["target"])
        for row in itertools.islice(targets.values(), task.config.sanity)
        if (inputs := _inputs(images, row)) is not None
    ]
    if not chosen:
        return Section(title, "There is no image to explain.")
    try:
        curves = {label: _curve(task, label, chosen) for label in task.methods}
    # The report is worth more than this part of it.
    except Exception as error:
        return Section(title, f"It failed: {type(error).__name__}: {one_line(error)}")
    stages = [stage or "(model)" for stage, _ in next(iter(curves.values()))]
    table = Table(
        ("method", *stages),
        [
            (label, *(_correlation(values) for _, values in points))
            for label, points in curves.items()
        ],
    )
    text = (
        f"Mean rank correlation of the maps of {len(chosen)} images with those of the "
        "trained model, as its parameters are randomised from the head down to each "
        "module (Adebayo et al. 2018). Lower is better; maps that are never negative "
        "correlate somewhat in any case. NaN counts the images for which a map is "
        "constant or not finite, which the mean leaves out."
    )
    means = {
        label: [(stage, values.nanmean().item()) for stage, values in points]
        for label, points in curves.items()
    }
    drawn = png_of(sanity_figure(means))
    picture = Picture("sanity.png", "Mean rank correlation by method", drawn)
    return Section(title, text, tables=(table,), pictures=(picture,))


def _correlation(values: Tensor) -> str:
    """Returns the mean of the values that are defined as text, such as 0.42 (1 NaN)."""
    undefined = int(values.isnan().sum())
    if undefined == len(values):
        return f"n/a ({undefined} NaN)"
    note = f" ({undefined} NaN)" if undefined else ""
    return f"{values.nanmean().item():.2f}{note}"


def _curve(
    task: Task, label: str, chosen: Sequence[tuple[Tensor, int]]
) -> list[tuple[str, Tensor]]:
    """Returns the stages and the rank correlations, one image at a time."""

    def explain(model: Module, layer: Module) -> Tensor:
        explain_one = task.of_another(model, layer).explain(label)
        return torch.cat(
            [
                explain_one(inputs[None].to(task.device), target=target)
                for inputs, target in chosen
            ]
        )

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*: the maps of examples")
        return randomization_curves(
            task.model, task.layer_name, explain, seed=task.config.seed
        )
