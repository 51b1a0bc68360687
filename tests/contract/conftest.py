"""Fixtures of the tests that every method must pass."""

import inspect

import pytest
import torch
from contract.shared import CLASSES, FEW_SAMPLES, make_images, make_net, methods_with


@pytest.fixture(scope="module", autouse=True)
def few_samples():
    """Methods that take many samples of something take a few by default."""
    with pytest.MonkeyPatch.context() as patch:
        for option, few in FEW_SAMPLES.items():
            for method in methods_with(option):
                defaults = inspect.unwrap(method.attribute).__kwdefaults__
                patch.setitem(defaults, option, few)
        yield


@pytest.fixture
def net():
    """A net whose layer is ``relu``, (N, CLASSES)."""
    return make_net()


@pytest.fixture
def images():
    """Images for the net, (N, 3, 9, 8)."""
    return make_images()


@pytest.fixture
def gain():
    """An argument of an ArgsNet with a number for each example, (N,)."""
    return torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)


@pytest.fixture
def class_weights():
    """An argument of an ArgsNet with a number for each class, (CLASSES,)."""
    return torch.linspace(0.5, 2, CLASSES, dtype=torch.float64)
