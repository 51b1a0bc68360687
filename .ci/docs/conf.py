"""The reference, made from the docstrings: sphinx-build -W .ci/docs OUT."""

import re

import captum_unioncam

project = "captum-unioncam"
release = captum_unioncam.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme_options = {"page_width": "1100px"}

autoclass_content = "both"
# What Captum's classes bring, or ask for.
autodoc_default_options = {
    "exclude-members": "attribute_future, compute_convergence_delta, get_name, "
    "has_convergence_delta, interpolate, multiplies_by_inputs"
}
autodoc_inherit_docstrings = False  # torch.nn.Module.__init__ has one
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings have them, for people to read
napoleon_use_param = False

nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(captum|torch)\..*"),
    ("py:class", "Attribution|LayerAttribution|Module|Tensor"),
]


def to_rst(app, what, name, obj, options, lines):
    """Marks up what the docstrings leave as plain text."""
    text = "\n".join(lines)
    # The star of a shape, (N, 1, *size), begins no emphasis.
    text = re.sub(r"(\([A-Z],\s[^()`]*)\*(?=\w)", r"\1\\*", text)
    text = re.sub(r"(?m)^(Cost|Note|Reference): ", r"**\1:** ", text)
    # The options of an evaluation bring their help for the command line.
    for field in getattr(obj, "__dataclass_fields__", {}).values():
        if "help" in field.metadata:
            text += f"\n:param {field.name}: {field.metadata['help']}"
    lines[:] = text.split("\n")


def setup(app):
    app.connect("autodoc-process-docstring", to_rst)
