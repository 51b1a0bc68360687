"""What two runs must share: the values of weights, and the source of methods."""

import dataclasses
import importlib
import json
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import nn

import captum_unioncam
from captum_unioncam import GradCAM, LayerCAM, UnionCAM
from captum_unioncam.evaluation import identity as module
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.data import Entry
from captum_unioncam.evaluation.identity import (
    identity,
    model_digest,
    package_digest,
    source_digest,
    weights_digest,
)
from captum_unioncam.evaluation.labels import parse_methods
from captum_unioncam.evaluation.methods import METHODS, Method
from captum_unioncam.evaluation.metrics import METRICS

# Weights


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_the_digest_of_weights_depends_on_every_value_and_name():
    model = net()
    digest = weights_digest(model)
    assert digest == weights_digest(net()) != weights_digest(net(1))
    for tensor in model.state_dict().values():  # parameters and buffers
        tensor.view(-1)[-1] += 1
        changed = weights_digest(model)
        assert changed != digest
        digest = changed
    renamed = nn.Sequential()
    renamed.add_module("other", model)
    assert weights_digest(renamed) != digest
    assert weights_digest(model.double()) != digest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool])
def test_weights_of_any_type_have_a_digest(dtype):
    model = nn.Module()
    model.register_buffer("values", torch.zeros(3, dtype=dtype))
    model.register_buffer("none", torch.zeros(0, dtype=dtype))
    model.register_buffer("one", torch.zeros((), dtype=dtype))
    model.register_buffer("turned", torch.zeros(2, 3, dtype=dtype).T)
    assert weights_digest(model) == weights_digest(model)


def test_the_digest_of_a_model_is_of_its_modules_and_their_sources():
    digest = model_digest(net())
    assert digest == model_digest(net(1)), "weights have a digest of their own"
    strided = net()
    strided[0].stride = (2, 2)
    assert model_digest(strided) != digest

    def of_code(forward):
        names = {"Module": nn.Module}
        exec(f"class Net(Module):\n    def forward(self, x): return {forward}", names)
        return model_digest(names["Net"]())

    assert of_code("x + 1") == of_code("x + 1") != of_code("x + 2")


# Sources

BASE = """
from captum_unioncam import GradientCAM

def helper():
    return 1

class Base(GradientCAM):
    scale = 1

    def weights(self, activations, gradients):
        return self.scale * gradients.flatten(2).amax(2)

class Mine(Base):
    pass
"""

EDITS = {
    "the equation of the base": ("amax(2)", "mean(2)"),
    "a constant": ("scale = 1", "scale = 2"),
    "a comment": ("scale = 1", "scale = 1  # as before"),
}


def from_a_file(path, code, monkeypatch):
    """Returns the class that a module of this code defines."""
    path.write_text(code)
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.delitem(sys.modules, path.stem, raising=False)
    importlib.invalidate_caches()
    return importlib.import_module(path.stem).Mine


def from_a_console(code):
    names = {}
    exec(code, names)
    return names["Mine"]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_class_has_another_digest(edit, tmp_path, monkeypatch):
    old, new = EDITS[edit]
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "edited_cams.py"
    before = source_digest(from_a_file(path, BASE, monkeypatch))
    assert before == source_digest(from_a_file(path, BASE, monkeypatch))
    elsewhere = BASE.replace("return 1", "return 2 + 3")
    assert before == source_digest(from_a_file(path, elsewhere, monkeypatch))
    edited = BASE.replace(old, new)
    assert before != source_digest(from_a_file(path, edited, monkeypatch))


@pytest.mark.parametrize("edit", ["the equation of the base", "a constant"])
def test_a_class_without_a_source_is_known_by_its_code(edit):
    before = source_digest(from_a_console(BASE))
    # Where it stands does not count.
    assert before == source_digest(from_a_console(f"# a comment\n\n{BASE}"))
    assert before != source_digest(from_a_console(BASE.replace(*EDITS[edit])))


