"""UnionCAM: a gradient map and a region map, united where the union scores higher."""

from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from torch import Tensor

from captum_unioncam._baselines import Baselines
from captum_unioncam._captum import TargetType, attribution_method, format_output
from captum_unioncam._checks import check_number
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam._layer_call import LayerTensor
from captum_unioncam._maps import is_active, min_max, scale_as_mask
from captum_unioncam._scoring import MaskScorer
from captum_unioncam.attr._base import nan_unless_finite
from captum_unioncam.attr._fusion import select_by_gain, weighted_union
from captum_unioncam.attr._two_part_cam import TwoPartCAM
from captum_unioncam.attr.denoised_grad_cam import THETA, denoised_map
from captum_unioncam.attr.region_cam import region_weights


@dataclass(frozen=True, eq=False)
class UnionCAMDetails:
    """How UnionCAM came to its maps: the components, their scores, and the choice.

    Maps are (N, 1, *layer_size), in float32 or float64, not scaled: min-max scaling the
    fused map of the examples in ``fused_selected``, and the region map of the others,
    gives the attributions. Everything else has the shape (N,). A gain is a score
    gain f_c(map as a mask) - f_c(baseline), the paper's beta.

    Attributes:
        denoised_map (Tensor): L_denoising, or the map of a ``gradient_cam``.
        region_map (Tensor): L_region, or the map of a ``region_cam``.
        fused_map (Tensor): L_de_region (Eq. 6), negative where gains are.
        baseline_score (Tensor): f_c(Ib), the score of the baseline.
        denoised_gain (Tensor): beta_denoising (Eq. 4).
        region_gain (Tensor): beta_region (Eq. 5).
        fused_gain (Tensor): beta_de_region (Eq. 7).
        fused_selected (Tensor): Whether the fused map was kept (Eq. 8), bool.
        total_channels (Tensor): Channels of the layer, int.
        active_channels (Tensor): Channels that are not constant, int.
        scored_channels (Tensor): Channels that were scored, int; 0 with a
            ``region_cam``.
        fidelity (Tensor): Estimated correlation of the region map with the exact one; 1
            where no score was predicted, NaN where the map is.
    """

    denoised_map: Tensor
    region_map: Tensor
    fused_map: Tensor
    baseline_score: Tensor
    denoised_gain: Tensor
    region_gain: Tensor
    fused_gain: Tensor
    fused_selected: Tensor
    total_channels: Tensor
    active_channels: Tensor
    scored_channels: Tensor
    fidelity: Tensor


