"""How many perturbed inputs go through a model together: the fastest, found by trying.

Which number is fastest depends on the model, the size of its inputs and the machine,
by a factor of up to two between neighbours. The first chunks of a long call are timed,
and what they show is remembered for the model.
"""

import math
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# The sizes to try, from the first guess to its neighbours. A CPU is fastest with few
# inputs, whose activations stay in its caches; an accelerator needs more to be busy.
CPU_SIZES, CPU_GUESS = (2, 3, 4, 6, 8, 12, 16), 4
ACCELERATOR_SIZES, ACCELERATOR_GUESS = (16, 32, 64, 128, 256), 64
# The fastest of this many chunks counts, because the first one of a size is slower.
TRIALS = 3
# A size is tried where this many chunks of it are left.
CHUNKS_LEFT = 12


class ChunkSize:
    """The number of perturbed inputs in a forward pass, which may be searched for.

    It goes from the first guess to the faster neighbour, and on, until both neighbours
    are slower.

    Args:
        guess (int): The first size.
        sizes (Sequence[int], optional): Sizes in ascending order, among them the guess.
            Default: only the guess, which stays
    """

    def __init__(self, guess: int, sizes: Sequence[int] = ()) -> None:
        self._sizes = list(sizes) or [guess]
        self._place = self._sizes.index(guess)
        self._seconds = [math.inf] * len(self._sizes)  # for an input, of each size
        self._trials = 0
        self._settled = len(self._sizes) == 1

    @property
    def now(self) -> int:
        """The size of the next chunk."""
        return self._sizes[self._place]

    def clock(self, device: torch.device, left: int) -> float | None:
        """Returns the time before a chunk, or None where it shall not be timed.

        An accelerator is waited for only where it shall.
        """
        if self._settled or left < CHUNKS_LEFT * self.now:
            return None
        return _time(device)

    def record(self, started: float | None, device: torch.device) -> None:
        """Takes the time of a chunk from what :meth:`clock` returned, and goes on."""
        if started is None:
            return
        seconds = (_time(device) - started) / self.now
        self._seconds[self._place] = min(seconds, self._seconds[self._place])
        self._trials += 1
        if self._trials == TRIALS:
            self._trials = 0
            self._go_on()

    def _go_on(self) -> None:
        """Turns to an untried neighbour of the fastest size, or settles on it."""
        best = min(range(len(self._sizes)), key=self._seconds.__getitem__)
        for place in (best - 1, best + 1):
            inside = 0 <= place < len(self._sizes)
            if inside and math.isinf(self._seconds[place]):
                self._place = place
                return
        self._place, self._settled = best, True

    def halve(self, size: int) -> None:
        """Settles on half of a size that did not fit the device's memory."""
        self._sizes, self._place, self._settled = [size // 2], 0, True


def chunk_size(
    forward_func: Callable[..., Any], inputs: Sequence[Tensor], given: int | None
) -> ChunkSize:
    """Returns the number that is given, or else the one to search for.

    The search is remembered for the model, the size of its inputs and the device.
    """
    if given is not None:
        return ChunkSize(given)
    device = inputs[0].device
    if device.type == "cpu":
        searched = ChunkSize(CPU_GUESS, CPU_SIZES)
    else:
        searched = ChunkSize(ACCELERATOR_GUESS, ACCELERATOR_SIZES)
    key = (device, *((inp.shape[1:], inp.dtype) for inp in inputs))
    try:
        return _SEARCHED.setdefault(forward_func, {}).setdefault(key, searched)
    except TypeError:  # a callable that cannot be referred to weakly
        return searched


_SEARCHED: weakref.WeakKeyDictionary[Callable[..., Any], dict[Any, ChunkSize]]
_SEARCHED = weakref.WeakKeyDictionary()


def _time(device: torch.device) -> float:
    """Returns the time, with the work of an accelerator done."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)
    return time.perf_counter()
