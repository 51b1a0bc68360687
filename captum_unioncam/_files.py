"""Files that are written whole or not at all, locks, and strict JSON."""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

# How the names of files start, and end, that are still being written.
TEMPORARY = (".captum-unioncam-", ".tmp")


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


def lock(handle: int) -> bool:
    """Takes an open file or folder for this process; False if another one has it.

    The lock ends when the file is closed. On Windows nobody is kept out.

    Raises:
        OSError: If the file system has no locks.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_whole(path: str | Path, content: bytes) -> None:
    """Writes a file whole or not at all, by renaming a temporary one.

    Raises:
        OSError: If it cannot be written.
    """
    target = Path(path).resolve()  # a link stays one
    prefix, suffix = TEMPORARY
    with ExitStack() as stack:
        handle, name = tempfile.mkstemp(suffix, prefix, dir=target.parent)
        stack.callback(Path(name).unlink, missing_ok=True)
        with os.fdopen(handle, "wb") as file:
            if fcntl is not None:
                # The copy holds the lock until the file has its name: nobody takes it
                # for one that a killed writer left.
                held = os.dup(handle)
                stack.callback(os.close, held)
                with suppress(OSError):
                    lock(held)
            file.write(content)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, target)


def remove_temporaries(folder: str | Path) -> None:
    """Removes the files that killed writers left in a folder.

    Those that are being written are locked, and stay.
    """
    if fcntl is None:
        return
    prefix, suffix = TEMPORARY
    with suppress(OSError):
        for path in Path(folder).glob(f"{prefix}*{suffix}"):
            _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if lock(handle):
                path.unlink()
        finally:
            os.close(handle)


def _umask() -> int:
    """Returns the process's file mode mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
