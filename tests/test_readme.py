"""The README's commands and code run as they stand there."""

import os
import re
import shlex
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
    methods_list,
)
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


MADE = {0: ["espresso.png"], 1: ["explained.png"]}  # by the places of the blocks


@pytest.mark.parametrize("place", range(len(blocks("python"))))
def test_each_block_of_code_runs_alone(place, capsys):
    torch.manual_seed(0)
    names = {}
    exec(compile(blocks("python")[place], "README.md", "exec"), names)
    assert os.listdir(".") == MADE.get(place, [])
    if place == 0:
        assert names["attr"].shape == (1, 1, 7, 7)


def test_the_extension_differs_from_grad_cam(capsys):
    torch.manual_seed(0)
    (code,) = [code for code in blocks("python") if "MaxGradCAM" in code]
    assert len(code.splitlines()) <= 20
    exec(compile(code, "README.md", "exec"), {})
    own, grad_cam = capsys.readouterr().out.split()
    assert own != grad_cam


def test_it_is_short_and_says_what_there_is():
    assert len(README.splitlines()) <= 250
    assert f"\n\n{methods_list()}\n\n" in README


def test_the_first_command_makes_the_picture(capsys):
    install, command = blocks("bash")[0].strip().split(" && ")
    assert install.startswith("pip install -c constraints.txt -e ")
    program, *arguments = shlex.split(command)
    assert program == "captum-unioncam"
    assert main(arguments) == 0
    assert os.listdir(".") == ["unioncam.png"]
    assert "UnionCAM attribution: 100%" in capsys.readouterr().err


def test_the_second_command_compares_methods():
    program, *arguments = shlex.split(blocks("bash")[1])
    assert program == "captum-unioncam"
    picture().save("photo.jpg")
    assert main([*arguments, "--weights", "none", "--max-channels", "2"]) == 0
    assert sorted(os.listdir(".")) == ["methods.png", "photo.jpg"]


def test_the_command_of_an_evaluation_is_understood():
    (line,) = [block for block in blocks("bash") if " evaluate " in block]
    program, arguments = line.split(" evaluate ")
    assert program == "captum-unioncam"
    command, _ = parse("captum-unioncam", ["evaluate", *shlex.split(arguments)])
    assert command == "evaluate"


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
    assert command in map(str.strip, blocks("bash"))
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
