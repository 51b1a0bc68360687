"""Measured rows in little memory: numbers side by side, and texts that rows share."""

import math
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

from captum_unioncam.evaluation.row import MEASURED, OPTIONAL, Row

# The entries of a measured row, with its map and without.
_MEASURED = (MEASURED.keys() | OPTIONAL.keys(), set(MEASURED))


class Form(NamedTuple):
    """What many rows share: all but their numbers, and their image.

    Attributes:
        method (str): The label of the method.
        constant_map, broken_map (bool): What the map is.
        metrics (tuple[str, ...]): Names of the metrics.
        curves (tuple[tuple[str, int], ...]): Names and lengths of the curves.
        layout (str): Of the numbers: metrics, seconds and forward passes, then curves.
    """

    method: str
    constant_map: bool
    broken_map: bool
    metrics: tuple[str, ...]
    curves: tuple[tuple[str, int], ...]
    layout: str


class PackedRow(Mapping[str, Any]):
    """A measured row without its map, to read: 50,000 images have 750,000 of them.

    Curves are arrays of 32-bit floats, in which models score; the rest is exact, and
    None where it is undefined.
    """

    __slots__ = ("_image", "_form", "_numbers")

    def __init__(self, image: tuple[Any, ...], form: Form, numbers: bytes) -> None:
        self._image, self._form, self._numbers = image, form, numbers

    def __getitem__(self, name: str) -> Any:
        return _READERS[name](self)

    def __contains__(self, name: object) -> bool:
        return name in _READERS

    def __iter__(self) -> Iterator[str]:
        return iter(_READERS)

    def __len__(self) -> int:
        return len(_READERS)

    def __repr__(self) -> str:
        return f"{dict(self)}"

    def number(self, place: int) -> float | None:
        """Returns one of the numbers before the curves."""
        (value,) = struct.unpack_from("<d", self._numbers, 8 * place)
        return None if math.isnan(value) else value

    def metrics(self) -> dict[str, float | None]:
        """Returns the metrics by name."""
        names = self._form.metrics
        values = struct.unpack_from(f"<{len(names)}d", self._numbers)
        if any(map(math.isnan, values)):
            known = (None if math.isnan(value) else value for value in values)
            return dict(zip(names, known, strict=True))
        return dict(zip(names, values, strict=True))

    def curves(self) -> "dict[str, array[float]]":
        """Returns the curves by name."""
        kind = self._form.layout[-1]
        values: array[float] = array(kind)
        values.frombytes(self._numbers[8 * (len(self._form.metrics) + 2) :])
        found, start = {}, 0
        for name, length in self._form.curves:
            found[name] = values[start : start + length]
            start += length
        return found


# The entries of an image, then those of a row, in the order of a row.
_image_of = itemgetter("index", "id", "file", "target", "target_name")
_READERS: dict[str, Callable[[PackedRow], Any]] = {
    "index": lambda row: row._image[0],
    "id": lambda row: row._image[1],
    "file": lambda row: row._image[2],
    "target": lambda row: row._image[3],
    "target_name": lambda row: row._image[4],
    "method": lambda row: row._form.method,
    "metrics": PackedRow.metrics,
    "curves": PackedRow.curves,
    "constant_map": lambda row: row._form.constant_map,
    "broken_map": lambda row: row._form.broken_map,
    "seconds": lambda row: row.number(len(row._form.metrics)),
    "forwards": lambda row: row.number(len(row._form.metrics) + 1),
}


class Packer:
    """Packs rows, and keeps what they share once."""

    def __init__(self) -> None:
        self._images: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._forms: dict[Form, Form] = {}

    def __call__(self, row: Row) -> Row:
        """Returns a row without its map, packed where it is a measured one."""
        if row.keys() not in _MEASURED:
            kept = {name: value for name, value in row.items() if name != "map"}
            return {"curves": {}, **kept}
        image = _image_of(row)
        image = self._images.setdefault(image, image)
        numbers = [*row["metrics"].values(), row["seconds"], row["forwards"]]
        curves = list(chain.from_iterable(row["curves"].values()))
        try:
            packed, layout = _packed(numbers, curves, "f")
        except OverflowError:  # past the largest of 32 bits
            packed, layout = _packed(numbers, curves, "d")
        form = Form(
            row["method"],
            row["constant_map"],
            row["broken_map"],
            tuple(row["metrics"]),
            tuple(zip(row["curves"], map(len, row["curves"].values()), strict=True)),
            layout,
        )
        return PackedRow(image, self._forms.setdefault(form, form), packed)


def _packed(
    numbers: list[float | None], curves: list[float | None], kind: str
) -> tuple[bytes, str]:
    layout = f"<{len(numbers)}d{len(curves)}{kind}"
    try:
        return struct.pack(layout, *numbers, *curves), layout
    except struct.error:  # None
        values = (math.nan if v is None else v for v in (*numbers, *curves))
        return struct.pack(layout, *values), layout
