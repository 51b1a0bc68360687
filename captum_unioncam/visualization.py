"""Pictures of maps over their images, on top of captum.attr.visualization.

Images are tensors, (N, C, H, W), as the model takes them. :func:`overlays` and
:func:`panels` return a matplotlib Figure that is not shown:
``figure.savefig("maps.png")``, or its name at the end of a notebook's cell, after
``%matplotlib inline``. :func:`overlay_images` returns arrays of pixels.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from captum.attr import visualization
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from captum_unioncam._checks import check_number, did_you_mean
from captum_unioncam._maps import at_least_float32, to_mask
from captum_unioncam._pictures import (
    Statistics,
    check_unit_range,
    note_of,
    without_statistics,
)

__all__ = ["overlay_images", "overlays", "panels"]

Array = npt.NDArray[np.floating[Any]]

PANEL_INCHES = 2.8  # the side of a square one
TITLE_LINE_INCHES = 0.25
WIDEST_INCHES = 20.0
LARGEST_TITLE = 12.0  # in points
TITLE_POINTS_PER_INCH = 6.5
TITLE_LETTERS = 15  # that fit at this size; longer titles are smaller
MOST_COLUMNS = 6
NAME_CHARACTERS_PER_INCH = 12  # of a row's name, which is turned
MARK_COLOUR = "tab:red"
NOTE_STYLE: dict[str, Any] = {
    "horizontalalignment": "center",
    "fontsize": "small",
    "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
}


class _Style(NamedTuple):
    """The colours of maps: the name of a colour map, and how much of it is seen."""

    colormap: str
    alpha: float


class _Drawn(NamedTuple):
    """A map as a mask of its image, (H, W), and what the picture says of it."""

    mask: Array
    note: str


def overlays(
    inputs: Tensor,
    attributions: Tensor,
    titles: Sequence[str] | None = None,
    *,
    mean: Statistics = None,
    std: Statistics = None,
    color_bar: bool = False,
    colormap: str = "jet",
    alpha: float = 0.5,
) -> Figure:
    r"""Draws the map of each image over it, in rows of six at most.

    Each map is shown as the mask that UnionCAM scores: resized to the image, then
    scaled to [0, 1]. An image whose map is constant, or NaN, is shown alone, and the
    panel says so; that of a map with negative values says its range.

    Args:
        inputs (Tensor): Images, (N, 3, H, W) or grey (N, 1, H, W): in [0, 1], or
            normalised by ``mean`` and ``std``.
        attributions (Tensor): Their maps, (N, 1, h, w).
        titles (Sequence[str], optional): A title for each image. Default: None
        mean (float, Sequence[float] or Tensor, optional): What was subtracted from
            each channel. Default: None, which is 0
        std (float, Sequence[float] or Tensor, optional): By what each channel was
            divided. Default: None, which is 1
        color_bar (bool, optional): Add a colour bar, which all maps share. Default:
            False
        colormap (str, optional): Name of a colour map of matplotlib. Default: "jet"
        alpha (float, optional): Share of the colours, in [0, 1]; the rest is the image.
            Default: 0.5

    Returns:
        *matplotlib.figure.Figure*, not shown.

    Raises:
        TypeError: If the images or the maps are not tensors.
        ValueError: If the images are not (N, 3, H, W) or (N, 1, H, W), or not in [0, 1]
            after undoing ``mean`` and ``std``; if there is not one map or title for
            each; if there is no such colour map, or ``alpha`` is outside of [0, 1].

    Examples::

        >>> import torch
        >>> from captum_unioncam.visualization import overlays
        >>> figure = overlays(torch.rand(2, 3, 32, 32), torch.rand(2, 1, 4, 4))
        >>> len(figure.axes)
        2
    """
    style = map_style(colormap, alpha)
    pictures = _pictures(inputs, mean, std)
    masks = _masks("attributions", attributions, inputs)
    titles = [""] * len(inputs) if titles is None else list(titles)
    if len(titles) != len(inputs):
        raise ValueError(
            f"`titles` must be one for each of {len(inputs)} images, got {len(titles)}."
        )
    rows = math.ceil(len(inputs) / MOST_COLUMNS)
    columns = math.ceil(len(inputs) / max(rows, 1))
    figure, axes = _grid(rows, columns, pictures, rows * _lines(titles))
    for axis, picture, mask, title in zip(axes, pictures, masks, titles, strict=False):
        _draw(figure, axis, picture, mask, title, style)
    return _finished(figure, axes, len(inputs), color_bar)


def panels(
    inputs: Tensor,
    maps: Mapping[str, Tensor],
    marked: Sequence[str] = (),
    *,
    names: Sequence[str] | None = None,
    mean: Statistics = None,
    std: Statistics = None,
    color_bar: bool = False,
    colormap: str = "jet",
    alpha: float = 0.5,
) -> Figure:
    r"""Draws images beside their maps by several methods, for comparison.

    One image and its maps fill rows of six panels at most; several images have a row
    each, and the methods a column. Maps are shown as in :func:`overlays`.

    Args:
        inputs (Tensor): Images, (N, 3, H, W) or grey (N, 1, H, W): in [0, 1], or
            normalised by ``mean`` and ``std``.
        maps (Mapping[str, Tensor]): Maps of all images for each title, (N, 1, h, w).
        marked (Sequence[str], optional): Titles of the panels to frame. Default: ()
        names (Sequence[str], optional): A name for each image, left of its row.
            Default: None
        mean, std, color_bar, colormap, alpha: See :func:`overlays`.

    Returns:
        *matplotlib.figure.Figure*, not shown.

    Raises:
        TypeError: As :func:`overlays`, or if ``maps`` is not a dict.
        ValueError: As :func:`overlays`, or if ``marked`` has a title that no map has,
            or there is not one name for each image.

    Examples::

        >>> import torch
        >>> from captum_unioncam.visualization import panels
        >>> maps = {"one": torch.rand(2, 1, 4, 4), "two": torch.zeros(2, 1, 4, 4)}
        >>> len(panels(torch.rand(2, 3, 32, 32), maps, mean=0.0, std=1.0).axes)
        6
    """
    style = map_style(colormap, alpha)
    pictures = _pictures(inputs, mean, std)
    _check_panels(inputs, maps, marked, names)
    masks = {title: _masks(title, values, inputs) for title, values in maps.items()}
    count = 1 + len(maps)
    rows, columns = len(inputs), count
    if rows == 1:
        rows = math.ceil(count / MOST_COLUMNS)
        columns = math.ceil(count / rows)
    title_rows = rows if len(inputs) == 1 else 1
    figure, axes = _grid(
        rows, columns, pictures, title_rows * _lines(maps), names or ()
    )
    for number, picture in enumerate(pictures):
        start = number * columns
        _draw(figure, axes[start], picture, None, "" if number else "image", style)
        for axis, title in zip(axes[start + 1 :], masks, strict=False):
            mask = masks[title][number]
            _draw(figure, axis, picture, mask, "" if number else title, style)
            if title in marked:
                axis.title.set_color(MARK_COLOUR)
                for spine in axis.spines.values():
                    spine.set(color=MARK_COLOUR, linewidth=3)
    return _finished(figure, axes, len(inputs) * count, color_bar)


def overlay_images(
    inputs: Tensor,
    attributions: Tensor,
    *,
    mean: Statistics = None,
    std: Statistics = None,
    colormap: str = "jet",
    alpha: float = 0.5,
) -> npt.NDArray[np.uint8]:
    r"""Returns each image under the colours of its map, without frame or margin.

    The mask of each map, as in :func:`overlays`, is coloured and blended with the
    image: (1 - alpha) * image + alpha * colours. An image whose map is constant, or not
    finite, is returned as it is.

    Args:
        inputs, attributions, mean, std, colormap, alpha: See :func:`overlays`.

    Returns:
        *numpy.ndarray*, uint8, RGB, (N, H, W, 3): for ``PIL.Image.fromarray``.

    Raises:
        TypeError, ValueError: As :func:`overlays`.

    Examples::

        >>> import torch
        >>> from captum_unioncam.visualization import overlay_images
        >>> overlay_images(torch.rand(2, 3, 32, 48), torch.rand(2, 1, 4, 4)).shape
        (2, 32, 48, 3)
    """
    style = map_style(colormap, alpha)
    pictures = _pictures(inputs, mean, std)
    masks = _masks("attributions", attributions, inputs)
    images = np.empty((len(pictures), *inputs.shape[2:], 3), dtype=np.uint8)
    for image, picture, drawn in zip(images, pictures, masks, strict=True):
        blended = picture
        if not _is_blank(drawn.mask):
            colours = colormaps[style.colormap](drawn.mask)[..., :3]  # (H, W, 3)
            blended = (1 - style.alpha) * picture + style.alpha * colours
        image[:] = np.rint(255 * blended)
    return images


def map_style(colormap: str, alpha: float) -> _Style:
    """Returns how to draw maps; refuses a colour map that matplotlib does not have."""
    if colormap not in list(colormaps):
        raise ValueError(
            "`colormap` must be the name of a colour map of matplotlib, such as "
            f"viridis, got {colormap!r}{did_you_mean(str(colormap), colormaps)}"
        )
    check_number("alpha", alpha, 0, 1)
    return _Style(colormap, alpha)


def _check_panels(
    inputs: Tensor,
    maps: Mapping[str, Tensor],
    marked: Sequence[str],
    names: Sequence[str] | None,
) -> None:
    """Refuses maps that have no titles, and titles and names of other maps."""
    if not isinstance(maps, Mapping):
        raise TypeError(
            "`maps` must be a dict of maps by their titles, got a "
            f"{type(maps).__name__}."
        )
    unknown = [title for title in marked if title not in maps]
    if unknown:
        raise ValueError(
            f"`marked` must be titles of `maps`, got {unknown}; they are {list(maps)}."
        )
    if names is not None and (isinstance(names, str) or len(names) != len(inputs)):
        raise ValueError(
            f"`names` must be one for each of {len(inputs)} images, got {names!r}."
        )


def _pictures(inputs: Tensor, mean: Statistics, std: Statistics) -> list[Array]:
    """Returns images as Captum draws them, (H, W, 3) in [0, 1]."""
    _check_tensor("inputs", inputs)
    shape = tuple(inputs.shape)
    if len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(
            "`inputs` must be images of shape (N, 3, H, W) or (N, 1, H, W), got "
            f"{shape}."
        )
    images = without_statistics(inputs.detach().cpu(), mean, std)
    undone = mean is not None or std is not None
    check_unit_range("inputs", images, undone)
    # (N, C, H, W) to (N, H, W, 3); grey images repeat their channel.
    pictures = images.clamp(0, 1).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return list(pictures.numpy())


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a Tensor, got a {type(value).__name__}.")


def _masks(name: str, maps: Tensor, inputs: Tensor) -> list[_Drawn]:
    """Returns maps as masks of their images."""
    _check_tensor(name, maps)
    shape = tuple(maps.shape)
    if len(shape) != 4 or shape[1] != 1 or len(maps) != len(inputs):
        raise ValueError(
            f"`{name}`: maps must be ({len(inputs)}, 1, h, w) for {len(inputs)} "
            f"images, got {shape}."
        )
    values = at_least_float32(maps.detach()).cpu()
    masks = to_mask(values, inputs.shape[2:])  # (N, 1, H, W)
    notes = [note_of(one) for one in values]
    return [
        _Drawn(mask, note)
        for mask, note in zip(masks[:, 0].numpy(), notes, strict=True)
    ]


def _is_blank(mask: Array) -> bool:
    """Returns whether a mask is all zeros, or NaN."""
    return not mask.max() > 0


def _lines(titles: Iterable[str]) -> int:
    """Returns the lines of the longest title."""
    return max((title.count("\n") + 1 for title in titles), default=1)


def _grid(
    rows: int,
    columns: int,
    pictures: list[Array],
    title_lines: int,
    names: Sequence[str] = (),
) -> tuple[Figure, list[Axes]]:
    """Returns a figure of panels in the images' proportions, and of about one area."""
    if not pictures:
        raise ValueError("`inputs` must hold at least one image, got none.")
    height, width = pictures[0].shape[:2]
    side = PANEL_INCHES * math.sqrt(width / height)
    side = min(side, WIDEST_INCHES / columns)
    row_inches = side * height / width
    inches = rows * row_inches + title_lines * TITLE_LINE_INCHES
    labels = [_wrapped(name, row_inches) for name in names]
    margin = _lines(labels) * TITLE_LINE_INCHES if labels else 0
    figure = Figure(figsize=(side * columns + margin, inches), layout="compressed")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis, label in zip(axes[::columns], labels, strict=False):
        axis.set_ylabel(label, fontsize="medium")
    return figure, axes


