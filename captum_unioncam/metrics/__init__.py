"""How good a map is: metrics in Captum's style, a value for each example."""

from captum_unioncam.metrics.coherence import adcc, coherency, complexity
from captum_unioncam.metrics.confidence import (
    average_gain,
    confidence_drop,
    confidence_increase,
    confidence_kept,
    masked_confidences,
)
from captum_unioncam.metrics.curves import deletion, insertion
from captum_unioncam.metrics.fidelity import mu_fidelity
from captum_unioncam.metrics.imputation import road
from captum_unioncam.metrics.localization import (
    box_iou,
    boxes_to_masks,
    energy_pointing_game,
    pointing_game,
)

__all__ = [
    "adcc",
    "average_gain",
    "box_iou",
    "boxes_to_masks",
    "coherency",
    "complexity",
    "confidence_drop",
    "confidence_increase",
    "confidence_kept",
    "deletion",
    "energy_pointing_game",
    "insertion",
    "masked_confidences",
    "mu_fidelity",
    "pointing_game",
    "road",
]
