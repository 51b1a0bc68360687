"""From a model's output to scores: the confidence of each example in its target."""

from collections.abc import Callable

import torch
from torch import Tensor

from captum_unioncam._captum import TargetType, select_targets
from captum_unioncam._maps import at_least_float32

ScoreFunc = Callable[[Tensor], Tensor]

# How far from 1 the sum of an output's probabilities may be.
PROBABILITY_TOLERANCE = 1e-4


def confidence(output: Tensor) -> Tensor:
    """Turns a model's output into confidences: the default ``score_func``.

    Softmax over dimension 1 if that is a class dimension (larger than 1), else the
    output itself. Examples whose dimension 1 holds probabilities already (non-negative,
    with a sum of 1 to within 1e-4, or the resolution of a coarser type) are taken as
    they are.
    """
    if output.dim() < 2 or output.shape[1] == 1:
        return output
    values = at_least_float32(output)
    tolerance = PROBABILITY_TOLERANCE
    if output.dtype.is_floating_point:
        tolerance = max(tolerance, torch.finfo(output.dtype).eps)
    off_one = (values.sum(1, keepdim=True) - 1).abs()  # (N, 1, ...)
    probabilities = ((values >= 0) & (off_one <= tolerance)).flatten(1).all(1)  # (N,)
    per_example = probabilities.view(-1, *[1] * (values.dim() - 1))
    return torch.where(per_example, values, values.softmax(1))


def scores_at_target(
    output: Tensor, score_func: ScoreFunc, target: TargetType
) -> Tensor:
    """Returns the score of each row of a model's output, (P,)."""
    scores = select_targets(score_func(output), target)
    return at_least_float32(scores).reshape(-1)


def check_scores(output: Tensor, score_func: ScoreFunc, target: TargetType) -> None:
    """Refuses scores without one value for each row at the target.

    Raises:
        TypeError: If ``score_func`` returns no tensor.
        ValueError: If its result has not one value for each row at the target.
        AssertionError: If the target selects more than one value, as in Captum.
    """
    rows, scores = len(output), score_func(output)
    if not isinstance(scores, Tensor):
        raise TypeError(
            f"`score_func` must return a Tensor, got a {type(scores).__name__}."
        )
    try:
        shape = tuple(select_targets(scores, target).shape)
    except (AssertionError, IndexError, RuntimeError) as error:
        select_targets(output, target)  # raises Captum's error for a wrong target
        raise _score_func_error(scores, f"{error}") from error
    if shape not in ((rows,), (rows, 1)):
        # The type and the text that Captum's gradient methods have for this.
        assert scores.shape != output.shape, (
            "Target not provided when necessary, cannot score multiple outputs: "
            f"`target` {target} leaves {shape} for {rows} examples."
        )
        raise _score_func_error(scores, f"{shape} at the target")


def _score_func_error(scores: Tensor, reason: str) -> ValueError:
    return ValueError(
        "`score_func` must return one value for each example at `target`, got the "
        f"shape {tuple(scores.shape)} ({reason}); keep the output's shape, as "
        "torch.sigmoid does."
    )
