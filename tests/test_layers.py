"""Which layer to explain: found, named, and read by a reshape_transform."""

import copy
import dataclasses
from collections import OrderedDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from captum_unioncam import (
    GradCAM,
    LayerCAM,
    MeanOverMask,
    SelectedOutput,
    UnionCAM,
    find_layer,
    swin_reshape,
    vit_reshape,
)
from captum_unioncam.evaluation.registry import METHODS

FEW = {"max_channels": 2, "num_samples": 2, "groups": 2}
HOOK_DICTS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]

every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


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
    # SqueezeNet pools after the classifier, which puts out the same tensor then.
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


def test_one_example_and_single_channels_will_do():
    net = named(conv=conv(1, 1), relu=nn.ReLU(), head=pooled(nn.Linear(1, 1)))
    assert name_of(net, images(1, 1)) == "relu"
    assert name_of(net, images(5, 1)) == "relu"


def test_several_inputs():
    def run(net, vector, x, small):
        one = net.first(x).mean((2, 3))
        two = net.second(small).mean((2, 3))
        return net.fc(one + two + net.own(vector))

    net = Net(
        run,
        first=nn.Sequential(conv(), nn.ReLU()),
        second=nn.Sequential(conv(), nn.ReLU()),
        own=nn.Linear(5, 4),
        fc=nn.Linear(4, 2),
    )
    inputs = (torch.rand(2, 5), images(), images(side=8))
    # The vector's layer comes after, and is no spatial activation.
    assert name_of(net, inputs) == "second"


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


# Nothing of the model changes


def test_modes_and_buffers_of_a_model_in_train_mode_stay():
    net = named(
        conv=conv(),
        norm=nn.BatchNorm2d(4),
        relu=nn.ReLU(),
        head=pooled(nn.Linear(4, 2)),
    )
    net.train()
    net.norm.eval()
    net.relu.eval()
    before = [module.training for module in net.modules()]
    assert name_of(net, images()) == "relu"
    assert [module.training for module in net.modules()] == before

    net.train()
    state = copy.deepcopy(net.state_dict())
    assert name_of(net, images()) == "relu"
    assert all(module.training for module in net.modules())
    for name, value in net.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_inputs_stay_where_the_model_changes_them_in_place():
    net = named(relu=nn.ReLU(inplace=True), conv=conv(), head=pooled(nn.Linear(4, 2)))
    inputs = images() - 0.5
    before = inputs.clone()
    assert name_of(net, inputs) == "conv"
    assert torch.equal(inputs, before)


def test_gradients_and_parameters_stay():
    net = named(conv=conv(), relu=nn.ReLU(), head=pooled(nn.Linear(4, 2)))
    inputs = images().requires_grad_()
    with torch.enable_grad():
        find_layer(net, inputs)
        assert torch.is_grad_enabled()
    assert inputs.grad is None
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_no_hooks_stay_behind():
    net = named(conv=conv(), relu=nn.ReLU(), head=pooled(nn.Linear(4, 2)))
    own = net.conv.register_forward_hook(lambda *call: None)
    find_layer(net, images())
    assert hooks(net) == 1
    with pytest.raises(RuntimeError, match="shape|size|channels"):
        find_layer(net, images(channels=5))
    assert hooks(net) == 1
    own.remove()

    def explode(net, x):
        net.layer(x)
        raise KeyError("lost")

    net = Net(explode, layer=conv())
    with pytest.raises(KeyError, match="lost"):
        find_layer(net, images())
    assert hooks(net) == 0


def test_the_model_runs_once():
    calls = []

    def run(net, x):
        calls.append(len(x))
        return net.fc(net.layer(x).mean((2, 3)))

    net = Net(run, layer=nn.Sequential(conv(), nn.ReLU()), fc=nn.Linear(4, 2))
    find_layer(net, images(3))
    assert calls == [3]


# Refusals


def test_what_is_no_module_or_has_no_spatial_input_is_refused():
    with pytest.raises(TypeError, match="`model` must be a torch.nn.Module, got <func"):
        find_layer(lambda x: x, images())
    with pytest.raises(ValueError, match="`inputs` must have a tensor .* yourself"):
        find_layer(nn.Linear(3, 2), torch.rand(2, 3))
    with pytest.raises(ValueError, match="`inputs` must have a tensor .* yourself"):
        find_layer(nn.Linear(3, 2), (torch.rand(2, 3), torch.rand(2, 1, 1, 1, 1, 1)))


def test_a_model_of_vectors_alone_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="`model` has no layer .* yourself"):
        find_layer(net, images())


