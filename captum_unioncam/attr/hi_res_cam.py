"""HiResCAM: gradients times activations, position by position."""

from torch import Tensor

from captum_unioncam.attr._gradient_cam import GradientCAM


class HiResCAM(GradientCAM):
    r"""Shows where a layer supports the target, without averaging the gradients.

    .. math:: L = \mathrm{ReLU} \sum_k g^k \odot A_k

    where :math:`A_k` is the k-th channel of ``layer`` and :math:`g^k` the gradient of
    the raw output at ``target`` with respect to it. Where a linear head follows the
    layer, the map is the model's own evidence for each position.

    Reference: Draelos and Carin, Use HiResCAM instead of Grad-CAM for faithful
    explanations of convolutional neural networks, 2020, arXiv:2011.08891.

    Note: Deviates from the paper by the ReLU: negative evidence is not shown, as in
    every CAM of the package.

    Cost: 1 forward and 1 backward pass of the batch.
    """

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Returns g^k, (N, K, *spatial)."""
        return gradients
