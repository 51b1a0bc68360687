"""The folder of a run: its configuration, and its rows in JSON Lines files.

Each process appends whole lines to its own file, so that the rows survive a process
that is killed. A line that it left unfinished is dropped.
"""

import json
import math
from array import array
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from captum_unioncam._files import strict_json, write_whole
from captum_unioncam.errors import ConfigError, one_line

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

CONFIG_FILE = "config.json"
PATTERN = "rows-*.jsonl"

Row = dict[str, Any]


def check_folder(folder: Path, known: Mapping[str, Any], resume: bool) -> None:
    """Refuses a folder that holds a run, unless it is this run to continue.

    Args:
        folder (Path): The folder of the results.
        known (Mapping[str, Any]): The configuration, all of it JSON.
        resume (bool): Whether to continue a run.

    Raises:
        ConfigError: Says what differs.
    """
    path = folder / CONFIG_FILE
    try:
        if not path.exists():
            if any(folder.glob(PATTERN)):
                raise ConfigError(f"`output`: {folder} holds rows without a config")
            return
        found = path.read_text()
    except OSError as error:
        raise ConfigError(
            f"`output`: {folder} cannot be used ({one_line(error)})"
        ) from error
    if not resume:
        raise ConfigError(
            f"`output`: {folder} holds a run already; pass --resume (resume=True) to "
            "continue it, or choose another folder"
        )
    try:
        before = json.loads(found)
    except ValueError:
        before = {}
    for name in sorted({*before, *known}):
        if before.get(name) != known.get(name):
            raise ConfigError(
                f"`output`: {folder} holds a run of another configuration ({name} was "
                f"{before.get(name)!r}, is {known.get(name)!r}); choose another folder"
            )


def open_folder(folder: Path, known: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Creates the folder, and returns the image and the method of finished rows."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CONFIG_FILE, f"{strict_json(known, indent=2)}\n".encode())
    except OSError as error:
        raise ConfigError(
            f"`output`: {folder} cannot be used ({one_line(error)})"
        ) from error
    return finished_rows(folder)


class RowFile:
    """The rows of one process, appended and flushed one by one.

    Raises:
        ConfigError: On entry, if another process writes to the file.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"rows-{rank:05d}.jsonl"
        self._file: BinaryIO | None = None

    def __enter__(self) -> "RowFile":
        file = self._path.open("a+b")
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise ConfigError(
                    f"`output`: another process writes to {self._path}; wait for it"
                ) from None
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def write(self, row: Row) -> None:
        """Appends a row; it is safe from the end of this process from here on."""
        assert self._file is not None
        self._file.write(f"{strict_json(row)}\n".encode())
        self._file.flush()


def _lines(folder: Path) -> Iterator[Row]:
    """Yields the whole rows of all processes, in the order of writing."""
    for path in sorted(folder.glob(PATTERN)):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # torn
                try:
                    yield json.loads(line)
                except ValueError:
                    raise ConfigError(
                        f"`output`: line {number} of {path} is no row; delete the line"
                    ) from None


def finished_rows(folder: Path) -> set[tuple[str, str]]:
    """Returns the image and the method of each row that did not fail."""
    return {(row["id"], row["method"]) for row in _lines(folder) if "error" not in row}


def read_rows(folder: Path, names: Collection[str]) -> list[Row]:
    """Returns the rows of images, without repetitions and without the maps.

    They are in the order of the images. A failure that a later run repaired does not
    count.
    """
    rows: dict[tuple[str, str | None], Row] = {}
    for row in _lines(folder):
        key = (row["id"], row["method"])
        if row["id"] not in names or ("error" in row and key in rows):
            continue
        row.pop("map", None)
        # Most of a row, in an eighth of the memory.
        row["curves"] = {
            name: array("d", (math.nan if v is None else v for v in curve))
            for name, curve in row.get("curves", {}).items()
        }
        rows[key] = row
    done = {name for name, method in rows if method is not None}
    kept = (
        row for key, row in rows.items() if key[1] is not None or key[0] not in done
    )
    return sorted(kept, key=lambda row: row["index"])


def read_maps(folder: Path, wanted: Collection[tuple[str, str]]) -> dict[Any, Any]:
    """Returns the maps of images and methods, as nested lists."""
    return {
        (row["id"], row["method"]): row["map"]
        for row in _lines(folder)
        if (row["id"], row["method"]) in wanted and "map" in row
    }
