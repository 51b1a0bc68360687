"""The README's commands and code run as they stand there."""

import os
import re
import shlex
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from folders import picture
from torch import nn

from captum_unioncam import GradCAM, RegionCAM, UnionCAM, find_layer, vit_reshape
from captum_unioncam.cli import main
from captum_unioncam.cli.parser import parse
from captum_unioncam.evaluation import (
    METHODS,
    METRICS,
    EvaluationConfig,
    methods_table,
    metrics_table,
)
from captum_unioncam.evaluation.config import BASELINES
from captum_unioncam.evaluation.runner import evaluate
from captum_unioncam.visualization import panels

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


def test_the_tables_are_current():
    assert f"\n\n{methods_table()}\n\n" in README
    assert f"\n\n{metrics_table()}\n\n" in README


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


class Transformer(nn.Module):
    """A layer of tokens, (N, 4, 5), or of rows with channels last, (N, 2, 2, 5)."""

    def __init__(self, rows=False):
        super().__init__()
        self.layer, self.head = nn.Linear(12, 5), nn.Linear(5, 3)
        self.rows = rows

    def forward(self, image):
        patches = image.unfold(2, 2, 2).unfold(3, 2, 2)  # (N, 3, 2, 2, 2, 2)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)
        maps = self.layer(patches if self.rows else patches.flatten(1, 2))
        return self.head(maps.flatten(1, -2).mean(1))


class Named(nn.Module):
    """Puts out a dict."""

    def forward(self, maps):
        return {"maps": maps}


class Net(nn.Module):
    """A pooled ConvNet, with a layer that is not spatial and one that does not run."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.unused, self.named = nn.ReLU(), Named()

    def forward(self, image):
        return self.head(self.named(self.layer(image))["maps"].mean((2, 3)))


def of_net(image, change, cam=UnionCAM):
    """Explains a net whose scores are changed."""
    net = Net()
    cam(lambda x: change(net(x)), net.layer).attribute(image, target=0)


def resnet_of_names():
    return nn.ModuleDict({f"layer{i}": nn.Identity() for i in range(1, 5)})


def few_channels(x):
    """Asks for more than the channels that may be scored can tell."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 20, 2), torch.nn.Flatten(), torch.nn.Linear(180, 2)
    )
    torch.manual_seed(0)
    torch.nn.init.normal_(net[2].weight)  # scores that differ
    RegionCAM(net, net[0]).attribute(x, target=0, fidelity=0.99, max_channels=5)


MISTAKES = [
    few_channels,
    lambda x: UnionCAM(Transformer(), "layer").attribute(x, target=0),
    lambda x: UnionCAM(Transformer(rows=True), "layer").attribute(x, target=0),
    lambda x: find_layer(Transformer(), x),
    lambda x: vit_reshape(torch.rand(1, 201, 8)),
    lambda x: UnionCAM(resnet_of_names(), "layer5"),
    lambda x: UnionCAM(lambda x: x, "layer4"),
    lambda x: UnionCAM(Net(), "head").attribute(x, target=0),
    lambda x: UnionCAM(Net(), "unused").attribute(x, target=0),
    lambda x: UnionCAM(Net(), "named").attribute(x, target=0),
    lambda x: of_net(x, lambda scores: {"logits": scores}),
    lambda x: of_net(x, lambda scores: scores.sum(0)),
    lambda x: GradCAM(Net(), "layer").attribute(x),
    lambda x: of_net(x, lambda scores: 0 * scores, cam=GradCAM),
    lambda x: UnionCAM(Net(), "layer").attribute(x * torch.nan, target=0),
    lambda x: of_net(x, lambda scores: scores.detach()),
    lambda x: panels(torch.tensor([-2.1, 0, 2.6]).view(1, 3, 1, 1), {}),
]


def test_the_texts_of_the_troubleshooting_are_real():
    _, _, section = README.partition("## Troubleshooting")
    section, _, _ = section.partition("\n## ")
    rows = re.findall(r"^\| (`.*?`) (?:\(Captum's\) )?\|", section, re.MULTILINE)
    texts = [row.strip("`").strip() for row in rows]
    assert len(texts) > 10
    seen = []
    torch.manual_seed(0)
    x = torch.rand(1, 3, 4, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for mistake in MISTAKES:
            try:
                mistake(x)
            except (ValueError, TypeError, AssertionError) as error:
                seen.append(f"{error}")
    seen += [f"{warning.message}" for warning in caught]
    assert [text for text in texts if not any(text in one for one in seen)] == []
