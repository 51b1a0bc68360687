"""The Markdown and the HTML of a report: the same sections, and nothing is markup."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
from reports import PNG, context, failure, row, tables, written

from captum_unioncam.errors import printable
from captum_unioncam.evaluation.comparison import Leaders
from captum_unioncam.evaluation.document import (
    Column,
    Picture,
    Section,
    Table,
    html,
    latex,
    markdown,
    plain_table,
    section_from_dict,
    section_to_dict,
)
from captum_unioncam.evaluation.sections import DROP_INCREASE
from captum_unioncam.evaluation.statistics import MapCounts, summarize
from captum_unioncam.evaluation.tables import column_of, means_table

EVIL = "<script>alert(1)</script>|_x_.jpg"


class Balance(HTMLParser):
    """Checks that tags close in turn, and collects the tags and the text."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.scripts = [], set(), "", []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in ("meta", "img", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        else:
            self.text += data


def test_markdown_says_mean_error_n_and_nan():
    rows = [
        row(0, "a", drop=10.0, increase=0.0),
        row(1, "a", drop=20.0, increase=None),
        row(0, "b", drop=30.0, increase=None),
        row(1, "b", drop=30.0, increase=None),
    ]
    summary = summarize(rows, ["a", "b"], ["drop", "increase"])
    maps = {"a": MapCounts(), "b": MapCounts()}
    columns = {name: column_of(name) for name in DROP_INCREASE}
    leaders = {"drop": Leaders("a", ("a",), ("a", "b"), {})}
    table = means_table(summary, maps, columns, leaders)
    text = markdown([Section("Means", tables=(table,))])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines == [
        "| method | average drop, % (lower is better) "
        "| average increase, % (higher is better) | constant maps | maps not finite |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| a | **15.00 ± 5.00 (2)** | 0.00 (1, 1 NaN) | 0 | 0 |",
        "| b | 30.00 ± 0.00 (2) | n/a (2 NaN) | 0 | 0 |",
    ]


def test_nothing_of_the_users_is_taken_for_markup(tmp_path):
    rows = [
        row(0, EVIL, drop=1.0),
        failure(1, f"bad {EVIL}\nin two lines") | {"id": EVIL},
    ]
    asked = context([EVIL], command=EVIL, hardware=EVIL, config={EVIL: EVIL})
    further = [Section(EVIL, pictures=(Picture("gallery-001.png", EVIL, PNG),))]
    texts = written(tmp_path, rows, asked, further)
    page = Balance()
    page.feed(texts["report.html"])
    assert not page.open and len(page.scripts) == 1
    assert page.text.count(EVIL) >= 9
    lines = texts["report.md"].splitlines()
    shown = [line for line in lines if not line.startswith("    ")]  # it is code
    assert not any("<script>" in line for line in shown)
    escaped = r"&lt;script&gt;alert(1)&lt;/script&gt;\|\_x\_.jpg"
    assert f"| {escaped} | 1.00 (1) | n/a (1 NaN) | 0 | 0 |" in lines
    shown = rf"bad {escaped}\\nin two lines"
    assert f"| {escaped} | (the image itself) | {shown} |" in lines
    assert f"![{escaped}](gallery-001.png)" in lines


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two_words_.jpg", r"two_words\_.jpg"),
        ("*bold* ~gone~ `code`", r"\*bold\* \~gone\~ \`code\`"),
        ("![x](http://a.b)", r"!\[x\](http://a.b)"),
        (r"a\b $x$ # b", r"a\\b \$x\$ \# b"),
        ("a & <b> \"c\" 'd'", "a &amp; &lt;b&gt; \"c\" 'd'"),
        ("one\n## two\tthree", r"one\\n\#\# two\\tthree"),
        ("red\x1b[31m cat\u202egnp.exe", r"red\\x1b\[31m cat\\u202egnp.exe"),
        ("{{ 7 * 7 }} {% raw %}", r"{{ 7 \* 7 }} {% raw %}"),
    ],
)
def test_a_name_is_shown_as_it_is(name, shown):
    sections = [Section(name, tables=(Table(("image",), [(name,)]),))]
    text = markdown(sections)
    assert f"\n## {shown}\n" in text and f"\n| {shown} |\n" in text
    page = Balance()
    page.feed(html(sections))
    assert not page.open and not {"b", "x"} & page.tags
    # The parser has undone the escaping for HTML: in the contents, heading and table.
    assert page.text.count(printable(name)) == 3


