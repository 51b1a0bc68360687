"""Methods and metrics by name, and an evaluation of them on many images.

:func:`captum_unioncam.evaluation.runner.evaluate` runs it; its module is imported when
it is needed, because it takes torchvision and matplotlib with it.
"""

from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.registry import (
    METHODS,
    METRICS,
    Method,
    Metric,
    methods_table,
    metrics_table,
    parse_method,
)

__all__ = [
    "METHODS",
    "METRICS",
    "EvaluationConfig",
    "Method",
    "Metric",
    "methods_table",
    "metrics_table",
    "parse_method",
]
