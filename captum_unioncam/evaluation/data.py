"""Images to evaluate on, from their files to what a model sees.

An image that cannot be read becomes an item with the reason, and the run continues.
"""

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from captum_unioncam._files import strict_json
from captum_unioncam.errors import DataError, one_line
from captum_unioncam.evaluation.annotations import Box, Object, voc_objects

# Models crop to a square after they bring the shorter side to some 256 pixels: a very
# long image would take a lot of memory and show almost nothing.
LARGEST_ASPECT = 50

# More than the pixels that Pillow accepts take, in any format.
LARGEST_FILE = 2**31


@dataclass(frozen=True)
class Entry:
    """An image of a data set, by its file.

    Attributes:
        name (str): Path in the data set, which identifies the image.
        path (str): The file.
        label (str or None): Name, index or WordNet id of the class, if it is known.
        annotation (str or None): The file of its boxes, in VOC's XML.
        objects (tuple[Object, ...] or None): Its boxes, where they have no such file.
    """

    name: str
    path: str
    label: str | None = None
    annotation: str | None = None
    objects: tuple[Object, ...] | None = None

    @property
    def has_boxes(self) -> bool:
        """Whether it is known where objects are in the image, or that none are."""
        return self.annotation is not None or self.objects is not None

    def read(self) -> tuple[bytes, bytes | None]:
        """Returns the content of the image's file, and its annotation.

        Raises:
            DataError: If they cannot be read; the message leaves their paths out.
        """
        image = _file_content(self.path, "the file cannot be read as an image")
        return image, self._read_annotation()

    def _read_annotation(self) -> bytes | None:
        if self.objects is not None:
            return strict_json(self.objects).encode()
        if self.annotation is None:
            return None
        name = Path(self.annotation).name
        return _file_content(self.annotation, f"the annotation {name} cannot be read")

    def objects_in(self, annotation: bytes | None) -> Sequence[Object] | None:
        """Returns the objects of the annotation that was read, or None without one."""
        if self.objects is not None or annotation is None:
            return self.objects
        return voc_objects(annotation, f"{self.annotation}")

    def object_names(self) -> list[str]:
        """Returns the names of its objects.

        Raises:
            DataError: If they cannot be read.
        """
        objects = self.objects_in(self._read_annotation())
        return [name for name, _ in objects or ()]

    def digest(self) -> str:
        """Returns the digest of its files as they are now.

        Raises:
            DataError: If they cannot be read.
        """
        return file_digest(*self.read())


@dataclass(frozen=True)
class Item:
    """An image as the model sees it, or the reason why there is none.

    Attributes:
        index (int): Place in the data set.
        name (str): Name of the image.
        inputs (Tensor or None): (C, H, W).
        label (str or None): Name, index or WordNet id of the class, if it is known.
        file (str or None): The digest of the file; see :func:`file_digest`.
        masks (Tensor or None): The inside of each box, bool, (boxes, H, W); None for
            images without an annotation.
        error (str or None): Why there is no image.
        objects (tuple[str, ...]): The name of the object in each box.
    """

    index: int
    name: str
    inputs: Tensor | None = None
    label: str | None = None
    file: str | None = None
    masks: Tensor | None = None
    error: str | None = None
    objects: tuple[str, ...] = ()


class Listed(Protocol):
    """An image that a data set lists; what it has beside its name may be read late."""

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str | None: ...

    @property
    def has_boxes(self) -> bool: ...

    def object_names(self) -> list[str]: ...

    def digest(self) -> str: ...


class Images(Dataset[Item]):
    """The images of a data set, as a model sees them.

    Args:
        entries (Sequence[Entry]): The images.
        preprocess (Callable): From a PIL image to the model's input, (C, H, W).
    """

    def __init__(
        self, entries: Sequence[Any], preprocess: Callable[[Image.Image], Tensor]
    ) -> None:
        self.entries: Sequence[Any] = entries
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Item:
        entry = self.entries[index]
        try:
            return self._item(index, entry)
        except DataError as error:
            return Item(index, entry.name, error=f"{error}")
        # The transforms may raise anything.
        except Exception as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            return Item(index, entry.name, error=reason)

    def _item(self, index: int, entry: Entry) -> Item:
        content, annotation = entry.read()
        try:
            image = _decoded(content)
        except DataError as error:
            raise DataError(f"the file {error}") from error
        inputs = self.preprocess(image)
        objects = entry.objects_in(annotation)
        masks = None
        if objects is not None:
            masks = self._shown_boxes(image.size, [o.box for o in objects], inputs)
        names = tuple(o.name for o in objects or ())
        digest = file_digest(content, annotation)
        return Item(
            index, entry.name, inputs, entry.label, digest, masks, objects=names
        )

    def _shown_boxes(
        self, size: tuple[int, int], boxes: Sequence[Box], inputs: Tensor
    ) -> Tensor:
        """Returns where each box is once the model's transforms are done.

        A white rectangle on black goes through the same transforms as the image.
        """
        black = self.preprocess(Image.new("RGB", size))
        masks = inputs.new_zeros(len(boxes), *inputs.shape[1:], dtype=torch.bool)
        white = self.preprocess(Image.new("RGB", size, "white"))
        for mask, box in zip(masks, boxes, strict=True):
            drawn = Image.new("RGB", size)
            drawn.paste((255, 255, 255), box)
            share = (self.preprocess(drawn) - black) / (white - black)
            mask.copy_(share.mean(0) > 0.5)
        return masks


