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
from captum_unioncam.attr._fusion import select_union, weighted_union
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

    The two component maps are :class:`DenoisedGradCAM` (activation map denoising, AMD)
    and :class:`RegionCAM`. The score gain of a map, the paper's beta, is the confidence
    in the target when the model sees only what the map shows, minus the confidence on
    the baseline (Eqs. 4 and 5). Activation map union (AMU) sums the two maps, each
    scaled as the mask that is scored and multiplied by its gain (Eq. 6):

    .. math::
        \beta_i &= f_c(L_i \odot I_0) - f_c(I_b) \\
        L_\mathrm{de\_region} &= \beta_\mathrm{denoising} L_\mathrm{denoising}
        + \beta_\mathrm{region} L_\mathrm{region}

    Activation map selection (AMS) keeps the fused map if its gain is higher than that
    of the region map, and otherwise the region map (Eqs. 7 and 8):

    .. math::
        L_\mathrm{union} = L_\mathrm{de\_region}
        \text{ if } \beta_\mathrm{de\_region} > \beta_\mathrm{region}
        \text{ else } L_\mathrm{region}

    where :math:`f_c` is the score, a confidence (see ``score_func``), :math:`I_0` the
    input and :math:`I_b` the baseline, what a mask of 0 shows (see ``baselines``).

    Reference: Hu et al., UnionCAM, Front. Neurorobot. 18, 2024,
    doi:10.3389/fnbot.2024.1490198.

    Note: Deviates from the paper by the ReLU that ends both component maps, which only
    changes layers with negative activations.

    Note: Call ``model.eval()`` first; the mode is not changed. In train mode every
    masked pass updates the running statistics of batch normalisation, and the score of
    an example depends on the others in its batch.

    Cost: 1 forward and 1 backward pass of the batch, 5 more forward passes of it, and 1
    for each active channel of each example. Other ``parts`` cost their own masked
    passes, 1 for each gain, and 3. Memory does not grow with the number of channels.

    Examples::

        >>> import torch
        >>> from torchvision.models import resnet18
        >>> from captum_unioncam import UnionCAM, find_layer, to_input
        >>> model = resnet18(weights=None).eval()  # "DEFAULT" downloads trained weights
        >>> mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        >>> std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
        >>> images = (torch.rand(2, 3, 96, 96) - mean) / std  # normalised
        >>> predicted = model(images).argmax(1)
        >>> cam = UnionCAM(model, find_layer(model, images))  # here model.layer4
        >>> black = -mean / std  # a black pixel as the model sees it
        >>> maps = cam.attribute(images, predicted, baselines=black, fidelity=0.99)
        >>> maps.shape
        torch.Size([2, 1, 3, 3])
        >>> to_input(maps, images).shape  # resized to the images
        torch.Size([2, 3, 96, 96])

        A transformer's layer is read by a ``reshape_transform``:

        >>> from torchvision.models import VisionTransformer
        >>> from captum_unioncam import vit_reshape
        >>> vit = VisionTransformer(96, 16, 2, 2, 32, 64).eval()  # a small one
        >>> _ = torch.nn.init.normal_(vit.heads.head.weight)  # it starts at zero
        >>> layer = "encoder.layers.encoder_layer_1.ln_1"  # the last block's first norm
        >>> cam = UnionCAM(vit, layer, reshape_transform=vit_reshape)
        >>> cam.attribute(images, target=3, baselines=black).shape
        torch.Size([2, 1, 6, 6])
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
            forward_func (Callable or torch.nn.Module): The model, or any function of
                the inputs that runs it, with one row of output for each example.
            layer (torch.nn.Module, str, or list of them): The layer whose channels make
                the map, (N, K, *spatial): in a ConvNet mostly the last activation
                before the pooling, which :func:`.find_layer` finds; an earlier layer
                gives a finer map. A module, or its dotted name, such as ``"layer4.1"``,
                if ``forward_func`` is a module. For a list, the attributions are a
                tuple, one for each layer.
            device_ids (list[int], optional): Only if ``forward_func`` applies a
                DataParallel model without being one. Default: None
            reshape_transform (Callable, optional): A function from the layer's tensor
                to (N, K, *spatial), for layers of another form; it is applied to
                activations and gradients. :func:`.vit_reshape` lays out the tokens of a
                ViT, (N, T, D), as a square, and :func:`.swin_reshape` moves channels
                that come last, (N, H, W, K). Default: None, for a layer that is (N, K,
                *spatial) already
            parts (list[LayerAttribution], optional): What makes the maps to unite: two
                or more instances that return (N, 1, *layer_size), such as
                ``LayerCAM(model, layer)`` or Captum's LayerGradCam. The last one makes
                the region map. Each part gets those options of the call that it takes,
                uses its own ``reshape_transform``, and its map is rectified. Parts of
                this package on the same model and layer share one forward and one
                backward pass. Default: None, which is the paper's two
            select (str, optional): ``"region"`` keeps the fused map if it scores higher
                than the last part, the region map (Eq. 8); ``"best"`` keeps the map
                that scores highest of the fused one and all parts; ties go to the
                region map, then to the earlier part. None keeps the fused map (AMU
                without AMS), for ablations. Default: ``"region"``, as in the paper
            scoring_func (Callable, optional): A faster function with the outputs of
                ``forward_func``, for the masked passes, such as
                ``torch.compile(model, dynamic=True)``. The layer is still read from
                ``forward_func``. Default: None, which is ``forward_func``
            memory_format (torch.memory_format, optional): The memory format of the
                masked images. ``torch.preserve_format`` keeps that of ``inputs``.
                Default: None, which is ``torch.channels_last``, the fastest for
                convolutions, if the outputs stay the same, and else that of ``inputs``

        Raises:
            TypeError: If ``layer``, ``reshape_transform``, ``parts``, ``scoring_func``
                or ``memory_format`` has another type.
            ValueError: If there is no layer of this name, there are fewer than two
                ``parts``, or ``select`` has another value.
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

        It is not the method of the paper: its parts are :class:`DenoisedGradCAM`,
        :class:`LayerCAM`, :class:`GroupCAM` and :class:`RegionCAM`, and it keeps the
        map that scores highest among them and their fused map. It was measured with
        black ``baselines``; without them Group-CAM masks with the blurred input, and
        the others with 0. Where no map scores above the baseline, it may be all zeros.

        Args:
            forward_func, layer, device_ids, reshape_transform, scoring_func,
                memory_format: As for the constructor.

        Raises:
            TypeError, ValueError: As for the constructor.

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
        candidates = torch.cat([maps, fused], 1)  # (N, M + 1, *spatial)
        all_gains = torch.cat([gains, fused_gain], 1)
        union, kept = select_union(candidates, all_gains, self.select)  # AMS, Eq. 8
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
                input with as many dimensions as the layer is masked, at its own size;
                the others are passed unchanged. Move an input that must not be masked
                to ``additional_forward_args``. Integer inputs are masked as floats,
                rounded and cast back. If several inputs are masked, Eq. 6 scales the
                maps as masks of the first.
            target (int, tuple, Tensor or list, optional): Output index to explain, one
                for all examples or one for each, in the forms of
                :meth:`captum.attr.LayerGradCam.attribute`. Default: None, for models
                that return one value for each example; it never means the predicted
                class, which is ``model(inputs).argmax(1)``
            additional_forward_args (Any, optional): Further arguments of the model,
                after the inputs; several as a tuple. A list is one argument. A tensor
                with one row for each example is split with them; any other tensor, such
                as class weights, needs a first dimension of 1. Default: None
            attribute_to_layer_input (bool, optional): Explain the layer's input in
                place of its output. Default: False
            theta (float, optional): Percentile, in [0, 100], below which the gradients
                of a channel are dropped. Default: 10.0, as in the paper
            baselines (Tensor, int, float, or tuple of them, optional): What a mask of 0
                shows, in the forms of Captum's FeatureAblation, broadcast to the
                inputs: ``(0 - mean) / std`` of shape (1, 3, 1, 1) is black for
                normalised images. Default: None, which is 0: black for images in
                [0, 1], but the mean colour for normalised ones
            score_func (Callable, optional): A function from the model's output to
                scores of the same shape, such as torch.sigmoid for independent labels.
                Default: None, which is softmax over dimension 1; outputs that are
                probabilities already, or have one column, are scores as they are
            max_channels (int, optional): Score at most this many active channels of
                each example, and predict the scores of the others from them: see
                :ref:`predicted-scores`. Default: None, which scores all, as in the
                paper
            fidelity (float, optional): Score channels in rounds until the estimated
                correlation of the region map with the exact one reaches this value, in
                [0, 1], such as 0.99, and predict the scores of the others. Each example
                has its own estimate. A warning names the examples that ``max_channels``
                keeps below it. Default: 1.0, the exact map
            perturbations_per_eval (int, optional): Masks for each example in one
                forward pass; the map depends on it only by rounding. Default: None,
                which times a few numbers in a long call, and keeps the fastest
            show_progress (bool, optional): Show progress on stderr. Default: False
            return_details (bool, optional): Also return the details. Default: False
            grad_kwargs (dict, optional): Keywords for torch.autograd.grad. Default:
                None, which gives zero gradients to a layer that the output does not
                depend on; see :meth:`DenoisedGradCAM.attribute`

        Returns:
            *Tensor* of **attributions**, (N, 1, *layer_size), in [0, 1], detached, of
            the layer's type; a tuple of them if the layer has several tensors, or
            ``layer`` is a list. A constant map is all zeros. An example whose
            activations, gradients or scores are not finite is all NaN. A warning names
            such examples. With ``return_details=True``, a pair: the attributions, and
            in the same form :class:`UnionCAMDetails`, the components and their scores.

        Raises:
            ValueError: If ``theta`` is outside [0, 100], the layer is not spatial, no
                input has as many dimensions as the layer, ``baselines`` do not fit,
                ``max_channels`` or ``perturbations_per_eval`` is not positive,
                ``score_func`` does not give one value for each example at the target,
                the output does not have one row for each example, or a part returns
                another shape than (N, 1, *layer_size).
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
