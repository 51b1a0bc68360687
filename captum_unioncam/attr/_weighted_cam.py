"""What the class activation maps of the package share.

A map is a sum of the layer's channels, each under a weight of its own, with negative
evidence left out. A method brings its weights; validation, degenerate examples and the
form of the result are here.

:class:`GradientCAM` is the template of methods whose weights come from gradients alone.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import (
    GradientAttribution,
    LayerAttribution,
    PerturbationAttribution,
)
from torch import Tensor
from torch.nn import Module

from captum_unioncam._captum import (
    LayerCall,
    ReshapeTransform,
    TargetType,
    attribution_method,
    format_output,
    warn_user,
)
from captum_unioncam._maps import at_least_float32, is_flat
from captum_unioncam.layers import resolved_layer

LISTED_EXAMPLES = 10


class CAMAttribution(LayerAttribution):
    """A layer attribution with one map for each example, (N, 1, *layer_size)."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Module | str,
        device_ids: list[int] | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        r"""
        Args:
            forward_func (Callable or torch.nn.Module): The model, or any function of
                the inputs that runs it.
            layer (torch.nn.Module or str): The layer whose channels make the map, or
                its dotted name where ``forward_func`` is a module, such as
                ``"layer4.1"``. :func:`.find_layer` finds one.
            device_ids (list[int], optional): Only if ``forward_func`` applies a
                DataParallel model without being one. Default: None
            reshape_transform (Callable, optional): From the layer's tensor to (N, K,
                *spatial), such as :func:`.vit_reshape`; applied to
                activations and gradients alike. Default: None, for a layer that is (N,
                K, *spatial) already

        Raises:
            TypeError: If ``layer`` is neither a module nor a name,
                ``reshape_transform`` is not callable, or ``forward_func`` is not the
                module to look a name up in.
            ValueError: If ``forward_func`` has no layer of this name.
        """
        check_callable("reshape_transform", reshape_transform)
        module = resolved_layer(forward_func, layer)
        LayerAttribution.__init__(self, forward_func, module, device_ids)
        self.reshape_transform = reshape_transform

    @classmethod
    def get_name(cls) -> str:
        """Returns the name of the class, for progress bars."""
        return cls.__name__

    @property
    def multiplies_by_inputs(self) -> bool:
        """Is False: a map is local, in the sense of captum.metrics.infidelity."""
        return False

    def _prepare(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType,
        additional_forward_args: object,
        attribute_to_layer_input: bool,
    ) -> LayerCall:
        """Bundles the model and the common arguments, read at the time of the call."""
        return LayerCall.prepare(
            self.forward_func,
            inputs,
            target,
            additional_forward_args,
            layer=self.layer,
            # DataParallel on the CPU has no devices, and needs none.
            device_ids=self.device_ids or None,
            attribute_to_layer_input=attribute_to_layer_input,
            reshape_transform=self.reshape_transform,
        )

    def _deliver(self, maps: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns maps as the user gets them, and warns of degenerate examples."""
        broken = maps.isnan().flatten(1).any(1)
        self._warn(broken, "NaN: an activation, a gradient or a score is not finite")
        self._warn(is_flat(maps)[:, 0], "flat: they have one value everywhere")
        if not dtype.is_floating_point:  # an integer image as the layer's input
            return maps.contiguous()
        # Unscaled maps may leave the range of a half type.
        largest = min(torch.finfo(dtype).max, torch.finfo(maps.dtype).max)
        return maps.clamp(-largest, largest).to(dtype).contiguous()

    def _warn(self, concerned: Tensor, reason: str) -> None:
        examples = concerned.nonzero().flatten().tolist()
        if examples:
            shown = ", ".join(map(str, examples[:LISTED_EXAMPLES]))
            more = ", ..." if len(examples) > LISTED_EXAMPLES else ""
            warn_user(
                f"{self.get_name()}: the maps of examples [{shown}{more}] are {reason}."
            )


class ScoringCAM(CAMAttribution, PerturbationAttribution):
    """A CAM that scores masks, by the model or by a faster function."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Module | str,
        device_ids: list[int] | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
        scoring_func: Callable[..., Any] | None = None,
    ) -> None:
        r"""
        Args:
            forward_func, layer, device_ids, reshape_transform: See
                :class:`GradientCAM`.
            scoring_func (Callable, optional): Computes what ``forward_func`` computes,
                only faster, for the masked passes, such as
                ``torch.compile(model, dynamic=True)``. The layer is read from
                ``forward_func`` all the same. Default: None, which is ``forward_func``

        Raises:
            TypeError: If ``scoring_func`` is not callable, or as :class:`GradientCAM`.
            ValueError: As :class:`GradientCAM`.
        """
        CAMAttribution.__init__(
            self, forward_func, layer, device_ids, reshape_transform=reshape_transform
        )
        PerturbationAttribution.__init__(self, forward_func)
        check_callable("scoring_func", scoring_func)
        self.scoring_func = scoring_func


