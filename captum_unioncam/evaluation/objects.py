"""Which boxes of an image count: those of any object, or of the explained class."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from captum_unioncam.errors import ConfigError, DataError, one_line
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.data import Listed
from captum_unioncam.evaluation.metrics import METRICS
from captum_unioncam.models import classes_named

ObjectNames = Mapping[int, frozenset[str]]

MOST_NAMES_SHOWN = 5


class ClassObjects:
    """The objects that a class stands for.

    Args:
        categories (list[str]): The model's class names by index; empty if they are not
            known.
        count (int): The number of classes.
        names (Mapping, optional): Names of objects for each class, in place of the
            model's own names and WordNet ids. Default: None

    Raises:
        ConfigError: If ``names`` has a class that the model has not.
    """

    def __init__(
        self, categories: list[str], count: int, names: ObjectNames | None = None
    ) -> None:
        last = max(names or {}, default=-1)
        if last >= count:
            raise ConfigError(
                f"`object_names`: there is no class {last}: the model has {count}"
            )
        self._categories, self._count, self._names = categories, count, names

    def classes(self, name: str) -> list[int]:
        """Returns the classes that an object of this name belongs to.

        Of a name that several classes have, such as crane, all of them.
        """
        if self._names is None:
            return classes_named(name, self._categories, self._count)
        wanted = _spoken(name)
        return [index for index, names in self._names.items() if wanted in names]


def read_object_names(path: str) -> dict[int, frozenset[str]]:
    """Reads the names of objects for each class from a file in JSON.

    Raises:
        ConfigError: If it is not an object of class indices with lists of names.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"`object_names`: {path} cannot be read as JSON ({one_line(error)})"
        ) from error
    wrong = found
    if isinstance(found, dict):
        wrong = {
            key: value for key, value in found.items() if not _is_entry(key, value)
        }
    if wrong or not isinstance(found, dict):
        raise ConfigError(
            f"`object_names`: {path} must hold a list of objects' names for each class "
            f'index, such as {{"281": ["cat"]}}, got {wrong!r:.80}'
        )
    return {
        int(index): frozenset(map(_spoken, names)) for index, names in found.items()
    }


def _is_entry(index: str, names: Any) -> bool:
    """Returns whether an entry is a class index and a list of names."""
    if not (index.isascii() and index.isdigit() and len(index) < 10):
        return False
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _spoken(name: str) -> str:
    return name.replace("_", " ").strip().casefold()


def check_boxes(config: EvaluationConfig, entries: Iterable[Listed]) -> None:
    """Refuses metrics of boxes for data without any, and wrong names of objects.

    Raises:
        ConfigError: Says what is needed.
    """
    boxed = [name for name in config.metrics if METRICS[name].needs_boxes]
    if boxed and not any(entry.has_boxes for entry in entries):
        raise ConfigError(
            f"`metrics`: {boxed[0]} needs boxes, which voc2007:DIR has, and "
            "coco:IMAGES,ANNOTATIONS; imagenet:DIR where ILSVRC's are in "
            "DIR/Annotations/CLS-LOC; and a data set of your own whose items are "
            "(input, label, mask or boxes)"
        )
    if config.object_names is not None and config.boxes != "target":
        raise ConfigError(
            "`object_names` says which boxes are of the explained class, and needs "
            "boxes='target' (--boxes target)"
        )
    if config.object_names is not None:
        read_object_names(config.object_names)


def check_objects(
    config: EvaluationConfig, objects: ClassObjects, entries: Iterable[Listed]
) -> None:
    """Refuses to look for the explained class among objects that are of no class.

    Raises:
        ConfigError: Says how the objects are named.
    """
    needed = any(METRICS[name].needs_boxes for name in config.metrics)
    if config.boxes != "target" or not needed:
        return
    seen: dict[str, None] = {}
    for entry in entries:
        try:
            names = entry.object_names()
        except DataError:  # its row will say so
            continue
        new = [name for name in names if name not in seen]
        if any(objects.classes(name) for name in new):
            return
        seen.update(dict.fromkeys(new))
    shown = ", ".join(map(repr, list(seen)[:MOST_NAMES_SHOWN])) or "none is named"
    raise ConfigError(
        "`boxes`: no object of the images is of a class of the model (their names: "
        f"{shown}); give `object_names`, a JSON file of the names of objects for each "
        "class index, or boxes='any' (--boxes any)"
    )
