"""SmoothGradCAMPlusPlus: its moments by hand, its noise, and Grad-CAM++ without it."""

import math

import pytest
import torch
from nets import CASES, Counted, ThreeInputs, Weighed, earlier, example
from torch import nn

from captum_unioncam import GradCAM, GradCAMPlusPlus, SmoothGradCAMPlusPlus
from captum_unioncam.attr.smooth_grad_cam_plus_plus import GradientMoments

pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")

FIRST = [[[1, -1], [2, 0]], [[0.5, 0.5], [0.5, -0.5]]]
SECOND = [[[1, 1], [0, 0]], [[0.5, 0.5], [0.5, -0.5]]]
ACTIVATIONS = example([[1, 2], [3, 4]], [[4, 0], [0, 2]])


class Passes(nn.Module):
    """A layer that is the input without its noise, and other gradients in each pass.

    They are 0 in the first pass, of the input itself, and then those that are given.
    """

    def __init__(self, *gradients):
        super().__init__()
        self.layer, self.count = nn.Identity(), 0
        self.gradients = torch.tensor(gradients, dtype=torch.float64)

    def forward(self, image):
        maps = self.layer(image)
        gradients = 0 * self.gradients[0]
        if self.count:
            gradients = self.gradients[self.count - 1]
        self.count += 1
        return (maps * gradients).flatten(1).sum(1)[:, None]


def test_hand_worked_example():
    # S = 10 and 6. Channel 1: D1 = [1 0; 1 0], D2 = [1 1; 2 0], D3 = [1 0; 4 0]. alpha
    # = 1/(2 + 10) and 2/(4 + 40), and w_1 = 1/12 + 1/22 = 17/132. Channel 2, twice the
    # same: w_2 = 3 * 1/2 * 1/(2 + 6/2) = .3. L = 17/132 * A_1 + .3 * A_2.
    cam = SmoothGradCAMPlusPlus(net := Passes(FIRST, SECOND), net.layer)
    actual = cam.attribute(ACTIVATIONS, num_samples=2)[0, 0].flatten().tolist()
    w = 17 / 132
    expected = [w + 1.2, 2 * w, 3 * w, 4 * w + 0.6]
    assert actual == pytest.approx(expected, abs=1e-12)
    assert actual == pytest.approx([1.32879, 0.25758, 0.38636, 1.11515], abs=1e-5)


def test_weights_are_neither_averaged_over_the_samples_nor_of_the_last_one():
    # The mean of Grad-CAM++'s weights of the samples is .17045 for channel 1: 1/2
    # (1/12 + 2/22 + 1/12 + 1/12). torchcam, which takes the last gradients and sum_ab
    # A_ab D3_ab, has 2/15. The paper's numerator D1 would give 1/12 + 1/44.
    cam = SmoothGradCAMPlusPlus(net := Passes(FIRST, SECOND), net.layer)
    weight = cam.attribute(ACTIVATIONS, num_samples=2)[0, 0, 0, 1].item() / 2
    for other in (0.17045, 2 / 15, 1 / 12 + 1 / 44):
        assert abs(weight - other) > 1e-3


def test_a_denominator_of_zero_has_no_weight():
    # S = -2. At position 0: D3 / D2 = 1, and 2 - 2 * 1 = 0. At position 1: D1 = 1/2, D2
    # = D3 = 1/2, and 0 again. At position 2: D1 = D3 / D2 = 1/2, and w = 1/2 / (2 - 1).
    cam = SmoothGradCAMPlusPlus(net := Passes([[1, 0, 0.5]], [[1, 1, 0.5]]), net.layer)
    actual = cam.attribute(example([-3, 1, 0]), num_samples=2)
    assert actual.tolist() == [[[0, 0.5, 0]]]


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1, 1e15, 1e30])
def test_moments_neither_underflow_nor_overflow(size):
    # Of g = 1, 3 and 0: D1 = 4/3, and D3 / D2 = (1 + 27) / (1 + 9) = 2.8.
    moments = GradientMoments()
    for value in (1.0, 3.0, 0.0):
        moments.add(torch.tensor([value * size]))
    assert moments.mean.item() == pytest.approx(4 / 3 * size)
    assert moments.ratio.item() == pytest.approx(2.8 * size)


