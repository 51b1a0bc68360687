"""Runs an evaluation: rows for each image and method, then the report.

    data -> images -> maps -> metrics -> rows -> report

Rows are written as they come, so that a run that is killed goes on where it was.
"""

import dataclasses
import functools
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import Module
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from captum_unioncam import __version__
from captum_unioncam._scoring import confidence
from captum_unioncam.evaluation.config import (
    PREPROCESSINGS,
    TARGETS,
    ConfigError,
    DataError,
    EvaluationConfig,
)
from captum_unioncam.evaluation.data import (
    Entry,
    Images,
    Item,
    one_line,
    open_data,
)
from captum_unioncam.evaluation.distributed import Processes, processes
from captum_unioncam.evaluation.registry import (
    METRICS,
    Measurement,
    Method,
    parse_method,
)
from captum_unioncam.evaluation.report import (
    DOTS_PER_INCH,
    GalleryItem,
    Picture,
    Section,
    Table,
    png_of,
    write_report,
)
from captum_unioncam.evaluation.rows import (
    PATTERN,
    Row,
    RowFile,
    read_rows,
    strict_json,
    write_whole,
)
from captum_unioncam.evaluation.sanity import randomization_curves, sanity_figure
from captum_unioncam.models import Classifier, hint, load_classifier
from captum_unioncam.visualization import panels

CONFIG_FILE = "config.json"
MAP_DIGITS = 5
SIDE = 224  # of the paper's images
GALLERY = 3  # best and worst images of each method
GALLERY_DOTS_PER_INCH = 60


@dataclass(frozen=True)
class _Task:
    """What every image goes through."""

    config: EvaluationConfig
    classifier: Classifier
    model: Module
    layer: Module
    forward_func: Callable[..., Any]
    scoring_func: Callable[..., Any] | None
    black: Tensor
    device: torch.device
    methods: dict[str, tuple[Method, dict[str, Any]]]

    def explain(self, label: str, **options: Any) -> Callable[..., Any]:
        """Returns the ``attribute`` of a method, with its options."""
        method, own = self.methods[label]
        offered = {
            "theta": self.config.theta,
            "max_channels": self.config.max_channels,
            "baselines": self.black,
            "scoring_func": self.scoring_func,
            **options,
            **own,
        }
        return method.explain(self.forward_func, self.layer, **offered)


def evaluate(config: EvaluationConfig, command: str = "") -> list[Row]:
    """Runs an evaluation, or goes on with one, and writes the report.

    Under ``torchrun`` the images are shared among the processes, and the first one
    writes the report.

    Args:
        config (EvaluationConfig): What to evaluate.
        command (str, optional): The command line, for the report.

    Returns:
        *list* of all rows, in the order of the images; empty in all processes but the
        first.

    Raises:
        ConfigError: If an option is wrong, or the folder holds another run.
        ModelError: If the model or its weights cannot be had.
        DataError: If the data set cannot be read.
    """
    methods = _checked(config)
    entries = open_data(config.data)
    device = _device(config.device)
    with processes(device.type == "cuda") as process:
        if device.type == "cuda" and process.world_size > 1:
            device = torch.device("cuda", process.local_rank)
        folder = Path(config.output)
        task = _together(
            process, functools.partial(_task, config, methods, device), every=True
        )
        _together(process, functools.partial(_open_folder, config, folder))
        chosen = _chosen(len(entries), config)
        finished = {(row["id"], row["method"]) for row in read_rows(folder)}
        process.gather(None)  # nobody writes before all have read
        with RowFile(folder, process.rank) as rows:
            _run(task, entries, chosen, finished, process, rows)
        process.gather(None)
        if not process.is_first:
            return []
        return _report(task, entries, folder, command, process)


def _checked(config: EvaluationConfig) -> dict[str, tuple[Method, dict[str, Any]]]:
    """Refuses wrong options, and returns the methods by label."""
    try:
        methods = {label: parse_method(label) for label in config.methods}
    except ValueError as error:
        raise ConfigError(f"`methods`: {error}") from error
    for field in ("methods", "metrics"):
        if not getattr(config, field):
            raise ConfigError(f"`{field}` must name one {field[:-1]} at least")
    for name in config.metrics:
        if name not in METRICS:
            raise ConfigError(
                f"`metrics`: there is no metric {name!r}{hint(name, METRICS)}; known "
                f"are {', '.join(METRICS)}"
            )
    boxed = [name for name in config.metrics if METRICS[name].needs_boxes]
    if boxed and not config.data.startswith("voc2007:"):
        raise ConfigError(f"`metrics`: {boxed[0]} needs boxes, which voc2007:DIR has")
    for field, known in (("target", TARGETS), ("preprocessing", PREPROCESSINGS)):
        value = getattr(config, field)
        if value not in known:
            raise ConfigError(f"`{field}` must be one of {known}, got {value!r}")
    for field, least in (
        ("num_images", 1),
        ("max_channels", 1),
        ("batch_size", 1),
        ("steps", 1),
        ("workers", 0),
        ("sanity", 0),
    ):
        value = getattr(config, field)
        if value is not None and value < least:
            raise ConfigError(f"`{field}` must be at least {least}, got {value}")
    if not 0 <= config.theta <= 100:
        raise ConfigError(f"`theta` must be in [0, 100], got {config.theta}")
    return methods


