"""The template of the CAMs whose weights need no gradients and no scores."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor

from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._layer_call import LayerCall, LayerTensor
from captum_unioncam.attr._base import CAMAttribution, weighted_map


class ActivationCAM(CAMAttribution, ABC):
    """Template of a CAM of one forward pass: a subclass weights the channels.

    Cost: 1 forward pass of the batch.
    """

    @abstractmethod
    def _weighted(self, call: LayerCall) -> Iterable[tuple[LayerTensor, Tensor]]:
        """Runs the model once: each tensor of the layer, and its weights, (N, K)."""

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first.
            target (int, tuple, Tensor or list, optional): Output index to explain, in
                the forms of :meth:`captum.attr.LayerGradCam.attribute`. A method that
                does not depend on the class refuses one that the output does not have,
                and needs none. Default: None
            additional_forward_args (Any, optional): Further arguments of the model,
                after the inputs; several as a tuple. A list is one argument. Default:
                None
            attribute_to_layer_input (bool, optional): Explain the layer's input in
                place of its output. Default: False

        Returns:
            *Tensor* of **attributions**, (N, 1, *layer_size), >= 0, not scaled,
            detached, of the layer's type; a tuple of them if the layer has several
            tensors, or ``layer`` is a list. An example whose activations are not finite
            is all NaN; such examples, and constant maps, give a warning that names
            them.

        Raises:
            ValueError: If the layer is not spatial, or has tokens or channels in the
                last dimension without a ``reshape_transform``, or as the class says.

        Examples::

            >>> import torch
            >>> from captum_unioncam import CAM
            >>> conv = torch.nn.Conv2d(3, 4, 3)
            >>> pool = torch.nn.AdaptiveAvgPool2d(1)
            >>> head = torch.nn.Linear(4, 2)
            >>> net = torch.nn.Sequential(conv, pool, torch.nn.Flatten(), head)
            >>> CAM(net, conv).attribute(torch.rand(2, 3, 8, 8), target=1).shape
            torch.Size([2, 1, 6, 6])
        """
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        layers, maps = [], []
        for layer, weights in self._weighted(call):
            layers.append(layer)
            maps.append(weighted_map(weights, layer.activations))
        return self._attributions(layers, maps)
