"""Augmented Grad-CAM, fused layers and contrasts in loops: slow references.

Written from the equations with numpy only, in float64, for one example at a time. It
imports nothing from ``captum_unioncam``. An augmentation is (rotation, (right, down),
flip, gain); positions are pixels from the centre of the image, x to the right and y
down.
"""

import math

import numpy as np
from reference import resize


def place_in_copy(x, y, augmentation, size):
    """Where a pixel is in the copy: flipped, then rotated, then shifted."""
    angle, (right, down), flip, _ = augmentation
    x = -x if flip else x
    x, y = (
        math.cos(angle) * x + math.sin(angle) * y,
        -math.sin(angle) * x + math.cos(angle) * y,
    )
    return x + right * size[1], y + down * size[0]


def place_in_image(x, y, augmentation, size):
    """Where a pixel of the copy is from: shifted back, turned back, flipped back."""
    angle, (right, down), flip, _ = augmentation
    x, y = x - right * size[1], y - down * size[0]
    x, y = (
        math.cos(angle) * x - math.sin(angle) * y,
        math.sin(angle) * x + math.cos(angle) * y,
    )
    return (-x if flip else x), y


def read(array, x, y, clamped=False):
    """Bilinear value at a place; pixels outside are 0, or the nearest ones inside."""
    height, width = array.shape
    column, row = x + (width - 1) / 2, y + (height - 1) / 2
    if clamped:
        column = min(max(column, 0), width - 1)
        row = min(max(row, 0), height - 1)
    total = 0.0
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += (1 - abs(row - i)) * (1 - abs(column - j)) * array[i, j]
    return total


def centred(size):
    """Every pixel, with its place from the centre."""
    for i in range(size[0]):
        for j in range(size[1]):
            yield (i, j), j - (size[1] - 1) / 2, i - (size[0] - 1) / 2


def copy_of(image, augmentation):
    """The copy of an image, (C, H, W)."""
    copy = np.zeros_like(image)
    for channel in range(len(image)):
        for index, x, y in centred(image.shape[1:]):
            place = place_in_image(x, y, augmentation, image.shape[1:])
            copy[(channel, *index)] = augmentation[3] * read(image[channel], *place)
    return copy


def turned_back(array, augmentation):
    """A map of the copy as one of the image, and the pixels that the copy shows."""
    values, shown = np.zeros_like(array), np.zeros(array.shape, bool)
    height, width = array.shape
    for index, x, y in centred(array.shape):
        place = place_in_copy(x, y, augmentation, array.shape)
        values[index] = read(array, *place, clamped=True)
        shown[index] = abs(place[0]) <= width / 2 and abs(place[1]) <= height / 2
    return values, shown


def united(maps, augmentations, size, combine):
    """The mean or the maximum over the copies that show a pixel, (H, W)."""
    turned = [
        turned_back(resize(np.maximum(one, 0), size), augmentation)
        for one, augmentation in zip(maps, augmentations, strict=True)
    ]
    result = np.zeros(size)
    for index, _, _ in centred(size):
        seen = [values[index] for values, shown in turned if shown[index]]
        if seen:
            result[index] = max(seen) if combine == "max" else sum(seen) / len(seen)
    return result


def projections(augmentations, size, layer_size):
    """D T_l as matrices, (L, h * w, H * W), column by column."""
    matrices = np.zeros((len(augmentations), np.prod(layer_size), np.prod(size)))
    for copy, augmentation in enumerate(augmentations):
        for pixel in range(np.prod(size)):
            impulse = np.zeros(np.prod(size))
            impulse[pixel] = 1
            moved = copy_of(impulse.reshape(1, *size), (*augmentation[:3], 1.0))[0]
            matrices[copy, :, pixel] = resize(moved, layer_size).ravel()
    return matrices


def super_resolution(maps, augmentations, size, steps=200, rate=0.001):
    """The fine map after Adam's steps from 0, (H, W)."""
    matrices = projections(augmentations, size, maps[0].shape)
    count = len(maps)
    fine = np.zeros(size)
    mean, square = np.zeros(size), np.zeros(size)
    for step in range(1, steps + 1):
        gradient = 2 * 0.0001 * count * fine
        for matrix, one in zip(matrices, maps, strict=True):
            positive = np.maximum(one, 0)
            error = matrix @ fine.ravel() - positive.ravel() / positive.max()
            gradient += (2 * matrix.T @ error).reshape(size)
        for i in range(size[0]):
            for j in range(size[1]):
                for k, m in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                    if 0 <= k < size[0] and 0 <= m < size[1]:
                        slope = np.sign(fine[i, j] - fine[k, m])
                        gradient[i, j] += 0.002 * count * slope
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        unbiased = np.sqrt(square / (1 - 0.999**step))
        fine = fine - rate * (mean / (1 - 0.9**step)) / (unbiased + 1e-8)
    return np.maximum(fine, 0)


def fused(maps, size, how, gamma):
    """The fusion of the maps of several layers, (*size)."""
    prepared = []
    for one in maps:
        span = one.max() - one.min()
        scaled = (one - one.min()) / span if span else np.zeros_like(one)
        if gamma is not None:
            scaled = np.tanh(gamma * scaled)
        prepared.append(resize(scaled, size))
    result = np.zeros(size)
    for index in np.ndindex(*size):
        values = [one[index] for one in prepared]
        result[index] = {
            "max": max(values),
            "mean": sum(values) / len(values),
            "product": math.prod(values),
        }[how]
    return result


def contrasts(logits, references, gamma, weighting="mean"):
    """Each logit less that of its nearest others, (C,); no two may be equally far."""
    result = []
    for c, own in enumerate(logits):
        others = [other for j, other in enumerate(logits) if j != c]
        nearest = sorted(others, key=lambda other: abs(other - own))[:references]
        if weighting == "mean":
            reference = sum(nearest) / references
        else:
            shares = [math.exp(other) for other in nearest]
            products = [s * n for s, n in zip(shares, nearest, strict=True)]
            reference = sum(products) / sum(shares)
        result.append(own - gamma * reference)
    return np.array(result)
