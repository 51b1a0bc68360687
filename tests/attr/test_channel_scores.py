"""Which channels are scored, in rounds, and what becomes of the other scores."""

import numpy as np
import pytest
import torch
from reference_prediction import channel_scores

from captum_unioncam._maps import is_active
from captum_unioncam.attr._channel_scores import ChannelScores

BASELINE = 0.25  # in any type


class Scores:
    """Scores by a table, and keeps what it is asked: one (N, K) for each round."""

    def __init__(self, table, rows=slice(None)):
        self.table, self.rounds = table[rows], []

    def __call__(self, chosen):
        self.rounds.append(chosen)
        return torch.where(chosen, self.table, BASELINE)

    @property
    def counts(self):
        """How many channels of each example each round scores."""
        return [chosen.sum(1).tolist() for chosen in self.rounds]


def case(examples=3, channels=40):
    """Returns activations and scores that are smooth in the masks, up to some noise.

    Every fifth channel is constant, and more of the later examples.
    """
    draw = torch.Generator().manual_seed(0)
    shape = examples, channels, 4, 3
    activations = torch.rand(shape, generator=draw, dtype=torch.float64)
    activations[:, ::5] = 0.5
    for i in range(examples):
        activations[i, channels - 6 * i :] = 0.5
    weights = torch.randn(12, generator=draw, dtype=torch.float64)
    noise = torch.rand(shape[:2], generator=draw, dtype=torch.float64)
    return activations, torch.sigmoid(activations.flatten(2) @ weights + 0.3 * noise)


def run(activations, table, max_channels=None, fidelity=1.0, rows=slice(None)):
    """Returns what is scored, and the engine that scored it."""
    scores = Scores(table, rows)
    activations = activations[rows]
    baselines = torch.full((len(activations),), BASELINE).double()
    result = ChannelScores(activations, baselines, max_channels, fidelity)
    return recorded(result, scores), scores


def recorded(result, score):
    """Lets a function score what is chosen, and returns the result."""
    for chosen in result:
        result.record(score(chosen))
    return result


ALMOST = 1 - 1e-12  # a fidelity that only all channels reach; 1 needs no rounds
OPTIONS = [
    {"max_channels": 1},
    {"max_channels": 3},
    {"max_channels": 11},
    {"max_channels": 23},  # all active channels of some examples
    {"max_channels": 99},
    {"fidelity": 0.0},
    {"fidelity": 0.998},
    {"fidelity": ALMOST},
    {"fidelity": 1.0},
    {"fidelity": 0.998, "max_channels": 18},
    {"fidelity": 0.0, "max_channels": 7},
    {"fidelity": 1.0, "max_channels": 23},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


@each_option
def test_is_the_reference_in_loops(options):
    activations, table = case()
    result, _ = run(activations, table, **options)
    for i, array in enumerate(activations.numpy()):
        scores, known, fidelity = channel_scores(
            lambda k: table[i, k].item(), array, BASELINE, **options
        )
        np.testing.assert_allclose(result.scores[i], scores, rtol=1e-9)
        assert result.measured[i].nonzero().flatten().tolist() == sorted(known)
        assert result.fidelity[i].item() == pytest.approx(fidelity, rel=1e-9)


@each_option
def test_measured_scores_are_kept_and_none_is_measured_twice(options):
    activations, table = case()
    result, scores = run(activations, table, **options)
    times = torch.stack(scores.rounds).sum(0)
    assert torch.equal(times, result.measured.long())
    assert (is_active(activations) | ~result.measured).all()
    assert torch.equal(result.scores[result.measured], table[result.measured])
    constant = ~is_active(activations)
    assert (result.scores[constant] == BASELINE).all()
    most = options.get("max_channels", activations.shape[1])
    assert (result.measured.sum(1) <= most).all()


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_examples_are_scored_as_if_alone(options):
    activations, table = case()
    result, scores = run(activations, table, **options)
    for i in range(3):
        one, alone = run(activations, table, **options, rows=slice(i, i + 1))
        assert torch.equal(one.measured[0], result.measured[i])
        torch.testing.assert_close(one.scores[0], result.scores[i], rtol=1e-12, atol=0)
        torch.testing.assert_close(one.fidelity[0], result.fidelity[i])
        counts = [of_round[i] for of_round in scores.counts if of_round[i]]
        assert counts == [count for (count,) in alone.counts if count]


@pytest.mark.parametrize(
    "options",
    [{}, {"max_channels": 32}, {"max_channels": 40}, {"max_channels": 99}],
    ids=str,
)
def test_all_channels_are_scored_at_once_where_they_may(options):
    activations, table = case()
    result, scores = run(activations, table, **options)
    active = is_active(activations)
    assert [torch.equal(chosen, active) for chosen in scores.rounds] == [True]
    assert torch.equal(result.scores, torch.where(active, table, BASELINE))
    assert torch.equal(result.measured, active)
    assert result.fidelity.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "options", [{"max_channels": 60}, {"fidelity": ALMOST}], ids=str
)
def test_a_round_scores_4_channels_or_an_eighth(options):
    draw = torch.Generator().manual_seed(0)
    activations = torch.rand(1, 70, 3, 3, generator=draw)
    table = torch.rand(1, 70, generator=draw)
    _, scores = run(activations, table, **options)
    counts = [count for (count,) in scores.counts if count]
    last = [4] if "max_channels" in options else [7, 7]
    assert counts == [*[4] * 10, 5, 5, 6, *last]