def test_a_model_of_one_position_is_refused():
    net = named(conv=nn.Conv2d(3, 4, 16), relu=nn.ReLU(), head=pooled(nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="`model` has no layer .* one position before"):
        find_layer(net, images())


def test_functions_alone_are_refused():
    net = Net(lambda net, x: x.mean((2, 3)))
    with pytest.raises(ValueError, match="`model` has no layer .* yourself"):
        find_layer(net, images())


def test_segmentation_is_refused():
    plain = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(4, 5, 1))
    aspp = models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None
    )
    for net in (plain, aspp.eval(), SelectedOutput(aspp, "out").eval()):
        with pytest.raises(ValueError, match="puts out a map, so that .* yourself"):
            find_layer(net, images(side=64))


def test_segmentation_under_a_mask_has_a_layer_before_its_classes():
    net = MeanOverMask(named(conv=conv(), relu=nn.ReLU(), classes=nn.Conv2d(4, 5, 1)))
    masks = torch.ones(2, 1, 16, 16)
    assert name_of(net, images(), (masks,)) == "model.relu"


def test_detection_is_refused():
    net = models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, box_score_thresh=0.0
    ).eval()
    with pytest.raises(ValueError, match="`model` .* name the layer yourself"):
        find_layer(net, images(1, side=64))
    anchors = models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None
    )
    with pytest.raises(ValueError, match="`model` .* name the layer yourself"):
        find_layer(anchors.eval(), images(1, side=64))


def test_a_detector_that_returns_maps_is_refused():
    def run(net, x):
        maps = net.conv(x)
        return [net.head(maps), net.head(F.max_pool2d(maps, 2))]

    net = Net(run, conv=conv(), head=nn.Conv2d(4, 6, 1))
    with pytest.raises(ValueError, match="puts out a map"):
        find_layer(net, images())


class PatchTransformer(nn.Module):
    """A transformer encoder on the patches of an image or a signal."""

    def __init__(self, rank, norm_first, pool, batch_first=True):
        super().__init__()
        kind = {1: nn.Conv1d, 2: nn.Conv2d}[rank]
        self.patches = kind(3, 8, 4, 4)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                8, 2, 16, batch_first=batch_first, norm_first=norm_first
            ),
            2,
            enable_nested_tensor=False,
        )
        self.batch_first, self.pool, self.fc = batch_first, pool, nn.Linear(8, 2)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        if not self.batch_first:
            tokens = tokens.transpose(0, 1)
        tokens = self.encoder(tokens)
        if not self.batch_first:
            tokens = tokens.transpose(0, 1)
        return self.fc(tokens.mean(1) if self.pool else tokens[:, 0])


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_transformers_on_patches_are_refused(rank, norm_first, pool, batch_first):
    net = PatchTransformer(rank, norm_first, pool, batch_first).eval()
    # As many patches as features, and one for each example, are no excuse.
    for examples, side in [(2, 16), (1, 32), (4, 16), (8, 32)]:
        inputs = torch.rand(examples, 3, *[side] * rank)
        with pytest.raises(ValueError, match="tokens.*captum_unioncam.vit_reshape"):
            find_layer(net, inputs)


def test_vision_transformers_are_refused():
    net = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()
    with pytest.raises(ValueError, match="tokens.*vit_reshape or .*swin_reshape"):
        find_layer(net, images(side=32))


def test_attention_after_convolutions_is_refused():
    def run(net, x):
        tokens = net.conv(x).flatten(2).transpose(1, 2)
        return net.fc(net.attention(tokens, tokens, tokens)[0].mean(1))

    net = Net(
        run,
        conv=nn.Conv2d(3, 8, 4, 4),
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
        fc=nn.Linear(8, 2),
    ).eval()
    with pytest.raises(ValueError, match="'attention'.*before its output"):
        find_layer(net, images())


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrence_after_convolutions_is_refused(rank, batch_first, kind):
    def run(net, x):
        steps = net.conv(x).flatten(2).transpose(1, 2)
        output, _ = net.rnn(steps if batch_first else steps.transpose(0, 1))
        return net.fc(output[:, -1] if batch_first else output[-1])

    layer = {1: nn.Conv1d, 2: nn.Conv2d}[rank](3, 8, 4, 4)
    rnn = kind(8, 8, batch_first=batch_first)
    net = Net(run, conv=layer, rnn=rnn, fc=nn.Linear(8, 2))
    with pytest.raises(ValueError, match="'rnn'.*before its output"):
        find_layer(net, torch.rand(2, 3, *[16] * rank))


