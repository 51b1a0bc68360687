"""CAM: the channels under the weights of the linear head that reads their means."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from captum_unioncam._captum import TargetType, select_targets
from captum_unioncam._confidence import check_scores, unchanged
from captum_unioncam._head_search import HeadSearch, head_weights
from captum_unioncam._layer_call import LayerCall, LayerTensor
from captum_unioncam._reshape import ReshapeTransform
from captum_unioncam.attr._activation_cam import ActivationCAM
from captum_unioncam.attr._base import Layers
from captum_unioncam.layers import resolved_layer


class CAM(ActivationCAM):
    r"""Shows where a layer supports the target, in a model of a pooled linear head.

    .. math::
        L = \mathrm{ReLU} \sum_k W_{ck} A_k

    where :math:`A_k` is the k-th channel of ``layer``, and W the weights of the linear
    layer that reads the mean of each channel over its positions, with a row for each
    class c. Its bias is left out.

    Without ``head`` it is found by running the model: exactly one module with weights
    may run after the layer, a linear layer that reads the mean of each channel, or a 1
    x 1 convolution that reads the channels or their means. Numbers decide, not names.
    VGG (hidden layers), ConvNeXt (a norm) and DenseNet (a ReLU that is a function) are
    refused. With ``head``, what lies between is up to you.

    ``target`` selects a row of W: an index of a class, for all examples or for each.

    Reference: Zhou et al., Learning Deep Features for Discriminative Localization, CVPR
    2016, arXiv:1512.04150.

    Note: Deviates from the authors' code by the ReLU: it shows negative evidence too,
    and scales the map to [0, 1].

    Note: Where the output is the head's, this is :class:`GradCAM` times the number of
    positions.

    Cost: 1 forward pass of the batch.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Layers,
        device_ids: list[int] | None = None,
        *,
        head: Module | str | None = None,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        r"""
        Args:
            forward_func, layer, device_ids, reshape_transform: See
                :class:`GradientCAM`.
            head (torch.nn.Module or str, optional): The linear layer, or 1 x 1
                convolution, that weights the layer's channels, or its dotted name where
                ``forward_func`` is a module, such as ``"fc"``. Its weights must have a
                column for each channel; nothing else is checked. Default: None, which
                finds it, or refuses the model. A model that runs in several threads,
                as DataParallel on several devices, needs it

        Raises:
            TypeError: If ``head`` is neither a module nor a name, or as
                :class:`GradientCAM`.
            ValueError: If ``forward_func`` has no module of this name, or as
                :class:`GradientCAM`. :meth:`attribute` raises it if no head is found,
                and says what was; if the head reads another number of channels; or if
                ``target`` selects no class of the head.
        """
        super().__init__(
            forward_func, layer, device_ids, reshape_transform=reshape_transform
        )
        self.head = None if head is None else resolved_layer(forward_func, head, "head")

    def _weighted(self, call: LayerCall) -> Iterator[tuple[LayerTensor, Tensor]]:
        searches = [HeadSearch(call, layer) for layer in call.layers]
        with ExitStack() as stack:
            if self.head is None:
                call = replace(call, _read_once=None)  # it must run to be searched
                for search in searches:
                    stack.enter_context(search)
            layers = call.tensors()
        for layer in layers:
            weights = self._head_weights(layer, searches[layer.place])  # W: (C, K)
            rows = self._classes(layer, len(weights))  # (N,)
            weights = weights[rows.to(weights.device)]
            yield layer, weights.to(layer.activations)  # (N, K)

    def _head_weights(self, layer: LayerTensor, search: HeadSearch) -> Tensor:
        """Returns the weights of the head that reads a tensor of the layer, (C, K)."""
        head: Module | str | None = self.head  # it may be assigned
        if head is None:
            head = search.head(layer)
        else:
            head = resolved_layer(self.forward_func, head, "head")
        return head_weights(head, layer.activations.shape[1])

    def _classes(self, layer: LayerTensor, rows: int) -> Tensor:
        """Returns the class of each example, (N,), of a head with some rows."""
        output, target = layer.output, layer.call.target
        assert output is not None
        if len(output) == 0:
            return torch.zeros(0, dtype=torch.long, device=output.device)
        check_scores(output, unchanged, target)
        if output.dim() > 2:
            raise ValueError(
                "`target` must select a class of an output (N, classes), got "
                f"{target!r} for the shape {tuple(output.shape)}; give a "
                "`forward_func` that returns a number for each class, or take GradCAM."
            )
        columns = output.shape[1] if output.dim() == 2 else 1
        if self.head is None and columns != rows:
            raise ValueError(
                f"`head` is not given, and the one that was found has {rows} rows for "
                f"the {columns} columns of the output, among which `target` selects. "
                "Give `head`, whose rows `target` selects then."
            )
        indices = torch.arange(columns, device=output.device).expand(len(output), -1)
        classes = _selected(indices, target)
        if columns > rows and bool((classes >= rows).any()):
            raise ValueError(
                f"`target` must select a row of `head`, of which there are {rows}, got "
                f"{target!r}."
            )
        return classes


def _selected(indices: Tensor, target: TargetType) -> Tensor:
    """Returns the index that each example's target selects, (N,)."""
    return select_targets(indices, target).reshape(-1)
