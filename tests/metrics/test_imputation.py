"""ROAD: imputations solved by hand, the loops of the paper, ties, and refusals."""

import itertools
import sys

import numpy as np
import pytest
import torch
from nets import CASES
from reference import Model, resize

from captum_unioncam.metrics import road
from captum_unioncam.metrics.imputation import imputed

NAN = torch.nan
PERCENTILES = (15, 40, 85)


def total(image):
    """Scores an image by its sum."""
    return image.flatten(1).sum(1, keepdim=True)


def never(image):
    raise AssertionError("the model ran")


def fixed():
    """An image 1 2 3 4 and a map that ranks its pixels 1, 2, 3, 4."""
    return torch.tensor([[[1.0, 2, 3, 4]]]), torch.tensor([[[9.0, 5, 2, -1]]])


def fill(values):
    """Imputes the pixels of an image of one channel that are NaN."""
    image = torch.tensor(values, dtype=torch.float64)[None, None]
    return imputed(image, image[:, 0].isnan())[0, 0].tolist()


def neighbour_weights(rank):
    if rank == 2:  # the paper's
        direct, diagonal = 1 / 6, 1 / 12
        return {
            o: direct if 0 in o else diagonal
            for o in itertools.product((-1, 0, 1), repeat=2)
            if o != (0, 0)
        }
    if rank == 1:
        return {(-1,): 1 / 2, (1,): 1 / 2}
    return {
        o: 1 / (7 * 2 ** sum(map(abs, o)))
        for o in itertools.product((-1, 0, 1), repeat=3)
        if o != (0, 0, 0)
    }


def impute_in_loops(image, gone):
    """The mean of the neighbours for each pixel that is gone, as a dense system."""
    holes = [tuple(place) for place in np.argwhere(gone)]
    left = np.zeros((len(holes), len(holes)))
    right = np.zeros((len(holes), len(image)))
    for row, place in enumerate(holes):
        for offset, weight in neighbour_weights(gone.ndim).items():
            other = tuple(np.add(place, offset))
            if any(not 0 <= i < n for i, n in zip(other, gone.shape)):
                continue
            left[row, row] += weight
            if gone[other]:
                left[row, holes.index(other)] -= weight
            else:
                right[row] += weight * image[(slice(None), *other)]
    filled = image.copy()
    for place, values in zip(holes, np.linalg.solve(left, right)):
        filled[(slice(None), *place)] = values
    return filled


# Imputation


def test_a_pixel_is_the_weighted_mean_of_those_around_it():
    # 12 / 12 + 6 / 6 + 24 / 12 = 4
    assert fill([[12, 0, 0], [0, NAN, 6], [0, 0, 24]])[1][1] == pytest.approx(4)


def test_at_the_border_the_weights_of_the_others_are_scaled_to_1():
    # (2 * 10 + 2 * 5 + 20) / 5 = 10
    assert fill([[NAN, 10], [5, 20]])[0][0] == pytest.approx(10)


def test_pixels_that_are_removed_together_solve_a_system():
    # 5 x = 2 y + 2 * 0 + 21 and 5 y = 2 x + 0 + 2 * 21: x = 9, y = 12.
    (x, y), known = fill([[NAN, NAN], [0, 21]])
    assert (x, y) == pytest.approx((9, 12)) and known == [0, 21]
    # On the diagonal: 5 x = 2 * 10 + 2 * 5 + y, and the same for y.
    (x, _), (_, y) = fill([[NAN, 10], [5, NAN]])
    assert (x, y) == pytest.approx((7.5, 7.5))


def test_a_gap_in_a_signal_becomes_a_line():
    assert fill([0, NAN, NAN, 9]) == pytest.approx([0, 3, 6, 9])
    assert fill([NAN, NAN, 4, 6]) == pytest.approx([4, 4, 4, 6])


@pytest.mark.parametrize(
    ("offset", "value"), [((1, 0, 0), 14), ((0, -1, 1), 28), ((-1, 1, 1), 56)]
)
def test_a_voxel_weighs_half_for_each_step_aside(offset, value):
    image = torch.zeros(1, 1, 3, 3, 3, dtype=torch.float64)
    image[(0, 0, *(1 + step for step in offset))] = value
    gone = torch.zeros(1, 3, 3, 3, dtype=torch.bool)
    gone[0, 1, 1, 1] = True
    assert imputed(image, gone)[0, 0, 1, 1, 1].item() == pytest.approx(1)


