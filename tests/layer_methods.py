"""The methods of this package that explain a layer. Not a test itself.

The others explain the input, or are Captum's own.
"""

from captum_unioncam.attr._base import CAMAttribution
from captum_unioncam.evaluation.methods import METHODS

LAYER_METHODS = {
    name: method
    for name, method in METHODS.items()
    if issubclass(method.attribution, CAMAttribution)
}
