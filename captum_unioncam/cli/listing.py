"""What ``explain`` lists in place of explaining an image: models, or layers."""

from contextlib import suppress

from captum_unioncam.cli.options import ExplainOptions
from captum_unioncam.cli.terminal import Outcome
from captum_unioncam.errors import ConfigError, ModelError, printable
from captum_unioncam.models import Classifier, list_models, load_classifier


def listing(options: ExplainOptions) -> Outcome:
    """Returns the names of models, or the layers of a model.

    Raises:
        UserError: If there is none, or the model cannot be loaded.
    """
    if options.list_models is None:
        classifier = load_classifier(options.model, options.weights, **options.metadata)
        return Outcome(layers_text(classifier))
    names = list_models(options.list_models)
    if not names:
        raise ConfigError(f"`list_models`: no name holds {options.list_models!r}")
    return Outcome("".join(f"{printable(name)}\n" for name in names))


def layers_text(classifier: Classifier) -> str:
    """Returns a line for each layer: its name, type and shape, and which is default."""
    layers = classifier.spatial_layers()
    if not layers:
        raise ModelError(f"{classifier.name} has no layer of several positions")
    default = default_layer_of(classifier)
    names = max(len(layer.name) for layer in layers)
    kinds = max(len(layer.kind) for layer in layers)
    lines = []
    for layer in layers:
        shape = " x ".join(map(str, layer.shape))
        mark = " (default)" if layer.name == default else ""
        lines.append(f"{layer.name:<{names}}  {layer.kind:<{kinds}}  {shape}{mark}")
    return "".join(f"{printable(line)}\n" for line in lines)


def default_layer_of(classifier: Classifier) -> str | None:
    """Returns the dotted name of the default layer; None if none is found."""
    with suppress(ModelError):
        return classifier.default_layer
    return None