def test_moments_of_both_signs_and_of_nothing():
    # D3 / D2 of 2, -1 and -1 is (8 - 1 - 1) / (4 + 1 + 1) = 1.
    moments = GradientMoments()
    for value in (2.0, -1.0, -1.0):
        moments.add(torch.tensor([value, 0.0]).double())
    assert moments.mean.tolist() == [0, 0]
    assert moments.ratio.tolist() == pytest.approx([1, 0])


# Without noise


def same_without_noise(net, inputs, num_samples, target):
    """Whether it is Grad-CAM++ to the last bit."""
    expected = GradCAMPlusPlus(net, net.layer).attribute(inputs, target)
    cam = SmoothGradCAMPlusPlus(net, net.layer)
    actual = cam.attribute(inputs, target, num_samples=num_samples, std=0)
    return torch.equal(actual, expected)


@pytest.mark.parametrize("num_samples", [1, 2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_noise_it_is_grad_cam_plus_plus_exactly(case, dtype, num_samples):
    net, inputs = earlier(case, 2)
    net, inputs = net.to(dtype), inputs.to(dtype)
    assert same_without_noise(net, inputs, num_samples, [2, 0, 1])
    cam = SmoothGradCAMPlusPlus(net, net.layer)
    noisy = cam.attribute(inputs, [2, 0, 1], num_samples=num_samples)
    plain = cam.attribute(inputs, [2, 0, 1], num_samples=num_samples, std=0)
    assert not torch.allclose(noisy, plain, rtol=1e-4)


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1e-10, 1, 1e10, 1e30])
def test_without_noise_tiny_and_huge_gradients_are_kept_exactly(size):
    net = Weighed([[1, 0.7, -0.3], [0.1, 0.2, 0.9]]).float()
    net.weights *= size
    assert same_without_noise(net, example([1, 3, 2], [2, 5, 1]).float(), 3, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_without_noise_half_types_are_kept_exactly(dtype):
    net = Weighed([[1, 0.7, -0.3], [0.1, 0.2, 0.9]]).to(dtype)
    assert same_without_noise(net, example([1, 3, 2], [2, 5, 1]).to(dtype), 3, None)


# Noise


def seeded(seed):
    """Returns a generator with this seed."""
    return torch.Generator().manual_seed(seed)


def explain(net, inputs, **options):
    options = {"target": 1, "num_samples": 3, **options}
    return SmoothGradCAMPlusPlus(net, net.layer).attribute(inputs, **options)


def test_equal_seeds_give_equal_maps_and_other_seeds_other_maps():
    net, inputs = earlier()
    maps = [explain(net, inputs, generator=seeded(seed)) for seed in (7, 7, 8)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2], rtol=1e-4)
    default = explain(net, inputs)
    assert torch.equal(default, explain(net, inputs, generator=seeded(0)))
    assert torch.equal(default, explain(net, inputs))


def test_a_generator_goes_on_and_the_global_one_is_left_alone():
    net, inputs = earlier()
    generator, before = seeded(0), torch.get_rng_state()
    first, second = (explain(net, inputs, generator=generator) for _ in range(2))
    assert not torch.allclose(first, second, rtol=1e-4)
    assert torch.equal(torch.get_rng_state(), before)


class Seen(nn.Module):
    """Keeps the inputs of each pass, and explains their first one."""

    def __init__(self):
        super().__init__()
        self.layer, self.inputs = nn.Identity(), []

    def forward(self, *inputs):
        self.inputs.append([inp.detach().clone() for inp in inputs])
        first = inputs[0]
        if first.is_complex():
            first = first.real
        maps = self.layer(first if first.is_floating_point() else first.double())
        return maps.square().flatten(1).sum(1)[:, None]


