"""What ``explain`` writes."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from captum_unioncam._files import remove_temporaries, write_whole
from captum_unioncam.cli.images import Source
from captum_unioncam.cli.options import ExplainOptions
from captum_unioncam.errors import UserError, one_line


def check_files(
    options: ExplainOptions, sources: Sequence[Source], into_folder: bool
) -> None:
    """Refuses files that cannot be written, before there is anything to write."""
    if options.maps is not None and not options.maps.lower().endswith(".npz"):
        raise UserError(f"`maps` must end with .npz, got {options.maps!r}")
    used = {Path(source.name).resolve() for source in sources if source.is_file}
    others = [path for path in (options.maps, options.json) if path not in (None, "-")]
    for path in [*(source.picture for source in sources), *others]:
        target = Path(path).resolve()
        if target in used:
            raise UserError(f"{path} is named twice; choose another file to write")
        used.add(target)
    if into_folder:
        _check_folder(options.output)
    for path in others if into_folder else [options.output, *others]:
        _check_file(path)


def _check_folder(path: str) -> None:
    """Refuses a folder that cannot be made or written to."""
    folder = Path(path).resolve()
    try:
        if folder.exists() and not folder.is_dir():
            raise OSError("it is not a folder")
        _try_to_write(folder if folder.exists() else folder.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _check_file(path: str) -> None:
    target = Path(path).resolve()
    try:
        if target.exists() and not target.is_file():
            raise OSError("it is not a file")
        _try_to_write(target.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _try_to_write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder):
        remove_temporaries(folder)


def write_file(path: str, content: bytes) -> None:
    """Writes a file, whole or not at all."""
    try:
        write_whole(path, content)
    except OSError as error:
        raise _cannot_write(path, error) from error


def write_picture(path: str, content: bytes) -> None:
    """Writes a picture, and makes its folder with the first one."""
    try:
        Path(path).parent.mkdir(exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    write_file(path, content)


def _cannot_write(path: str, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written: {one_line(error)}; choose a file in a folder that "
        "exists and that you may write to"
    )
