"""Confidences, and the engine that scores masks."""

import re
import warnings

import pytest
import torch
from nets import Case

from captum_unioncam._captum import ModelCall
from captum_unioncam._scoring import CPU_CHUNK, MaskScorer, confidence


def test_confidence_is_softmax_over_classes():
    output = torch.tensor([[0.0, 1, 3], [2, 2, 2]])
    assert torch.equal(confidence(output), output.softmax(1))


def test_confidence_of_one_output_is_the_output():
    for output in (torch.tensor([3.0, -4]), torch.tensor([[3.0], [-4]])):
        assert confidence(output) is output


def test_probabilities_are_never_softmaxed_twice():
    probabilities = torch.tensor([[0.2, 0.3, 0.5], [0, 0, 1.00005]])
    assert torch.equal(confidence(probabilities), probabilities)


def test_what_is_nearly_probabilities_is_softmaxed():
    output = torch.tensor([[0.2, 0.3, 0.5003], [-0.1, 0.6, 0.5]])
    assert torch.equal(confidence(output), output.softmax(1))


def test_each_example_is_judged_on_its_own():
    output = torch.tensor([[0.25, 0.75], [3.0, 1.0]])
    expected = torch.stack([output[0], output[1].softmax(0)])
    assert torch.equal(confidence(output), expected)


