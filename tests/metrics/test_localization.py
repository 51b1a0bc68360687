"""The localization metrics: by hand, against loops, and where they are not defined."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from reference import resize, to_mask

from captum_unioncam.metrics.localization import (
    box_iou,
    boxes_to_masks,
    energy_pointing_game,
    pointing_game,
)


def regions(*rows):
    """Returns bool regions, (N, 1, *size), of nested lists of 0 and 1."""
    return torch.tensor(rows).bool()[:, None]


def boxes_of(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([1, 0, 3, 1], [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]),
        # x from 0.4 to 2.5 is 0 to 3, y from 0.6 to 2.4 is 1 to 2
        ([0.4, 0.6, 2.5, 2.4], [[0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]),
        ([-5, 1, 2, 99], [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]),
        ([-math.inf, 2, math.inf, 3], [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]),
        ([7, 0, 9, 3], [[0] * 4] * 3),  # beside the image
        ([2, 1, 2, 3], [[0] * 4] * 3),  # no width
    ],
)
def test_a_box_covers_whole_pixels_of_the_image(box, expected):
    masks = boxes_to_masks([boxes_of(box)], (3, 4))
    assert masks.dtype == torch.bool
    assert torch.equal(masks, regions(expected))


def test_the_boxes_of_an_example_make_one_region():
    boxes = [boxes_of([0, 0, 2, 1], [1, 0, 2, 2]), torch.zeros(0, 4)]
    masks = boxes_to_masks(boxes, (2, 3))
    assert torch.equal(masks, regions([[1, 1, 0], [0, 1, 0]], [[0] * 3] * 2))
    assert boxes_to_masks([], (2, 3)).shape == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("boxes", "size", "error", "match"),
    [
        ([[[0, 0, 1, 1]]], (3, 4), TypeError, "`boxes` must hold a Tensor .* list at"),
        (
            torch.zeros(2, 4),
            (3, 4),
            ValueError,
            r"`boxes` must hold \(B, 4\) .* \(4,\)",
        ),
        ([torch.zeros(0)], (3, 4), ValueError, r"torch.zeros\(0, 4\)"),
        ([boxes_of([2, 2, 1, 3])], (3, 4), ValueError, r"x0 <= x1 .* \[2.0, 2.0, 1.0"),
        ([boxes_of([0, 0, math.nan, 3])], (3, 4), ValueError, "`boxes` must be x0, y0"),
        ([boxes_of([0, 0, 1, 1])], 4, ValueError, "`size` must be .* got 4"),
        ([boxes_of([0, 0, 1, 1])], (3, 4, 5), ValueError, "`size` must be"),
        ([boxes_of([0, 0, 1, 1])], (0, 4), ValueError, "`size` must be"),
    ],
)
@pytest.mark.parametrize("metric", [False, True])
def test_refuses_boxes_that_are_none(boxes, size, error, match, metric):
    with pytest.raises(error, match=match):
        if metric:
            box_iou(torch.rand(len(boxes), 1, 2, 2), boxes, size)
        else:
            boxes_to_masks(boxes, size)


def test_the_largest_value_is_a_hit_in_the_region_alone():
    maps = torch.tensor([[[[0.0, 9], [3, 4]]], [[[-5, -3], [-2, -4]]]])
    masks = regions([[0, 1], [0, 0]], [[1, 1], [0, 1]])
    assert pointing_game(maps, masks).tolist() == [1, 0]
    assert pointing_game(maps, ~masks).tolist() == [0, 1]


def test_of_equal_largest_values_the_share_inside_counts():
    maps = torch.tensor([[[5.0, 1, 5, 5]], [[0, 2, 2, 0]]])
    masks = regions([1, 1, 0, 0], [1, 1, 0, 1])
    assert pointing_game(maps, masks).tolist() == pytest.approx([1 / 3, 1 / 2])


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1.1, -0.3, 1e20, 3e-20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_in_resizing_does_not_break_ties(value, dtype):
    # Cells of seven pixels have their centres at 3, 10, 17, 24 and 31: pixels 10 to 24
    # are between equal values, and five of these 15 are in the region.
    low = value - abs(value)
    maps = torch.tensor([[[low, value, value, value, low]]], dtype=dtype)
    masks = (torch.arange(35) < 15)[None, None]
    assert pointing_game(maps, masks).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("place", "tolerance", "expected"),
    [
        ((3, 4), 4.9, 0),  # 3, 4, 5
        ((3, 4), 5, 1),
        ((2, 2), 2, 0),  # the square root of 8 is 2.83
        ((2, 2), 2.82, 0),
        ((2, 2), 2.83, 1),
        ((0, 1), 0.9, 0),
        ((0, 1), 1, 1),
        ((4, 5), 1e300, 1),
    ],
)
def test_the_tolerance_is_a_distance_in_a_straight_line(place, tolerance, expected):
    maps, masks = torch.zeros(1, 1, 5, 6), torch.zeros(1, 1, 5, 6, dtype=torch.bool)
    maps[0, 0, 0, 0] = 1
    masks[0, 0][place] = True
    hit = pointing_game(maps, masks, tolerance=tolerance)
    assert hit.tolist() == [expected]
    flipped = pointing_game(maps.flip(2, 3), masks.flip(2, 3), tolerance=tolerance)
    assert flipped.tolist() == [expected]


def test_a_tolerance_does_not_fill_an_empty_region():
    masks = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    assert pointing_game(torch.rand(1, 1, 2, 2), masks, tolerance=99).isnan()


def test_the_energy_is_a_share_of_the_positive_values():
    # (1 + 3) of 1 + 3 + 4 = 8; the two 3s of 12.
    maps = torch.tensor([[[[-2.0, 1], [3, 4]]], [[[3, 3], [6, -1]]]])
    masks = regions([[1, 1], [1, 0]], [[1, 1], [0, 1]])
    assert energy_pointing_game(maps, masks).tolist() == [4 / 8, 6 / 12]


def test_the_energy_is_that_of_the_resized_map():
    # [-9 1] is [0 1] without its negative value, and [0 .25 .75 1] at size four.
    shares = energy_pointing_game(torch.tensor([[[-9.0, 1]]]), regions([0, 0, 1, 1]))
    assert shares.tolist() == pytest.approx([1.75 / 2])


def test_the_energy_of_an_even_map_is_the_regions_share_of_the_image():
    shares = energy_pointing_game(torch.full((1, 1, 2), 7.0), regions([1, 0, 0, 0]))
    assert shares.tolist() == pytest.approx([1 / 4])


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1, 1e38])
def test_the_energy_does_not_depend_on_the_scale(scale):
    maps = torch.tensor([[[1.0, 3, 2, 2]]]) * scale
    shares = energy_pointing_game(maps, regions([1, 1, 0, 0]))
    assert shares.tolist() == pytest.approx([1 / 2])


def test_parts_that_touch_at_a_corner_hang_together():
    # At least half of 9: the three 9s, whose box of six pixels is (0, 0, 3, 2), and the
    # two 5s. The first box shares 4 of 6 + 4 - 4 pixels, the second 2 of 6 + 3 - 2.
    maps = torch.tensor([[9.0, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 0], [5, 5, 0, 0]])
    first, second = [0, 0, 2, 2], [0, 0, 1, 3]
    maps = maps[None, None]
    for boxes, expected in [
        ([first], 4 / 6),
        ([second], 2 / 7),
        ([second, first], 4 / 6),
        ([[0, 3, 2, 4]], 0),  # the smaller part
        ([[0, 0, 3, 2]], 1),
        ([[-7, -3, 3.4, 2.4]], 1),  # once clipped and rounded
    ]:
        iou = box_iou(maps, [boxes_of(*boxes)], (4, 4), threshold=0.5)
        assert iou.tolist() == pytest.approx([expected])


def test_a_pixel_at_the_threshold_is_bright():
    # [2 4 6] scales to [0 .5 1]: the box covers two pixels of three, or one.
    maps, boxes = torch.tensor([[[[2.0, 4, 6]]]]), [boxes_of([0, 0, 3, 1])]
    for threshold, expected in [(0, 1), (0.5, 2 / 3), (0.51, 1 / 3), (1, 1 / 3)]:
        iou = box_iou(maps, boxes, (1, 3), threshold=threshold)
        assert iou.tolist() == pytest.approx([expected])


def test_of_equal_parts_the_first_counts():
    maps = torch.tensor([[[[0.0, 1, 0, 1]]]])
    assert box_iou(maps, [boxes_of([1, 0, 2, 1])], (1, 4)).tolist() == [1]
    assert box_iou(maps, [boxes_of([3, 0, 4, 1])], (1, 4)).tolist() == [0]


def connected_box(bright):
    """Flood fill: the box of the largest part, the first of equals."""
    best, seen = [], set()
    for start in zip(*np.nonzero(bright)):
        part, todo = [], [start] if start not in seen else []
        seen.add(start)
        while todo:
            y, x = todo.pop()
            part.append((y, x))
            for place in itertools.product((y - 1, y, y + 1), (x - 1, x, x + 1)):
                inside = all(0 <= p < s for p, s in zip(place, bright.shape))
                if inside and bright[place] and place not in seen:
                    seen.add(place)
                    todo.append(place)
        best = part if len(part) > len(best) else best
    ys, xs = zip(*best)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def loop_iou(box, other):
    """Counts pixels."""
    pixels = [
        set(itertools.product(range(x0, x1), range(y0, y1)))
        for x0, y0, x1, y1 in (box, other)
    ]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


@pytest.mark.parametrize("size", ["layer", "input"])
@pytest.mark.parametrize("threshold", [0.15, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_match_the_loops(size, threshold, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = (5, 4) if size == "layer" else (13, 11)
    maps = torch.rand(4, 1, *shape, dtype=torch.float64, generator=generator) ** 4
    corners = torch.randint(0, 9, (4, 3, 2), generator=generator)
    boxes = [torch.cat([low, low + 2 + low.flip(0)], 1) for low in corners]
    ious = box_iou(maps, boxes, (13, 11), threshold=threshold)
    for n in range(4):
        bright = to_mask(maps[n, 0].numpy(), (13, 11)) >= threshold
        found = connected_box(bright)
        clipped = boxes[n].clamp(min=0).minimum(torch.tensor([11, 13, 11, 13])).tolist()
        expected = max(loop_iou(found, own) for own in clipped)
        assert ious[n].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("small", [(6,), (4, 5), (2, 3, 3)])
@pytest.mark.parametrize("size", ["layer", "input"])
@pytest.mark.parametrize("tolerance", [0, 1.5, 3])
def test_both_games_match_the_loops_at_every_rank(small, size, tolerance):
    torch.manual_seed(0)
    whole = tuple(2 * length + 1 for length in small)
    shape = small if size == "layer" else whole
    maps = torch.randn(8, 1, *shape, dtype=torch.float64)
    masks = torch.rand(8, 1, *whole) < 0.04
    masks[:, :, -1] |= torch.rand(8, 1, *whole[1:]) < 0.5
    hits = pointing_game(maps, masks, tolerance=tolerance)
    shares = energy_pointing_game(maps, masks)
    for n in range(8):
        array, mask = maps[n, 0].numpy(), masks[n, 0].numpy()
        if not mask.any():
            assert hits[n].isnan() and shares[n].isnan()
            continue
        large, energy = resize(array, whole), resize(np.maximum(array, 0), whole)
        peak = np.unravel_index(large.argmax(), whole)
        near = min(math.dist(peak, place) for place in zip(*np.nonzero(mask)))
        assert hits[n].item() == (near <= tolerance)
        inside = sum(energy[place] for place in zip(*np.nonzero(mask)))
        total = sum(energy.flat)
        assert shares[n].item() == pytest.approx(inside / total, abs=1e-12)
    assert hits.isnan().sum() < 8 and (tolerance == 0 or hits.nansum() > 0)


def scores(maps, boxes, size, tolerance=0):
    """Returns all three metrics, (3, N)."""
    masks = boxes_to_masks(boxes, size)
    return torch.stack(
        [
            pointing_game(maps, masks, tolerance=tolerance),
            energy_pointing_game(maps, masks),
            box_iou(maps, boxes, size),
        ]
    )


BOXES = [
    boxes_of([1, 2, 6, 9]),
    boxes_of([0, 0, 5, 5], [8, 9, 12, 10]),
    boxes_of([10, 10, 12, 12]),
]


@pytest.mark.parametrize("factor", [1, 4])
def test_a_perfect_map_beats_its_inverse(factor):
    boxes = [boxes_of([4, 4, 8, 12]), boxes_of([8, 0, 12, 4])]
    masks = boxes_to_masks(boxes, (12, 12))
    perfect = masks[..., ::factor, ::factor].float()
    best, worst = scores(perfect, boxes, (12, 12)), scores(1 - perfect, boxes, (12, 12))
    assert (best > worst).all() and (best[0] == 1).all() and (worst[0] == 0).all()
    if factor == 1:
        assert (best == 1).all() and (worst[1] == 0).all()


@pytest.mark.parametrize("shape", [(4, 5), (12, 14)])
def test_a_batch_equals_its_examples(shape):
    torch.manual_seed(0)
    maps = torch.randn(3, 1, *shape)
    together = scores(maps, BOXES, (12, 14))
    for n in range(3):
        alone = scores(maps[n : n + 1], BOXES[n : n + 1], (12, 14))
        assert torch.equal(together[:, n : n + 1], alone)
    assert together.shape == (3, 3) and together.isfinite().all()


def test_maps_of_the_layers_size_count_as_resized():
    torch.manual_seed(0)
    maps = torch.rand(3, 1, 4, 5, dtype=torch.float64)
    large = torch.nn.functional.interpolate(maps, (12, 14), mode="bilinear")
    small, resized = scores(maps, BOXES, (12, 14)), scores(large, BOXES, (12, 14))
    assert torch.allclose(small, resized, rtol=0, atol=1e-12)


def test_what_is_not_defined_is_nan_and_leaves_the_others_alone():
    torch.manual_seed(0)
    maps = torch.rand(8, 1, 3, 3)
    maps[1, 0, 0, 0] = torch.nan
    maps[2, 0, 0, 0] = torch.inf
    maps[3, 0, 0, 0] = -torch.inf
    maps[4] = 0.1  # constant, which resizing must not turn into a map
    maps[5] = 0
    maps[6] *= -1  # nothing is positive
    boxes = [boxes_of([0, 0, 4, 4])] * 7 + [boxes_of([9, 9, 12, 12])]
    pointing, energy, iou = scores(maps, boxes, (7, 7)).isnan().tolist()
    assert pointing == [False, True, True, True, True, True, False, True]
    assert energy == [False, True, True, True, False, True, True, True]
    assert iou == pointing


def test_a_map_that_shrinks_to_a_constant_one_is_not_defined():
    maps = torch.tensor([[[0.0, 1, 1, 0, 0, 1, 1, 0]]])  # pixels 1, 2 and 5, 6
    masks = regions([1, 0])
    assert pointing_game(maps, masks).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_coarse_maps_are_counted_in_float32(dtype):
    maps = torch.tensor([[[[0, 1], [2, 5]]]]).to(dtype)
    values = scores(maps, [boxes_of([1, 1, 2, 2])], (2, 2))
    assert values.dtype == torch.float32
    # 5 of 8; at 0.15 of 5, the pixels 1, 2 and 5 fill the image.
    assert values.flatten().tolist() == [1, 0.625, 0.25]


def test_no_examples_give_no_values():
    assert scores(torch.rand(0, 1, 2, 2), [], (4, 4)).shape == (3, 0)


def test_keeps_no_graph_and_changes_nothing():
    torch.manual_seed(0)
    maps = torch.rand(3, 1, 4, 4, requires_grad=True)
    masks = boxes_to_masks(BOXES, (12, 14))
    before, regions_before = maps.detach().clone(), masks.clone()
    assert not scores(maps, BOXES, (12, 14)).requires_grad
    pointing_game(maps, masks, tolerance=3)
    energy_pointing_game(maps, masks)
    assert torch.equal(maps.detach(), before) and torch.equal(masks, regions_before)


@pytest.mark.parametrize("metric", [pointing_game, energy_pointing_game])
@pytest.mark.parametrize(
    ("shape", "masks", "error", "match"),
    [
        (
            (2, 2, 4, 4),
            torch.ones(2, 1, 4, 4).bool(),
            ValueError,
            "`attributions` must",
        ),
        ((2, 4), torch.ones(2, 1, 4, 4).bool(), ValueError, "`attributions` must"),
        ((3, 1, 4, 4), torch.ones(2, 1, 4, 4).bool(), ValueError, r"\(2, 1, \*size\)"),
        ((2, 1, 4, 4), torch.ones(2, 1, 4, 4), TypeError, "`masks` must be bool"),
        (
            (2, 1, 4, 4),
            torch.ones(2, 4, 4).bool(),
            ValueError,
            "`masks` must be of the",
        ),
        (
            (2, 1, 4, 4),
            torch.ones(2, 3, 4, 4).bool(),
            ValueError,
            r"got \(2, 3, 4, 4\)",
        ),
    ],
)
def test_refuses_regions_that_do_not_fit(metric, shape, masks, error, match):
    with pytest.raises(error, match=match):
        metric(torch.rand(shape), masks)


@pytest.mark.parametrize("tolerance", [-1, math.nan, math.inf])
def test_refuses_a_tolerance_that_is_no_distance(tolerance):
    with pytest.raises(ValueError, match=f"`tolerance` must be .* got {tolerance}"):
        pointing_game(torch.rand(1, 1, 2), regions([1, 0]), tolerance=tolerance)


@pytest.mark.parametrize(
    ("shape", "match"),
    [((2, 1, 4, 4), r"`attributions` must .* \(1, 1"), ((1, 1, 4), "two spatial dim")],
)
def test_refuses_maps_without_boxes_of_their_own(shape, match):
    with pytest.raises(ValueError, match=match):
        box_iou(torch.rand(shape), [boxes_of([0, 0, 1, 1])], (4, 4))


@pytest.mark.parametrize("threshold", [-0.1, 1.5, math.nan])
def test_refuses_a_threshold_that_is_no_share(threshold):
    maps, boxes = torch.rand(1, 1, 2, 2), [boxes_of([0, 0, 1, 1])]
    with pytest.raises(ValueError, match=f"`threshold` must be .* got {threshold}"):
        box_iou(maps, boxes, (2, 2), threshold=threshold)


def test_says_what_to_install_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r'pip install "captum-unioncam\[evaluate\]"'):
        box_iou(torch.rand(1, 1, 2, 2), [boxes_of([0, 0, 1, 1])], (2, 2))
