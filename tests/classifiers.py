"""Image classifiers that are fast on any machine. Not a test itself."""

import functools

import torch
from folders import crop
from torch import nn
from torchvision import models, transforms

from captum_unioncam.models import Classifier

SIDE = 32
# The model of torchvision that takes the fewest operations.
SMALL = "shufflenet_v2_x0_5"


@functools.cache
def categories():
    """Returns ImageNet's names of the classes."""
    return models.ResNet18_Weights.DEFAULT.meta["categories"]


def tiny_classifier(name="tiny", weights="none"):
    """Returns a classifier of 32 x 32 pixels, in place of ``load_classifier``.

    Its weights are random, but always the same, and its head is scaled until it is as
    sure of a class as a trained model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(12 * (SIDE // 4) ** 2, len(categories())),
        )
    with torch.no_grad():
        net[-1].weight.mul_(60)
        net[-1].bias.zero_()
    steps = [
        transforms.Resize(SIDE),
        transforms.CenterCrop(SIDE),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.25] * 3),
    ]
    return Classifier(name, net.eval(), transforms.Compose(steps), categories())


def save_small_weights(path):
    """Saves weights of the small model, which are the same in every process.

    They are random. The statistics of its norms and the scale of its head are those of
    images, so that it is as sure of a class as a trained model.
    """
    preprocess = models.get_model_weights(SMALL).DEFAULT.transforms()
    images = torch.stack([preprocess(crop(20 * i)) for i in range(5)])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = models.get_model(SMALL, weights=None)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the plain mean
        model(torch.cat([images, torch.randn(3, *images.shape[1:])]))
        model.fc.weight.mul_(5 / model.eval()(images).std())
    torch.save(model.state_dict(), path)
