"""Runs an evaluation: rows for each image and method, then the report.

    data -> images -> maps -> metrics -> rows -> report

Rows are written as they come, so that a run that is killed can be continued.
"""

import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from captum_unioncam import __version__
from captum_unioncam._checks import check_choice, did_you_mean
from captum_unioncam.errors import ConfigError, DataError, one_line
from captum_unioncam.evaluation.appendix import check_sanity, make_gallery
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.data import Images, Listed, check_unchanged
from captum_unioncam.evaluation.distributed import Processes, processes
from captum_unioncam.evaluation.holding import hold_folder
from captum_unioncam.evaluation.identity import identity, package_versions
from captum_unioncam.evaluation.measuring import (
    Batches,
    check_labels,
    measured_rows,
    targeted,
)
from captum_unioncam.evaluation.labels import parse_baselines, parse_methods
from captum_unioncam.evaluation.metrics import METRICS
from captum_unioncam.evaluation.objects import check_boxes, check_objects
from captum_unioncam.evaluation.own import Own, Statistics, check_own, own_parts
from captum_unioncam.evaluation.report import write_report
from captum_unioncam.evaluation.row import Row
from captum_unioncam.evaluation.sources import open_data
from captum_unioncam.evaluation.storage import (
    WEIGHTS,
    RowFile,
    begin_folder,
    check_folder,
    finished_rows,
    held_methods,
    in_order,
    read_rows,
)
from captum_unioncam.evaluation.task import Methods, Task, load_task
from captum_unioncam.models import Classifier, resolve_device


def evaluate(
    config: EvaluationConfig,
    command: str = "",
    *,
    model: Module | Classifier | None = None,
    dataset: Any = None,
    mean: Statistics = None,
    std: Statistics = None,
    categories: Sequence[str] | None = None,
) -> list[Row]:
    """Runs an evaluation, or continues one, and writes the report.

    ``torchrun`` splits the images across processes, which write to the same folder,
    and the first one writes the report.

    Any model and any data set take the place of those with names. All metrics, the
    rows, ``resume`` and the report are the same.

    Args:
        config (EvaluationConfig): What to evaluate. Beside a ``dataset``, ``data`` is
            its name in the report.
        command (str, optional): The command line, for the report.
        model (Module or Classifier, optional): In eval mode, in place of the name in
            ``config``. It returns scores, (N, classes); :class:`.SelectedOutput` takes
            them out of a dict. It stays on its device, or moves to ``config.device``
            where that is given. Its layer is found, or ``config.layer`` names it.
            Default: None
        dataset (Sequence or torch Dataset, optional): Items (input, label), or (input,
            label, mask or boxes). Inputs are floats, (C, H, W), as the model sees them,
            all of one shape. A label is an index, a name of ``categories`` or None. A
            mask is bool, or 0 and other integers, (H, W) or (objects, H, W); boxes are
            (objects, 4), x0, y0, x1, y1 in pixels of the input, the ends exclusive.
            With ``boxes="target"`` they count where the label is explained, and a
            metric of boxes is NaN elsewhere. Items are known by their numbers.
            Default: None
        mean, std (float, Sequence[float] or Tensor, optional): By which a data set for
            a Module is normalised, for the black image that masks show, and for
            pictures. Default: None, which is 0 and 1: black is 0
        categories (Sequence[str], optional): Names of a Module's classes by index.
            Default: None, which shows indices

    Returns:
        *list* of all rows, without their maps, in the order of the images; empty in all
        processes but the first.

    Raises:
        ConfigError: If an option is wrong, the folder holds or another start has
            another run, something of a run to continue has changed, a file cannot be
            written, or a process failed.
        ModelError: If the model or its weights cannot be loaded.
        DataError: If the data set cannot be read, or an image of the rows to continue
            has changed.

    Examples::

        >>> import tempfile, torch
        >>> from captum_unioncam.evaluation import EvaluationConfig, evaluate
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(),
        ...     torch.nn.Linear(16, 2),
        ... ).eval()
        >>> scan, lesion = torch.rand(1, 4, 4), torch.ones(4, 4, dtype=torch.bool)
        >>> names = {"methods": ("gradcam",), "metrics": ("drop", "energy")}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = EvaluationConfig("scans", folder, **names)
        ...     rows = evaluate(config, model=net, dataset=[(scan, 1, lesion)])
        >>> [row["method"] for row in rows]  # with the baselines
        ['gradcam', 'random', 'gaussian', 'edges']
    """
    check_own(config, model, dataset)
    device = _device(config, model)
    with processes(device.type == "cuda") as process, ExitStack() as stack:
        stack.enter_context(_cpu_by_default())
        if device.type == "cuda" and process.world_size > 1:
            device = torch.device("cuda", process.local_rank)
        # What a folder to continue holds belongs to the run, and to its report.
        held = process.run_first(partial(_held_methods, config))
        methods = process.run_all(partial(_checked_methods, config, held))
        metrics = tuple(dict.fromkeys(config.metrics))
        parts = partial(own_parts, model, dataset, mean, std, categories)
        own = process.run_all(parts)
        config = replace(config, methods=tuple(methods), metrics=metrics)
        config = own.described(config)
        entries = _entries(config, own, process)
        process.run_first(partial(check_boxes, config, entries))
        known = process.run_first(partial(identity, config, methods, entries))
        known = {**known, **own.known}
        folder, resume = Path(config.output), config.resume
        # Lock, then check, then write.
        process.run_first(lambda: stack.enter_context(hold_folder(folder)))
        process.run_first(partial(check_folder, folder, known, resume))
        task = process.run_all(partial(load_task, config, methods, device, own))
        known = {**known, WEIGHTS: _weights_of_all(task, process)}
        process.run_first(partial(check_folder, folder, known, resume))
        chosen = _chosen(len(entries), config)
        remaining = _remaining(task, process, entries, chosen, folder)
        process.run_first(partial(begin_folder, folder, known))
        images = own.images or Images(entries, task.classifier.preprocess)
        share = process.shard(list(remaining))

        def run() -> None:
            with RowFile(folder, process.rank) as rows:
                _run(task, images, share, remaining, rows, process.is_first)

        process.run_all(run)
        if not process.is_first:
            return []
        places = {entries[index].name: index for index in chosen}
        rows = read_rows(folder, places, task.methods)
        _check_complete(task, list(places), rows)
        return _report(task, images, rows, folder, command, process, len(chosen))


