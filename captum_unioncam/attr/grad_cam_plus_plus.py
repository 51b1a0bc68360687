"""GradCAMPlusPlus: gradients that count most where few channels explain the target."""

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_unioncam._maps import spatial_dims
from captum_unioncam.attr._gradient_cam import GradientCAM


class GradCAMPlusPlus(GradientCAM):
    r"""Shows where a layer supports the target, also for several objects.

    .. math::
        L &= \mathrm{ReLU} \sum_k w_k A_k, \quad
        w_k = \sum_{ij} \alpha^k_{ij} \, \mathrm{ReLU}(g^k_{ij}) \\
        \alpha^k_{ij} &= \frac{(g^k_{ij})^2}
        {2 (g^k_{ij})^2 + \sum_{ab} A^k_{ab} \, (g^k_{ij})^3}
        \quad \text{(Eq. 19)}

    where :math:`A_k` is the k-th channel of ``layer`` and :math:`g^k` the gradient of
    the raw output at ``target`` with respect to it.

    Reference: Chattopadhay et al., Grad-CAM++, WACV 2018, doi:10.1109/WACV.2018.00097,
    arXiv:1710.11063.

    Note: Deviates from the paper by a positive factor for each example: its score is
    exp(output), whose derivatives all have the factor exp(output), which may overflow.

    Note: The weight of a position without a gradient, or with a denominator of zero
    (which takes a channel of negative sum), is 0.

    Cost: 1 forward and 1 backward pass of the batch.
    """

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Returns w_k, (N, K)."""
        # g ** 2 and g ** 3, which underflow, cancel: alpha = 1 / (2 + sum(A) g).
        return plus_plus_weights(activations, gradients, gradients)


def plus_plus_weights(activations: Tensor, gradients: Tensor, ratios: Tensor) -> Tensor:
    """Returns w_k, (N, K), where alpha = 1 / (2 + sum(A) * ratio).

    Args:
        activations, gradients (Tensor): A and g, (N, K, *spatial).
        ratios (Tensor): The third derivatives over the second ones, of the same shape.
    """
    dims = spatial_dims(activations)
    denominators = 2 + activations.sum(dims, keepdim=True) * ratios
    usable = (gradients > 0) & (denominators != 0)
    # (N, K, *spatial); 0 where it is not usable.
    alpha = torch.where(usable, denominators, torch.inf).reciprocal()
    return (alpha * F.relu(gradients)).sum(dims)
