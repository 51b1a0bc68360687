"""The engine that scores masks: chunks, layouts, memory, and progress."""

import re
import warnings

import pytest
import torch
from nets import Case

from captum_unioncam._captum import progress_bar
from captum_unioncam._forward import ModelCall
from captum_unioncam._chunks import CPU_GUESS
from captum_unioncam._scoring import MaskScorer, ScoringOptions


def scored(engine, maps, keep, bar=None):
    """Returns the scores of examples under maps as masks."""
    return engine.score(keep, engine.masking(maps), bar)


def scorer(batch, **options):
    net, inputs = Case().build(0, batch)
    sizes = []

    def forward_func(image):
        sizes.append(len(image))
        return net(image)

    call = ModelCall.prepare(forward_func, inputs, 0, None)
    with torch.no_grad():
        return MaskScorer(call, 4, ScoringOptions(**options)), sizes


@pytest.mark.parametrize("chunk", [None, 1, 2, 100])
def test_every_chunk_size_gives_the_same_scores(chunk):
    torch.manual_seed(1)
    maps = torch.rand(3, 9, 4, 4, dtype=torch.float64)
    keep = torch.rand(3, 9) < 0.6
    engine, sizes = scorer(3, perturbations_per_eval=chunk)
    sizes.clear()
    with torch.no_grad():
        scores = scored(engine, maps, keep)
    limit = CPU_GUESS if chunk is None else 3 * chunk
    assert sum(sizes) == keep.sum() and max(sizes) <= limit
    assert all(size == min(limit, sum(sizes)) for size in sizes[:-1])

    engine, _ = scorer(3, perturbations_per_eval=1)
    for n in range(3):
        for k in range(9):
            with torch.no_grad():
                one = scored(
                    engine, maps[:, [k]], torch.tensor([[i == n] for i in range(3)])
                )
            expected = one[n, 0] if keep[n, k] else engine.reference_scores[n]
            assert torch.allclose(scores[n, k], expected, rtol=0, atol=1e-12)


def test_nothing_to_score_runs_no_forward_pass():
    engine, sizes = scorer(3)
    sizes.clear()
    maps = torch.rand(3, 9, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        scores = scored(engine, maps, torch.zeros(3, 9, dtype=torch.bool))
    assert not sizes
    assert torch.equal(scores, engine.reference_scores[:, None].expand(3, 9))


def test_constant_maps_and_maps_that_are_not_finite_gain_nothing():
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
        keep = torch.ones(3, 5, dtype=torch.bool)
        with progress_bar("UnionCAM", 15) as bar:
            scored(engine, maps, keep, bar)
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
        engine = MaskScorer(call, 4, ScoringOptions(baselines=baselines))
        keep = torch.ones(3, 2, dtype=torch.bool)
        scored(engine, torch.rand(3, 2, 4, 4), keep)
    # The first pass is in the caller's own format, for comparison.
    assert seen == [False, True, True, True, True]
    assert inputs.is_contiguous()


def test_a_model_that_views_activations_gets_contiguous_images():
    inputs = torch.rand(2, 2, 6, 6)
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        view_model(inputs.contiguous(memory_format=torch.channels_last))
    call = ModelCall.prepare(view_model, (inputs,), 0, None)
    engine = MaskScorer(call, 4, ScoringOptions())
    keep = torch.ones(2, 3, dtype=torch.bool)
    scores = scored(engine, torch.rand(2, 3, 3, 3), keep)
    assert scores.isfinite().all()


def test_any_other_error_of_the_model_passes():
    calls = []

    def forward_func(image):
        calls.append(1)
        raise RuntimeError("broken")

    inputs = torch.rand(2, 2, 6, 6)
    call = ModelCall.prepare(forward_func, (inputs,), 0, None)
    with pytest.raises(RuntimeError, match="broken"):
        MaskScorer(call, 4, ScoringOptions())
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
            engine = MaskScorer(call, 4, ScoringOptions(perturbations_per_eval=12))
            sizes.clear()
            scores.append(scored(engine, maps, keep))
    assert torch.allclose(*scores, rtol=0, atol=1e-12)
    (warning,) = seen
    # One input at a time does not even hold the pair of whole image and baseline.
    size = {3: 12, 1: 2}[limit]
    message = f"{size} perturbed inputs did not fit .*; continued with {limit}. Pass a"
    assert re.match(message, str(warning.message))
    assert sizes == ([3] * 6 + [1] if limit == 3 else [1] * 19)


def test_out_of_memory_for_a_single_mask_passes():
    net, inputs = Case().build(0, batch=1)
    forward_func, _ = small_memory(9, net)
    call = ModelCall.prepare(forward_func, inputs, 0, None)
    engine = MaskScorer(call, 4, ScoringOptions())
    call = ModelCall.prepare(small_memory(0, net)[0], inputs, 0, None)
    engine._call = call
    maps = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        scored(engine, maps, torch.ones(1, 1, dtype=torch.bool))


def test_the_whole_examples_and_the_baselines_are_scored_together():
    engine, sizes = scorer(3, perturbations_per_eval=2)
    assert sizes == [3, 6]  # the outputs, from which the scores are decided, and both
    net, inputs = Case().build(0, 3)
    for scores, images in (
        (engine.full_scores, inputs),
        (engine.reference_scores, torch.zeros_like(inputs)),
    ):
        expected = net(images).softmax(1)[:, 0]
        assert torch.allclose(scores, expected, rtol=0, atol=1e-12)


def test_a_change_is_made_to_each_mask_before_it_is_applied():
    engine, _ = scorer(3)
    maps = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    keep = torch.ones(3, 2, dtype=torch.bool)
    with torch.no_grad():
        hidden = engine.score(keep, engine.masking(maps, torch.zeros_like))
        shown = engine.score(keep, engine.masking(maps, torch.ones_like))
        references = engine.reference_scores[:, None].expand(3, 2)
        wholes = engine.full_scores[:, None].expand(3, 2)
    assert torch.allclose(hidden, references, rtol=0, atol=1e-12)
    assert torch.allclose(shown, wholes, rtol=0, atol=1e-12)


def test_masks_are_made_for_each_chunk_of_examples_and_columns():
    engine, _ = scorer(3, perturbations_per_eval=1)
    chunks = []

    def masks(rows, columns, size):
        chunks.append((rows.tolist(), columns.tolist(), tuple(size)))
        return torch.ones(len(rows), 1, *size)

    keep = torch.tensor([[True, False], [True, True], [False, True]])
    with torch.no_grad():
        scores = engine.score(keep, engine.masked_by(masks))
    assert chunks == [([0, 1, 1], [0, 0, 1], (7, 7)), ([2], [1], (7, 7))]
    expected = torch.where(
        keep, engine.full_scores[:, None], engine.reference_scores[:, None]
    )
    assert torch.allclose(scores, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"score_func": 1}, TypeError, "`score_func` must be a callable or None"),
        ({"max_channels": 0}, ValueError, "`max_channels` must be a positive int or"),
        ({"max_channels": 1.0}, TypeError, "`max_channels` must be a positive int or"),
        ({"fidelity": 1.5}, ValueError, r"`fidelity` must be .* in \[0, 1\]"),
        ({"fidelity": "1"}, TypeError, r"`fidelity` must be .* in \[0, 1\]"),
        ({"perturbations_per_eval": 0}, ValueError, "`perturbations_per_eval` must"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        ScoringOptions(**options)
