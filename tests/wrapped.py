"""A small net whose output is to be wrapped, and images for it. Not a test itself."""

import math
from collections import OrderedDict

import torch
from torch import nn

EXACT = {"rtol": 0, "atol": 1e-10}


def images(examples=3, side=9):
    return torch.rand(examples, 3, side, side, dtype=torch.float64)


def convnet(outputs=4, side=9):
    """A net in float64 whose layer is ``relu``."""
    positions = math.ceil(side / 2) ** 2
    return (
        nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(3, 5, 3, 2, 1),
                relu=nn.ReLU(),
                flat=nn.Flatten(),
                fc=nn.Linear(5 * positions, outputs),
            )
        )
        .double()
        .eval()
    )


class Packed(nn.Module):
    """Packs the logits of a net, with something else."""

    def __init__(self, pack):
        super().__init__()
        self.net, self.pack = convnet(), pack

    def forward(self, x, *, scale=1):
        return self.pack(scale * self.net(x))
