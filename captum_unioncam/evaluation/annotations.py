"""Boxes of objects: Pascal VOC's annotations, in XML, which ILSVRC has too, and COCO's.

VOC and ILSVRC count pixels from 1, and include both ends; COCO measures from the edge
of the image.
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

from captum_unioncam.errors import DataError, one_line

Box = tuple[int, int, int, int]

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Object(NamedTuple):
    """An object of an image.

    Attributes:
        name (str): What it is: in ILSVRC a WordNet id; empty if it is not known.
        box (Box): x0, y0, x1, y1, the ends exclusive.
    """

    name: str
    box: Box


def voc_objects(content: bytes, path: str) -> list[Object]:
    """Returns the objects of an annotation of Pascal VOC or ILSVRC.

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
    return [
        Object((item.findtext("name") or "").strip(), _box(item, f"{name}: object {i}"))
        for i, item in enumerate(root.findall("object"), 1)
    ]


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


def coco_object(record: Mapping[str, Any], name: str) -> Object:
    """Returns the object of an annotation of COCO, whose category has a name.

    Raises:
        DataError: If its ``bbox`` is not x, y, width and height.
    """
    box = record.get("bbox")
    numbers = box if isinstance(box, list) else []
    usable = len(numbers) == 4 and all(
        isinstance(n, int | float) and math.isfinite(n) for n in numbers
    )
    if not usable or min(numbers[2:]) < 0:
        raise DataError(
            "the annotation's `bbox` must be x, y, width and height, got "
            f"{box!r} (id {record.get('id')!r})"
        )
    x, y, width, height = numbers
    return Object(name, (round(x), round(y), round(x + width), round(y + height)))
