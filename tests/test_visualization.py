"""Pictures: what is drawn, and that degenerate maps draw."""

import itertools

import matplotlib
import numpy as np
import pytest
import torch
from captum.attr import visualization as captum_visualization
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from captum_unioncam.evaluation.methods import METHODS
from captum_unioncam.visualization import overlay_images, overlays, panels

matplotlib.use("Agg")

# Captum and matplotlib warn of what they had to repair.
pytestmark = pytest.mark.filterwarnings("error")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TITLES = [method.title for method in METHODS.values()]


@pytest.fixture(autouse=True)
def no_figure_is_shown_or_left_open(monkeypatch):
    def show(*args, **kwargs):
        raise AssertionError("a figure was shown")

    monkeypatch.setattr(pyplot, "show", show)
    monkeypatch.setattr(Figure, "show", show)
    torch.manual_seed(0)
    before = pyplot.get_fignums()
    yield
    assert pyplot.get_fignums() == before


def normalised(images, mean=MEAN, std=STD):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (images - mean) / std


def picture(axis):
    """Returns the image that a panel shows, (H, W, 3), in [0, 1]."""
    shown = drawn(axis)[0]
    return shown / 255 if shown.dtype == np.uint8 else shown


def pixels(image):
    return image.permute(1, 2, 0).numpy()


def named_maps(examples, count, size=7):
    return {title: torch.rand(examples, 1, size, size) for title in TITLES[:count]}


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
    figure = panels(
        torch.rand(1, 3, 8, 8), {"constant": torch.full((1, 1, 2, 2), value)}
    )
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


# Images


@pytest.mark.parametrize("statistics", ["tuple", "list", "tensor", "(1, 3, 1, 1)"])
def test_normalised_images_are_drawn_as_they_were(statistics):
    images = torch.rand(2, 3, 6, 8)
    make = {
        "tuple": tuple,
        "list": list,
        "tensor": torch.tensor,
        "(1, 3, 1, 1)": lambda values: torch.tensor(values).view(1, 3, 1, 1),
    }[statistics]
    options = {"mean": make(MEAN), "std": make(STD)}
    maps = torch.zeros(2, 1, 2, 2)
    single = overlays(normalised(images), maps, **options).axes
    several = panels(normalised(images), {"map": maps}, **options).axes
    for number, image in enumerate(images):
        for axis in (single[number], *several[2 * number : 2 * number + 2]):
            assert np.abs(picture(axis) - pixels(image)).max() <= 1 / 255


def test_the_image_below_an_overlay_is_un_normalised_too():
    """Captum draws it in grey under the colours of the map."""
    images, maps = torch.rand(1, 3, 6, 8), torch.rand(1, 1, 3, 4)
    plain, undone = (
        drawn(overlays(inputs, maps, **options).axes[0])
        for inputs, options in [
            (images, {}),
            (normalised(images), {"mean": MEAN, "std": STD}),
        ]
    )
    assert len(plain) == len(undone) == 2
    for one, other in zip(plain, undone, strict=True):
        np.testing.assert_allclose(
            one.astype(float), other.astype(float), atol=1 if one.max() > 1 else 1e-5
        )


def test_one_number_is_for_all_channels():
    images = torch.rand(1, 3, 4, 4)
    maps = torch.zeros(1, 1, 2, 2)
    figure = overlays((images - 0.5) / 0.25, maps, mean=0.5, std=0.25)
    assert np.abs(picture(figure.axes[0]) - pixels(images[0])).max() <= 1 / 255
    figure = overlays(images - 0.5, maps, mean=0.5)
    assert np.abs(picture(figure.axes[0]) - pixels(images[0])).max() <= 1 / 255
    figure = overlays(images / 0.5, maps, std=[0.5, 0.5, 0.5])
    assert np.abs(picture(figure.axes[0]) - pixels(images[0])).max() <= 1 / 255


def test_grey_images_are_drawn_in_grey():
    grey = torch.rand(2, 1, 5, 7)
    inputs = (grey - 0.1307) / 0.3081
    figure = overlays(inputs, torch.zeros(2, 1, 2, 2), mean=0.1307, std=[0.3081])
    for axis, image in zip(figure.axes, grey, strict=True):
        expected = pixels(image.expand(3, -1, -1))
        assert np.abs(picture(axis) - expected).max() <= 1 / 255


