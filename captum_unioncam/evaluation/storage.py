"""The folder of a run: its configuration, and its rows in JSON Lines files.

The first process locks the folder, then checks it, then writes to it. Each process
appends whole lines to its own file, so that the rows survive a process that is killed.
A line that it left unfinished is dropped.
"""

import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from captum_unioncam._files import lock, remove_temporaries, strict_json, write_whole
from captum_unioncam.errors import ConfigError, one_line
from captum_unioncam.evaluation.packing import Packer
from captum_unioncam.evaluation.row import Row, check_row

CONFIG_FILE = "config.json"
PATTERN = "rows-*.jsonl"

# The name of the image in a line, as it is written.
NAME = re.compile(rb'"id": ("(?:[^"\\]|\\.)*")')

# What is only known once the model is loaded.
WEIGHTS = "weights_digest"

# What a run may have more of when it is continued: methods and images. Its old images
# are known by their names and their files' digests, which are in the rows.
METHODS = "methods"
IMAGES = ("num_images", "files", "names")

# What a difference of digests means.
CHANGED = {
    WEIGHTS: "the values of the weights have changed",
    "architecture": "the model's modules, or their source, have changed",
    "code": "the source of captum_unioncam has changed",
    "objects": "the content of the file of objects' names has changed",
    "sources": "the source of {} has changed",
    "measures": "the source of {} has changed",
    "versions": "{} is another version",
}


class Finished(NamedTuple):
    """What need not be run again.

    Attributes:
        rows (set[tuple[str, str]]): The image and the method of each row that did not
            fail.
        files (dict[str, set[str]]): The digests of the file of each such image.
    """

    rows: set[tuple[str, str]]
    files: dict[str, set[str]]


def check_folder(folder: Path, known: Mapping[str, Any], resume: bool) -> None:
    """Refuses a folder that holds a run, unless it is this run to continue.

    It is, if it has the methods of the run before, or more, and nothing but the images
    differs.

    Args:
        folder (Path): The folder of the results.
        known (Mapping[str, Any]): The configuration, all of it JSON, as far as it is
            known before the model is loaded.
        resume (bool): Whether to continue a run.

    Raises:
        ConfigError: Says what differs.
    """
    before = _read_config(folder)
    if before is None:
        return
    if not resume:
        raise ConfigError(
            f"`output`: {folder} holds a run already; pass --resume (resume=True) to "
            "continue it, or choose another folder"
        )
    _check_same(folder, before, {WEIGHTS: before.get(WEIGHTS), **known})


def held_methods(folder: Path) -> list[str]:
    """Returns the labels of the methods of the run in a folder, if there is one.

    Raises:
        ConfigError: If the folder cannot be read, or holds something else.
    """
    labels = (_read_config(folder) or {}).get(METHODS)
    return list(labels) if labels and _is_list_of_text(labels) else []


def held_run(folder: Path) -> dict[str, Any]:
    """Returns the configuration of the run in a folder, with what a report needs.

    Raises:
        ConfigError: If there is none, or it lacks something.
    """
    run = _read_config(folder)
    if run is None:
        raise ConfigError(f"`output`: {folder} holds no run to report on")
    sound = _is_list_of_text(run.get(METHODS)) and _is_list_of_text(run.get("metrics"))
    if not sound or not isinstance(run.get("seed"), int):
        raise ConfigError(
            f"`output`: {folder / CONFIG_FILE} is no configuration of a run (it must "
            "have methods, metrics and a seed)"
        )
    return run


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def begin_folder(folder: Path, known: Mapping[str, Any]) -> None:
    """Writes the configuration, if it is another, and removes what killed runs left.

    Args:
        folder (Path): The folder of the results, which is held and checked.
        known (Mapping[str, Any]): The whole configuration, all of it JSON.

    Raises:
        ConfigError: If it cannot be written.
    """
    remove_temporaries(folder)
    path, content = folder / CONFIG_FILE, f"{strict_json(known, indent=2)}\n".encode()
    try:
        if not path.exists() or path.read_bytes() != content:
            write_whole(path, content)
    except OSError as error:
        raise unusable(folder, error) from error


def _read_config(folder: Path) -> dict[str, Any] | None:
    """Returns the configuration of the run in a folder, or None if there is no run."""
    path = folder / CONFIG_FILE
    try:
        if not path.exists():
            if any(folder.glob(PATTERN)):
                raise ConfigError(f"`output`: {folder} holds rows without a config")
            return None
        content = path.read_bytes()
    except OSError as error:
        raise unusable(folder, error) from error
    try:
        config = json.loads(content)
        if not isinstance(config, dict):
            raise ValueError(f"it holds a {type(config).__name__}")
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"`output`: {path} is no configuration of a run ({one_line(error)}); "
            "choose another folder"
        ) from error
    return config


def _check_same(
    folder: Path, before: Mapping[str, Any], known: Mapping[str, Any]
) -> None:
    """Refuses to continue a run of another configuration, and says what differs."""
    old, new = _flat(before), _flat(known)
    for name in sorted({*old, *new}):
        kind, _, label = name.partition(".")
        added = kind == "sources" and name not in old
        if old.get(name) == new.get(name) or name in IMAGES or added:
            continue
        if name == METHODS and _holds(new.get(name), old.get(name)):
            continue
        changed = CHANGED.get(kind, "").format(label)
        raise ConfigError(
            f"`output`: {folder} holds a run of another configuration ("
            f"{f'{changed}: ' if changed and name in old else ''}{name} was "
            f"{old.get(name)!r}, is {new.get(name)!r}); choose another folder"
        )


