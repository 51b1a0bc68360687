"""UnionCAM (Hu et al. 2024) as a Captum attribution."""

from captum_unioncam.adapters import as_explanation_func, to_input
from captum_unioncam.attr import (
    DenoisedGradCAM,
    RegionCAM,
    UnionCAM,
    UnionCAMDetails,
)

__all__ = [
    "DenoisedGradCAM",
    "RegionCAM",
    "UnionCAM",
    "UnionCAMDetails",
    "__version__",
    "as_explanation_func",
    "to_input",
]

__version__ = "0.1.0"