def test_probabilities_of_every_pixel_are_recognised():
    torch.manual_seed(0)
    probabilities = torch.rand(2, 4, 5, 5, dtype=torch.float64).softmax(1)
    assert torch.equal(confidence(probabilities), probabilities)
    probabilities[1, 0, 2, 2] += 1  # one such pixel, and they are no probabilities
    assert torch.equal(confidence(probabilities)[0], probabilities[0])
    expected = probabilities.softmax(1)[1]
    assert torch.equal(confidence(probabilities)[1], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_in_half_precision_are_recognised(dtype):
    torch.manual_seed(0)
    probabilities = torch.randn(64, 100).softmax(1).to(dtype)
    assert torch.equal(confidence(probabilities), probabilities.float())
    logits = torch.randn(64, 100).to(dtype)
    assert torch.equal(confidence(logits), logits.float().softmax(1))


def scorer(batch, **kwargs):
    net, inputs = Case().build(0, batch)
    sizes = []

    def forward_func(image):
        sizes.append(len(image))
        return net(image)

    call = ModelCall.prepare(forward_func, inputs, 0, None)
    with torch.no_grad():
        return MaskScorer(call, 4, **kwargs), sizes


@pytest.mark.parametrize("chunk", [None, 1, 2, 100])
def test_every_chunk_size_gives_the_same_scores(chunk):
    torch.manual_seed(1)
    maps = torch.rand(3, 9, 4, 4, dtype=torch.float64)
    keep = torch.rand(3, 9) < 0.6
    engine, sizes = scorer(3, perturbations_per_eval=chunk)
    sizes.clear()
    with torch.no_grad():
        scores = engine.score(maps, keep)
    limit = CPU_CHUNK if chunk is None else 3 * chunk
    assert sum(sizes) == keep.sum() and max(sizes) <= limit
    assert all(size == min(limit, sum(sizes)) for size in sizes[:-1])

    engine, _ = scorer(3, perturbations_per_eval=1)
    for n in range(3):
        for k in range(9):
            with torch.no_grad():
                one = engine.score(
                    maps[:, [k]], torch.tensor([[i == n] for i in range(3)])
                )
            expected = one[n, 0] if keep[n, k] else engine.reference_scores[n]
            assert torch.allclose(scores[n, k], expected, rtol=0, atol=1e-12)


def test_nothing_to_score_runs_no_forward_pass():
    engine, sizes = scorer(3)
    sizes.clear()
    maps = torch.rand(3, 9, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        scores = engine.score(maps, torch.zeros(3, 9, dtype=torch.bool))
    assert not sizes
    assert torch.equal(scores, engine.reference_scores[:, None].expand(3, 9))


def test_flat_maps_and_maps_that_are_not_finite_gain_nothing():
    engine, sizes = scorer(2)
    sizes.clear()
    maps = torch.rand(2, 2, 4, 4, dtype=torch.float64)
    maps[0, 0] = 3
    maps[1, 1, 0, 0] = torch.nan
    with torch.no_grad():
        gains = engine.gains(maps)
    assert sizes == [1]  # only the second map of the first example
    assert gains[0, 0] == 0 and gains[0, 1] != 0 and not gains[1].any()


def test_the_progress_bar_counts_masks(capsys):
    engine, _ = scorer(3, perturbations_per_eval=2)
    maps = torch.rand(3, 5, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        engine.score(maps, torch.ones(3, 5, dtype=torch.bool), "UnionCAM")
    out, err = capsys.readouterr()
    assert "UnionCAM attribution: 100%" in err and "15/15" in err and not out


def view_model(image):
    """A model that views activations, which works on contiguous images only."""
    maps = torch.nn.functional.conv2d(image, torch.ones(4, 2, 3, 3).to(image))
    return maps.view(len(maps), -1)


@pytest.mark.parametrize(
    "baselines", [0, torch.rand(3, 2, 7, 7), torch.rand(1, 2, 7, 7)]
)
def test_images_are_masked_in_channels_last(baselines):
    net, inputs = Case().build(0)
    seen = []

    def forward_func(image):
        seen.append(image.is_contiguous(memory_format=torch.channels_last))
        return net(image)

    call = ModelCall.prepare(forward_func, inputs, 0, None)
    with torch.no_grad():
        engine = MaskScorer(call, 4, baselines)
        engine.score(torch.rand(3, 2, 4, 4), torch.ones(3, 2, dtype=torch.bool))
    assert len(seen) == 2 and all(seen)
    assert inputs.is_contiguous()


def test_a_model_that_views_activations_gets_contiguous_images():
    inputs = torch.rand(2, 2, 6, 6)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        view_model(inputs.contiguous(memory_format=torch.channels_last))
    call = ModelCall.prepare(view_model, (inputs,), 0, None)
    engine = MaskScorer(call, 4)
    scores = engine.score(torch.rand(2, 3, 3, 3), torch.ones(2, 3, dtype=torch.bool))
    assert scores.isfinite().all()


def test_any_other_error_of_the_model_passes():
    calls = []

    def forward_func(image):
        calls.append(1)
        raise RuntimeError("broken")

    inputs = torch.rand(2, 2, 6, 6)
    call = ModelCall.prepare(forward_func, (inputs,), 0, None)
    with pytest.raises(RuntimeError, match="broken"):
        MaskScorer(call, 4)
    assert len(calls) == 1


def small_memory(limit, net):
    """A model for whose device batches above a limit are too large."""
    sizes = []

    def forward_func(image):
        if len(image) > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(image))
        return net(image)

    return forward_func, sizes


@pytest.mark.parametrize("limit", [3, 1])
def test_out_of_memory_halves_the_chunk_and_loses_no_score(limit):
    net, inputs = Case().build(0, batch=1)
    maps = torch.rand(1, 20, 4, 4, dtype=torch.float64)
    keep = torch.ones(1, 20, dtype=torch.bool)
    keep[0, 3] = False
    forward_func, sizes = small_memory(limit, net)
    scores = []
    for function in (net, forward_func):
        call = ModelCall.prepare(function, inputs, 0, None)
        with warnings.catch_warnings(record=True) as seen, torch.no_grad():
            engine = MaskScorer(call, 4, perturbations_per_eval=12)
            sizes.clear()
            scores.append(engine.score(maps, keep))
    assert torch.allclose(*scores, rtol=0, atol=1e-12)
    (warning,) = seen
    message = (
        f"12 perturbed inputs did not fit .*; went on with {limit}. Pass a smaller"
    )
    assert re.match(message, str(warning.message))
    assert sizes == ([3] * 6 + [1] if limit == 3 else [1] * 19)


def test_out_of_memory_for_a_single_mask_passes():
    net, inputs = Case().build(0, batch=1)
    forward_func, _ = small_memory(9, net)
    call = ModelCall.prepare(forward_func, inputs, 0, None)
    engine = MaskScorer(call, 4)
    call = ModelCall.prepare(small_memory(0, net)[0], inputs, 0, None)
    engine._call = call
    maps = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        engine.score(maps, torch.ones(1, 1, dtype=torch.bool))