def test_code_is_verbatim_in_markdown_and_escaped_in_html():
    sections = [Section("Run", code="a --b '*|<x>'\nc_")]
    assert "\n    a --b '*|<x>'\n    c_\n" in markdown(sections)
    page = Balance()
    page.feed(html(sections))
    assert "a --b '*|<x>'\nc_" in page.text and "x" not in page.tags
    turned = [Section("Run", code="a 'cat\u202egnp.exe\x1b['")]
    for text in (markdown(turned), html(turned).replace("&#39;", "'")):
        assert r"a 'cat\u202egnp.exe\x1b['" in text


def test_both_renderings_have_every_part_of_a_section():
    table = Table(("name", "value"), [("a", "1"), ("b", "2")], bold=frozenset({(1, 1)}))
    picture = Picture("plot.png", "What it shows", PNG)
    sections = [Section("Title", "Some text.", "run me", (table, table), (picture,))]
    text, page = markdown(sections), html(sections)
    assert [cells[0] for cells in tables(text, "Title")[1]] == ["name", "a", "b"]
    assert text.count("**2**") == page.count("<b>2</b>") == 2
    assert "![What it shows](plot.png)" in text
    assert f"data:image/png;base64,{base64.b64encode(PNG).decode()}" in page
    for part in ("Title", "Some text.", "run me", "What it shows"):
        assert part in text and part in page


def test_an_empty_section_is_its_title():
    assert re.search("\n## Alone\n\n", markdown([Section("Alone")]))
    assert '<h2 id="section-1">Alone</h2>' in html([Section("Alone")])


def test_a_heading_says_which_values_are_better():
    assert Column("drop", "lower").heading == "drop (lower is better)"
    assert Column("seconds").heading == "seconds"


# LaTeX, and the terminal


def test_latex_has_the_tables_of_numbers_between_the_rules_of_booktabs():
    numbers = Table(
        ("method", "drop, %"), [("a_b", "1"), ("c", "2 ± 1")], 1, frozenset({(1, 1)})
    )
    words = Table(("setting", "value"), [("model", "x")], left=2)
    text = latex([Section("50% & more", "Text", "code", (words, numbers))])
    assert text.splitlines()[0].startswith("%") and "booktabs" in text.splitlines()[0]
    assert text.count(r"\begin{table}") == text.count(r"\end{tabular}") == 1
    _, _, table = text.partition(r"\begin{table}")
    assert table.splitlines()[1:-1] == [
        r"\centering",
        r"\caption{50\% \& more}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"method & drop, \% \\",
        r"\midrule",
        r"a\_b & 1 \\",
        r"c & \textbf{2 $\pm$ 1} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (r"a\b{c}", r"a\textbackslash{}b\{c\}"),
        ("$x$ #1 ~y^2", r"\$x\$ \#1 \textasciitilde{}y\textasciicircum{}2"),
        ("<a|b>", r"\textless{}a\textbar{}b\textgreater{}"),
        ("[0, 1]", "{[}0, 1{]}"),
        ("<< 7 >> <% raw %> <# x #>", r"\textless{}\textless{} 7 \textgreater{}"),
        ("one\n% two\u202e", r"one\textbackslash{}n\% two\textbackslash{}u202e"),
    ],
)
def test_latex_shows_a_name_as_it_is(name, shown):
    table = Table(("method", "drop"), [(name, "1")])
    assert f"\n{shown}" in latex([Section("Means", tables=(table,))])


