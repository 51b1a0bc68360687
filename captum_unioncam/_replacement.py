"""What takes the place of a tensor of a layer, in the passes of a model."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel.scatter_gather import scatter

from captum_unioncam._captum import device_of_run
from captum_unioncam._reshape import ReshapeTransform, put_back


class Replacement:
    """What takes the place of a tensor of the layer in the next pass.

    Args:
        index (int): Which of the layer's tensors it is.
        runs (int): How often the layer runs in one pass; its last run is replaced.
        device_ids (Sequence[int], optional): The devices that the model runs on.
        reshape_transform (Callable, optional): What to undo.
    """

    def __init__(
        self,
        index: int,
        runs: int,
        device_ids: Sequence[int] | None,
        reshape_transform: ReshapeTransform | None,
    ) -> None:
        self._index, self._runs = index, runs
        self._device_ids, self._transform = device_ids, reshape_transform
        self._by_device: dict[torch.device, Tensor] = {}
        self._seen: Counter[torch.device] = Counter()

    def put(self, activations: Tensor) -> None:
        """Sets the next pass's tensor, (P, K, *spatial); the model may change it."""
        # DataParallel splits the batch in this order.
        devices = self._device_ids
        parts = scatter(activations, devices) if devices else (activations,)
        self._by_device = {part.device: part for part in parts}
        self._seen.clear()

    def check(self) -> None:
        """Refuses a pass in which the layer did not run as often as it does.

        Raises:
            RuntimeError: Says what to do.
        """
        if any(self._seen[device] != self._runs for device in self._by_device):
            raise RuntimeError(
                f"`layer` ran {max(self._seen.values(), default=0)} times in a pass of "
                f"the model where {self._runs} were expected, so that its tensor could "
                "not be replaced. A compiled or scripted model does not run hooks, and "
                "the layer must run in every pass: give the model itself, before "
                "torch.compile or torch.jit."
            )

    def hook(self, module: Module, inp: Any, out: Any = None) -> Any:
        """Returns what the layer's last run of a pass gives or gets instead."""
        device = device_of_run(module, inp, out)
        self._seen[device] += 1
        if self._seen[device] != self._runs:
            return None
        tensors = inp if out is None else out
        if not isinstance(tensors, tuple | list):
            return self._instead_of(tensors, device)
        index = self._index
        ours = self._instead_of(tensors[index], device)
        parts = [*tensors[:index], ours, *tensors[index + 1 :]]
        make: Any = getattr(tensors, "_make", type(tensors))  # a namedtuple's
        return make(parts)

    def _instead_of(self, original: Tensor, device: torch.device) -> Tensor:
        """Returns a copy of the replacement, in the original's form and layout."""
        activations = self._by_device[device]
        if self._transform is not None:
            activations = put_back(original, activations, self._transform)
        # With the strides that a model may rely on, to view it.
        return torch.empty_like(original).copy_(activations)
