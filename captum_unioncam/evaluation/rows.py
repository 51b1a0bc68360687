"""Results as rows in JSON Lines files, which survive a process that is killed.

Each process appends to a file of its own, a whole line at a time. A line that a killed
process left unfinished is dropped.
"""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

PATTERN = "rows-*.jsonl"

Row = dict[str, Any]


class RowFile:
    """The rows of one process, appended and flushed one by one."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"rows-{rank:05d}.jsonl"
        self._file: TextIO | None = None

    def __enter__(self) -> "RowFile":
        if self._path.exists():
            content = self._path.read_bytes()
            os.truncate(self._path, content.rfind(b"\n") + 1)
        self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def write(self, row: Row) -> None:
        """Appends a row; it is safe from the end of this process from here on."""
        assert self._file is not None
        self._file.write(f"{strict_json(row)}\n")
        self._file.flush()


def read_rows(folder: Path) -> list[Row]:
    """Returns the whole rows of all processes, without repetitions.

    They are in the order of the images; an image's rows are in the order of writing.
    """
    rows: dict[tuple[str, str | None], Row] = {}
    for path in sorted(folder.glob(PATTERN)):
        for line in path.read_bytes().split(b"\n")[:-1]:
            row = json.loads(line)
            rows.setdefault((row["id"], row["method"]), row)
    return sorted(rows.values(), key=lambda row: row["index"])


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
