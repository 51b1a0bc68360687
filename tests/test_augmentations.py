"""Augmentations: their matrices, copies of images, and maps that are turned back."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference_augmented import copy_of, turned_back

from captum_unioncam import (
    Augmentation,
    flip_and_gain_augmentations,
    random_augmentations,
)
from captum_unioncam.augmentations import (
    affine_matrix,
    augmented,
    inverse,
    restored,
)

EXACT = {"rtol": 0, "atol": 1e-10}
AUGMENTATIONS = [
    Augmentation(),
    Augmentation(flip=True),
    Augmentation(gain=-0.5),
    Augmentation(rotation=0.3),
    Augmentation(translation=(0.21, -0.13)),
    Augmentation(rotation=-0.5, translation=(-0.1, 0.2), flip=True, gain=1.1),
    Augmentation(rotation=2.0, flip=True),
    Augmentation(translation=(3.0, 0.0)),
]
every_augmentation = pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=repr)

pytestmark = pytest.mark.usefixtures("one_thread")


def images(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


# Beside loops, and torch's own grid


@every_augmentation
@pytest.mark.parametrize("size", [(5, 8), (7, 4)], ids=repr)
def test_copies_and_restored_maps_are_those_of_the_loops(augmentation, size):
    given = images(2, 3, *size)
    plain = dataclasses.astuple(augmentation)
    expected = [copy_of(image.numpy(), plain) for image in given]
    copies = augmented(given, augmentation)
    torch.testing.assert_close(copies, torch.tensor(np.stack(expected)), **EXACT)
    maps = given[:, :1]
    back, shown = restored(maps, augmentation)
    for one, turned in zip(maps, back, strict=True):
        values, seen = turned_back(one[0].numpy(), plain)
        assert torch.equal(shown, torch.tensor(seen))
        torch.testing.assert_close(turned[0], torch.tensor(values), **EXACT)


@every_augmentation
def test_points_are_sampled_as_by_torchs_affine_grid(augmentation):
    given = images(1, 2, 6, 9)
    theta = inverse(affine_matrix(augmentation, (6, 9)))[None]
    grid = F.affine_grid(theta, list(given.shape), align_corners=False)
    expected = F.grid_sample(given, grid, align_corners=False)
    copies = augmented(given, augmentation)
    torch.testing.assert_close(copies, augmentation.gain * expected, **EXACT)


@every_augmentation
def test_the_inverse_undoes_the_matrix(augmentation):
    last = torch.tensor([[0.0, 0, 1]]).double()
    matrix = affine_matrix(augmentation, (6, 9))
    both = torch.cat([matrix, last]) @ torch.cat([inverse(matrix), last])
    torch.testing.assert_close(both, torch.eye(3).double(), **EXACT)


# Worked by hand


def test_a_quarter_turn_is_counter_clockwise():
    given = torch.tensor([[[[1.0, 2], [3, 4]]]]).double()
    copies = augmented(given, Augmentation(rotation=math.pi / 2))
    torch.testing.assert_close(copies, torch.rot90(given, 1, (2, 3)), **EXACT)
    assert copies[0, 0].round().tolist() == [[2, 4], [1, 3]]


def test_flips_come_before_rotations_and_shifts_are_last():
    given = torch.tensor([[[[1.0, 2], [3, 4]]]]).double()
    turned = augmented(given, Augmentation(rotation=math.pi / 2, flip=True))
    torch.testing.assert_close(turned, torch.rot90(given.flip(3), 1, (2, 3)), **EXACT)
    shifted = Augmentation(math.pi / 2, (0.5, 0.0))  # by one pixel to the right
    assert augmented(given, shifted)[0, 0].round().tolist() == [[0, 2], [0, 1]]


def test_shifts_are_shares_of_the_sides_to_the_right_and_down():
    given = images(1, 1, 4, 8)
    copies = augmented(given, Augmentation(translation=(0.25, 0.5)))
    expected = F.pad(given, (2, 0, 2, 0))[..., :4, :8]
    torch.testing.assert_close(copies, expected, **EXACT)
    _, shown = restored(given, Augmentation(translation=(0.25, 0.5)))
    assert shown.tolist() == 2 * [6 * [True] + 2 * [False]] + 2 * [8 * [False]]


def test_a_quarter_turn_of_an_oblong_image_keeps_its_pixels_square():
    """What leaves the frame is lost, and nothing is stretched."""
    given = images(1, 1, 2, 4)
    copies = augmented(given, Augmentation(rotation=math.pi / 2))
    middle = torch.rot90(given[..., 1:3], 1, (2, 3))
    torch.testing.assert_close(copies, F.pad(middle, (1, 1)), **EXACT)


def test_untouched_and_flipped_copies_are_exact():
    given = images(2, 3, 5, 7, dtype=torch.float32)
    assert torch.equal(augmented(given, Augmentation()), given)
    assert torch.equal(augmented(given, Augmentation(flip=True)), given.flip(3))
    maps, shown = restored(given[:, :1], Augmentation(flip=True, gain=0.9))
    assert torch.equal(maps, given[:, :1].flip(3)) and shown.all()


# Types and layouts


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@every_augmentation
def test_copies_keep_floating_types(dtype, augmentation):
    given = images(1, 2, 5, 6)
    copies = augmented(given.to(dtype), augmentation)
    assert copies.dtype == dtype
    expected = augmented(given.to(dtype).double(), augmentation)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(copies.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool])
def test_copies_of_integers_are_rounded_and_kept_in_range(dtype):
    given = (100 * images(1, 2, 5, 6) + 155).to(dtype)
    copies = augmented(given, Augmentation(rotation=0.3, gain=1.3))
    assert copies.dtype == dtype
    values = augmented(given.double(), Augmentation(rotation=0.3, gain=1.3))
    if dtype == torch.bool:
        assert torch.equal(copies, values >= 0.5)
    else:
        largest = min(torch.iinfo(dtype).max, 1e9)
        assert values.max() > 255
        torch.testing.assert_close(
            copies.double(), values.clamp_max(largest), rtol=0, atol=0.5001
        )
    assert torch.equal(augmented(given, Augmentation()), given)


def test_copies_keep_the_memory_format():
    given = images(2, 3, 5, 6).to(memory_format=torch.channels_last)
    for augmentation in AUGMENTATIONS:
        copies = augmented(given, augmentation)
        assert copies.stride() == given.stride()
        assert copies.data_ptr() != given.data_ptr()


def test_autocast_of_the_caller_moves_no_pixel():
    given = images(1, 1, 64, 64, dtype=torch.float32)
    turned = Augmentation(rotation=0.3, translation=(0.1, 0.1))
    expected = augmented(given, turned), *restored(given, turned)
    with torch.autocast("cpu", torch.bfloat16):
        actual = augmented(given, turned), *restored(given, turned)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


# The lists


def test_random_augmentations_are_the_papers():
    copies = random_augmentations()
    assert len(copies) == 100 and copies[0] == Augmentation()
    rotations = [copy.rotation for copy in copies[1:]]
    shifts = [share for copy in copies[1:] for share in copy.translation]
    assert 0.45 < max(map(abs, rotations)) <= 0.5
    assert 0.9 * 30 / 224 < max(map(abs, shifts)) <= 30 / 224
    assert min(rotations) < -0.4 and max(rotations) > 0.4
    assert abs(sum(rotations)) / 99 < 0.1 and abs(sum(shifts)) / 198 < 0.02
    assert not any(copy.flip or copy.gain != 1 for copy in copies)


def test_equal_seeds_give_equal_copies_and_no_global_generator_is_used():
    before = random.getstate(), torch.get_rng_state()
    assert random_augmentations(5, seed=3) == random_augmentations(5, seed=3)
    assert random_augmentations(5, seed=3) != random_augmentations(5, seed=4)
    assert random_augmentations(9)[:5] == random_augmentations(5)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    still = random_augmentations(3, rotation=0, translation=0)
    assert set(still) == {Augmentation()}


def test_flips_and_gains_are_six():
    copies = flip_and_gain_augmentations()
    assert len(set(copies)) == 6 and copies[0] == Augmentation()
    assert {(copy.flip, copy.gain) for copy in copies} == {
        (flip, gain) for flip in (False, True) for gain in (0.9, 1, 1.1)
    }
    assert not any(copy.is_resampled for copy in copies)


# Mistakes


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rotation": math.nan}, ValueError, "`rotation` must be a finite number"),
        ({"rotation": "90"}, TypeError, "`rotation` must be a finite number"),
        ({"gain": math.inf}, ValueError, "`gain` must be a finite number"),
        ({"translation": 0.1}, TypeError, "`translation` must be a tuple of two"),
        ({"translation": (0.1,)}, TypeError, "`translation` must be a tuple of two"),
        ({"translation": (0, math.nan)}, ValueError, "`translation` must be a finite"),
        ({"flip": 1}, TypeError, "`flip` must be a bool, got 1"),
    ],
)
def test_wrong_augmentations_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Augmentation(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"count": 0}, ValueError, "`count` must be a positive int, got 0"),
        ({"count": 2.0}, TypeError, "`count` must be a positive int"),
        ({"rotation": -0.1}, ValueError, "`rotation` must be a finite number >= 0"),
        ({"translation": -1}, ValueError, "`translation` must be a finite number >= 0"),
        ({"seed": -1}, ValueError, "`seed` must be an int >= 0"),
    ],
)
def test_wrong_lists_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        random_augmentations(**options)
