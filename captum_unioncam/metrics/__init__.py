"""How good a map is: metrics in Captum's style, a value for each example."""

from captum_unioncam.metrics.confidence import confidence_kept

__all__ = ["confidence_kept"]
