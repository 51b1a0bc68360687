"""From images to rows: the class to explain, the map of each method, the metrics."""

import hashlib
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_unioncam._confidence import confidence
from captum_unioncam._maps import checked_maps, is_constant
from captum_unioncam.errors import ConfigError, DataError, one_line
from captum_unioncam.evaluation.data import Item, Listed
from captum_unioncam.evaluation.metrics import METRICS, Batch, Measurement
from captum_unioncam.evaluation.row import Row
from captum_unioncam.evaluation.storage import RowFile
from captum_unioncam.evaluation.task import Task
from captum_unioncam.models import classes_named

MAP_DIGITS = 5
CURVE_DIGITS = 6  # of confidences, for a plot; their areas are exact


class TargetedImage(NamedTuple):
    """An image, and the class to explain."""

    item: Item
    target: int
    target_name: str | None


def targeted(
    task: Task, items: Sequence[Item], rows: RowFile
) -> Iterator[TargetedImage]:
    """Yields the images with their targets, and writes a row for each other one."""
    for item in items:
        if item.error is not None:
            rows.write(_failure(item, None, item.error))
            continue
        try:
            image = TargetedImage(item, *_target(task, item))
        except DataError as error:
            rows.write(_failure(item, None, f"{error}"))
        # One bad example must not end the run.
        except Exception as error:
            rows.write(_failure(item, None, _reason(error)))
        else:
            yield image


def _target(task: Task, item: Item) -> tuple[int, str | None]:
    """Returns the class to explain, and its name."""
    assert item.inputs is not None
    categories = task.classifier.categories
    with torch.no_grad():
        output = confidence(task.forward_func(item.inputs[None].to(task.device)))[0]
    if not bool(output.isfinite().all()):
        # The largest of them would be a class by chance, and every metric undefined.
        raise DataError("the model's scores of the image are not finite (NaN)")
    if task.config.target == "predicted":
        target = int(output.argmax())
    else:
        target = label_class(item.label, categories, len(output))
    return target, categories[target] if categories else None


def label_class(label: str | None, categories: list[str], count: int) -> int:
    """Returns the class of a label: an index, a name of the model's, or a WordNet id.

    Raises:
        DataError: If it is no class, or several.
    """
    if label is None:
        raise DataError("the image has no label")
    found = classes_named(label, categories, count)
    if len(found) > 1:
        raise DataError(
            f"its label is several classes of the model ({label!r} is {found}; name "
            "its folder by the index or the WordNet id)"
        )
    if not found:
        raise DataError(f"its label is no class of the model ({label!r})")
    return found[0]


def check_labels(task: Task, entries: Sequence[Listed]) -> None:
    """Refuses to explain the labels of images of which none has one.

    Raises:
        ConfigError: Says what is wrong with the first one.
    """
    if task.config.target != "label":
        return
    reason = ""
    for entry in entries:
        try:
            label_class(entry.label, task.classifier.categories, task.classes)
            return
        except DataError as error:
            reason = reason or f"{entry.name}: {error}"
    raise ConfigError(
        f"`target`: no image has a label that is a class of {task.classifier.name} "
        f"({reason}); name the folders by classes, indices or WordNet ids, or explain "
        "the predicted class"
    )


def counted_masks(task: Task, image: TargetedImage) -> Tensor:
    """Returns the inside of each box that counts, (boxes, H, W); there may be none."""
    item = image.item
    assert item.inputs is not None
    if item.masks is None:
        return torch.zeros(0, *item.inputs.shape[1:], dtype=torch.bool)
    if task.config.boxes == "any":
        return item.masks
    counts = [image.target in task.objects.classes(name) for name in item.objects]
    return item.masks[torch.tensor(counts, dtype=torch.bool)]


class Batches:
    """Batches of images by their members, so that methods share what was scored."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._by_members: dict[tuple[int, ...], Batch] = {}

    def of(self, images: Sequence[TargetedImage]) -> Batch:
        """Returns the batch of some images."""
        members = tuple(image.item.index for image in images)
        if members not in self._by_members:
            task, items = self._task, [image.item for image in images]
            inputs = [item.inputs for item in items if item.inputs is not None]
            self._by_members[members] = Batch(
                task.scoring_func,
                torch.stack(inputs).to(task.device),
                target=[image.target for image in images],
                baselines=task.black,
                masks=[counted_masks(task, image) for image in images],
                steps=task.config.steps,
                seeds=[noise_seed(task.config.seed, item.name) for item in items],
            )
        return self._by_members[members]


def noise_seed(seed: int, name: str) -> int:
    """Returns the seed of the noise for an image, which does not depend on others.

    Its place in the data set would: images may be added.
    """
    content = f"{seed}:{name}".encode(errors="backslashreplace")
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "big")


def measured_rows(
    task: Task, label: str, images: Sequence[TargetedImage], batches: Batches
) -> Iterator[Row]:
    """Evaluates a method on images; where a batch fails, on each image alone."""
    if not images:
        return
    try:
        rows = _measured(task, label, images, batches.of(images))
    # One bad example must not end the run: its error becomes its row.
    except Exception as error:
        if len(images) == 1:
            yield _failure(images[0].item, label, _reason(error))
            return
        for image in images:
            yield from measured_rows(task, label, [image], batches)
    else:
        yield from rows


def _measured(
    task: Task, label: str, images: Sequence[TargetedImage], batch: Batch
) -> list[Row]:
    """Returns the rows of a method for images."""
    explain = task.explain(label)
    with warnings.catch_warnings():
        # The rows say it, and the report counts it.
        warnings.filterwarnings("ignore", ".*: the maps of examples")
        _wait(task.device)
        started, before = time.perf_counter(), task.forwards
        maps = explain(batch.inputs, target=batch.target)
        _wait(task.device)
        seconds = (time.perf_counter() - started) / len(images)
        forwards = (task.forwards - before) / len(images)
        measurement = Measurement(batch, checked_maps(maps, len(images)), explain)
        measured = {n: METRICS[n].measure(measurement) for n in task.config.metrics}
    # Values, (N,), and for some metrics curves, (N, steps + 1).
    values = {n: v if isinstance(v, tuple) else (v, None) for n, v in measured.items()}
    return [
        {
            "index": image.item.index,
            "id": image.item.name,
            "file": image.item.file,
            "target": image.target,
            "target_name": image.target_name,
            "method": label,
            "metrics": {n: v[i].item() for n, (v, _) in values.items()},
            "curves": {
                n: [round(value, CURVE_DIGITS) for value in curve[i].tolist()]
                for n, (_, curve) in values.items()
                if curve is not None
            },
            **_map_entries(maps[i : i + 1]),
            "seconds": seconds,
            "forwards": forwards,
        }
        for i, image in enumerate(images)
    ]


def _map_entries(maps: Tensor) -> dict[str, Any]:
    """Returns what a row says of a map, (1, 1, h, w)."""
    if not bool(maps.isfinite().all()):
        return {"constant_map": False, "broken_map": True}
    return {
        "constant_map": bool(is_constant(maps)),
        "broken_map": False,
        "map": _rounded(maps[0, 0]),
    }


def _rounded(values: Tensor) -> list[Any]:
    """Returns a map for the gallery: as a mask it needs no more digits than these."""
    largest = values.abs().max().clamp(min=torch.finfo(values.dtype).tiny)
    digits = (values / largest * 10**MAP_DIGITS).round()
    rounded: list[Any] = (digits.double() / 10**MAP_DIGITS).tolist()
    return rounded


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def _failure(item: Item, label: str | None, reason: str) -> Row:
    return {"index": item.index, "id": item.name, "method": label, "error": reason}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
