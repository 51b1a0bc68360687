"""The app without a browser: what it computes, shows, and lets one make again."""

import asyncio
import base64
import dataclasses
import io
import os
import re
import shlex
import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import crop
from PIL import Image
from skimage.data import coffee

from captum_unioncam._progress import progress_to, tell_progress
from captum_unioncam.cli import app, main
from captum_unioncam.cli.app import engine as engine_module
from captum_unioncam.cli.app import html, reproduce, server
from captum_unioncam.cli.app.engine import Engine, Photo, example_names
from captum_unioncam.cli.arrays import MapFile
from captum_unioncam.cli.options import AppOptions, ExplainOptions
from captum_unioncam.errors import ConfigError, DataError, UserError

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*the maps of examples"),
]

MODEL = "classifiers:tiny_classifier"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def engine():
    return Engine(AppOptions(model=MODEL))


@pytest.fixture
def photo(tmp_path):
    crop(0).save(tmp_path / "a photo.png")
    return Photo("a photo.png", str(tmp_path / "a photo.png"))


def options_for(photo, **given):
    """Returns the options of an explanation, as the app makes them."""
    chosen = {"methods": ("unioncam", "gradcam"), "target": "7", "layer": "3", **given}
    return ExplainOptions(model=MODEL, images=(photo.name,), **chosen)


def hears_nothing(*_):
    pass


# The engine


def test_layers_come_with_their_sizes(engine):
    layers, default = engine.layers(MODEL)
    assert ("3 (ReLU, 12 x 8 x 8)", "3") in layers and default == "3"


def test_classes_come_by_confidence_and_with_names(engine, photo):
    classes = engine.classes(MODEL, photo)
    assert sorted(index for _, index in classes) == list(range(1000))
    shares = [float(text.rsplit(" ", 1)[1].rstrip("%")) for text, _ in classes]
    assert shares == sorted(shares, reverse=True) and shares[0] > 5
    assert any(text.startswith("967 espresso ") for text, _ in classes)


def test_only_the_one_who_starts_the_app_names_code_and_files(engine):
    models = engine.models()
    assert models[0] == MODEL and "resnet18" in models
    assert engine.model_options("resnet18") == {"model": "resnet18"}
    for name in ("os:getcwd", "hf:/etc", "classifiers:other"):
        with pytest.raises(ConfigError, match="must be one of the list"):
            engine.classes(name, Photo("coffee.png"))


def test_one_model_is_in_memory(monkeypatch, photo):
    loaded, before = [], []

    def load(name, **options):
        before.append(engine._loaded)
        loaded.append((name, options))
        from classifiers import tiny_classifier

        return tiny_classifier()

    monkeypatch.setattr(engine_module, "load_classifier", load)
    engine = Engine(AppOptions(model=MODEL, weights="none"))
    for name in (MODEL, MODEL, "resnet18", MODEL):
        engine.layers(name)
    assert before == [None] * 3, "the last one is gone when the next one comes"
    first = (MODEL, {"weights": "none"})
    assert loaded == [first, ("resnet18", {}), first]


def test_a_model_is_on_the_device():
    engine = Engine(AppOptions(model=MODEL))
    engine._device = torch.device("meta")
    assert all(p.is_meta for p in engine._classifier(MODEL).model.parameters())


def test_the_options_of_the_command_are_those_of_its_own_model():
    engine = Engine(AppOptions(model=MODEL, weights="w.pt", size=64))
    own = {"model": MODEL, "weights": "w.pt", "size": 64}
    assert engine.model_options(MODEL) == own
    assert engine.model_options("resnet18") == {"model": "resnet18"}


@pytest.mark.parametrize(("found", "default"), [(None, "3"), ("0.inner", "0.inner")])
def test_there_is_a_layer_to_choose_without_a_default_in_the_list(
    engine, monkeypatch, found, default
):
    monkeypatch.setattr(engine_module, "default_layer_of", lambda classifier: found)
    layers, chosen = engine.layers(MODEL)
    assert chosen == default and layers[-1][1] == default


def test_classes_without_names_are_numbers(engine, photo, monkeypatch):
    classifier = dataclasses.replace(engine._classifier(MODEL), categories=None)
    monkeypatch.setattr(engine, "_loaded", (MODEL, classifier))
    text, index = engine.classes(MODEL, photo)[0]
    assert re.fullmatch(rf"{index} \d+\.\d%", text)


def test_explanations_are_made_one_after_the_other(engine, photo):
    running, seen = threading.Semaphore(1), []

    def listen(name, done, total):
        seen.append(running.acquire(blocking=False))
        time.sleep(0.01)
        running.release()

    options = options_for(photo)
    users = [
        threading.Thread(target=engine.explain, args=(photo, options, listen))
        for _ in range(2)
    ]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert len(seen) > 4 and all(seen)


