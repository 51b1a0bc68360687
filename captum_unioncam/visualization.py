"""Pictures of maps over their image, on top of captum.attr.visualization."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from captum.attr import visualization
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from captum_unioncam._maps import at_least_float32, to_mask

Array = npt.NDArray[np.floating[Any]]

PANEL_INCHES = 2.8
MOST_COLUMNS = 6
MARK_COLOUR = "tab:red"


def panels(
    image: Tensor, maps: Mapping[str, Tensor], marked: tuple[str, ...] = ()
) -> Figure:
    r"""Draws an image, and maps of it as overlays, in rows of six at most.

    Each map is shown as the mask that UnionCAM scores: resized to the image, then
    scaled to [0, 1]. A flat map is all zeros.

    Args:
        image (Tensor): The image in [0, 1], (1, 3, H, W).
        maps (Mapping[str, Tensor]): A map for each title, (1, 1, h, w).
        marked (tuple[str, ...], optional): Titles of the panels to frame. Default: ()

    Returns:
        *matplotlib.figure.Figure*, not shown.
    """
    picture = at_least_float32(image[0].detach()).permute(1, 2, 0).cpu().numpy()
    height, width = picture.shape[:2]
    count = 1 + len(maps)
    rows = math.ceil(count / MOST_COLUMNS)
    columns = math.ceil(count / rows)
    size = (PANEL_INCHES * columns * width / height, PANEL_INCHES * 1.1 * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.remove()
    masks = {
        title: to_mask(at_least_float32(values.detach()), (height, width))[0, 0]
        for title, values in maps.items()
    }
    _draw(figure, axes[0], picture, None, "image")
    for axis, (title, mask) in zip(axes[1:count], masks.items(), strict=True):
        _draw(figure, axis, picture, mask.cpu().numpy(), title)
        if title in marked:
            axis.title.set_color(MARK_COLOUR)
            for spine in axis.spines.values():
                spine.set(color=MARK_COLOUR, linewidth=3)
    return figure


def _draw(
    figure: Figure, axis: Axes, picture: Array, mask: Array | None, title: str
) -> None:
    """Draws one panel; a mask that is all zeros, or NaN, shows the image alone."""
    # Captum cannot normalize a map without a positive value.
    blank = mask is None or not mask.max() > 0
    visualization.visualize_image_attr(
        np.ones(picture.shape[:2]) if mask is None or blank else mask,
        picture,
        method="original_image" if blank else "blended_heat_map",
        sign="positive",
        plt_fig_axis=(figure, axis),
        outlier_perc=0,
        cmap="jet",
        title=title,
        use_pyplot=False,
    )
