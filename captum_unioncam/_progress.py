"""Who hears of progress in place of the bar on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Gets what is counted, how many are done, and how many there are. It may raise: the
# computation ends there.
Listener = Callable[[str, int, int], None]

_LISTENER: ContextVar[Listener | None] = ContextVar("_LISTENER", default=None)


@contextmanager
def progress_to(listener: Listener) -> Iterator[None]:
    """Within it, progress of this thread goes to a listener, and shows no bar."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def current_listener() -> Listener | None:
    """Returns who hears of the progress of this thread."""
    return _LISTENER.get()


def tell_progress(description: str, done: int, total: int) -> None:
    """Tells the listener, if there is one."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(description, done, total)


class HeardProgress:
    """A progress bar that is not drawn, but heard."""

    def __init__(self, listener: Listener, description: str, total: int) -> None:
        self._listener = listener
        self._description = description
        self._done, self._total = 0, total

    def __enter__(self) -> "HeardProgress":
        self.update(0)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int) -> None:
        """Counts what was done."""
        self._done += count
        self._listener(self._description, self._done, self._total)
