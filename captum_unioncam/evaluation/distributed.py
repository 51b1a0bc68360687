"""One process or many: ranks, barriers, and shards without padding.

The only user of torch.distributed. ``torchrun`` sets the environment that is read here;
without it there is one process, and nothing is initialised.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as distributed

from captum_unioncam.errors import ConfigError, mark_known_to_all

Value = TypeVar("Value")

# Ranks wait for the slowest one before the report.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """This process among those of a run.

    Attributes:
        rank (int): Number of this process, from 0.
        world_size (int): Number of processes.
        local_rank (int): Number of this process on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes the report."""
        return self.rank == 0

    def shard(self, values: Sequence[Value]) -> Sequence[Value]:
        """Returns this process's share: no value twice, and none left out."""
        return values[self.rank :: self.world_size]

    def gather(self, value: Value) -> list[Value]:
        """Returns the values of all processes, by rank. All wait for each other."""
        if self.world_size == 1:
            return [value]
        values: list[Value | None] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def run_first(self, action: Callable[[], Value]) -> Value:
        """Runs an action in the first process, and returns its result in all of them.

        An error ends all processes, as in :meth:`run_all`.
        """
        return self.gather(self._run(action if self.is_first else None))[0]

    def run_all(self, action: Callable[[], Value]) -> Value:
        """Runs an action in each process, and returns its own result.

        An error in one process ends all of them: with the error itself where it is,
        and elsewhere with a ConfigError that quotes it.
        """
        return self._run(action)

    def _run(self, action: Callable[[], Value] | None) -> Value:
        result: Any = None
        failure: Exception | None = None
        if action is not None:
            try:
                result = action()
            except Exception as error:
                failure = error
        outcomes = self.gather(failure and f"{type(failure).__name__}: {failure}")
        for rank, message in enumerate(outcomes):
            if message is not None and failure is None:
                failure = ConfigError(f"process {rank} failed: {message}")
        if failure is not None:
            mark_known_to_all(failure)
            raise failure
        return cast(Value, result)


@contextmanager
def processes(cuda: bool) -> Iterator[Processes]:
    """Joins the processes that torchrun started, for the time of the context."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes()
        return
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1))
        if here > torch.cuda.device_count():
            raise ConfigError(
                f"there are {torch.cuda.device_count()} GPUs for {here} or more "
                "processes; start one process for each GPU"
            )
        torch.cuda.set_device(local_rank)
    backend = "nccl" if cuda else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield Processes(distributed.get_rank(), world_size, local_rank)
    finally:
        distributed.destroy_process_group()