def test_channels_last_of_a_block_are_refused():
    channels = 12  # 8, as many as rows and columns, could come first

    def run(net, x):
        maps = net.conv(x).permute(0, 2, 3, 1)
        return net.fc(net.block(maps).mean((1, 2)))

    net = Net(
        run,
        conv=nn.Conv2d(3, channels, 4, 4),  # 8 x 8 positions
        block=nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU()
        ),
        fc=nn.Linear(channels, 2),
    )
    with pytest.raises(ValueError, match="channels in the last place"):
        find_layer(net, images(side=32))


def test_a_convolution_after_tokens_is_found():
    """A hybrid: the tokens are made a map again."""

    def run(net, x):
        maps = net.conv(x)
        tokens = net.norm(maps.flatten(2).transpose(1, 2))
        maps = tokens.transpose(1, 2).reshape(maps.shape)
        return net.fc(net.last(maps).mean((2, 3)))

    net = Net(
        run,
        conv=conv(),
        norm=nn.LayerNorm(4),
        last=nn.Sequential(conv(4, 6), nn.ReLU()),
        fc=nn.Linear(6, 2),
    )
    assert name_of(net, images()) == "last"


def test_patches_as_rows_of_the_batch_are_refused():
    """Several crops of each example: the rows are not the examples."""

    def run(net, x):
        crops = torch.cat([x[..., :8, :8], x[..., 8:, 8:]])
        return net.fc(net.layer(crops).mean((2, 3))).view(2, len(x), -1).mean(0)

    net = Net(run, layer=nn.Sequential(conv(), nn.ReLU()), fc=nn.Linear(4, 2))
    with pytest.raises(ValueError, match="other rows than the inputs"):
        find_layer(net, images())


# vit_reshape and swin_reshape


def test_vit_reshape_lays_patch_tokens_row_by_row():
    tokens = torch.arange(2 * 7 * 3).view(2, 7, 3)
    maps = vit_reshape(tokens, grid=(2, 3))
    assert maps.shape == (2, 3, 2, 3)
    for example in range(2):
        for row in range(2):
            for column in range(3):
                patch = tokens[example, 1 + 3 * row + column]
                assert torch.equal(maps[example, :, row, column], patch)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_vit_reshape_drops_the_tokens_before_the_patches(prefix):
    tokens = torch.rand(2, prefix + 9, 4)
    maps = vit_reshape(tokens, prefix)
    assert maps.shape == (2, 4, 3, 3)
    assert torch.equal(maps.flatten(2), tokens[:, prefix:].transpose(1, 2))
    same = partial(vit_reshape, prefix_tokens=prefix, grid=[3, 3])(tokens)
    assert torch.equal(same, maps)


def test_vit_reshape_takes_grids_of_other_ranks_and_empty_batches():
    assert vit_reshape(torch.rand(2, 25, 4), grid=(2, 3, 4)).shape == (2, 4, 2, 3, 4)
    assert vit_reshape(torch.rand(2, 25, 4), grid=(24,)).shape == (2, 4, 24)
    assert vit_reshape(torch.rand(0, 10, 4)).shape == (0, 4, 3, 3)
    assert vit_reshape(torch.rand(2, 2, 4)).shape == (2, 4, 1, 1)


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        ((2, 197), {}, r"tokens of shape \(N, T, D\), got \(2, 197\)"),
        ((2, 7, 7, 96), {}, r"got \(2, 7, 7, 96\); .* takes `swin_reshape`"),
        ((2, 196, 8), {}, "196 tokens without 1 .* leave 195, which do not form"),
        ((2, 201, 8), {}, "leave 200, which do not form a grid of"),
        ((2, 197, 8), {"grid": (14, 13)}, r"do not form a grid of \(14, 13\)"),
        (
            (2, 197, 8),
            {"prefix_tokens": 5},
            "leave 192, .* prefix_tokens=5, grid=.rows",
        ),
        ((2, 3, 8), {"prefix_tokens": 3}, "leave 0, which do not form"),
        ((2, 3, 8), {"prefix_tokens": 5}, "leave -2, which do not form"),
        ((2, 1, 8), {}, "leave 0, which do not form"),
    ],
)
def test_vit_reshape_refuses_what_forms_no_grid(tokens, options, message):
    with pytest.raises(ValueError, match=f"`vit_reshape`.*{message}"):
        vit_reshape(torch.rand(tokens), **options)


def test_swin_reshape_moves_the_channels():
    maps = torch.rand(2, 3, 4, 5)
    assert torch.equal(swin_reshape(maps), maps.permute(0, 3, 1, 2))
    assert swin_reshape(torch.rand(2, 9, 5)).shape == (2, 5, 9)
    assert swin_reshape(torch.rand(2, 3, 4, 6, 5)).shape == (2, 5, 3, 4, 6)


# Names


