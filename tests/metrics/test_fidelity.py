"""Mu-fidelity: correlations by hand, the loops of the paper, and refusals."""

import numpy as np
import pytest
import torch
from nets import CASES
from reference import Model, resize

from captum_unioncam._forward import ModelCall
from captum_unioncam._scoring import MaskScorer, ScoringOptions
from captum_unioncam.metrics import mu_fidelity
from captum_unioncam.metrics.fidelity import Subsets, fidelities

PIXELS = {"grid": None, "subset_size": 1}


def total(image):
    """Scores an image by its sum."""
    return image.flatten(1).sum(1, keepdim=True)


def never(image):
    raise AssertionError("the model ran")


def fixed():
    """An image 1 2 3 4, whose sum each pixel takes its value from, and a map."""
    return torch.tensor([[[1.0, 2, 3, 4]]]), torch.tensor([[[1.0, 0, 0, 0]]])


def of_subsets(inputs, maps, members, grid, baselines=None):
    """Returns the fidelity of a sum over given subsets."""
    call = ModelCall.prepare(total, inputs, None, None)
    scorer = MaskScorer(call, inputs.dim(), ScoringOptions(baselines=baselines))
    return fidelities(scorer, maps, Subsets(grid, torch.tensor([members])))


def cells_in_loops(size, grid):
    """Returns the cell of each pixel, by its place along each axis."""
    cells = np.zeros(size, dtype=int)
    for place in np.ndindex(*size):
        cell = 0
        for i, length in zip(place, size):
            count = min(grid, length)
            cell = cell * count + i * count // length
        cells[place] = cell
    return cells


# By hand


def test_correlation_of_four_subsets_by_hand():
    # Sums 1 0 0 0 and drops 1 2 3 4: -1.5 / sqrt(0.75 * 5).
    members = [[0], [1], [2], [3]]
    found = of_subsets(*fixed(), members, (4,))
    assert found.item() == pytest.approx(-1.5 / 3.75**0.5)
    # Over a baseline of 5 the drops are -4 -3 -2 -1, and over 1 they are 0 1 2 3.
    for baseline in (1, 5):
        assert of_subsets(*fixed(), members, (4,), baseline).item() == (
            pytest.approx(-1.5 / 3.75**0.5)
        )


def test_subsets_of_cells_by_hand():
    # Cells of 3 and of 2 pixels: 0 0 0 1 1, and one of each alone and both together.
    inputs = torch.tensor([[[1.0, 1, 2, 3, 0]]])
    maps = torch.tensor([[[1.0, 0, 0, 2, 3]]])
    # Sums 1 and 5, drops 4 and 3: two points on a falling line.
    assert of_subsets(inputs, maps, [[0], [1]], (2,)).item() == pytest.approx(-1)
    # Sums 1 5 1, drops 4 3 4 of all three subsets, still one line.
    found = of_subsets(inputs, maps, [[0], [1], [0]], (2,))
    assert found.item() == pytest.approx(-1)


def test_a_map_of_what_each_pixel_is_worth_has_1_and_its_inverse_has_minus_1():
    torch.manual_seed(0)
    inputs = torch.rand(3, 2, 12, 12)
    worth = inputs.sum(1, keepdim=True)
    for options in ({}, {"grid": 3}, {"grid": None}, {"grid": 4, "subset_size": 5}):
        good, bad = (mu_fidelity(total, inputs, m, **options) for m in (worth, -worth))
        assert torch.allclose(good, torch.ones(3), atol=1e-4)
        assert torch.allclose(bad, -torch.ones(3), atol=1e-4)
    # Neither a factor nor, with cells of one size, a constant matters.
    shifted = mu_fidelity(total, inputs, 1e3 + 5 * worth, grid=4)
    assert torch.allclose(shifted, torch.ones(3), atol=1e-3)