def seen_by(inputs, **options):
    """Returns what a model sees of each input in the noisy passes."""
    net = Seen()
    explain(net, inputs, target=None, **options)
    return [torch.stack(passes) for passes in zip(*net.inputs[1:], strict=True)]


def test_all_examples_and_all_chunks_share_the_noise_times_their_ranges():
    # Ranges of 1, 2 and 8, at other places.
    unit = torch.rand(1, 2, 5, 6).double()
    unit = (unit - unit.min()) / (unit.max() - unit.min())
    inputs = torch.cat([unit, 2 * unit - 7, 8 * unit + 1])
    (noisy,) = seen_by(inputs, num_samples=5)  # (samples, N, C, h, w)
    noise = (noisy - inputs) / torch.tensor([1, 2, 8]).view(3, 1, 1, 1)
    torch.testing.assert_close(noise, noise[:, :1].expand_as(noise), rtol=0, atol=1e-9)
    drawing = seeded(0)
    for one in noise[:, 0]:
        expected = 0.15 * torch.randn(1, 2, 5, 6, generator=drawing)[0].double()
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-9)
    for size in (2, 5, 9):
        (chunked,) = seen_by_chunks(inputs, size)
        assert torch.equal(chunked, noisy)


def seen_by_chunks(inputs, size):
    """Returns what a model sees, with several copies in a pass, copy by copy."""
    net = Seen()
    explain(net, inputs, target=None, num_samples=5, perturbations_per_eval=size)
    passes = [torch.cat(parts) for parts in zip(*net.inputs[1:], strict=True)]
    return [inp.unflatten(0, (5, len(inputs))) for inp in passes]


def test_a_map_depends_on_the_range_alone():
    net, inputs = earlier()

    def of_pixels(pixels):
        return net((pixels - 30) / 255)

    cam = SmoothGradCAMPlusPlus(of_pixels, net.layer)
    expected = explain(net, inputs)
    actual = cam.attribute(255 * inputs + 30, target=1, num_samples=3)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_every_floating_input_gets_noise_of_its_own():
    torch.manual_seed(0)
    images, other = torch.rand(2, 2, 5, 6).double(), 9 * torch.rand(2, 1, 5, 6)
    vector, flags = torch.rand(2, 4).half(), torch.rand(2, 1, 5, 6) > 0.5
    tokens, one_value = torch.arange(8).view(2, 4), torch.rand(2)
    inputs = (images, other, vector, flags, tokens, one_value)
    noisy = seen_by(inputs, num_samples=40)
    for passes, inp in zip(noisy, inputs, strict=True):
        assert passes.dtype == inp.dtype
        if inp is images or inp is other or inp is vector:
            values = inp.flatten(1).double()
            spans = values.amax(1) - values.amin(1)
            noise = (passes.double() - inp.double()).flatten(2) / spans[:, None]
            assert noise.std(0).mean() == pytest.approx(0.15, rel=0.1)
            assert (passes.std(0) > 0).all()
        else:  # the range of a single value is 0
            assert torch.equal(passes, inp.expand_as(passes))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integer_images_get_rounded_noise_within_their_type(dtype):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 1, 5, 6)).to(dtype)
    images[:, 0, 0, :2] = torch.tensor([0, 255], dtype=dtype)
    noisy = seen_by(images, num_samples=9)[0]
    assert noisy.dtype == dtype
    shifts = noisy.double() - images
    assert shifts.unique().numel() > 50 and shifts.abs().max() < 255
    unclipped = torch.stack(
        [255 * 0.15 * noise for noise in draws((1, 5, 6), 9)]
    )  # (samples, C, h, w)
    expected = images.double() + unclipped[:, None]
    bounds = torch.iinfo(dtype)
    expected = expected.round().clamp(bounds.min, float(bounds.max))
    torch.testing.assert_close(noisy.double(), expected, rtol=0, atol=1)
    assert (noisy.double() == expected).double().mean() > 0.99
    assert bool((noisy < 0).any()) == (dtype != torch.uint8)


