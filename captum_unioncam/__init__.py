"""UnionCAM (Hu et al. 2024) and the family of CAMs, as Captum attributions."""

from captum_unioncam.adapters import as_explanation_func, to_input
from captum_unioncam.attr import (
    AblationCAM,
    DenoisedGradCAM,
    FusionCAM,
    GradCAM,
    GradCAMPlusPlus,
    GradientCAM,
    GroupCAM,
    HiResCAM,
    ISCAM,
    LayerCAM,
    ReciproCAM,
    RegionCAM,
    ScoreCAM,
    SSCAM,
    UnionCAM,
    UnionCAMDetails,
    XGradCAM,
)
from captum_unioncam.layers import find_layer, swin_reshape, vit_reshape
from captum_unioncam.outputs import BoxScore, MeanOverMask, SelectedOutput

__all__ = [
    "AblationCAM",
    "BoxScore",
    "DenoisedGradCAM",
    "FusionCAM",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientCAM",
    "GroupCAM",
    "HiResCAM",
    "ISCAM",
    "LayerCAM",
    "MeanOverMask",
    "ReciproCAM",
    "RegionCAM",
    "SSCAM",
    "ScoreCAM",
    "SelectedOutput",
    "UnionCAM",
    "UnionCAMDetails",
    "XGradCAM",
    "__version__",
    "as_explanation_func",
    "find_layer",
    "swin_reshape",
    "to_input",
    "vit_reshape",
]

__version__ = "0.1.0"
