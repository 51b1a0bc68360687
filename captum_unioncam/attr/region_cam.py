"""RegionCAM: channels under the scores of what they show, UnionCAM's other part."""

from torch import Tensor

from captum_unioncam.attr._masking_cam import MaskingCAM


class RegionCAM(MaskingCAM):
    r"""Shows the regions that carry the target, by masking the input by each channel.

    Each channel masks the inputs, the masked inputs go through the model, and the score
    of the target weights the channel:

    .. math:: L = \mathrm{ReLU} \sum_k f_c(\mathrm{mask}(A_k) \odot I_0) \, A_k

    where :math:`A_k` is the k-th channel of ``layer``, :math:`\mathrm{mask}` resizes it
    to the input and scales it to [0, 1], :math:`I_0` is the input and :math:`f_c` the
    score, a confidence (see ``score_func``). The scores weight the raw channels,
    without a softmax over channels and without subtracting the baseline's score.

    Reference: Hu et al., UnionCAM, Front. Neurorobot. 18, 2024,
    doi:10.3389/fnbot.2024.1490198.

    Note: Deviates from the paper by the outer ReLU, which only changes layers with
    negative activations: negative evidence is not shown, as in every CAM.

    Note: Call ``model.eval()`` first; the mode is not changed. In train mode every
    masked pass updates the running statistics of batch normalisation, and the score of
    an example depends on the others in its batch.

    Cost: 3 forward passes of the batch, and 1 for each active channel of each example.
    The mask of a constant channel is all zeros, so that the baseline's score is its
    exact score. Memory does not grow with the number of channels.
    """

    def weights(self, scores: Tensor) -> Tensor:
        """Returns the scores, (N, K)."""
        return region_weights(scores)


def region_weights(scores: Tensor) -> Tensor:
    """Returns the weights of the region map, (N, K): the scores themselves."""
    return scores
