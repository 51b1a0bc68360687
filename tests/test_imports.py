"""The direction of imports: what each room may see."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import captum_unioncam

PACKAGE = Path(captum_unioncam.__file__).parent
DRAWING = ("evaluation/report.py", "evaluation/sanity.py")
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """Returns the dotted names that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def uses(path, *packages):
    return any(
        name == package or name.startswith(f"{package}.")
        for name in imported(path)
        for package in packages
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_see_only_what_they_may(path):
    room = path.relative_to(PACKAGE).as_posix()
    if room != "_captum.py":
        assert not uses(path, "captum._utils", "captum.log"), "private helpers"
    if room not in ("cli.py", "__main__.py"):
        assert not uses(path, "captum_unioncam.cli")
        assert "print(" not in path.read_text()
    if room not in ("models.py", "evaluation/data.py"):
        assert not uses(path, "torchvision")
    if room != "evaluation/distributed.py":
        assert not uses(path, "torch.distributed")
    if room not in ("visualization.py", "cli.py", *DRAWING):
        assert not uses(path, "matplotlib")
    if room in ("layers.py", "outputs.py") or room.startswith(("attr/", "_")):
        drawing = ("captum_unioncam.models", "captum_unioncam.visualization", "numpy")
        assert not uses(path, *drawing) or room == "__main__.py"
    if room in ("_captum.py", "layers.py", "outputs.py", "visualization.py"):
        own = {name for name in imported(path) if name.startswith("captum_unioncam.")}
        assert {name.split(".")[1] for name in own} <= {"_captum", "_maps", "outputs"}
    if room.startswith("attr/"):
        assert not uses(path, "captum_unioncam.metrics", "captum_unioncam.evaluation")
    if room.startswith("metrics/"):
        assert not uses(path, "captum_unioncam.attr", "captum_unioncam.evaluation")
        assert not uses(path, "numpy")
    if room == "_maps.py":
        assert not uses(path, "captum", "captum_unioncam", "numpy")
    if room == "_scoring.py":
        assert not uses(path, "captum_unioncam.attr")
    if room == "attr/_fusion.py":
        assert not uses(path, "captum", "captum_unioncam")


def test_importing_the_package_stays_light():
    code = (
        "import captum.attr, sys; before = set(sys.modules); import captum_unioncam; "
        "new = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new)); "
        "import torch.distributed as d; assert not d.is_initialized()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "['captum_unioncam']"
    assert not result.stderr


def test_public_names_are_what_all_says():
    for name in captum_unioncam.__all__:
        assert hasattr(captum_unioncam, name)
    assert "DenoisedGradCAM" in captum_unioncam.__all__
