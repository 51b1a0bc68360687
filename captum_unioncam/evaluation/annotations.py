"""Boxes of Pascal VOC's annotations, in XML."""

import xml.etree.ElementTree as ElementTree
from pathlib import PurePath
from xml.etree.ElementTree import Element

from captum_unioncam.errors import DataError, one_line

Box = tuple[int, int, int, int]

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_boxes(content: bytes, path: str) -> list[Box]:
    """Returns the boxes of an annotation: x0, y0, x1, y1, the ends exclusive.

    Args:
        content (bytes): The XML.
        path (str): Its file, whose name is shown.

    Raises:
        DataError: Says what is missing, or wrong.
    """
    name = PurePath(path).name
    try:
        root = ElementTree.fromstring(content)
    # A wrong encoding in the declaration is a ValueError or a LookupError.
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(
            f"the annotation {name} is no XML ({one_line(error)})"
        ) from error
    if root.tag != "annotation":
        raise DataError(
            f"the annotation {name} must hold <annotation> (it holds <{root.tag}>)"
        )
    objects = root.findall("object")
    return [_box(item, f"{name}: object {i}") for i, item in enumerate(objects, 1)]


def _box(item: Element, where: str) -> Box:
    """Returns the box of an object of an annotation."""
    box = item.find("bndbox")
    if box is None:
        raise DataError(f"the annotation has no <bndbox> ({where})")
    x0, y0, x1, y1 = (_corner(box, corner, where) for corner in CORNERS)
    if x1 < x0 or y1 < y0:
        raise DataError(
            f"the annotation has a box that ends before it starts ({where})"
        )
    # VOC counts pixels from 1, and includes both ends.
    return x0 - 1, y0 - 1, x1, y1


def _corner(box: Element, corner: str, where: str) -> int:
    text = box.findtext(corner)
    if text is None:
        raise DataError(f"the annotation has no <{corner}> in its <bndbox> ({where})")
    try:
        return round(float(text))
    except (ValueError, OverflowError) as error:  # NaN and infinities too
        raise DataError(
            f"the annotation's <{corner}> must be a number, got {text!r} ({where})"
        ) from error
