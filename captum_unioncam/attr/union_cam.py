"""UnionCAM: gradient maps and region maps, united where the union scores higher."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

import torch
from captum.attr import LayerAttribution
from torch import Tensor

from captum_unioncam._baselines import Baselines
from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._checks import check_choice, check_number
from captum_unioncam._confidence import ScoreFunc
from captum_unioncam._layer_call import LayerTensor
from captum_unioncam._maps import is_active, min_max, scale_as_mask
from captum_unioncam._reshape import ReshapeTransform
from captum_unioncam._scoring import MaskScorer
from captum_unioncam.attr._base import Layers, nan_unless_finite
from captum_unioncam.attr._fusion import select_by_gain, weighted_union
from captum_unioncam.attr._union_details import UnionCAMDetails
from captum_unioncam.attr._uniting_cam import UnitingCAM
from captum_unioncam.attr.denoised_grad_cam import (
    THETA,
    DenoisedGradCAM,
    denoised_map,
)
from captum_unioncam.attr.group_cam import GroupCAM
from captum_unioncam.attr.layer_cam import LayerCAM
from captum_unioncam.attr.region_cam import RegionCAM, region_weights


class UnionCAM(UnitingCAM):
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
    for each active channel of each example. Other ``parts`` cost their own masked
    passes, 1 for each gain, and 3. Memory does not grow with the number of
    channels.
    """

    _gradient_map = staticmethod(denoised_map)
    _region_weights = staticmethod(region_weights)

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Layers,
        device_ids: list[int] | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
        parts: Sequence[LayerAttribution] | None = None,
        select: Literal["region", "best"] | None = "region",
        scoring_func: Callable[..., Any] | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        r"""
        Args:
            forward_func, layer, device_ids, reshape_transform, parts, scoring_func,
                memory_format: See :class:`FusionCAM`. Eq. 6 sums any number of parts.
            select (str, optional): ``"region"`` keeps the fused map where it scores
                higher than the last part, the region map (Eq. 8); ``"best"`` keeps what
                scores highest of the fused map and all parts; ties go to the region
                map, then to the earlier part. None keeps the fused map (AMU without
                AMS), for ablation studies. Default: ``"region"``, the paper's

        Raises:
            TypeError, ValueError: As :class:`FusionCAM`, or if ``select`` is another.
        """
        super().__init__(
            forward_func,
            layer,
            device_ids,
            reshape_transform=reshape_transform,
            parts=parts,
            scoring_func=scoring_func,
            memory_format=memory_format,
        )
        if select is not None:
            check_choice("select", select, ("region", "best"))
        self.select = select

    @classmethod
    def best(
        cls,
        forward_func: Callable[..., Any],
        layer: Layers,
        device_ids: list[int] | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
        scoring_func: Callable[..., Any] | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> "UnionCAM":
        """Returns the union with the fewest weaknesses in our measurements.

        It is not the paper's: its parts are :class:`DenoisedGradCAM`,
        :class:`LayerCAM`, :class:`GroupCAM` and :class:`RegionCAM`, and it keeps what
        scores highest of them and their fused map. The documentation has the
        measurements, under black ``baselines``; without any, Group-CAM masks with its
        own, the blurred input, and the others with 0.

        Args:
            forward_func, layer, device_ids, reshape_transform, scoring_func,
                memory_format: As of the constructor.

        Raises:
            TypeError, ValueError: As the constructor.

        Cost: As the paper's method, and at most 35 more forward passes of the batch: 1
        for each of up to 32 groups of channels, and 3.
        """
        common: dict[str, Any] = {"reshape_transform": reshape_transform}
        parts: list[LayerAttribution] = [
            part(forward_func, layer, device_ids, **common)
            for part in (DenoisedGradCAM, LayerCAM)
        ]
        common |= {"scoring_func": scoring_func, "memory_format": memory_format}
        parts += [
            part(forward_func, layer, device_ids, **common)
            for part in (GroupCAM, RegionCAM)
        ]
        return cls(
            forward_func, layer, device_ids, parts=parts, select="best", **common
        )

    def _union(
        self,
        layer: LayerTensor,
        scorer: MaskScorer,
        theta: float,
        given: Mapping[str, Any],
    ) -> tuple[Tensor, UnionCAMDetails]:
        """Returns the union of the parts, in the order of the paper's Figure 1."""
        parts = self._part_maps(layer, scorer, theta, given)  # AMD (Eqs. 1-3), region
        maps = torch.cat([part.maps for part in parts], 1)  # (N, M, *spatial)
        gains = scorer.gains(maps)  # Eqs. 4, 5: (N, M)
        scaled = scale_as_mask(maps, scorer.mask_size)
        fused = weighted_union(scaled, gains)  # AMU, Eq. 6: (N, 1, *spatial)
        fused_gain = scorer.gains(fused)  # Eq. 7: (N, 1)
        union, kept = self._selected(  # AMS, Eq. 8
            torch.cat([maps, fused], 1), torch.cat([gains, fused_gain], 1)
        )
        channels = torch.stack([part.channels for part in parts]).sum(0)  # (N,)
        details = UnionCAMDetails(
            part_maps=maps,
            part_gains=gains,
            fused_map=fused,
            fused_gain=fused_gain[:, 0],
            kept=kept,
            baseline_score=scorer.reference_scores.to(gains.device),
            total_channels=torch.full_like(channels, layer.activations.shape[1]),
            active_channels=is_active(layer.activations).sum(1),
            scored_channels=channels,
            fidelity=parts[-1].fidelity,
        )
        return nan_unless_finite(min_max(union), maps, gains, fused_gain), details

    def _selected(self, maps: Tensor, gains: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the maps to keep, (N, 1, *spatial), and their numbers, (N,).

        Args:
            maps (Tensor): Of the parts and, last, the fused ones, (N, M + 1, *spatial).
            gains (Tensor): Their gains, (N, M + 1).
        """
        fused = maps.shape[1] - 1
        region, others = fused - 1, range(fused - 1)
        candidates = {
            None: [fused],
            "region": [region, fused],
            "best": [region, *others, fused],
        }[self.select]
        kept_maps, chosen = select_by_gain(maps[:, candidates], gains[:, candidates])
        return kept_maps, torch.tensor(candidates, device=maps.device)[chosen]

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
            the layer's type; a tuple of them if the layer has several tensors, or
            ``layer`` is a list. A constant map is all zeros. An example whose
            activations, gradients or scores are not finite is all NaN. Such examples
            give a warning that names them.
            With ``return_details=True``, the attributions and :class:`UnionCAMDetails`
            in the same form.

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
        options, given = self._options_of_call(
            show_progress,
            theta,
            grad_kwargs,
            baselines=baselines,
            score_func=score_func,
            max_channels=max_channels,
            fidelity=fidelity,
            perturbations_per_eval=perturbations_per_eval,
        )
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        with call.shared() as call:
            scored = self._scored_layers(call, options, grad_kwargs)
            layers = [layer for layer, _ in scored]
            unions = []
            for layer, scorer in scored:
                unions.append(self._union(layer, scorer, theta, given))
        attributions = self._attributions(layers, [union for union, _ in unions])
        if not return_details:
            return attributions
        return attributions, call.formatted(layers, [detail for _, detail in unions])