def _device(
    config: EvaluationConfig, model: Module | Classifier | None
) -> torch.device:
    """Returns the device to run on; by default a model of the caller's own stays."""
    if config.device is None and model is not None:
        module = model.model if isinstance(model, Classifier) else model
        for tensor in chain(module.parameters(), module.buffers()):
            return tensor.device
    return resolve_device(config.device)


def _entries(
    config: EvaluationConfig, own: Own, process: Processes
) -> Sequence[Listed]:
    """Returns the images of the data set."""
    if own.images is not None:
        return own.images.entries
    return process.run_first(partial(open_data, config.data))


def _cpu_by_default() -> AbstractContextManager[Any]:
    """Makes the CPU the default device, where torchvision's transforms work."""
    if torch.get_default_device().type == "cpu":
        return nullcontext()  # the other one costs time in every call of torch
    return torch.device("cpu")


def _held_methods(config: EvaluationConfig) -> list[str]:
    """Returns the labels of the methods of the folder to continue."""
    return held_methods(Path(config.output)) if config.resume else []


def _checked_methods(config: EvaluationConfig, held: Sequence[str]) -> Methods:
    """Returns the methods by label; refuses names of methods and metrics.

    Those of the folder to continue come first, and the baselines last.
    """
    for field in ("methods", "metrics"):
        if not getattr(config, field):
            raise ConfigError(f"`{field}` must name at least one {field[:-1]}")
    try:
        methods = parse_methods([*held, *config.methods])
    except ValueError as error:
        raise ConfigError(f"`methods`: {error}") from error
    try:
        methods |= parse_baselines(config.baseline_methods)
    except ValueError as error:
        raise ConfigError(f"`baseline_methods`: {error}") from error
    if config.reference is not None and config.reference not in methods:
        raise ConfigError(
            f"`reference` must be one of the methods, {', '.join(methods)}, got "
            f"{config.reference!r}{did_you_mean(config.reference, methods)}"
        )
    for name in config.metrics:
        try:
            check_choice("metrics", name, METRICS)
        except ValueError as error:
            raise ConfigError(f"{error}") from error
    return methods


