"""The page of the app: what is where, and which action follows which click."""

from typing import Any, NamedTuple

import gradio as gr
from gradio import processing_utils

from captum_unioncam.cli.app.actions import Actions
from captum_unioncam.cli.app.engine import (
    LARGEST_UPLOAD,
    MEGABYTE,
    Engine,
    example_names,
)
from captum_unioncam.cli.app.html import CSS, OPACITY
from captum_unioncam.cli.options import ExplainOptions
from captum_unioncam.errors import DataError, UserError
from captum_unioncam.evaluation.methods import METHODS

DEFAULT_METHODS = ["unioncam", "gradcam"]
# A file that is left is removed after a day.
FILE_CHECK, FILE_AGE = 3600, 24 * 3600
WAITING = 64  # requests in the queue

# Fonts that every system has: none is loaded.
STYLE: dict[str, Any] = {
    "theme": gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    ),
    "css": CSS,
}
SET_OPACITY = (
    f"(value) => document.documentElement.style.setProperty('{OPACITY}', value)"
)
# What is typed beside the slider may be empty, or beyond its ends.
IN_UNIT_RANGE = "(result, value) => [result, Math.min(1, Math.max(0, value))]"
# Keys move a slider too, but only a pointer releases it.
RELEASE_BY_KEYS = """() => document.addEventListener('keyup', (event) => {
  if (event.target.type === 'range')
    event.target.dispatchEvent(new Event('pointerup', {bubbles: true}))
})"""
FETCH = "async_ssrf_protected_download"  # gradio's function that fetches an address
# Requests that need the model run one after the other.
ONE_BY_ONE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden"}


class Controls(NamedTuple):
    """What a user chooses."""

    upload: gr.File
    examples: list[gr.Button]
    preview: gr.HTML
    model: gr.Dropdown
    layer: gr.Dropdown
    top: gr.Radio
    target: gr.Dropdown
    methods: gr.Dropdown
    theta: gr.Slider
    fidelity: gr.Slider


class Results(NamedTuple):
    """What a user gets."""

    explain: gr.Button
    cancel: gr.Button
    opacity: gr.Slider
    maps: gr.HTML
    gains: gr.HTML
    files: list[gr.DownloadButton]  # NPZ, PNG, Python, command
    python: gr.Code
    command: gr.Code


def build_page(engine: Engine) -> gr.Blocks:
    """Returns the page.

    Raises:
        UserError: If this version of gradio cannot be kept from asking other hosts.
    """
    # gradio would fetch an upload that is given as an address.
    if not hasattr(processing_utils, FETCH):
        raise UserError(
            f"gradio {gr.__version__} may fetch images from other hosts, which the app "
            'must not; run `pip install "gradio==6.31.0"`'
        )
    setattr(processing_utils, FETCH, _refuse_address)
    page = gr.Blocks(
        title="captum-unioncam",
        analytics_enabled=False,
        delete_cache=(FILE_CHECK, FILE_AGE),
    )
    with page:
        gr.Markdown("# captum-unioncam\nShows where a model sees a class in an image.")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                controls = _controls(engine)
            with gr.Column(scale=3, min_width=320):
                results = _results()
        _connect(page, Actions(engine), controls, results)
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    return page


async def _refuse_address(*_: Any, **__: Any) -> str:
    raise DataError("The app asks no other host for an image; drop its file.")


def _controls(engine: Engine) -> Controls:
    names = engine.models()
    layers, first = engine.layers(names[0])
    defaults = ExplainOptions()
    limit = f"{LARGEST_UPLOAD // MEGABYTE} MB at most"
    upload = gr.File(label=f"Image, {limit}", file_types=["image"], height=120)
    with gr.Row():
        examples = [
            gr.Button(name, size="sm", min_width=100) for name in example_names()
        ]
    return Controls(
        upload,
        examples,
        gr.HTML(),
        gr.Dropdown(names, value=names[0], label="Model"),
        gr.Dropdown(layers, value=first, label="Layer"),
        gr.Radio([], label="Top classes"),
        gr.Dropdown([], value=None, label="Class", info="Type to search all classes."),
        gr.Dropdown(
            _method_choices(),
            value=DEFAULT_METHODS,
            multiselect=True,
            label="Methods to compare",
        ),
        gr.Slider(
            0,
            100,
            value=defaults.theta,
            step=1,
            label="Theta",
            info="Drops each channel's gradients below this percentile.",
        ),
        gr.Slider(
            0,
            1,
            value=defaults.fidelity,
            step=0.01,
            label="Fidelity",
            info="1 scores all channels, and is the exact map.",
        ),
    )


def _method_choices() -> list[tuple[str, str]]:
    """Returns the methods that look at a model, by title and paper."""
    return [
        (f"{method.title} ({method.paper})", name)
        for name, method in METHODS.items()
        if not method.baseline
    ]


def _results() -> Results:
    with gr.Row():
        explain = gr.Button("Explain", variant="primary", min_width=100)
        cancel = gr.Button("Cancel", interactive=False, min_width=100)
    opacity = gr.Slider(0, 1, value=ExplainOptions().alpha, step=0.01, label="Opacity")
    maps, gains = gr.HTML(min_height=240), gr.HTML()
    with gr.Row():
        files = [
            gr.DownloadButton(name, interactive=False, size="sm", min_width=110)
            for name in ("Maps (NPZ)", "Picture (PNG)", "Python", "Command")
        ]
    with gr.Accordion("Make it again", open=False):
        python = gr.Code(language="python", label="Python")
        command = gr.Code(language="shell", label="Command")
    return Results(explain, cancel, opacity, maps, gains, files, python, command)


def _connect(page: gr.Blocks, do: Actions, given: Controls, got: Results) -> None:
    """Connects clicks to actions. Each user has a photo and a result of their own."""
    photo, result = gr.State(None), gr.State(None)
    image = [photo, given.preview, given.top, given.target]
    model = given.model
    looking = {**ONE_BY_ONE, "show_progress_on": given.preview}
    for change in (given.upload.upload, given.upload.clear):
        change(do.upload, [model, given.upload], image, **looking).failure(
            do.forget, None, image, **AT_ONCE
        )
    for button in given.examples:
        button.click(do.example, [model, button], [given.upload, *image], **looking)
    model.input(do.change_model, [model, photo], [given.layer, *image], **looking)
    given.top.input(None, given.top, given.target, js="(value) => value")
    given.target.input(None, given.target, given.top, js="(value) => value")

    buttons = [got.explain, got.cancel]
    redrawn = [*got.files[1:], got.python, got.command]
    explained = got.explain.click(do.begin, None, buttons, **AT_ONCE).then(
        do.explain,
        [photo, model, given.layer, given.target, given.methods]
        + [given.theta, given.fidelity, got.opacity],
        [result, got.maps, got.gains, got.files[0], *redrawn],
        show_progress_on=got.maps,
        **ONE_BY_ONE,
    )
    for ended in (explained.success, explained.failure):
        ended(do.end, None, buttons, **AT_ONCE)
    got.cancel.click(
        do.cancel, None, buttons, cancels=[explained], show_progress="hidden"
    )
    page.unload(do.leave)
    page.load(js=RELEASE_BY_KEYS)
    got.opacity.change(None, got.opacity, js=SET_OPACITY)
    got.opacity.release(
        do.redraw,
        [result, got.opacity],
        redrawn,
        js=IN_UNIT_RANGE,
        show_progress="hidden",
    )
