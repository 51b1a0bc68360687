"""Scores of a layer's channels as masks: of all of them, or of a few with the others.

The others are predicted: see :mod:`captum_unioncam._prediction`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from captum_unioncam._maps import is_active
from captum_unioncam._prediction import (
    Masks,
    estimated_fidelity,
    first_channels,
    next_channels,
    precise_type,
    predict,
)

# A round scores this many channels of each example, or this share of those before it.
ROUND = 4
ROUND_SHARE = 1 / 8
# The estimated fidelity counts from this many scored channels on.
FEWEST = 16


class ChannelScores:
    """Scores of the active channels of each example, or of a few of them, in rounds.

    It says what to score, and takes the scores::

        for chosen in channel_scores:  # bool, (N, K)
            channel_scores.record(score(chosen))  # (N, K)

    Each example stops on its own, at ``max_channels``, or where its estimated fidelity
    reaches ``fidelity``. Its scores are exact where that leaves no channel.

    Args:
        activations (Tensor): The layer's channels, (N, K, *spatial).
        baseline_scores (Tensor): The exact score of constant channels, (N,).
        max_channels (int, optional): The most channels to score. Default: None
        fidelity (float, optional): The estimated fidelity to reach, in [0, 1]. Default:
            1.0, which is exact

    Attributes:
        scores (Tensor): The scores of all channels, measured or predicted, (N, K).
        measured (Tensor): Which channels were scored, bool, (N, K).
        fidelity (Tensor): Estimated correlation of the map that the scores weight with
            the map under exact scores, (N,): 1 where none was predicted, NaN where one
            that others are predicted from is not finite.
    """

    def __init__(
        self,
        activations: Tensor,
        baseline_scores: Tensor,
        max_channels: int | None = None,
        fidelity: float = 1.0,
    ) -> None:
        size = activations.shape[1]
        self._activations = activations
        self._active = is_active(activations)  # (N, K)
        self._baselines = baseline_scores.to(activations.device)
        self._limit = size if max_channels is None else min(max_channels, size)
        self._asked = fidelity
        self._chosen = torch.zeros_like(self._active)
        self.scores = self._baselines[:, None].repeat(1, size)
        self.measured = torch.zeros_like(self._active)
        self.fidelity = torch.ones(
            len(activations),
            dtype=precise_type(activations.device),
            device=activations.device,
        )

    def __iter__(self) -> Iterator[Tensor]:
        counts = self._active.sum(1)
        rows = torch.arange(len(counts), device=counts.device)  # that go on, (R,)
        known = rows.new_empty(len(rows), 0)  # their measured channels, (R, k)
        while len(rows):
            size = known.shape[1]
            total = min(self._limit, size + max(ROUND, int(size * ROUND_SHARE)))
            # What has no more channels than it may have passes is exact.
            whole = counts[rows] <= (self._limit if self._asked == 1 else total)
            self._choose(rows[whole])
            rows, known = rows[~whole], known[~whole]
            if len(rows):
                on, new = self._look_ahead(rows, known, total - size)
                rows, known = rows[on], torch.cat([known, new], 1)[on]
                self._chosen[rows] = self._chosen[rows].scatter(1, new[on], True)
            yield self._chosen

    def record(self, scores: Tensor) -> None:
        """Takes the scores of the chosen channels, (N, K)."""
        self.scores = torch.where(self._chosen, scores, self.scores)
        self.measured |= self._chosen

    def _choose(self, whole: Tensor) -> None:
        """Chooses all channels that are left of some examples, (W,), and no others."""
        self._chosen = torch.zeros_like(self._active)
        self._chosen[whole] = (self._active & ~self.measured)[whole]
        self.fidelity[whole] = 1

    def _look_ahead(
        self, rows: Tensor, known: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        """Predicts the scores that are not known, and chooses what to score next.

        Args:
            rows (Tensor): The examples, (R,).
            known (Tensor): Their measured channels, (R, k).
            count (int): How many channels to choose.

        Returns:
            Which of the examples go on, (R,), and the chosen channels, (R, ``count``).
        """
        masks = Masks.of(self._activations[rows], self._active[rows])
        if not known.shape[1]:
            return torch.ones_like(rows, dtype=torch.bool), first_channels(masks, count)
        scores = self.scores[rows]
        given = scores.gather(1, known)
        prediction = predict(masks, known, given, self._baselines[rows])
        new, error = next_channels(masks, prediction, count)
        estimate = estimated_fidelity(masks, prediction.scores, error)
        open_ones = (self._active & ~self.measured)[rows]
        predicted = prediction.scores[:, :-1].to(scores)
        self.scores[rows] = torch.where(open_ones, predicted, scores)
        self.fidelity[rows] = estimate
        # A score of NaN, whose map is NaN, has an estimate of NaN.
        on = estimate.isfinite() & (known.shape[1] < self._limit)
        if known.shape[1] >= FEWEST:
            on &= estimate < self._asked
        return on, new
