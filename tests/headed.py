"""CAM for nets that have no head for it. Not a test itself.

Most nets of the tests have hidden layers behind the layer, or other heads, which CAM
refuses. What holds for every method holds for CAM too, with the weights of a head that
is given: here the same for every net. How a head is found is tested with CAM itself.
"""

from dataclasses import replace

import torch
from torch import nn

from captum_unioncam import CAM
from layer_methods import LAYER_METHODS

CLASSES, CHANNELS = 8, 80  # more than any net has


def positive_head():
    """Returns a head whose weights are positive, so that few maps are constant."""
    generator = torch.Generator().manual_seed(1)
    head = nn.Linear(CHANNELS, CLASSES, device="cpu", dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(0.1 + torch.rand(head.weight.shape, generator=generator))
    return head


with torch.random.fork_rng(devices=[]):
    HEAD = positive_head()


class HeadedCAM(CAM):
    """CAM with the first columns of a head that is given, for any channels."""

    def __init__(self, forward_func, layer, device_ids=None, *, reshape_transform=None):
        super().__init__(
            forward_func,
            layer,
            device_ids,
            head=HEAD,
            reshape_transform=reshape_transform,
        )

    def _head_weights(self, layer, search):
        return self.head.weight.detach()[:, : layer.activations.shape[1]]


HeadedCAM.__name__, HeadedCAM.__doc__ = "CAM", CAM.__doc__
METHODS = {**LAYER_METHODS, "cam": replace(LAYER_METHODS["cam"], attribution=HeadedCAM)}
