"""What follows the tables of a report: maps to look at, and the sanity check."""

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam.errors import one_line
from captum_unioncam.evaluation.data import Images
from captum_unioncam.evaluation.document import Picture, Section, Table
from captum_unioncam.evaluation.figures import png_of, sanity_figure
from captum_unioncam.evaluation.metrics import METRICS
from captum_unioncam.evaluation.row import Row
from captum_unioncam.evaluation.sanity import randomization_curves
from captum_unioncam.evaluation.sections import GalleryItem
from captum_unioncam.evaluation.storage import read_maps
from captum_unioncam.evaluation.task import Task
from captum_unioncam.visualization import panels

GALLERY = 3  # best and worst images of each method
GALLERY_DOTS_PER_INCH = 60


def make_gallery(
    task: Task, images: Images, rows: Sequence[Row], folder: Path
) -> dict[str, list[GalleryItem]]:
    """Draws the best and the worst maps of each method, by insertion if it is there.

    Images that cannot be read any more, or have changed since, and maps that are not
    finite are left out.
    """
    metrics = task.config.metrics
    metric = "insertion" if "insertion" in metrics else metrics[0]
    sign = 1 if METRICS[metric].better == "lower" else -1
    chosen = []
    for label in task.methods:
        known = [
            row
            for row in rows
            if row["method"] == label
            and row.get("metrics", {}).get(metric) is not None
            and not row["broken_map"]
        ]
        known.sort(key=lambda row: sign * row["metrics"][metric])
        count = min(GALLERY, len(known) // 2)
        chosen += [("best", row) for row in known[:count]]
        chosen += [("worst", row) for row in known[len(known) - count :]]
    maps = read_maps(folder, {(row["id"], row["method"]) for _, row in chosen})
    gallery: dict[str, list[GalleryItem]] = {label: [] for label in task.methods}
    for end, row in chosen:
        inputs = _inputs(images, row)
        if inputs is None:
            continue
        name = row["target_name"] or str(row["target"])
        values = torch.tensor(maps[row["id"], row["method"]], device="cpu")[None, None]
        drawn = panels(task.picture(inputs[None]), {name: values})
        png = png_of(drawn, GALLERY_DOTS_PER_INCH)
        value = row["metrics"][metric]
        gallery[row["method"]].append(GalleryItem(end, row["id"], value, png))
    return gallery


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