def _holds(every: Any, some: Any) -> bool:
    """Returns whether a list has all that another one has."""
    return (
        isinstance(every, list)
        and isinstance(some, list)
        and all(label in every for label in some)
    )


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration with the entries of its mappings as entries."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat


def unusable(path: Path, error: OSError) -> ConfigError:
    """Returns what to raise where a folder or a file of a run cannot be used."""
    return ConfigError(f"`output`: {path} cannot be used ({one_line(error)})")


class RowFile:
    """The rows of one process, appended one by one.

    Raises:
        ConfigError: On entry, if another process writes to the file; and if it cannot
            be written.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"rows-{rank:05d}.jsonl"
        self._file: Any = None

    def __enter__(self) -> "RowFile":
        try:
            # Without a buffer, which would be written again at the end if the disk is
            # full.
            self._file = self._path.open("a+b", buffering=0)
            self._take(self._file)
        except BaseException as error:
            if self._file is not None:
                self._file.close()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise
        return self

    def _take(self, file: BinaryIO) -> None:
        """Locks the file, and drops a line that was left unfinished."""
        taken = True
        with suppress(OSError):  # a file system without locks was warned of already
            taken = lock(file.fileno())
        if not taken:
            raise ConfigError(
                f"`output`: another process writes to {self._path}; wait for it"
            )
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, row: Row) -> None:
        """Appends a row; it is safe from the end of this process from here on."""
        rest = f"{strict_json(row)}\n".encode()
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"`output`: {self._path} cannot be written ({one_line(error)}); the rows "
            "so far are safe: continue with --resume (resume=True) once it can"
        )


def _lines(
    folder: Path, wanted: Callable[[bytes], bool] = lambda _: True
) -> Iterator[dict[str, Any]]:
    """Yields the whole rows of all processes, in the order of writing.

    ``wanted`` says of a line whether its row is.
    """
    for path in sorted(folder.glob(PATTERN)):
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    if not line.endswith(b"\n"):
                        break  # torn
                    if wanted(line):
                        yield _parsed(line, path, number)
        except OSError as error:
            raise unusable(path, error) from error


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        return check_row(json.loads(line))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"`output`: line {number} of {path} is no row ({one_line(error)}); delete "
            "the line"
        ) from error


def finished_rows(folder: Path) -> Finished:
    """Returns what need not be run again: the rows that did not fail."""
    finished = Finished(set(), {})
    names: dict[str, str] = {}  # each once, however many rows an image has
    for row in _lines(folder):
        if "error" not in row:
            name = names.setdefault(row["id"], row["id"])
            finished.rows.add((name, sys.intern(row["method"])))
            finished.files.setdefault(name, set()).add(row["file"])
    return finished


def read_rows(
    folder: Path, places: Mapping[str, int] | None, methods: Collection[str]
) -> list[Row]:
    """Returns the rows of images, without repetitions and without the maps.

    They are in the order of the images, under their places in the data set of now. A
    failure that a later run repaired does not count.

    Args:
        folder (Path): The folder of the results.
        places (Mapping[str, int] or None): The place in the data set of each image, by
            name; None for all images, under the places that their rows have.
        methods (Collection[str]): The labels of the methods.

    Raises:
        ConfigError: If a row of these images is of another method.
    """
    rows: dict[str, dict[str | None, Row]] = {}  # by image, then by method
    packed = Packer()
    for row in _lines(folder):
        ours = rows.setdefault(row["id"], {})
        if "error" in row and row["method"] in ours:
            continue
        if places is not None:
            if row["id"] not in places:
                continue
            row["index"] = places[row["id"]]
        if row["method"] not in (*methods, None):
            raise ConfigError(
                f"`output`: {folder} holds a row of another run (image {row['id']!r}, "
                f"method {row['method']!r}); delete its line"
            )
        ours[row["method"]] = packed(row)
    for ours in rows.values():
        if len(ours) > 1:
            ours.pop(None, None)  # the image was read in the end
    kept = chain.from_iterable(ours.values() for ours in rows.values())
    return sorted(kept, key=lambda row: (row["index"], row["id"]))


def in_order(rows: Iterable[Row], methods: Iterable[str]) -> list[Row]:
    """Returns rows in the order of the images, and of the methods for each image."""
    order = {label: place for place, label in enumerate(methods)}
    return sorted(
        rows,
        key=lambda row: (row["index"], row["id"], order.get(row["method"] or "", -1)),
    )


def read_maps(folder: Path, wanted: Collection[tuple[str, str]]) -> dict[Any, Any]:
    """Returns the maps of images and methods, as nested lists."""
    names = {strict_json(name).encode() for name, _ in wanted}

    def may_be_wanted(line: bytes) -> bool:
        found = NAME.search(line)  # most lines need not be parsed
        return found is None or found[1] in names

    return {
        (row["id"], row["method"]): row["map"]
        for row in _lines(folder, may_be_wanted)
        if (row["id"], row["method"]) in wanted and "map" in row
    }