def test_what_rounding_adds_is_cut_off():
    image = torch.tensor([-0.005, 0.0, 1.0, 1.005]).view(1, 1, 2, 2)
    shown = picture(overlays(image, torch.zeros(1, 1, 1, 1)).axes[0])
    assert shown.min() == 0 and shown.max() == 1


@pytest.mark.parametrize("kind", ["half", "bfloat16", "double", "grad", "view"])
def test_inputs_of_any_type_are_left_as_they_are(kind):
    images = {
        "half": lambda x: x.half(),
        "bfloat16": lambda x: x.bfloat16(),
        "double": lambda x: x.double(),
        "grad": lambda x: x.requires_grad_(),
        "view": lambda x: x.to(memory_format=torch.channels_last),
    }[kind](torch.rand(1, 3, 6, 8))
    maps = torch.rand(1, 1, 3, 4).to(images.dtype)
    before = images.detach().clone(), maps.clone()
    figure = panels(images, {"map": maps}, mean=0.0, std=1.0)
    assert np.abs(picture(figure.axes[0]) - pixels(before[0][0].float())).max() < 0.01
    assert torch.equal(images, before[0]) and torch.equal(maps, before[1])


# Maps


def test_an_overlay_is_the_mask_of_its_map():
    maps = torch.tensor([[[[-2.0, 0], [1, 2]]], [[[5.0, 5], [5, 6]]]])
    figure = overlays(torch.rand(2, 3, 8, 8), maps, titles=["one", "two"])
    assert [axis.get_title() for axis in figure.axes] == ["one", "two"]
    for axis, own in zip(figure.axes, maps, strict=True):
        large = torch.nn.functional.interpolate(
            own[None], (8, 8), mode="bilinear", align_corners=False
        )[0, 0]
        expected = (large - large.min()) / (large.max() - large.min())
        np.testing.assert_allclose(drawn(axis)[-1], expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, torch.nan, torch.inf])
@pytest.mark.parametrize("color_bar", [False, True])
def test_a_blank_map_does_not_blank_the_others(value, color_bar):
    images, maps = torch.rand(3, 3, 8, 8), torch.rand(3, 1, 2, 2)
    maps[1] = value
    figure = overlays(images, maps, color_bar=color_bar)
    axes = [axis for axis in figure.axes if axis.get_subplotspec()]
    assert [len(drawn(axis)) for axis in axes[:3]] == [2, 1, 2]
    assert np.abs(picture(axes[1]) - pixels(images[1])).max() <= 1 / 255


def test_a_map_that_is_nan_at_one_position_is_blank():
    maps = torch.rand(1, 1, 4, 4)
    maps[0, 0, 1, 2] = torch.nan
    assert len(drawn(overlays(torch.rand(1, 3, 8, 8), maps).axes[0])) == 1


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e20])
def test_maps_of_any_scale_are_drawn(scale):
    maps = torch.tensor([[[[0.0, 1], [2, 4]]]])
    plain = drawn(overlays(torch.ones(1, 3, 8, 8), maps).axes[0])[-1]
    scaled = drawn(overlays(torch.ones(1, 3, 8, 8), scale * maps).axes[0])[-1]
    np.testing.assert_allclose(scaled, plain, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 5), (9, 9), (16, 24), (8, 12)])
def test_maps_of_any_size_are_drawn(size):
    figure = overlays(torch.rand(1, 3, 8, 12), torch.rand(1, 1, *size))
    assert drawn(figure.axes[0])[-1].shape == (8, 12)


def test_captum_draws():
    """No colour maps of our own: the panels are those of Captum's function."""
    images, maps = torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8)
    own = overlays(images, maps).axes[0].images[-1]
    figure, axis = captum_visualization.visualize_image_attr(
        pixels(maps[0]),
        pixels(images[0]),
        "blended_heat_map",
        "positive",
        cmap=own.get_cmap().name,
        use_pyplot=False,
    )
    theirs = axis.images[-1]
    assert own.get_cmap() == theirs.get_cmap()
    assert own.get_alpha() == theirs.get_alpha()
    assert own.get_clim() == theirs.get_clim()


