"""From a model's output to scores: the confidence of each example in its target."""

from collections.abc import Callable

from torch import Tensor

from captum_unioncam._captum import TargetType, select_targets
from captum_unioncam._checks import warn_user
from captum_unioncam._maps import at_least_float32

ScoreFunc = Callable[[Tensor], Tensor]

# How far from 1 the sum of a row of probabilities may be. A softmax over 1,000 classes
# in bfloat16 is off by up to 0.004, and by 0.006 if its steps are rounded too.
PROBABILITY_TOLERANCE = 1e-2

GIVE_SCORE_FUNC = (
    "Give `score_func`: torch.sigmoid for logits of independent labels, or lambda "
    "output: output to use the values unchanged."
)


def confidence(output: Tensor) -> Tensor:
    """Turns a model's output into confidences, as :func:`score_func_for` decides."""
    return score_func_for(output)(output)


def score_func_for(output: Tensor, score_func: ScoreFunc | None = None) -> ScoreFunc:
    """Returns the ``score_func`` of a whole call, decided from its unmasked outputs.

    The default is softmax over dimension 1 if that is a class dimension (larger than
    1), else the output itself. Outputs whose dimension 1 holds probabilities already
    (non-negative, with a sum of 1 within 0.01 for every example) are used unchanged.

    Warns:
        UserWarning: If the default may not be what the output needs: values in [0, 1]
            that do not sum to 1 (probabilities of independent labels), or a single
            output with negative values (a binary logit).

    Args:
        output (Tensor): The model's output for the unmasked inputs, (N, ...).
        score_func (Callable, optional): The user's, which is returned. Default: None
    """
    if score_func is not None:
        return score_func
    if output.dim() < 2 or output.shape[1] == 1:
        if bool((output.detach() < 0).any()):
            warn_user(
                "The model's single output is used as the score, and has negative "
                f"values, as a binary logit has. {GIVE_SCORE_FUNC}"
            )
        return at_least_float32
    values = at_least_float32(output.detach())
    values = values[values.flatten(1).isfinite().all(1)]  # the others say nothing
    if not values.numel():
        return _softmax
    low, high = values.aminmax()
    if low >= 0:
        off_one = (values.sum(1) - 1).abs()  # (N, ...)
        if bool((off_one <= PROBABILITY_TOLERANCE).all()):
            return at_least_float32
        if high <= 1:
            warn_user(
                "The model's outputs are in [0, 1] and do not sum to 1, as "
                "probabilities of independent labels; softmax is applied to them. "
                f"{GIVE_SCORE_FUNC}"
            )
    return _softmax


def unchanged(output: Tensor) -> Tensor:
    """Returns outputs as scores: a ``score_func`` of logits."""
    return output


def _softmax(output: Tensor) -> Tensor:
    return at_least_float32(output).softmax(1)


def scores_at_target(
    output: Tensor, score_func: ScoreFunc, target: TargetType
) -> Tensor:
    """Returns the score of each row of a model's output, (P,)."""
    scores = select_targets(score_func(output), target).detach()
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
            f"`target` {target} leaves the shape {shape} for a batch of {rows}."
        )
        raise _score_func_error(scores, f"{shape} at the target")


def _score_func_error(scores: Tensor, reason: str) -> ValueError:
    return ValueError(
        "`score_func` must return one value for each example at `target`, got the "
        f"shape {tuple(scores.shape)} ({reason}); keep the output's shape, as "
        "torch.sigmoid does."
    )
