"""LayerCAM: positive gradients times activations, for layers of any depth."""

import torch.nn.functional as F
from torch import Tensor

from captum_unioncam.attr._gradient_cam import GradientCAM


class LayerCAM(GradientCAM):
    r"""Shows where a layer supports the target, at shallow layers too.

    .. math::
        L = \mathrm{ReLU} \sum_k \mathrm{ReLU}(g^k) \odot A_k

    where :math:`A_k` is the k-th channel of ``layer`` and :math:`g^k` the gradient of
    the raw output at ``target`` with respect to it.

    Reference: Jiang et al., LayerCAM, IEEE Trans. Image Process. 30, 2021,
    doi:10.1109/TIP.2021.3089943.

    Note: The paper sharpens shallow maps with a tanh before it fuses layers. That step
    is not part of the map of one layer: :func:`.fuse` takes it, with ``gamma=2``.

    Cost: 1 forward and 1 backward pass of the batch.
    """

    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Returns ReLU(g^k), (N, K, *spatial)."""
        return F.relu(gradients)