# Panels and grids


@pytest.mark.parametrize(
    ("images", "rows", "columns"), [(1, 1, 1), (6, 1, 6), (7, 2, 4), (13, 3, 5)]
)
def test_overlays_fill_rows_of_six_at_most(images, rows, columns):
    figure = overlays(torch.rand(images, 3, 8, 8), torch.rand(images, 1, 2, 2))
    assert len(figure.axes) == images
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == (rows, columns)


@pytest.mark.parametrize("count", [0, 1, 12])
def test_several_images_have_a_row_each_and_methods_a_column(count):
    images, maps = torch.rand(3, 3, 8, 8), named_maps(3, count)
    figure = panels(images, maps, list(maps)[:1])
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == (3, 1 + count)
    assert len(figure.axes) == 3 * (1 + count)
    rows = [figure.axes[i * (1 + count) : (i + 1) * (1 + count)] for i in range(3)]
    assert [axis.get_title() for axis in rows[0]] == ["image", *maps]
    for number, row in enumerate(rows):
        assert np.abs(picture(row[0]) - pixels(images[number])).max() <= 1 / 255
        for axis, title in zip(row[1:], maps, strict=True):
            alone = overlays(images[number : number + 1], maps[title][number][None])
            np.testing.assert_array_equal(drawn(axis)[-1], drawn(alone.axes[0])[-1])
        edges = [axis.spines["left"].get_edgecolor() for axis in row]
        assert all(edge != edges[0] for edge in edges[1:2])
        assert all(edge == edges[0] for edge in edges[2:])


@pytest.mark.parametrize("color_bar", [False, True])
def test_a_colour_bar_comes_on_request(color_bar):
    images, maps = torch.rand(2, 3, 8, 8), named_maps(2, 2)
    maps[TITLES[1]][1] = 0
    figure = panels(images, maps, color_bar=color_bar)
    assert len(figure.axes) == 6 + color_bar  # one for all
    assert len(overlays(images, maps[TITLES[0]], color_bar=color_bar).axes) == (
        2 + color_bar
    )


def test_there_is_no_colour_bar_where_all_maps_are_blank():
    figure = overlays(torch.rand(2, 3, 8, 8), torch.zeros(2, 1, 2, 2), color_bar=True)
    assert len(figure.axes) == 2


def overlapping(boxes):
    return [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1
        and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


@pytest.mark.parametrize("color_bar", [False, True])
@pytest.mark.parametrize(
    ("images", "count", "size"),
    [
        (1, 1, (224, 224)),
        (1, 12, (224, 224)),
        (3, 2, (224, 224)),
        (2, 12, (224, 224)),
        (1, 12, (300, 120)),
        (2, 12, (300, 120)),
        (1, 12, (120, 300)),
    ],
)
def test_no_text_overlaps_or_leaves_the_figure(images, count, size, color_bar):
    figure = panels(
        torch.rand(images, 3, *size), named_maps(images, count), color_bar=color_bar
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [
        text
        for axis in figure.axes
        for text in (axis.title, *axis.get_xticklabels(), *axis.get_yticklabels())
        if text.get_text() and text.get_visible()
    ]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    pictures = [
        ("a panel", axis.get_window_extent())
        for axis in figure.axes
        if axis.get_subplotspec()
    ]
    assert not overlapping(boxes)
    for text in boxes:
        assert not any(overlapping([text, panel]) for panel in pictures), text
    width, height = canvas.get_width_height()
    for text, box in boxes:
        assert -1 <= box.x0 and box.x1 <= width + 1, text
        assert -1 <= box.y0 and box.y1 <= height + 1, text


@pytest.mark.parametrize("color_bar", [False, True])
@pytest.mark.parametrize(("images", "count"), [(1, 1), (1, 12), (2, 12)])
def test_the_panels_of_a_row_are_in_line(images, count, color_bar):
    """The image alone, a blank map and a map are drawn at the same size."""
    maps = named_maps(images, count)
    if count > 1:
        maps[TITLES[1]][:] = 0
    figure = panels(torch.rand(images, 3, 64, 64), maps, color_bar=color_bar)
    FigureCanvasAgg(figure).draw()
    rows = {}
    for axis in figure.axes:
        if axis.get_subplotspec():
            box = axis.get_window_extent()
            row = axis.get_subplotspec().rowspan.start
            rows.setdefault(row, []).append((box.y0, box.y1, box.width))
    for boxes in rows.values():
        np.testing.assert_allclose(boxes, [boxes[0]] * len(boxes), atol=2)


@pytest.mark.parametrize("count", [1, 12])
def test_figures_save(tmp_path, count):
    figure = panels(torch.rand(2, 3, 64, 64), named_maps(2, count), color_bar=True)
    figure.savefig(tmp_path / "maps.png")
    assert (tmp_path / "maps.png").stat().st_size > 1000
    width, height = figure.get_size_inches()
    assert 1 < width <= 20 and 1 < height


# Errors


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 2, 8, 8), (1, 4, 8, 8), (1, 3, 8)])
def test_inputs_that_are_no_images_are_refused(shape):
    inputs = torch.rand(shape)
    maps = torch.rand(len(inputs), 1, 2, 2)
    for draw in (lambda: overlays(inputs, maps), lambda: panels(inputs, {"a": maps})):
        with pytest.raises(ValueError, match=r"`inputs` must be images of .*\(N, 3, H"):
            draw()