def test_a_result_holds_no_model(engine, photo):
    result = engine.explain(photo, options_for(photo), hears_nothing)
    assert not list(result.found.explanation.model.parameters())
    assert list(result.found.explanation.maps) == ["unioncam", "gradcam"]
    assert result.found.explanation.targets.tolist() == [7]


def test_progress_is_heard_and_ends_where_the_listener_raises(engine, photo, capsys):
    heard = []
    engine.explain(photo, options_for(photo), lambda *told: heard.append(told))
    assert heard[0] == ("UnionCAM", 0, 2) and ("GradCAM", 1, 2) in heard
    scored = [done for name, done, total in heard if total > 2]
    assert scored[0] == 0 and scored[-1] == heard[len(scored)][2]
    assert capsys.readouterr().err == ""

    def cancel(name, done, total):
        if total > 2:
            raise UserError("enough")

    with pytest.raises(UserError, match="^enough$"):
        engine.explain(photo, options_for(photo), cancel)
    assert engine.explain(photo, options_for(photo), hears_nothing)


def test_progress_is_that_of_one_thread():
    heard = []
    with progress_to(lambda *told: heard.append(told)):
        other = threading.Thread(target=tell_progress, args=("other", 0, 1))
        other.start()
        other.join()
        tell_progress("own", 1, 2)
    tell_progress("after", 2, 2)
    assert heard == [("own", 1, 2)]


# Images


def test_uploads_are_checked_like_the_images_of_the_command(tmp_path, monkeypatch):
    path = tmp_path / "notes.png"
    path.write_text("no image")
    with pytest.raises(DataError, match="^The image notes.png cannot be read as an im"):
        Photo("notes.png", str(path)).read()
    monkeypatch.setattr(engine_module, "LARGEST_UPLOAD", 4)
    with pytest.raises(DataError, match="^The image notes.png has more than 0 MB"):
        Photo("notes.png", str(path)).read()
    Image.new("RGB", (1, 2000)).save(path)
    monkeypatch.setattr(engine_module, "LARGEST_UPLOAD", 2**20)
    with pytest.raises(DataError, match="^The image notes.png is 1 x 2000 pixels"):
        Photo("notes.png", str(path)).read()


def test_examples_are_scikit_images(monkeypatch):
    assert example_names() == ["coffee", "chelsea"]
    assert np.array_equal(Photo("coffee.png").read(), coffee())
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert example_names() == []


# What is shown


def test_an_overlay_is_an_image_and_the_colours_of_its_map(engine, photo):
    found = engine.explain(photo, options_for(photo), hears_nothing).found
    text = html.maps_html("<b>.png", "<i>", found)
    assert text.count("<figure>") == 2 and text.count("<img ") == 4
    assert "&lt;b&gt;.png: 7 cock, confidence" in text and "<b>.png" not in text
    assert "<b>UnionCAM</b>" in text and "of the confidence, " in text
    assert "http" not in text
    assert "may say nothing" in text  # of a class that is not predicted


def test_bars_show_the_gains_and_the_selected_map(engine, photo):
    found = engine.explain(photo, options_for(photo), hears_nothing).found
    (entry,) = found.explanation.to_dict()["images"]
    text = html.gains_html(found)
    assert text.count("<tr") == 3
    assert f"{entry['details']['unioncam']['selected']} (selected)" in text
    assert f"{entry['details']['unioncam']['region_gain']:.3f}" in text
    alone = options_for(photo, methods=("gradcam",))
    assert html.gains_html(engine.explain(photo, alone, hears_nothing).found) == ""


