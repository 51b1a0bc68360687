"""The energy of a fine map, its projections to the copies, and the steps of Adam."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_augmented import projections

from captum_unioncam import Augmentation, random_augmentations
from captum_unioncam.attr import _super_resolution
from captum_unioncam.attr._super_resolution import energy, projection, super_resolved
from captum_unioncam.augmentations import augmented

EXACT = {"rtol": 0, "atol": 1e-10}
COPIES = (*random_augmentations(4), Augmentation(-0.3, (0.4, 0.1), True, 0.9))


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def test_the_energy_worked_by_hand():
    # Fidelity .25, total variation 3, squares 1.25: .25 + .002 * 3 + .0001 * 1.25.
    fine = torch.tensor([[[[1, 0], [0, 0.5]]]]).double()
    observed = torch.tensor([[[[1, 0], [0, 0]]]]).double()
    assert energy(fine, fine, observed).item() == pytest.approx(0.256125, abs=1e-12)
    # Of two equal copies, every term is twice as large; examples are apart.
    twice, both = observed.expand(1, 2, 2, 2), torch.cat([fine, 0 * fine])
    values = energy(both, both.expand(2, 2, 2, 2), torch.cat([twice, twice]))
    assert values.tolist() == pytest.approx([0.51225, 2], abs=1e-12)


@pytest.mark.parametrize(
    ("size", "layer_size"),
    [((6, 9), (2, 3)), ((7, 5), (3, 4)), ((4, 4), (4, 4)), ((3, 4), (5, 7))],
)
def test_projections_are_resized_copies(size, layer_size):
    fine = drawn(2, 1, *size)
    project = projection(COPIES, size, layer_size, fine)
    actual = project(fine)
    assert actual.shape == (2, len(COPIES), *layer_size)
    plain = [(c.rotation, c.translation, c.flip, c.gain) for c in COPIES]
    matrices = projections(plain, size, layer_size)
    for i, transform in enumerate(COPIES):
        gainless = Augmentation(
            transform.rotation, transform.translation, transform.flip
        )
        moved = augmented(fine, gainless)
        expected = F.interpolate(moved, layer_size, mode="bilinear")[:, 0]
        torch.testing.assert_close(actual[:, i], expected, **EXACT)
        for n in range(2):
            by_loops = matrices[i] @ fine[n].numpy().ravel()
            np.testing.assert_allclose(actual[n, i].flatten(), by_loops, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_steps_are_those_of_torchs_adam(dtype, monkeypatch):
    monkeypatch.setattr(_super_resolution, "STEPS", 5)
    observed, size = drawn(1, len(COPIES), 3, 3).to(dtype), (8, 8)
    project = projection(COPIES, size, (3, 3), observed)
    fine = torch.zeros(1, 1, *size, dtype=dtype, requires_grad=True)
    adam = torch.optim.Adam([fine], lr=0.001)
    for _ in range(5):
        adam.zero_grad()
        energy(fine, project(fine), observed).sum().backward()
        adam.step()
    actual = super_resolved(observed, COPIES, size)
    assert actual.dtype == dtype and not actual.requires_grad
    # In float32, neighbours may be equal but for rounding, and have any order.
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(actual, fine.detach(), rtol=0, atol=tolerance)


def test_two_hundred_steps_of_a_thousandth_are_taken():
    # Far from the minimum, each step of Adam is its rate.
    actual = super_resolved(torch.ones(1, 1, 1, 1).double(), (Augmentation(),), (1, 1))
    assert 0.19 < actual.item() <= 0.2


@pytest.mark.parametrize("copies", [COPIES, random_augmentations(20)])
def test_the_energy_falls(copies):
    observed, size = drawn(2, len(copies), 3, 3), (9, 9)
    project = projection(copies, size, (3, 3), observed)
    zeros = torch.zeros(2, 1, *size).double()
    before = energy(zeros, project(zeros), observed)
    fine = super_resolved(observed, copies, size)
    assert (energy(fine, project(fine), observed) < before).all()


def test_a_bright_spot_is_found_where_it_is():
    """From maps of 4 x 4, at a place between their positions."""
    size, copies = (24, 24), random_augmentations(30)
    fine = torch.zeros(1, 1, *size).double()
    fine[..., 9:13, 14:18] = 1
    observed = projection(copies, size, (4, 4), fine)(fine)
    found = super_resolved(observed, copies, size)[0, 0]
    row, column = divmod(int(found.argmax()), 24)
    assert 8 <= row <= 13 and 13 <= column <= 18
