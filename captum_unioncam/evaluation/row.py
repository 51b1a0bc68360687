"""A row of an evaluation: what it holds, as it is written to a file and read again."""

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

Row = Mapping[str, Any]

_FLOATS = frozenset({float, type(None)})


def _is_number(value: Any) -> bool:
    """Returns whether a value is a number that a float holds, or None."""
    if value is None or isinstance(value, float):
        return True
    return _is_count(value) and value.bit_length() < 64


def _are_numbers(values: Iterable[Any]) -> bool:
    """Returns whether all values are numbers: fast where they are floats or None."""
    return _FLOATS.issuperset(map(type, values)) or all(map(_is_number, values))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _has_numbers(value: Any) -> bool:
    """Returns whether a value is a mapping of which each value is a number."""
    return isinstance(value, dict) and _are_numbers(value.values())


def _has_curves(value: Any) -> bool:
    """Returns whether a value is a mapping of which each value is a list of numbers."""
    return isinstance(value, dict) and all(map(_is_curve, value.values()))


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and _are_numbers(value)


def _is_map(value: Any) -> bool:
    """Returns whether a value is rows of numbers, all of one length."""
    if not isinstance(value, list) or not all(isinstance(v, list) for v in value):
        return False
    return len(set(map(len, value))) == 1 and _are_numbers([*chain(*value)])


# Of every row: the place of the image in the data set, its name, and the label of the
# method, which is None where the image itself failed.
EVERY = {"index": _is_count, "id": _is_text, "method": _or_none(_is_text)}

FAILED = {**EVERY, "error": _is_text}

MEASURED = {
    **EVERY,
    "method": _is_text,
    "target": _is_count,
    "target_name": _or_none(_is_text),
    "metrics": _has_numbers,
    "curves": _has_curves,
    "seconds": _is_number,
    "forwards": _is_number,
    # The digest of the image's file, and whether the map has one value everywhere, or a
    # value that is NaN or infinite.
    "file": _is_text,
    "constant_map": _is_flag,
    "broken_map": _is_flag,
}

# Left out where the map is broken.
OPTIONAL = {"map": _is_map}


def check_row(value: Any) -> dict[str, Any]:
    """Returns a value that is a row.

    Raises:
        ValueError: Says what is no row in it.
    """
    if not isinstance(value, dict):
        raise ValueError(f"it is no object, but a {type(value).__name__}")
    wanted = FAILED if "error" in value else MEASURED
    for name, check in wanted.items():
        if name not in value:
            raise ValueError(f"it has no {name!r}")
        if not check(value[name]):
            raise ValueError(f"its {name!r} is of the wrong kind")
    for name, check in OPTIONAL.items():
        if name in value and not check(value[name]):
            raise ValueError(f"its {name!r} is of the wrong kind")
    checked: dict[str, Any] = value
    return checked