class GradientCAM(CAMAttribution, GradientAttribution, ABC):
    """Template of a CAM by gradients: a subclass defines :meth:`weights`, no more.

    Cost: 1 forward and 1 backward pass of the batch.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: Module | str,
        device_ids: list[int] | None = None,
        *,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        CAMAttribution.__init__(
            self, forward_func, layer, device_ids, reshape_transform=reshape_transform
        )
        GradientAttribution.__init__(self, forward_func)

    __init__.__doc__ = CAMAttribution.__init__.__doc__

    @abstractmethod
    def weights(self, activations: Tensor, gradients: Tensor) -> Tensor:
        """Returns the weights of the layer's channels: the equation of the method.

        Args:
            activations (Tensor): The layer's channels, (N, K, *spatial), in float32 or
                float64.
            gradients (Tensor): The gradients of the raw output at the target with
                respect to them, of the same shape and type.

        Returns:
            *Tensor*, a number for each channel, (N, K), or for each of its positions,
            (N, K, *spatial).
        """

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first.
            target (int, tuple, Tensor or list, optional): Output index to explain, in
                the forms of :meth:`captum.attr.LayerGradCam.attribute`. Default: None
            additional_forward_args (Any, optional): Further arguments of the model,
                after the inputs. A list is one argument. Default: None
            attribute_to_layer_input (bool, optional): Explain the layer's input in
                place of its output. Default: False
            grad_kwargs (dict, optional): Keywords for torch.autograd.grad. By default
                ``materialize_grads`` is on: a layer that the output does not depend on
                gets zero gradients. So does a layer inside of a reentrant checkpoint:
                pass ``{"materialize_grads": False}`` to get PyTorch's error. Default:
                None

        Returns:
            *Tensor* of **attributions**, (N, 1, *layer_size), >= 0, not scaled,
            detached, of the layer's type; a tuple of them if the layer has several
            tensors. An example whose activations or gradients are not finite is all
            NaN; such examples, and flat maps, give a warning that names them.

        Raises:
            ValueError: If the layer is not spatial, or has tokens or channels in the
                last place without a ``reshape_transform``.

        Examples::

            >>> import torch
            >>> from captum_unioncam import LayerCAM
            >>> conv = torch.nn.Conv2d(3, 4, 3)
            >>> head = torch.nn.LazyLinear(2)
            >>> net = torch.nn.Sequential(conv, torch.nn.Flatten(), head)
            >>> LayerCAM(net, conv).attribute(torch.rand(2, 3, 8, 8), target=1).shape
            torch.Size([2, 1, 6, 6])
        """
        call = self._prepare(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        return self._explain(call, self.weights, grad_kwargs)

    def _explain(
        self,
        call: LayerCall,
        weights: Callable[[Tensor, Tensor], Tensor],
        grad_kwargs: dict[str, Any] | None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Weighs the channels of each of the layer's tensors by their gradients."""
        pairs = zip(*call.activations_and_gradients(grad_kwargs), strict=True)
        return format_output(
            tuple(
                self._deliver(gradient_map(weights, *pair), pair[0].dtype)
                for pair in pairs
            )
        )


def gradient_map(
    weights: Callable[[Tensor, Tensor], Tensor], activations: Tensor, gradients: Tensor
) -> Tensor:
    """Returns the map under weights from gradients, NaN where the evidence is."""
    channels = at_least_float32(activations)
    summed = weighted_map(weights(channels, at_least_float32(gradients)), channels)
    return nan_unless_finite(summed, activations, gradients)


def weighted_map(weights: Tensor, activations: Tensor) -> Tensor:
    """Returns L = ReLU(sum_k w_k * A_k), (N, 1, *spatial), in float32 or float64.

    The ReLU is CAM's convention that negative evidence is not shown; after a ReLU layer
    with non-negative weights it changes nothing.

    Args:
        weights (Tensor): A number for each channel, (N, K), or for each of its
            positions, (N, K, *spatial).
        activations (Tensor): The layer's channels, (N, K, *spatial).
    """
    if weights.dim() == 2:
        weights = weights.view(*weights.shape, *[1] * (activations.dim() - 2))
    # Not a matrix product, which autocast would run in half precision.
    products = at_least_float32(weights) * at_least_float32(activations)
    return F.relu(products.sum(1, keepdim=True))


def nan_unless_finite(maps: Tensor, *evidence: Tensor) -> Tensor:
    """Makes the map of an example all NaN if any evidence of it is not finite.

    ``evidence`` are tensors of any shape whose first dimension is the examples'.
    """
    finite = torch.stack(
        [
            values.isfinite().unsqueeze(-1).flatten(1).all(1).to(maps.device)
            for values in (maps, *evidence)
        ]
    ).all(0)
    return torch.where(finite.view(-1, *[1] * (maps.dim() - 1)), maps, torch.nan)


def check_callable(name: str, value: object) -> None:
    """Refuses anything but None and a callable."""
    if value is not None and not callable(value):
        raise TypeError(f"`{name}` must be a callable or None, got {value!r}.")


def check_positive(name: str, value: int | None, or_none: bool = True) -> None:
    """Refuses anything but a positive int, and None where it is allowed."""
    if value is None and or_none:
        return
    rule = f"`{name}` must be a positive int{' or None' if or_none else ''}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{rule}, got {value!r} ({type(value).__name__}).")
    if value < 1:
        raise ValueError(f"{rule}, got {value}.")


def check_number(name: str, value: float, low: float, high: float) -> None:
    """Refuses anything but a finite number within bounds."""
    bounds = f"in [{low}, {high}]" if math.isfinite(high) else f">= {low} and finite"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number {bounds}, got {value!r}.")
    if not low <= value <= high or not math.isfinite(value):  # NaN too
        raise ValueError(f"`{name}` must be {bounds}, got {value}.")
