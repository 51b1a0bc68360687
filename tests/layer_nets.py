"""Small models of named modules, and the layer that is found. Not a test itself."""

from collections import OrderedDict

import torch
from torch import nn

from captum_unioncam import find_layer

HOOK_DICTS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def images(examples=2, channels=3, side=16):
    return torch.rand(examples, channels, side, side)


def name_of(model, inputs, *args):
    """Returns the name of the layer that is found."""
    layer = find_layer(model, inputs, *args)
    return next(name for name, module in model.named_modules() if module is layer)


def hooks(model):
    return sum(
        len(getattr(module, name)) for module in model.modules() for name in HOOK_DICTS
    )


class Net(nn.Module):
    """Modules by name, and a function that runs them."""

    def __init__(self, run, **modules):
        super().__init__()
        self.run = run
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args):
        return self.run(self, *args)


def named(**modules):
    return nn.Sequential(OrderedDict(modules))


def pooled(module=None):
    return named(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=module)


def conv(inputs=3, outputs=4, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)
