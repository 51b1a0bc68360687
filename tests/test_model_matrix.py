"""Every method on real architectures of torchvision, with random weights."""

import functools

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import MaxVit, SwinTransformer, VisionTransformer

from captum_unioncam import find_layer, swin_reshape, vit_reshape
from layer_methods import LAYER_METHODS as METHODS

CLASSES = 5
# Few passes: what is tested is that each method runs on each architecture.
FEW = {"max_channels": 2, "num_samples": 2, "groups": 2}
# With the largest cosines exceeded by none, all channels have one group.
OWN = {"fdcam": {"percentile": 100}}
TARGETS = [0, 3]
# Heads that CAM refuses, by what it says of them.
NOT_POOLED = {
    "alexnet": r"3 modules with weights .*: classifier.1 \(Linear\), classifier.4",
    "vgg16": r"3 modules with weights .*: classifier.0 \(Linear\), classifier.3",
    "densenet121": r"classifier \(Linear\) does not .* the mean after a ReLU",
    "mobilenet_v3_small": r"2 modules .*: classifier.0 \(Linear\), classifier.3",
    "convnext_tiny": r"classifier.0 \(LayerNorm2d\), classifier.2 \(Linear\)",
    "maxvit": r"classifier.2 \(LayerNorm\), classifier.3 \(Linear\)",
}
BLOCKS = "modules with weights run after `layer`, where one"
# Random weights leave little to see to some methods.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:.* constant. they have one value:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*initialization:FutureWarning"),
    # DenseNet's activation is a function, and SqueezeNet's scores are after a ReLU,
    # and may be zero.
    pytest.mark.filterwarnings("ignore:The head reads the ReLU:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* are in .0, 1. and do not sum:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* made without the gradient map:UserWarning"),
    pytest.mark.filterwarnings("ignore:.* made without the channels that:UserWarning"),
]

HOOK_DICTS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]


def small_vit():
    model = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES)
    # torchvision starts with a head of zeros, which has no gradients.
    nn.init.normal_(model.heads.head.weight)
    return model


def small_swin():
    return SwinTransformer([4, 4], 12, [2, 2], [2, 4], [4, 4], num_classes=CLASSES)


def small_maxvit():
    return MaxVit((64, 64), 8, 4, [8, 16], [1, 1], 4, 0.0, num_classes=CLASSES)


def torchvision_model(name, **options):
    return lambda: models.get_model(name, weights=None, num_classes=CLASSES, **options)


def narrow(name, width=64, **options):
    """Builds a model with narrow hidden layers in its head, whose weights are most."""

    def build():
        model = torchvision_model(name, **options)()
        for i, layer in enumerate(model.classifier):
            if isinstance(layer, nn.Linear):
                sizes = [min(layer.in_features, width), min(layer.out_features, width)]
                if layer.in_features > 4096:  # the flattened maps
                    sizes[0] = layer.in_features
                model.classifier[i] = nn.Linear(*sizes)
        return model

    return build


# How each is built, the side of its images, and the last spatial activation before the
# head: torchvision's code, read by hand.
MODELS = {
    "alexnet": (narrow("alexnet"), 95, "features"),
    "vgg16": (narrow("vgg16", init_weights=False), 32, "features.29"),
    "resnet18": (torchvision_model("resnet18"), 64, "layer4"),
    "densenet121": (torchvision_model("densenet121"), 64, "features"),
    "inception_v3": (
        torchvision_model("inception_v3", init_weights=False),
        107,
        "Mixed_7c",
    ),
    "googlenet": (
        torchvision_model("googlenet", init_weights=False),
        64,
        "inception5b",
    ),
    "squeezenet1_1": (torchvision_model("squeezenet1_1"), 64, "features"),
    "mobilenet_v3_small": (torchvision_model("mobilenet_v3_small"), 64, "features"),
    "shufflenet_v2_x0_5": (torchvision_model("shufflenet_v2_x0_5"), 64, "conv5"),
    "efficientnet_b0": (torchvision_model("efficientnet_b0"), 64, "features"),
    "regnet_y_400mf": (torchvision_model("regnet_y_400mf"), 64, "trunk_output"),
    "convnext_tiny": (torchvision_model("convnext_tiny"), 64, "features"),
    "swin_t": (torchvision_model("swin_t"), 64, "permute"),
    "maxvit": (small_maxvit, 64, "blocks.1"),
}


@functools.lru_cache(maxsize=1)
def built(name):
    """Returns a model in eval mode, and two images for it."""
    build, side, _ = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval(), torch.rand(2, 3, side, side)


def state(model):
    """Returns what an explanation must leave alone."""
    modules = [
        (module.training, *(len(getattr(module, name)) for name in HOOK_DICTS))
        for module in model.modules()
    ]
    tensors = [
        (tensor.data_ptr(), tensor._version, tensor.requires_grad, tensor.grad is None)
        for tensor in (*model.parameters(), *model.buffers())
    ]
    return modules, tensors


