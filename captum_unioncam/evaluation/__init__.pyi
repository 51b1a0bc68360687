from .config import EvaluationConfig as EvaluationConfig
from .labels import parse_method as parse_method
from .lists import (
    methods_table as methods_table,
    metrics_table as metrics_table,
)
from .methods import (
    METHODS as METHODS,
    Method as Method,
)
from .metrics import (
    METRICS as METRICS,
    Batch as Batch,
    Measurement as Measurement,
    Metric as Metric,
)
from .rewriting import rewrite_report as rewrite_report
from .runner import evaluate as evaluate
