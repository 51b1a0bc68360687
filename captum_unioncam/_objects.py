"""Objects of the user's own code, by name: ``package.module:name``."""

import importlib
from typing import Any

from captum_unioncam._checks import did_you_mean
from captum_unioncam.errors import ConfigError, one_line


def named_object(spec: str, argument: str) -> Any:
    """Imports a module, and returns what it calls by a name.

    Args:
        spec (str): ``package.module:name``; a name in a class has dots.
        argument (str): What the errors name.

    Raises:
        ConfigError: If there is no such module or name, or importing it fails.
    """
    path, _, name = spec.partition(":")
    if not path or not name:
        raise ConfigError(
            f"`{argument}` must be package.module:name, got {spec!r}; put both sides "
            "of the colon"
        )
    found = _module(path, argument)
    for part in name.split("."):
        if not hasattr(found, part):
            close = did_you_mean(part, (n for n in dir(found) if n[0] != "_"))
            raise ConfigError(f"`{argument}`: {path} has no {name!r}{close}")
        found = getattr(found, part)
    return found


def _module(path: str, argument: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = f"{error.name}"
        if path == missing or path.startswith(f"{missing}."):
            raise ConfigError(
                f"`{argument}`: there is no module {path!r}; it must be installed, in "
                "the working folder, or in a folder of PYTHONPATH"
            ) from error
        raise ConfigError(
            f"`{argument}`: {path} imports {missing}, which is not installed"
        ) from error
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"`{argument}`: {path} cannot be imported: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error
