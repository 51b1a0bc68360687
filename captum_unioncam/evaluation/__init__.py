"""Methods by name, and what it takes to compare them."""

from captum_unioncam.evaluation.registry import METHODS, Method, methods_table

__all__ = ["METHODS", "Method", "methods_table"]
