"""The documentation builds without a warning, and the citation is the package's.

Notebooks and code cells are left as they are: continuous integration runs them.
"""

import posixpath
import re
import subprocess
import sys
from pathlib import Path

import pytest

import captum_unioncam
from captum_unioncam import attr, evaluation, metrics

ROOT = Path(__file__).parents[1]
CITATION = (ROOT / "CITATION.cff").read_text()


@pytest.fixture(scope="module")
def documented(tmp_path_factory):
    """Returns the full names in the reference, built with warnings as errors."""
    for package in ("sphinx", "myst_nb", "furo", "latex2mathml"):
        pytest.importorskip(package)
    from sphinx.util.inventory import InventoryFile

    folder = tmp_path_factory.mktemp("docs")
    options = ["-W", "--keep-going", "-q", "-b", "html"]
    # Without a run there are no pictures to paste.
    options += ["-D", "nb_execution_mode=off", "-D", "suppress_warnings=mystnb.glue"]
    result = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, ROOT / "tutorials", folder],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    with open(folder / "objects.inv", "rb") as file:
        inventory = InventoryFile.load(file, "", posixpath.join)
    return set().union(*(inventory[kind] for kind in inventory if "py:" in kind))


def test_every_public_name_is_documented(documented):
    ends = {name.rpartition(".")[2] for name in documented}
    for module in (captum_unioncam, attr, metrics, evaluation):
        assert set(module.__all__) - {"__version__"} <= ends, module.__name__


def test_every_class_has_its_attribute_method(documented):
    for name in set(attr.__all__) - {"UnionCAMDetails"}:
        assert f"captum_unioncam.attr.{name}.attribute" in documented


def test_the_citation_has_the_version_of_the_package():
    (version,) = re.findall("^version: (.+)$", CITATION, re.MULTILINE)
    assert version == captum_unioncam.__version__


def test_the_citation_is_the_readmes():
    keys = set(re.findall("^([a-z-]+):", CITATION, re.MULTILINE))
    assert keys >= {"cff-version", "message", "title", "authors", "preferred-citation"}
    _, paper = CITATION.split("preferred-citation:")
    (title,) = re.findall("title: >-\n(.*)  authors:", paper, re.DOTALL)
    (doi,) = re.findall("doi: (.+)", paper)
    _, section = (ROOT / "README.md").read_text().split("## Citation")
    assert " ".join(title.split()) in " ".join(section.split())
    assert doi in section
