"""A report as sections of plain text, tables and pictures, and how it is rendered.

The Markdown and the HTML report are two renderings of the same sections, so that they
cannot say different things. Everything is escaped where it is inserted.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import jinja2

from captum_unioncam.errors import printable

TITLE = "Evaluation of class activation maps"


class Column(NamedTuple):
    """How the values of a metric are shown."""

    title: str
    better: str | None = None  # "higher", "lower", or None: neither
    decimals: int = 4

    @property
    def heading(self) -> str:
        """The title, and which values are better."""
        return self.title + (f" ({self.better} is better)" if self.better else "")


@dataclass(frozen=True)
class Table:
    """Cells as plain text; ``left`` columns are words, and the others numbers."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    left: int = 1
    bold: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Picture:
    """A PNG file of the report."""

    file: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A part of the report, as plain text that is still to be escaped."""

    title: str
    text: str = ""
    code: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


def markdown(sections: Sequence[Section]) -> str:
    """Returns a report in GitHub's Markdown, which links to its pictures."""
    return _render("report.md.jinja", sections, autoescape=False)


def html(sections: Sequence[Section]) -> str:
    """Returns a report as one HTML file, with its pictures in it."""
    return _render("report.html.jinja", sections, autoescape=True)


class _Code(str):
    """A line of a code block, which is shown as it is."""


def _render(template: str, sections: Sequence[Section], autoescape: bool) -> str:
    """Renders a template, which escapes every value for its own language."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=autoescape,
        finalize=_plain if autoescape else _plain_markdown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode()
    environment.filters["code_lines"] = _code_lines
    return environment.get_template(template).render(title=TITLE, sections=sections)


def _code_lines(code: str) -> list[_Code]:
    return [_Code(printable(line)) for line in code.split("\n")]


def _plain(value: object) -> str:
    """Returns text in one line, with escapes for what is not shown.

    They include marks that would turn the direction of the text.
    """
    return printable(str(value))


def _plain_markdown(value: object) -> str:
    """Escapes text, so that Markdown shows it as it is, in one line."""
    if isinstance(value, _Code):
        return value
    # Several spaces would be shown as one.
    text = escape(" ".join(_plain(value).split()), quote=False)
    # An underscore within a word means nothing.
    return re.sub(r"[\\`*\[\]|~#$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
