"""The tensor operations on maps, by hand and against numpy."""

import numpy as np
import pytest
import torch
from reference import resize, to_mask

from captum_unioncam import _maps


def test_min_max_scales_each_map_on_its_own():
    maps = torch.tensor([[[1.0, 3], [0, 10]], [[-2, -1], [5, 5]]])
    assert _maps.min_max(maps).tolist() == [[[0, 1], [0, 1]], [[0, 1], [0, 0]]]


def test_min_max_of_tiny_and_huge_ranges_stays_in_bounds():
    maps = torch.tensor([[[0, 1e-45], [1e-30, 3e-30], [-1e38, 1e38]]])
    assert _maps.min_max(maps).tolist() == [[[0, 1]] * 3]


def test_min_max_keeps_nan_in_its_map():
    maps = torch.tensor([[[torch.nan, 1.0], [0, 2]]])
    scaled = _maps.min_max(maps)
    assert scaled[0, 0].isnan().all() and scaled[0, 1].tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(5,), (7, 4), (2, 3, 4)])
@pytest.mark.parametrize("grow", [1, 2, 3.4, 0.6])
def test_masks_match_the_reference_at_every_rank(shape, grow):
    torch.manual_seed(0)
    maps = torch.rand(2, 3, *shape, dtype=torch.float64)
    size = tuple(max(1, int(length * grow)) for length in shape)
    resized, masks = _maps.upsample(maps, size), _maps.to_mask(maps, size)
    for n, k in np.ndindex(2, 3):
        array = maps[n, k].numpy()
        np.testing.assert_allclose(resized[n, k], resize(array, size), atol=1e-12)
        np.testing.assert_allclose(masks[n, k], to_mask(array, size), atol=1e-12)


def test_a_constant_map_gives_the_zero_mask_however_resizing_rounds():
    maps = torch.full((1, 1, 3, 3), 0.1)
    assert not _maps.to_mask(maps, (7, 7)).any()
    assert not _maps.scale_as_mask(maps, (7, 7)).any()


def test_scale_as_mask_resized_is_the_mask():
    torch.manual_seed(0)
    maps = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    scaled = _maps.scale_as_mask(maps, (13, 8))
    assert scaled.amax() > 1  # bilinear resizing does not reach the extremes
    masks = _maps.to_mask(maps, (13, 8))
    assert torch.allclose(_maps.upsample(scaled, (13, 8)), masks, atol=1e-12)


@pytest.mark.parametrize("q", [0, 10, 33.3, 50, 90, 100])
@pytest.mark.parametrize("shape", [(1,), (7,), (4, 5), (2, 3, 2)])
def test_percentile_is_numpys(q, shape):
    torch.manual_seed(0)
    maps = torch.randn(2, 3, *shape, dtype=torch.float64)
    actual = _maps.percentile(maps, q)
    assert actual.shape == (2, 3, *[1] * len(shape))
    expected = np.percentile(maps.flatten(2).numpy(), q, axis=2)
    np.testing.assert_allclose(actual.view(2, 3), expected, rtol=1e-14)


def test_percentile_of_equal_entries_is_exactly_that_entry():
    maps = torch.full((1, 1, 7, 7), 0.1)
    assert (maps >= _maps.percentile(maps, 10)).all()


def test_percentile_has_no_limit_on_the_size_of_the_tensor():
    maps = torch.zeros(1, 17, 1000, 1000)  # torch.quantile refuses 16 million entries
    maps[0, 3, 0, 0] = 1
    assert _maps.percentile(maps, 100).flatten().tolist() == [0] * 3 + [1] + [0] * 13


def test_blend_shows_the_input_and_the_baseline():
    inputs, baselines = torch.tensor([[1.0, 2, 3]]), torch.tensor([[10.0, 10, 10]])
    masks = torch.tensor([[0, 0.5, 1]])
    assert _maps.blend(inputs, masks, baselines).tolist() == [[10, 6, 3]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8])
def test_blend_keeps_the_type_of_the_inputs(dtype):
    inputs = torch.tensor([[100, 201]], dtype=dtype)
    blended = _maps.blend(inputs, torch.tensor([[0.25, 0.25]]), torch.zeros(1, 2))
    assert blended.dtype == dtype
    assert blended.tolist() == [[25, 50 if dtype == torch.uint8 else 50.25]]


@pytest.mark.parametrize("shape", [(9,), (6, 4), (3, 1, 5)])
@pytest.mark.parametrize(("sigma", "radius"), [(1.5, 3), (50, 25)])
def test_blurs_with_mirrored_borders_at_every_rank(shape, sigma, radius):
    torch.manual_seed(0)
    maps = torch.rand(2, 3, *shape, dtype=torch.float64)
    kernel = [np.exp(-0.5 * (o / sigma) ** 2) for o in range(-radius, radius + 1)]
    kernel = np.array(kernel) / sum(kernel)
    blurred = _maps.gaussian_blur(maps, sigma, radius)
    for n, c in np.ndindex(2, 3):
        expected = maps[n, c].numpy()
        for axis, length in enumerate(shape):
            pad = [(radius, radius) if a == axis else (0, 0) for a in range(len(shape))]
            padded = np.pad(expected, pad, mode="reflect" if length > 1 else "edge")
            expected = np.apply_along_axis(np.convolve, axis, padded, kernel, "valid")
        np.testing.assert_allclose(blurred[n, c], expected, rtol=0, atol=1e-12)


def test_blurring_whole_numbers_gives_floats():
    image = torch.full((1, 3, 8, 8), 7, dtype=torch.uint8)
    assert torch.allclose(_maps.gaussian_blur(image, 2, 5), torch.tensor(7.0))
