"""find_layer: what all later features depend on, and what the head really sees."""

import pytest
import torch
import torch.nn.functional as F
from layer_nets import Net, conv, images, name_of, named, pooled
from torch import nn
from torchvision.models import DenseNet

from captum_unioncam import GradCAM, UnionCAM, find_layer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# Gates and branches


def gated(net, x):
    maps = net.maps(x)
    return net.head(maps * net.gate(maps))


def test_a_gate_of_one_channel_is_no_layer():
    gate = nn.Sequential(nn.Conv2d(4, 1, 7, padding=3), nn.Sigmoid())
    net = Net(
        gated,
        maps=nn.Sequential(conv(), nn.ReLU()),
        gate=gate,
        head=pooled(nn.Linear(4, 2)),
    )
    assert name_of(net, images()) == "maps"


def test_a_gate_whose_product_is_a_module_has_the_product():
    gate = nn.Sequential(nn.Conv2d(4, 1, 1), nn.Sigmoid())
    maps = nn.Sequential(conv(), nn.ReLU())
    block = Net(
        lambda net, x: net.maps(x) * net.gate(net.maps(x)), maps=maps, gate=gate
    )
    net = named(block=block, head=pooled(nn.Linear(4, 2)))
    assert name_of(net, images()) == "block"


def summed(net, x):
    stem = net.stem(x)
    return net.head(net.left(stem) + net.right(stem))


def test_parallel_branches_have_the_layer_before_them():
    net = Net(
        summed,
        stem=nn.Sequential(conv(), nn.ReLU()),
        left=nn.Sequential(conv(4, 4), nn.ReLU()),
        right=nn.Sequential(conv(4, 4), nn.ReLU()),
        head=pooled(nn.Linear(4, 2)),
    )
    assert name_of(net, images()) == "stem"


@pytest.mark.parametrize("join", ["sum", "cat", "pooled"])
def test_branches_from_the_image_on_are_refused(join):
    def run(net, x):
        left, right = net.left(x), net.right(x)
        if join == "cat":
            return net.wide(torch.cat([left, right], 1))
        if join == "pooled":
            return net.head(left) + net.head(right)
        return net.head(left + right)

    net = Net(
        run,
        left=nn.Sequential(conv(), nn.ReLU()),
        right=nn.Sequential(conv(), nn.ReLU()),
        head=pooled(nn.Linear(4, 2)),
        wide=pooled(nn.Linear(8, 2)),
    )
    with pytest.raises(ValueError, match="no layer that its whole output depends on"):
        find_layer(net, images())


def test_a_random_model_is_refused():
    net = named(conv=conv(), drop=nn.Dropout2d(), head=pooled(nn.Linear(4, 2)))
    noisy = Net(lambda net, x: net.net(x) + torch.rand(2) * torch.rand(()), net=net)
    find_layer(noisy, images())  # the same random numbers in both passes
    state = [0]

    def count(net, x):
        state[0] += 1
        return net.net(x) + state[0]

    with pytest.raises(ValueError, match="or is random"):
        find_layer(Net(count, net=net), images())


# The activation that the head sees


def small_densenet():
    net = DenseNet(8, (2, 2), 16, 4, num_classes=5).eval()
    for module in net.modules():  # as a trained net has them, of all signs
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0, 0.5)
            nn.init.normal_(module.running_mean, 0, 0.1)
    return net


def correlation(maps, others):
    return torch.corrcoef(torch.stack([maps.flatten(), others.flatten()]))[0, 1]


FUNCTIONAL = r"head reads the ReLU of the layer 'features', which is a function"


@pytest.mark.parametrize("method, most", [(UnionCAM, 0.9), (GradCAM, 0.999)])
def test_densenet_is_named_and_its_fix_is_what_the_head_sees(method, most):
    net, inputs = small_densenet().double(), images(1, side=64).double()
    with pytest.warns(UserWarning, match=FUNCTIONAL):
        layer = find_layer(net, inputs)
    assert layer is net.features
    output = net(inputs)
    assert 0.3 < (layer(inputs) < 0).double().mean() < 0.7
    signed = method(net, layer).attribute(inputs, target=4)
    # What the warning says.
    net.features.add_module("relu", torch.nn.ReLU())
    assert torch.equal(net(inputs), output)
    assert find_layer(net, inputs) is net.features
    assert layer(inputs).min() == 0
    seen = method(net, layer).attribute(inputs, target=4)
    assert correlation(signed, seen) < most


def test_no_warning_where_the_relu_is_a_module_or_there_is_none(recwarn):
    head = pooled(nn.Linear(4, 2))
    for net in (
        named(conv=conv(), relu=nn.ReLU(), head=head),
        named(conv=conv(), relu=nn.ReLU(inplace=True), head=head),
        nn.Sequential(conv(), nn.ReLU(True), nn.Flatten(), nn.Linear(1024, 2)),
        named(conv=conv(), head=head),  # signed for the head too
        named(conv=conv(), gelu=nn.GELU(), head=head),
    ):
        find_layer(net, images())
    assert not recwarn


@pytest.mark.parametrize("in_place", [False, True])
def test_a_functional_relu_before_a_flattening_head_is_named(in_place):
    def run(net, x):
        return net.fc(F.relu(net.conv(x), inplace=in_place).flatten(1))

    net = Net(run, conv=conv(), fc=nn.Linear(4 * 256, 2))
    with pytest.warns(UserWarning, match="reads the ReLU of the layer 'conv'"):
        assert name_of(net, images()) == "conv"
