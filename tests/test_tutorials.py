"""The tutorials are clean, compile, and end with a picture.

Continuous integration runs them.
"""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
PICTURES = ("overlays", "panels")


def source(cell):
    return "".join(cell["source"])


def code(cell):
    """Returns the tree of a code cell, without the notebook's own commands."""
    return ast.parse(re.sub("^%.*$", "", source(cell), flags=re.MULTILINE))


def ends_with_a_picture(tree):
    """Tells whether a cell ends with a call that draws, or a figure it has made."""
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        return False
    if isinstance(last.value, ast.Call):
        return ast.unparse(last.value.func) in PICTURES
    made = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return isinstance(last.value, ast.Name) and last.value.id in made & {"figure"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


@pytest.fixture
def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_there_are_tutorials():
    assert NOTEBOOKS


def test_nothing_of_a_run_is_kept(notebook, code_cells):
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert set(notebook["metadata"].get("language_info", {})) <= {"name"}
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}, source(cell)
    for cell in code_cells:
        assert cell["outputs"] == [], source(cell)
        assert cell["execution_count"] is None, source(cell)


def test_the_first_cell_says_what_you_will_have(notebook):
    first = notebook["cells"][0]
    assert first["cell_type"] == "markdown"
    assert re.search(r"^[#* ]*What you will have at the end", source(first), re.M)


def test_the_code_compiles(code_cells):
    for number, cell in enumerate(code_cells):
        compile(code(cell), f"code cell {number}", "exec")


def test_it_ends_with_a_picture_that_is_shown(code_cells):
    assert ends_with_a_picture(code(code_cells[-1]))
    # Without it a notebook shows a figure as a line of text.
    assert "%matplotlib inline" in source(code_cells[0]).splitlines()


def test_they_are_numbered_in_their_order():
    numbers = [int(path.stem.partition("_")[0]) for path in NOTEBOOKS]
    assert numbers == list(range(1, len(NOTEBOOKS) + 1))


def test_links_to_other_tutorials_lead_there(notebook):
    for cell in notebook["cells"]:
        for name in re.findall(r"\]\((\w+\.ipynb)\)", source(cell)):
            assert (ROOT / "tutorials" / name).is_file(), name


@pytest.mark.parametrize(
    ("cell", "ends"),
    [
        ("panels(x, maps)", True),
        ("figure, axes = draw()\nfigure", True),
        ("figure", False),
        ("figure = panels(x, maps)", False),
        ("print('done')", False),
    ],
)
def test_a_picture_is_told_from_other_ends(cell, ends):
    assert ends_with_a_picture(ast.parse(cell)) is ends
