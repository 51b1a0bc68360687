"""Image classifiers by name, of several sources, and what shows them an image.

Weights, preprocessing and class names come from the models' own metadata. torchvision
is imported when a model is loaded, and so are timm, transformers and the packages of
the ``demo`` extra, where a name asks for them.
"""

from captum_unioncam.models.classes import class_index, classes_named, wordnet_ids
from captum_unioncam.models.classifier import Classifier, SpatialLayer
from captum_unioncam.models.devices import resolve_device
from captum_unioncam.models.loading import list_models, load_classifier

__all__ = [
    "Classifier",
    "SpatialLayer",
    "class_index",
    "classes_named",
    "list_models",
    "load_classifier",
    "resolve_device",
    "wordnet_ids",
]
