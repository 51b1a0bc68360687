"""The command and the lines of Python that make the maps of the app again."""

import dataclasses
from typing import Any

from captum_unioncam._explaining import known_options, parsed_methods
from captum_unioncam.cli.line import command_line
from captum_unioncam.cli.options import ExplainOptions
from captum_unioncam.errors import printable

MAPS = "maps.npz"

# Writes an example of scikit-image as the file that the command reads.
EXAMPLE = (
    "python -c 'from skimage import data, io; "
    'io.imsave("{name}.png", data.{name}())\'\n'
)


def command_of(options: ExplainOptions, example: str | None) -> str:
    """Returns the command, and before it what writes the example, if it is one.

    Args:
        options (ExplainOptions): Of one image.
        example (str or None): The name of scikit-image's photograph.
    """
    (image,) = options.images or ("",)
    words = ["explain", f"./{image}" if image.startswith("-") else image]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name == "images" or value == field.default:
            continue
        words += [f"--{field.name.replace('_', '-')}", _text(value)]
    line = command_line([*words, "--maps", MAPS])
    written = "" if example is None else EXAMPLE.format(name=example)
    return f"{written}{line}\n"


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


def python_of(
    options: ExplainOptions, example: str | None, layer: str, category: str
) -> str:
    """Returns the lines of Python.

    Args:
        options (ExplainOptions): Of one image, one class by index, and methods.
        example (str or None): The name of scikit-image's photograph.
        layer (str): The layer's name.
        category (str): The name of the class.
    """
    (name,) = options.images or ("",)
    labels = list(options.methods or ())
    image = f"read_image({name!r})"
    source = "from captum_unioncam.evaluation.data import read_image"
    if example is not None:
        image = f"Image.fromarray({example}())"
        source = f"from PIL import Image\nfrom skimage.data import {example}"
    move = f"\nclassifier.model.to({options.device!r})" if options.device else ""
    theta = ""
    if any("theta" in known_options(m) for m, _ in parsed_methods(labels).values()):
        theta = f"\n    theta={options.theta!r},"
    return f"""\
{source}
from captum_unioncam import explain
from captum_unioncam.models import load_classifier

classifier = load_classifier({_arguments(options)}){move}
explanation = explain(
    classifier.model,
    {image},
    {options.target},  # {printable(category)}
    methods={labels!r},
    layer={layer!r},
    preprocess=classifier.preprocess,
    categories=classifier.categories,
    reshape_transform=classifier.reshape_transform({layer!r}),
    fidelity={options.fidelity!r},{theta}
)
explanation.save({MAPS!r})
explanation.figure(alpha={options.alpha!r}).savefig({options.output!r})
"""


def _arguments(options: ExplainOptions) -> str:
    """Returns the arguments of ``load_classifier``."""
    given: dict[str, Any] = dict(options.metadata)
    if options.weights != "default":
        given["weights"] = options.weights
    named = [f"{name}={value!r}" for name, value in given.items()]
    return ", ".join([repr(options.model), *named])
