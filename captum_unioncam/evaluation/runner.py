"""Runs an evaluation: rows for each image and method, then the report.

    data -> images -> maps -> metrics -> rows -> report

Rows are written as they come, so that a run that is killed can be continued.
"""

import hashlib
import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from captum_unioncam import __version__
from captum_unioncam._checks import check_choice
from captum_unioncam._confidence import confidence
from captum_unioncam._maps import checked_maps
from captum_unioncam.errors import ConfigError, DataError, one_line
from captum_unioncam.evaluation.appendix import check_sanity, make_gallery
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.data import Entry, Images, Item, open_data
from captum_unioncam.evaluation.distributed import Processes, processes
from captum_unioncam.evaluation.methods import parse_methods
from captum_unioncam.evaluation.metrics import METRICS, Batch, Measurement
from captum_unioncam.evaluation.report import write_report
from captum_unioncam.evaluation.storage import (
    Row,
    RowFile,
    check_folder,
    open_folder,
    read_rows,
)
from captum_unioncam.evaluation.task import Methods, Task, load_task
from captum_unioncam.models import resolve_device

MAP_DIGITS = 5
SEEDS = 1_000_003  # apart, so that images do not share the noise of another run


class TargetedImage(NamedTuple):
    """An image, and the class to explain."""

    item: Item
    target: int
    target_name: str | None


def evaluate(config: EvaluationConfig, command: str = "") -> list[Row]:
    """Runs an evaluation, or continues one, and writes the report.

    ``torchrun`` splits the images across processes, which write to the same folder,
    and the first one writes the report.

    Args:
        config (EvaluationConfig): What to evaluate.
        command (str, optional): The command line, for the report.

    Returns:
        *list* of all rows, without their maps, in the order of the images; empty in all
        processes but the first.

    Raises:
        ConfigError: If an option is wrong, the folder holds another run, or a process
            failed.
        ModelError: If the model or its weights cannot be loaded.
        DataError: If the data set cannot be read.
    """
    device = resolve_device(config.device)
    with processes(device.type == "cuda") as process:
        if device.type == "cuda" and process.world_size > 1:
            device = torch.device("cuda", process.local_rank)
        methods = process.run_all(partial(_checked_methods, config))
        config = replace(config, methods=tuple(methods))
        entries = process.run_first(partial(open_data, config.data))
        folder, known = Path(config.output), _identity(config, entries)
        process.run_first(partial(check_folder, folder, known, config.resume))
        task = process.run_all(partial(load_task, config, methods, device))
        finished = process.run_first(partial(open_folder, folder, known))
        chosen = _chosen(len(entries), config)
        images = Images(entries, task.classifier.preprocess)
        remaining = _remaining(task, entries, chosen, finished)
        share = process.shard(list(remaining))

        def run() -> None:
            with RowFile(folder, process.rank) as rows:
                _run(task, images, share, remaining, rows, process.is_first)

        process.run_all(run)
        if not process.is_first:
            return []
        rows = read_rows(folder, {entries[index].name for index in chosen})
        _check_complete(task, [entries[index].name for index in chosen], rows)
        return _report(task, images, rows, folder, command, process, len(chosen))


def _checked_methods(config: EvaluationConfig) -> Methods:
    """Returns the methods by label; refuses names of methods and metrics."""
    try:
        methods = parse_methods(config.methods)
    except ValueError as error:
        raise ConfigError(f"`methods`: {error}") from error
    for field in ("methods", "metrics"):
        if not getattr(config, field):
            raise ConfigError(f"`{field}` must name at least one {field[:-1]}")
    for name in config.metrics:
        try:
            check_choice("metrics", name, METRICS)
        except ValueError as error:
            raise ConfigError(f"{error}") from error
    boxed = [name for name in config.metrics if METRICS[name].needs_boxes]
    if boxed and not config.data.startswith("voc2007:"):
        raise ConfigError(f"`metrics`: {boxed[0]} needs boxes, which voc2007:DIR has")
    return methods


def _identity(config: EvaluationConfig, entries: Sequence[Entry]) -> dict[str, Any]:
    """Returns what two runs must share for their rows to go together."""
    names = "\n".join(entry.name for entry in entries)
    digest = hashlib.sha256(names.encode(errors="backslashreplace")).hexdigest()
    return {**config.comparable(), "files": len(entries), "names": digest[:16]}


def _chosen(count: int, config: EvaluationConfig) -> list[int]:
    """Returns the images to evaluate: all, or a random choice, in order."""
    if config.num_images is None or config.num_images >= count:
        return list(range(count))
    generator = torch.Generator("cpu").manual_seed(config.seed)
    order = torch.randperm(count, generator=generator, device="cpu")
    return sorted(order[: config.num_images].tolist())


def _remaining(
    task: Task,
    entries: Sequence[Entry],
    chosen: Sequence[int],
    finished: set[tuple[str, str]],
) -> dict[int, list[str]]:
    """Returns the methods that are still to run, for the images that have some."""
    remaining = {}
    for index in chosen:
        name = entries[index].name
        labels = [label for label in task.methods if (name, label) not in finished]
        if labels:
            remaining[index] = labels
    return remaining