def test_an_empty_batch_is_refused():
    inputs, maps = torch.rand(0, 3, 8, 8), torch.rand(0, 1, 2, 2)
    for draw in (lambda: overlays(inputs, maps), lambda: panels(inputs, {"a": maps})):
        with pytest.raises(ValueError, match="`inputs` must hold at least one image"):
            draw()


@pytest.mark.parametrize(
    "inputs",
    [
        normalised(torch.rand(1, 3, 8, 8)),
        255 * torch.rand(1, 3, 8, 8),
        torch.full((1, 3, 8, 8), torch.nan),
        torch.randint(2, 256, (1, 3, 8, 8), dtype=torch.uint8),
    ],
)
def test_images_out_of_range_ask_for_mean_and_std(inputs):
    with pytest.raises(
        ValueError, match=r"`inputs` must be in \[0, 1\], got .* `mean`"
    ):
        overlays(inputs, torch.rand(1, 1, 2, 2))


def test_statistics_of_other_channels_are_refused():
    inputs, maps = torch.rand(1, 3, 8, 8), torch.rand(1, 1, 2, 2)
    with pytest.raises(ValueError, match="`mean` must be one number, .* 3 .*, got 2"):
        overlays(inputs, maps, mean=[0.5, 0.5])
    with pytest.raises(ValueError, match="`std` must be one number, .* 1 .*, got 3"):
        panels(inputs[:, :1], {"a": maps}, mean=0.5, std=STD)


@pytest.mark.parametrize(
    "shape", [(1, 1, 2, 2), (3, 1, 2, 2), (2, 3, 2, 2), (2, 2, 2), (2, 1, 2)]
)
def test_maps_of_other_shapes_are_refused_by_name(shape):
    inputs = torch.rand(2, 3, 8, 8)
    with pytest.raises(
        ValueError, match=r"`attributions`: maps must be \(2, 1, h, w\)"
    ):
        overlays(inputs, torch.rand(shape))
    maps = {"good": torch.rand(2, 1, 2, 2), "bad": torch.rand(shape)}
    with pytest.raises(ValueError, match=r"`bad`: maps must be \(2, 1, h, w\)"):
        panels(inputs, maps)


def test_titles_are_one_for_each_image():
    inputs, maps = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 2, 2)
    for titles in ([], ["one"], ["one", "two", "three"]):
        with pytest.raises(ValueError, match="`titles` must be one for each of 2 im"):
            overlays(inputs, maps, titles)


