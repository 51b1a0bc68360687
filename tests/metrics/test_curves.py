"""Insertion and deletion: exact areas on sums, ties, and the loops of the paper."""

import numpy as np
import pytest
import torch
from nets import CASES
from reference import Model, resize

from captum_unioncam import _maps
from captum_unioncam.metrics import deletion, insertion


def total(image):
    """Scores an image by its sum."""
    return image.flatten(1).sum(1, keepdim=True)


def fixed():
    """An image 1 2 3 4 and a map that ranks its pixels 1, 2, 3, 4."""
    return torch.tensor([[[1.0, 2, 3, 4]]]), torch.tensor([[[9.0, 5, 2, -1]]])


def test_deletion_of_a_sum_by_hand():
    # 10, then without 1, 2, 3, 4: 9, 7, 4, 0. The area is
    # (10 / 2 + 9 + 7 + 4 + 0 / 2) / 4 = 6.25.
    area, curve = deletion(total, *fixed(), steps=4, return_curve=True)
    assert curve.tolist() == [[10, 9, 7, 4, 0]]
    assert area.tolist() == [6.25]


def test_insertion_of_a_sum_by_hand():
    # 0, then with 1, 2, 3, 4: 1, 3, 6, 10. (0 / 2 + 1 + 3 + 6 + 10 / 2) / 4 = 3.75.
    area, curve = insertion(total, *fixed(), baselines=0, steps=4, return_curve=True)
    assert curve.tolist() == [[0, 1, 3, 6, 10]]
    assert area.tolist() == [3.75]


def test_a_pixel_comes_and_goes_to_the_baseline():
    # Over a baseline of 1: 4, then + 0, + 1, + 2, + 3.
    inputs, maps = fixed()
    _, curve = insertion(total, inputs, maps, baselines=1, steps=4, return_curve=True)
    assert curve.tolist() == [[4, 4, 5, 7, 10]]
    _, curve = deletion(total, inputs, maps, baselines=1, steps=2, return_curve=True)
    assert curve.tolist() == [[10, 9 - 1 + 1, 4]]


def test_insertion_starts_from_the_blurred_image():
    net, inputs = CASES[0].build(0)
    maps = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    blurred = _maps.gaussian_blur(inputs, 5, 5)
    expected = insertion(net, inputs, maps, 1, blurred, steps=5)
    assert torch.equal(insertion(net, inputs, maps, 1, steps=5), expected)
    assert not torch.allclose(insertion(net, inputs, maps, 1, 0, steps=5), expected)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("size", ["layer", "input"])
