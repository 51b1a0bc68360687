"""Which layer to explain: by its name, and read by a reshape_transform."""

from functools import partial

import pytest
import torch
from headed import METHODS
from layer_nets import conv, images, named, pooled
from torch import nn

from captum_unioncam import GradCAM, SelectedOutput, swin_reshape, vit_reshape

FEW = {"max_channels": 2, "num_samples": 2, "groups": 2}
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


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
@pytest.mark.filterwarnings("ignore:.* constant. they have one value:UserWarning")
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
    for layer in (None, 3, [3], ["layer2", None], net.layer2.forward, nn.ReLU, b"l"):
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


@pytest.mark.parametrize("grid", [4, (-2, -8), (0, 16)])
def test_a_grid_is_positive_numbers(grid):
    with pytest.raises(ValueError, match="`grid` must be positive numbers"):
        vit_reshape(torch.rand(1, 16, 3), prefix_tokens=0, grid=grid)