def test_a_terminal_gets_columns_of_one_width_and_marks():
    rows = [("gradcam", "0.5", "10.0"), ("a\x1bb", "12.0", "n/a")]
    table = Table(("method", "drop", "own"), rows, bold=frozenset({(0, 1), (1, 1)}))
    assert plain_table(table).splitlines() == [
        "method   drop     own",
        "gradcam   0.5 *  10.0",
        r"a\x1bb   12.0 *   n/a",
    ]


def test_a_section_is_the_same_after_a_file():
    table = Table(("x", "y"), [("p", "q")], 2, frozenset({(0, 1)}))
    picture = Picture("p.png", "c", PNG, 90)
    section = Section("T", "text", "code", (table,), (picture,), "note")
    content = json.loads(json.dumps(section_to_dict(section)))
    assert section_from_dict(content, {"p.png": PNG}.__getitem__) == section


def test_a_section_of_an_earlier_version_has_no_note_and_plots_alone():
    section = Section("T", pictures=(Picture("p.png", "c", PNG),))
    content = section_to_dict(section)
    del content["note"], content["pictures"][0]["least_width"]
    assert section_from_dict(content, {"p.png": PNG}.__getitem__) == section


# The page: contents, names, pictures, and its one script

LONG = "unioncam:parts=gradcam+layercam:select=None"
BREAKABLE = "unioncam:<wbr>parts=gradcam+<wbr>layercam:<wbr>select=None"


def test_names_break_behind_a_colon_or_a_plus_alone():
    numbers = Table((f"minus {LONG}", "a: b +1"), [(LONG, "+1.0")])
    words = Table(("image", "error"), [("a-b c", f"no {LONG}")], left=2)
    page = html([Section(LONG, LONG, tables=(numbers, words), note=LONG)])
    assert f'<td><span class="name">{BREAKABLE}</span></td>' in page
    whole = '<td><span class="name">a-b</span> <span class="name">c</span></td>'
    assert whole in page
    assert f'<td class="prose">no {BREAKABLE}</td>' in page
    assert f">{BREAKABLE}</h2>" in page and f">{BREAKABLE}</a>" in page
    assert f"<p>{BREAKABLE}</p>" in page
    assert f'<p class="note">{BREAKABLE}</p>' in page
    assert "a: b +1</th>" in page and '"number">+1.0</td>' in page
    assert "overflow-wrap: anywhere" not in page.split(".prose")[0]


def test_the_contents_link_to_every_section():
    page = html([Section("One"), Section("Two")])
    links = re.findall('<a href="#(.*?)">(.*?)</a>', page)
    assert links == re.findall('<h2 id="(.*?)">(.*?)</h2>', page)
    assert [title for _, title in links] == ["One", "Two"]


def test_the_policy_of_the_page_allows_its_own_script_alone():
    text = html([Section("One")])
    page = Balance()
    page.feed(text)
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = unescape(re.search('content="(default-src.*?)"', text)[1])
    assert policy.endswith(f"script-src 'sha256-{digest}'")
    assert not re.search("https?:|//[a-z]|@import|url[(]", text)


def test_strips_are_no_plots_and_tell_their_kind():
    pictures = (Picture("a.png", "A", PNG), Picture("b.jpg", "B", PNG, 200))
    text = html([Section("One", pictures=pictures)])
    plot, strip = re.findall('<figure class="(.*?)">.*?src="data:(.*?);', text)
    assert plot == ("plot", "image/png") and strip == ("strip", "image/jpeg")
    assert text.count('style="min-width: 200px"') == 1
    assert "![B](b.jpg)\n\nB\n" in markdown([Section("One", pictures=pictures)])


def test_a_note_stands_behind_the_tables():
    section = Section("One", "before", tables=(Table(("x", "cells"), [("a", "1")]),))
    for render in (markdown, html):
        text = render([replace(section, note="behind")]).split("<script>")[0]
        assert text.rindex("before") < text.index("cells") < text.rindex("behind")
