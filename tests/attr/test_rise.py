"""RISE: masks by loops, a mean by hand, and what it does with odd inputs."""

import math

import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel
from nets import Counted
from reference import resize
from torch import nn

from captum_unioncam import RISE
from captum_unioncam.attr.rise import RandomMasks

EXACT = {"rtol": 0, "atol": 1e-6}  # the masks are float32


def reference_masks(masks, size):
    """The masks, by loops: grids resized linearly, and cropped at their offsets."""
    grids, shifts = masks._grids[:, 0].double().numpy(), masks._shifts.numpy()
    result = []
    for grid, shift in zip(grids, shifts, strict=True):
        cells = [math.ceil(side / grid.shape[0]) for side in size]
        large = resize(grid, [(grid.shape[0] + 1) * cell for cell in cells])
        crop = []
        for offset, cell, side in zip(shift, cells, size, strict=True):
            start = int(np.float32(offset) * np.float32(cell))
            assert 0 <= start < cell
            crop.append(slice(start, start + side))
        result.append(large[tuple(crop)])
    return np.stack(result)


def reference(model, image, target, masks, probability, baseline=0.0):
    """The map of one image, by a loop over masks."""
    total = 0
    made = reference_masks(masks, image.shape[1:])
    for mask in made:
        shown = mask * image + (1 - mask) * baseline
        score = model(torch.from_numpy(shown)[None]).softmax(1)[0, target].item()
        total = total + score * mask
    return total / (len(made) * probability)


def net(rank=2, size=(6, 5, 4)):
    torch.manual_seed(0)
    count = 2 * math.prod(size[:rank])
    return nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(count, 3)).double().eval()


def images(rank=2, size=(6, 5, 4)):
    generator = torch.Generator().manual_seed(1)
    shape = (3, 2, *size[:rank])
    return torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("baseline", [0.0, 0.4])
def test_a_map_is_the_mean_of_the_masks_under_their_scores(rank, baseline):
    model, inputs = net(rank), images(rank)
    maps = RISE(model).attribute(
        inputs, [0, 2, 1], num_masks=9, grid=2, probability=0.6, baselines=baseline
    )
    assert maps.shape == (3, 1, *inputs.shape[2:]) and maps.dtype == torch.float64
    masks = RandomMasks(9, 2, rank, 0.6, None)
    for i, target in enumerate([0, 2, 1]):
        expected = reference(model, inputs[i].numpy(), target, masks, 0.6, baseline)
        np.testing.assert_allclose(maps[i, 0], expected, **EXACT)


def test_hand_worked_mean(monkeypatch):
    # The masks [1 0; 1 0], [1 1; 0 0], [0 0; 1 1] with the scores .8, .6 and .2: the
    # sums [1.4 .6; 1 .2] over 3 masks and a probability of 1/2.
    given = torch.tensor([[[1, 0], [1, 0]], [[1, 1], [0, 0]], [[0, 0], [1, 1]]])
    scores = torch.tensor([0.8, 0.6, 0.2], dtype=torch.float64)

    def made(self, numbers, size):
        return given[numbers, None].float()

    def model(image):  # ones under a mask: which one it is
        same = (image[:, :1].double() == given).flatten(2).all(2)  # (P, 3)
        return (same * scores).sum(1, keepdim=True)

    monkeypatch.setattr(RandomMasks, "of", made)
    inputs = torch.ones(1, 1, 2, 2, dtype=torch.float64)
    maps = RISE(model).attribute(inputs, num_masks=3)
    expected = torch.tensor([[1.4, 0.6], [1.0, 0.2]], dtype=torch.float64) / 1.5
    torch.testing.assert_close(maps[0, 0], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "side, grid, cell, enlarged", [(224, 7, 32, 256), (224, 8, 28, 252), (4, 2, 2, 6)]
)
def test_the_geometry_is_the_authors(side, grid, cell, enlarged, monkeypatch):
    sizes = []

    def upsample(maps, size):
        sizes.append(tuple(size))
        return torch.arange(size[0] * 1.0).expand(len(maps), 1, -1)

    monkeypatch.setattr("captum_unioncam.attr.rise.upsample", upsample)
    masks = RandomMasks(500, grid, 1, 0.5, None).of(torch.arange(500), (side,))
    assert sizes == [(enlarged,)]
    starts = masks[:, 0, 0]
    assert set(starts.tolist()) == set(range(cell))  # every offset below a cell
    assert torch.equal(masks[:, 0, -1] - starts, torch.full((500,), side - 1.0))


