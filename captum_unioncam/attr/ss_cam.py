"""SSCAM: Score-CAM with confidences averaged over noisy masks."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from captum_unioncam._baselines import Baselines
from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._checks import check_instance, check_integer, check_number
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam._scoring import MaskScorer
from captum_unioncam.attr._masking_cam import MaskChange
from captum_unioncam.attr.score_cam import ScoreCAM

# Wang et al. 2020: the noise maps, and their standard deviation for masks in [0, 1].
NUM_SAMPLES = 35
STD = 2.0


class SSCAM(ScoreCAM):
    r"""Shows the regions that raise the confidence, averaged over noise in the masks.

    As :class:`ScoreCAM`, with

    .. math::
        C(A_k) = \frac{1}{n} \sum_{i=1}^{n}
        f_c\big((\mathrm{mask}(A_k) + \delta_i) \odot I_0\big) - f_c(I_b), \quad
        \delta_i \sim \mathcal{N}(0, \sigma^2)

    where n is ``num_samples``, :math:`\sigma` is ``std``, and :math:`\delta_i` has a
    value for each pixel of the mask.

    Reference: Wang et al., SS-CAM: Smoothed Score-CAM for sharper visual feature
    localization, 2020, arXiv:2006.14255: its first variant, noise on the feature map.
    The second one adds the noise to the input.

    Note: Deviates from the paper in that all channels and examples share the same n
    noise maps. The scores differ by the channels alone, and a map depends neither on
    the rest of its batch nor on the size of the chunks.

    Note: The noisy mask is neither scaled nor clipped again. The mask of a constant
    channel gets no noise: its increase is 0, as in Score-CAM.

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
        std: float = STD,
        generator: torch.Generator | None = None,
        baselines: Baselines = None,
        score_func: ScoreFunc | None = None,
        max_channels: int | None = None,
        fidelity: float = 1.0,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            num_samples (int, optional): Noise maps. Default: 35, as in the paper
            std (float, optional): Standard deviation of the noise, for masks in [0, 1].
                Default: 2.0, as in the paper
            generator (torch.Generator, optional): Draws the noise. The global generator
                is never used. Default: None, which is a new one with the seed 0 for
                each call, so that equal calls give equal maps

        All other arguments, the return value and the errors are those of
        :meth:`ScoreCAM.attribute`; a ``num_samples`` that is not positive, or a ``std``
        that is negative, is a ValueError.
        """
        check_integer("num_samples", num_samples)
        check_number("std", std, 0)
        check_instance("generator", generator, torch.Generator)
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
        noise = _Noise(num_samples, std, generator)
        return self._explain(call, options, noise.changes)


class _Noise:
    """Noise maps for all channels and examples, drawn once for each mask size."""

    def __init__(
        self, num_samples: int, std: float, generator: torch.Generator | None
    ) -> None:
        self._num_samples, self._std = num_samples, std
        self._generator = generator or torch.Generator().manual_seed(0)
        self._maps: dict[tuple[int, ...], Tensor] = {}  # by size, (samples, *size)

    def changes(self, scorer: MaskScorer) -> Sequence[MaskChange]:
        """Returns what adds each of the noise maps to a mask."""
        for size in scorer.mask_sizes:
            if size not in self._maps:
                self._maps[size] = self._std * torch.randn(
                    self._num_samples,
                    *size,
                    generator=self._generator,
                    device=self._generator.device,
                    dtype=torch.float32,
                )
        return [partial(self._add, sample=i) for i in range(self._num_samples)]

    def _add(self, mask: Tensor, sample: int) -> Tensor:
        size = tuple(mask.shape[2:])
        self._maps[size] = self._maps[size].to(mask)  # once for all chunks
        return mask + self._maps[size][sample]