def test_finished_examples_leave_the_batch():
    activations, table = case()
    # The scores of the first example are the easiest, those of the last are not smooth.
    draw = torch.Generator().manual_seed(1)
    table[0], table[2] = BASELINE, torch.rand(40, generator=draw).double()
    result, scores = run(activations, table, fidelity=0.997)
    measured = result.measured.sum(1)
    assert measured[0] == 16 < measured[1]
    rounds = torch.tensor(scores.counts)  # (rounds, N)
    assert torch.equal(rounds.sum(0), measured)
    for i in range(3):  # none after the last
        going_on = rounds[:, i] > 0
        assert torch.equal(going_on, going_on.cummin(0).values)
    assert (result.fidelity >= 0.997).all()


def test_16_channels_are_scored_before_the_estimate_counts():
    activations, table = case(1)
    table[:] = BASELINE
    estimates = [
        run(activations, table, max_channels=count)[0].fidelity for count in (4, 12)
    ]
    assert min(estimates) > 0.999
    result, _ = run(activations, table, fidelity=0.9)
    assert result.measured.sum() == 16
    # Fewer only where `max_channels` says so.
    result, _ = run(activations, table, fidelity=0.9, max_channels=5)
    assert result.measured.sum() == 5


def assert_same_but_for_1(actual, expected):
    """Compares the other examples, of batches that round otherwise."""
    assert torch.equal(actual.measured[[0, 2]], expected.measured[[0, 2]])
    for name in ("scores", "fidelity"):
        left, right = getattr(actual, name)[[0, 2]], getattr(expected, name)[[0, 2]]
        torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    "options",
    [{"max_channels": 11}, {"fidelity": 0.998}, {"fidelity": ALMOST}],
    ids=str,
)
def test_a_score_that_is_not_finite_stops_its_example_alone(options, value):
    activations, table = case()
    expected, scores = run(activations, table, **options)
    changed = table.clone()
    changed[1, scores.rounds[0][1]] = value
    actual, scores = run(activations, changed, **options)
    assert [count[1] for count in scores.counts if count[1]] == [4]
    assert actual.fidelity[1].isnan() and not actual.scores[1].isfinite().all()
    assert_same_but_for_1(actual, expected)


@each_option
def test_activations_that_are_not_finite_are_not_scored(options):
    activations, table = case()
    expected, _ = run(activations, table, **options)
    activations[1, 3, 0, 0] = torch.nan
    actual, _ = run(activations, table, **options)
    assert not actual.measured[1].any() and (actual.scores[1] == BASELINE).all()
    assert_same_but_for_1(actual, expected)


@each_option
def test_an_empty_batch(options, recwarn):
    activations, table = case()
    result, _ = run(activations, table, **options, rows=slice(0))
    assert result.scores.shape == result.measured.shape == (0, 40)
    assert result.fidelity.shape == (0,) and not recwarn


@each_option
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_and_activations_may_be_of_other_types(options, dtype):
    activations, table = case()
    scores = Scores(table.float())
    baselines = torch.full((3,), BASELINE)
    result = recorded(
        ChannelScores(activations.to(dtype), baselines, **options), scores
    )
    assert result.scores.dtype == torch.float32
    assert torch.equal(result.scores[result.measured], table.float()[result.measured])
    assert result.fidelity.dtype == torch.float64
