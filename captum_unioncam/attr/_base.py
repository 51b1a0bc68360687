"""What the class activation maps of the package share.

A map is a sum of the layer's channels, each under a weight, with negative evidence left
out. A method defines its weights; options, degenerate examples and the form of the
result are here.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import (
    Attribution,
    GradientAttribution,
    LayerAttribution,
    PerturbationAttribution,
)
from torch import Tensor
from torch.nn import Module

from captum_unioncam._captum import TargetType
from captum_unioncam._checks import check_callable, check_instance, warn_user
from captum_unioncam._layer_call import LayerCall, LayerTensor
from captum_unioncam._maps import is_constant
from captum_unioncam._reshape import ReshapeTransform
from captum_unioncam._scoring import MaskScorer, ScoringOptions
from captum_unioncam.layers import resolved_layers

LISTED_EXAMPLES = 10

# What ``layer`` may be.
Layers = Module | str | Sequence[Module | str]


class MapAttribution(Attribution):
    """An attribution with one map for each example: its name, and its results' form."""

    @classmethod
    def get_name(cls) -> str:
        """Returns the name of the class, for progress bars."""
        return cls.__name__

    @property
    def multiplies_by_inputs(self) -> bool:
        """Is False: a map is local, in the sense of captum.metrics.infidelity."""
        return False

    def _result(self, maps: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns maps in the layer's type, and warns of degenerate examples."""
        broken = maps.isnan().flatten(1).any(1)  # (N,)
        self._warn(broken, "NaN: an activation, a gradient or a score is not finite")
        constant = is_constant(maps)[:, 0]
        self._warn(constant, "constant: they have one value everywhere")
        if not dtype.is_floating_point:  # an integer image as the layer's input
            return maps.contiguous()
        # Unscaled maps may leave the range of a half type.
        largest = min(torch.finfo(dtype).max, torch.finfo(maps.dtype).max)
        clipped = (maps.abs() > largest).flatten(1).any(1)
        self._warn(clipped, f"clipped to {largest:.4g}, the largest {dtype}")
        return maps.clamp(-largest, largest).to(dtype).contiguous()

    def _warn(self, concerned: Tensor, reason: str) -> None:
        examples = concerned.nonzero().flatten().tolist()
        if examples:
            shown = ", ".join(map(str, examples[:LISTED_EXAMPLES]))
            more = ", ..." if len(examples) > LISTED_EXAMPLES else ""
            warn_user(
                f"{self.get_name()}: the maps of examples [{shown}{more}] are {reason}."
            )


class CAMAttribution(MapAttribution, LayerAttribution):
    """A layer attribution with one map for each example, (N, 1, *layer_size)."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Layers,
        device_ids: list[int] | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        r"""
        Args:
            forward_func (Callable or torch.nn.Module): The model, or any function of
                the inputs that runs it.
            layer (torch.nn.Module, str, or list of them): The layer whose channels make
                the map, or its dotted name, such as ``"layer4.1"``, if ``forward_func``
                is a module. :func:`.find_layer` finds one. For a list, the attributions
                are a tuple, one for each layer: one forward and one backward pass of
                the unmasked examples serve all layers, and the perturbed passes are
                made for each.
            device_ids (list[int], optional): Only if ``forward_func`` applies a
                DataParallel model without being one. Default: None
            reshape_transform (Callable, optional): A function from the layer's tensor
                to (N, K, *spatial), for layers of another form, such as
                :func:`.vit_reshape` for tokens and :func:`.swin_reshape` for channels
                that come last; it is applied to activations and gradients. Default:
                None, for a layer that is (N, K, *spatial) already

        Raises:
            TypeError: If ``layer`` is neither a module nor a name,
                ``reshape_transform`` is not callable, or ``forward_func`` is not the
                module to look a name up in.
            ValueError: If ``forward_func`` has no layer of this name, or a list is
                empty.
        """
        check_callable("reshape_transform", reshape_transform)
        found = resolved_layers(forward_func, layer)
        LayerAttribution.__init__(self, forward_func, found, device_ids)
        for base in (GradientAttribution, PerturbationAttribution):
            if isinstance(self, base):
                base.__init__(self, forward_func)
        self.reshape_transform = reshape_transform

    def _call(
        self,
        inputs: Tensor | tuple[Tensor, ...] | LayerCall,
        target: TargetType,
        additional_forward_args: object,
        attribute_to_layer_input: bool,
    ) -> LayerCall:
        """Bundles the model and the common arguments, read at the time of the call.

        A union gives its own call as the inputs of its parts, which share its passes.
        """
        own = {
            "layer": resolved_layers(self.forward_func, self.layer),  # may be assigned
            # DataParallel on the CPU has no devices, and needs none.
            "device_ids": self.device_ids or None,
            "attribute_to_layer_input": attribute_to_layer_input,
            "reshape_transform": self.reshape_transform,
        }
        if isinstance(inputs, LayerCall):
            return inputs.like(forward_func=self.forward_func, **own)
        return LayerCall.prepare(
            self.forward_func, inputs, target, additional_forward_args, **own
        )

    def _attributions(
        self, layers: Sequence[LayerTensor], maps: Iterable[Tensor]
    ) -> Tensor | tuple[Tensor, ...]:
        """Returns the maps of all layers in the form of Captum's attributions."""
        pairs = zip(layers, maps, strict=True)
        results = [self._result(one, layer.dtype) for layer, one in pairs]
        attributions: Tensor | tuple[Tensor, ...]
        attributions = layers[0].call.formatted(layers, results)
        return attributions


class PerturbingCAM(CAMAttribution, PerturbationAttribution):
    """A CAM that runs the model on perturbed examples."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Layers,
        device_ids: list[int] | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        r"""
        Args:
            forward_func, layer, device_ids, reshape_transform: See
                :class:`GradientCAM`.
            memory_format (torch.memory_format, optional): Of the perturbed images;
                ``torch.preserve_format`` keeps that of ``inputs``. Default: None, which
                is ``torch.channels_last``, the fastest for convolutions, if the model
                has the same outputs for the unmasked images in it, and else that of
                ``inputs``; the passes that found this out are then repeated

        Raises:
            TypeError: If ``memory_format`` is not one, or as :class:`GradientCAM`.
            ValueError: As :class:`GradientCAM`.
        """
        super().__init__(
            forward_func, layer, device_ids, reshape_transform=reshape_transform
        )
        check_instance("memory_format", memory_format, torch.memory_format)
        self.memory_format = memory_format

    def _options(self, show_progress: bool, **options: Any) -> ScoringOptions:
        """Bundles and checks the options of a call."""
        progress = self.get_name() if show_progress else None
        return ScoringOptions(
            progress=progress, memory_format=self.memory_format, **options
        )


class ScoringCAM(PerturbingCAM):
    """A CAM that scores masked inputs, by the model or by a scoring function."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Layers,
        device_ids: list[int] | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
        scoring_func: Callable[..., Any] | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        r"""
        Args:
            forward_func, layer, device_ids, reshape_transform: See
                :class:`GradientCAM`.
            scoring_func (Callable, optional): A faster function with the outputs of
                ``forward_func``, for the masked passes, such as
                ``torch.compile(model, dynamic=True)``. The layer is still read from
                ``forward_func``. It costs one more forward pass of the batch. Default:
                None, which is ``forward_func``
            memory_format: See :class:`AblationCAM`.

        Raises:
            TypeError: If ``scoring_func`` is not callable, or as :class:`AblationCAM`.
            ValueError: As :class:`GradientCAM`.
        """
        super().__init__(
            forward_func,
            layer,
            device_ids,
            reshape_transform=reshape_transform,
            memory_format=memory_format,
        )
        check_callable("scoring_func", scoring_func)
        self.scoring_func = scoring_func

    def _scorer(self, layer: LayerTensor, options: ScoringOptions) -> MaskScorer:
        """Returns what scores maps of a layer's rank, once it has scored the inputs."""
        output = layer.output if self.scoring_func is None else None
        call = layer.call.scored_by(self.scoring_func)
        return MaskScorer(call, layer.activations.dim(), options, output)

    def _warn_of_fidelity(self, reached: Tensor, options: ScoringOptions) -> None:
        """Warns of examples that ``max_channels`` kept from the fidelity asked for."""
        if options.fidelity < 1:
            self._warn(
                reached < options.fidelity,
                f"below the `fidelity` of {options.fidelity}, by the estimate, after "
                f"{options.max_channels} scored channels; raise `max_channels`",
            )


def weighted_map(weights: Tensor, activations: Tensor, *evidence: Tensor) -> Tensor:
    """Returns L = ReLU(sum_k w_k * A_k), (N, 1, *spatial), in float32 or float64.

    The ReLU is CAM's convention that negative evidence is not shown; after a ReLU layer
    with non-negative weights it changes nothing. An example whose activations or
    further evidence are not finite is all NaN.

    Args:
        weights (Tensor): A number for each channel, (N, K), or for each of its
            positions, (N, K, *spatial).
        activations (Tensor): The layer's channels, (N, K, *spatial).
        evidence (Tensor): What the weights come from, (N, ...) each.
    """
    if weights.dim() == 2:
        # (N, K, 1, ...), which broadcasts over the positions.
        weights = weights.view(*weights.shape, *[1] * (activations.dim() - 2))
    # Not a matrix product, which autocast would run in half precision.
    summed = (weights * activations).sum(1, keepdim=True)  # (N, 1, *spatial)
    return nan_unless_finite(F.relu(summed), activations, *evidence)


def nan_unless_finite(maps: Tensor, *evidence: Tensor) -> Tensor:
    """Makes the map of an example all NaN if any evidence of it is not finite.

    ``evidence`` are tensors of any shape whose first dimension is the examples'.
    """
    finite = torch.stack(
        [
            values.isfinite().unsqueeze(-1).flatten(1).all(1).to(maps.device)
            for values in (maps, *evidence)
        ]
    ).all(
        0
    )  # (N,)
    return torch.where(finite.view(-1, *[1] * (maps.dim() - 1)), maps, torch.nan)
