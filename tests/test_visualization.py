"""Pictures: what is drawn, and that degenerate maps draw."""

import numpy as np
import pytest
import torch

from captum_unioncam.visualization import panels


def drawn(axis):
    """Returns the arrays that a panel shows, the overlay last."""
    return [np.asarray(image.get_array()) for image in axis.images]


def test_panels_draws_the_image_and_each_map_as_its_mask():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 32, 48)
    maps = {"one": torch.tensor([[[[-1.0, 0], [1, 3]]]]), "two": torch.rand(1, 1, 4, 6)}
    figure = panels(image, maps, ("two",))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["image", "one", "two"]
    (picture,) = drawn(figure.axes[0])
    assert np.abs(picture / 255 - image[0].permute(1, 2, 0).numpy()).max() < 0.01
    overlay = drawn(figure.axes[1])[-1]
    assert overlay.shape == (32, 48)
    assert overlay.min() == 0 and overlay.max() == pytest.approx(1)
    assert overlay[-1, -1] == overlay.max() and overlay[0, 0] == 0
    plain, framed = (axis.spines["top"].get_edgecolor() for axis in figure.axes[1:])
    assert plain != framed


@pytest.mark.parametrize("value", [0.0, 5.0, torch.nan])
def test_a_map_with_nothing_to_show_shows_the_image(value):
    figure = panels(torch.rand(1, 3, 8, 8), {"flat": torch.full((1, 1, 2, 2), value)})
    assert len(drawn(figure.axes[1])) == 1


def test_panels_takes_half_precision_and_gradients():
    maps = {"map": torch.rand(1, 1, 2, 2, dtype=torch.bfloat16, requires_grad=True)}
    assert len(panels(torch.rand(1, 3, 8, 8).half(), maps).axes) == 2


@pytest.mark.parametrize(
    ("maps", "rows", "columns"), [(1, 1, 2), (5, 1, 6), (12, 3, 5)]
)
def test_many_maps_take_several_rows(maps, rows, columns):
    named = {f"map {i}": torch.rand(1, 1, 2, 2) for i in range(maps)}
    figure = panels(torch.rand(1, 3, 8, 8), named)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["image", *named]
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == (rows, columns)