@pytest.mark.parametrize("size", [(30,), (9, 7), (1, 12), (5, 4, 3)])
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_imputation_matches_the_loops_in_every_channel(size, share):
    torch.manual_seed(0)
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    gone = torch.rand(2, *size) < share
    gone[(slice(None), *[0] * len(size))] = False
    found = imputed(images, gone)
    for i in range(2):
        expected = impute_in_loops(images[i].numpy(), gone[i].numpy())
        assert np.allclose(found[i].numpy(), expected, rtol=0, atol=1e-12)
        assert torch.equal(found[i][:, ~gone[i]], images[i][:, ~gone[i]])
    assert found.min() >= 0 and found.max() <= 1  # means


def test_what_is_under_a_removed_pixel_does_not_matter():
    images = torch.rand(1, 2, 5, 5)
    gone = torch.rand(1, 5, 5) < 0.5
    expected = imputed(images, gone)
    images[:, :, gone[0]] = torch.inf
    assert torch.equal(imputed(images, gone), expected)


def test_complex_images_are_imputed_in_both_parts():
    real, imaginary = torch.rand(2, 1, 2, 4, 4)
    gone = torch.rand(1, 4, 4) < 0.5
    found = imputed(torch.complex(real, imaginary), gone)
    assert torch.equal(found.real, imputed(real, gone))
    assert torch.equal(found.imag, imputed(imaginary, gone))


# The metric


def test_both_orders_of_a_sum_by_hand():
    # MoRF: 2 2 3 4 is 11, and 3 3 3 4 is 13. LeRF: 1 2 3 3 is 9, and 1 2 2 2 is 7.
    options = {"percentiles": (25, 50), "noise": 0, "return_curve": True}
    for order, expected in (
        ("morf", [11, 13]),
        ("lerf", [9, 7]),
        ("combined", [-1, -3]),
    ):
        value, curve = road(total, *fixed(), order=order, **options)
        assert curve[0].tolist() == pytest.approx(expected)
        assert value.tolist() == pytest.approx([sum(expected) / 2])


def test_shares_are_rounded_down_to_whole_pixels():
    # A half of a pixel is none, and 2.9 pixels are 2: 3 3 3 4.
    _, curve = road(
        total,
        *fixed(),
        percentiles=[12.5, 72.5],
        noise=0,
        order="morf",
        return_curve=True,
    )
    assert curve[0].tolist() == pytest.approx([10, 13])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("size", ["layer", "input"])
