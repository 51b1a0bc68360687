"""SmoothGradCAMPlusPlus: Grad-CAM++ with derivatives averaged over noisy inputs."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from captum_unioncam._captum import TargetType, attribution_method
from captum_unioncam._checks import check_instance, check_integer, check_number
from captum_unioncam._maps import as_floats, in_type
from captum_unioncam.attr._base import weighted_map
from captum_unioncam.attr._sampled_gradient_cam import (
    SampledGradientCAM,
    check_alterable,
    is_alterable,
)
from captum_unioncam.attr.grad_cam_plus_plus import plus_plus_weights

# Within what SmoothGrad recommends for the noise, 10 to 20 % of the range.
NUM_SAMPLES = 25
STD = 0.15


class SmoothGradCAMPlusPlus(SampledGradientCAM):
    r"""Shows where a layer supports the target, by derivatives that noise smooths.

    As :class:`GradCAMPlusPlus`, with means over noisy copies of the input in place of
    the powers of the gradient:

    .. math::
        L &= \mathrm{ReLU} \sum_k w_k A_k, \quad
        w_k = \sum_{ij} \alpha^k_{ij} \, \mathrm{ReLU}(D^{k,1}_{ij}) \\
        \alpha^k_{ij} &= \frac{D^{k,2}_{ij}}
        {2 D^{k,2}_{ij} + \sum_{ab} A^k_{ab} \, D^{k,3}_{ij}}, \quad
        D^{k,p}_{ij} = \frac{1}{n} \sum_{m=1}^{n} (g^{k,m}_{ij})^p

    where :math:`A_k` is the k-th channel of ``layer`` for the input itself,
    :math:`g^{k,m}` the gradient of the raw output at ``target`` with respect to it for
    the input plus the m-th noise, and n is ``num_samples``.

    Reference: Omeiza et al., Smooth Grad-CAM++: An Enhanced Inference Level
    Visualization Technique for Deep Convolutional Neural Network Models, 2019,
    arXiv:1908.01224.

    Note: Deviates from the printed formula, whose numerator is :math:`D^{k,1}`: with
    :math:`D^{k,2}` the map without noise is that of :class:`GradCAMPlusPlus`, to the
    last bit where each copy has a pass of its own.

    Note: Sources agree neither on the number of samples nor on the noise. Its standard
    deviation is ``std`` times the range of the example, its largest value minus its
    smallest, of each input on its own, as in SmoothGrad.

    Note: All examples of a batch share the noise maps, times their own ranges: a map
    does not depend on the rest of its batch.

    Note: Captum's NoiseTunnel around :class:`GradCAMPlusPlus` is another method: it
    averages the maps of the noisy copies, where this one averages the derivatives, and
    weighs the activations of the input itself.

    Note: The weight of a position whose gradients are 0 or 0 on average, or with a
    denominator of zero, is 0.

    Cost: 26 forward and 25 backward passes of the batch by default: 1 forward pass, and
    1 forward and 1 backward pass for each of the ``num_samples``.
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
        perturbations_per_eval: int = 1,
        grad_kwargs: dict[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): Model inputs, batch first. Every
                floating one gets noise, and every integer image, (N, C, *spatial),
                which is rounded and kept within its type's range. Other integers, such
                as tokens, and booleans pass unchanged.
            target (int, tuple, Tensor or list, optional): Output index to explain, one
                for all examples or one for each, in the forms of
                :meth:`captum.attr.LayerGradCam.attribute`. Default: None, for models
                that return one value for each example; it never means the predicted
                class
            additional_forward_args (Any, optional): Further arguments of the model,
                after the inputs, without noise. A list is one argument. A tensor with
                as many rows as there are examples follows its example. Default: None
            attribute_to_layer_input (bool, optional): Explain the layer's input in
                place of its output. Default: False
            num_samples (int, optional): Noisy copies of each example. Default: 25
            std (float, optional): Standard deviation of the noise, as a share of the
                example's range. Default: 0.15
            generator (torch.Generator, optional): Draws the noise. The global generator
                is never used. Default: None, which is a new one with the seed 0 for
                each call, so that equal calls give equal maps
            perturbations_per_eval (int, optional): Noisy copies of each example in one
                forward and backward pass; only rounding depends on it. Default: 1
            grad_kwargs (dict, optional): Keywords for torch.autograd.grad, as of
                :class:`GradCAM`. Default: None

        Returns:
            *Tensor* of **attributions**, (N, 1, *layer_size), >= 0, not scaled,
            detached, of the layer's type; a tuple of them if the layer has several
            tensors, or ``layer`` is a list. An example whose activations or gradients
            are not finite is all NaN; such examples, and constant maps, give a warning
            that names them.

        Raises:
            ValueError: If ``num_samples`` or ``perturbations_per_eval`` is not
                positive, ``std`` is negative, no input can get noise, or the layer is
                not spatial.

        Examples::

            >>> import torch
            >>> from captum_unioncam import SmoothGradCAMPlusPlus
            >>> conv = torch.nn.Conv2d(3, 4, 3)
            >>> head = torch.nn.LazyLinear(2)
            >>> net = torch.nn.Sequential(conv, torch.nn.Flatten(), head)
            >>> cam = SmoothGradCAMPlusPlus(net, conv)
            >>> cam.attribute(torch.rand(2, 3, 8, 8), target=1, num_samples=4).shape
            torch.Size([2, 1, 6, 6])
        """
        check_integer("num_samples", num_samples)
        check_number("std", std, 0)
        check_instance("generator", generator, torch.Generator)
        check_integer("perturbations_per_eval", perturbations_per_eval)
        call = self._call(
            inputs, target, additional_forward_args, attribute_to_layer_input
        )
        check_alterable(call.inputs)
        copies = noisy_copies(call.inputs, num_samples, std, generator)
        clean = call.tensors()
        totals = [GradientMoments() for _ in clean]
        samples = self._samples(call, copies, perturbations_per_eval, grad_kwargs)
        for sample in samples:
            for moments, tensor in zip(totals, sample, strict=True):
                moments.add(tensor.gradients)
        maps = []
        for layer, moments in zip(clean, totals, strict=True):
            activations, gradients = layer.activations, moments.mean  # D1
            weights = plus_plus_weights(activations, gradients, moments.ratio)
            maps.append(weighted_map(weights, activations, gradients, moments.ratio))
        return self._attributions(clean, maps)


class GradientMoments:
    """The moments of gradients, one sample after another.

    Squares and cubes, which over- and underflow, are never kept. Samples that are all
    equal have their own value as ``mean`` and as ``ratio``, without rounding.

    Attributes:
        mean (Tensor): D1, (N, K, *spatial).
        ratio (Tensor): D3 / D2, the mean of the gradients under their squares as
            weights, of the same shape; 0 where all gradients are 0.
    """

    mean: Tensor
    ratio: Tensor

    def __init__(self) -> None:
        self._count = 0

    def add(self, gradients: Tensor) -> None:
        """Takes the gradients of one more sample."""
        self._count += 1
        if self._count == 1:
            self.mean = self.ratio = gradients
            self._norm = gradients.abs()
            return
        self.mean = self.mean + (gradients - self.mean) / self._count
        self._norm = torch.hypot(self._norm, gradients)  # sqrt(sum of g ** 2)
        # The share of this sample in the sum of the squares so far.
        share = (gradients / torch.where(self._norm == 0, 1, self._norm)).square()
        self.ratio = self.ratio + share * (gradients - self.ratio)


def noisy_copies(
    inputs: tuple[Tensor, ...],
    num_samples: int,
    std: float,
    generator: torch.Generator | None,
) -> Iterator[tuple[Tensor, ...]]:
    """Yields noisy copies of a batch; what noise cannot alter is as it was."""
    generator = generator or torch.Generator().manual_seed(0)
    for _ in range(num_samples):
        yield tuple(
            _with_noise(inp, std, generator) if is_alterable(inp) else inp
            for inp in inputs
        )


def _with_noise(inp: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Adds the same noise to all examples, times the range of each."""
    if inp.is_complex():  # noise on both parts
        return torch.view_as_complex(
            _with_noise(torch.view_as_real(inp), std, generator)
        )
    values = as_floats(inp)
    noise = torch.randn(
        (1, *values.shape[1:]),
        generator=generator,
        device=generator.device,
        dtype=torch.float32,
    )
    return in_type(values + std * value_range(values) * noise.to(values), inp.dtype)


def value_range(values: Tensor) -> Tensor:
    """Returns max - min of the finite values of each example, (N, 1, ...)."""
    flat = values.unsqueeze(-1).flatten(1)  # (N, values)
    finite = flat.isfinite()
    high = torch.where(finite, flat, -torch.inf).amax(1)
    low = torch.where(finite, flat, torch.inf).amin(1)
    spans = torch.where(finite.any(1), high - low, 0)  # (N,)
    return spans.view(-1, *[1] * (values.dim() - 1))
