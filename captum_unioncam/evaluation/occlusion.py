"""Captum's Occlusion with windows that fit the input, as a row of an evaluation."""

from typing import Any

import captum.attr
from torch import Tensor

from captum_unioncam._baselines import Baselines
from captum_unioncam._captum import TargetType
from captum_unioncam._checks import check_integer

# Windows along each side that do not overlap; as many again lie between them.
WINDOWS = 7


class Occlusion(captum.attr.Occlusion):
    """Captum's Occlusion, with all channels of a square window hidden at a time.

    A window's side is that of the input over ``windows``, and it moves by half of it.

    Reference: Zeiler and Fergus, ECCV 2014, arXiv:1311.2901.

    Cost: 1 forward pass of the batch, and about (2 * ``windows`` - 1) ** 2 for each
    image.
    """

    def attribute(
        self,
        inputs: Tensor,
        target: TargetType = None,
        additional_forward_args: object = None,
        *,
        windows: int = WINDOWS,
        baselines: Baselines = None,
        perturbations_per_eval: int = 1,
        show_progress: bool = False,
    ) -> Any:
        r"""
        Args:
            windows (int, optional): Windows along each side that do not overlap.
                Default: 7

        All other arguments are those of Captum's Occlusion.

        Returns:
            *Tensor* of **attributions**, of the shape of ``inputs``.
        """
        check_integer("windows", windows)
        sides = [-(-side // windows) for side in inputs.shape[2:]]
        return super().attribute(
            inputs,
            (inputs.shape[1], *sides),
            (inputs.shape[1], *[max(1, side // 2) for side in sides]),
            target=target,
            additional_forward_args=additional_forward_args,
            baselines=baselines,
            perturbations_per_eval=perturbations_per_eval,
            show_progress=show_progress,
        )
