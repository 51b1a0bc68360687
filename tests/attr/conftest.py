"""The methods that a behaviour holds for, as fixtures: a test runs for each."""

import pytest
from headed import METHODS, HeadedCAM

from captum_unioncam import (
    FDCAM,
    ISCAM,
    SSCAM,
    AblationCAM,
    DenoisedGradCAM,
    EigenCAM,
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

# Gradients of several inputs.
SAMPLED = (SmoothGradCAMPlusPlus, IntegratedGradCAM)
# Nothing but gradients.
GRADIENT_ONLY = (
    *SAMPLED,
    DenoisedGradCAM,
    GradCAM,
    GradCAMPlusPlus,
    XGradCAM,
    HiResCAM,
    LayerCAM,
    EigenGradCAM,
)
# One forward pass.
ACTIVATION_ONLY = (HeadedCAM, EigenCAM)
UNITING = (UnionCAM, FusionCAM)
GRADIENT = (*UNITING, GroupCAM, FDCAM, *GRADIENT_ONLY)
# Every channel is a mask on the inputs.
CHANNEL_MASKING = (*UNITING, RegionCAM, ScoreCAM, SSCAM, ISCAM)
MASKING = (*CHANNEL_MASKING, GroupCAM)
# The layer's tensor is replaced, and no input is masked.
REPLACING = (AblationCAM, ReciproCAM, FDCAM)
SCORING = (*MASKING, *REPLACING)
WITH_MAX_CHANNELS = (*CHANNEL_MASKING, AblationCAM)
EVERY = tuple(method.attribution for method in METHODS.values())
assert set(EVERY) == {
    *SCORING,
    *GRADIENT_ONLY,
    *ACTIVATION_ONLY,
}, "a method is missing above"


@pytest.fixture(scope="module", autouse=True)
def one_thread_for_small_nets(one_thread):
    """Runs every test of this folder on one thread."""


def each_of(methods):
    """Returns a fixture that is each of the methods in turn."""

    @pytest.fixture(params=methods, ids=lambda method: method.__name__)
    def method(request):
        return request.param

    return method


every_method = each_of(EVERY)
gradient_method = each_of(GRADIENT)
gradient_only_method = each_of(GRADIENT_ONLY)
uniting_method = each_of(UNITING)
sampled_method = each_of(SAMPLED)
scoring_method = each_of(SCORING)
masking_method = each_of(MASKING)
replacing_method = each_of(REPLACING)
channel_masking_method = each_of(CHANNEL_MASKING)
max_channels_method = each_of(WITH_MAX_CHANNELS)
