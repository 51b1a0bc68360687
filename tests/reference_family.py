"""The other CAMs in loops: slow, independent references, like those of ``reference``.

Written from the equations with numpy only, in float64, for one example at a time, with
a loop over every channel and position. It imports nothing from ``captum_unioncam``;
torch runs the model, and nothing else. ``image`` and ``baseline`` are lists with an
array, (C, *size), for each input.
"""

import itertools
import math

import numpy as np
import torch
from reference import masked, min_max, relu, resize, to_mask
from reference_prediction import channel_scores


def positions(array):
    """Every index of a map, in order."""
    return itertools.product(*map(range, array.shape))


def first_size(image, array):
    """The spatial size of the first input that a map can mask."""
    return next(part.shape[1:] for part in image if part.ndim == array.ndim + 1)


def scaled(array, size):
    """The scaling of ``to_mask``, at the map's own size."""
    if array.max() == array.min():
        return np.zeros_like(array)
    large = resize(array, size)
    low, high = large.min(), large.max()
    if low == high:
        return np.zeros_like(array)
    return (array - low) / (high - low)


def sum_of(weights, activations):
    """L = ReLU of the sum of the channels, each under its own number."""
    total = np.zeros(activations.shape[1:])
    for weight, activation in zip(weights, activations, strict=True):
        for index in positions(activation):
            total[index] += weight * activation[index]
    return relu(total)


def mean_of(array):
    return sum(array[index] for index in positions(array)) / array.size


def grad_cam_plus_plus(activations, gradients):
    weights = []
    for activation, gradient in zip(activations, gradients):
        total = sum(activation[index] for index in positions(activation))
        weight = 0.0
        for index in positions(gradient):
            g = gradient[index]
            denominator = 2 * g**2 + total * g**3
            alpha = g**2 / denominator if denominator != 0 else 0.0
            weight += alpha * max(g, 0.0)
        weights.append(weight)
    return sum_of(weights, activations)


def smooth_grad_cam_plus_plus(activations, samples):
    """``samples`` lists the gradients of the noisy copies."""
    weights = []
    for k, activation in enumerate(activations):
        total = sum(activation[index] for index in positions(activation))
        weight = 0.0
        for index in positions(activation):
            noisy = [sample[k][index] for sample in samples]
            d1, d2, d3 = (sum(g**p for g in noisy) / len(noisy) for p in (1, 2, 3))
            denominator = 2 * d2 + total * d3
            alpha = d2 / denominator if denominator != 0 else 0.0
            weight += alpha * max(d1, 0.0)
        weights.append(weight)
    return sum_of(weights, activations)


def value_range(part):
    """The largest value of an input minus the smallest."""
    low, high = math.inf, -math.inf
    for value in part.flat:
        low, high = min(low, value), max(high, value)
    return high - low


def integration_rule(method, steps):
    """The points of a rule in [0, 1], and their step sizes."""
    if method == "gausslegendre":
        roots, shares = np.polynomial.legendre.leggauss(steps)
        return [(root + 1) / 2 for root in roots], [share / 2 for share in shares]
    sizes = [1 / steps] * steps
    if method == "riemann_trapezoid":
        sizes[0] = sizes[-1] = 1 / steps / 2
        return [i / (steps - 1) for i in range(steps)], sizes
    offset = {"riemann_left": 0, "riemann_middle": 0.5, "riemann_right": 1}[method]
    return [(i + offset) / steps for i in range(steps)], sizes


def integrated_grad_cam(samples, sizes, reference=None):
    """``samples`` are activations and gradients at each point of the path.

    The authors' form; with ``reference``, the activations at its start, the paper's.
    """
    total = np.zeros(samples[0][0].shape[1:])
    for (activations, gradients), size in zip(samples, sizes, strict=True):
        step = np.zeros_like(total)
        for k, (activation, gradient) in enumerate(zip(activations, gradients)):
            weight = mean_of(gradient)
            for index in positions(activation):
                start = 0.0 if reference is None else reference[k][index]
                step[index] += weight * (activation[index] - start)
        total += size * (relu(step) if reference is None else step)
    return relu(total)


def x_grad_cam(activations, gradients):
    weights = []
    for activation, gradient in zip(activations, gradients):
        above = below = 0.0
        for index in positions(activation):
            above += gradient[index] * activation[index]
            below += activation[index]
        weights.append(above / below if below != 0 else 0.0)
    return sum_of(weights, activations)


def hi_res_cam(activations, gradients):
    total = np.zeros(activations.shape[1:])
    for activation, gradient in zip(activations, gradients):
        for index in positions(activation):
            total[index] += gradient[index] * activation[index]
    return relu(total)


def layer_cam(activations, gradients):
    total = np.zeros(activations.shape[1:])
    for activation, gradient in zip(activations, gradients):
        for index in positions(activation):
            total[index] += max(gradient[index], 0.0) * activation[index]
    return relu(total)


def grad_cam(activations, gradients):
    """The gradient part of FusionCAM, before its percentile."""
    return sum_of([mean_of(gradient) for gradient in gradients], activations)