def _device(name: str | None) -> torch.device:
    """Returns the device of a name, once a tensor has been put there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"`device` {name} cannot be used: {one_line(error)}"
        ) from error
    return device


def _together(
    process: Processes, action: Callable[[], Any], every: bool = False
) -> Any:
    """Runs an action in the first process, or in all; an error in one ends all."""
    result, failure = None, None
    if every or process.is_first:
        try:
            result = action()
        except ValueError as error:
            failure = error
    failures = [error for error in process.gather(failure) if error is not None]
    if failures:
        raise failures[0]
    return result


def _open_folder(config: EvaluationConfig, folder: Path) -> None:
    """Makes the folder of a new run, or sees that it is of this run."""
    path = folder / CONFIG_FILE
    wanted = strict_json(config.comparable(), indent=2)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(folder.glob(PATTERN)):
                raise ConfigError(f"`output`: {folder} holds rows without a config")
            write_whole(path, f"{wanted}\n".encode())
            return
        found = path.read_text()
    except OSError as error:
        raise ConfigError(
            f"`output`: {folder} cannot be used ({one_line(error)})"
        ) from error
    if not config.resume:
        raise ConfigError(
            f"`output`: {folder} holds a run already; pass --resume to go on with it, "
            "or choose another folder"
        )
    if found.rstrip() != wanted:
        raise ConfigError(
            f"`output`: {folder} holds a run of another configuration "
            f"({_difference(found, config.comparable())}); choose another folder"
        )


def _difference(found: str, wanted: dict[str, Any]) -> str:
    """Names the first option in which two configurations differ."""
    try:
        before = json.loads(found)
    except ValueError:
        return "its config.json cannot be read"
    names = sorted({*before, *wanted})
    changed = next(name for name in names if before.get(name) != wanted.get(name))
    return f"{changed} was {before.get(changed)!r}, is {wanted.get(changed)!r}"


def _chosen(count: int, config: EvaluationConfig) -> list[int]:
    """Returns the images to evaluate: all, or a random choice, in order."""
    if config.num_images is None or config.num_images >= count:
        return list(range(count))
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(count, generator=generator)[: config.num_images]
    return sorted(chosen.tolist())


def _task(
    config: EvaluationConfig,
    methods: dict[str, tuple[Method, dict[str, Any]]],
    device: torch.device,
) -> _Task:
    """Loads the model, and tries every method on a black image."""
    classifier = load_classifier(config.model, config.weights)
    if config.preprocessing == "unit":
        classifier = _in_unit_range(classifier)
    model = classifier.model.to(device)
    layer = classifier.layer(config.layer)
    black = classifier.preprocess(Image.new("RGB", (2 * SIDE, 2 * SIDE)))
    task = _Task(
        config,
        classifier,
        model,
        layer,
        _autocast(model, device) if config.amp else model,
        torch.compile(model, dynamic=True) if config.compile else None,
        black.unsqueeze(0).to(device),
        device,
        methods,
    )
    for label in methods:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a black image has flat maps
                maps = task.explain(label, max_channels=1)(task.black, target=0)
        # Captum asserts that the layer runs.
        except (ValueError, TypeError, AssertionError) as error:
            raise ConfigError(f"{label} cannot run: {one_line(error)}") from error
        if isinstance(maps, tuple):
            raise ConfigError("`layer` has several tensors; choose another")
    return task


def _in_unit_range(classifier: Classifier) -> Classifier:
    """The paper's preprocessing: 224 x 224, [0, 1], and nothing else."""
    from torchvision import transforms

    unit = transforms.Compose([transforms.Resize((SIDE, SIDE)), transforms.ToTensor()])
    return dataclasses.replace(classifier, preprocess=unit)


