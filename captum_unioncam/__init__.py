"""UnionCAM (Hu et al. 2024) and the family of CAMs, as Captum attributions."""

from captum_unioncam.adapters import as_explanation_func, to_input
from captum_unioncam.attr import (
    AblationCAM,
    DenoisedGradCAM,
    FusionCAM,
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

__all__ = [
    "AblationCAM",
    "DenoisedGradCAM",
    "FusionCAM",
    "GradCAMPlusPlus",
    "GradientCAM",
    "GroupCAM",
    "HiResCAM",
    "ISCAM",
    "LayerCAM",
    "ReciproCAM",
    "RegionCAM",
    "SSCAM",
    "ScoreCAM",
    "UnionCAM",
    "UnionCAMDetails",
    "XGradCAM",
    "__version__",
    "as_explanation_func",
    "to_input",
]

__version__ = "0.1.0"
