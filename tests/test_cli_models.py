"""The command's options of models: whose, their metadata, and what it lists."""

import json

import pytest
import torch
from checkpoints import save_checkpoint
from folders import picture
from runs import command

from captum_unioncam.cli import main
from captum_unioncam.evaluation.identity import package_versions

# A tiny network of random weights may return what looks like probabilities.
pytestmark = pytest.mark.filterwarnings("ignore:The model's outputs are in")

CODE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 2),
    )
"""
NET = "net_of_the_working_folder"


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    """A folder with an image and the user's module, and no other path to it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    (tmp_path / f"{NET}.py").write_text(CODE)
    picture().save(tmp_path / "cat.png")
    yield
    __import__("sys").modules.pop(NET, None)


def explained(capsys, *options):
    """Runs explain, and returns its JSON."""
    arguments = ["explain", "cat.png", "--methods", "gradcam", "--json", "-"]
    assert main([*arguments, *options]) == 0
    return json.loads(capsys.readouterr().out)


def error(capsys, *arguments):
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    return err.strip()


def test_a_function_of_the_working_folder_is_explained(capsys, tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    options = ["--size", "64", "--mean", "0.5", "--std", "0.5,0.25,1"]
    report = explained(
        capsys, "--model", f"{NET}:net", "--categories", "names.txt", *options
    )
    assert report["layer"] == "1" and report["layer_size"] == [31, 31]
    assert report["target"]["name"] in ("cat", "dog")
    report = explained(
        capsys,
        *("--model", f"{NET}:net", "--categories", "names.txt", "--target", "dog"),
        *options,
    )
    assert report["target"]["index"] == 1


def test_a_folder_of_huggingface_is_explained(capsys, tmp_path):
    pytest.importorskip("transformers")
    save_checkpoint(tmp_path / "vit")
    report = explained(capsys, "--model", f"hf:{tmp_path / 'vit'}")
    assert report["layer"].endswith("layernorm_before")
    assert report["layer_size"] == [4, 4]


def test_a_model_of_timm_is_explained(capsys):
    pytest.importorskip("timm")
    report = explained(
        capsys, "--model", "timm:lcnet_035", "--weights", "none", "--size", "64"
    )
    assert report["layer_size"] == [2, 2]
    assert report["model"] == "timm:lcnet_035"


def test_a_function_is_evaluated(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    picture().save(tmp_path / "images" / "cat.png")
    arguments = command(tmp_path / "images", tmp_path / "out")
    options = ["--model", f"{NET}:net", "--size", "32", "--mean", "0", "--std", "1"]
    assert main([*arguments, *options]) == 0
    settings = json.loads((tmp_path / "out" / "report.json").read_text())["config"]
    assert settings["model"] == f"{NET}:net"
    assert (settings["size"], settings["mean"], settings["std"]) == (32, [0.0], [1.0])


def test_the_papers_preprocessing_has_no_size_of_its_own(capsys, tmp_path):
    arguments = command("images", tmp_path / "out", "--preprocessing", "unit")
    for option, value in (("--size", "32"), ("--mean", "0"), ("--std", "1")):
        message = error(capsys, *arguments, option, value)
        assert f"error: {option} changes the model's own preprocessing;" in message
    assert not (tmp_path / "out").exists()


def test_layers_are_listed(capsys):
    arguments = ["explain", "--list-layers", "--model", f"{NET}:net", "--size", "64"]
    assert main([*arguments, "--mean", "0", "--std", "1"]) == 0
    assert capsys.readouterr().out == (
        "0  Conv2d  4 x 31 x 31\n1  ReLU    4 x 31 x 31 (default)\n"
    )


def test_models_are_listed(capsys):
    assert main(["explain", "--list-models", "efficientnet_lite"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == [
        "efficientnet_lite0",
        "efficientnet_lite1",
        "efficientnet_lite2",
    ]
    assert main(["explain", "--list-models"]) == 0
    assert "\nresnet18\n" in capsys.readouterr().out
    message = error(capsys, "explain", "--list-models", "nothing like it")
    assert message.endswith("error: --list-models: no name holds 'nothing like it'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", f"{NET}:nett"], f"--model: {NET} has no 'nett'; did you mean 'n"),
        (["--model", "lost:net"], "--model: there is no module 'lost'; it must be in"),
        (["--model", "resnet81"], "there is no model 'resnet81'; did you mean "),
        (["--categories", "lost.txt"], "--categories: lost.txt cannot be read (No su"),
        (["--mean", "1,2"], "--mean must be one number, or 3, one a colour, got 2"),
        (["--std", "0,1,1"], "--std must be positive, got (0.0, 1.0, 1.0)"),
        (["--size", "0"], "argument --size: must be a positive int or None, got 0"),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_refused_in_one_line(capsys, options, message):
    assert f"error: {message}" in error(capsys, "explain", "cat.png", *options)


def test_the_package_of_a_model_counts_for_a_run():
    assert set(package_versions("resnet18")) == {"captum", "torch", "torchvision"}
    pytest.importorskip("timm")
    assert "timm" in package_versions("timm:resnet18")
    assert torch.__version__.startswith(package_versions("x")["torch"].split("+")[0])