def baseline_confidence(model, image, baseline, activations):
    """f(Ib), what the model says under a map that masks all."""
    empty = np.zeros(activations.shape[1:])
    return model.confidence(masked(image, empty, baseline))


def softmax_sum(increases, activations):
    """L, under the softmax of a number for each channel."""
    largest = max(increases)
    shares = [math.exp(value - largest) for value in increases]
    return sum_of([share / sum(shares) for share in shares], activations)


def score_cam(model, image, baseline, activations, count=None, score=None):
    """ScoreCAM; ``score`` replaces the score of one channel, for its successors."""
    if score is None:

        def score(activation):
            return model.confidence(masked(image, activation, baseline))

    f_baseline = baseline_confidence(model, image, baseline, activations)
    scores, _, _ = channel_scores(
        lambda k: score(activations[k]), activations, f_baseline, count
    )
    return softmax_sum([score - f_baseline for score in scores], activations)


def under(image, baseline, masks):
    """The inputs under a mask for each; a mask of None leaves its input alone."""
    out = []
    for part, base, mask in zip(image, baseline, masks, strict=True):
        if mask is not None:
            part = part.copy()
            for channel in range(len(part)):
                for index in positions(mask):
                    m, x, b = mask[index], part[channel][index], base[channel][index]
                    part[channel][index] = m * x + (1 - m) * b
        out.append(part)
    return out


def masks_of(image, array, change):
    """The map as a mask for each input of its rank, changed by ``change``."""
    return [
        (
            change(to_mask(array, part.shape[1:]))
            if part.ndim == array.ndim + 1
            else None
        )
        for part in image
    ]


def ss_cam(model, image, baseline, activations, noise, count=None):
    """SSCAM; ``noise`` maps the size of an input to its noise, (samples, *size)."""
    samples = len(next(iter(noise.values())))

    def score(activation):
        total = 0.0
        for i in range(samples):
            masks = masks_of(image, activation, lambda m: m + noise[m.shape][i])
            total += model.confidence(under(image, baseline, masks))
        return total / samples

    return score_cam(model, image, baseline, activations, count, score)


def is_cam(model, image, baseline, activations, samples=10, count=None):
    def score(activation):
        total = 0.0
        for i in range(1, samples + 1):
            masks = masks_of(image, activation, lambda m: i / samples * m)
            total += model.confidence(under(image, baseline, masks))
        return total / samples

    return score_cam(model, image, baseline, activations, count, score)


def blur_line(line, sigma, radius):
    kernel = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(-radius, radius + 1)]
    total = sum(kernel)
    padded = np.pad(line, radius, mode="reflect")
    out = np.empty(len(line))
    for i in range(len(line)):
        value = 0.0
        for j, weight in enumerate(kernel):
            value += weight / total * padded[i + j]
        out[i] = value
    return out


def blurred(image, rank, sigma=50, radius=25):
    """The inputs of one more dimension than ``rank``, blurred along each of them."""
    out = []
    for part in image:
        if part.ndim == rank + 1:
            for axis in range(1, part.ndim):
                part = np.apply_along_axis(blur_line, axis, part, sigma, radius)
        out.append(part)
    return out


def group_cam(
    model, image, baseline, activations, gradients, groups=32, percentile=70.0
):
    """GroupCAM; a baseline of None is the blurred image."""
    if baseline is None:
        baseline = blurred(image, activations.ndim - 1)
    size = first_size(image, activations[0])
    f_baseline = baseline_confidence(model, image, baseline, activations)
    total = np.zeros(activations.shape[1:])
    channels = np.arange(len(activations))
    for group in np.array_split(channels, min(groups, len(channels))):
        combined = sum_of([mean_of(gradients[k]) for k in group], activations[group])
        threshold = np.percentile(combined, percentile)
        for index in positions(combined):
            if not combined[index] > threshold:
                combined[index] = 0.0
        gain = model.confidence(masked(image, combined, baseline)) - f_baseline
        at_layer = scaled(combined, size)
        for index in positions(total):
            total[index] += gain * at_layer[index]
    return relu(total)


def shares_of(one, other):
    """The weights of two contributions, which sum to 1."""
    if one <= 0 and other <= 0:
        return 0.5, 0.5
    one, other = max(one, 0.0), max(other, 0.0)
    return one / (one + other), other / (one + other)


def drop_below(array, theta):
    """Zeroes the entries of a map that are below its percentile."""
    threshold = np.percentile(array, theta)
    out = np.zeros_like(array)
    for index in positions(array):
        out[index] = array[index] if array[index] >= threshold else 0.0
    return out