# Against loops


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("grid", "size"), [(3, 2), (9, None), (None, 4)])
def test_matches_the_loops_at_every_rank(case, grid, size):
    net, inputs = case.build(5)
    small = tuple((length + 1) // 2 for length in inputs.shape[2:])
    maps = torch.randn(3, 1, *small, dtype=torch.float64)
    targets, samples = [2, 0, 1], 7
    options = {"grid": grid, "subset_size": size, "num_samples": samples}
    found = mu_fidelity(net, inputs, maps, targets, 0.25, **options)
    cells = cells_in_loops(inputs.shape[2:], grid or 10**6)
    count = cells.max() + 1
    draws = torch.Generator().manual_seed(0)
    for i in range(samples):
        drawn = torch.randperm(count, generator=draws)[: size or round(count / 5)]
        subset = np.isin(cells, drawn.numpy())
        if i == 0:
            subsets = []
        subsets.append(subset)
    for i, target in enumerate(targets):
        image, model = inputs[i].numpy(), Model(net, net.layer, target)
        large = resize(maps[i, 0].numpy(), image.shape[1:])
        sums, drops = [], []
        for subset in subsets:
            sums.append(large[subset].sum())
            seen = np.where(subset, 0.25, image)
            drops.append(model.confidence([image]) - model.confidence([seen]))
        expected = np.corrcoef(sums, drops)[0, 1]
        assert found[i].item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("size", [(7,), (9, 4), (3, 5, 4)])
@pytest.mark.parametrize("grid", [1, 3, 9])
def test_every_pixel_is_in_one_cell_and_no_cell_is_empty(size, grid):
    shape = tuple(min(grid, length) for length in size)
    expected = cells_in_loops(size, grid).ravel()
    members = torch.arange(int(np.prod(shape)))[None, :, None]
    subsets = Subsets(shape, members)
    columns = torch.arange(subsets.samples)
    hidden = subsets.hidden(torch.zeros_like(columns), columns, size)
    assert hidden.sum(0).eq(1).all() and hidden.any(1).all()
    assert hidden.int().argmax(0).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("size", "grid", "subset_size", "expected"),
    [
        ((90, 90), 9, None, 16),  # a fifth of 81
        ((4, 90), 9, None, 7),  # of 36
        ((2,), 9, None, 1),
        ((10, 10), None, None, 20),
        ((10, 10), 5, 25, 25),
    ],
)
def test_subsets_have_different_cells_of_the_size(size, grid, subset_size, expected):
    draws = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    subsets = Subsets.drawn(size, draws, grid, subset_size, 6)
    assert subsets.members.shape == (2, 6, expected)
    for subset in subsets.members.flatten(0, 1).tolist():
        assert len(set(subset)) == expected
        assert 0 <= min(subset) and max(subset) < np.prod(subsets.grid)


# Degenerate maps and scores


def test_a_constant_map_foretells_nothing_and_takes_no_pass():
    sizes = []

    def forward_func(image):
        sizes.append(len(image))
        return total(image)

    # 7 pixels in 3 cells: the sums of a constant map would count the pixels.
    inputs, maps = torch.ones(2, 1, 7), torch.full((2, 1, 7), 0.3)
    assert mu_fidelity(forward_func, inputs, maps, grid=3).tolist() == [0, 0]
    assert sum(sizes) == 2 * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_drops_or_sums_give_0(dtype):
    torch.manual_seed(0)
    inputs, maps = torch.rand(2, 1, 6, 6).to(dtype), torch.rand(2, 1, 6, 6).to(dtype)

    def constant(image):
        return torch.full((len(image), 1), 0.7, dtype=dtype)

    assert mu_fidelity(constant, inputs, maps, grid=3).tolist() == [0, 0]
    # Each cell has the values 0.1, 0.2, 0.3 and 0.4, whose sums differ by rounding.
    orders = torch.stack([torch.randperm(4) for _ in range(9)])
    tiles = (0.1 + 0.1 * orders).view(1, 3, 3, 2, 2).transpose(2, 3).to(dtype)
    maps = tiles.reshape(1, 1, 6, 6).expand(2, 1, 6, 6)
    assert mu_fidelity(total, inputs, maps, grid=3).tolist() == [0, 0]
    whole = mu_fidelity(total, inputs, inputs, grid=3, subset_size=9)
    assert whole.tolist() == [0, 0]


def test_tiny_differences_are_differences():
    torch.manual_seed(0)
    inputs, maps = torch.rand(2, 2, 1, 6, 6)
    expected = mu_fidelity(total, inputs, maps, grid=3)
    # In float32, 1e-30 has no square.
    found = mu_fidelity(lambda x: 1e-30 * total(x), inputs, 1e-30 * maps, grid=3)
    assert torch.allclose(found, expected, atol=1e-4) and (found.abs() < 0.9).all()


def test_a_map_or_a_score_that_is_not_finite_has_no_fidelity():
    inputs = torch.rand(3, 1, 4) + 1
    inputs[2] = 7
    maps = torch.tensor([[[0.0, torch.inf, 1, 2]], [[0, 3, 1, 2]], [[0, 3, 1, 2]]])

    def broken(image):
        scores = total(image)
        return torch.where((image == 7).any(2) & (image == 0).any(2), torch.nan, scores)

    found = mu_fidelity(broken, inputs, maps, **PIXELS)
    assert found.isfinite().tolist() == [False, True, False]


def test_no_examples_have_no_fidelity():
    found = mu_fidelity(total, torch.rand(0, 1, 4, 4), torch.rand(0, 1, 2, 2))
    assert found.shape == (0,)


def test_integer_and_half_images():
    torch.manual_seed(0)
    maps = torch.rand(1, 1, 6, 6)
    for inputs in ((200 * maps).to(torch.uint8), maps.half(), maps.bfloat16()):
        found = mu_fidelity(
            lambda image: total(image.float()), inputs, inputs.float(), grid=3
        )
        assert found.item() == pytest.approx(1, abs=1e-3)


