"""The app in a real browser: headless Chromium, where there is one."""

import os
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from skimage.data import chelsea

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
if CHROMIUM is None:
    pytest.skip("needs Chromium", allow_module_level=True)
pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

WIDTHS = (1280, 390)
PATIENCE = 30_000  # milliseconds, of a busy machine


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Starts the app, as a user does, and returns where it is."""
    folder = tmp_path_factory.mktemp("work")
    kept = tmp_path_factory.mktemp("kept")
    command = [sys.executable, "-m", "captum_unioncam", "app", "--port", "0"]
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "TMPDIR": str(kept)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            if found:
                break
        else:
            pytest.fail("".join(lines))
        # What it writes is read, or it would wait.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found[0]
        assert list(kept.glob("captum-unioncam-*"))
        process.terminate()
    assert not list(kept.glob("captum-unioncam-*")), "no upload is left"


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_app(browser, address):
    """Returns a function that opens the app for a new user."""
    users = []

    def opened(width=1280):
        user = browser.new_context(viewport={"width": width, "height": 900})
        users.append(user)
        page = user.new_page()
        page.set_default_timeout(PATIENCE)
        page.asked, page.errors = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(f"{error}"))
        page.goto(address)
        page.get_by_role("button", name="Explain").wait_for()
        return page

    yield opened
    for user in users:
        user.close()


@pytest.fixture
def cat(tmp_path):
    path = tmp_path / "my cat.png"
    Image.fromarray(chelsea()).save(path)
    return path


def take(page, example):
    page.get_by_role("button", name=example, exact=True).click()
    expect(page.locator(".unioncam-preview img")).to_have_attribute(
        "alt", f"{example}.png", timeout=PATIENCE
    )


def explain(page):
    page.get_by_role("button", name="Explain").click()


def heading(page):
    return page.get_by_role("heading", level=3)


def shows(page, text):
    expect(heading(page)).to_contain_text(text, timeout=PATIENCE)


def downloaded(page, name, path):
    with page.expect_download() as found:
        page.get_by_role("button", name=name, exact=True).click()
    found.value.save_as(path / found.value.suggested_filename)
    return path / found.value.suggested_filename


@pytest.mark.parametrize("width", WIDTHS)
def test_upload_choose_compare_and_download(open_app, cat, tmp_path, width, address):
    page = open_app(width)
    page.locator("input[type=file]").set_input_files(cat)
    expect(page.get_by_role("radio", name="282 tiger cat")).to_be_checked(
        timeout=PATIENCE
    )
    page.get_by_role("radio", name="285 Egyptian cat").click()
    expect(page.get_by_label("Class", exact=True)).to_have_value(
        re.compile("285 Egyptian cat"), timeout=PATIENCE
    )
    explain(page)
    shows(page, "my cat.png: 285 Egyptian cat, confidence")
    expect(page.locator(".unioncam-maps figcaption b")).to_have_text(
        ["UnionCAM", "GradCAM"]
    )
    expect(page.locator(".unioncam-selected")).to_have_count(1)

    maps = np.load(downloaded(page, "Maps (NPZ)", tmp_path))
    assert {"maps/unioncam", "maps/gradcam", "gains/unioncam"} <= set(maps)
    assert maps["targets"].tolist() == [285]
    with Image.open(downloaded(page, "Picture (PNG)", tmp_path)) as picture:
        assert picture.width > 2 * picture.height
    command = downloaded(page, "Command", tmp_path).read_text()
    assert "explain 'my cat.png' " in command and "--target 285" in command
    lines = downloaded(page, "Python", tmp_path).read_text()
    assert "read_image('my cat.png')" in lines and "    285,  # " in lines

    page.screenshot(path=tmp_path / f"app_{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not page.errors
    others = [u for u in page.asked if not u.startswith((address, "data:", "blob:"))]
    assert page.asked and not others


def test_overlays_follow_the_opacity_without_a_new_map(open_app):
    page = open_app()
    take(page, "coffee")
    explain(page)
    shows(page, "coffee.png: 967 espresso")
    colours = page.locator(".unioncam-stack img:nth-child(2)").first
    source = colours.get_attribute("src")
    expect(colours).to_have_css("opacity", "0.5")
    before = len(page.asked)
    slider = page.get_by_role("slider", name=re.compile("Opacity"))
    slider.evaluate(
        "(e) => {e.value = 0.25; e.dispatchEvent(new Event('input', {bubbles: true}))}"
    )
    expect(colours).to_have_css("opacity", "0.25")
    assert colours.get_attribute("src") == source
    assert not page.asked[before:], "the server is not asked"


def test_keys_and_numbers_set_the_opacity_of_the_download(open_app, tmp_path):
    page = open_app()
    slider = page.get_by_role("slider", name=re.compile("Opacity"))
    slider.press("ArrowRight")
    take(page, "coffee")
    explain(page)
    shows(page, "coffee.png: 967 espresso")
    page.get_by_text("Make it again").click()
    code = page.locator(".cm-content").first
    expect(code).to_contain_text("alpha=0.51", timeout=PATIENCE)
    slider.press("ArrowRight")
    expect(code).to_contain_text("alpha=0.52", timeout=PATIENCE)
    number = page.get_by_role("spinbutton", name=re.compile("Opacity"))
    colours = page.locator(".unioncam-stack img:nth-child(2)").first
    for typed, alpha in (("7", "1"), ("", "0"), ("0.3", "0.3")):
        number.fill(typed)
        number.press("Tab")
        expect(code).to_contain_text(f"alpha={float(alpha)})", timeout=PATIENCE)
        expect(colours).to_have_css("opacity", alpha)
    lines = downloaded(page, "Python", tmp_path).read_text()
    assert "alpha=0.3" in lines and not page.errors


def test_any_class_is_found_by_its_name(open_app):
    page = open_app()
    take(page, "coffee")
    search = page.get_by_label("Class", exact=True)
    search.click()
    search.fill("coffee mug")
    page.get_by_role("option", name="504 coffee mug").click()
    explain(page)
    shows(page, "coffee.png: 504 coffee mug")


def test_users_get_their_own_results(open_app, tmp_path):
    pages = {name: open_app() for name in ("coffee", "chelsea")}
    for name, page in pages.items():
        take(page, name)
    for page in pages.values():
        explain(page)
    for name, target in (("coffee", 967), ("chelsea", 282)):
        shows(pages[name], f"{name}.png: {target} ")
        maps = np.load(downloaded(pages[name], "Maps (NPZ)", tmp_path))
        assert maps["images"].tolist() == [f"{name}.png"]
        assert maps["targets"].tolist() == [target]


def test_errors_are_sentences(open_app, tmp_path):
    page = open_app()
    explain(page)
    message = "There is no image yet; drop one, or take an example."
    expect(page.get_by_text(message)).to_be_visible(timeout=PATIENCE)
    path = tmp_path / "notes.png"
    path.write_text("no image")
    page.locator("input[type=file]").set_input_files(path)
    message = (
        "The image notes.png cannot be read as an image (in no format that Pillow "
        "knows); give a whole JPEG or PNG file."
    )
    expect(page.get_by_text(message)).to_be_visible(timeout=PATIENCE)
    take(page, "coffee")
    page.locator("input[type=file]").set_input_files(path)
    expect(page.get_by_text(message)).to_have_count(2, timeout=PATIENCE)
    expect(page.locator(".unioncam-preview")).to_have_count(0, timeout=PATIENCE)
    take(page, "coffee")
    explain(page)
    shows(page, "coffee.png: 967 espresso")


def test_a_file_that_is_too_large_is_refused(open_app, tmp_path):
    page = open_app()
    path = tmp_path / "large.png"
    path.write_bytes(bytes(21 * 2**20))
    page.locator("input[type=file]").set_input_files(path)
    message = "The image large.png has more than 20 MB; scale it down first."
    expect(page.get_by_text(message)).to_be_visible(timeout=PATIENCE)


def cancelled(page):
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("The explanation was cancelled.")).to_be_visible(
        timeout=PATIENCE
    )
    expect(page.get_by_role("button", name="Explain")).to_be_enabled()
    expect(heading(page)).to_have_count(0)


def test_explanations_can_be_cancelled_while_they_run_and_wait(open_app):
    page, other = open_app(), open_app()
    for one in (page, other):
        take(one, "coffee")
    methods = page.get_by_label("Methods to compare", exact=True)
    methods.click()
    methods.fill("RISE")
    page.get_by_role("option", name="RISE (").click()
    page.keyboard.press("Escape")
    explain(page)
    progress = page.get_by_text(re.compile("RISE.*%"))
    expect(progress).to_be_visible(timeout=PATIENCE)
    explain(other)
    expect(other.get_by_text(re.compile("queue: 1/1"))).to_be_visible(timeout=PATIENCE)
    cancelled(other)
    expect(progress).to_be_visible()
    cancelled(page)
    explain(other)
    shows(other, "coffee.png: 967 espresso")
