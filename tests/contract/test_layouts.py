"""Memory formats: models that rely on the layout of their images, and choices."""

import pytest
import torch
from contract.shared import (
    CONTRACT_MARKS,
    assert_same_maps,
    every_method,
    make_images,
    make_net,
    perturbing_method,
)
from torch import nn

pytestmark = CONTRACT_MARKS

FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels last": torch.channels_last,
}


class Relying(nn.Module):
    """A net behind an operation that reads the memory of its images."""

    def __init__(self, read):
        super().__init__()
        self.net, self.read = make_net(), read

    def forward(self, images):
        return self.net(self.read(images))


def checked(images):
    if not images.is_contiguous():
        raise ValueError("expected contiguous images")
    return images


def strided(images):
    """Reads rows of a contiguous image; of channels_last ones it makes another."""
    shape, (channels, height, width) = images.shape, images.shape[1:]
    steps = (channels * height * width, height * width, width, 1)
    return images.as_strided(shape, steps)


def as_complex(images):
    """Fails where the pairs of numbers are not side by side."""
    pairs = images.unflatten(3, (-1, 2))
    return torch.view_as_real(torch.view_as_complex(pairs)).flatten(3)


def branching(images):
    """Another image where it is not contiguous, and no error."""
    return images if images.is_contiguous() else 1 - images


READS = {
    "is_contiguous": checked,
    "as_strided": strided,
    "view_as_complex": as_complex,
    "view": lambda images: images.view(len(images), -1).view(images.shape),
    "branch": branching,
}
every_read = pytest.mark.parametrize("read", READS)


@every_method
@every_read
@pytest.mark.parametrize("examples", [1, 3])
def test_a_model_that_reads_the_memory_of_its_images_has_its_own_map(
    method, read, examples
):
    net, images = Relying(READS[read]), make_images(examples)
    expected = method(net.net, net.net.relu).attribute(images, target=1)
    maps = method(net, net.net.relu).attribute(images, target=1)
    assert_same_maps(maps, expected)


@perturbing_method
@pytest.mark.parametrize("given", FORMATS)
@pytest.mark.parametrize("chosen", [None, "preserve", *FORMATS])
def test_the_caller_chooses_the_format(method, given, chosen):
    net, seen = make_net(), []
    images = make_images().contiguous(memory_format=FORMATS[given])

    def model(batch):
        seen.append(batch.is_contiguous(memory_format=torch.channels_last))
        return net(batch)

    formats = {None: None, "preserve": torch.preserve_format, **FORMATS}
    expected = method(net, net.relu).attribute(images, target=1)
    cam = method(model, net.relu, memory_format=formats[chosen])
    maps = cam.attribute(images, target=1)
    assert_same_maps(maps, expected)
    in_last = given if chosen == "preserve" else chosen or "channels last"
    # The layer is read from the images as they are given.
    assert seen[0] == (given == "channels last")
    assert set(seen[1:]) == {in_last == "channels last"}


@perturbing_method
def test_what_is_no_memory_format_is_refused(method, net):
    with pytest.raises(TypeError, match="`memory_format` must be .*, got 'fast'"):
        method(net, net.relu, memory_format="fast")


@perturbing_method
def test_a_format_that_the_model_refuses_is_an_error_if_it_is_chosen(method):
    net = Relying(checked)
    cam = method(net, net.net.relu, memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="expected contiguous images"):
        cam.attribute(make_images(), target=1)


@perturbing_method
def test_rounding_is_no_reason_to_leave_channels_last(method):
    """A difference of float32's rounding, as other kernels give."""
    net, seen = make_net().float(), []

    def model(batch):
        seen.append(batch.is_contiguous(memory_format=torch.channels_last))
        return net(batch) * (1 + 1e-6 * seen[-1])

    method(model, net.relu).attribute(make_images().float(), target=1)
    assert all(seen[1:])