def _wrapped(name: str, inches: float) -> str:
    """Returns a name in lines that are no longer than its row is high."""
    width = max(int(inches * NAME_CHARACTERS_PER_INCH), 1)
    return "\n".join(textwrap.fill(line, width) for line in name.splitlines())


def _finished(figure: Figure, axes: list[Axes], used: int, color_bar: bool) -> Figure:
    """Removes the panels that nothing was drawn in, and adds the colour bar."""
    for axis in axes[used:]:
        axis.remove()
    maps = [axis.images[-1] for axis in axes[:used] if len(axis.images) > 1]
    if color_bar and maps:
        figure.colorbar(maps[-1], ax=axes[:used], shrink=0.8, pad=0.01)
    return figure


def _draw(
    figure: Figure,
    axis: Axes,
    picture: Array,
    drawn: _Drawn | None,
    title: str,
    style: _Style,
) -> None:
    """Draws one panel; a mask that is all zeros, or NaN, shows the image alone."""
    mask = None if drawn is None else drawn.mask
    # Captum cannot normalize a map without a positive value.
    blank = mask is None or _is_blank(mask)
    visualization.visualize_image_attr(
        np.ones(picture.shape[:2]) if mask is None or blank else mask,
        picture,
        method="original_image" if blank else "blended_heat_map",
        sign="positive",
        plt_fig_axis=(figure, axis),
        outlier_perc=0,
        cmap=style.colormap,
        alpha_overlay=style.alpha,
        title=title,
        use_pyplot=False,
    )
    if drawn is not None and drawn.note:
        axis.text(0.5, 0.03, drawn.note, transform=axis.transAxes, **NOTE_STYLE)
    grid = axis.get_gridspec()
    inches = figure.get_size_inches()[0] / (grid.ncols if grid else 1)
    longest = max(map(len, title.split("\n")))
    points = inches * TITLE_POINTS_PER_INCH * min(1, TITLE_LETTERS / max(longest, 1))
    axis.title.set_fontsize(min(LARGEST_TITLE, points))
