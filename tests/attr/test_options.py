"""Options: which methods have them, which values they refuse, and ``score_func``."""

import math
import re

import numpy as np
import pytest
import torch
from headed import METHODS
from nets import Case, Counted

from captum_unioncam import (
    FDCAM,
    ISCAM,
    SSCAM,
    AblationCAM,
    DenoisedGradCAM,
    EigenGradCAM,
    FusionCAM,
    GradCAM,
    GradCAMPlusPlus,
    GroupCAM,
    HiResCAM,
    IntegratedGradCAM,
    LayerCAM,
    ReciproCAM,
    RegionCAM,
    ScoreCAM,
    SmoothGradCAMPlusPlus,
    UnionCAM,
    XGradCAM,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")

EVERY = tuple(method.attribution for method in METHODS.values())
CHANNEL_MASKING = (UnionCAM, FusionCAM, RegionCAM, ScoreCAM, SSCAM, ISCAM)
MASKING = (*CHANNEL_MASKING, GroupCAM)
SCORING = (*MASKING, AblationCAM, ReciproCAM, FDCAM)
SAMPLED = (SmoothGradCAMPlusPlus, IntegratedGradCAM)
GRADIENT = (
    *SAMPLED,
    *(UnionCAM, FusionCAM, GroupCAM, FDCAM, DenoisedGradCAM, EigenGradCAM),
    *(GradCAM, GradCAMPlusPlus, XGradCAM, HiResCAM, LayerCAM),
)
METHODS_WITH = {
    "theta": (UnionCAM, FusionCAM, DenoisedGradCAM),
    "baselines": (*MASKING, IntegratedGradCAM),
    "score_func": SCORING,
    "max_channels": (*CHANNEL_MASKING, AblationCAM),
    "fidelity": CHANNEL_MASKING,
    "perturbations_per_eval": (*SCORING, *SAMPLED),
    "show_progress": SCORING,
    "grad_kwargs": GRADIENT,
    "return_details": (UnionCAM,),
    "num_samples": (SSCAM, ISCAM, SmoothGradCAMPlusPlus),
    "std": (SSCAM, SmoothGradCAMPlusPlus),
    "generator": (SSCAM, SmoothGradCAMPlusPlus),
    "n_steps": (IntegratedGradCAM,),
    "method": (IntegratedGradCAM,),
    "relative": (IntegratedGradCAM,),
    "groups": (GroupCAM,),
    "percentile": (GroupCAM, FDCAM),
    "gaussian": (ReciproCAM,),
}

PERCENTILE = "a finite number in [0, 100]"
COUNT, OR_NONE = "a positive int", "a positive int or None"
# The rule that an error states, and values that are out of bounds or of a wrong type.
RULES = {
    "theta": (PERCENTILE, (-0.1, 100.5, math.nan), ("10", None, True)),
    "percentile": (PERCENTILE, (-0.1, 100.5, math.nan, math.inf), ("70", None, True)),
    "std": ("a finite number >= 0", (-0.1, math.nan, math.inf), ("2", None, True)),
    "max_channels": (OR_NONE, (0, -3), (2.0, "2", True)),
    "fidelity": ("a finite number in [0, 1]", (-0.1, 1.1, math.nan), ("1", True)),
    "perturbations_per_eval": (OR_NONE, (0, -3), (2.0, "2", True)),
    "num_samples": (COUNT, (0, -3), (2.0, "2", True, None)),
    "groups": (COUNT, (0, -3), (2.0, "2", True, None)),
    "n_steps": ("an int >= 2", (1, 0), (2.0, "2", True, None)),
    "score_func": ("a callable or None", (), (3, "softmax")),
    "generator": ("a Generator or None", (), (0, "cpu", torch.manual_seed)),
}


def cases_of(values_of):
    """Lists method, option and value for the values of each option's rule."""
    return [
        (method, option, value)
        for option, rule in RULES.items()
        for method in METHODS_WITH[option]
        for value in values_of(rule)
    ]


def name_of(value):
    return getattr(value, "__name__", None) or repr(value)


def refuses(method, option, value, error, shown):
    """Expects an error that names option, rule and value, before any pass."""
    net, inputs = Case().build(0)
    counted, rule = Counted(net), RULES[option][0]
    if method in SAMPLED and option == "perturbations_per_eval":
        rule = COUNT
    message = re.escape(f"`{option}` must be {rule}, got {shown}")
    with pytest.raises(error, match=message):
        method(counted, net.layer).attribute(inputs, target=0, **{option: value})
    assert not counted.sizes


@pytest.mark.parametrize(
    "method, option, value", cases_of(lambda rule: rule[1]), ids=name_of
)
def test_refuses_a_value_out_of_bounds(method, option, value):
    refuses(method, option, value, ValueError, str(value))


@pytest.mark.parametrize(
    "method, option, value", cases_of(lambda rule: rule[2]), ids=name_of
)
def test_refuses_a_value_of_a_wrong_type(method, option, value):
    refuses(method, option, value, TypeError, repr(value))


def test_refuses_the_class_of_a_generator():
    net, inputs = Case().build(0)
    message = "`generator` .* the Generator class; pass an instance of it"
    with pytest.raises(TypeError, match=message):
        SSCAM(net, net.layer).attribute(inputs, target=0, generator=torch.Generator)


@pytest.mark.parametrize(
    "method, option",
    [
        (method, option)
        for option, having in METHODS_WITH.items()
        for method in EVERY
        if method not in having
    ],
    ids=name_of,
)
def test_refuses_the_options_of_other_methods(method, option):
    net, inputs = Case().build(0)
    with pytest.raises(TypeError, match=f"'{option}'"):
        method(net, net.layer).attribute(inputs, target=0, **{option: None})


@pytest.mark.parametrize(
    "method, option, default, value",
    [
        *(
            (method, "theta", 10.0, value)
            for method in METHODS_WITH["theta"]
            for value in (np.int64(10), np.float32(10))
        ),
        (GroupCAM, "percentile", 70.0, np.int64(70)),
        (SSCAM, "std", 2.0, np.float64(2)),
        (SmoothGradCAMPlusPlus, "std", 0.15, np.float64(0.15)),
    ],
    ids=name_of,
)
def test_a_number_may_be_of_numpy(method, option, default, value):
    net, inputs = Case().build(0)
    cam = method(net, net.layer)
    actual = cam.attribute(inputs, target=0, **{option: value})
    assert torch.equal(actual, cam.attribute(inputs, target=0))
    assert torch.equal(actual, cam.attribute(inputs, target=0, **{option: default}))


@pytest.mark.parametrize("method", MASKING)
def test_refuses_a_scoring_func_that_is_no_function(method):
    net, _ = Case().build(0)
    message = "`scoring_func` must be a callable or None, got 'fast'"
    with pytest.raises(TypeError, match=message):
        method(net, net.layer, scoring_func="fast")


@pytest.mark.parametrize(
    "score_func",
    [
        lambda output: output[:, 0],
        lambda output: output.sum(),
        lambda output: output[:1],
        lambda output: output[:, :, None].expand(-1, -1, 2),
    ],
    ids=["selected already", "one number", "one row", "several values"],
)
def test_refuses_a_score_func_without_one_value_for_each_example(
    scoring_method, score_func
):
    net, inputs = Case().build(0)
    cam = scoring_method(net, net.layer)
    with pytest.raises(ValueError, match="`score_func` must return one value for each"):
        cam.attribute(inputs, target=0, score_func=score_func)


def test_refuses_a_score_func_that_returns_no_tensor(scoring_method):
    net, inputs = Case().build(0)
    cam = scoring_method(net, net.layer)
    message = "`score_func` must return a Tensor, got a None"
    with pytest.raises(TypeError, match=message):
        cam.attribute(inputs, target=0, score_func=lambda output: None)


def test_an_error_inside_score_func_passes(scoring_method):
    net, inputs = Case().build(0)

    def score_func(output):
        return output @ torch.ones(9, 9).double()

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        scoring_method(net, net.layer).attribute(
            inputs, target=0, score_func=score_func
        )


@pytest.mark.parametrize("method", [m for m in SCORING if m not in GRADIENT])
def test_score_func_may_reduce_further_dimensions(method):
    net, inputs = Case().build(0)

    def forward_func(image):  # two copies of each score
        return net(image)[:, :, None].expand(-1, -1, 2)

    maps = method(forward_func, net.layer).attribute(
        inputs, target=1, score_func=lambda output: output.mean(2).softmax(1)
    )
    expected = method(net, net.layer).attribute(inputs, target=1)
    assert torch.allclose(maps, expected, rtol=0, atol=1e-12)
