"""Serves the app: where it listens, what it keeps to itself, and what it leaves."""

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import Any

from captum_unioncam.cli.app.engine import LARGEST_BODY, Engine
from captum_unioncam.cli.options import AppOptions
from captum_unioncam.cli.terminal import write_error
from captum_unioncam.errors import UserError, one_line

# The page and the programs that it loads may ask this server alone.
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
    "form-action 'self'; frame-ancestors 'none'"
)
SESSIONS = 100  # whose results are kept

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class OwnHostOnly:
    """Adds headers to all responses, by which browsers ask no other host."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def serve(options: AppOptions) -> None:
    """Serves the app until Ctrl-C or SIGTERM; uploads and files are removed then.

    Raises:
        UserError: If the model cannot be loaded, or the port cannot be used.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    engine = Engine(options)
    engine.layers(options.model)  # what is wrong with the model shows now
    port = _free_port(options.host, options.port)
    with tempfile.TemporaryDirectory(
        prefix="captum-unioncam-", ignore_cleanup_errors=True
    ) as folder:
        # gradio reads them when it is imported.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = _launched(engine, options.host, port)
        try:
            _announce(options.host, port)
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            page.close(verbose=False)


def _launched(engine: Engine, host: str, port: int) -> Any:
    """Returns the page, which is served by a thread."""
    from starlette.middleware import Middleware

    from captum_unioncam.cli.app.page import STYLE, build_page

    page = build_page(engine)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        max_file_size=LARGEST_BODY,
        state_session_capacity=SESSIONS,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        footer_links=[],
        app_kwargs={"middleware": [Middleware(OwnHostOnly)]},
        **STYLE,
    )
    return page


def _free_port(host: str, port: int) -> int:
    """Returns the port, or for 0 any that is free.

    Raises:
        UserError: If it cannot be used.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UserError(
            f"`port` {port} of {host} cannot be used ({one_line(error)}); choose "
            "another, or 0 for any that is free"
        ) from error


def _announce(host: str, port: int) -> None:
    address = f"[{host}]" if ":" in host else host
    write_error(f"The app is at http://{address}:{port}; Ctrl-C ends it.")
    if not _is_loopback(host):
        write_error("Whoever reaches this address may use it: it asks no password.")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:  # the name of a machine
        return False
