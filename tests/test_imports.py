"""The layers of the package: what each module may import, and how long it may be."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import captum_unioncam

PACKAGE = Path(captum_unioncam.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in MODULES}

# From the top down. A module imports from the layers below its own, and from its own;
# attr and metrics do not import each other.
LAYERS = (
    {"__main__"},
    {"cli"},
    {"explanation"},
    {"_explaining"},
    {"evaluation"},
    {"attr", "metrics", "models", "captum_metrics", "visualization"}
    | {"fusion"}
    | {"_images"},
    {"_scoring", "_activation_scoring", "_prediction", "layers", "_layer_search"}
    | {"_head_search"},
    {
        "_forward",
        "_layer_call",
        "_replacement",
        "_confidence",
        "_layouts",
        "_baselines",
        "_reshape",
    }
    | {"_options", "_chunks", "wrappers", "augmentations", "_pictures"},
    {"_captum", "_maps", "_checks", "_files", "_objects", "errors", "_progress"},
)
# What the command imports before it knows what to do.
LIGHT = (
    "_checks",
    "_options",
    "errors",
    "_files",
    "_objects",
    "cli",
    "cli.options",
    "cli.parser",
    "evaluation.config",
)
LONGEST_MODULE, LONGEST_BODY = 400, 45


def name_of(path):
    """Returns the dotted name of a module within the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path): path for path in MODULES}
# The modules of the names that the root imports lazily.
PUBLIC = {
    alias.name: node.module
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
every_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: name_of(p) or ".")


def imported(path):
    """Returns the dotted names that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def own_imports(path):
    """Returns the modules of the package that a module imports, by their names."""
    names = set()
    for name in imported(path):
        root, _, rest = name.partition(".")
        if root == "captum_unioncam":
            names.update([n for n in parents(PUBLIC.get(rest, rest)) if n in NAMES][:1])
    return names


def parents(name):
    """Yields a dotted name, and the names of what it is in."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def uses(path, *packages):
    return any(
        name == package or name.startswith(f"{package}.")
        for name in imported(path)
        for package in packages
    )


def layer_of(name):
    """Returns the number of a module's layer, from 0 at the top."""
    top = name.partition(".")[0]
    (number,) = [i for i, layer in enumerate(LAYERS) if top in layer]
    return number


def outside_cli(name):
    return name.partition(".")[0] != "cli"


# Directions


@every_module
def test_modules_import_from_the_layers_below_alone(path):
    name = name_of(path)
    if not name:  # the root imports lazily, by its stub
        assert not own_imports(path)
        return
    for other in own_imports(path):
        assert layer_of(other) >= layer_of(name), f"{name} imports {other}"


def test_every_layer_is_of_modules_that_exist():
    top = {name.partition(".")[0] for name in NAMES} - {""}
    assert set().union(*LAYERS) == top
    assert sum(map(len, LAYERS)) == len(top)


def test_no_modules_import_each_other():
    # A package runs before its modules, and may import any of them.
    graph = {n: own_imports(path) - {*parents(n)} for n, path in NAMES.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # or a CycleError
    assert order.index("_maps") < order.index("_scoring") < order.index("attr")


def test_imports_are_found_in_every_form():
    found = own_imports(NAMES["cli.explaining"])
    assert {"attr", "models", "cli.options", "metrics", "_reshape"} <= found
    assert "captum_unioncam.metrics" in imported(NAMES["evaluation.metrics"])


@every_module
def test_private_and_heavy_packages_have_few_users(path):
    name = name_of(path)
    if name != "_captum":
        private = ("captum._utils", "captum.attr._utils", "captum.log")
        assert not uses(path, *private), "private names"
    torchvisions = ("evaluation.data", "evaluation.sources")
    if name not in torchvisions and name.partition(".")[0] != "models":
        assert not uses(path, "torchvision")
    if name not in ("cli.app.page", "cli.app.actions"):
        assert not uses(path, "gradio")
    if name not in ("models.from_timm", "models.from_hf"):
        assert not uses(path, "timm", "transformers")
    if name != "evaluation.sources":
        assert not uses(path, "pycocotools")
    if name != "evaluation.distributed":
        assert not uses(path, "torch.distributed")
    drawing = ("visualization", "explanation", "evaluation.figures")
    if name not in drawing and outside_cli(name):
        assert not uses(path, "matplotlib")
    arrays = ("visualization", "explanation", "cli.arrays", "evaluation.data")
    if name not in arrays:
        assert not uses(path, "numpy")
    if name not in ("", "evaluation"):
        assert not uses(path, "lazy_loader")


@every_module
def test_only_the_command_prints(path):
    calls = [
        node.func.id
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    if outside_cli(name_of(path)):
        assert "print" not in calls


@every_module
def test_attributions_and_metrics_do_not_know_each_other(path):
    name = name_of(path)
    if name.startswith("attr"):
        assert not uses(path, "captum_unioncam.metrics")
    if name.startswith("metrics"):
        assert not uses(path, "captum_unioncam.attr")
    if name in ("_maps", "attr._fusion"):
        assert not uses(path, "captum", "captum_unioncam"), "pure functions of tensors"
    if outside_cli(name) and name != "__main__":
        assert not uses(path, "captum_unioncam.cli")


# What is imported in fact


def run(code):
    """Runs code in a new process, and returns what it prints as JSON."""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", LIGHT)
def test_what_the_command_starts_with_imports_neither_torch_nor_captum(name):
    found = run(
        f"import captum_unioncam.{name}, json, sys; "
        "print(json.dumps([n.partition('.')[0] for n in sys.modules]))"
    )
    heavy = {"torch", "captum", "torchvision", "numpy", "matplotlib", "PIL"}
    assert not heavy & set(found)


def test_the_public_names_import_no_more_than_captum_does():
    new = run(
        "import captum.attr, json, sys; before = set(sys.modules); "
        "from captum_unioncam import *; "
        "import torch.distributed; assert not torch.distributed.is_initialized(); "
        "new = {n.split('.')[0] for n in set(sys.modules) - before}; "
        "print(json.dumps(sorted(new - set(sys.stdlib_module_names))))"
    )
    assert new == ["captum_unioncam", "lazy_loader"]


# Sizes


@every_module
def test_modules_are_short_enough_to_read(path):
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE


@every_module
def test_functions_are_short_enough_to_read(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node) is not None
            body = node.body[1:] if documented else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= LONGEST_BODY, f"{node.name} has {length} lines"