def test_matches_the_loops_at_every_rank(case, size):
    net, inputs = case.build(5)
    small = tuple((length + 1) // 2 for length in inputs.shape[2:])
    shape = small if size == "layer" else inputs.shape[2:]
    maps = torch.rand(3, 1, *shape, dtype=torch.float64)
    targets, steps = [2, 0, 1], 6
    _, shown = insertion(
        net, inputs, maps, targets, 0.25, steps=steps, return_curve=True
    )
    _, left = deletion(net, inputs, maps, targets, steps=steps, return_curve=True)
    for i, target in enumerate(targets):
        image, model = inputs[i].numpy(), Model(net, net.layer, target)
        large = resize(maps[i, 0].numpy(), image.shape[1:])
        assert len(np.unique(large)) == large.size  # ties have a test of their own
        order = np.argsort(-large.ravel())
        for step in range(steps + 1):
            touched = order[: round(step * large.size / steps)]
            inserted = np.full_like(image, 0.25).reshape(len(image), -1)
            inserted[:, touched] = image.reshape(len(image), -1)[:, touched]
            deleted = image.copy().reshape(len(image), -1)
            deleted[:, touched] = 0
            for curve, expected in ((shown, inserted), (left, deleted)):
                score = model.confidence([expected.reshape(image.shape)])
                assert curve[i, step].item() == pytest.approx(score, abs=1e-10)


def test_a_perfect_map_beats_its_inverse():
    torch.manual_seed(0)
    inputs = torch.rand(4, 2, 8, 8)
    perfect = inputs.sum(1, keepdim=True)
    good, bad = (deletion(total, inputs, m, steps=9) for m in (perfect, -perfect))
    assert (good < bad).all()
    good, bad = (insertion(total, inputs, m, 0, steps=9) for m in (perfect, -perfect))
    assert (good > bad).all()


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_equal_pixels_come_in_an_order_that_favours_no_place(value):
    # Half of a constant map's pixels are shown: as many from every part of the image.
    inputs = torch.ones(2, 1, 40, 40)
    seen = []

    def forward_func(image):
        seen.append(image)
        return total(image)

    insertion(
        forward_func, inputs, torch.full((2, 1, 5, 5), value), baselines=0, steps=2
    )
    halves = [image for batch in seen for image in batch if 0 < image.sum() < 1600]
    assert len(halves) == 2 and torch.equal(halves[0], halves[1])
    quarters = halves[0].reshape(2, 20, 2, 20).sum((1, 3))
    assert quarters.sum() == 800
    assert (quarters - 200).abs().max() < 40  # three standard deviations are 30


def test_all_channels_of_a_pixel_go_together():
    torch.manual_seed(0)
    inputs = torch.rand(1, 3, 6, 6) + 1
    seen = []

    def forward_func(image):
        seen.append(image)
        return total(image)

    deletion(forward_func, inputs, torch.rand(1, 1, 3, 3), steps=5)
    for batch in seen:
        kept = batch != 0
        assert torch.equal(kept.all(1), kept.any(1))


def test_a_batch_gives_what_its_examples_give_alone():
    net, inputs = CASES[0].build(2)
    maps = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    for metric in (insertion, deletion):
        batch = metric(net, inputs, maps, [0, 1, 2], steps=7)
        alone = [
            metric(net, inputs[i : i + 1], maps[i : i + 1], i, steps=7)
            for i in range(3)
        ]
        assert torch.allclose(batch, torch.cat(alone), rtol=0, atol=1e-12)
        for chunk in (1, 2, 50):
            chunked = metric(
                net, inputs, maps, [0, 1, 2], steps=7, perturbations_per_eval=chunk
            )
            assert torch.allclose(batch, chunked, rtol=0, atol=1e-12)


def test_memory_is_bounded_by_the_chunk_not_by_the_steps():
    sizes = []

    def forward_func(image):
        sizes.append(len(image))
        return total(image)

    inputs, maps = torch.rand(2, 1, 30), torch.rand(2, 1, 30)
    deletion(forward_func, inputs, maps, steps=25, perturbations_per_eval=4)
    assert max(sizes) == 8 and sum(sizes) == 2 * (25 + 2)


def test_more_steps_than_pixels_are_allowed():
    area, curve = deletion(total, *fixed(), steps=8, return_curve=True)
    assert curve[0, ::2].tolist() == [10, 9, 7, 4, 0]
    assert curve.shape == (1, 9) and 0 < area.item() < 10


def test_a_map_that_is_not_finite_has_no_area():
    inputs = torch.ones(2, 1, 4)
    maps = torch.tensor([[[0.0, torch.inf, 1, 2]], [[0, 3, 1, 2]]])
    for metric in (insertion, deletion):
        areas = metric(total, inputs, maps, steps=4)
        assert areas[0].isnan() and areas[1].isfinite()


@pytest.mark.parametrize(
    ("steps", "error"),
    [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)],
)
@pytest.mark.parametrize("metric", [insertion, deletion])
def test_refuses_steps_that_are_not_positive_ints(metric, steps, error):
    with pytest.raises(error, match="`steps` must be a positive int, got"):
        metric(total, *fixed(), steps=steps)


def test_refuses_maps_that_do_not_fit():
    inputs, maps = fixed()
    with pytest.raises(ValueError, match=r"`attributions` must .* got \(1, 2, 4\)"):
        deletion(total, inputs, maps.expand(1, 2, 4))
