"""The README's commands and code run as they stand there."""

import os
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from captum_unioncam import cli
from captum_unioncam.cli import main
from captum_unioncam.evaluation import methods_table, metrics_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_python_code_runs(capsys):
    torch.manual_seed(0)
    names = {}
    for code in blocks("python"):
        if "import quantus" in code and not find_spec("quantus"):
            continue  # it is there when continuous integration compares with peers
        exec(compile(code, "README.md", "exec"), names)
    assert names["attr"].shape == (1, 1, 7, 7)
    assert sorted(os.listdir(".")) == ["overlay.png", "photos", "results"]
    assert "report.html" in os.listdir("results") and len(names["rows"]) == 2
    numbers = re.findall(
        r"(infidelity|sensitivity) tensor\(\[(\S+)\]", capsys.readouterr().out
    )
    assert [name for name, _ in numbers] == ["infidelity", "sensitivity"]
    assert all(float(number) > 0 for _, number in numbers)


def test_the_first_command_makes_the_picture(capsys):
    install, command = blocks("bash")[0].strip().split(" && ")
    assert install.startswith("pip install -c constraints.txt -e ")
    program, *arguments = shlex.split(command)
    assert program == "captum-unioncam"
    assert main(arguments) == 0
    assert os.listdir(".") == ["unioncam.png"]
    assert "UnionCAM attribution: 100%" in capsys.readouterr().err


def test_the_second_command_compares_all_methods(monkeypatch):
    program, *arguments = shlex.split(blocks("bash")[1])
    assert program == "captum-unioncam"
    assert main([*arguments, "--methods", "gradcam,scorecam"]) == 0  # all take a minute
    assert os.listdir(".") == ["methods.png"]


def test_the_tables_are_current():
    assert f"\n\n{methods_table()}\n\n" in README
    assert f"\n\n{metrics_table()}\n\n" in README


def test_the_commands_of_evaluations_are_understood():
    lines = [line for block in blocks("bash")[3:] for line in block.splitlines()]
    lines += re.findall("`(captum-unioncam evaluate .*?)`", README)
    assert len(lines) > 3
    for line in lines:
        program, arguments = line.split(" evaluate ")
        assert program.endswith(("captum-unioncam", "-m captum_unioncam"))
        options = cli._parser().parse_args(["evaluate", *shlex.split(arguments)])
        assert options.run is cli._evaluate


def test_the_extension_example_takes_fifteen_lines():
    (example,) = [code for code in blocks("python") if "class MaxGradCAM" in code]
    assert len(example.splitlines()) <= 15


def test_continuous_integration_runs_the_commands():
    (command,) = re.findall("^pip install .* && pytest$", README, re.MULTILINE)
    assert blocks("bash")[2].strip() == command
    script = (ROOT / ".ci" / "run").read_text()
    assert "grep -x 'pip install .* && pytest' README.md" in script
    assert "grep -x 'pip install .* && captum-unioncam explain .*' README.md" in script


def test_links_lead_to_files():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
