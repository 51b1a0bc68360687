"""Which images ``explain`` explains, and which picture each gets."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image

from captum_unioncam._pictures import SUFFIXES, suffix_of
from captum_unioncam.cli.options import ExplainOptions
from captum_unioncam.errors import DataError, UserError
from captum_unioncam.evaluation.data import read_image
from captum_unioncam.evaluation.sources import open_data

STDIN = "-"
DEFAULT = "coffee"


@dataclass(frozen=True)
class Source:
    """An image to explain.

    Attributes:
        name (str): How it was named: its path, ``-``, or the default photograph's name.
        picture (str): The picture to write.
        is_file (bool): Whether the name is the path of a file.
    """

    name: str
    picture: str
    is_file: bool = True

    def read(self) -> Image.Image:
        """Returns the image, as RGB.

        Raises:
            DataError: If it cannot be read.
            UserError: If it is the default photograph, and not installed.
        """
        if self.name == STDIN:
            if sys.stdin is None:
                raise DataError("standard input is closed; name an image file")
            return read_image("standard input", sys.stdin.buffer.read())
        return read_image(self.name) if self.is_file else _photograph()


def find_sources(options: ExplainOptions) -> tuple[list[Source], bool]:
    """Returns the images in order, and whether their pictures go into a folder.

    Raises:
        UserError: If an image is no path, or the output does not fit their number.
    """
    named = options.images or ()
    if named.count(STDIN) > 1:
        raise UserError("- is named twice; standard input holds one image")
    folders = [name for name in named if name != STDIN and os.path.isdir(name)]
    names = [name for given in named for name in _expanded(given)]
    into_folder = _is_folder(options.output, bool(folders) or len(names) > 1)
    if not into_folder:
        (name,) = names or [DEFAULT]
        return [Source(name, options.output, bool(names) and name != STDIN)], False
    for folder in folders:
        if Path(folder).resolve() == Path(options.output).resolve():
            raise UserError(f"{folder} is named twice; choose another folder to write")
    pictures = _picture_names(names or [DEFAULT])
    return [
        Source(name, str(Path(options.output) / picture), bool(names) and name != STDIN)
        for name, picture in zip(names or [DEFAULT], pictures, strict=True)
    ], True


def _expanded(name: str) -> list[str]:
    """Returns the images in a folder; a file, or standard input, is itself."""
    if name == STDIN or not os.path.isdir(name):
        return [name]
    try:
        return [entry.path for entry in open_data(f"imagefolder:{name}")]
    except DataError as error:
        raise UserError(f"{error}".removeprefix("`data`: ")) from error


def _is_folder(output: str, several: bool) -> bool:
    """Returns whether the output is a folder, which several images need."""
    if os.path.isdir(output) or output.endswith(("/", os.sep)):
        return True
    if suffix_of(output):
        if several:
            raise UserError(
                f"`output` must be a folder for several images, got {output!r}"
            )
        return False
    if PurePath(output).suffix and not several:
        raise UserError(
            f"`output` must end with {', '.join(SUFFIXES)}, or with / if it is a "
            f"folder, got {output!r}"
        )
    return True


def _picture_names(names: Sequence[str]) -> Iterator[str]:
    """Yields a PNG's name for each image: its own, with a number if it is taken."""
    taken: set[str] = set()
    for name in names:
        stem = "stdin" if name == STDIN else PurePath(name).stem
        picture, number = f"{stem}.png", 1
        while picture.casefold() in taken:  # not all file systems tell a from A
            number += 1
            picture = f"{stem}-{number}.png"
        taken.add(picture.casefold())
        yield picture


def _photograph() -> Image.Image:
    """Returns scikit-image's photograph of a cup of coffee."""
    try:
        from skimage.data import coffee
    except ImportError as error:
        raise UserError(
            "the default image needs the demo extra; run "
            '`pip install "captum-unioncam[demo]"`, or name an IMAGE'
        ) from error
    return Image.fromarray(coffee())  # type: ignore[no-untyped-call]
