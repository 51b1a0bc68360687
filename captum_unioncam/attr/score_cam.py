"""ScoreCAM: channels under a softmax of the confidence that each one adds."""

from torch import Tensor

from captum_unioncam.attr._masking_cam import MaskingCAM


class ScoreCAM(MaskingCAM):
    r"""Shows the regions that raise the confidence in the target, without gradients.

    Each channel masks the inputs, and a softmax over the channels of the increase in
    confidence weights them:

    .. math::
        L &= \mathrm{ReLU} \sum_k \alpha_k A_k, \quad
        \alpha = \mathrm{softmax}(C(A_1), \dots, C(A_K)) \\
        C(A_k) &= f_c(\mathrm{mask}(A_k) \odot I_0) - f_c(I_b)

    where :math:`A_k` is the k-th channel of ``layer``, :math:`\mathrm{mask}` resizes it
    to the input and scales it to [0, 1], :math:`I_0` is the input, :math:`I_b` the
    baseline and :math:`f_c` the score, a confidence (see ``score_func``). Constant
    channels take part in the softmax with an increase of 0.

    Reference: Wang et al., Score-CAM, CVPR Workshops 2020, arXiv:1910.01279v2.

    Note: The versions of the paper differ in the baseline; this is the published one
    (arXiv v2). The softmax cancels the baseline's score :math:`f_c(I_b)` in any case.
    The authors' code has no softmax over channels: that is :class:`RegionCAM`.

    Note: A softmax of confidences, which are in [0, 1], is close to uniform. Of raw
    outputs (``score_func=lambda output: output``), as in other packages, it is close to
    choosing one channel.

    Note: Call ``model.eval()`` first; the mode is not changed. In train mode every
    masked pass updates the running statistics of batch normalisation, and the score of
    an example depends on the others in its batch.

    Cost: 3 forward passes of the batch, and 1 for each active channel of each example.
    Memory does not grow with the number of channels.
    """

    def weights(self, scores: Tensor) -> Tensor:
        """Returns alpha, (N, K)."""
        return increase_weights(scores)


def increase_weights(scores: Tensor) -> Tensor:
    """Returns the softmax of the increases, (N, K).

    The baseline's score, which all increases have in common, cancels.
    """
    return scores.softmax(1)
