"""The app as a client of its server sees it: what it answers, refuses and leaves."""

import re
import types
from pathlib import Path

import numpy as np
import pytest
from folders import crop

gradio = pytest.importorskip("gradio")

import httpx  # noqa: E402
from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

from captum_unioncam.cli.app import actions, page, server  # noqa: E402
from captum_unioncam.cli.app.actions import Actions  # noqa: E402
from captum_unioncam.cli.app.engine import Engine, Photo  # noqa: E402
from captum_unioncam.cli.options import AppOptions  # noqa: E402
from captum_unioncam.errors import UserError  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*the maps of examples"),
]

MODEL = "classifiers:tiny_classifier"
METHODS = ["unioncam", "gradcam"]
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


@pytest.fixture(scope="module")
def engine():
    return Engine(AppOptions(model=MODEL))


@pytest.fixture
def do(engine, tmp_path, monkeypatch):
    (tmp_path / "kept").mkdir()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "kept"))
    monkeypatch.setattr(gradio, "Info", lambda text: None)
    return Actions(engine)


@pytest.fixture
def photo(tmp_path):
    crop(0).save(tmp_path / "a photo.png")
    return Photo("a photo.png", str(tmp_path / "a photo.png"))


def user(name):
    return types.SimpleNamespace(session_hash=name)


def explained(do, photo, name="one", progress=lambda *_, **__: None, **given):
    """Returns what a click on Explain returns."""
    chosen = {"layer": "3", "target": 7, "methods": METHODS, "theta": 40, **given}
    do.begin(user(name))
    return do.explain(
        photo,
        MODEL,
        **chosen,
        fidelity=0.5,
        alpha=0.25,
        request=user(name),
        progress=progress,
    )


def paths_of(buttons):
    return [Path(button.value["path"]) for button in buttons]


def is_skipped(updates):
    return all(update == gradio.skip() for update in updates)


# What is shown, and what goes wrong


def test_an_upload_is_shown_with_its_classes(do, photo):
    shown, preview, top, every = do.upload(MODEL, photo.path)
    assert shown == photo and 'alt="a photo.png"' in preview
    assert len(top.choices) == 5 and len(every.choices) == 1000
    assert top.choices == every.choices[:5]
    assert top.value == every.value == every.choices[0][1]


def test_the_note_of_a_class_that_is_not_seen_is_for_it_alone(do, photo):
    _, _, top, _ = do.upload(MODEL, photo.path)
    for target, noted in ((top.value, False), (7, True)):
        _, maps, *_ = explained(do, photo, target=target)
        assert ("may say nothing" in maps) is noted


def test_an_example_takes_the_place_of_an_upload(do):
    upload, shown, preview, *_ = do.example(MODEL, "coffee")
    assert upload is None and shown == Photo("coffee.png") and "coffee.png" in preview


def test_a_refused_upload_is_not_kept(do, tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no image")
    with pytest.raises(gradio.Error, match="^'The image notes.png cannot be read"):
        do.upload(MODEL, str(path))
    assert not path.exists()


def test_without_an_image_nothing_is_shown(do):
    for updates in (do.upload(MODEL, None), do.forget()):
        shown, preview, top, every = updates
        assert (shown, preview, top.value, every.value) == (None, "", None, None)
        assert top.choices == every.choices == []
    layers, *updates = do.change_model(MODEL, None)
    assert layers.value == "3" and updates[0] is None


def test_an_upload_that_is_gone_is_asked_for_again(do, photo):
    Path(photo.path).unlink()
    with pytest.raises(gradio.Error, match="^'The image a photo.png is not kept any"):
        explained(do, photo)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"methods": []}, "There is no method to explain by; choose at least one."),
        ({"target": None}, "There is no image yet; drop one, or take an example."),
        ({"target": 1000}, "`target` must be .*\\.$"),
        (
            {"layer": "nowhere"},
            "classifiers:tiny_classifier: `layer`: .* no layer 'nowhere'.*\\.$",
        ),
    ],
)
def test_what_goes_wrong_is_a_sentence(do, photo, given, said):
    with pytest.raises(gradio.Error) as caught:
        explained(do, photo, **given)
    assert re.match(said, caught.value.message)


