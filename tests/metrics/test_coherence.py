"""Coherency, complexity and ADCC: by hand, against loops, and where undefined."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from nets import CASES
from reference import masked, to_mask

from captum_unioncam import DenoisedGradCAM, UnionCAM, as_explanation_func
from captum_unioncam.metrics import confidence_drop, masked_confidences
from captum_unioncam.metrics.coherence import adcc, coherency, complexity


def image_itself(inputs, **_):
    """Explains an image by its first channel."""
    return inputs[:, :1]


def always(*maps):
    """Explains every image by the same maps."""
    return lambda inputs, **_: torch.tensor(maps)[:, None]


def test_coherency_is_the_scaled_correlation_with_the_map_of_the_masked_input():
    # [0 1 2] scales to [0 .5 1], under which [1 2 3] is [0 1 3]. Around their means,
    # [-.5 0 .5] and [-4 -1 5] / 3 have the product 1.5, and the squares .5 and 42 / 9.
    inputs, maps = torch.tensor([[[1.0, 2, 3]]]), torch.tensor([[[0.0, 1, 2]]])
    rho = 1.5 / math.sqrt(0.5 * 42 / 9)
    result = coherency(image_itself, inputs, maps)
    assert result.tolist() == pytest.approx([(1 + rho) / 2])


def test_a_mask_of_zero_shows_the_baseline():
    # [0 .5 1] blends [1 2 3] over 3 to [3 2.5 3], which [-.5 0 .5] is orthogonal to.
    inputs, maps = torch.tensor([[[1.0, 2, 3]]]), torch.tensor([[[0.0, 1, 2]]])
    result = coherency(image_itself, inputs, maps, baselines=3)
    assert result.tolist() == pytest.approx([0.5])


def test_the_same_map_is_best_and_its_inverse_worst():
    torch.manual_seed(0)
    inputs, maps = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 4, 4)
    for again, expected in [(3 * maps + 1, 1), (-maps, 0)]:
        result = coherency(lambda seen, again=again, **_: again, inputs, maps)
        assert result.tolist() == pytest.approx([expected] * 2, abs=1e-6)
        assert ((0 <= result) & (result <= 1)).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("offset", [0, -5])
def test_coherency_does_not_depend_on_the_scale_of_the_maps(scale, offset):
    inputs = torch.tensor([[[1.0, 2, 3, 5]]])
    maps, again = [0.0, 1, 4, 2], [3.0, 1, 2, 6]
    expected = (1 + np.corrcoef(maps, again)[0, 1]) / 2
    explain = always([(value + offset) * scale for value in again])
    maps = (torch.tensor([[maps]]) + offset) * scale
    assert coherency(explain, inputs, maps).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("size", ["layer", "input"])
def test_coherency_matches_the_loops_at_every_rank(case, size):
    net, inputs = case.build(3)
    # Signed maps, which are never constant.
    explain, targets = LayerGradCam(net, net.layer).attribute, [2, 0, 1]
    small = tuple((length + 1) // 2 for length in inputs.shape[2:])
    shape = small if size == "layer" else inputs.shape[2:]
    torch.manual_seed(5)
    maps = torch.rand(3, 1, *shape, dtype=torch.float64)
    results = coherency(explain, inputs, maps, targets, baselines=0.25)
    for i, target in enumerate(targets):
        image = [inputs[i].numpy()]
        seen = masked(image, maps[i, 0].numpy(), [np.full_like(image[0], 0.25)])
        again = explain(torch.from_numpy(seen[0])[None], target)
        pixels = [
            to_mask(array, inputs.shape[2:]).ravel()
            for array in (maps[i, 0].numpy(), again[0, 0].detach().numpy())
        ]
        expected = (1 + np.corrcoef(*pixels)[0, 1]) / 2
        assert results[i].item() == pytest.approx(expected, abs=1e-10)


def test_maps_of_the_layers_size_count_as_resized():
    net, inputs = CASES[0].build(3)
    explain = DenoisedGradCAM(net, net.layer).attribute
    maps = explain(inputs, 1)
    large = F.interpolate(maps, inputs.shape[2:], mode="bilinear")
    small, resized = (coherency(explain, inputs, m, target=1) for m in (maps, large))
    assert torch.allclose(small, resized, rtol=0, atol=1e-12)


def test_a_batch_equals_its_examples():
    net, inputs = CASES[0].build(3)
    explain, targets = UnionCAM(net, net.layer).attribute, [2, 0, 1]
    maps = explain(inputs, targets)
    together = coherency(explain, inputs, maps, targets)
    for i, target in enumerate(targets):
        alone = coherency(explain, inputs[i : i + 1], maps[i : i + 1], target)
        assert torch.allclose(together[i], alone, rtol=0, atol=1e-12)
    assert together.shape == (3,) and together.isfinite().all()
    assert torch.equal(complexity(maps), torch.cat([complexity(m[None]) for m in maps]))


def test_constant_and_broken_maps_are_nan_and_leave_the_others_alone():
    torch.manual_seed(0)
    inputs, maps = torch.rand(7, 1, 6), torch.rand(7, 1, 3)
    maps[1] = 0.1  # constant, which resizing must not turn into a map
    maps[2, 0, 0], maps[3, 0, 0] = torch.nan, torch.inf
    again = torch.rand(7, 1, 3)
    again[4], again[5, 0, 0], again[6, 0, 0] = 0.1, torch.nan, -torch.inf

    def explain(seen, **_):
        assert seen.isfinite().all()
        return again

    result = coherency(explain, inputs, maps)
    assert result.isnan().tolist() == [False] + [True] * 6
    alone = coherency(always(*again[0].tolist()), inputs[:1], maps[:1])
    assert torch.equal(result[:1], alone)


def test_a_broken_pixel_counts_even_if_shrinking_skips_it():
    # From eight pixels to two, pixels 1, 2, 5 and 6 are read.
    inputs, maps = torch.rand(1, 1, 2), torch.arange(8.0)[None, None]
    broken = maps.clone()
    broken[0, 0, 0] = torch.nan
    assert coherency(always(*maps[0].tolist()), inputs, maps).item() == pytest.approx(1)
    assert coherency(always(*maps[0].tolist()), inputs, broken).isnan()
    assert coherency(always(*broken[0].tolist()), inputs, maps).isnan()


def test_the_explanation_gets_the_call_with_every_image_masked():
    calls = []

    def explain(inputs, **kwargs):
        calls.append((inputs, kwargs))
        return torch.tensor([[[0.0, 1]]])

    image, text, small = torch.ones(1, 2, 3), torch.ones(1, 4), torch.ones(1, 1, 2)
    maps, extra = torch.tensor([[[0.0, 1, 2]]]), torch.tensor([7])
    coherency(
        explain,
        (image, text, small),
        maps,
        target=[3],
        baselines=(0, 0, -1),
        additional_forward_args=(extra, "word"),
        theta=5.0,
    )
    [((seen, words, other), kwargs)] = calls
    assert seen.tolist() == [[[0, 0.5, 1]] * 2]
    assert torch.equal(words, text)
    # [0 1 2] at size two is [.25 1.75], which scales to [0 1].
    assert other.tolist() == [[[-1, 1]]]
    assert kwargs.pop("additional_forward_args") == (extra, "word")
    assert kwargs == {"target": [3], "theta": 5.0}


def test_keeps_no_graph_and_changes_nothing():
    net, inputs = CASES[0].build(3)
    inputs.requires_grad_()
    before = inputs.detach().clone()
    maps = torch.rand(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)

    def explain(seen, **kwargs):
        assert not seen.requires_grad
        return maps.flip(3) * seen.sum()

    assert not coherency(explain, inputs, maps).requires_grad
    assert not complexity(maps).requires_grad
    assert torch.equal(inputs.detach(), before) and inputs.grad is None


def test_an_explanation_in_place_does_not_reach_the_callers_inputs():
    image, text = torch.rand(2, 1, 4), torch.rand(2, 5)
    before = image.clone(), text.clone()

    def explain(inputs, **_):
        return inputs[0].mul_(2) + inputs[1].mul_(2).sum()

    coherency(explain, (image, text), torch.rand(2, 1, 4))
    assert torch.equal(image, before[0]) and torch.equal(text, before[1])


def test_works_in_inference_mode():
    net, _ = CASES[0].build(3)
    explain = DenoisedGradCAM(net, net.layer).attribute
    with torch.inference_mode():
        inputs = torch.rand(2, 2, 7, 7, dtype=torch.float64)
        result = coherency(explain, inputs, explain(inputs, 1), target=1)
    assert result.isfinite().all()


@pytest.mark.parametrize(
    ("inputs", "maps", "match"),
    [
        ((3, 2, 8, 8), (2, 1, 4, 4), r"`attributions` must .* \(3, 1, \*size\), got"),
        ((3, 2, 8, 8), (3, 2, 4, 4), "`attributions` must"),
        ((3, 2, 8, 8), (3, 1, 4), r"`inputs` must .* rank, 3, .* \[\(3, 2, 8, 8\)\]"),
    ],
)
def test_refuses_maps_that_do_not_fit(inputs, maps, match):
    with pytest.raises(ValueError, match=match):
        coherency(image_itself, torch.rand(inputs), torch.rand(maps))


def test_refuses_baselines_that_do_not_fit():
    with pytest.raises(ValueError, match="`baselines` must"):
        coherency(
            image_itself, torch.rand(1, 2, 8), torch.rand(1, 1, 4), baselines=(0, 0)
        )


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (3, 2, 4, 4), (3, 1, 4), (3,)])
def test_refuses_explanations_that_are_no_maps(shape):
    with pytest.raises(
        ValueError, match=r"`explain_func` must .* \(3, 1, \*size\), got"
    ):
        coherency(
            lambda inputs, **_: torch.rand(shape),
            torch.rand(3, 2, 8, 8),
            torch.rand(3, 1, 4, 4),
        )


def test_refuses_explanations_that_are_tuples():
    net, inputs = CASES[0].build(3)
    explain = as_explanation_func(DenoisedGradCAM(net, net.layer))
    with pytest.raises(
        TypeError, match="`explain_func` must return a Tensor, got a tup"
    ):
        coherency(explain, inputs, torch.rand(3, 1, 4, 4), target=1)


def test_complexity_is_the_mean_of_the_scaled_map():
    # [0 1 0 .5], [0 .5 1 1] and, for the constant map, zeros.
    maps = torch.tensor([[[3.0, 5, 3, 4]], [[-2, -1, 0, 0]], [[7, 7, 7, 7]]])
    assert complexity(maps).tolist() == [1.5 / 4, 2.5 / 4, 0]


def test_complexity_at_a_size_is_that_of_the_resized_map():
    # [0 0 1] at size six is [0 0 0 .25 .75 1].
    resized = complexity(torch.tensor([[[0.0, 0, 1]]]), (6,))
    assert resized.tolist() == pytest.approx([2 / 6])
    assert complexity(torch.full((1, 1, 3, 3), 0.1), (7, 7)).tolist() == [0]


@pytest.mark.parametrize("shape", [(6,), (4, 5), (2, 3, 3)])
def test_complexity_matches_the_loops_at_every_rank(shape):
    torch.manual_seed(0)
    maps = torch.randn(4, 1, *shape, dtype=torch.float64)
    size = tuple(3 * length - 1 for length in shape)
    for result, at in [(complexity(maps), shape), (complexity(maps, size), size)]:
        for n in range(4):
            mask = to_mask(maps[n, 0].numpy(), at)
            expected = sum(abs(value) for value in mask.flat) / mask.size
            assert result[n].item() == pytest.approx(expected, abs=1e-12)


def test_a_point_is_simpler_than_its_inverse():
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 1
    assert complexity(point).item() == pytest.approx(1 / 25)
    assert complexity(-point).item() == pytest.approx(24 / 25)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_complexity_of_a_broken_map_is_nan(value):
    maps = torch.tensor([[[0.0, 1, 2, 3]], [[value, 0, 1, 2]]])
    for size in [None, (1,), (2,), (8,)]:  # size 1 reads pixels 1 and 2 alone
        assert complexity(maps, size).isnan().tolist() == [False, True]


def test_complexity_of_coarse_maps_and_of_none():
    assert complexity(torch.tensor([[[0, 4, 2]]])).dtype == torch.float32
    assert complexity(torch.rand(2, 1, 3).half()).dtype == torch.float32
    assert complexity(torch.rand(0, 1, 3)).shape == (0,)


@pytest.mark.parametrize(
    ("shape", "size", "match"),
    [
        ((2, 3, 4, 4), None, "`attributions` must"),
        ((2, 4), None, "`attributions` must"),
        ((2, 1, 4, 4), (8,), r"`size` must have the 2 spatial .* got \(8,\)"),
    ],
)
def test_complexity_refuses_what_is_no_map(shape, size, match):
    with pytest.raises(ValueError, match=match):
        complexity(torch.rand(shape), size)


def test_adcc_is_the_harmonic_mean_by_hand():
    # 3 / (1 / 1 + 1 / 0.5 + 1 / 0.5) = 0.6, and 3 / (1 / 0.25 + 1 / 1 + 1 / 1) = 0.5.
    found = adcc(*torch.tensor([[1.0, 0.25, 1], [0.5, 0, 0], [0.5, 0, 0]]))
    assert found.tolist() == pytest.approx([0.6, 0.5, 1])


@pytest.mark.parametrize("parts", [(0, 0.2, 0.2), (0.9, 1, 0.2), (0.9, 0.2, 1)])
def test_adcc_is_0_where_a_part_is(parts):
    assert adcc(*torch.tensor(parts)[:, None]).tolist() == [0]


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("value", [torch.nan, -0.1, 1.1, torch.inf])
def test_adcc_is_not_defined_where_a_part_is_not(part, value):
    parts = torch.full((3, 2), 0.5)
    parts[part, 0] = value
    found = adcc(*parts)
    assert found[0].isnan() and found[1].item() == pytest.approx(0.5)


def test_adcc_grows_with_each_part_and_is_no_more_than_three_times_the_least():
    torch.manual_seed(0)
    parts = 0.1 + 0.8 * torch.rand(3, 50, dtype=torch.float64)
    found = adcc(*parts)
    good = torch.stack([parts[0], 1 - parts[1], 1 - parts[2]])
    assert (found >= good.amin(0)).all() and (found <= good.amax(0)).all()
    assert (found <= 3 * good.amin(0)).all()
    for part, sign in enumerate((1, -1, -1)):
        better = parts.clone()
        better[part] += 0.05 * sign
        assert (adcc(*better) > found).all()
    for i in range(50):  # the loops of the paper
        total = sum(1 / value for value in good[:, i].tolist())
        assert found[i].item() == pytest.approx(3 / total)


def test_adcc_of_a_model_and_of_no_examples():
    net, inputs = CASES[0].build(0)
    cam = LayerGradCam(net, net.layer)
    maps = cam.attribute(inputs, target=1)
    drop = confidence_drop(*masked_confidences(net, inputs, maps, 1))
    again = coherency(cam.attribute, inputs, maps, target=1)
    found = adcc(again, complexity(maps, inputs.shape[2:]), drop)
    assert found.shape == (3,) and ((found > 0) & (found < 1)).all()
    assert adcc(*torch.zeros(3, 0)).shape == (0,)