FORMS = """
import functools

def plain(x, a={a}, *, b={b}): return x in {{"p", "q", "r"}}
def outer(): return lambda x: x + {a}
class Mine:
    part = functools.partial(plain, {a})
    @staticmethod
    def static(): return {b}
    @classmethod
    def of(cls): return {a}
    @property
    def size(self): return {b}
    inner = type("Inner", (), {{"value": {a}}})
Mine.itself = Mine
"""


def test_the_code_of_every_form_of_function_counts():
    def digests(a, b):
        names = {}
        exec(FORMS.format(a=a, b=b), names)
        mine = names["Mine"]
        members = [*vars(mine).values(), names["plain"], names["outer"]]
        return [source_digest(member) for member in members if callable(member)]

    one, same, other = digests(1, 2), digests(1, 2), digests(3, 4)
    assert one == same and len(one) >= 6
    assert not set(one) & set(other)


def test_the_digest_of_code_is_the_same_in_every_process():
    code = (
        "from captum_unioncam.evaluation.identity import source_digest\n"
        f"names = {{}}; exec({FORMS.format(a=1, b=2)!r}, names)\n"
        "print(source_digest(names['Mine']), source_digest(names['plain']))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_classes_of_packages_count_by_their_names():
    # This package's own source has a digest of its own.
    classes = (UnionCAM, GradCAM, LayerCAM, LayerGradCam, LayerGradientXActivation)
    digests = [source_digest(cls) for cls in classes]
    assert len(set(digests)) == len(classes)


def test_the_source_of_the_package_counts(tmp_path, monkeypatch):
    files = ("__init__", "layers", "attr/union_cam", "metrics/curves")
    for name in (*files, "evaluation/report", "cli/parser", "evaluation/metrics"):
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one")
    monkeypatch.setattr(captum_unioncam, "__file__", str(tmp_path / "__init__.py"))
    digest = package_digest()
    for name in (*files, "evaluation/metrics"):
        (tmp_path / f"{name}.py").write_text("two")
        assert package_digest() != digest
        digest = package_digest()
    for name in ("evaluation/report", "cli/parser"):  # they change no row
        (tmp_path / f"{name}.py").write_text("two")
        assert package_digest() == digest


def test_the_modules_that_make_rows_exist():
    root = module.Path(captum_unioncam.__file__).parent
    assert all(list(root.glob(pattern)) for pattern in module.ROW_MODULES)


# All of it


def identity_of(names=("a.jpg", "b.jpg"), **options):
    config = EvaluationConfig("imagefolder:x", "out", **options)
    methods = parse_methods(config.methods)
    return identity(config, methods, [Entry(name, f"x/{name}") for name in names])


def test_options_names_and_sources_are_the_identity_of_a_run(monkeypatch):
    options = {"methods": ("gradcam", "unioncam:theta=30"), "metrics": ("drop",)}
    known = identity_of(**options)
    assert json.loads(json.dumps(known)) == known
    assert list(known["sources"]) == ["gradcam", "unioncam:theta=30"]
    assert list(known["measures"]) == ["drop"]
    assert known["files"] == 2
    assert known["versions"]["torch"] == version("torch")
    assert identity_of(names=("a.jpg\nb.jpg",), **options)["names"] != known["names"]
    assert identity_of(names=("b.jpg", "a.jpg"), **options)["names"] != known["names"]
    # Another class, and another metric, under a known name.
    entry = METHODS["gradcam"]
    other = Method(LayerCAM, entry.paper, entry.link, True, "1", "none")
    monkeypatch.setitem(METHODS, "gradcam", other)
    measure = METRICS["drop"].measure
    changed = dataclasses.replace(METRICS["drop"], measure=lambda m: 2 * measure(m))
    monkeypatch.setitem(METRICS, "drop", changed)
    edited = identity_of(**options)
    assert edited["sources"]["gradcam"] != known["sources"]["gradcam"]
    assert edited["measures"] != known["measures"]
    assert edited["code"] == known["code"]
