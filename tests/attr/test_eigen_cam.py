"""EigenCAM and EigenGradCAM: first singular vectors and their signs, by hand."""

import pytest
import torch
from nets import Case, Weighed, example

from captum_unioncam import EigenCAM, EigenGradCAM
from captum_unioncam.attr.eigen_cam import first_singular_vectors

A = example([[1, 2], [3, 4]], [[4, 0], [0, 2]])
G = [[[1, -1], [2, 0]], [[0.5, 0.5], [0.5, -0.5]]]


def close(actual, expected, **tolerance):
    expected = torch.tensor(expected, dtype=actual.dtype)
    tolerance = {"rtol": 0, "atol": 1e-12, **tolerance}
    torch.testing.assert_close(actual, expected, **tolerance)


def test_eigen_cam_by_hand():
    # A^T A = [30 12; 12 20] has the eigenvector (3, 2) for 38: 3 A_1 + 2 A_2, over the
    # root of 13.
    net = Weighed(G)
    actual = EigenCAM(net, net.layer).attribute(A)
    close(actual[0, 0] * 13**0.5, [[11, 6], [9, 16]])


def test_eigen_grad_cam_by_hand():
    # The products are [[1, -2], [6, 0]] and [[2, 0], [0, -1]]: [41 2; 2 5], whose
    # first vector is (18 + sqrt(328), 2) over its length. The ReLU drops the rest.
    net = Weighed(G)
    actual = EigenGradCAM(net, net.layer).attribute(A)
    close(actual[0, 0], [[1.10907, 0], [5.99082, 0]], atol=1e-5)


@pytest.mark.parametrize("cam", [EigenCAM, EigenGradCAM])
def test_the_largest_entry_is_positive(cam):
    # v = (1, 0) or (-1, 0): the map is [-3 1], whose largest entry by size is -3.
    net = Weighed([[1, 1], [1, 1]])
    actual = cam(net, net.layer).attribute(example([-3, 1], [0, 0]))
    close(actual[0, 0], [3, 0])


@pytest.mark.parametrize("scale", [1.0, -1.0])
@pytest.mark.parametrize("shape", [(4, 5, 3, 3), (4, 12, 2, 3), (4, 6, 6), (4, 3, 1)])
def test_vectors_are_those_of_the_svd(shape, scale):
    generator = torch.Generator().manual_seed(0)
    maps = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    vectors = first_singular_vectors(maps)
    for entries, vector in zip(maps.flatten(2), vectors, strict=True):
        expected = torch.linalg.svd(entries.T).Vh[0]
        assert (vector @ expected).abs() == pytest.approx(1, abs=1e-12)
        sums = vector @ entries
        assert sums[sums.abs().argmax()] > 0


def test_vectors_are_exact_in_float32_where_positions_are_many():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(1, 64, 56, 56, generator=generator)
    expected = first_singular_vectors(maps.double())
    torch.testing.assert_close(
        first_singular_vectors(maps).double(), expected, rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("shape", [(3, 40, 8, 8), (3, 80, 6, 6)])
def test_what_is_not_finite_raises_nothing_and_stays_alone(shape, value):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(shape, generator=generator)
    expected = first_singular_vectors(maps)
    maps[1, 2, 3, 3] = value
    vectors = first_singular_vectors(maps)
    assert torch.equal(vectors[[0, 2]], expected[[0, 2]]) and not vectors[1].any()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_squares_do_not_leave_the_range(scale):
    net = Weighed(G).float()
    maps = EigenCAM(net, net.layer).attribute(A.float() * scale)
    plain = EigenCAM(net, net.layer).attribute(A.float())
    torch.testing.assert_close(maps / scale, plain)


def test_zeros_give_a_map_of_zeros_and_numbers_that_are_none_one_of_nan():
    inputs = torch.cat([A, 0 * A, A, A])
    inputs[2, 0, 1, 1], inputs[3, 1, 0, 0] = torch.nan, torch.inf
    net = Weighed(G)
    for cam in (EigenCAM, EigenGradCAM):
        with pytest.warns(UserWarning) as seen:
            maps = cam(net, net.layer).attribute(inputs)
        assert [str(w.message).partition("are ")[2][:8] for w in seen] == [
            "NaN: an ",
            "constant",
        ]
        assert not maps[1].any() and maps[2:].isnan().all()
        assert torch.equal(maps[:1], cam(net, net.layer).attribute(A))


def test_eigen_cam_does_not_depend_on_the_class():
    net, inputs = Case().build(0)
    cam = EigenCAM(net, net.layer)
    expected = cam.attribute(inputs)
    for target in (0, [2, 0, 1], torch.tensor([1, 1, 2]), (2,)):
        assert torch.equal(cam.attribute(inputs, target), expected)
    with pytest.raises(IndexError, match="out of bounds"):
        cam.attribute(inputs, target=3)


def test_eigen_grad_cam_depends_on_the_class():
    net, inputs = Case().build(0)
    cam = EigenGradCAM(net, net.layer)
    one, other = (cam.attribute(inputs, target) for target in (0, 1))
    assert not torch.allclose(one, other, atol=1e-3)
