"""The page of a report in a browser; skipped where there is no Chromium."""

import re
import shutil
import subprocess

import pytest

from captum_unioncam.evaluation.document import Section, Table, html

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")

ROWS = [("b", "0.90 ± 0.10 (8)"), ("a", "n/a"), ("c", "12.00"), ("d", "-1.00")]
TABLE = Table(("method", "gain (higher is better)"), ROWS)
WORDS = Table(("image", "error"), [("b", "x"), ("a", "y")], left=2)
CLICK = """<script>for (let i = 0; i < {clicks}; i++)
document.querySelectorAll("th button")[{column}].click()</script></body>"""


def loaded(tmp_path, page):
    """Returns the page as the browser has it once its scripts have run."""
    path = tmp_path / "page.html"
    path.write_text(page)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout


def test_the_policy_lets_the_script_run_and_no_other(tmp_path):
    page = html([Section("Summary", tables=(TABLE, WORDS))])
    assert loaded(tmp_path, page).count("<button>") == 2, "words are not sorted"
    injected = page.replace("</body>", CLICK.format(clicks=1, column=0))
    assert (
        'aria-sort="'
        not in loaded(tmp_path, injected).split("</style>")[1].split("<script>")[0]
    )


@pytest.mark.parametrize(
    ("column", "clicks", "order", "sort"),
    [
        (0, 1, "abcd", ["ascending"]),
        (0, 2, "dcba", ["descending"]),
        (1, 1, "cbda", ["descending"]),  # the best on top, and n/a last
        (1, 2, "dbca", ["ascending"]),
        (1, 3, "bacd", []),
    ],
)
def test_a_click_on_a_heading_sorts(tmp_path, column, clicks, order, sort):
    page = html([Section("Summary", tables=(TABLE,))])
    page = re.sub(
        '<meta http-equiv="Content-Security-Policy".*?">', "", page, flags=re.S
    )
    page = page.replace("</body>", CLICK.format(clicks=clicks, column=column))
    shown = loaded(tmp_path, page).split("</style>")[1].split("<script>")[0]
    assert "".join(re.findall('<span class="name">(.)</span>', shown)) == order
    assert re.findall('aria-sort="(.*?)"', shown) == sort