def test_cells_are_shown_with_the_probability():
    grids = RandomMasks(2000, 7, 2, 0.2, None)._grids
    assert set(grids.unique().tolist()) == {0, 1}
    assert grids.mean().item() == pytest.approx(0.2, abs=0.01)
    assert RandomMasks(10, 7, 2, 1, None)._grids.all()


def test_all_masks_that_show_everything_give_the_confidence():
    model, inputs = net(), images()
    with pytest.warns(UserWarning, match="constant"):
        maps = RISE(model).attribute(inputs, 1, num_masks=3, probability=1)
    expected = model(inputs).softmax(1)[:, 1].view(-1, 1, 1, 1).expand_as(maps)
    torch.testing.assert_close(maps, expected, **EXACT)


def test_equal_calls_give_equal_maps_and_seeds_others():
    model, inputs = net(), images()
    cam, few = RISE(model), {"num_masks": 8, "grid": 3}
    state = torch.get_rng_state()
    maps = cam.attribute(inputs, 1, **few)
    assert torch.equal(maps, cam.attribute(inputs, 1, **few))
    assert torch.equal(torch.get_rng_state(), state)
    seeded = [torch.Generator().manual_seed(seed) for seed in (5, 5, 6)]
    first, same, other = (
        cam.attribute(inputs, 1, generator=generator, **few) for generator in seeded
    )
    assert torch.equal(first, same)
    assert not torch.allclose(first, other) and not torch.allclose(first, maps)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_and_the_batch_change_nothing(chunk):
    model, inputs = net(), images()
    few = {"num_masks": 70, "grid": 3}
    cam, targets = RISE(model), [2, 0, 1]
    maps = cam.attribute(inputs, targets, **few)
    chunked = cam.attribute(inputs, targets, perturbations_per_eval=chunk, **few)
    torch.testing.assert_close(chunked, maps, rtol=0, atol=1e-12)
    for i, target in enumerate(targets):
        alone = cam.attribute(inputs[i : i + 1], target, **few)
        torch.testing.assert_close(alone, maps[i : i + 1], rtol=0, atol=1e-12)


def test_it_costs_a_pass_for_each_mask():
    counted = Counted(net())
    RISE(counted).attribute(images(), 1, num_masks=7)
    assert sum(counted.sizes) == 3 * (7 + 3)


def test_several_inputs_and_arguments_pass():
    def model(image, small, factor):
        score = image.mean((1, 2, 3)) + small.mean((1, 2, 3))
        return torch.stack([factor * score, 1 - score], 1)

    inputs = (images(), images(size=(3, 4)))
    factor = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    maps = RISE(model).attribute(inputs, 0, factor, num_masks=6)
    assert maps.shape == (3, 1, 6, 5)
    tunnel = NoiseTunnel(RISE(net()))
    smooth = tunnel.attribute(images(), nt_samples=2, target=1, num_masks=4)
    assert smooth.shape == (3, 1, 6, 5)


def test_integers_halves_and_empty_batches():
    def model(image):
        return nn.functional.pad(image.float().mean((1, 2, 3))[:, None], (0, 1))

    pixels = (255 * images()).byte()
    assert RISE(model).attribute(pixels, 0, num_masks=4).isfinite().all()
    halves = RISE(model).attribute(images().bfloat16(), 0, num_masks=4)
    assert halves.dtype == torch.bfloat16
    assert RISE(net()).attribute(images()[:0], 0, num_masks=4).shape == (0, 1, 6, 5)


def test_an_example_whose_scores_are_not_finite_is_nan():
    inputs = images()
    inputs[1] = torch.nan
    with pytest.warns(UserWarning, match=r"RISE: the maps of examples \[1\] are NaN"):
        maps = RISE(net()).attribute(inputs, 1, num_masks=4, score_func=lambda x: x)
    assert maps[1].isnan().all() and maps[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    "option, message",
    [
        ({"num_masks": 0}, "`num_masks` must be a positive int"),
        ({"grid": 0}, "`grid` must be a positive int"),
        ({"probability": 0}, "`probability` must be above 0"),
        ({"probability": 1.5}, r"`probability` must be a finite number in \[0, 1\]"),
        ({"perturbations_per_eval": 0}, "`perturbations_per_eval` must be"),
    ],
)
def test_refuses_options_out_of_bounds_before_any_pass(option, message):
    counted = Counted(net())
    with pytest.raises(ValueError, match=message):
        RISE(counted).attribute(images(), 1, **option)
    assert not counted.sizes


def test_refuses_inputs_without_positions():
    with pytest.raises(ValueError, match="`inputs` must start with a tensor"):
        RISE(nn.Linear(4, 2)).attribute(torch.rand(2, 4), 0)
