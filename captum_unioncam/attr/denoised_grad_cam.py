"""DenoisedGradCAM: activation map denoising (AMD), the gradient part of UnionCAM."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._checks import check_number
from captum_unioncam._maps import percentile, spatial_dims
from captum_unioncam.attr._base import weighted_map
from captum_unioncam.attr._gradient_cam import GradientCAM

# Hu et al. 2024, the percentile of Eq. 1.
THETA = 10.0


class DenoisedGradCAM(GradientCAM):
    r"""Shows where a layer supports the target, by its denoised gradients.

    The gradients of each channel below their ``theta``-th percentile are dropped; the
    positive ones that remain weight the channel's activations, position by position,
    and sum to 1 for each channel, so that small active areas do not get huge weights:

    .. math::
        W'_k &= W_k \,[W_k \ge \mathrm{percentile}_\theta(W_k)] \quad \text{(Eq. 1)} \\
        L &= \mathrm{ReLU} \sum_k \alpha_k \, \mathrm{ReLU}(W'_k) \odot A_k
        \quad \text{(Eq. 2)} \\
        \alpha_k &= 1 / \textstyle\sum \mathrm{ReLU}(W'_k) \quad \text{(Eq. 3)}

    where :math:`A_k` is the k-th channel of ``layer`` and :math:`W_k` the gradient of
    the raw output at ``target`` with respect to it. A channel with no positive denoised
    gradient adds nothing.

    Reference: Hu et al., UnionCAM, Front. Neurorobot. 18, 2024,
    doi:10.3389/fnbot.2024.1490198.

    Note: Deviates from Eq. 2 by the outer ReLU, which only changes layers with negative
    activations: negative evidence is not shown, as in every CAM.

    Note: Where a global average pool and a linear head follow the layer, the gradient
    is constant over each channel: ``theta`` then changes nothing, and all channels
    with a positive class weight weigh the same.

    Cost: 1 forward and 1 backward pass of the batch.
    """

    def weights(
        self, activations: Tensor, gradients: Tensor, theta: float = THETA
    ) -> Tensor:
        """Returns alpha_k * ReLU(W'_k), (N, K, *spatial)."""
        return denoised_weights(gradients, theta)

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        theta: float = THETA,
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
            theta (float, optional): Percentile, in [0, 100], below which the gradients
                of a channel are dropped. Default: 10.0
            grad_kwargs (dict, optional): Keywords for torch.autograd.grad. By default
                ``materialize_grads`` is on: a layer that the output does not depend on
                gets zero gradients. So does a layer inside of a reentrant checkpoint:
                pass ``{"materialize_grads": False}`` to get PyTorch's error. Default:
                None

        Returns:
            *Tensor* of **attributions**, (N, 1, *layer_size), >= 0, not scaled,
            detached, of the layer's type; a tuple of them if the layer has several
            tensors. An example whose activations or gradients are not finite is all
            NaN; such examples, and constant maps, give a warning that names them.

        Raises:
            ValueError: If ``theta`` is outside [0, 100], or the layer is not spatial.

        Examples::

            >>> import torch
            >>> from captum_unioncam import DenoisedGradCAM
            >>> conv = torch.nn.Conv2d(3, 4, 3)
            >>> head = torch.nn.LazyLinear(2)
            >>> net = torch.nn.Sequential(conv, torch.nn.Flatten(), head)
            >>> cam = DenoisedGradCAM(net, conv)
            >>> cam.attribute(torch.rand(2, 3, 8, 8), target=1).shape
            torch.Size([2, 1, 6, 6])
        """
        check_number("theta", theta, 0, 100)
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        return self._explain(call, partial(self.weights, theta=theta), grad_kwargs)


def denoised_map(activations: Tensor, gradients: Tensor, theta: float) -> Tensor:
    """Returns L_denoising, (N, 1, *spatial) (AMD, Eqs. 1 to 3)."""
    weights = denoised_weights(gradients, theta)  # (N, K, *spatial)
    return weighted_map(weights, activations, gradients)  # Eq. 2


def denoised_weights(gradients: Tensor, theta: float) -> Tensor:
    """Returns alpha_k * ReLU(W'_k), which sums to 1 or 0 for each channel (Eq. 3)."""
    positive = F.relu(denoise(gradients, theta))
    total = positive.sum(spatial_dims(positive), keepdim=True)  # (N, K, 1, ...)
    # One quotient in place of 1 / total first, which overflows for tiny gradients.
    return positive / torch.where(total > 0, total, 1)


def denoise(maps: Tensor, theta: float) -> Tensor:
    """Zeroes the entries of each channel below the channel's percentile (Eq. 1)."""
    return torch.where(maps >= percentile(maps, theta), maps, 0)
