"""The messages of the page on troubleshooting are what the package says."""

import re
import warnings
from pathlib import Path

import torch
from torch import nn

from captum_unioncam import GradCAM, RegionCAM, UnionCAM, find_layer, vit_reshape
from captum_unioncam.visualization import panels

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "tutorials" / "troubleshooting.md").read_text()


class Transformer(nn.Module):
    """A layer of tokens, (N, 4, 5), or of rows with channels last, (N, 2, 2, 5)."""

    def __init__(self, rows=False):
        super().__init__()
        self.layer, self.head = nn.Linear(12, 5), nn.Linear(5, 3)
        self.rows = rows

    def forward(self, image):
        patches = image.unfold(2, 2, 2).unfold(3, 2, 2)  # (N, 3, 2, 2, 2, 2)
        patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3)
        maps = self.layer(patches if self.rows else patches.flatten(1, 2))
        return self.head(maps.flatten(1, -2).mean(1))


class Named(nn.Module):
    """Puts out a dict."""

    def forward(self, maps):
        return {"maps": maps}


class Net(nn.Module):
    """A pooled ConvNet, with a layer that is not spatial and one that does not run."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.unused, self.named = nn.ReLU(), Named()

    def forward(self, image):
        return self.head(self.named(self.layer(image))["maps"].mean((2, 3)))


def of_net(image, change, cam=UnionCAM):
    """Explains a net whose scores are changed."""
    net = Net()
    cam(lambda x: change(net(x)), net.layer).attribute(image, target=0)


def resnet_of_names():
    return nn.ModuleDict({f"layer{i}": nn.Identity() for i in range(1, 5)})


def few_channels(x):
    """Asks for more than the channels that may be scored can tell."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 20, 2), torch.nn.Flatten(), torch.nn.Linear(180, 2)
    )
    torch.manual_seed(0)
    torch.nn.init.normal_(net[2].weight)  # scores that differ
    RegionCAM(net, net[0]).attribute(x, target=0, fidelity=0.99, max_channels=5)


MISTAKES = [
    few_channels,
    lambda x: UnionCAM(Transformer(), "layer").attribute(x, target=0),
    lambda x: UnionCAM(Transformer(rows=True), "layer").attribute(x, target=0),
    lambda x: find_layer(Transformer(), x),
    lambda x: vit_reshape(torch.rand(1, 201, 8)),
    lambda x: UnionCAM(resnet_of_names(), "layer5"),
    lambda x: UnionCAM(lambda x: x, "layer4"),
    lambda x: UnionCAM(Net(), "head").attribute(x, target=0),
    lambda x: UnionCAM(Net(), "unused").attribute(x, target=0),
    lambda x: UnionCAM(Net(), "named").attribute(x, target=0),
    lambda x: of_net(x, lambda scores: {"logits": scores}),
    lambda x: of_net(x, lambda scores: scores.sum(0)),
    lambda x: GradCAM(Net(), "layer").attribute(x),
    lambda x: of_net(x, lambda scores: 0 * scores, cam=GradCAM),
    lambda x: UnionCAM(Net(), "layer").attribute(x * torch.nan, target=0),
    lambda x: of_net(x, lambda scores: scores.detach()),
    lambda x: panels(torch.tensor([-2.1, 0, 2.6]).view(1, 3, 1, 1), {}),
]


def test_the_texts_of_the_troubleshooting_are_real():
    rows = re.findall(r"^\| (`.*?`) (?:\(Captum's\) )?\|", PAGE, re.MULTILINE)
    texts = [row.strip("`").strip() for row in rows]
    assert len(texts) > 10
    seen = []
    torch.manual_seed(0)
    x = torch.rand(1, 3, 4, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for mistake in MISTAKES:
            try:
                mistake(x)
            except (ValueError, TypeError, AssertionError) as error:
                seen.append(f"{error}")
    seen += [f"{warning.message}" for warning in caught]
    assert [text for text in texts if not any(text in one for one in seen)] == []
