"""What two runs must share for their rows to go together, as names and digests.

Options and names are not enough: other weights, another image under an old name, or an
edited method would continue a table that they do not belong to.
"""

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch.nn import Module

import captum_unioncam
from captum_unioncam._files import strict_json
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.data import Listed
from captum_unioncam.evaluation.methods import Method
from captum_unioncam.evaluation.metrics import METRICS

PACKAGE = captum_unioncam.__name__

# The package's own files that decide on a row; the others start, store and report.
ROW_MODULES = (
    "*.py",
    "attr/*.py",
    "metrics/*.py",
    "models/*.py",
    "evaluation/annotations.py",
    "evaluation/baselines.py",
    "evaluation/data.py",
    "evaluation/measuring.py",
    "evaluation/methods.py",
    "evaluation/metrics.py",
    "evaluation/objects.py",
    "evaluation/occlusion.py",
    "evaluation/own.py",
    "evaluation/sources.py",
    "evaluation/task.py",
)

# Packages whose versions count.
VERSIONED = ("captum", "torch", "torchvision")

# And that of the package that a model is from, by the start of its name.
MODEL_PACKAGES = {"timm:": "timm", "hf:": "transformers"}

# Packages whose classes count by their names: this one's files have a digest.
BY_NAME = (*VERSIONED, PACKAGE)

# What Python notes of a class that does not decide on what it does.
NOTES = ("__dict__", "__doc__", "__firstlineno__", "__module__", "__weakref__")

DIGEST_LENGTH = 32  # of 64 hexadecimal digits


def identity(
    config: EvaluationConfig,
    methods: Mapping[str, tuple[Method, Mapping[str, Any]]],
    entries: Sequence[Listed],
) -> dict[str, Any]:
    """Returns what two runs must share, but for the weights, which are still to load.

    Args:
        config (EvaluationConfig): What to evaluate.
        methods (Mapping): The methods by label, with their options.
        entries (Sequence[Listed]): The images of the data set.
    """
    names = strict_json([entry.name for entry in entries])
    sources = {label: source_digest(m.attribution) for label, (m, _) in methods.items()}
    measures = {name: source_digest(METRICS[name].measure) for name in config.metrics}
    objects = {}
    if config.object_names is not None:
        objects["objects"] = _digest([Path(config.object_names).read_bytes().hex()])
    return {
        **config.comparable(),
        **objects,
        "files": len(entries),
        "names": _digest([names]),
        "code": package_digest(),
        "versions": package_versions(config.model),
        "sources": sources,
        "measures": measures,
    }


def package_versions(model: str) -> dict[str, str]:
    """Returns the versions of the packages that decide on a row beside this one.

    Args:
        model (str): The model's name.
    """
    own = [name for start, name in MODEL_PACKAGES.items() if model.startswith(start)]
    return {name: version(name) for name in (*VERSIONED, *own)}


def model_digest(model: Module) -> str:
    """Returns a digest of what a model does with its weights.

    Of its modules as they describe themselves, and of the sources of their classes.
    """
    kinds = {type(module) for module in model.modules()}
    sources = sorted(source_digest(kind) for kind in kinds)
    return _digest([re.sub("0x[0-9a-f]+", "", f"{model}"), *sources])


def weights_digest(model: Module) -> str:
    """Returns a digest of the parameters and buffers of a model."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):  # what a module adds to its state
            digest.update(f"{name} {_constant(value)}\n".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().flatten()
        content: Any = flat.view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()[:DIGEST_LENGTH]


def package_digest() -> str:
    """Returns a digest of the package's files that decide on a row."""
    root = Path(captum_unioncam.__file__).parent
    files = [path for pattern in ROW_MODULES for path in sorted(root.glob(pattern))]
    names = [path.relative_to(root).as_posix() for path in files]
    contents = [path.read_bytes().hex() for path in files]
    return _digest([captum_unioncam.__version__, *names, *contents])


def source_digest(function: Callable[..., Any]) -> str:
    """Returns a digest of the source of a class, or of a function.

    Of a class: of all classes of its MRO. Those of torch, Captum and this package count
    by their names, beside :func:`package_versions` and :func:`package_digest`. Helper
    functions outside of the class are not looked at.
    """
    members = getattr(function, "__mro__", (function,))
    return _digest(text for member in members for text in _texts(member))


def _texts(function: Any) -> list[str]:
    """Returns the name of a class or a function, and its source or its code."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    module = f"{getattr(function, '__module__', '')}"
    if function is object or module.partition(".")[0] in BY_NAME:
        return [f"{module}.{name}"]
    try:
        return [name, inspect.getsource(function)]
    # Typed in a console, made by exec, or in a file that is gone: each has its error.
    except Exception:
        return [name, *_code_texts(function)]


def _code_texts(member: Any, within: tuple[type, ...] = ()) -> list[str]:
    """Returns the code of a function, or of a class and of what it holds, as text.

    ``within`` are the classes that hold it, which may hold themselves.
    """
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    if isinstance(member, functools.partial):
        return [*_code_texts(member.func), _constant(member.args)]
    if isinstance(member, property):
        return [t for part in (member.fget, member.fset) for t in _code_texts(part)]
    code = getattr(inspect.unwrap(member), "__code__", None)
    if isinstance(code, CodeType):
        defaults = (member.__defaults__, sorted((member.__kwdefaults__ or {}).items()))
        return [*_code_object_texts(code), _constant(defaults)]
    if isinstance(member, type) and member not in within:
        return [
            text
            for name, value in sorted(vars(member).items())
            if name not in NOTES
            for text in (name, *_code_texts(value, (*within, member)))
        ]
    return [_constant(member)]


def _code_object_texts(code: CodeType) -> list[str]:
    """Returns what a code object does: not where it stands."""
    texts = [code.co_code.hex(), *code.co_names, *code.co_varnames]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            texts += _code_object_texts(constant)
        else:
            texts.append(_constant(constant))
    return texts


def _constant(value: Any) -> str:
    """Returns a constant as text that is the same in every process."""
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_constant, value))})"
    if isinstance(value, frozenset):  # whose order is random
        return f"{{{', '.join(sorted(map(_constant, value)))}}}"
    if isinstance(value, int | float | complex | str | bytes | None):
        return repr(value)
    return type(value).__qualname__  # whose repr may be its address


def _digest(texts: Iterable[str]) -> str:
    """Returns a digest of texts, which tells where each of them ends."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode(errors="backslashreplace")
        digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()[:DIGEST_LENGTH]
