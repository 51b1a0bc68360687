"""IntegratedGradCAM: Grad-CAM summed along the path from a baseline to the input."""

from collections.abc import Iterable, Iterator
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_unioncam._baselines import Baselines, format_baselines
from captum_unioncam._captum import (
    INTEGRATION_METHODS,
    TargetType,
    attribution_method,
    integration_steps,
)
from captum_unioncam._checks import check_choice, check_integer
from captum_unioncam._layer_call import LayerCall
from captum_unioncam._maps import as_floats, in_type, spatial_dims
from captum_unioncam.attr._base import nan_unless_finite, weighted_map
from captum_unioncam.attr._sampled_gradient_cam import (
    SampledGradientCAM,
    check_alterable,
    is_alterable,
)

# Of the authors' code: the steps of the path, and the rule that places them.
N_STEPS = 50
METHOD = "riemann_left"


class IntegratedGradCAM(SampledGradientCAM):
    r"""Shows where a layer supports the target, on the way to the input.

    The maps of Grad-CAM are summed along a straight path from a baseline:

    .. math::
        L = \sum_{i=1}^{n} \delta_i \, \mathrm{ReLU} \sum_k
        \mathrm{mean}_{ab}\big(g^k_{ab}(x_i)\big) \, A_k(x_i), \quad
        x_i = b + \alpha_i (x - b)

    where :math:`A_k` is the k-th channel of ``layer``, :math:`g^k` the gradient of the
    raw output at ``target`` with respect to it, x the input, b the baseline, and
    :math:`\alpha_i` and :math:`\delta_i` are the points and the step sizes of
    ``method``.

    Reference: Sattarzadeh et al., Integrated Grad-CAM: Sensitivity-Aware Visual
    Explanation of Deep Convolutional Networks via Integrated Gradient-Based Scoring,
    ICASSP 2021, arXiv:2102.07805.

    Note: There are two readings. The equation above is the authors' code. The paper
    integrates along the change of the activations, and rectifies the sum:

    .. math::
        L = \mathrm{ReLU} \sum_{i=1}^{n} \delta_i \sum_k
        \mathrm{mean}_{ab}\big(g^k_{ab}(x_i)\big) \, \big(A_k(x_i) - A_k(b)\big)

    which is ``relative=True``.

    Note: Deviates from the authors' code by a positive factor: the step sizes, 1/n in
    most rules, are factors of the maps.

    Cost: 50 forward and backward passes of the batch by default, one for each of the
    ``n_steps``; 1 more forward pass if ``relative``.
    """

    @attribution_method
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object = None,
        attribute_to_layer_input: bool = False,
        *,
        n_steps: int = N_STEPS,
        method: str = METHOD,
        relative: bool = False,
        baselines: Baselines = None,
        perturbations_per_eval: int = 1,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first. Every
                floating one starts at its baseline, and every integer image, (N, C,
                *spatial), in rounded steps. Other integers, such as tokens, and
                booleans pass unchanged.
            target (int, tuple, Tensor or list, optional): Output index to explain, one
                for all examples or one for each, in the forms of
                :meth:`captum.attr.LayerGradCam.attribute`. Default: None, for models
                that return one value for each example; it never means the predicted
                class
            additional_forward_args (Any, optional): Further arguments of the model,
                after the inputs, the same at all steps. A list is one argument. A
                tensor with as many rows as there are examples follows its example.
                Default: None
            attribute_to_layer_input (bool, optional): Explain the layer's input in
                place of its output. Default: False
            n_steps (int, optional): Steps of the integral, at least 2. Default: 50, the
                authors'
            method (str, optional): Rule of the integral, one of those of
                :class:`captum.attr.IntegratedGradients`: ``"riemann_left"``,
                ``"riemann_right"``, ``"riemann_middle"``, ``"riemann_trapezoid"`` or
                ``"gausslegendre"``. Default: ``"riemann_left"``, the authors'
            relative (bool, optional): Take the activations minus those of the baseline,
                and rectify the sum, as the paper does. Default: False, the authors'
                code
            baselines (Tensor, int, float, or tuple of them, optional): Where the path
                starts, in the forms of Captum's IntegratedGradients, broadcast to the
                inputs: ``(0 - mean) / std`` of shape (1, 3, 1, 1) is black for
                normalised images. Default: None, which is 0: black for images in
                [0, 1], but the mean colour for normalised ones
            perturbations_per_eval (int, optional): Steps of each example in one forward
                and backward pass; only rounding depends on it. Default: 1
            grad_kwargs (dict, optional): Keywords for torch.autograd.grad, as of
                :class:`GradCAM`. Default: None

        Returns:
            *Tensor* of **attributions**, (N, 1, *layer_size), >= 0, not scaled,
            detached, of the layer's type; a tuple of them if the layer has several
            tensors, or ``layer`` is a list. An example whose activations or gradients
            are not finite is all NaN; such examples, and constant maps, give a warning
            that names them.

        Raises:
            ValueError: If ``n_steps`` is less than 2, there is no such ``method``,
                ``baselines`` do not fit, ``perturbations_per_eval`` is not positive, no
                input has a path, or the layer is not spatial.

        Examples::

            >>> import torch
            >>> from captum_unioncam import IntegratedGradCAM
            >>> conv = torch.nn.Conv2d(3, 4, 3)
            >>> head = torch.nn.LazyLinear(2)
            >>> net = torch.nn.Sequential(conv, torch.nn.Flatten(), head)
            >>> cam = IntegratedGradCAM(net, conv)
            >>> cam.attribute(torch.rand(2, 3, 8, 8), target=1, n_steps=10).shape
            torch.Size([2, 1, 6, 6])
        """
        check_integer("n_steps", n_steps, 2)
        check_choice("method", method, INTEGRATION_METHODS)
        check_integer("perturbations_per_eval", perturbations_per_eval)
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        check_alterable(call.inputs)
        starts = tuple(
            start if is_alterable(inp) else None
            for inp, start in zip(
                call.inputs, format_baselines(baselines, call.inputs), strict=True
            )
        )
        points, sizes = zip(*integration_steps(method, n_steps), strict=True)
        copies = path_copies(call.inputs, starts, points)
        references: Iterable[Tensor | None] = repeat(None)
        if relative:
            references = _activations_at(call, starts)
        totals: list[Tensor] = []
        samples = self._samples(call, copies, perturbations_per_eval, grad_kwargs)
        for size, sample in zip(sizes, samples, strict=True):
            maps = [
                size * step_map(tensor.activations, tensor.gradients, reference)
                for tensor, reference in zip(sample, references)
            ]
            totals = [a + b for a, b in zip(totals, maps)] if totals else maps
        return self._attributions(
            sample, [nan_unless_finite(F.relu(total)) for total in totals]
        )


def step_map(
    activations: Tensor, gradients: Tensor, reference: Tensor | None
) -> Tensor:
    """Returns the map at a point of the path, (N, 1, *spatial).

    Args:
        activations, gradients (Tensor): Of the layer at the point, (N, K, *spatial).
        reference (Tensor, optional): The activations at the baseline, of the same
            shape, for a map of either sign that is relative to them.
    """
    weights = gradients.mean(spatial_dims(gradients), keepdim=True)  # (N, K, 1, ...)
    if reference is None:
        return weighted_map(weights, activations, gradients)
    summed = (weights * (activations - reference)).sum(1, keepdim=True)
    return nan_unless_finite(summed, activations, reference, gradients)


def path_copies(
    inputs: tuple[Tensor, ...],
    starts: tuple[Tensor | None, ...],
    points: Iterable[float],
) -> Iterator[tuple[Tensor, ...]]:
    """Yields a batch at points of its path, from the starts, 0, to the inputs, 1."""
    for point in points:
        yield tuple(
            inp if start is None else _between(inp, start, point)
            for inp, start in zip(inputs, starts, strict=True)
        )


def _between(inp: Tensor, start: Tensor, point: float) -> Tensor:
    values = as_floats(inp)
    return in_type(torch.lerp(start.to(values), values, point), inp.dtype)


def _activations_at(call: LayerCall, starts: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Returns the activations of the layer's tensors at the start of the path."""
    (inputs,) = path_copies(call.inputs, starts, [0.0])
    return [tensor.activations for tensor in call.copies(inputs, 1).tensors()]
