"""The template of the CAMs whose weights come from gradients alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from captum.attr import GradientAttribution
from torch import Tensor

from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._layer_call import LayerCall
from captum_unioncam.attr._base import CAMAttribution, weighted_map


class GradientCAM(CAMAttribution, GradientAttribution, ABC):
    """Template of a CAM by gradients: a subclass only defines :meth:`weights`.

    Cost: 1 forward and 1 backward pass of the batch.
    """

    @abstractmethod
    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Returns the weights of the layer's channels: the equation of the method.

        Args:
            activations (Tensor): The layer's channels, (N, K, *spatial), in float32 or
                float64.
            gradients (Tensor): The gradients of the raw output at the target with
                respect to them, of the same shape and type.

        Returns:
            *Tensor*, a number for each channel, (N, K), or for each of its positions,
            (N, K, *spatial).
        """

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first.
            target (int, tuple, Tensor or list, optional): Output index to explain, one
                for all examples or one for each, in the forms of
                :meth:`captum.attr.LayerGradCam.attribute`. Default: None, for models
                that return one value for each example; it never means the predicted
                class
            additional_forward_args (Any, optional): Further arguments of the model,
                after the inputs; several as a tuple. A list is one argument. Default:
                None
            attribute_to_layer_input (bool, optional): Explain the layer's input in
                place of its output. Default: False
            grad_kwargs (dict, optional): Keywords for torch.autograd.grad. By default
                ``materialize_grads`` is on: a layer that the output does not depend on
                gets zero gradients. So does a layer inside of a reentrant checkpoint:
                pass ``{"materialize_grads": False}`` to get PyTorch's error. Default:
                None

        Returns:
            *Tensor* of **attributions**, (N, 1, *layer_size), >= 0, not scaled,
            detached, of the layer's type; a tuple of them if the layer has several
            tensors, or ``layer`` is a list. An example whose activations or gradients
            are not finite is all NaN; such examples, and constant maps, give a warning
            that names them.

        Raises:
            ValueError: If the layer is not spatial, or has tokens or channels in the
                last dimension without a ``reshape_transform``.

        Examples::

            >>> import torch
            >>> from captum_unioncam import LayerCAM
            >>> conv = torch.nn.Conv2d(3, 4, 3)
            >>> head = torch.nn.LazyLinear(2)
            >>> net = torch.nn.Sequential(conv, torch.nn.Flatten(), head)
            >>> LayerCAM(net, conv).attribute(torch.rand(2, 3, 8, 8), target=1).shape
            torch.Size([2, 1, 6, 6])
        """
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        return self._explain(call, self.weights, grad_kwargs)

    def _explain(
        self,
        call: LayerCall,
        weights: Callable[[Tensor, Tensor], Tensor],
        grad_kwargs: dict[str, Any] | None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Returns the map of each of the layer's tensors under the method's weights."""
        layers = call.differentiated_tensors(grad_kwargs)
        maps = []
        for layer in layers:
            activations, gradients = layer.activations, layer.gradients
            channel_weights = weights(activations, gradients)  # (N, K[, *spatial])
            maps.append(weighted_map(channel_weights, activations, gradients))
        return self._attributions(layers, maps)
