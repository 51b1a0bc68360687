from .config import EvaluationConfig as EvaluationConfig
from .methods import (
    METHODS as METHODS,
    Method as Method,
    methods_table as methods_table,
    parse_method as parse_method,
)
from .metrics import (
    METRICS as METRICS,
    Batch as Batch,
    Measurement as Measurement,
    Metric as Metric,
    metrics_table as metrics_table,
)
from .runner import evaluate as evaluate
