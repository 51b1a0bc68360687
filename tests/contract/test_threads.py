"""Threads: calls of several threads on one model have the maps that each has alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from contract.shared import (
    CONTRACT_MARKS,
    EXAMPLES,
    every_method,
    make_images,
    make_net,
)

from captum_unioncam import LayerCAM, ReciproCAM, find_layer

pytestmark = CONTRACT_MARKS

THREADS, CALLS = 8, 24


def in_threads(calls):
    """Returns what the calls return, or their errors, run by several threads."""

    def run(call):
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, calls))


@every_method
def test_threads_do_not_meet_in_one_model(method, net, images):
    cam = method(net, net.relu)
    inputs = [images.roll(i, 0) * (1 - 0.05 * (i % 5)) for i in range(CALLS)]
    expected = [cam.attribute(image, target=1) for image in inputs[:15]]
    calls = [lambda image=image: cam.attribute(image, target=1) for image in inputs]
    for i, maps in enumerate(in_threads(calls)):
        assert torch.equal(maps, expected[i % 15]), repr(maps)
    assert not net.relu._forward_hooks


def test_methods_and_find_layer_share_one_model():
    net, images = make_net(), make_images()
    cams = [LayerCAM(net, net.relu), ReciproCAM(net, net.relu)]
    expected = [cam.attribute(images, target=1) for cam in cams]
    layer = find_layer(net, images)
    calls = [lambda i=i: cams[i % 2].attribute(images, target=1) for i in range(CALLS)]
    calls[::3] = [lambda: find_layer(net, images)] * len(calls[::3])
    for i, found in enumerate(in_threads(calls)):
        if i % 3 == 0:
            assert found is layer
        else:
            assert torch.equal(found, expected[i % 2]), repr(found)


@pytest.mark.parametrize("method", [LayerCAM, ReciproCAM])
def test_an_error_of_one_thread_does_not_block_the_others(method):
    net, images = make_net(), make_images()
    cam = method(net, net.relu)
    expected = cam.attribute(images, target=1)
    calls = [lambda: cam.attribute(images, target=99)] * EXAMPLES
    results = in_threads([*calls, lambda: cam.attribute(images, target=1)])
    assert all(isinstance(result, Exception) for result in results[:-1])
    assert torch.equal(results[-1], expected)
