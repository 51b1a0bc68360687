"""The documentation, with warnings as errors: sphinx-build -W -b html tutorials OUT.

The pages are Markdown, the reference is made from the docstrings, and the notebooks are
run. Equations become MathML, so that no page asks another host for anything.
"""

import re

import captum_unioncam

project = "captum-unioncam"
release = captum_unioncam.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["build", ".jupyter_cache", "jupyter_execute"]

html_theme = "furo"
html_title = f"captum-unioncam {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"
copybutton_exclude = ".linenos, .gp, .go"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # a notebook that did not change is not run again
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_show_tb = True  # of a cell that fails
nb_execution_timeout = 300  # seconds for a cell
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars

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


def mathml(latex, display):
    """Returns an equation of LaTeX as MathML, which browsers draw themselves."""
    from latex2mathml.converter import convert

    return convert(latex, display=display)


def visit_math(self, node):
    from docutils.nodes import SkipNode

    self.body.append(mathml(node.astext(), "inline"))
    raise SkipNode


def visit_displaymath(self, node):
    from docutils.nodes import SkipNode
    from sphinx.util.math import wrap_displaymath

    latex = wrap_displaymath(node.astext(), None, False).strip()
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(f"{mathml(latex, 'block')}</div>\n")
    raise SkipNode


def setup(app):
    app.connect("autodoc-process-docstring", to_rst)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