def test_all_images_lose_the_same_cells_at_their_size():
    def forward_func(first, vector, second):
        assert torch.equal(vector, torch.full_like(vector, 5))
        assert torch.equal(first.repeat_interleave(2, 2).bool(), second.bool())
        return total(first)

    first = torch.rand(1, 2, 4) + 1
    inputs = (first, torch.full((1, 3), 5), torch.ones(1, 2, 8))
    options = {"grid": 4, "perturbations_per_eval": 3}
    found = mu_fidelity(forward_func, inputs, first.sum(1, keepdim=True), **options)
    assert found.item() == pytest.approx(1, abs=1e-5)


# Draws, batches and chunks


def test_subsets_are_drawn_by_the_generator_alone():
    net, inputs = CASES[0].build(0)
    maps = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    state = torch.get_rng_state()
    first = mu_fidelity(net, inputs, maps, 1, num_samples=9)
    assert torch.equal(first, mu_fidelity(net, inputs, maps, 1, num_samples=9))
    seeded = [
        mu_fidelity(
            net,
            inputs,
            maps,
            1,
            num_samples=9,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 5, 5)
    ]
    assert torch.equal(seeded[0], first) and torch.equal(seeded[1], seeded[2])
    assert not torch.allclose(seeded[1], first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_gives_what_its_examples_give_alone():
    net, inputs = CASES[0].build(2)
    maps = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    batch = mu_fidelity(net, inputs, maps, [0, 1, 2], num_samples=9)
    alone = [
        mu_fidelity(net, inputs[i : i + 1], maps[i : i + 1], i, num_samples=9)
        for i in range(3)
    ]
    assert torch.allclose(batch, torch.cat(alone), rtol=0, atol=1e-10)
    for chunk in (1, 2, 50):
        chunked = mu_fidelity(
            net, inputs, maps, [0, 1, 2], num_samples=9, perturbations_per_eval=chunk
        )
        assert torch.allclose(batch, chunked, rtol=0, atol=1e-10)


def test_subsets_of_each_example_are_its_own():
    torch.manual_seed(0)
    inputs, maps = torch.rand(2, 1, 6, 6), torch.rand(2, 1, 6, 6)
    draws = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    subsets = Subsets.drawn((6, 6), draws, 3, 2, 9)
    call = ModelCall.prepare(total, inputs, None, None)
    both = fidelities(MaskScorer(call, 4, ScoringOptions()), maps, subsets)
    for i, seed in enumerate((3, 4)):
        alone = mu_fidelity(
            total,
            inputs[i : i + 1],
            maps[i : i + 1],
            grid=3,
            subset_size=2,
            num_samples=9,
            generator=torch.Generator().manual_seed(seed),
        )
        assert both[i].item() == pytest.approx(alone.item(), abs=1e-5)


def test_passes_are_as_many_as_it_says_and_chunks_bound_the_memory():
    sizes = []

    def forward_func(image):
        sizes.append(len(image))
        return total(image)

    inputs, maps = torch.rand(2, 1, 30), torch.rand(2, 1, 30)
    mu_fidelity(forward_func, inputs, maps, num_samples=25, perturbations_per_eval=4)
    assert max(sizes) == 8 and sum(sizes) == 2 * (25 + 3)


# Refusals, before any pass


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"grid": 0}, ValueError, "`grid` must be a positive int or None, got 0"),
        ({"grid": 2.0}, TypeError, "`grid` must be a positive int or None, got 2.0"),
        ({"subset_size": 0}, ValueError, r"`subset_size` must .* in \[1, 4\] or None"),
        ({"subset_size": 5}, ValueError, r"`subset_size` .* in \[1, 4\] .* got 5"),
        ({"subset_size": 0.2}, TypeError, "`subset_size` must be an int"),
        ({"num_samples": 1}, ValueError, "`num_samples` must be an int >= 2, got 1"),
        ({"num_samples": True}, TypeError, "`num_samples` must be an int"),
        ({"generator": 3}, TypeError, "`generator` must be a Generator or None, got 3"),
        ({"score_func": 3}, TypeError, "`score_func` must be a callable"),
        ({"baselines": "black"}, TypeError, "`baselines` must be a Tensor, a number"),
    ],
)
def test_refuses_wrong_options_before_any_pass(options, error, match):
    with pytest.raises(error, match=match):
        mu_fidelity(never, *fixed(), **options)


def test_refuses_maps_that_do_not_fit_before_any_pass():
    inputs, maps = fixed()
    with pytest.raises(ValueError, match=r"`attributions` must .* got \(1, 2, 4\)"):
        mu_fidelity(never, inputs, maps.expand(1, 2, 4))
    with pytest.raises(ValueError, match="`inputs` must hold a tensor of the maps'"):
        mu_fidelity(never, inputs, torch.rand(1, 1, 2, 2))
