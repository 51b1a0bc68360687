"""fuse: one map from the maps of several layers."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from contract.shared import make_images, make_net
from reference_augmented import fused

from captum_unioncam import LayerCAM, fuse

EXACT = {"rtol": 0, "atol": 1e-10}
FIRST = torch.tensor([[[[0, 0.5], [1, 0.25]]]]).double()
SECOND = torch.tensor([[[[1, 0], [0, 0.1]]]]).double()
every_how = pytest.mark.parametrize("how", ["max", "mean", "product"])

pytestmark = pytest.mark.usefixtures("one_thread")


def random_maps(*sizes, examples=3):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(examples, 1, *size, generator=generator, dtype=torch.float64)
        for size in sizes
    ]


@pytest.mark.parametrize(
    ("how", "gamma", "expected"),
    [
        ("max", 2, [[0.9640, 0.7616], [0.9640, 0.4621]]),
        ("max", None, [[1, 0.5], [1, 0.25]]),
        ("mean", None, [[0.5, 0.25], [0.5, 0.175]]),
        ("product", None, [[0, 0], [0, 0.025]]),
    ],
)
def test_numbers_worked_by_hand(how, gamma, expected):
    # tanh(2) = .9640, tanh(1) = .7616, tanh(.5) = .4621.
    for scale, shift in ((1, 0), (40, -3)):  # which scaling to [0, 1] takes away
        maps = [scale * FIRST + shift, SECOND]
        result = fuse(maps, (2, 2), how, gamma)
        torch.testing.assert_close(
            result[0, 0], torch.tensor(expected).double(), rtol=0, atol=5e-5
        )


@every_how
@pytest.mark.parametrize("gamma", [None, 2, 0.7])
@pytest.mark.parametrize(
    ("sizes", "size"),
    [
        ([(9,), (4,)], (12,)),
        ([(4, 5), (2, 3), (7, 3)], (7, 8)),
        ([(4, 5, 2), (2, 2, 3)], (4, 5, 6)),
    ],
)
def test_fusion_is_that_of_the_loops(how, gamma, sizes, size):
    maps = random_maps(*sizes)
    result = fuse(maps, size, how, gamma)
    assert result.shape == (3, 1, *size)
    assert 0 <= result.min() and result.max() <= 1
    for i in range(3):
        expected = fused([one[i, 0].numpy() for one in maps], size, how, gamma)
        torch.testing.assert_close(result[i, 0], torch.tensor(expected), **EXACT)


@every_how
def test_examples_do_not_depend_on_each_other(how):
    maps = random_maps((4, 5), (2, 3))
    result = fuse(maps, (6, 6), how, 2)
    for i in range(3):
        alone = fuse([one[i : i + 1] for one in maps], (6, 6), how, 2)
        torch.testing.assert_close(alone, result[i : i + 1], **EXACT)


def test_the_default_is_the_plain_maximum():
    maps = random_maps((4, 5), (2, 3))
    assert torch.equal(fuse(maps, (6, 6)), fuse(maps, (6, 6), "max", None))


@every_how
def test_constant_maps_are_zeros(how):
    maps = random_maps((4, 4), (4, 4), examples=2)
    maps[0][0] = 5.0
    result = fuse(maps, (4, 4), how)
    alone = fuse(maps[1:], (4, 4))[:1]
    expected = {"max": alone, "mean": alone / 2, "product": 0 * alone}[how]
    torch.testing.assert_close(result[:1], expected, **EXACT)
    assert result[1].max() > result[1].min()
    assert not fuse([torch.ones(1, 1, 1, 1)], (3, 3), how, 2).any()


@every_how
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_examples_that_are_not_finite_are_nan_alone(how, value):
    maps = random_maps((4, 4), (2, 2))
    expected = fuse(maps, (5, 5), how)
    maps[1][1, 0, 0, 1] = value
    result = fuse(maps, (5, 5), how)
    assert result[1].isnan().all()
    torch.testing.assert_close(result[[0, 2]], expected[[0, 2]], **EXACT)


def test_types_are_kept_and_mixed_ones_promoted():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        maps = [one.to(dtype) for one in random_maps((3, 3), (2, 2))]
        result = fuse(maps, (4, 4), "mean", 2)
        assert result.dtype == dtype
        expected = fuse([one.double() for one in maps], (4, 4), "mean", 2)
        tolerance = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=tolerance)
    first, second = random_maps((3, 3), (2, 2))
    assert fuse([first.float(), second], (4, 4)).dtype == torch.float64
    integers = torch.arange(4).view(1, 1, 2, 2)
    assert torch.equal(fuse([integers], (2, 2)), integers / 3)


def test_no_examples_and_one_layer():
    assert fuse([torch.zeros(0, 1, 2, 2), torch.zeros(0, 1, 3, 3)], (4, 4)).shape == (
        0,
        1,
        4,
        4,
    )
    one = random_maps((3, 3))
    low, high = (getattr(one[0], name)((2, 3), True) for name in ("amin", "amax"))
    expected = torch.tanh(2 * (one[0] - low) / (high - low))
    torch.testing.assert_close(fuse(one, (3, 3), gamma=2), expected, **EXACT)


def test_maps_are_left_alone_and_results_are_detached():
    net, images = make_net(), make_images()
    maps = [
        LayerGradCam(net, net.conv).attribute(images, 1),  # which are in a graph
        LayerCAM(net, net.relu).attribute(images, 1),
    ]
    assert maps[0].requires_grad
    before = [one.detach().clone() for one in maps]
    result = fuse(tuple(maps), images.shape[2:], gamma=2)
    assert not result.requires_grad and result.is_contiguous()
    assert all(torch.equal(one, old) for one, old in zip(maps, before, strict=True))
    alone = fuse([before[1]], before[1].shape[2:])
    assert alone.data_ptr() != before[1].data_ptr()


@every_how
def test_the_default_device_does_not_matter(how):
    maps = random_maps((4, 5), (2, 3))
    expected = fuse(maps, (6, 6), how, 2)
    with torch.device("meta"):  # which has no data
        assert torch.equal(fuse(maps, (6, 6), how, 2), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], (2, 2)), ValueError, "`maps` must have the maps of one layer at least"),
        ((FIRST, (2, 2)), TypeError, "`maps` must be a list or tuple .* got Tensor"),
        (([np.ones((1, 1, 2, 2))], (2, 2)), TypeError, "`maps` must be a list or tup"),
        (([FIRST, FIRST[0]], (2, 2)), ValueError, r"got \(1, 2, 2\)"),
        (([FIRST.expand(1, 3, 2, 2)], (2, 2)), ValueError, r"got \(1, 3, 2, 2\)"),
        (([FIRST], (2,)), ValueError, r"dimensions of `size` \(2,\), got \(1, 1, 2, 2"),
        (([FIRST], (2, 2, 2)), ValueError, "dimensions of `size`"),
        (([FIRST, SECOND.expand(2, 1, 2, 2)], (2, 2)), ValueError, r"got \[1, 2\]"),
        (([FIRST], (2, 2), "sum"), ValueError, "`how` must be one of max, mean, prod"),
        (([FIRST], (2, 2), "max", 0), ValueError, "`gamma` must be > 0 or None, got 0"),
        (([FIRST], (2, 2), "max", torch.inf), ValueError, "`gamma` must be a finite"),
        (([FIRST], (2, 2), "max", "2"), TypeError, "`gamma` must be a finite number"),
    ],
)
def test_mistakes_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        fuse(*arguments)
