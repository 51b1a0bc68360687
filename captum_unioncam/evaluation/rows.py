"""Results as rows in JSON Lines files, which survive a process that is killed.

Each process appends to a file of its own, a whole line at a time. A line that a killed
process left unfinished is dropped.
"""

import json
import math
import os
import tempfile
from array import array
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from captum_unioncam.evaluation.config import ConfigError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

PATTERN = "rows-*.jsonl"

Row = dict[str, Any]


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

    They are in the order of the images. A failure that was made good does not count.
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


def strict_json(value: Any, indent: int | None = None) -> str:
    """Returns strict JSON: numbers that are not finite become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_whole(path: str | Path, content: bytes) -> None:
    """Writes a file whole or not at all, by renaming a temporary one.

    Raises:
        OSError: If it cannot be written.
    """
    target = Path(path).resolve()  # a link stays one
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
        temporary = None
    finally:
        if temporary is not None:
            os.unlink(temporary)


def _umask() -> int:
    """Returns the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