def fusion_cam(model, image, baseline, gradient_map, region_map):
    """FusionCAM from its two parts on."""
    size = first_size(image, gradient_map)
    empty = np.zeros_like(gradient_map)
    f_baseline = model.confidence(masked(image, empty, baseline))

    def gain(array):
        return model.confidence(masked(image, array, baseline)) - f_baseline

    g, r = scaled(gradient_map, size), scaled(region_map, size)
    b_g, b_r = gain(gradient_map), gain(region_map)
    w_g, w_r = shares_of(b_g, b_r)
    united = np.empty_like(empty)
    for index in positions(united):
        united[index] = w_g * g[index] + w_r * r[index]
    v_u, v_r = shares_of(gain(united), b_r)
    u = scaled(united, size)
    fused = np.empty_like(empty)
    for index in positions(fused):
        p, q = v_u * u[index], v_r * r[index]
        similarity = min(max(1 - abs(p - q), 0.0), 1.0)
        fused[index] = similarity * max(p, q) + (1 - similarity) * (p + q) / 2
    return min_max(fused)


def confidence_with(model, image, array):
    """What the model says when its layer returns ``array`` in place of its output."""
    handle = model.layer.register_forward_hook(
        lambda module, inputs, output: torch.from_numpy(np.array(array))[None]
    )
    try:
        return model.confidence(image)
    finally:
        handle.remove()


def first_order_effects(activations, gradients):
    """What the output loses without each channel, to first order."""
    return [
        sum(gradient[index] * activation[index] for index in positions(activation))
        for activation, gradient in zip(activations, gradients, strict=True)
    ]


def to_ablate(activations, effects, count):
    """The channels to ablate: all that are not zero, or those that matter most."""
    active = [k for k in range(len(activations)) if activations[k].any()]
    if count is None:
        return active
    return sorted(active, key=lambda k: -abs(effects[k]) * activations[k].std())[:count]


def ablation_cam(model, image, activations, gradients, count=None):
    y = model.confidence(image)
    effects = first_order_effects(activations, gradients)
    ablated = to_ablate(activations, effects, count)
    weights = [0.0] * len(activations)
    for k in ablated:
        without = activations.copy()
        for index in positions(activations[k]):
            without[k][index] = 0.0
        if y != 0:
            weights[k] = (y - confidence_with(model, image, without)) / abs(y)
    squares = sum(effects[k] ** 2 for k in ablated)
    products = sum(effects[k] * weights[k] for k in ablated)
    for k in range(len(activations)):
        if k not in ablated and squares != 0:
            weights[k] = products / squares * effects[k]
    return sum_of(weights, activations)


def recipro_cam(model, image, activations):
    scores = np.empty(activations.shape[1:])
    for index in positions(scores):
        alone = np.zeros_like(activations)
        for k in range(len(activations)):
            alone[k][index] = activations[k][index]
        scores[index] = confidence_with(model, image, alone)
    return min_max(scores)


def cam(weights, activations, target):
    """CAM; ``weights`` are the head's, (classes, K)."""
    return sum_of(weights[target], activations)


def first_singular_vector(channels):
    """v of positions times channels, with the largest entry of the map positive."""
    matrix = np.array(
        [[c[index] for c in channels] for index in positions(channels[0])]
    )
    vector = np.linalg.svd(matrix)[2][0]
    product = matrix @ vector
    return vector * np.sign(product[np.abs(product).argmax()])


def eigen_cam(activations):
    return sum_of(first_singular_vector(activations), activations)


def eigen_grad_cam(activations, gradients):
    products = np.zeros_like(activations)
    for k in range(len(activations)):
        for index in positions(activations[k]):
            products[k][index] = gradients[k][index] * activations[k][index]
    return sum_of(first_singular_vector(products), products)


def recipro_cam_of_neighbours(model, image, activations):
    """ReciproCAM with each position's neighbours, each under its share."""
    scores = np.empty(activations.shape[1:])
    for centre in positions(scores):
        kept = np.zeros_like(activations)
        for index in positions(scores):
            share = 1.0
            for i, c in zip(index, centre, strict=True):
                share *= {0: 0.5, 1: 0.25}.get(abs(i - c), 0.0)
            for k in range(len(activations)):
                kept[k][index] = share * activations[k][index]
        scores[centre] = confidence_with(model, image, kept)
    return min_max(scores)


def cosine(one, other):
    lengths = math.sqrt((one**2).sum()) * math.sqrt((other**2).sum())
    return round((one * other).sum() / lengths, 6) if lengths else 0.0


def spread(values):
    """mm: scaled to [0, 1], and 0 where all are the same."""
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def fd_cam(model, image, activations, gradients, percentile=95.0):
    y, count, scores = model.confidence(image), len(activations), []
    for k in range(count):
        cosines = [cosine(activations[k], other) for other in activations]
        threshold = np.percentile(cosines, percentile)
        alone, without = np.zeros_like(activations), activations.copy()
        for j in range(count):
            if cosines[j] > threshold:
                alone[j], without[j] = activations[j], 0.0
        on = confidence_with(model, image, alone)
        scores.append(on + y - confidence_with(model, image, without))
    slopes = spread([mean_of(gradient) for gradient in gradients])
    weights = [math.exp(s) * g - 0.5 for s, g in zip(spread(scores), slopes)]
    return sum_of(weights, activations)
