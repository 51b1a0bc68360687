"""GradCAM: activations under the mean of their gradients."""

from torch import Tensor

from captum_unioncam._maps import spatial_dims
from captum_unioncam.attr._gradient_cam import GradientCAM


class GradCAM(GradientCAM):
    r"""Shows where a layer supports the target, by one weight for each channel.

    .. math::
        L = \mathrm{ReLU} \sum_k \mathrm{mean}_{ij}(g^k_{ij}) \, A_k

    where :math:`A_k` is the k-th channel of ``layer`` and :math:`g^k` the gradient of
    the raw output at ``target`` with respect to it.

    Reference: Selvaraju et al., Grad-CAM, ICCV 2017, arXiv:1610.02391.

    Note: The map is that of Captum's LayerGradCam with ``relu_attributions=True``. The
    class adds what all methods of the package share: a ``reshape_transform``, a layer
    by its name, and defined results for degenerate examples and empty batches.

    Cost: 1 forward and 1 backward pass of the batch.
    """

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Returns the mean gradient of each channel, (N, K)."""
        return gradients.mean(spatial_dims(gradients))