def test_matches_the_loops_at_every_rank(case, size):
    net, inputs = case.build(5)
    small = tuple((length + 1) // 2 for length in inputs.shape[2:])
    shape = small if size == "layer" else inputs.shape[2:]
    maps = torch.rand(3, 1, *shape, dtype=torch.float64)
    targets = [2, 0, 1]
    options = {"percentiles": PERCENTILES, "noise": 0.3, "return_curve": True}
    values, curve = road(net, inputs, maps, targets, **options)
    draws = torch.Generator().manual_seed(0)
    noise = (0.3 * torch.randn(inputs.shape[1:], generator=draws)).double().numpy()
    for i, target in enumerate(targets):
        image, model = inputs[i].numpy(), Model(net, net.layer, target)
        large = resize(maps[i, 0].numpy(), image.shape[1:])
        assert len(np.unique(large)) == large.size  # ties have a test of their own
        for k, p in enumerate(PERCENTILES):
            scores = []
            for order in (np.argsort(large.ravel()), np.argsort(-large.ravel())):
                gone = np.zeros(large.size, dtype=bool)
                gone[order[: int(large.size * p / 100)]] = True
                gone = gone.reshape(large.shape)
                seen = impute_in_loops(image, gone) + noise * gone
                scores.append(model.confidence([seen]))
            expected = (scores[0] - scores[1]) / 2
            assert curve[i, k].item() == pytest.approx(expected, abs=1e-9)
    assert torch.allclose(values, curve.mean(1))


def test_a_perfect_map_beats_its_inverse():
    torch.manual_seed(0)
    inputs = torch.rand(4, 2, 8, 8)
    inputs[:, :, 2:5, 3:6] += 3

    def brightness(image):
        return image.sum(1).flatten(1).topk(5).values.mean(1, keepdim=True)

    perfect = inputs.sum(1, keepdim=True)
    good, bad = (road(brightness, inputs, maps) for maps in (perfect, -perfect))
    assert (good > 0.1).all() and torch.allclose(good, -bad)


# Ties and degenerate maps


def test_a_constant_map_is_worth_exactly_nothing():
    net, inputs = CASES[0].build(0)
    assert road(net, inputs, torch.full((3, 1, 4, 4), 0.3), 1).tolist() == [0, 0, 0]
    first, second = (
        road(net, inputs, torch.zeros(3, 1, 4, 4), 1, order=order)
        for order in ("morf", "lerf")
    )
    assert torch.equal(first, second) and (first > 0).all()


def seen_by(inputs, maps, **options):
    """Returns the imputed images that a model sees, without the references."""
    seen = []

    def forward_func(image):
        seen.append(image.clone())
        return total(image)

    road(forward_func, inputs, maps, perturbations_per_eval=1, **options)
    return seen


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_ties_remove_no_more_pixels_than_asked_for(order):
    # Three quarters of the map are 0, which a threshold removes together.
    torch.manual_seed(0)
    inputs, maps = torch.ones(1, 1, 20, 20), torch.rand(1, 1, 20, 20)
    maps[..., 5:, :] = 0
    for p in (10, 40, 90):
        *_, last = seen_by(inputs, maps, percentiles=(p,), order=order)
        assert (last != inputs).sum() == 4 * p


def test_equal_pixels_go_in_an_order_that_favours_no_place():
    inputs = torch.ones(1, 1, 40, 40)
    *_, last = seen_by(inputs, torch.zeros(1, 1, 5, 5), percentiles=(50,))
    quarters = (last != inputs).float().reshape(2, 20, 2, 20).sum((1, 3))
    assert quarters.sum() == 800
    assert (quarters - 200).abs().max() < 40  # three standard deviations are 30


def test_all_channels_of_a_pixel_go_together():
    torch.manual_seed(0)
    inputs = torch.rand(1, 3, 6, 6)
    for image in seen_by(inputs, torch.rand(1, 1, 3, 3), percentiles=(20, 70))[-4:]:
        gone = image != inputs
        assert torch.equal(gone.all(1), gone.any(1)) and gone.any()


def test_a_map_that_is_not_finite_has_no_value():
    inputs = torch.rand(3, 1, 4)
    maps = torch.tensor([[[0.0, torch.inf, 1, 2]], [[0, 3, 1, 2]], [[0, NAN, 1, 2]]])
    for order in ("combined", "morf", "lerf"):
        values = road(total, inputs, maps, order=order)
        assert values.isfinite().tolist() == [False, True, False]


def test_no_examples_have_no_values():
    value, curve = road(
        total, torch.rand(0, 1, 4, 4), torch.rand(0, 1, 2, 2), return_curve=True
    )
    assert value.shape == (0,) and curve.shape == (0, 9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8])
def test_images_keep_their_type(dtype):
    inputs = torch.tensor([[[0, 0, 0, 200, 100, 250]]], dtype=dtype)
    maps = torch.tensor([[[0.0, 1, 5, 2, 3, 4]]])
    *_, last = seen_by(inputs, maps, percentiles=(20,), order="morf", noise=0)
    assert last.dtype == dtype and last.tolist() == [[[0, 0, 100, 200, 100, 250]]]
    # Noise that leaves the range of a byte does not wrap.
    *_, last = seen_by(inputs, maps, percentiles=(90,), noise=1e6)
    if dtype == torch.uint8:
        assert set(last[0, 0, 1:].tolist()) <= {0, 255, 250, 200, 100}


def test_images_are_in_the_memory_format_of_the_others():
    torch.manual_seed(0)
    inputs, maps = torch.rand(1, 3, 6, 6), torch.rand(1, 1, 3, 3)
    for image in seen_by(inputs, maps, percentiles=(20, 70))[1:]:
        assert image.is_contiguous(memory_format=torch.channels_last)


def test_other_inputs_pass_and_all_images_are_imputed_at_their_size():
    sizes = []

    def forward_func(first, vector, second):
        sizes.append([(part - 1).count_nonzero().item() for part in (first, second)])
        assert torch.equal(vector, torch.full_like(vector, 5))
        return total(first) + total(second)

    inputs = (torch.ones(1, 2, 4, 4), torch.full((1, 3), 5), torch.ones(1, 1, 8, 8))
    maps = torch.rand(1, 1, 4, 4)
    options = {"percentiles": (50,), "perturbations_per_eval": 1}
    road(forward_func, inputs, maps, order="morf", **options)
    assert sizes[-1] == [2 * 8, 32]  # 1 and noise