def _autocast(model: Module, device: torch.device) -> Callable[..., Any]:
    """Returns the model in bfloat16 where that is safe, with float32 outputs."""

    def forward_func(*args: Any) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            output: Tensor = model(*args)
        return output.float()

    return forward_func


def _run(
    task: _Task,
    entries: Sequence[Entry],
    chosen: Sequence[int],
    finished: set[tuple[str, str | None]],
    process: Processes,
    rows: RowFile,
) -> None:
    """Evaluates this process's share of the images that are not finished."""

    def missing(index: int) -> list[str]:
        name = entries[index].name
        if (name, None) in finished:
            return []
        return [label for label in task.methods if (name, label) not in finished]

    remaining = [index for index in chosen if missing(index)]
    share = process.shard(remaining)
    images = Images(entries, task.classifier.preprocess)
    loader = DataLoader(
        Subset(images, list(share)),
        batch_size=task.config.batch_size,
        num_workers=task.config.workers,
        collate_fn=list,
    )
    with tqdm(
        desc="images", total=len(share), disable=not process.is_first
    ) as progress:
        for items in loader:
            _evaluate_items(task, items, missing, rows)
            progress.update(len(items))


def _evaluate_items(
    task: _Task,
    items: list[Item],
    missing: Callable[[int], list[str]],
    rows: RowFile,
) -> None:
    """Writes the rows of a batch of images."""
    readable: list[tuple[Item, int, str | None]] = []
    for item in items:
        try:
            readable.append((item, *_target(task, item)))
        except DataError as error:
            rows.write(_failure(item, None, f"{error}"))
    for label in task.methods:
        batch = [part for part in readable if label in missing(part[0].index)]
        for row in _rows(task, label, batch):
            rows.write(row)


def _target(task: _Task, item: Item) -> tuple[int, str | None]:
    """Returns the class to explain, and its name."""
    if item.inputs is None:
        raise DataError(item.error)
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


def _rows(
    task: _Task, label: str, batch: list[tuple[Item, int, str | None]]
) -> Iterator[Row]:
    """Evaluates a method on images; where a batch fails, on each one alone."""
    if not batch:
        return
    try:
        yield from _measured(task, label, batch)
    # One bad example must not end the run: whatever it raises is its row.
    except Exception as error:
        if len(batch) == 1:
            yield _failure(batch[0][0], label, f"{type(error).__name__}: {error}")
            return
        for part in batch:
            yield from _rows(task, label, [part])


def _measured(
    task: _Task, label: str, batch: list[tuple[Item, int, str | None]]
) -> list[Row]:
    """Returns the rows of a method for images."""
    items, targets, names = zip(*batch, strict=True)
    inputs = torch.stack([item.inputs for item in items]).to(task.device)
    explain = task.explain(label)
    with warnings.catch_warnings(), _counted(task.model) as passes:
        warnings.filterwarnings("ignore", ".*: the maps of examples")  # NaN counts them
        _wait(task.device)
        started = time.perf_counter()
        maps = explain(inputs, target=list(targets))
        _wait(task.device)
        seconds = (time.perf_counter() - started) / len(batch)
        forwards = passes[0] / len(batch)
        measurement = Measurement(
            task.scoring_func or task.forward_func,
            inputs,
            maps,
            list(targets),
            task.black,
            explain,
            [m.masks for m in items if m.masks is not None],
            task.config.steps,
        )
        values = {}
        for name in task.config.metrics:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(task.config.seed)
                values[name] = METRICS[name].measure(measurement)
    rows = []
    for i, (item, target) in enumerate(zip(items, targets, strict=True)):
        pairs = {n: v if isinstance(v, tuple) else (v, None) for n, v in values.items()}
        rows.append(
            {
                "index": item.index,
                "id": item.name,
                "target": target,
                "target_name": names[i],
                "method": label,
                "metrics": {n: v[i].item() for n, (v, _) in pairs.items()},
                "curves": {
                    n: curve[i].tolist()
                    for n, (_, curve) in pairs.items()
                    if curve is not None
                },
                "map": _rounded(maps[i, 0]),
                "seconds": seconds,
                "forwards": forwards,
            }
        )
    return rows


def _rounded(values: Tensor) -> list[Any]:
    """Returns a map for the gallery: as a mask it needs no more digits than these."""
    largest = values.abs().max().clamp(min=torch.finfo(values.dtype).tiny)
    digits = (values / largest * 10**MAP_DIGITS).round()
    rounded: list[Any] = (digits.double() / 10**MAP_DIGITS).tolist()
    return rounded


def _failure(item: Item, label: str | None, reason: str) -> Row:
    return {
        "index": item.index,
        "id": item.name,
        "method": label,
        "error": reason.splitlines()[0] if reason else "unknown",
    }