def size_of(model, layer, inputs):
    """Returns the size of a layer's positions, (h, w), for its last run."""
    shapes = []
    handle = layer.register_forward_hook(lambda *call: shapes.append(call[2].shape))
    with torch.no_grad():
        model(inputs)
    handle.remove()
    return tuple(shapes[-1][2:])


def check_every_method(model, inputs, layer, size, refused=None, **options):
    """Runs all methods, and returns the names of those whose maps are not constant.

    ``refused`` is what CAM says of a model that it refuses.
    """
    before, images = state(model), inputs.clone()
    varied = set()
    for name, method in METHODS.items():
        own = OWN.get(name)
        explain = method.explain(model, layer, own, **FEW, **options)
        if name == "cam" and refused:
            with pytest.raises(ValueError, match=f"`head` is not given.*{refused}"):
                explain(inputs, target=TARGETS)
            assert state(model) == before
            continue
        maps = explain(inputs, target=TARGETS)
        assert maps.shape == (2, 1, *size), name
        assert maps.isfinite().all() and (maps >= 0).all(), name
        assert maps.dtype == inputs.dtype and not maps.requires_grad, name
        assert state(model) == before, name
        assert torch.equal(inputs, images), name
        if (maps.flatten(1).amax(1) > maps.flatten(1).amin(1)).all():
            varied.add(name)
    return varied


def check_batch_equals_singles(model, inputs, layer, **options):
    """A sharp comparison takes float64: the choice of UnionCAM must not flip."""
    for name in ("layercam", "unioncam"):
        explain = METHODS[name].explain(model, layer, **FEW, **options)
        together = explain(inputs, target=TARGETS)
        alone = [
            explain(inputs[i : i + 1], target=TARGETS[i]) for i in range(len(inputs))
        ]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-9)


every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_every_method_explains_the_layer_that_find_layer_finds(name):
    model, inputs = built(name)
    before = state(model)
    layer = find_layer(model, inputs)
    assert state(model) == before
    assert layer is model.get_submodule(MODELS[name][2])
    size = size_of(model, layer, inputs)
    assert min(size) > 1
    varied = check_every_method(model, inputs, layer, size, NOT_POOLED.get(name))
    # The channels of maxvit, all together, sum to less than 0.
    assert len(varied) >= (1 if name == "maxvit" else 4), varied
    # Last, because it converts the model.
    check_batch_equals_singles(model.double(), inputs.double(), layer)
    built.cache_clear()


def test_every_method_explains_a_vision_transformer_by_vit_reshape():
    torch.manual_seed(0)
    model, inputs = small_vit().eval(), torch.rand(2, 3, 32, 32)
    with pytest.raises(ValueError, match="captum_unioncam.vit_reshape"):
        find_layer(model, inputs)
    layer = model.encoder.layers[-1].ln_1
    varied = check_every_method(
        model, inputs, layer, (4, 4), BLOCKS, reshape_transform=vit_reshape
    )
    # Layer normalisation leaves channels that sum to nothing: the score-weighted maps
    # of an untrained model are about 0.
    assert len(varied) >= 5, varied
    check_batch_equals_singles(
        model.double(), inputs.double(), layer, reshape_transform=vit_reshape
    )


def test_every_method_refuses_a_vision_transformers_tokens_without_a_transform():
    torch.manual_seed(0)
    model, inputs = small_vit().eval(), torch.rand(2, 3, 32, 32)
    for layer in ("encoder.layers.encoder_layer_1.ln_1", "encoder", "encoder.ln"):
        for method in METHODS.values():
            explain = method.explain(model, layer, **FEW)
            with pytest.raises(ValueError, match="=captum_unioncam.vit_reshape"):
                explain(inputs, target=TARGETS)


def test_every_method_explains_an_inner_layer_of_a_swin_transformer():
    torch.manual_seed(0)
    model, inputs = small_swin().eval(), torch.rand(2, 3, 32, 32)
    assert find_layer(model, inputs) is model.permute
    layer = model.features[1]  # (N, 8, 8, 12)
    for method in METHODS.values():
        explain = method.explain(model, layer, **FEW)
        with pytest.raises(ValueError, match="=captum_unioncam.swin_reshape"):
            explain(inputs, target=TARGETS)
    varied = check_every_method(
        model, inputs, layer, (8, 8), BLOCKS, reshape_transform=swin_reshape
    )
    assert len(varied) >= 10, varied
    check_batch_equals_singles(
        model.double(), inputs.double(), layer, reshape_transform=swin_reshape
    )


def test_the_last_block_of_a_swin_transformer_equals_its_permutation():
    torch.manual_seed(0)
    model, inputs = small_swin().eval().double(), torch.rand(2, 3, 32, 32).double()
    for name, method in METHODS.items():
        by_permute, by_norm = (
            method.explain(model, layer, OWN.get(name), **FEW, reshape_transform=form)
            for layer, form in (("permute", None), ("norm", swin_reshape))
        )
        torch.testing.assert_close(
            by_norm(inputs, target=TARGETS),
            by_permute(inputs, target=TARGETS),
            rtol=0,
            atol=1e-10,
            msg=name,
        )
