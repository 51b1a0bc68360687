"""XGradCAM: gradients averaged under the activations, by two axioms."""

import torch
from torch import Tensor

from captum_unioncam._maps import spatial_dims
from captum_unioncam.attr._gradient_cam import GradientCAM


class XGradCAM(GradientCAM):
    r"""Shows where a layer supports the target, by sensitivity and conservation.

    .. math::
        L = \mathrm{ReLU} \sum_k w_k A_k, \quad
        w_k = \sum_{ij} \frac{A^k_{ij}}{\sum_{ab} A^k_{ab}} \, g^k_{ij}

    where :math:`A_k` is the k-th channel of ``layer`` and :math:`g^k` the gradient of
    the raw output at ``target`` with respect to it.

    Reference: Fu et al., Axiom-based Grad-CAM, BMVC 2020, arXiv:2008.02312.

    Note: A channel whose activations sum to zero adds nothing. On
    layers with negative activations a sum near zero makes a weight very large.

    Cost: 1 forward and 1 backward pass of the batch.
    """

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Returns w_k, (N, K)."""
        dims = spatial_dims(activations)
        totals = activations.sum(dims)  # (N, K)
        products = (activations * gradients).sum(dims)  # (N, K)
        return products / torch.where(totals == 0, torch.inf, totals)