def test_an_overlay_has_the_image_below_and_the_colours_above(engine, photo):
    options = options_for(photo, methods=("gradcam",))
    found = engine.explain(photo, options, hears_nothing).found
    text = html.maps_html("x", "y", found)
    below, above = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB"))
        for source in re.findall('src="data:image/png;base64,([^"]+)"', text)
    )
    pixels = found.explanation.pictures[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(below - pixels).max() < 1.5
    assert np.abs(above - pixels).max() > 50


def test_a_preview_is_small_and_its_name_is_text():
    text = html.preview_html('"><b>.png', Image.new("RGB", (1000, 500)))
    assert 'alt="&quot;&gt;&lt;b&gt;.png"' in text
    source = re.search('src="data:image/jpeg;base64,([^"]+)"', text)[1]
    assert Image.open(io.BytesIO(base64.b64decode(source))).size == (480, 240)


@pytest.mark.parametrize(("gain", "marked"), [(-0.5, True), (0.5, False)])
def test_a_bar_of_a_negative_gain_is_marked(gain, marked):
    text = html._row("fused", gain, 0.25, False)
    assert ("unioncam-negative" in text) is marked
    assert 'style="width:25.0%"' in text and f"{gain:.3f}" in text


def test_a_map_without_contrast_has_a_note(engine, photo):
    options = options_for(photo, methods=("gradcam",))
    found = engine.explain(photo, options, hears_nothing).found
    flat = {"gradcam": torch.zeros_like(found.explanation.maps["gradcam"])}
    explanation = dataclasses.replace(found.explanation, maps=flat)
    found = dataclasses.replace(found, explanation=explanation)
    assert "; the map is constant</figcaption>" in html.maps_html("x", "y", found)


def test_the_longest_bar_is_that_of_the_largest_gain_of_either_sign():
    assert html.bar_shares([0.5, -1.0, 0.25]) == [0.5, 1.0, 0.25]
    assert html.bar_shares([0.0, 0.0, 0.0]) == [0.0, 0.0, 0.0]


# Making it again


def test_the_command_and_the_lines_make_the_same_maps(engine, photo, capsys):
    options = options_for(photo, theta=40.0, fidelity=1.0, alpha=0.25)
    result = engine.explain(photo, options, hears_nothing)
    file = MapFile()
    file.add([photo.name], [result.found.explanation])
    Path("app.npz").write_bytes(file.content())
    expected = np.load("app.npz")

    line = reproduce.command_of(options, None)
    assert "'a photo.png'" in line and "--theta 40.0" in line and "--alpha 0.25" in line
    words = shlex.split(line)
    assert main(words[words.index("explain") :]) == 0
    made = np.load("maps.npz")
    assert sorted(made) == sorted(expected)
    for name in made:
        assert np.array_equal(made[name], expected[name])

    os.remove("maps.npz")
    os.remove("unioncam.png")
    exec(reproduce.python_of(options, None, "3", "cock\nimport x"), {})
    made = np.load("maps.npz")
    assert np.array_equal(made["maps/unioncam"], expected["maps/unioncam"])
    assert Path("unioncam.png").exists()


def test_examples_are_written_first():
    options = dataclasses.replace(options_for(Photo("coffee.png")), methods=("rise",))
    written, line = reproduce.command_of(options, "coffee").splitlines()
    words = shlex.split(written)
    assert words[:2] == ["python", "-c"]
    exec(words[2], {})
    assert np.array_equal(np.asarray(Image.open("coffee.png")), coffee())
    text = reproduce.python_of(options, "coffee", "3", "espresso")
    assert "Image.fromarray(coffee())" in text
    assert "theta" not in text, "RISE has none"
    compile(text, "lines", "exec")


def test_the_options_of_the_command_are_part_of_it():
    options = dataclasses.replace(
        options_for(Photo("-x.png", "-x.png")), weights="w.pt", size=64, device="cpu"
    )
    text = reproduce.python_of(options, None, "3", "cock")
    assert f"load_classifier({MODEL!r}, size=64, weights='w.pt')" in text
    assert "classifier.model.to('cpu')" in text
    line = reproduce.command_of(options, None)
    assert " explain ./-x.png " in line and "--weights w.pt" in line


# The server


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    assert main(["app"]) == 2
    assert 'run `pip install "captum-unioncam[app]"`' in capsys.readouterr().err


def test_a_port_in_use_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"`port` {port} of 127.0.0.1 cannot be us"):
            server._free_port("127.0.0.1", port)
    assert server._free_port("127.0.0.1", port) == port
    assert server._free_port("127.0.0.1", 0) > 0


@pytest.mark.parametrize(
    ("host", "warned"),
    [
        ("127.0.0.1", False),
        ("localhost", False),
        ("::1", False),
        ("0.0.0.0", True),
        ("::", True),
        ("10.0.0.7", True),
        ("machine.example", True),
    ],
)
def test_other_machines_are_warned_of(host, warned, capsys):
    server._announce(host, 7860)
    err = capsys.readouterr().err
    assert ("Whoever reaches this address" in err) is warned
    assert ("http://[::1]:7860" in err) is (host == "::1")


def test_every_response_tells_the_browser_to_ask_no_other_host():
    sent = []

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"text"})

    async def send(message):
        sent.append(message)

    asyncio.run(server.OwnHostOnly(inner)({"type": "http"}, None, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"referrer-policy"] == b"no-referrer"
    assert headers[b"a"] == b"b" and sent[1]["body"] == b"text"
    policy = headers[b"content-security-policy"].decode()
    assert policy.startswith("default-src 'self'") and "http" not in policy


def test_the_app_is_for_this_machine_alone_by_default():
    assert AppOptions().host == "127.0.0.1"
