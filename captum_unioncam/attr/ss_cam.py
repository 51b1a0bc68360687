"""SSCAM: Score-CAM with confidences averaged over noisy masks."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._scoring import Baselines, MaskVariant, ScoreFunc
from captum_unioncam.attr._masking_cam import MaskSizes
from captum_unioncam.attr._weighted_cam import check_number, check_positive
from captum_unioncam.attr.score_cam import ScoreCAM

Noise = dict[tuple[int, ...], Tensor]


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

    Note: The noisy mask is neither scaled nor clipped again. The mask of a dead channel
    gets no noise: its increase is 0, as in Score-CAM.

    Cost: 2 forward passes of the batch (3 for a single example), and ``num_samples``
    for each live channel of each example.
    """

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        num_samples: int = 35,
        std: float = 2.0,
        generator: torch.Generator | None = None,
        baselines: Baselines = None,
        score_func: ScoreFunc | None = None,
        max_channels: int | None = None,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            num_samples (int, optional): Noise maps. Default: 35, the paper's
            std (float, optional): Standard deviation of the noise, for masks in [0, 1].
                Default: 2.0, the paper's
            generator (torch.Generator, optional): Draws the noise. The global generator
                is never used. Default: None, which is a new one with the seed 0 for
                each call, so that equal calls give equal maps

        All other arguments, the return value and the errors are those of
        :meth:`ScoreCAM.attribute`; a ``num_samples`` that is not positive, or a ``std``
        that is negative, is a ValueError.
        """
        check_positive("num_samples", num_samples, or_none=False)
        check_number("std", std, 0, math.inf)
        if generator is None:
            generator = torch.Generator().manual_seed(0)
        elif not isinstance(generator, torch.Generator):
            raise TypeError(
                f"`generator` must be a torch.Generator or None, got {generator!r}."
            )

        noise: Noise = {}  # by size of the mask

        def noisy(sizes: MaskSizes) -> Sequence[MaskVariant]:
            for size in sizes:
                if size not in noise:
                    noise[size] = std * torch.randn(
                        num_samples,
                        *size,
                        generator=generator,
                        device=generator.device,
                        dtype=torch.float32,
                    )
            return [
                partial(_add_noise, noise=noise, sample=i) for i in range(num_samples)
            ]

        return self._explain(
            self._prepare(
                inputs, target, additional_forward_args, attribute_to_layer_input
            ),
            baselines,
            score_func,
            max_channels,
            perturbations_per_eval,
            show_progress,
            noisy,
        )


def _add_noise(mask: Tensor, noise: Noise, sample: int) -> Tensor:
    size = tuple(mask.shape[2:])
    noise[size] = noise[size].to(mask)  # once: later chunks find it there
    return mask + noise[size][sample]