# Noise, batches and chunks


def test_noise_is_on_the_removed_pixels_alone():
    torch.manual_seed(1)
    inputs, maps = torch.ones(1, 1, 50, 50), torch.rand(1, 1, 50, 50)
    *_, last = seen_by(inputs, maps, percentiles=(80,), order="morf", noise=0.1)
    rows = (last - 1).flatten()
    assert rows[rows != 0].numel() == 2000
    assert rows[rows != 0].std().item() == pytest.approx(0.1, rel=0.05)


def test_noise_is_drawn_by_the_generator_alone():
    net, inputs = CASES[0].build(0)
    maps = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    state = torch.get_rng_state()
    options = {"noise": 1.0}
    first = road(net, inputs, maps, 1, **options)
    assert torch.equal(first, road(net, inputs, maps, 1, **options))
    seeded = [
        road(
            net, inputs, maps, 1, generator=torch.Generator().manual_seed(s), **options
        )
        for s in (0, 5, 5)
    ]
    assert torch.equal(seeded[0], first) and torch.equal(seeded[1], seeded[2])
    assert not torch.allclose(seeded[1], first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_gives_what_its_examples_give_alone():
    net, inputs = CASES[0].build(2)
    maps = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    batch = road(net, inputs, maps, [0, 1, 2])
    alone = [road(net, inputs[i : i + 1], maps[i : i + 1], i) for i in range(3)]
    assert torch.allclose(batch, torch.cat(alone), rtol=0, atol=1e-12)
    for chunk in (1, 2, 50):
        chunked = road(net, inputs, maps, [0, 1, 2], perturbations_per_eval=chunk)
        assert torch.allclose(batch, chunked, rtol=0, atol=1e-12)


def test_passes_are_as_many_as_it_says_and_chunks_bound_the_memory():
    sizes = []

    def forward_func(image):
        sizes.append(len(image))
        return total(image)

    inputs, maps = torch.rand(2, 1, 30), torch.rand(2, 1, 30)
    for order, passes in (("combined", 18), ("morf", 9), ("lerf", 9)):
        sizes.clear()
        road(forward_func, inputs, maps, order=order, perturbations_per_eval=4)
        assert max(sizes) == 8 and sum(sizes) == 2 * (passes + 3)


# Refusals, before any pass


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"percentiles": ()}, ValueError, r"`percentiles` must not be empty, got \(\)"),
        ({"percentiles": (0,)}, ValueError, "`percentiles` must be above 0 and below"),
        ({"percentiles": (50, 100)}, ValueError, "`percentiles` .* got 100; they are"),
        ({"percentiles": (NAN,)}, ValueError, "`percentiles` must be a finite number"),
        ({"percentiles": ("9",)}, TypeError, "`percentiles` must be a finite number"),
        ({"percentiles": 10}, TypeError, "`percentiles` must be a sequence .* got 10 "),
        ({"order": "more"}, ValueError, "`order` must be one of combined, morf, lerf"),
        ({"noise": -1}, ValueError, "`noise` must be a finite number >= 0, got -1"),
        ({"noise": "much"}, TypeError, "`noise` must be a finite number"),
        ({"generator": 3}, TypeError, "`generator` must be a Generator or None, got 3"),
        ({"score_func": 3}, TypeError, "`score_func` must be a callable"),
    ],
)
def test_refuses_wrong_options_before_any_pass(options, error, match):
    with pytest.raises(error, match=match):
        road(never, *fixed(), **options)


def test_refuses_maps_that_do_not_fit_before_any_pass():
    inputs, maps = fixed()
    with pytest.raises(ValueError, match=r"`attributions` must .* got \(1, 2, 4\)"):
        road(never, inputs, maps.expand(1, 2, 4))
    with pytest.raises(ValueError, match="`inputs` must hold a tensor of the layer's"):
        road(never, inputs, torch.rand(1, 1, 2, 2))


def test_says_what_to_install_without_scipy_before_any_pass(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    with pytest.raises(ImportError, match=r'pip install "captum-unioncam\[evaluate\]"'):
        road(never, *fixed())
