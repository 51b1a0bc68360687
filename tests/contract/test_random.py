"""Random numbers: they come from a generator of the call, the user's or a fixed one."""

import pytest
import torch
from captum.attr import NoiseTunnel
from contract.shared import (
    CONTRACT_MARKS,
    EXACT,
    ManyInputsNet,
    assert_same_maps,
    many_inputs,
    one_row,
    random_method,
)

pytestmark = CONTRACT_MARKS


def generator(seed):
    """Returns a generator with a seed."""
    return torch.Generator().manual_seed(seed)


@random_method
def test_the_global_seed_does_not_matter(method, net, images):
    maps = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            maps.append(method(net, net.relu).attribute(images, target=1))
    assert torch.equal(*maps)


@random_method
def test_a_users_generator_is_used_and_advances(method, net, images):
    cam = method(net, net.relu)
    draw, same = generator(5), generator(5)
    first = cam.attribute(images, 1, generator=draw)
    assert torch.equal(first, cam.attribute(images, 1, generator=same))
    assert torch.equal(draw.get_state(), same.get_state())
    second = cam.attribute(images, 1, generator=draw)
    assert not torch.allclose(first, second, **EXACT)
    assert not torch.allclose(first, cam.attribute(images, 1), **EXACT)
    fresh = cam.attribute(images, 1, generator=generator(0))
    assert torch.equal(fresh, cam.attribute(images, 1))


@random_method
@pytest.mark.parametrize("per_eval", [1, 2, 5, 1000])
def test_the_draw_depends_neither_on_the_batch_nor_on_the_chunks(method, per_eval):
    net, inputs, targets = ManyInputsNet(), many_inputs(5), [4, 0, 2, 1, 4]
    cam = method(net, net.relu)
    maps = cam.attribute(
        inputs, targets, perturbations_per_eval=per_eval, generator=generator(5)
    )
    expected = [
        cam.attribute(one_row(inputs, i), target, generator=generator(5))
        for i, target in enumerate(targets)
    ]
    assert_same_maps(maps, torch.cat(expected))


@random_method
def test_noise_tunnel_passes_a_generator_on(method, net, images):
    cam = method(net, net.relu)
    maps = NoiseTunnel(cam).attribute(
        images, nt_samples=2, stdevs=0.0, target=1, generator=generator(5)
    )
    expected = cam.attribute(images, 1, generator=generator(5))
    assert_same_maps(maps, expected)