def test_marked_titles_are_titles():
    inputs, maps = torch.rand(1, 3, 8, 8), {"one": torch.rand(1, 1, 2, 2)}
    with pytest.raises(
        ValueError, match=r"`marked` must be titles .* got \['two'\]; th"
    ):
        panels(inputs, maps, ["one", "two"])
    with pytest.raises(ValueError, match="`marked` must be titles of `maps`"):
        panels(inputs, maps, "one")


# What a picture does not show by itself


def texts_of(axis):
    """Returns what is written on a panel."""
    return [text.get_text() for text in axis.texts]


def note_of(values):
    (axis,) = overlays(torch.rand(1, 3, 20, 20), values).axes
    (note,) = texts_of(axis) or [""]
    return note


@pytest.mark.parametrize("value", [0.0, 0.5, -1.0])
def test_a_constant_map_says_so(value):
    assert note_of(torch.full((1, 1, 5, 5), value)) == "the map is constant"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_map_that_is_not_finite_says_so(value):
    maps = torch.rand(1, 1, 5, 5)
    maps[0, 0, 2, 2] = value
    assert note_of(maps) == "the map is not finite"


def test_a_signed_map_says_its_range():
    """As Integrated Gradients of a grey image: zero is in the middle of the colours."""
    maps = torch.linspace(-0.25, 1.5, 25).view(1, 1, 5, 5)
    assert note_of(maps) == "from -0.25 to 1.5"
    assert note_of(maps.clamp(0)) == ""
    assert note_of(maps.half()) == "from -0.25 to 1.5"


def test_notes_are_of_their_own_panels():
    image, maps = torch.rand(1, 3, 20, 20), torch.rand(1, 1, 5, 5)
    figure = panels(image, {"flat": maps * 0, "map": maps, "signed": maps - 0.5})
    shown, flat, plain, signed = figure.axes
    assert texts_of(shown) == [] and texts_of(plain) == []
    assert texts_of(flat) == ["the map is constant"]
    assert texts_of(signed)[0].startswith("from -0.")