def _run(
    task: Task,
    images: Images,
    share: Sequence[int],
    remaining: Mapping[int, Sequence[str]],
    rows: RowFile,
    show_progress: bool,
) -> None:
    """Evaluates this process's share of the images."""
    loader = DataLoader(
        Subset(images, list(share)),
        batch_size=task.config.batch_size,
        num_workers=task.config.workers,
        collate_fn=list,
    )
    with tqdm(desc="images", total=len(share), disable=not show_progress) as progress:
        for items in loader:
            targeted = list(_targeted(task, items, rows))
            batches = _Batches(task)
            for label in task.methods:
                waiting = [t for t in targeted if label in remaining[t.item.index]]
                for row in _rows(task, label, waiting, batches):
                    rows.write(row)
            progress.update(len(items))


def _targeted(
    task: Task, items: Sequence[Item], rows: RowFile
) -> Iterator[TargetedImage]:
    """Yields the images with their targets, and writes a row for each other one."""
    for item in items:
        if item.error is not None:
            rows.write(_failure(item, None, item.error))
            continue
        try:
            yield TargetedImage(item, *_target(task, item))
        except DataError as error:
            rows.write(_failure(item, None, f"{error}"))
        # One bad example must not end the run.
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            rows.write(_failure(item, None, reason))


def _target(task: Task, item: Item) -> tuple[int, str | None]:
    """Returns the class to explain, and its name."""
    assert item.inputs is not None
    categories = task.classifier.categories
    with torch.no_grad():
        output = confidence(task.forward_func(item.inputs[None].to(task.device)))[0]
    if task.config.target == "predicted":
        target = int(output.argmax())
    else:
        target = _class_index(item.label, categories, len(output))
    return target, categories[target] if categories else None


def _class_index(label: str | int | None, categories: list[str], count: int) -> int:
    """Returns the class of a label: an index, a number, or a name of the model's."""
    if isinstance(label, str):
        wanted = label.replace("_", " ").casefold()
        names = [category.replace("_", " ").casefold() for category in categories]
        if wanted in names:
            return names.index(wanted)
        label = int(label) if label.isdecimal() else None
    if label is None or not 0 <= label < count:
        raise DataError("its label is no class of the model; explain the predicted one")
    return label


class _Batches:
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
                masks=[item.masks for item in items if item.masks is not None],
                steps=task.config.steps,
                seeds=[task.config.seed * SEEDS + item.index for item in items],
            )
        return self._by_members[members]


def _rows(
    task: Task, label: str, images: Sequence[TargetedImage], batches: _Batches
) -> Iterator[Row]:
    """Evaluates a method on images; where a batch fails, on each image alone."""
    if not images:
        return
    try:
        yield from _measured(task, label, images, batches.of(images))
    # One bad example must not end the run: its error becomes its row.
    except Exception as error:
        if len(images) == 1:
            reason = f"{type(error).__name__}: {one_line(error)}"
            yield _failure(images[0].item, label, reason)
            return
        for image in images:
            yield from _rows(task, label, [image], batches)


def _measured(
    task: Task, label: str, images: Sequence[TargetedImage], batch: Batch
) -> list[Row]:
    """Returns the rows of a method for images."""
    explain = task.explain(label)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*: the maps of examples")  # NaN counts them
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
            "target": image.target,
            "target_name": image.target_name,
            "method": label,
            "metrics": {n: v[i].item() for n, (v, _) in values.items()},
            "curves": {
                n: curve[i].tolist()
                for n, (_, curve) in values.items()
                if curve is not None
            },
            "map": _rounded(maps[i, 0]),
            "seconds": seconds,
            "forwards": forwards,
        }
        for i, image in enumerate(images)
    ]


def _rounded(values: Tensor) -> list[Any]:
    """Returns a map for the gallery: as a mask it needs no more digits than these."""
    largest = values.abs().max().clamp(min=torch.finfo(values.dtype).tiny)
    digits = (values / largest * 10**MAP_DIGITS).round()
    rounded: list[Any] = (digits.double() / 10**MAP_DIGITS).tolist()
    return rounded


def _failure(item: Item, label: str | None, reason: str) -> Row:
    return {"index": item.index, "id": item.name, "method": label, "error": reason}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _check_complete(task: Task, names: Sequence[str], rows: Sequence[Row]) -> None:
    """Refuses to report on rows of which some are missing."""
    done = {(row["id"], row["method"]) for row in rows}
    missing = sum(
        (name, None) not in done and (name, label) not in done
        for name in names
        for label in task.methods
    )
    if missing:
        raise ConfigError(
            f"`output`: {missing} rows are missing; all processes must write to one "
            "folder that they share. Run it again with --resume"
        )


def _report(
    task: Task,
    images: Images,
    rows: list[Row],
    folder: Path,
    command: str,
    process: Processes,
    count: int,
) -> list[Row]:
    """Writes the report: the tables first, then with what follows them."""
    order = {label: place for place, label in enumerate(task.methods)}
    rows = sorted(
        rows, key=lambda row: (row["index"], order.get(row["method"] or "", -1))
    )
    context = {
        "command": command,
        "config": task.config.comparable(),
        "versions": {
            "captum-unioncam": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("captum", "torch", "torchvision")},
        },
        "hardware": _hardware(task.device, process),
        "methods": list(task.methods),
        "metrics": list(task.config.metrics),
        "images": count,
        "seed": task.config.seed,
    }
    write_report(folder, rows, context)  # safe before what may still take long
    further = [check_sanity(task, images, rows)] if task.config.sanity else []
    gallery = make_gallery(task, images, rows, folder)
    write_report(folder, rows, context, gallery, further)
    return rows


def _hardware(device: torch.device, process: Processes) -> str:
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return f"{process.world_size} x {device.type} ({kind})"
