"""``captum-unioncam app``: explains images in the browser."""

from importlib.util import find_spec
from typing import Any

from captum_unioncam.cli.options import AppOptions
from captum_unioncam.cli.terminal import Outcome
from captum_unioncam.errors import UserError


def run(given: dict[str, Any], line: str) -> Outcome:
    """Serves the app until Ctrl-C."""
    options = AppOptions(**given)
    if find_spec("gradio") is None:
        raise UserError(
            'the app needs gradio; run `pip install "captum-unioncam[app]"`'
        )
    # Imported here: gradio is an extra.
    from captum_unioncam.cli.app.server import serve

    serve(options)
    return Outcome()