def draws(shape, count):
    """Returns the noise of the default generator."""
    generator = seeded(0)
    return [torch.randn(shape, generator=generator).double() for _ in range(count)]


def test_complex_inputs_get_noise_in_both_parts():
    images = torch.complex(torch.rand(1, 1, 5, 6), 3 + torch.rand(1, 1, 5, 6))
    (noisy,) = seen_by(images, num_samples=20)
    parts = torch.view_as_real(noisy)
    assert noisy.dtype == images.dtype and (parts.std(0) > 0.1).all()


def test_a_value_that_is_not_finite_has_no_part_in_the_range():
    net, inputs = earlier()
    padded = torch.cat([inputs, inputs[:, :1]], 1)
    expected, actual = (
        SmoothGradCAMPlusPlus(lambda image: net(image[:, :2]), net.layer).attribute(
            images, target=1, num_samples=3
        )
        for images in (padded, padded.index_fill(1, torch.tensor([2]), torch.inf))
    )
    assert torch.equal(actual, expected) and expected.isfinite().all()


@pytest.mark.parametrize("kind", ["tokens", "booleans"])
def test_refuses_inputs_that_noise_cannot_alter(kind):
    inputs = torch.ones(2, 3, 4, dtype=torch.bool)
    if kind == "tokens":
        inputs = torch.ones(2, 4, dtype=torch.int64)
    counted = Counted(net := Seen())
    cam = SmoothGradCAMPlusPlus(counted, net.layer)
    message = r"`inputs` must hold a floating tensor, or an integer image .*, got \["
    with pytest.raises(ValueError, match=message):
        cam.attribute(inputs)
    assert not counted.sizes


def test_arguments_get_no_noise():
    net, inputs = earlier()
    seen = []

    def forward_func(image, other):
        seen.append(other.clone())
        return net(image * other)

    other = torch.rand(3, 1, 1, 1).double()
    cam = SmoothGradCAMPlusPlus(forward_func, net.layer)
    cam.attribute(inputs, 1, other, num_samples=4, perturbations_per_eval=2)
    assert [len(rows) for rows in seen] == [3, 6, 6]
    for rows in seen:
        assert torch.equal(rows, other.repeat(len(rows) // 3, 1, 1, 1))


def test_every_tensor_of_a_layer_and_every_input_is_smoothed():
    torch.manual_seed(0)
    net = ThreeInputs().double()
    inputs = tuple(
        torch.rand(2, *size).double() for size in [(2, 9, 8), (1, 5, 6), (4,)]
    )
    maps = explain(net, inputs)
    plain = explain(net, inputs, std=0)
    assert maps.shape == plain.shape == (2, 1, 4, 3)
    assert not torch.allclose(maps, plain, rtol=1e-3)


def test_smoothing_is_not_a_mean_of_maps():
    net, inputs = earlier()
    samples = [inputs + 0.15 * spans(inputs) * one for one in draws((2, 7, 7), 3)]
    cam = GradCAMPlusPlus(net, net.layer)
    mean = sum(cam.attribute(noisy, target=1) for noisy in samples) / 3
    actual = explain(net, inputs)
    assert not torch.allclose(actual, mean, rtol=0.01)
    assert (actual - mean).norm() < 0.5 * mean.norm()
    plain = GradCAM(net, net.layer).attribute(inputs, target=1)
    assert not torch.allclose(actual, plain, rtol=0.01)


def spans(inputs):
    flat = inputs.flatten(1)
    return (flat.amax(1) - flat.amin(1)).view(-1, 1, 1, 1)


def test_the_noise_of_many_samples_evens_out():
    net, inputs = earlier()
    maps = [
        explain(net, inputs, num_samples=100, std=0.05, generator=seeded(seed))
        for seed in (1, 2)
    ]
    few = [
        explain(net, inputs, num_samples=1, std=0.05, generator=seeded(seed))
        for seed in (1, 2)
    ]
    assert (maps[0] - maps[1]).norm() < 0.3 * (few[0] - few[1]).norm()
    assert math.isfinite(maps[0].sum())
