"""A report as sections of plain text, tables and pictures, and how it is rendered.

The Markdown, the HTML and the LaTeX are renderings of the same sections, so that they
cannot say different things. Everything is escaped where it is inserted.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from captum_unioncam.errors import printable

TITLE = "Evaluation of class activation maps"

# Jinja's own marks are LaTeX's braces and comments.
LATEX_MARKS = {
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#",
    "comment_end_string": "#>",
}
LATEX_LETTERS = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # behind a line's end it would be a length
    "]": "{]}",
    "\u00b1": r"$\pm$",
}


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
    """A PNG or JPEG file of the report.

    Attributes:
        file (str): Its name.
        caption (str): What it shows.
        content (bytes): The content of the file.
        least_width (int): Pixels of the page that a strip of photographs needs to be
            read; a narrower page scrolls it. 0: it is a plot.
    """

    file: str
    caption: str
    content: bytes
    least_width: int = 0

    @property
    def kind(self) -> str:
        """The media type, by the end of the file's name."""
        return "image/jpeg" if self.file.endswith(".jpg") else "image/png"


@dataclass(frozen=True)
class Section:
    """A part of the report, as plain text that is still to be escaped.

    The ``note``, such as how to read the tables, stands behind them.
    """

    title: str
    text: str = ""
    code: str = ""
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    note: str = ""


def markdown(sections: Sequence[Section]) -> str:
    """Returns a report in GitHub's Markdown, which links to its pictures."""
    return _render("report.md.jinja", sections, _plain_markdown)


def html(sections: Sequence[Section]) -> str:
    """Returns a report as one HTML file, with its pictures in it."""
    return _render("report.html.jinja", sections, _plain_html, autoescape=True)


def latex(sections: Sequence[Section]) -> str:
    """Returns the tables of numbers in LaTeX, with the rules of booktabs."""
    return _render("report.tex.jinja", sections, _plain_latex, **LATEX_MARKS)


def plain_table(table: Table, mark: str = "*") -> str:
    """Returns a table for a terminal, with a mark behind what is bold.

    Examples::

        >>> from captum_unioncam.evaluation.document import Table, plain_table
        >>> rows = [("gradcam", "0.5"), ("unioncam", "12.0")]
        >>> print(plain_table(Table(("method", "drop"), rows, bold={(0, 1)})))
        method    drop
        gradcam    0.5 *
        unioncam  12.0
    """
    lines = [table.header, *table.rows]
    cells = [[printable(cell) for cell in line] for line in lines]
    marked = [
        [mark if (y - 1, x) in table.bold else "" for x in range(len(line))]
        for y, line in enumerate(cells)
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    # A column has room for its mark where any of its cells has one.
    rooms = [max(map(len, column)) for column in zip(*marked, strict=True)]
    return "\n".join(
        "  ".join(
            (f"{cell:<{width}}" if x < table.left else f"{cell:>{width}}")
            + (f" {note:<{room}}" if room else "")
            for x, (cell, width, note, room) in enumerate(
                zip(line, widths, notes, rooms, strict=True)
            )
        ).rstrip()
        for line, notes in zip(cells, marked, strict=True)
    )


def section_to_dict(section: Section) -> dict[str, Any]:
    """Returns a section as JSON, with its pictures as the names of their files."""
    tables = [asdict(table) | {"bold": sorted(table.bold)} for table in section.tables]
    pictures = [
        {"file": p.file, "caption": p.caption, "least_width": p.least_width}
        for p in section.pictures
    ]
    return asdict(section) | {"tables": tables, "pictures": pictures}


def section_from_dict(
    entries: Mapping[str, Any], read: Callable[[str], bytes]
) -> Section:
    """Returns a section that was JSON.

    Args:
        entries (Mapping[str, Any]): What :func:`section_to_dict` returned.
        read (Callable): Returns the content of a picture's file, by its name.
    """
    tables = tuple(
        Table(
            tuple(table["header"]),
            [tuple(row) for row in table["rows"]],
            table["left"],
            frozenset((y, x) for y, x in table["bold"]),
        )
        for table in entries["tables"]
    )
    pictures = tuple(
        Picture(
            picture["file"],
            picture["caption"],
            read(picture["file"]),
            picture.get("least_width", 0),
        )
        for picture in entries["pictures"]
    )
    title, text, code = (entries[name] for name in ("title", "text", "code"))
    # Reports of earlier versions have neither notes nor widths.
    return Section(title, text, code, tables, pictures, entries.get("note", ""))


class _Code(str):
    """A line of a code block, which is shown as it is."""


def _render(
    template: str,
    sections: Sequence[Section],
    escape_value: Callable[[object], str],
    **marks: Any,
) -> str:
    """Renders a template, which escapes every value for its own language."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        finalize=escape_value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **marks,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    environment.filters["code_lines"] = _code_lines
    environment.filters["breakable"] = _breakable
    environment.filters["names"] = _names
    return environment.get_template(template).render(
        title=TITLE, sections=sections, script_hash=_script_hash(environment)
    )


def _script_hash(environment: jinja2.Environment) -> str:
    """Returns how the policy of the page names its one script."""
    script = f"\n{environment.get_template('report.js.jinja').render()}"
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _breakable(text: str) -> Markup:
    """Returns text for HTML, with breaks allowed behind the : and + within words."""
    return Markup(
        re.sub(r"(?<=\S)[:+](?=\S)", r"\g<0><wbr>", str(escape(_plain(text))))
    )


def _names(text: str) -> Markup:
    """Returns text for HTML, whose words break nowhere else."""
    words = [
        f'<span class="name">{_breakable(word)}</span>' for word in text.split(" ")
    ]
    return Markup(" ".join(words))


def _code_lines(code: str) -> list[_Code]:
    return [_Code(printable(line)) for line in code.split("\n")]


def _plain(value: object) -> str:
    """Returns text in one line, with escapes for what is not shown.

    They include marks that would turn the direction of the text.
    """
    return printable(str(value))


def _plain_html(value: object) -> str:
    """As :func:`_plain`, but leaves alone what is HTML already."""
    return value if isinstance(value, Markup) else _plain(value)


def _plain_markdown(value: object) -> str:
    """Escapes text, so that Markdown shows it as it is, in one line."""
    if isinstance(value, _Code):
        return value
    # Several spaces would be shown as one.
    text = escape(" ".join(_plain(value).split()), quote=False)
    # An underscore within a word means nothing.
    return re.sub(r"[\\`*\[\]|~#$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def _plain_latex(value: object) -> str:
    """Escapes text, so that LaTeX shows it as it is, in one line."""
    text = " ".join(_plain(value).split())
    return "".join(LATEX_LETTERS.get(character, character) for character in text)
