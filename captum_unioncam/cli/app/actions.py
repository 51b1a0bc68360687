"""What the app does at a click, for each user apart."""

import dataclasses
import functools
import os
import tempfile
import threading
import traceback
from collections.abc import Callable
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
PICTURE, PYTHON, COMMAND = "unioncam.png", "explain.py", "explain.sh"


class Cancelled(UserError):
    """The user has cancelled an explanation."""


def sentence(error: Exception) -> str:
    """Returns an error as a sentence."""
    if isinstance(error, UserError):
        text = f"{error}".rstrip(".")
        return f"{text[:1].upper()}{text[1:]}."
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
            shown = gr.Error(sentence(error), duration=None, print_exception=False)
            raise shown from error

    return safe


class Actions:
    """The actions of all users; what is one user's own is in the page's states."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cancelled: dict[str | None, threading.Event] = {}

    @told
    def upload(self, model: str, path: str | None) -> list[Any]:
        """Shows an uploaded image, and its classes."""
        if path is None:
            return self._look(model, None)
        return self._look(model, Photo(Path(path).name, path))

    @told
    def example(self, model: str, name: str) -> list[Any]:
        """Shows an example, and its classes; no file is uploaded then."""
        return [None, *self._look(model, Photo(f"{name}.png"))]

    @told
    def change_model(self, model: str, photo: Photo | None) -> list[Any]:
        """Shows the layers of a model, and the classes of the image."""
        layers, default = self._engine.layers(model)
        shown = self._look(model, photo)
        return [gr.Dropdown(choices=layers, value=default), *shown]

    def _look(self, model: str, photo: Photo | None) -> list[Any]:
        """Returns the image, its preview, its top classes, and all classes."""
        if photo is None:
            empty: list[tuple[str, int]] = []
            choices = [gr.Radio(choices=empty), gr.Dropdown(choices=empty, value=None)]
            return [None, "", *choices]
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

    def cancel(self, request: gr.Request) -> None:
        """Ends the explanation of a user at its next forward passes."""
        event = self._cancelled.get(request.session_hash)
        if event is not None:
            event.set()

    def leave(self, request: gr.Request) -> None:
        """Ends what is computed for a user who is gone."""
        self.cancel(request)
        self._cancelled.pop(request.session_hash, None)

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
        cancelled = self._cancelled.get(request.session_hash, threading.Event())

        def listen(description: str, done: int, total: int) -> None:
            if cancelled.is_set():
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
            gr.Info("The explanation was cancelled.")
            return [gr.skip()] * 9
        return shown(result)

    @told
    def redraw(self, result: Result | None, alpha: float) -> list[Any]:
        """Draws the maps that are there at another opacity, for the download."""
        return [gr.skip()] * 5 if result is None else downloads(result, float(alpha))


def shown(result: Result) -> list[Any]:
    """Returns a result, and what the page shows of it."""
    found, alpha = result.found, result.options.alpha
    maps = MapFile()
    maps.add([result.photo.name], [found.explanation])
    return [
        result,
        maps_html(result.photo.name, found),
        gains_html(found),
        _file(MAPS, maps.content()),
        *downloads(result, alpha),
    ]


def downloads(result: Result, alpha: float) -> list[Any]:
    """Returns the picture, the code and the command at an opacity."""
    python, command = texts(result, alpha)
    picture = methods_figure(result.found, 0, alpha=alpha)
    return [
        _file(PICTURE, figure_content(picture, PICTURE)),
        _file(PYTHON, python.encode()),
        _file(COMMAND, command.encode()),
        python,
        command,
    ]


def texts(result: Result, alpha: float) -> tuple[str, str]:
    """Returns the lines of Python, and the command."""
    options = dataclasses.replace(result.options, alpha=alpha)
    explanation, example = result.found.explanation, result.photo.example
    layer = explanation.layer or options.layer or ""
    category = explanation.name_of(0)
    return python_of(options, example, layer, category), command_of(options, example)


def _file(name: str, content: bytes) -> Any:
    """Returns a button that downloads this file."""
    folder = tempfile.mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])
    path = Path(folder) / name
    path.write_bytes(content)
    return gr.DownloadButton(value=str(path), interactive=True)