def test_errors_are_text_and_no_html(do, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("<b>bold</b> & more\nand a second line")

    monkeypatch.setattr(do._engine, "layers", fail, raising=False)
    with pytest.raises(gradio.Error) as caught:
        do.change_model(MODEL, None)
    assert caught.value.message == (
        "RuntimeError: &lt;b&gt;bold&lt;/b&gt; &amp; more. This is unexpected; the "
        "terminal shows where it is from."
    )
    assert "in fail" in capsys.readouterr().err


def test_errors_of_users_leave_the_terminal_alone(do, photo, capsys):
    with pytest.raises(gradio.Error):
        explained(do, photo, methods=[])
    assert capsys.readouterr().err == ""
    assert actions.sentence(UserError("what ends in a stop.")) == "What ends in a stop."


# Downloads


def test_downloads_are_those_of_the_result_and_replace_the_last(do, photo, tmp_path):
    result, maps, gains, *buttons, python, command = explained(do, photo)
    files = paths_of(buttons)
    assert "a photo.png: 7 cock" in maps and f"{MODEL}, layer 3" in maps and gains
    assert [file.name for file in files] == [
        "maps.npz",
        "unioncam.png",
        "explain.py",
        "explain.sh",
    ]
    assert files[2].read_text() == python and "alpha=0.25" in python
    assert files[3].read_text() == command and "--alpha 0.25" in command
    assert "layer='3'" in python and "fidelity=0.5" in python
    assert "theta=40.0" in python
    assert np.load(files[0])["targets"].tolist() == [7]
    assert len(list((tmp_path / "kept").iterdir())) == 4

    *buttons, python, command = do.redraw(result, 0.75, user("one"))
    drawn = paths_of(buttons)
    assert "alpha=0.75" in python and "--alpha 0.75" in command
    assert drawn[1].read_text() == python
    assert files[0].exists() and not files[1].exists()
    assert len(list((tmp_path / "kept").iterdir())) == 4
    explained(do, photo, "two")
    assert drawn[0].exists()
    assert len(list((tmp_path / "kept").iterdir())) == 8


def test_the_layer_of_the_result_is_named_if_there_is_one(do, photo):
    _, maps, *_, python, _ = explained(do, photo, layer=None)
    assert f"{MODEL}, layer 3</p>" in maps and "layer='3'" in python
    _, maps, *_ = explained(do, photo, methods=["occlusion"])
    assert f"{MODEL}</p>" in maps


def test_the_opacity_draws_nothing_without_a_result(do):
    assert is_skipped(do.redraw(None, 0.5, user("one")))


# Cancelling


def test_one_user_cancels_their_own_explanation(do, photo):
    do.begin(user("two"))

    def cancel(count, desc, unit):
        assert unit == "passes"
        if desc == "UnionCAM":
            do.cancel(user("one"))

    assert is_skipped(explained(do, photo, progress=cancel))
    assert not do._cancelled["two"].is_set()
    result, *_ = explained(do, photo)
    assert result.photo == photo


def test_nothing_is_computed_for_a_user_who_is_gone(do, photo, monkeypatch):
    asked = []
    monkeypatch.setattr(do, "begin", lambda request: do.leave(request))
    monkeypatch.setattr(
        do._engine, "explain", lambda *_: asked.append(1), raising=False
    )
    assert is_skipped(explained(do, photo)) and not asked


def test_buttons_say_what_can_be_clicked(do):
    explain, cancel = do.begin(user("one"))
    assert not explain.interactive and cancel.interactive
    for updates in (do.end(), do.cancel(user("one"))):
        assert [button.interactive for button in updates] == [True, False]


# The server


@pytest.fixture(scope="module")
def address(engine, tmp_path_factory):
    """Serves the page within this process."""
    folder = tmp_path_factory.mktemp("served")
    port = server._free_port("127.0.0.1", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setattr(server, "LARGEST_BODY", 2**20)
        page = server._launched(engine, "127.0.0.1", port)
        yield f"http://127.0.0.1:{port}"
        page.close(verbose=False)


@pytest.fixture
def client(address):
    return lambda: Client(address, verbose=False)


def explained_by(client, **given):
    """Returns what the server answers to a click on Explain."""
    chosen = {
        "model": MODEL,
        "layer": "3",
        "target": 7,
        "methods": ["gradcam"],
        "theta": 10,
        "fidelity": 0.5,
        "alpha": 0.5,
        **given,
    }
    client.predict(api_name="/begin")
    return client.predict(*chosen.values(), api_name="/explain")


def test_users_get_their_own_results(client, tmp_path):
    clients = {"first": client(), "second": client()}
    for number, (name, one) in enumerate(clients.items()):
        path = tmp_path / f"{name}.png"
        crop(number).save(path)
        one.predict(MODEL, handle_file(path), api_name="/upload")
    for name, one in clients.items():
        maps, _, npz, *_ = explained_by(one)
        assert f"<h3>{name}.png: 7 cock" in maps
        assert np.load(npz["value"])["images"].tolist() == [f"{name}.png"]


@pytest.mark.parametrize(
    "given",
    [
        {"methods": ["os:getcwd"]},
        {"model": "os:getcwd"},
        {"layer": "0.weight"},
        {"target": -1},
        {"fidelity": 2},
    ],
)
def test_what_is_not_in_a_list_is_refused(client, given, tmp_path):
    one = client()
    crop(0).save(tmp_path / "photo.png")
    one.predict(MODEL, handle_file(tmp_path / "photo.png"), api_name="/upload")
    with pytest.raises(AppError, match="is not in the list of choices|is greater than"):
        explained_by(one, **given)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("http://127.0.0.1:1/a.png", "The app asks no other host for an image"),
        ("https://huggingface.co/a.png", "The app asks no other host for an image"),
    ],
)
def test_an_upload_is_a_file_of_the_user(client, path, said):
    given = {"path": path, "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError, match=said):
        client().predict(MODEL, given, api_name="/upload")


def test_a_gradio_that_may_fetch_addresses_is_refused(engine, monkeypatch):
    monkeypatch.delattr(page.processing_utils, page.FETCH)
    with pytest.raises(UserError, match="may fetch images from other .*") as refused:
        page.build_page(engine)
    (tested,) = re.findall("^gradio==.*$", CONSTRAINTS.read_text(), re.MULTILINE)
    assert f'`pip install "{tested}"`' in str(refused.value)


def test_a_file_beyond_the_bound_is_refused_by_the_server(address):
    for size, status in ((2**19, 200), (2**21, 413)):
        files = {"files": ("large.png", bytes(size))}
        answer = httpx.post(f"{address}/gradio_api/upload", files=files)
        assert answer.status_code == status
