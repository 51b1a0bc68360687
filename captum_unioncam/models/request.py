"""What is asked of a source of models: which, with which weights, for which images."""

from collections.abc import Sequence
from dataclasses import dataclass

from captum_unioncam._checks import check_integer, check_number
from captum_unioncam.errors import ConfigError

# Colours of an image.
CHANNELS = 3

Colours = tuple[float, float, float]


@dataclass(frozen=True)
class Request:
    """A model of a source, and what takes the place of its own preprocessing.

    Attributes:
        name (str): The model's name, without that of the source.
        weights (str): "default", "none", or a file.
        size (int or None): Side of the images that the model is shown.
        mean, std (tuple of three numbers, or None): What their colours, in [0, 1], are
            normalised by.
    """

    name: str
    weights: str
    size: int | None = None
    mean: Colours | None = None
    std: Colours | None = None

    @property
    def changed(self) -> list[str]:
        """The names of what takes the place of the model's own preprocessing."""
        names = ("size", "mean", "std")
        return [name for name in names if getattr(self, name) is not None]


def checked_request(
    name: str,
    weights: str,
    size: int | None,
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
) -> Request:
    """Returns a request whose values are right.

    Raises:
        ConfigError: Names the value that is wrong.
    """
    try:
        check_integer("size", size, or_none=True)
        colours = _colours("mean", mean), _colours("std", std)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{error}") from error
    if colours[1] is not None and min(colours[1]) <= 0:
        raise ConfigError(f"`std` must be positive, got {colours[1]}")
    return Request(name, weights, size, *colours)


def _colours(name: str, values: Sequence[float] | float | None) -> Colours | None:
    """Returns a number for each colour: one stands for all."""
    if values is None:
        return None
    numbers = tuple(values) if isinstance(values, Sequence) else (values,)
    if len(numbers) not in (1, CHANNELS):
        raise ValueError(
            f"`{name}` must be one number, or {CHANNELS}, one a colour, got "
            f"{len(numbers)}"
        )
    for number in numbers:
        check_number(name, number)
    red, green, blue = numbers if len(numbers) == CHANNELS else numbers * CHANNELS
    return float(red), float(green), float(blue)
