"""find_layer: the last spatial activation before the head, and no change of a model."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from layer_nets import Net, conv, images, name_of, named, pooled
from torch import nn
from torchvision import models

from captum_unioncam import GradCAM, SelectedOutput, UnionCAM, find_layer


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


# ConvNets


def test_the_activation_after_the_last_convolution_is_found():
    net = named(conv=conv(), relu=nn.ReLU(), head=pooled(nn.Linear(4, 2)))
    assert name_of(net, images()) == "relu"


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)])
def test_pooling_that_leaves_several_positions_is_an_activation(pool):
    net = named(conv=conv(), relu=nn.ReLU(), pool=pool, head=pooled(nn.Linear(4, 2)))
    assert name_of(net, images()) == "pool"


@pytest.mark.parametrize(
    "pool",
    [nn.AdaptiveMaxPool2d(1), nn.AvgPool2d(16), nn.MaxPool2d(16), nn.LPPool2d(2, 16)],
)
def test_pooling_to_one_position_belongs_to_the_head(pool):
    net = named(
        conv=conv(), relu=nn.ReLU(), pool=pool, flat=nn.Flatten(), fc=nn.Linear(4, 2)
    )
    assert name_of(net, images()) == "relu"


def test_adaptive_pooling_to_several_positions_belongs_to_the_head():
    net = named(
        conv=conv(),
        relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(3),
        drop=nn.Dropout2d(),
        flat=nn.Flatten(),
        fc=nn.Linear(36, 2),
    ).eval()
    assert name_of(net, images()) == "relu"


def test_a_model_that_flattens_without_pooling():
    net = named(conv=conv(), act=nn.GELU(), flat=nn.Flatten(), fc=nn.Linear(1024, 2))
    assert name_of(net, images()) == "act"


def test_functional_activations_and_pooling_leave_the_last_module():
    def run(net, x):
        return net.fc(
            F.adaptive_avg_pool2d(F.relu(net.last(net.first(x))), 1)[..., 0, 0]
        )

    net = Net(run, first=conv(), last=conv(4, 4), fc=nn.Linear(4, 2))
    with pytest.warns(UserWarning, match="head reads the ReLU of the layer 'last'"):
        assert name_of(net, images()) == "last"


def test_the_outermost_of_nested_modules_is_found():
    inner = nn.Sequential(conv(), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    net = named(backbone=nn.Sequential(inner), head=pooled(nn.Linear(4, 2))).eval()
    assert name_of(net, images()) == "backbone"
    assert name_of(nn.Sequential(net), images()) == "0.backbone"


def test_a_backbone_whose_last_module_is_shared_is_found_as_a_whole():
    relu = nn.ReLU()
    block = nn.Sequential(conv(), relu, conv(4, 4), relu)
    net = named(block=block, head=pooled(nn.Linear(4, 2)))
    assert name_of(net, images()) == "block"


def test_an_in_place_activation_is_found_as_the_tensor_it_changes():
    net = named(conv=conv(), relu=nn.ReLU(inplace=True), head=pooled(nn.Linear(4, 2)))
    assert name_of(net, images()) in ("conv", "relu")


def test_a_layer_that_runs_again_on_vectors_is_refused():
    def run(net, x):
        features = net.relu(net.conv(x)).mean((2, 3))
        return net.fc2(net.relu(net.fc(features)))

    net = Net(run, conv=conv(), relu=nn.ReLU(), fc=nn.Linear(4, 4), fc2=nn.Linear(4, 2))
    with pytest.raises(
        ValueError, match="no layer whose last run .* 'relu' runs again"
    ):
        find_layer(net, images())


def test_an_activation_that_is_used_again_inside_of_a_block_leaves_the_block():
    def run(net, x):
        features = net.block(x).mean((2, 3))
        return net.fc2(net.block[1](net.fc(features)))

    net = Net(
        run,
        block=nn.Sequential(conv(), nn.ReLU()),
        fc=nn.Linear(4, 4),
        fc2=nn.Linear(4, 2),
    )
    assert name_of(net, images()) == "block"


def test_a_layer_that_runs_twice_on_maps_is_the_layer_of_its_last_run():
    def run(net, x):
        maps = net.conv(net.first(x))
        return net.fc(net.conv(F.max_pool2d(maps, 2)).mean((2, 3)))

    net = Net(run, first=conv(), conv=conv(4, 4), fc=nn.Linear(4, 2))
    assert name_of(net, images()) == "conv"
    # Its maps are those of the last run, 8 x 8.
    cam = GradCAM(net, find_layer(net, images()))
    assert cam.attribute(images(), target=0).shape == (2, 1, 8, 8)


def test_a_head_of_a_one_by_one_convolution_is_left_out():
    net = named(
        conv=conv(),
        relu=nn.ReLU(),
        classes=nn.Conv2d(4, 2, 1),
        act=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
    )
    assert name_of(net, images()) == "relu"


def test_a_one_by_one_convolution_before_other_weights_is_an_activation():
    net = named(
        conv=conv(),
        wide=nn.Conv2d(4, 8, 1),
        relu=nn.ReLU(),
        head=pooled(nn.Linear(8, 2)),
    )
    assert name_of(net, images()) == "relu"


# Embedding networks: no weights after the backbone


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "googlenet"])
@pytest.mark.filterwarnings("ignore:.*initialization:FutureWarning")
def test_embedding_networks_of_torchvision(name):
    net = models.get_model(name, weights=None)
    expected = name_of(net.eval(), images(side=64))
    net.fc = nn.Identity()
    assert name_of(net, images(side=64)) == expected


@pytest.mark.parametrize(
    "name", ["squeezenet1_1", "mobilenet_v3_small", "efficientnet_b0", "densenet121"]
)
def test_embedding_networks_of_features(name):
    net = models.get_model(name, weights=None).eval()
    net.classifier = nn.Identity()
    # SqueezeNet pools after the classifier, which then returns the same tensor.
    same = {"features"} | ({"classifier"} if name == "squeezenet1_1" else set())
    assert name_of(net, images(side=64)) in same


class SqueezeExcite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x):
        return x * self.up(F.relu(self.down(self.pool(x)))).sigmoid()


@pytest.mark.parametrize("embedding", [False, True])
def test_gates_of_one_by_one_convolutions_are_no_head(embedding):
    """Squeeze and excitation ends a block: 1 x 1 convolutions, of one position."""
    head = nn.Identity() if embedding else nn.Linear(4, 2)
    block = nn.Sequential(conv(), nn.BatchNorm2d(4), SqueezeExcite(4), nn.ReLU())
    net = named(block=block, head=pooled(head)).eval()
    assert name_of(net, images()) == "block"


@pytest.mark.parametrize("embedding", [False, True])
def test_a_one_by_one_shortcut_is_no_head(embedding):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.shortcut = conv(), nn.Conv2d(3, 4, 1)
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(self.conv(x) + self.shortcut(x))

    head = nn.Identity() if embedding else nn.Linear(4, 2)
    net = named(block=Residual(), head=pooled(head))
    assert name_of(net, images()) == "block"


@pytest.mark.parametrize("embedding", [False, True])
def test_a_one_by_one_branch_is_no_head(embedding):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = conv()
            self.narrow = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 4, 1))

        def forward(self, x):
            return torch.cat([self.wide(x), self.narrow(x)], 1)

    head = nn.Identity() if embedding else nn.Linear(8, 2)
    net = named(block=Branches(), head=pooled(head))
    assert name_of(net, images()) == "block"


# Inputs of other ranks, several inputs, further arguments


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("flat", [False, True])
def test_signals_images_and_volumes(rank, flat):
    kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
    net = named(
        one=kind(2, 4, 3, padding=1),
        two=kind(4, 5, 3, stride=2, padding=1),
        relu=nn.ReLU(),
        pool=nn.Identity() if flat else pool[rank](1),
        flatten=nn.Flatten(),
        fc=nn.LazyLinear(3),
    )
    net(torch.rand(1, 2, *[8] * rank))
    expected = "pool" if flat else "relu"
    assert name_of(net, torch.rand(1, 2, *[8] * rank)) == expected


def test_one_example_and_single_channels_are_enough():
    net = named(conv=conv(1, 1), relu=nn.ReLU(), head=pooled(nn.Linear(1, 1)))
    assert name_of(net, images(1, 1)) == "relu"
    assert name_of(net, images(5, 1)) == "relu"


def test_several_inputs():
    def run(net, vector, x, small):
        one, two = net.first(x), net.second(small)
        maps = net.joint(F.max_pool2d(one, 2) + two)
        return net.fc(maps.mean((2, 3)) + net.own(vector))

    net = Net(
        run,
        first=nn.Sequential(conv(), nn.ReLU()),
        second=nn.Sequential(conv(), nn.ReLU()),
        joint=nn.Sequential(conv(4, 4), nn.ReLU()),
        own=nn.Linear(5, 4),
        fc=nn.Linear(4, 2),
    )
    inputs = (torch.rand(2, 5), images(), images(side=8))
    # The vector's layer comes after, and is no spatial activation.
    assert name_of(net, inputs) == "joint"


def test_additional_arguments_are_passed():
    def run(net, x, gain, options):
        assert options == [3]
        return net.fc(net.layer(x * gain).mean((2, 3)))

    net = Net(run, layer=nn.Sequential(conv(), nn.ReLU()), fc=nn.Linear(4, 2))
    assert name_of(net, images(), (torch.rand(2, 1, 1, 1), [3])) == "layer"

    def run_one(net, x, gain):
        return net.fc(net.layer(gain * x).mean((2, 3)))

    net.run = run_one
    assert name_of(net, images(), torch.rand(2, 1, 1, 1)) == "layer"
    assert name_of(net, images(), 2.0) == "layer"


def test_data_parallel_on_the_cpu():
    net = named(layer=nn.Sequential(conv(), nn.ReLU()), head=pooled(nn.Linear(4, 2)))
    parallel = nn.DataParallel(net)
    assert find_layer(parallel, images()) is net.layer
    assert name_of(parallel, images()) == "module.layer"
    maps = GradCAM(parallel, "module.layer").attribute(images(), target=0)
    assert maps.shape == (2, 1, 16, 16)
    with pytest.raises(ValueError, match="'layer'; did you mean 'module.layer'"):
        GradCAM(parallel, "layer")


def test_outputs_in_a_dict_or_a_tuple():
    for pack in (lambda y: {"logits": y}, lambda y: (y, None), lambda y: [y]):
        net = Net(
            lambda net, x, pack=pack: pack(net.fc(net.layer(x).mean((2, 3)))),
            layer=nn.Sequential(conv(), nn.ReLU()),
            fc=nn.Linear(4, 2),
        )
        assert name_of(net, images()) == "layer"
    wrapped = SelectedOutput(net, 0)
    assert name_of(wrapped, images()) == "model.layer"


def test_the_layer_is_explained_as_it_is_found():
    net = named(
        one=nn.Sequential(conv(), nn.ReLU()),
        two=nn.Sequential(conv(4, 6, stride=2), nn.ReLU()),
        head=pooled(nn.Linear(6, 2)),
    )
    layer = find_layer(net, images())
    maps = UnionCAM(net, layer).attribute(images(), target=[0, 1])
    assert maps.shape == (2, 1, 8, 8)


def test_the_model_runs_three_times():
    calls = []

    def run(net, x):
        calls.append(len(x))
        return net.fc(net.layer(x).mean((2, 3)))

    net = Net(run, layer=nn.Sequential(conv(), nn.ReLU()), fc=nn.Linear(4, 2))
    find_layer(net, images(3))
    # To find the layer, and twice to see that the whole output depends on it.
    assert calls == [3, 3, 3]


def test_a_head_is_found_in_any_form_of_output():
    torch.manual_seed(0)
    net = models.squeezenet1_1(weights=None).eval()

    @dataclasses.dataclass
    class Out:
        logits: torch.Tensor

    class Formed(nn.Module):
        def __init__(self, form):
            super().__init__()
            self.net, self.form = net, form

        def forward(self, x):
            return self.form(self.net(x))

    for form in (Out, lambda y: (y, y[:, :7]), lambda y: {"logits": y}):
        assert find_layer(Formed(form), images(side=64)) is net.features


def test_a_norm_over_all_of_an_example_keeps_the_channels_first():
    for rank, kind in ((1, nn.Conv1d), (2, nn.Conv2d)):
        net = nn.Sequential(
            kind(3, 4, 3),
            nn.LayerNorm([4] + rank * [6]),
            nn.Flatten(),
            nn.Linear(4 * 6**rank, 2),
        )
        assert find_layer(net, torch.rand(2, 3, *rank * [8])) is net[1]


def test_weights_under_a_norm_are_no_activations():
    conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 4, 3))
    net = nn.Sequential(
        conv, nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    assert find_layer(net, torch.rand(2, 2, 32)) is net[1]


def test_a_convolution_may_be_called_by_keyword():
    class ByKeyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.point = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1)
            self.fc = nn.Linear(5, 2)

        def forward(self, x):
            return self.fc(self.point(input=self.conv(x)).mean((2, 3)))

    net = ByKeyword()
    assert find_layer(net, images(side=8)) is net.point