def file_digest(image: bytes, annotation: bytes | None = None) -> str:
    """Returns a digest of an image's file: its size and its content.

    What the annotation holds decides on the metrics of boxes, and counts too.
    """
    digest = hashlib.sha256(f"{len(image)}:".encode() + image)
    digest.update(annotation or b"")
    return digest.hexdigest()[:32]


def check_unchanged(
    entries: Sequence[Listed], files: Mapping[str, Collection[str]]
) -> None:
    """Refuses to continue a run of which an image has changed.

    Args:
        entries (Sequence[Listed]): Images of the data set.
        files (Mapping[str, Collection[str]]): The digests of the files that the rows of
            an image came from, by its name.

    Raises:
        DataError: Names the first image that is another one now.
    """
    for entry in entries:
        if entry.name not in files:
            continue
        try:
            digest = entry.digest()
        except DataError as error:
            raise DataError(f"`data`: {entry.name}: {error}") from error
        if set(files[entry.name]) != {digest}:
            raise DataError(
                f"`data`: {entry.name} has changed since its rows were written; put "
                "the old file back, or choose another output folder"
            )


def _file_content(path: str, what: str) -> bytes:
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{what} (it is no file, but a device or a folder)")
        if status.st_size > LARGEST_FILE:
            raise DataError(f"{what} (it has {status.st_size:,} bytes)")
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{what} ({one_line(error)})") from error


def read_image(path: str, content: bytes | None = None) -> Image.Image:
    """Reads an image file as RGB, upright.

    Args:
        path (str): The file.
        content (bytes, optional): What it holds, if it was read already. Default: None

    Raises:
        DataError: If it cannot be read, or is too large.
    """
    try:
        return _decoded(Path(path).read_bytes() if content is None else content)
    except DataError as error:
        raise DataError(f"{path} {error}") from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read as an image ({one_line(error)}); name an image file"
        ) from error


def _decoded(content: bytes) -> Image.Image:
    """Returns the image of a file's content, as RGB, upright.

    Raises:
        DataError: Says what the file is, or has, without its name.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as file:
                if max(file.size) > LARGEST_ASPECT * min(file.size):
                    raise DataError(
                        f"is {file.width} x {file.height} pixels; crop it to an aspect "
                        f"ratio of at most {LARGEST_ASPECT}"
                    )
                return _rgb(ImageOps.exif_transpose(file))
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"has more than {Image.MAX_IMAGE_PIXELS} pixels; scale it down first"
        ) from error
    except Exception as error:  # decoders raise anything for a broken file
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "in no format that Pillow knows" if unknown else one_line(error)
        raise DataError(
            f"cannot be read as an image ({reason}); give a whole JPEG or PNG file"
        ) from error


def _rgb(image: Image.Image) -> Image.Image:
    """Returns an image in 8-bit RGB: 16 bits scaled down, transparency over black."""
    if image.mode.startswith("I;16"):  # which Pillow would clip
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if image.mode in ("F", "I"):
        raise ValueError("it has 32 bits a pixel, of no known range")
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(black, image.convert("RGBA"))
    return image.convert("RGB")


def unit_range(side: int) -> Callable[[Image.Image], Tensor]:
    """Returns the paper's preprocessing: a square, scaled to [0, 1], and no more."""
    steps = [transforms.Resize((side, side)), transforms.ToTensor()]
    preprocess: Callable[[Image.Image], Tensor] = transforms.Compose(steps)
    return preprocess


def plain_preprocessing(
    shape: Sequence[int], black: Tensor, white: Tensor, dtype: torch.dtype
) -> Callable[[Image.Image], Tensor]:
    """Returns how an image looks in a shape, (C, H, W), between two colours.

    It is grey where there are not three channels. ``black`` and ``white``, (C,), are
    what a model sees of these two.
    """
    channels, *size = shape
    grey = [] if channels == 3 else [transforms.Grayscale()]
    steps = transforms.Compose([*grey, transforms.Resize(size), transforms.ToTensor()])
    low, high = (values.double().view(-1, 1, 1) for values in (black, white))

    def preprocess(image: Image.Image) -> Tensor:
        shown: Tensor = low + steps(image) * (high - low)
        return shown.to(dtype)

    return preprocess
