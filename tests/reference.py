"""The paper in loops: a slow, independent reference in float64, one example at a time.

Written from the equations of Hu et al. 2024 with numpy only. It imports nothing from
``captum_unioncam``; torch runs the model, and nothing else. Arrays are channels first:
a map is (*spatial), activations and gradients are (K, *spatial), an input is (C,
*size).
"""

import itertools

import numpy as np
import torch
from reference_prediction import channel_scores


def resize_line(line, size):
    """Linear interpolation of a 1-D array, corners not aligned."""
    length = len(line)
    out = np.empty(size)
    for i in range(size):
        centre = max((i + 0.5) * length / size - 0.5, 0.0)
        left = min(int(np.floor(centre)), length - 1)
        right = min(left + 1, length - 1)
        weight = centre - left
        out[i] = (1 - weight) * line[left] + weight * line[right]
    return out


def resize(array, size):
    """Separable linear interpolation of an array to ``size``."""
    for axis, length in enumerate(size):
        array = np.apply_along_axis(resize_line, axis, array, length)
    return array


def to_mask(array, size):
    """Resized first, then scaled to [0, 1]; a constant map gives zeros."""
    if array.max() == array.min():
        return np.zeros(size)
    large = resize(array, size)
    if large.max() == large.min():
        return np.zeros(size)
    return (large - large.min()) / (large.max() - large.min())


def relu(array):
    return np.where(array > 0, array, 0.0)


def denoising(activations, gradients, theta):
    """Eqs. 1 to 3, channel by channel and position by position."""
    total = np.zeros(activations.shape[1:])
    for activation, gradient in zip(activations, gradients):
        threshold = np.percentile(gradient, theta)
        kept = np.where(gradient >= threshold, gradient, 0.0)
        positive_sum = sum(w for w in kept.flat if w > 0)
        for index in itertools.product(*map(range, activation.shape)):
            alpha = 1 / positive_sum if kept[index] > 0 else 0.0
            total[index] += alpha * max(kept[index], 0.0) * activation[index]
    return relu(total)


class Model:
    """A torch model as the functions that the paper's equations need."""

    def __init__(self, net, layer, target, score="softmax", args=()):
        self.net, self.layer, self.target = net, layer, target
        self.score, self.args = score, args

    def output(self, image):
        with torch.no_grad():
            tensors = [torch.from_numpy(np.array(part))[None] for part in image]
            return self.net(*tensors, *self.args)[0].numpy()

    def confidence(self, image):
        output = self.output(image)
        if self.score == "softmax":
            shifted = np.exp(output - output.max(axis=0))
            output = shifted / shifted.sum(axis=0)
        elif self.score == "sigmoid":
            output = 1 / (1 + np.exp(-output))
        return float(output[self.target])

    def activations_and_gradients(self, image):
        kept = {}

        def keep(module, inputs, output):
            output = output.clone().requires_grad_()
            kept["activation"] = output
            return output * 1

        handle = self.layer.register_forward_hook(keep)
        try:
            tensors = [torch.from_numpy(np.array(part))[None] for part in image]
            score = self.net(*tensors, *self.args)[0][self.target]
        finally:
            handle.remove()
        (gradient,) = torch.autograd.grad(
            score, kept["activation"], allow_unused=True, materialize_grads=True
        )
        return kept["activation"].detach()[0].numpy(), gradient[0].numpy()


def masked(image, array, baseline):
    """Each input of the map's rank under the map as its mask: m * x + (1 - m) * b."""
    out = []
    for part, base in zip(image, baseline):
        if part.ndim == array.ndim + 1:
            mask = to_mask(array, part.shape[1:])
            part = np.stack(
                [mask * x + (1 - mask) * b for x, b in zip(part, base, strict=True)]
            )
        out.append(part)
    return out


def region(model, image, baseline, activations, max_channels=None):
    """L_region: each channel weighs what the model says of the input under it."""

    def score(k):
        return model.confidence(masked(image, activations[k], baseline))

    empty = model.confidence(masked(image, np.zeros_like(activations[0]), baseline))
    scores, _, _ = channel_scores(score, activations, empty, max_channels)
    total = np.zeros(activations.shape[1:])
    for weight, activation in zip(scores, activations, strict=True):
        total += weight * activation
    return relu(total)


def min_max(array):
    if array.max() == array.min():
        return np.zeros_like(array)
    return (array - array.min()) / (array.max() - array.min())


def union(model, image, baseline, theta=10.0, max_channels=None):
    """Eqs. 1 to 8. Returns everything that UnionCAM reports, in a dict.

    The fusion of Eq. 6 is done at the input's size, on the masks themselves; the map at
    the layer's size is not needed here, since the result is compared as a mask. For
    this reason all masked inputs must have one size.
    """
    activations, gradients = model.activations_and_gradients(image)
    l_denoising = denoising(activations, gradients, theta)
    l_region = region(model, image, baseline, activations, max_channels)
    size = next(p.shape[1:] for p in image if p.ndim == l_region.ndim + 1)

    empty = np.zeros_like(l_region)
    baseline_score = model.confidence(masked(image, empty, baseline))
    beta_denoising = model.confidence(masked(image, l_denoising, baseline))
    beta_region = model.confidence(masked(image, l_region, baseline))
    beta_denoising -= baseline_score
    beta_region -= baseline_score
    mask_denoising = to_mask(l_denoising, size)
    mask_region = to_mask(l_region, size)
    fused = beta_denoising * mask_denoising + beta_region * mask_region  # Eq. 6
    beta_fused = model.confidence(masked(image, fused, baseline)) - baseline_score
    chosen = fused if beta_fused > beta_region else mask_region  # Eq. 8
    return {
        "denoised_map": l_denoising,
        "region_map": l_region,
        "baseline_score": baseline_score,
        "denoised_gain": beta_denoising,
        "region_gain": beta_region,
        "fused_gain": beta_fused,
        "fused_selected": beta_fused > beta_region,
        "fused_mask": min_max(fused),
        "mask": min_max(chosen),
    }
