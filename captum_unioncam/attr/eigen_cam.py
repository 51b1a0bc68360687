"""EigenCAM and EigenGradCAM: the channels under their first singular vector."""

from collections.abc import Iterator

import torch
from torch import Tensor

from captum_unioncam._confidence import check_scores, unchanged
from captum_unioncam._layer_call import LayerCall, LayerTensor
from captum_unioncam._maps import shares
from captum_unioncam._prediction import precise_type
from captum_unioncam.attr._activation_cam import ActivationCAM
from captum_unioncam.attr._gradient_cam import GradientCAM


class EigenCAM(ActivationCAM):
    r"""Shows what varies most in a layer, for no class in particular.

    .. math::
        L = \mathrm{ReLU} \sum_k v_k A_k, \quad
        v = \arg\max_{|v| = 1} \sum_p \Big(\sum_k v_k A_k(p)\Big)^2

    where :math:`A_k` is the k-th channel of ``layer``, and v the first right singular
    vector of the activations as a matrix of positions times channels.

    The map does not depend on the class: ``target`` changes nothing, and may be left
    out.

    Reference: Muhammad and Yeasin, Eigen-CAM, IJCNN 2020,
    doi:10.1109/IJCNN48605.2020.9206626, arXiv:2008.00299.

    Note: The channels are not centred, as in the paper. A vector is a singular one with
    either sign: here the largest entry of the map, by its size, is positive, so that no
    map is blank or inverted. grad-cam subtracts the mean of each channel, and leaves
    the sign as it comes.

    Note: Where the two largest singular values are equal, v is one of many.

    Cost: 1 forward pass of the batch, and the eigenvectors of a symmetric matrix of as
    many rows as there are channels or positions, whichever are fewer, for each example.
    """

    def _weighted(self, call: LayerCall) -> Iterator[tuple[LayerTensor, Tensor]]:
        for layer in call.tensors():
            if call.target is not None and call.batch_size:
                assert layer.output is not None
                check_scores(layer.output, unchanged, call.target)
            yield layer, first_singular_vectors(layer.activations)


class EigenGradCAM(GradientCAM):
    r"""Shows what varies most in a layer's activations times their gradients.

    .. math::
        L = \mathrm{ReLU} \sum_k v_k \, g^k \odot A_k

    where :math:`A_k` is the k-th channel of ``layer``, :math:`g^k` the gradient of the
    raw output at ``target`` with respect to it, and v the first right singular vector
    of their products as a matrix of positions times channels.

    Reference: The EigenGradCAM of Gildenblat and contributors, grad-cam, 2021,
    github.com/jacobgil/pytorch-grad-cam. There is no paper.

    Note: The products are not centred, and the largest entry of the map, by its size,
    is positive, as in :class:`EigenCAM`. Where negative evidence varies most, it is
    what the map shows.

    Cost: 1 forward and 1 backward pass of the batch, and eigenvectors as
    :class:`EigenCAM`.
    """

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Returns v_k times the gradients, (N, K, *spatial)."""
        # Shares, because the product of the two may leave the type's range.
        products = shares(gradients) * shares(activations)  # (N, K, positions)
        vectors = first_singular_vectors(products)  # (N, K)
        return gradients * vectors.view(*vectors.shape, *[1] * (gradients.dim() - 2))


def first_singular_vectors(maps: Tensor) -> Tensor:
    """Returns the first right singular vector of positions times channels, (N, K).

    Its sign makes the largest entry of the weighted sum, by its size, positive. The
    vector of an example that is all zero, or not finite, is zero.

    Args:
        maps (Tensor): (N, K, *spatial), in float32 or float64.
    """
    entries = maps.flatten(2)
    finite = entries.isfinite().flatten(1).all(1).view(-1, 1, 1)
    # LAPACK refuses NaN. Shares, because squares may leave the range.
    values = shares(torch.where(finite, entries, 0))  # (N, K, positions)
    values = values.to(precise_type(maps.device))
    wide = values.shape[1] > values.shape[2]
    rows = values.transpose(1, 2) if wide else values
    with torch.autocast(maps.device.type, enabled=False):
        # The smaller of the two Gram matrices. Of the first vector, whose gap to the
        # others it widens, it loses no precision.
        eigenvectors = torch.linalg.eigh(rows @ rows.mT).eigenvectors
        vectors = eigenvectors[:, :, -1:]  # of the largest eigenvalue
        if wide:
            vectors = values @ vectors  # from left to right ones: (N, K, 1)
            norms = vectors.norm(dim=1, keepdim=True)
            vectors = vectors / torch.where(norms > 0, norms, 1)
        sums = values.mT @ vectors  # (N, positions, 1)
    signs = sums.gather(1, sums.abs().argmax(1, keepdim=True)).sign()  # 0 of zeros
    signed: Tensor = (vectors * signs)[:, :, 0]
    return signed.to(maps.dtype)