class UnionCAM(TwoPartCAM):
    r"""Shows the evidence for the target: denoised gradients and scored regions.

    :class:`DenoisedGradCAM` (AMD) and :class:`RegionCAM` make the component maps. AMU
    fuses them by their score contributions (Eqs. 4 to 6), each map scaled as the mask
    that is scored:

    .. math::
        \beta_i &= f_c(L_i \odot I_0) - f_c(I_b) \\
        L_\mathrm{de\_region} &= \beta_\mathrm{denoising} L_\mathrm{denoising}
        + \beta_\mathrm{region} L_\mathrm{region}

    AMS keeps the fused map where it scores higher than the region map, else the region
    map (Eqs. 7, 8):

    .. math::
        L_\mathrm{union} = L_\mathrm{de\_region}
        \text{ if } \beta_\mathrm{de\_region} > \beta_\mathrm{region}
        \text{ else } L_\mathrm{region}

    where :math:`f_c` is the score, a confidence (see ``score_func``), :math:`I_0` the
    input and :math:`I_b` the baseline.

    Reference: Hu et al., UnionCAM, Front. Neurorobot. 18, 2024,
    doi:10.3389/fnbot.2024.1490198.

    Note: Deviates from the paper by the ReLU that ends both component maps, which only
    changes layers with negative activations.

    Note: In train mode every masked pass moves the buffers of batch normalisation, and
    couples the examples. The mode is not changed: call ``model.eval()`` first.

    Cost: 1 forward and 1 backward pass of the batch, 5 more forward passes of it, and 1
    for each active channel of each example. Memory does not grow with the number of
    channels.
    """

    _default_gradient_map = staticmethod(denoised_map)
    _default_region_weights = staticmethod(region_weights)

    def _union(
        self, layer: LayerTensor, scorer: MaskScorer, theta: float, select: bool
    ) -> tuple[Tensor, UnionCAMDetails]:
        """Returns the union of the two maps, in the order of the paper's Figure 1."""
        denoised = self._gradient_map(layer, scorer, theta)  # AMD, Eqs. 1 to 3
        scored = self._region_map(layer, scorer)  # region map
        region = scored.maps
        maps = torch.cat([denoised, region], 1)  # (N, 2, *spatial)
        gains = scorer.gains(maps)  # Eqs. 4, 5: (N, 2)
        scaled = scale_as_mask(maps, scorer.mask_size)
        fused = weighted_union(scaled, gains)  # AMU, Eq. 6: (N, 1, *spatial)
        fused_gain = scorer.gains(fused)[:, 0]  # Eq. 7: (N,)
        union, selected = select_by_gain(  # AMS, Eq. 8
            fused, region, fused_gain, gains[:, 1]
        )
        details = UnionCAMDetails(
            denoised_map=denoised,
            region_map=region,
            fused_map=fused,
            baseline_score=scorer.reference_scores.to(gains.device),
            denoised_gain=gains[:, 0],
            region_gain=gains[:, 1],
            fused_gain=fused_gain,
            fused_selected=selected,
            total_channels=torch.full_like(scored.channels, layer.activations.shape[1]),
            active_channels=is_active(layer.activations).sum(1),
            scored_channels=scored.channels,
            fidelity=scored.fidelity,
        )
        scaled_union = min_max(union if select else fused)
        return nan_unless_finite(scaled_union, maps, gains, fused_gain), details

    @overload
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        theta: float = THETA,
        baselines: Baselines = None,
        score_func: ScoreFunc | None = None,
        max_channels: int | None = None,
        fidelity: float = 1.0,
        select: bool = True,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        return_details: Literal[False] = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, ...]: ...

    @overload
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        theta: float = THETA,
        baselines: Baselines = None,
        score_func: ScoreFunc | None = None,
        max_channels: int | None = None,
        fidelity: float = 1.0,
        select: bool = True,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        return_details: Literal[True],
        grad_kwargs: dict[str, Any] | None = None,
    ) -> tuple[
        Tensor | tuple[Tensor, ...], UnionCAMDetails | tuple[UnionCAMDetails, ...]
    ]: ...

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        theta: float = THETA,
        baselines: Baselines = None,
        score_func: ScoreFunc | None = None,
        max_channels: int | None = None,
        fidelity: float = 1.0,
        select: bool = True,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
        return_details: bool = False,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> (
        Tensor
        | tuple[Tensor, ...]
        | tuple[
            Tensor | tuple[Tensor, ...], UnionCAMDetails | tuple[UnionCAMDetails, ...]
        ]
    ):
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first. Every
                input of the layer's rank is masked, at its own size; the others pass
                unchanged. Move an input that must not be masked to
                ``additional_forward_args``. Integer inputs are masked as floats,
                rounded and cast back. Where several inputs are masked, Eq. 6 scales the
                maps as masks of the first.
            target (int, tuple, Tensor or list, optional): Output index to explain, in
                the forms of :meth:`captum.attr.LayerGradCam.attribute`. Default: None
            additional_forward_args (Any, optional): Further arguments of the model,
                after the inputs. A list is one argument. A tensor with as many rows as
                there are examples follows its example; give any other tensor, such as
                class weights, a first dimension of 1. Default: None
            attribute_to_layer_input (bool, optional): Explain the layer's input in
                place of its output. Default: False
            theta (float, optional): Percentile, in [0, 100], below which the gradients
                of a channel are dropped. Default: 10.0, the paper's
            baselines (Tensor, int, float, or tuple of them, optional): What a mask of 0
                shows, in the forms of Captum's FeatureAblation, broadcast to the
                inputs: ``(0 - mean) / std`` of shape (1, 3, 1, 1) is black for
                normalised images. Default: None, which is 0
            score_func (Callable, optional): From the model's output to scores of the
                same shape, such as torch.sigmoid. Default: None, which is softmax over
                dimension 1 if it is larger than 1, and not applied to probabilities
            max_channels (int, optional): Score at most this many active channels of
                each example, and predict the scores of the others from them: see
                :ref:`predicted-scores`. Default: None, which is all, the paper
            fidelity (float, optional): Score channels in rounds, until the estimated
                correlation of the region map with the exact one reaches this,
                in [0, 1], such as 0.99, for each example on its own. An example that
                ``max_channels`` keeps below it gives a warning. Default: 1.0, the exact
                map
            select (bool, optional): Select by Eq. 8. False keeps the fused map (AMU
                without AMS), for ablation studies. Default: True
            perturbations_per_eval (int, optional): Masks for each example in one
                forward pass; only rounding depends on it. Default: None, which tries a
                few numbers in a long call, and stays with the fastest
            show_progress (bool, optional): Show a progress bar on stderr. Default:
                False
            return_details (bool, optional): Return the components and their scores too.
                Default: False
            grad_kwargs (dict, optional): Keywords for torch.autograd.grad; see
                :meth:`DenoisedGradCAM.attribute`. Default: None

        Returns:
            *Tensor* of **attributions**, (N, 1, *layer_size), in [0, 1], detached, of
            the layer's type; a tuple of them if the layer has several tensors. A
            constant map is all zeros. An example whose activations, gradients or scores
            are not finite is all NaN. Such examples give a warning that names them.
            With ``return_details=True``, the attributions and :class:`UnionCAMDetails`
            (a tuple of both for a layer of several tensors).

        Raises:
            ValueError: If ``theta`` is outside [0, 100], the layer is not spatial, no
                input has the layer's rank, ``baselines`` do not fit, ``max_channels``
                or ``perturbations_per_eval`` is not positive, ``score_func`` has not
                one value for each example at the target, the output has not one row for
                each example, or a part returns another shape than (N, 1, *layer_size).

        Examples::

            >>> import torch
            >>> from captum_unioncam import UnionCAM
            >>> conv = torch.nn.Conv2d(3, 4, 3)
            >>> head = torch.nn.LazyLinear(2)
            >>> net = torch.nn.Sequential(conv, torch.nn.Flatten(), head)
            >>> cam = UnionCAM(net, conv)
            >>> cam.attribute(torch.rand(2, 3, 8, 8), target=1).shape
            torch.Size([2, 1, 6, 6])
        """
        check_number("theta", theta, 0, 100)
        options = self._options(
            show_progress,
            baselines=baselines,
            score_func=score_func,
            max_channels=max_channels,
            fidelity=fidelity,
            perturbations_per_eval=perturbations_per_eval,
        )
        self._check_options_of_parts(theta != THETA, grad_kwargs, options)
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        maps, details = [], []
        for layer, scorer in self._scored_layers(call, options, grad_kwargs):
            union, detail = self._union(layer, scorer, theta, select)
            maps.append(self._result(union, layer.dtype))
            details.append(detail)
        attributions = format_output(tuple(maps))
        if not return_details:
            return attributions
        return attributions, tuple(details) if len(details) > 1 else details[0]
