"""A folder of results that one run has for itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from captum_unioncam._checks import warn_user
from captum_unioncam._files import lock
from captum_unioncam.errors import ConfigError, one_line, printable
from captum_unioncam.evaluation.storage import unusable


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Makes a folder, and keeps other runs out of it for the time of the context.

    The folders that were made, and are still empty at the end, are removed.

    Raises:
        ConfigError: If another run has the folder, or it cannot be made.
    """
    made: list[Path] = []
    try:
        _make(folder, made)
        handle = _locked(folder)
    except OSError as error:
        raise unusable(folder, error) from error
    try:
        yield
    finally:
        # Within the lock: nobody else has started to use them.
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir()
        if handle is not None:
            os.close(handle)


def _make(folder: Path, made: list[Path]) -> None:
    """Makes a folder and those above it, and lists the ones that were not there."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make(folder.parent, made)
    with suppress(FileExistsError):  # another run made it meanwhile
        folder.mkdir()
        made.append(folder)


def _locked(folder: Path) -> int | None:
    """Returns the handle of a folder, locked; None where folders have no locks."""
    if os.name == "nt":
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            taken = lock(handle)
        except OSError as error:
            warn_user(
                f"The file system of {printable(f'{folder}')} has no locks "
                f"({one_line(error)}): let no other run write there."
            )
            return handle
        # A run that was refused may have removed the folder before it was locked.
        if not taken or not os.path.samestat(os.fstat(handle), os.stat(folder)):
            raise ConfigError(
                f"`output`: another run writes to {folder}; wait for it, or choose "
                "another folder"
            )
        return handle
    except BaseException:
        os.close(handle)
        raise
