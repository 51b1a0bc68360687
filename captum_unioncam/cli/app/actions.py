"""What the app does at a click, for each user apart."""

import dataclasses
import functools
import os
import shutil
import tempfile
import threading
import traceback
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from captum_unioncam._pictures import figure_content
from captum_unioncam.cli.app.engine import Engine, Photo, Result
from captum_unioncam.cli.app.html import gains_html, maps_html, preview_html
from captum_unioncam.cli.app.reproduce import MAPS, command_of, python_of
from captum_unioncam.cli.arrays import MapFile
from captum_unioncam.cli.explaining import methods_figure
from captum_unioncam.cli.options import ExplainOptions
from captum_unioncam.cli.terminal import write_error
from captum_unioncam.errors import DataError, UserError, one_line

TOP = 5
SHOWN = 20  # seconds of an error, which covers buttons
PICTURE, PYTHON, COMMAND = "unioncam.png", "explain.py", "explain.sh"


class Cancelled(UserError):
    """The user has cancelled an explanation."""


def sentence(error: Exception) -> str:
    """Returns an error as a sentence."""
    if isinstance(error, UserError):
        text = f"{error}".rstrip(".")
        if text.split(" ")[0].isalpha():  # it may be the name of a model
            text = f"{text[0].upper()}{text[1:]}"
        return f"{text}."
    return (
        f"{type(error).__name__}: {one_line(error).rstrip('.')}. This is unexpected; "
        "the terminal shows where it is from."
    )


def told(action: Callable[..., Any]) -> Callable[..., Any]:
    """Shows the user of an action what goes wrong with it, as a sentence."""

    @functools.wraps(action)
    def safe(*args: Any, **kwargs: Any) -> Any:
        try:
            return action(*args, **kwargs)
        except Exception as error:
            if not isinstance(error, UserError):
                write_error("".join(traceback.format_exception(error)).rstrip())
            # gradio takes the text for HTML.
            text = escape(sentence(error), quote=False)
            raise gr.Error(text, duration=SHOWN, print_exception=False) from error

    return safe


class Actions:
    """The actions of all users; what is one user's own is in the page's states."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cancelled: dict[str | None, threading.Event] = {}
        self._files: dict[tuple[str | None, str], Path] = {}

    @told
    def upload(self, model: str, path: str | None) -> list[Any]:
        """Shows an uploaded image, and its classes."""
        if path is None:
            return self.forget()
        try:
            return self._look(model, Photo(Path(path).name, path))
        except DataError:
            Path(path).unlink(missing_ok=True)
            raise

    def forget(self) -> list[Any]:
        """Shows no image: the one before is not that of the last upload."""
        empty: list[tuple[str, int]] = []
        return [
            None,
            "",
            gr.Radio(choices=empty, value=None),
            gr.Dropdown(choices=empty, value=None),
        ]

    @told
    def example(self, model: str, name: str) -> list[Any]:
        """Shows an example, and its classes; no file is uploaded then."""
        return [None, *self._look(model, Photo(f"{name}.png"))]

    @told
    def change_model(self, model: str, photo: Photo | None) -> list[Any]:
        """Shows the layers of a model, and the classes of the image."""
        layers, default = self._engine.layers(model)
        shown = self.forget() if photo is None else self._look(model, photo)
        return [gr.Dropdown(choices=layers, value=default), *shown]

    def _look(self, model: str, photo: Photo) -> list[Any]:
        """Returns the image, its preview, its top classes, and all classes."""
        preview = preview_html(photo.name, photo.read())
        classes = self._engine.classes(model, photo)
        best = classes[0][1]
        return [
            photo,
            preview,
            gr.Radio(choices=classes[:TOP], value=best),
            gr.Dropdown(choices=classes, value=best),
        ]

    def begin(self, request: gr.Request) -> list[Any]:
        """Makes a new explanation of a user one that can be cancelled."""
        self._cancelled[request.session_hash] = threading.Event()
        return [gr.Button(interactive=False), gr.Button(interactive=True)]

    def end(self) -> list[Any]:
        return [gr.Button(interactive=True), gr.Button(interactive=False)]

    def cancel(self, request: gr.Request) -> list[Any]:
        """Ends the explanation of a user at its next forward passes."""
        self.leave(request)
        gr.Info("The explanation was cancelled.")
        return self.end()

    def leave(self, request: gr.Request) -> None:
        """Ends what is computed for a user, who may be gone."""
        event = self._cancelled.pop(request.session_hash, None)
        if event is not None:
            event.set()

    @told
    def explain(
        self,
        photo: Photo | None,
        model: str,
        layer: str | None,
        target: int | None,
        methods: list[str],
        theta: float,
        fidelity: float,
        alpha: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008, as gradio wants it
    ) -> list[Any]:
        """Explains a class of an image by some methods."""
        if photo is None or target is None:
            raise DataError("there is no image yet; drop one, or take an example")
        if not methods:
            raise DataError("there is no method to explain by; choose at least one")
        user = request.session_hash
        cancelled = self._cancelled.get(user)

        def listen(description: str, done: int, total: int) -> None:
            if cancelled is None or cancelled.is_set():
                raise Cancelled
            progress((done, total), desc=description, unit="passes")

        options = ExplainOptions(
            **self._engine.model_options(model),
            device=self._engine.device,
            images=(photo.name,),
            layer=layer,
            target=f"{target}",
            methods=tuple(methods),
            theta=float(theta),
            fidelity=float(fidelity),
            alpha=float(alpha),
        )
        try:
            listen("waiting", 0, 1)
            result = self._engine.explain(photo, options, listen)
        except Cancelled:
            return [gr.skip()] * 9
        return self._shown(user, result)

    @told
    def redraw(
        self, result: Result | None, alpha: float, request: gr.Request
    ) -> list[Any]:
        """Draws the maps that are there at another opacity, for the download."""
        if result is None:
            return [gr.skip()] * 5
        return self._downloads(request.session_hash, result, float(alpha))

    def _shown(self, user: str | None, result: Result) -> list[Any]:
        """Returns a result, and what the page shows of it."""
        found, name = result.found, result.photo.name
        maps = MapFile()
        maps.add([name], [found.explanation])
        return [
            result,
            maps_html(name, result.options.model, found),
            gains_html(found),
            self._file(user, MAPS, maps.content()),
            *self._downloads(user, result, result.options.alpha),
        ]

    def _downloads(self, user: str | None, result: Result, alpha: float) -> list[Any]:
        """Returns the picture, the code and the command at an opacity."""
        python, command = texts(result, alpha)
        picture = methods_figure(result.found, 0, alpha=alpha)
        return [
            self._file(user, PICTURE, figure_content(picture, PICTURE)),
            self._file(user, PYTHON, python.encode()),
            self._file(user, COMMAND, command.encode()),
            python,
            command,
        ]

    def _file(self, user: str | None, name: str, content: bytes) -> gr.DownloadButton:
        """Returns a button that downloads this file, in place of the user's last."""
        last = self._files.get((user, name))
        if last is not None:
            shutil.rmtree(last, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"]))
        self._files[user, name] = folder
        path = folder / name
        path.write_bytes(content)
        return gr.DownloadButton(value=str(path), interactive=True)


def texts(result: Result, alpha: float) -> tuple[str, str]:
    """Returns the lines of Python, and the command."""
    options = dataclasses.replace(result.options, alpha=alpha)
    explanation, example = result.found.explanation, result.photo.example
    layer = explanation.layer or options.layer or ""
    category = explanation.name_of(0)
    return python_of(options, example, layer, category), command_of(options, example)
