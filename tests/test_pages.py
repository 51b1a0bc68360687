"""The documentation's code runs, and its commands and tables are current.

``tests/test_docs.py`` builds the pages; continuous integration runs the code cells.
"""

import builtins
import re
import shlex
import symtable
from importlib.util import find_spec
from pathlib import Path

import gallery
import pytest
import torch

from captum_unioncam.cli.parser import parse
from captum_unioncam.evaluation import METHODS, METRICS, methods_table, metrics_table

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tutorials"
PAGES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.md"))}
# Packages of other people, which continuous integration has with the extra bench.
PEERS = ("quantus", "torchcam", "pytorch_grad_cam")


def blocks(language, text):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


WITH_CODE = [name for name, text in PAGES.items() if blocks("python", text)]
WITH_COMMANDS = [name for name, text in PAGES.items() if blocks("bash", text)]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Forgets what the examples register."""
    for listed in (METHODS, METRICS):
        for name in listed.keys() | {"maxgradcam"}:
            monkeypatch.setitem(listed, name, listed.get(name))
    del METHODS["maxgradcam"], METRICS["maxgradcam"]


def missing_peers(code):
    """Returns the packages of others that code imports, and that are not there."""
    names = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
    return [name for name in names if name in PEERS and not find_spec(name)]


def run(blocks_of_code, name):
    """Runs blocks of code in order, in one namespace."""
    torch.manual_seed(0)
    names = {}
    for code in blocks_of_code:
        exec(compile(code, f"{name}.md", "exec"), names)
    return names


# Of models with random weights.
@pytest.mark.filterwarnings("ignore:.* constant. they have one value everywhere")
@pytest.mark.filterwarnings("ignore:The model's outputs are in .0, 1. and do not sum")
@pytest.mark.filterwarnings("ignore:.* made without the gradient map")
@pytest.mark.parametrize("name", WITH_CODE)
def test_the_python_code_runs(name):
    code = blocks("python", PAGES[name])
    if name == "peers" and missing_peers("".join(code)):
        pytest.skip("needs the packages of the extra bench")
    run([one for one in code if not missing_peers(one)], name)


@pytest.mark.parametrize("code", blocks("python", PAGES["your_own_model"]))
def test_a_block_on_your_own_model_makes_all_that_it_uses(code):
    table = symtable.symtable(code, "block", "exec")
    made = {
        one.get_name()
        for one in table.get_symbols()
        if one.is_assigned() or one.is_imported()
    }
    used = {one.get_name() for one in table.get_symbols() if one.is_referenced()}
    for scope in table.get_children():
        used |= {one.get_name() for one in scope.get_symbols() if one.is_global()}
    assert used - made <= set(dir(builtins))


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_the_commands_are_understood(name):
    lines = "".join(blocks("bash", PAGES[name])).splitlines()
    lines += re.findall("`(captum-unioncam .*? .*?)`", PAGES[name])
    commands = [
        re.split(r"(?:captum-unioncam|-m captum_unioncam) ", line, maxsplit=1)[1]
        for line in lines
        if re.search(r"captum[-_]unioncam (explain|evaluate|methods|metrics)", line)
    ]
    assert commands or name in ("robustness", "speed")  # programs of the tests
    for line in commands:
        command, _ = parse("captum-unioncam", shlex.split(line))
        assert command == line.split()[0]


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_the_programs_are_there(name):
    for program in re.findall(r"python (tests/\w+\.py)", PAGES[name]):
        assert (ROOT / program).exists()


def test_the_tables_are_current():
    assert f"\n\n{methods_table()}\n\n" in PAGES["choose"]
    assert f"\n\n{metrics_table()}\n\n" in PAGES["evaluate"]


def test_every_method_has_a_place_in_the_gallery():
    methods = {name for name, method in METHODS.items() if not method.baseline}
    assert sorted(sum(gallery.GROUPS.values(), ())) == sorted(methods)
    for name in gallery.GROUPS:
        assert (FOLDER / f"gallery_{name}.jpg").exists()
        assert f"(gallery_{name}.jpg)" in PAGES["gallery"]
