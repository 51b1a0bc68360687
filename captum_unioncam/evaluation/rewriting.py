"""The report of a folder once more, from its rows: no model, and no images."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from captum_unioncam.errors import ConfigError, one_line
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.document import Section, section_from_dict
from captum_unioncam.evaluation.holding import hold_folder
from captum_unioncam.evaluation.report import write_report
from captum_unioncam.evaluation.row import Row
from captum_unioncam.evaluation.storage import held_run, in_order, read_rows

REPORT = "report.json"
# What only a run knows, and the report of the run before tells.
TOLD = ("command", "hardware", "layer", "reference", "ablation")
UNKNOWN = "not recorded"


def rewrite_report(
    folder: str | Path,
    command: str = "",
    *,
    reference: str | None = None,
    ablation: bool | None = None,
) -> list[Row]:
    """Writes the report of a folder again, also of a run that was interrupted.

    All rows of the folder count. The gallery and the check by randomisation are those
    of the report before, if there is one.

    Args:
        folder (str or Path): The folder of the results.
        command (str, optional): The command line, if no report tells the run's own.
        reference (str, optional): The method to compare with. Default: None, as before
        ablation (bool, optional): Whether to show the variants of UnionCAM apart.
            Default: None, as before

    Returns:
        *list* of all rows, without their maps, in the order of the images.

    Raises:
        ConfigError: If the folder holds no run, or its report cannot be written, or
            there is no such method.
    """
    folder = Path(folder)
    with ExitStack() as stack:
        if not folder.is_dir():
            raise ConfigError(f"`output`: there is no folder {str(folder)!r}")
        stack.enter_context(hold_folder(folder))
        run, told = held_run(folder), _told(folder)
        rows = in_order(read_rows(folder, None, run["methods"]), run["methods"])
        context = _context(run, told, rows) | {"command": told.get("command", command)}
        if reference is not None:
            context["reference"] = reference
        if ablation is not None:
            context["ablation"] = ablation
        try:
            write_report(folder, rows, context, _further(folder, told))
        except OSError as error:
            raise ConfigError(
                f"`output`: the report cannot be written to {folder} "
                f"({one_line(error)})"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{error}") from error
    return rows


def _told(folder: Path) -> dict[str, Any]:
    """Returns the report of the run before; nothing where there is none."""
    try:
        content = json.loads((folder / REPORT).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"`output`: {folder / REPORT} is no report ({one_line(error)}); delete it"
        ) from error
    return content if isinstance(content, dict) else {}


def _context(
    run: Mapping[str, Any], told: Mapping[str, Any], rows: list[Row]
) -> dict[str, Any]:
    """Returns what was run, as far as the folder tells."""
    names = EvaluationConfig.__dataclass_fields__
    return {
        "hardware": UNKNOWN,
        **{name: told[name] for name in TOLD if name in told},
        "config": {name: value for name, value in run.items() if name in names},
        "versions": told.get("versions", run.get("versions", {})),
        "methods": run["methods"],
        "metrics": run["metrics"],
        "images": len({row["id"] for row in rows}),
        "seed": run["seed"],
    }


def _further(folder: Path, told: Mapping[str, Any]) -> list[Section]:
    """Returns the sections that take a model, with those pictures that are there."""

    def read(name: str) -> bytes:
        return (folder / Path(name).name).read_bytes()

    try:
        return [section_from_dict(one, read) for one in told.get("further", [])]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"`output`: a part of {folder / REPORT} cannot be read "
            f"({one_line(error)}); delete the file to do without the gallery"
        ) from error
