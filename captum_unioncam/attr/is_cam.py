"""ISCAM: Score-CAM with confidences integrated from the baseline to the mask."""

from functools import partial

from torch import Tensor

from captum_unioncam._baselines import Baselines
from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._checks import check_integer
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam.attr.score_cam import ScoreCAM

# Naidu et al. 2020, the steps of the integral.
NUM_SAMPLES = 10


class ISCAM(ScoreCAM):
    r"""Shows the regions that raise the confidence, averaged as they are faded in.

    As :class:`ScoreCAM`, with

    .. math::
        C(A_k) = \frac{1}{n} \sum_{i=1}^{n}
        f_c\Big(\frac{i}{n} \, \mathrm{mask}(A_k) \odot I_0\Big) - f_c(I_b)

    where n is ``num_samples``.

    Reference: Naidu et al., IS-CAM: Integrated Score-CAM for axiomatic-based
    explanations, 2020, arXiv:2010.03023.

    Note: The integral runs on the straight line from the baseline to the masked input,
    as in Integrated Gradients and in the first author's code: step i shows i/n of the
    mask. Deviates from the printed formula, which other packages follow, and
    which adds up the steps, so that the last one shows about n/2 times the mask, far
    outside of the range of an image.

    Cost: 3 forward passes of the batch, and ``num_samples`` for each active channel of
    each example.
    """

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        num_samples: int = NUM_SAMPLES,
        baselines: Baselines = None,
        score_func: ScoreFunc | None = None,
        max_channels: int | None = None,
        fidelity: float = 1.0,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            num_samples (int, optional): Steps of the integral. Default: 10, as in the
                paper

        All other arguments, the return value and the errors are those of
        :meth:`ScoreCAM.attribute`; a ``num_samples`` that is not positive is a
        ValueError.
        """
        check_integer("num_samples", num_samples)
        options = self._options(
            show_progress,
            baselines=baselines,
            score_func=score_func,
            max_channels=max_channels,
            fidelity=fidelity,
            perturbations_per_eval=perturbations_per_eval,
        )
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        fractions = [step / num_samples for step in range(1, num_samples + 1)]
        fades = [partial(_fade, fraction=fraction) for fraction in fractions]
        return self._explain(call, options, lambda scorer: fades)


def _fade(mask: Tensor, fraction: float) -> Tensor:
    return mask * fraction