@contextmanager
def _counted(model: Module) -> Iterator[list[int]]:
    """Counts the examples that go through the model."""
    passes = [0]

    def count(module: Module, args: Any) -> None:
        passes[0] += len(args[0])

    handle = model.register_forward_pre_hook(count)
    try:
        yield passes
    finally:
        handle.remove()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _report(
    task: _Task,
    entries: Sequence[Entry],
    folder: Path,
    command: str,
    process: Processes,
) -> list[Row]:
    """Merges the rows of all processes, and writes the report."""
    order = {label: place for place, label in enumerate(task.methods)}
    rows = sorted(
        read_rows(folder), key=lambda row: (row["index"], order.get(row["method"], -1))
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
        "images": len(_chosen(len(entries), task.config)),
        "seed": task.config.seed,
    }
    images = Images(entries, task.classifier.preprocess)
    further = [_sanity(task, images)] if task.config.sanity else []
    write_report(folder, rows, context, _gallery(task, images, rows), further)
    return rows


def _gallery(
    task: _Task, images: Images, rows: Sequence[Row]
) -> dict[str, list[GalleryItem]]:
    """Draws the best and the worst maps of each method."""
    metric = "insertion" if "insertion" in task.config.metrics else None
    metric = metric or task.config.metrics[0]
    sign = 1 if METRICS[metric].better == "lower" else -1
    gallery = {}
    for label in task.methods:
        known = [
            row
            for row in rows
            if row["method"] == label
            and "error" not in row
            and row["metrics"][metric] is not None
        ]
        known.sort(key=lambda row: sign * row["metrics"][metric])
        count = min(GALLERY, len(known) // 2)
        ends = [("best", row) for row in known[:count]]
        ends += [("worst", row) for row in known[len(known) - count :]]
        gallery[label] = [
            GalleryItem(
                end, row["id"], row["metrics"][metric], _drawn(task, images, row)
            )
            for end, row in ends
        ]
    return gallery


def _drawn(task: _Task, images: Images, row: Row) -> bytes:
    """Draws an image and its map."""
    inputs = images[row["index"]].inputs
    assert inputs is not None, "it could be read before"
    black = task.black.cpu()
    white = task.classifier.preprocess(Image.new("RGB", (2 * SIDE, 2 * SIDE), "white"))
    picture = ((inputs - black) / (white - black)).clamp(0, 1)
    maps = torch.tensor(row["map"])[None, None]
    figure = panels(picture, {row["target_name"] or str(row["target"]): maps})
    return png_of(figure, GALLERY_DOTS_PER_INCH)


def _sanity(task: _Task, images: Images) -> Section:
    """Randomises the model, and tells how the maps change."""
    chosen = _chosen(len(images), task.config)
    items = [item for item in map(images.__getitem__, chosen) if item.error is None]
    items = items[: task.config.sanity]
    inputs = torch.stack([i.inputs for i in items if i.inputs is not None])
    inputs = inputs.to(task.device)
    targets = [_target(task, item)[0] for item in items]
    name = task.config.layer or task.classifier.last_spatial_layer or ""
    curves = {}
    for label in task.methods:

        def explain(model: Module, layer: Module, label: str = label) -> Tensor:
            randomised = dataclasses.replace(
                task, model=model, layer=layer, forward_func=model, scoring_func=None
            )
            maps: Tensor = randomised.explain(label)(inputs, target=targets)
            return maps

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*: the maps of examples")
            curves[label] = [
                (stage, values.nanmean().item())
                for stage, values in randomization_curves(
                    task.model, name, explain, seed=task.config.seed
                )
            ]
    stages = [stage or "(model)" for stage, _ in next(iter(curves.values()))]
    table = Table(
        ("method", *stages),
        [
            (label, *(f"{value:.2f}" for _, value in points))
            for label, points in curves.items()
        ],
    )
    text = (
        f"Mean rank correlation of the maps of {len(items)} images with those of the "
        "trained model, as its parameters are randomised from the head down to each "
        "module (Adebayo et al. 2018). Lower is better; maps that are never negative "
        "correlate somewhat in any case."
    )
    drawn = Picture("sanity.png", text, png_of(sanity_figure(curves), DOTS_PER_INCH))
    return Section(
        "Randomisation of the model", text, tables=(table,), pictures=(drawn,)
    )


def _hardware(device: torch.device, process: Processes) -> str:
    if device.type == "cuda":
        kind = torch.cuda.get_device_name(device)
    else:
        kind = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return f"{process.world_size} x {device.type} ({kind})"
