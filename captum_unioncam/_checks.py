"""Checks of options, and warnings at the user's line.

Every check names the argument, the rule and the value. Nothing here imports torch, so
that the command can refuse a wrong option before it loads anything.
"""

import difflib
import math
import sys
import warnings
from collections.abc import Collection, Iterable
from numbers import Real
from typing import Any


def check_callable(name: str, value: object) -> None:
    """Refuses anything but None and a callable."""
    if value is not None and not callable(value):
        raise TypeError(f"`{name}` must be a callable or None, got {value!r}.")


def check_instance(name: str, value: object, kind: type[Any]) -> None:
    """Refuses anything but None and an instance of a class."""
    if value is None or isinstance(value, kind):
        return
    if isinstance(value, type):
        got = f"the {value.__name__} class; pass an instance of it"
    else:
        got = repr(value)
    raise TypeError(f"`{name}` must be a {kind.__name__} or None, got {got}.")


def check_integer(
    name: str,
    value: int | None,
    low: float = 1,
    high: float = math.inf,
    *,
    or_none: bool = False,
) -> None:
    """Refuses anything but an int in [low, high], and None where it is allowed."""
    if value is None and or_none:
        return
    kind = "a positive int" if (low, high) == (1, math.inf) else "an int"
    bounds = "" if kind != "an int" else _bounds(low, high)
    rule = f"`{name}` must be {kind}{bounds}{' or None' if or_none else ''}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{rule}, got {value!r} ({type(value).__name__}).")
    if not low <= value <= high:
        raise ValueError(f"{rule}, got {value}.")


def check_number(
    name: str, value: float, low: float = -math.inf, high: float = math.inf
) -> None:
    """Refuses anything but a finite number in [low, high]."""
    rule = f"`{name}` must be a finite number{_bounds(low, high)}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{rule}, got {value!r}.")
    if not low <= value <= high or not math.isfinite(value):  # NaN too
        raise ValueError(f"{rule}, got {value}.")


def _bounds(low: float, high: float) -> str:
    """Returns the bounds of a number in words, with a space before them."""
    if math.isfinite(high):
        return f" in [{low}, {high}]"
    return f" >= {low}" if math.isfinite(low) else ""


def check_text(name: str, value: str) -> None:
    """Refuses an empty string, which nobody means, and one that no path may hold."""
    if value == "":
        raise ValueError(f"`{name}` must not be empty")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"`{name}` must not hold a NUL character, got {value!r}")


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuses anything but one of a few strings, and names the closest."""
    if value not in choices:
        raise ValueError(
            f"`{name}` must be one of {', '.join(choices)}, got {value!r}"
            f"{did_you_mean(str(value), choices)}"
        )


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns "; did you mean ...?" for a name that is close to some, else nothing."""
    names = list(names)
    ends = [known for known in names if name and known.endswith(f".{name}")]
    close = [*ends, *difflib.get_close_matches(name, names)]
    shown = list(dict.fromkeys(close))[:3]
    return f"; did you mean {' or '.join(map(repr, shown))}?" if shown else ""


def warn_user(message: str) -> None:
    """Warns at the user's line: the first frame outside of Captum and this package."""
    depth, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in (
        "captum",
        "captum_unioncam",
    ):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, stacklevel=depth)
