"""Scores of a layer's channels as masks: of all of them, or of a few with the others.

The others are predicted: see :mod:`captum_unioncam._prediction`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from captum_unioncam._maps import is_active
from captum_unioncam._prediction import (
    Masks,
    estimated_fidelity,
    first_channels,
    next_channels,
    predict,
)

# From which channels to score, (N, K), to their scores, (N, K).
Score = Callable[[Tensor], Tensor]

# A round scores this many channels of each example, or this share of those before it.
ROUND = 4
ROUND_SHARE = 1 / 8
# The estimated fidelity counts from this many scored channels on.
FEWEST = 16


@dataclass(frozen=True, eq=False)
class ChannelScores:
    """The scores of the channels, measured or predicted.

    Attributes:
        scores (Tensor): (N, K).
        measured (Tensor): Which active channels were scored, bool, (N, K).
        fidelity (Tensor): Estimated correlation of the map that the scores weight with
            the map under exact scores, (N,): 1 where none was predicted, NaN where one
            that others are predicted from is not finite.
    """

    scores: Tensor
    measured: Tensor
    fidelity: Tensor


def score_channels(
    score: Score,
    activations: Tensor,
    baseline_scores: Tensor,
    max_channels: int | None,
    fidelity: float,
) -> ChannelScores:
    """Scores the active channels of each example, or a few of them in rounds.

    Each example stops on its own, at ``max_channels``, or where its estimated fidelity
    reaches ``fidelity``. Its scores are exact where that leaves no channel.

    Args:
        score (Callable): Scores channels as masks.
        activations (Tensor): The layer's channels, (N, K, *spatial).
        baseline_scores (Tensor): The exact score of constant channels, (N,).
        max_channels (int, optional): The most channels to score.
        fidelity (float): The estimated fidelity to reach, in [0, 1]; 1 is exact.
    """
    active = is_active(activations)  # (N, K)
    exact = torch.ones(len(active), dtype=torch.float64, device=active.device)
    if max_channels is None and fidelity == 1:
        return ChannelScores(score(active), active, exact)
    counts, limit = active.sum(1), active.shape[1]
    limit = limit if max_channels is None else min(max_channels, limit)
    baseline_scores = baseline_scores.to(active.device)
    scores = baseline_scores[:, None].repeat(1, active.shape[1])  # (N, K)
    measured, reached = torch.zeros_like(active), exact
    rows = torch.arange(len(active), device=active.device)  # those that go on, (R,)
    known = rows.new_empty(len(rows), 0)  # their channels that are measured, (R, k)
    while len(rows):
        size = known.shape[1]
        total = min(limit, size + max(ROUND, int(size * ROUND_SHARE)))
        # What has no more channels than it may have passes is exact.
        whole = counts[rows] <= (limit if fidelity == 1 else total)
        chosen = torch.zeros_like(active)
        chosen[rows[whole]] = active[rows[whole]] & ~measured[rows[whole]]
        reached[rows[whole]] = 1
        rows, known = rows[~whole], known[~whole]
        if len(rows):
            given = scores[rows]
            predicted, reached[rows], new = _look_ahead(
                Masks.of(activations[rows], active[rows]),
                known,
                given,
                baseline_scores[rows],
                total - size,
            )
            open_ones = active[rows] & ~measured[rows]
            scores[rows] = torch.where(open_ones, predicted, given)
            # A score of NaN, whose map is NaN, has an estimate of NaN.
            on = reached[rows].isfinite() & (size < limit)
            if size >= FEWEST:
                on &= reached[rows] < fidelity
            rows, known = rows[on], torch.cat([known, new], 1)[on]
            chosen[rows] = chosen[rows].scatter(1, new[on], True)
        scores = torch.where(chosen, score(chosen), scores)
        measured |= chosen
    return ChannelScores(scores, measured, reached)


def _look_ahead(
    masks: Masks,
    known: Tensor,
    scores: Tensor,
    baseline_scores: Tensor,
    count: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicts the scores that are not known, and chooses what to score next.

    Args:
        masks (Masks): Of R examples.
        known (Tensor): The channels whose scores are known, (R, k).
        scores (Tensor): (R, K), of which those are used.
        baseline_scores (Tensor): (R,).
        count (int): How many channels to choose.

    Returns:
        The scores of all channels, (R, K); the estimated fidelity, (R,); and the chosen
        channels, (R, ``count``).
    """
    if not known.shape[1]:
        unknown = torch.zeros_like(baseline_scores).double()
        return scores, unknown, first_channels(masks, count)
    prediction = predict(masks, known, scores.gather(1, known), baseline_scores)
    chosen, error = next_channels(masks, prediction, count)
    fidelity = estimated_fidelity(masks, prediction.scores, error)
    return prediction.scores[:, :-1].to(scores), fidelity.double(), chosen
