"""The README's commands and code run as they stand there."""

import os
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from folders import picture

from captum_unioncam.cli import main
from captum_unioncam.cli.parser import parse
from captum_unioncam.evaluation import (
    METHODS,
    METRICS,
    EvaluationConfig,
)
from captum_unioncam.evaluation.config import BASELINES
from captum_unioncam.evaluation.runner import evaluate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def registries(monkeypatch):
    """Forgets what the examples register."""
    for listed in (METHODS, METRICS):
        for name in ("maxgradcam", "positivegradcam", "spread"):
            monkeypatch.setitem(listed, name, None)
            del listed[name]


@pytest.mark.filterwarnings("ignore:.* are flat")  # of a model with random weights
def test_the_python_code_runs(registries, capsys):
    torch.manual_seed(0)
    names = {}
    for code in blocks("python"):
        if "import quantus" in code and not find_spec("quantus"):
            continue  # it is there when continuous integration compares with peers
        exec(compile(code, "README.md", "exec"), names)
    assert names["attr"].shape == (1, 1, 7, 7)
    made = ["explained.png", "lesions", "mine", "overlay.png", "own.png"]
    made += ["photos", "results"]
    assert sorted(os.listdir(".")) == made
    assert "report.html" in os.listdir("results") and len(names["rows"]) == 5
    ours = {"maxgradcam", "gradcam"}
    assert {row["method"] for row in names["rows"]} == {*ours, *BASELINES}
    assert not any("error" in row for row in names["rows"])
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


def test_the_commands_of_evaluations_are_understood():
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    lines = [line for line in lines if " evaluate " in line]
    lines += re.findall("`(captum-unioncam evaluate .*?)`", README)
    assert len(lines) > 5
    for line in lines:
        program, arguments = line.split(" evaluate ")
        assert program.endswith(("captum-unioncam", "-m captum_unioncam"))
        command, _ = parse("captum-unioncam", ["evaluate", *shlex.split(arguments)])
        assert command == "evaluate"


def test_the_extension_examples_take_fifteen_lines():
    _, _, extend = README.partition("## Extend")
    examples = blocks("python", extend)
    assert len(examples) == 3
    assert all(len(example.splitlines()) <= 15 for example in examples)


def test_the_examples_for_contributors_run(registries):
    code = "\n".join(blocks("python", CONTRIBUTING))
    exec(compile(code, "CONTRIBUTING.md", "exec"), {})
    Path("photos").mkdir()
    picture().save("photos/cat.png")
    config = EvaluationConfig(
        "imagefolder:photos",
        "results",
        methods=("positivegradcam",),
        baseline_methods=(),
        metrics=("spread",),
    )
    (row,) = evaluate(config)
    assert 0 < row["metrics"]["spread"]


def test_continuous_integration_runs_the_commands():
    (command,) = re.findall("^pip install .* && pytest -n auto$", README, re.MULTILINE)
    assert blocks("bash")[2].strip() == command
    script = (ROOT / ".ci" / "run").read_text()
    assert "grep -x 'pip install .* && pytest -n auto' README.md" in script
    assert "grep -x 'pip install .* && captum-unioncam explain .*' README.md" in script
    assert "grep -x 'pip install .* && sphinx-build .*' README.md" in script


@pytest.mark.parametrize("text", [README, CONTRIBUTING])
def test_links_lead_to_files(text):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
