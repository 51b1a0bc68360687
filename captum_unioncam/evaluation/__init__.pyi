from .config import EvaluationConfig as EvaluationConfig
from .labels import parse_method as parse_method
from .methods import (
    METHODS as METHODS,
    Method as Method,
    methods_table as methods_table,
)
from .metrics import (
    METRICS as METRICS,
    Batch as Batch,
    Measurement as Measurement,
    Metric as Metric,
    metrics_table as metrics_table,
)
from .rewriting import rewrite_report as rewrite_report
from .runner import evaluate as evaluate
