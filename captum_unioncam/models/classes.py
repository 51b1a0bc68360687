"""The classes of a classifier, by index, name or WordNet id."""

import functools
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from captum_unioncam._checks import did_you_mean
from captum_unioncam.errors import ConfigError, one_line


@functools.cache
def wordnet_ids() -> tuple[str, ...]:
    """Returns the WordNet ids of ImageNet's 1,000 classes (ILSVRC 2012), in order."""
    path = resources.files("captum_unioncam").joinpath("wordnet_ids.txt")
    return tuple(path.read_text(encoding="ascii").split())


def classes_named(name: str, categories: list[str], count: int) -> list[int]:
    """Returns the indices of the classes that a name may stand for.

    Args:
        name (str): A whole number; a class name in any case, with spaces or
            underscores, or one of the names with commas between them that a class has;
            or, for a model of 1,000 classes, a WordNet id such as n01440764.
        categories (list[str]): The names by index; empty if they are not known.
        count (int): The number of classes.
    """
    if re.fullmatch("[0-9]{1,9}", name):
        return [int(name)] if int(name) < count else []
    wanted = _spoken(name)
    found = [i for i, c in enumerate(categories) if _spoken(c) == wanted]
    if not found and count == len(wordnet_ids()) and wanted in wordnet_ids():
        return [wordnet_ids().index(wanted)]
    # Such as "tench, Tinca tinca".
    return found or [i for i, c in enumerate(categories) if wanted in _synonyms(c)]


def _spoken(name: str) -> str:
    return name.replace("_", " ").casefold()


def _synonyms(category: str) -> list[str]:
    return [_spoken(name.strip()) for name in category.split(",")]


def class_index(name: str, categories: list[str], count: int) -> int:
    """Returns the index of the class that a name stands for.

    Args:
        name, categories, count: See :func:`classes_named`.

    Raises:
        ConfigError: If there is no such class, or several have this name.
    """
    found = classes_named(name, categories, count)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"`target`: {name!r} is several classes, {found}; give an index"
        )
    if re.fullmatch("-?[0-9]+", name):
        raise ConfigError(f"`target` must be in [0, {count - 1}], got {name}")
    known = [category.casefold() for category in categories]
    close = did_you_mean(_spoken(name), known)
    raise ConfigError(f"`target`: there is no class {name!r}{close}")


def read_categories(path: str) -> list[str]:
    """Returns the class names of a file: one a line, or a JSON list.

    Raises:
        ConfigError: If it cannot be read, or holds anything else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        names = (
            json.loads(text)
            if text.lstrip()[:1] in ("[", "{")
            else text.rstrip().splitlines()
        )
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"`categories`: {path} cannot be read ({one_line(error)}); give a text "
            "file of one name a line, or a JSON list"
        ) from error
    return checked_categories(names, path)


def checked_categories(names: Sequence[str], source: str) -> list[str]:
    """Returns class names as a list, or refuses anything but strings with letters."""
    if not isinstance(names, list | tuple) or not names:
        raise ConfigError(
            f"`categories`: {source} must hold a list of names, got "
            f"{type(names).__name__ if names else 'nothing'}"
        )
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(
                f"`categories`: the name of class {index} in {source} must be text, "
                f"got {name!r}"
            )
    return [name.strip() for name in names]