def placed(figure):
    """Returns the figure's size, and where its titles and notes are, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for axis in figure.axes for text in (axis.title, *axis.texts)]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    return canvas.get_width_height(), boxes


@pytest.mark.parametrize(
    ("count", "lines", "size"),
    [
        (1, 2, (224, 224)),
        (2, 2, (120, 300)),
        (4, 2, (224, 224)),
        (5, 3, (224, 224)),
    ],
)
def test_no_line_of_a_title_is_cut_off(count, lines, size):
    titles = ["\n".join(["golden retriever", "0.93", "layer4"][:lines])] * count
    images, maps = torch.rand(count, 3, *size), torch.rand(count, 1, 7, 7)
    named = {f"{i}\n" * (lines - 1) + "map": maps[:1] for i in range(count)}
    for figure in (overlays(images, maps, titles), panels(images[:1], named)):
        (width, height), boxes = placed(figure)
        assert boxes
        for box in boxes:
            assert -1 <= box.x0 and box.x1 <= width + 1
            assert -1 <= box.y0 and box.y1 <= height + 1


@pytest.mark.parametrize("count", [1, 3, 6])
def test_notes_stay_in_their_panels(count):
    figure = overlays(torch.rand(count, 3, 64, 64), torch.zeros(count, 1, 7, 7))
    FigureCanvasAgg(figure).draw()
    for axis in figure.axes:
        (note,), panel = axis.texts, axis.get_window_extent()
        box = note.get_window_extent()
        assert panel.x0 <= box.x0 and box.x1 <= panel.x1
        assert panel.y0 <= box.y0 and box.y1 <= panel.y1


# Names, colours and pixels


def test_rows_have_names():
    images, maps = torch.rand(3, 3, 64, 64), named_maps(3, 2)
    names = ["282 tiger cat", "207 golden retriever of a very long name, 0.93", "one"]
    figure = panels(images, maps, names=names)
    assert len(figure.axes) == 9
    shown = [axis.get_ylabel() for axis in figure.axes]
    assert [" ".join(name.split()) for name in shown[::3]] == names
    assert not any(shown[1::3] + shown[2::3])
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    boxes = [(a.get_ylabel(), a.yaxis.label.get_window_extent()) for a in figure.axes]
    boxes = [(name, box) for name, box in boxes if name]
    assert not overlapping(boxes)
    for name, box in boxes:
        assert -1 <= box.x0 and box.x1 <= width + 1, name
        assert -1 <= box.y0 and box.y1 <= height + 1, name
        panels_of = [("panel", a.get_window_extent()) for a in figure.axes]
        assert not any(overlapping([(name, box), panel]) for panel in panels_of)


def test_the_name_of_a_single_image_is_left_of_its_first_row():
    figure = panels(torch.rand(1, 3, 8, 8), named_maps(1, 7), names=["cat"])
    assert [axis.get_ylabel() for axis in figure.axes] == ["cat", *[""] * 7]


@pytest.mark.parametrize("names", [[], ["one"], "ab", ["one", "two", "three"]])
def test_names_are_one_for_each_image(names):
    with pytest.raises(ValueError, match="`names` must be one for each of 2 images"):
        panels(torch.rand(2, 3, 8, 8), named_maps(2, 1), names=names)


def test_an_overlay_image_is_the_image_under_the_colours_of_its_mask():
    images = torch.tensor([0.0, 0.2, 0.6, 1.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    maps = torch.tensor([[[[0.0, 2], [4, 1]]]])
    found = overlay_images(images, maps, colormap="gray", alpha=0.25)
    assert found.dtype == np.uint8 and found.shape == (1, 2, 2, 3)
    # 255 * (0.75 * image + 0.25 * mask), of the masks 0, 1/2, 1 and 1/4.
    grey = [0, round(255 * 0.275), round(255 * 0.7), round(255 * 0.8125)]
    assert np.abs(found[0, ..., 0].ravel() - np.array(grey)).max() <= 1
    assert (found == found[..., :1]).all()


def test_overlay_images_have_the_size_of_the_images_and_their_colours():
    images, maps = torch.rand(2, 3, 30, 20), torch.rand(2, 1, 3, 2)
    plain = (255 * images).round().byte().permute(0, 2, 3, 1).numpy()
    bare = overlay_images(normalised(images), maps, mean=MEAN, std=STD, alpha=0)
    assert np.abs(bare.astype(int) - plain).max() <= 1
    colours = overlay_images(images, maps, alpha=1)
    axis, _ = overlays(images, maps).axes
    mask = drawn(axis)[-1]
    expected = 255 * matplotlib.colormaps["jet"](mask)[..., :3]
    assert np.abs(colours[0] - expected).max() <= 1
    grey = overlay_images(images[:, :1], maps, alpha=0)
    assert (grey == plain[..., :1]).all()
    assert overlay_images(images[:0], maps[:0]).shape == (0, 30, 20, 3)


@pytest.mark.parametrize("value", [0.0, 3.0, torch.nan, torch.inf])
def test_a_blank_map_leaves_the_pixels_of_its_image(value):
    images, maps = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 2, 2)
    maps[1] = value
    plain = (255 * images).round().byte().permute(0, 2, 3, 1).numpy()
    found = overlay_images(images, maps)
    assert (found[1] == plain[1]).all() and not (found[0] == plain[0]).all()


def test_figures_have_the_colours_that_they_are_given():
    images, maps = torch.rand(1, 3, 8, 8), torch.rand(1, 1, 2, 2)
    options = {"colormap": "viridis", "alpha": 0.75}
    for axis in (
        overlays(images, maps, **options).axes[0],
        panels(images, {"map": maps}, **options).axes[1],
    ):
        assert axis.images[-1].get_cmap().name == "viridis"
        assert axis.images[-1].get_alpha() == 0.75


@pytest.mark.parametrize("draw", [overlays, overlay_images])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"colormap": "virids"},
            "`colormap` must be .*'virids'; did you mean 'viridis",
        ),
        ({"alpha": 1.5}, r"`alpha` must be a finite number in \[0, 1\], got 1.5"),
        (
            {"mean": 0.9, "std": 0.5},
            r"`inputs` must be in \[0, 1\] after undoing `mean` and `std`, got values",
        ),
    ],
)
def test_wrong_colours_and_statistics_are_refused(draw, options, message):
    with pytest.raises(ValueError, match=message):
        draw(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 2, 2), **options)
