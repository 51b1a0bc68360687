"""Methods of the user's own, by package.module:Class, without a registry."""

import importlib
import json
import sys

import pytest
from runs import command

from captum_unioncam.cli import main
from captum_unioncam.evaluation.labels import parse_method, parse_methods

CODE = """
import captum.attr
from captum_unioncam import GradientCAM, UnionCAM

class PeakCAM(GradientCAM):
    def weights(self, activations, gradients):
        return gradients.flatten(2).amax(2)

class Pixels(captum.attr.Attribution):
    def attribute(self, inputs, target=None, *, power=1):
        return inputs.abs() ** power

class Abstract(GradientCAM):
    pass

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module and a package of the user's own."""
    (tmp_path / "code" / "my_package").mkdir(parents=True)
    (tmp_path / "code" / "my_package" / "cams.py").write_text(CODE)
    (tmp_path / "code" / "my_cams.py").write_text(CODE)
    (tmp_path / "code" / "broken_cams.py").write_text("import nothing_of_the_kind")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "broken_")):
            del sys.modules[name]


def test_a_label_names_a_module_a_class_and_its_options(own):
    method, options = parse_method("my_package.cams:Pixels:power=2")
    assert method.title == "Pixels" and options == {"power": 2}
    assert not method.takes_layer and not method.baseline
    method, options = parse_method("my_cams:PeakCAM")
    assert method.title == "PeakCAM" and method.takes_layer and options == {}
    assert parse_method("captum.attr:LayerGradCam")[0].title == "LayerGradCam"
    labels = ["my_cams:PeakCAM", "GradCAM", "my_cams:PeakCAM"]
    assert list(parse_methods(labels)) == ["my_cams:PeakCAM", "gradcam"]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("no_such.module:CAM", "there is no module 'no_such.module'"),
        ("my_cams:PeekCAM", "my_cams has no 'PeekCAM'; did you mean 'PeakCAM'"),
        ("my_cams:number", "must be a class that derives from captum.attr.Attribution"),
        ("my_cams:captum", "must be a class that derives from captum.attr.Attribution"),
        ("my_cams:Abstract", "'my_cams:Abstract' is abstract; it must define weights"),
        ("broken_cams:CAM", "broken_cams imports nothing_of_the_kind, which is not"),
        ("my_cams:Pixels:powr=2", "Pixels has no option 'powr'; did you mean 'power'"),
        ("my_cams:Pixels:target=2", "has no option 'target'"),
        ("my_cams", "there is no method 'my_cams'; .*package.module:Class is one of"),
        ("unioncam:theta", "the value of 'theta' must be a number"),
    ],
)
def test_what_is_no_method_is_refused(label, message, own):
    with pytest.raises(ValueError, match=message):
        parse_method(label)


@pytest.mark.usefixtures("one_thread", "tiny_model", "no_pictures")
def test_own_methods_are_evaluated_and_their_source_counts(
    own, images, tmp_path, capsys
):
    labels = "my_cams:PeakCAM,my_package.cams:Pixels:power=2,gradcam"
    arguments = [*command(images, tmp_path / "out"), "--methods", labels]
    arguments += ["--metrics", "drop,complexity"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "my_package.cams:Pixels:power=2 " in out and "15 rows, 0 failed" in out
    known = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(known["sources"]) == known["methods"] == labels.split(",")
    (tmp_path / "code" / "my_cams.py").write_text(CODE.replace("amax", "amin"))
    del sys.modules["my_cams"]
    importlib.invalidate_caches()
    assert main([*arguments, "--resume"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the source of my_cams:PeakCAM has changed" in error


@pytest.mark.usefixtures("one_thread", "tiny_model")
def test_a_wrong_one_is_one_line(own, images, tmp_path, capsys):
    arguments = [*command(images, tmp_path / "out"), "--methods", "my_cams:PeekCAM"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("captum-unioncam: error: --methods: `my_cams:PeekCAM`: ")