def convnet():
    return named(
        stem=nn.Sequential(conv(), nn.ReLU()),
        layer1=nn.Sequential(conv(4, 4), nn.ReLU()),
        layer2=nn.Sequential(conv(4, 5, stride=2), nn.ReLU()),
        head=pooled(nn.Linear(5, 3)),
    )


@every_method
@pytest.mark.filterwarnings("ignore:.* flat. they have one value:UserWarning")
def test_every_method_takes_a_dotted_name(name):
    net, inputs = convnet(), images()
    for layer in ("layer2", "layer2.0"):
        by_name = METHODS[name].explain(net, layer, **FEW)(inputs, target=[0, 2])
        module = net.get_submodule(layer)
        by_module = METHODS[name].explain(net, module, **FEW)(inputs, target=[0, 2])
        assert torch.equal(by_name, by_module)
        assert METHODS[name].attribution(net, layer).layer is module


@every_method
def test_every_method_says_what_was_meant(name):
    cam, net = METHODS[name].attribution, convnet()
    with pytest.raises(
        ValueError, match="Sequential has no layer 'layer3'; did you mea"
    ):
        cam(net, "layer3")
    with pytest.raises(ValueError, match="did you mean .*'layer2.0'"):
        cam(net, "layer2.9")
    with pytest.raises(
        ValueError, match="no layer 'xyz'; it has 'stem', 'layer1', 'la"
    ):
        cam(net, "xyz")
    with pytest.raises(ValueError, match="no layer ''"):
        cam(net, "")


@every_method
def test_a_name_without_its_wrapper_is_named_with_it(name):
    net = SelectedOutput(convnet(), 0)
    with pytest.raises(ValueError, match="'layer2'; did you mean 'model.layer2'"):
        METHODS[name].attribution(net, "layer2")
    net = nn.Sequential(nn.Identity(), convnet())
    with pytest.raises(ValueError, match="'layer2.0'; did you mean '1.layer2.0'"):
        METHODS[name].attribution(net, "layer2.0")


@every_method
def test_a_name_takes_a_module_to_look_it_up_in(name):
    net = convnet()
    cam = METHODS[name].attribution
    for forward_func in (lambda x: net(x), partial(net), net.forward):
        with pytest.raises(
            TypeError, match="may be a name, 'layer2', only if `forward"
        ):
            cam(forward_func, "layer2")
    for layer in (None, 3, ["layer2"], net.layer2.forward, nn.ReLU, b"layer2"):
        with pytest.raises(TypeError, match="`layer` must be a torch.nn.Module or its"):
            cam(net, layer)


def test_a_model_without_layers_has_none_to_name():
    with pytest.raises(ValueError, match="Linear has no layer 'fc'; it has none"):
        GradCAM(nn.Linear(3, 2), "fc")


def test_a_module_of_two_names_has_both():
    """named_modules() lists a shared module once; each of its names is one."""
    net = convnet()
    net.again = net.layer2
    net.forward = lambda x: net.head(net.layer2(net.layer1(net.stem(x))))
    assert GradCAM(net, "layer2").layer is net.layer2
    assert GradCAM(net, "again").layer is net.layer2
    assert GradCAM(net, "again.1").layer is net.layer2[1]


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
    for rank, conv in ((1, nn.Conv1d), (2, nn.Conv2d)):
        net = nn.Sequential(
            conv(3, 4, 3),
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


def test_bad_inputs_are_named():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(TypeError, match="`inputs` must be a Tensor or a tuple .* list"):
        find_layer(net, [images(side=8)])
    with pytest.raises(ValueError, match="`inputs` must hold at least one example"):
        find_layer(net, torch.rand(0, 3, 8, 8))
    assert find_layer(net, images(side=8)) is net[0]


def test_additional_arguments_stay():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x, bias):
            return self.fc(self.conv(x).mean((2, 3))) + bias.add_(1)

    bias, net = torch.zeros(2), Adds()
    assert find_layer(net, images(side=8), bias) is net.conv
    assert not bias.any()


@pytest.mark.parametrize("grid", [4, (-2, -8), (0, 16)])
def test_a_grid_is_positive_numbers(grid):
    with pytest.raises(ValueError, match="`grid` must be positive numbers"):
        vit_reshape(torch.rand(1, 16, 3), prefix_tokens=0, grid=grid)


def test_tokens_of_a_sequence_are_refused():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.fc = nn.Embedding(9, 8), nn.Linear(8, 2)

        def forward(self, words):
            return self.fc(self.layer(words).mean(1))

    cam = LayerCAM(Text(), "layer")
    with pytest.raises(ValueError, match="tokens, .* of a sequence.*swin_reshape"):
        cam.attribute(torch.randint(9, (2, 5)), target=0)
