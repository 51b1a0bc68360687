"""The roots that import lazily: their names, their stubs, and what they wait with."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import captum_unioncam
from captum_unioncam import attr, evaluation

ROOTS = {"captum_unioncam": captum_unioncam, "captum_unioncam.evaluation": evaluation}
NAMES = [(root, name) for root, module in ROOTS.items() for name in module.__all__]

every_root = pytest.mark.parametrize("root", ROOTS)


def stub_of(root):
    """Returns what a stub imports: the name and the module of each, and its alias.

    The module of a submodule is the root.
    """
    path = Path(ROOTS[root].__file__).with_suffix(".pyi")
    return [
        (alias.name, ".".join(filter(None, [root, node.module])), alias.asname)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


@pytest.mark.parametrize(("root", "name"), NAMES)
def test_every_public_name_can_be_imported(root, name):
    space = {}
    exec(f"from {root} import {name}", space)
    assert space[name] is getattr(ROOTS[root], name)


@every_root
def test_the_stub_lists_exactly_the_public_names(root):
    names = [name for name, _, _ in stub_of(root)]
    assert sorted(names) == sorted(ROOTS[root].__all__)
    assert len(set(names)) == len(names)
    # Type checkers take a name for public only if it is imported as itself.
    assert all(name == alias for name, _, alias in stub_of(root))


@every_root
def test_the_stub_names_the_module_that_defines_each_name(root):
    for name, module, _ in stub_of(root):
        value = getattr(importlib.import_module(module), name)
        assert value is getattr(ROOTS[root], name)
        defined = getattr(value, "__module__", getattr(value, "__name__", module))
        assert defined == module or defined.startswith(f"{module}.")


@every_root
def test_dir_shows_the_public_names(root):
    assert set(dir(ROOTS[root])) >= set(ROOTS[root].__all__)


@every_root
def test_a_wrong_name_is_an_attribute_error(root):
    with pytest.raises(AttributeError, match="UnionCAMM"):
        ROOTS[root].UnionCAMM
    assert not hasattr(ROOTS[root], "UnionCAMM")
    with pytest.raises(ImportError, match="UnionCAMM"):
        exec(f"from {root} import UnionCAMM")


def test_every_attribution_is_public_at_the_root():
    assert set(attr.__all__) <= set(captum_unioncam.__all__)


@pytest.mark.parametrize(
    ("code", "imported"),
    [
        ("import captum_unioncam", []),
        ("import captum_unioncam; captum_unioncam.__version__", []),
        ("import captum_unioncam; dir(captum_unioncam)", []),
        ("import captum_unioncam; captum_unioncam.attr.UnionCAM", ["captum", "torch"]),
        ("import captum_unioncam; captum_unioncam.evaluation", []),
        ("import captum_unioncam.evaluation", []),
        ("from captum_unioncam.evaluation import EvaluationConfig", []),
        ("from captum_unioncam.evaluation import METHODS", ["captum", "torch"]),
    ],
)
def test_torch_is_imported_with_the_first_name_that_needs_it(code, imported):
    code += (
        "; import json, sys; found = {n.partition('.')[0] for n in sys.modules}; "
        "print(json.dumps(sorted(found & {'torch', 'captum', 'torchvision'})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == imported
    assert not result.stderr
