"""Small float64 networks on which the methods are compared with the reference."""

from dataclasses import dataclass

import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class ConvNet(nn.Module):
    """Two convolutions, an activation, and a flattening or pooling head."""

    def __init__(self, rank: int, size: int, pooled: bool, signed: bool) -> None:
        super().__init__()
        conv = CONVOLUTIONS[rank]
        self.first = conv(2, 4, 3, padding=1)
        self.second = conv(4, 5, 3, stride=2, padding=1)
        self.layer = nn.Identity() if signed else nn.ReLU()
        positions = ((size + 1) // 2) ** rank
        self.head = nn.Linear(5 if pooled else 5 * positions, 3)
        self.pooled = pooled

    def forward(self, image: Tensor) -> Tensor:
        maps = self.layer(self.second(torch.tanh(self.first(image))))
        flat = maps.flatten(2).mean(2) if self.pooled else maps.flatten(1)
        return self.head(4 * flat)


@dataclass(frozen=True)
class Case:
    """A network and the shape of its inputs."""

    rank: int = 2
    size: int = 7
    pooled: bool = False
    signed: bool = False

    def __str__(self) -> str:
        head = "pooled" if self.pooled else "flatten"
        return f"{self.rank}d-{head}{'-signed' if self.signed else ''}"

    def build(
        self, seed: int, batch: int = 3, constant_channel: bool = False
    ) -> tuple[ConvNet, Tensor]:
        """Returns the net and inputs for it.

        A constant channel is channel 3 of the layer, with the value 0.5 everywhere.
        """
        torch.manual_seed(seed)
        net = ConvNet(self.rank, self.size, self.pooled, self.signed).double().eval()
        if constant_channel:
            net.second.weight.data[3] = 0
            net.second.bias.data[3] = 0.5
        return net, torch.rand(batch, 2, *[self.size] * self.rank, dtype=torch.float64)


CASES = [
    Case(),
    Case(pooled=True),
    Case(signed=True),
    Case(pooled=True, signed=True),
    Case(rank=1, size=12),
    Case(rank=1, size=11, pooled=True, signed=True),
    Case(rank=3, size=5),
    Case(rank=3, size=4, pooled=True),
]


class Earlier(nn.Module):
    """A ConvNet whose layer is its first one: the rest is not linear."""

    def __init__(self, net: ConvNet) -> None:
        super().__init__()
        self.net, self.layer = net, net.first

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


def earlier(case: Case = Case(), seed: int = 0) -> tuple[Earlier, Tensor]:
    """Returns a net that is not linear after its layer, and inputs for it."""
    net, inputs = case.build(seed)
    return Earlier(net), inputs


class Weighed(nn.Module):
    """A layer that is the input, and the sum of its positions under fixed weights.

    The gradients of the layer are ``weights``, (K, *spatial).
    """

    def __init__(self, weights: list, bias: float = 0.0) -> None:
        super().__init__()
        self.layer, self.bias = nn.Identity(), bias
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float64))

    def forward(self, image: Tensor) -> Tensor:
        products = self.layer(image) * self.weights
        return products.flatten(1).sum(1)[:, None] + self.bias


def example(*channels: list) -> Tensor:
    """Returns a batch of one example in float64."""
    return torch.tensor([channels], dtype=torch.float64)


class Split(nn.Module):
    """Returns the first channel and the other channels as two tensors."""

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        return maps[:, :1], maps[:, 1:]


class TwoTensors(nn.Module):
    """A layer of two tensors, and the sum of their positions under fixed weights."""

    def __init__(self, weights: list) -> None:
        super().__init__()
        self.layer = Split()
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float64))

    def forward(self, image: Tensor) -> Tensor:
        maps = torch.cat(self.layer(image), 1)
        return (maps * self.weights).flatten(1).sum(1)[:, None]


class Unused(nn.Module):
    """A layer that the output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(2, 3)

    def forward(self, image: Tensor) -> Tensor:
        self.layer(image)
        return self.head(image.mean((2, 3)))


class ThreeInputs(nn.Module):
    """Two images, of which the layer sees the first, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 6, 3, stride=2)
        self.other = nn.Conv2d(1, 6, 3)
        self.head = nn.Linear(16, 3)

    def forward(self, first: Tensor, second: Tensor, vector: Tensor) -> Tensor:
        maps = [torch.tanh(self.layer(first)), torch.tanh(self.other(second))]
        pooled = [m.flatten(2).square().sum(2) for m in maps]
        return self.head(torch.cat([*pooled, vector], 1))


class ManyChannels(nn.Module):
    """A layer of 70 channels, of which every one shows that the image is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(2, 70, 3, stride=2), nn.Sigmoid())
        self.head = nn.Linear(70 * 9, 3)
        self.layer[0].weight.data.abs_()
        self.head.weight.data.abs_()

    def forward(self, image: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(image)).flatten(1))


class Fixed(LayerAttribution):
    """A part of a CAM that returns the same map for every example."""

    def __init__(self, *values: float) -> None:
        super().__init__(None, nn.Identity())
        self.values = values

    def attribute(
        self, inputs, target=None, additional_forward_args=None, **kwargs
    ) -> Tensor:
        values = torch.tensor(self.values, dtype=torch.float64)
        return values.expand(len(inputs), 1, -1)


class Counted:
    """Runs a network as a plain function does, and keeps the size of each batch."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.sizes: list[int] = []

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.sizes.append(len(inputs[0]))
        return self.net(*inputs)

    @property
    def examples(self) -> int:
        """The number of examples in all passes."""
        return sum(self.sizes)