def _weights_of_all(task: Task, process: Processes) -> str:
    """Returns the digest of the weights; refuses those of processes that differ."""
    digests = process.gather(task.weights_digest)

    def check() -> None:
        if len(set(digests)) > 1:
            raise ConfigError(
                f"`weights`: the processes loaded different values, {digests}; give "
                "every machine the same file"
            )

    process.run_all(check)
    return digests[0]


def _checked_finished(
    task: Task,
    process: Processes,
    entries: Sequence[Listed],
    chosen: Sequence[int],
    folder: Path,
) -> set[tuple[str, str]]:
    """Returns the image and the method of each row that need not be run again.

    Refuses labels and objects that are of no class, and images that have changed.
    """
    shown = [entries[index] for index in chosen]
    process.run_first(partial(check_labels, task, shown))
    process.run_first(partial(check_objects, task.config, task.objects, shown))
    finished = process.run_first(partial(finished_rows, folder))
    lost = finished.files.keys() - {entry.name for entry in shown}
    process.run_first(partial(_check_none_lost, folder, sorted(lost)))
    process.run_all(partial(check_unchanged, process.shard(shown), finished.files))
    return finished.rows


def _check_none_lost(folder: Path, lost: Sequence[str]) -> None:
    """Refuses to continue a run without some of its images."""
    if lost:
        others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise DataError(
            f"`output`: {folder} holds rows of {lost[0]}{others}, which this run would "
            "leave out: images may be added to a run, but not taken away; put them "
            "back, raise num_images, or choose another folder"
        )


def _chosen(count: int, config: EvaluationConfig) -> list[int]:
    """Returns the images to evaluate: all, or a random choice, in order."""
    if config.num_images is None or config.num_images >= count:
        return list(range(count))
    generator = torch.Generator("cpu").manual_seed(config.seed)
    order = torch.randperm(count, generator=generator, device="cpu")
    return sorted(order[: config.num_images].tolist())


def _remaining(
    task: Task,
    process: Processes,
    entries: Sequence[Listed],
    chosen: Sequence[int],
    folder: Path,
) -> dict[int, list[str]]:
    """Returns the methods that are still to run, for the images that have some."""
    finished = _checked_finished(task, process, entries, chosen, folder)
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
        # It seeds the workers, which draw nothing, from torch's own otherwise.
        generator=torch.Generator("cpu").manual_seed(task.config.seed),
    )
    with tqdm(
        desc="images", total=len(share), disable=not show_progress or sys.stderr is None
    ) as progress:
        for items in loader:
            shown = list(targeted(task, items, rows))
            batches = Batches(task)
            for label in task.methods:
                waiting = [t for t in shown if label in remaining[t.item.index]]
                for row in measured_rows(task, label, waiting, batches):
                    rows.write(row)
            progress.update(len(items))


def _check_complete(task: Task, names: Sequence[str], rows: Sequence[Row]) -> None:
    """Refuses to report on rows of which some are missing."""
    # There is one row for each image and method, or one for an image that failed.
    failed = sum(row["method"] is None for row in rows)
    missing = (len(names) - failed) * len(task.methods) - (len(rows) - failed)
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
    """Writes the report.

    Raises:
        ConfigError: If a file of it cannot be written.
    """
    rows = in_order(rows, task.methods)
    context = {
        "command": command,
        "config": task.config.comparable(),
        "versions": {
            "captum-unioncam": __version__,
            "python": platform.python_version(),
            **package_versions(task.config.model),
        },
        "hardware": _hardware(task.device, process),
        "layer": {"name": task.layer_name, "size": list(task.layer_size)},
        "methods": list(task.methods),
        "metrics": list(task.config.metrics),
        "images": count,
        "seed": task.config.seed,
        "reference": task.config.reference,
        "ablation": task.config.ablation,
    }
    try:
        further = make_gallery(task, images, rows, folder)
        further += [check_sanity(task, images, rows)] if task.config.sanity else []
        write_report(folder, rows, context, further)
    except OSError as error:
        raise ConfigError(
            f"`output`: the report cannot be written to {folder} ({one_line(error)}); "
            "the rows are safe: run it again with --resume (resume=True) once it can"
        ) from error
    return rows


def _hardware(device: torch.device, process: Processes) -> str:
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return f"{process.world_size} x {device.type} ({kind})"
