"""Captum's tools on every method: NoiseTunnel, metrics, pictures, configurations."""

import copy
import math
import warnings

import matplotlib
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerAttribution, LayerGradCam, NoiseTunnel, visualization
from captum.metrics import (
    infidelity,
    infidelity_perturb_func_decorator,
    sensitivity_max,
)
from captum.testing.attr.helpers.gen_test_utils import get_target_layer
from captum.testing.attr.helpers.test_config import config as captum_configs
from contract.shared import (
    CONTRACT_MARKS,
    EXACT,
    EXAMPLES,
    GRADIENT,
    METHODS,
    SIZE,
    TARGETS,
    ArgsNet,
    ManyInputsNet,
    assert_same_maps,
    every_method,
    hooks_of,
    make_images,
    many_inputs,
    methods_with,
    one_by_one,
)

from captum_unioncam import SmoothGradCAMPlusPlus, as_explanation_func, to_input

matplotlib.use("Agg")

pytestmark = CONTRACT_MARKS

method_or_layer_grad_cam = pytest.mark.parametrize("method", [*METHODS, LayerGradCam])


# NoiseTunnel


@every_method
@pytest.mark.parametrize("batch_size", [None, 1, 2, 4])
def test_noise_tunnel_without_noise_gives_the_plain_map(
    method, images, gain, batch_size
):
    net = ArgsNet()
    cam = method(net, net.relu)
    expected = cam.attribute(images, TARGETS, gain)
    maps = NoiseTunnel(cam).attribute(
        images,
        nt_samples=4,
        nt_samples_batch_size=batch_size,
        stdevs=0.0,
        target=TARGETS,
        additional_forward_args=gain,
    )
    assert isinstance(maps, torch.Tensor)
    assert_same_maps(maps, expected)


@every_method
def test_noise_tunnel_averages_the_maps_of_noisy_inputs(method, net, images):
    cam = method(net, net.relu)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        maps = NoiseTunnel(cam).attribute(
            images, nt_samples=2, stdevs=0.1, target=torch.tensor(TARGETS)
        )
        torch.manual_seed(0)
        noise = torch.normal(0, torch.full((6, *images.shape[1:]), 0.1))
    noisy = images.repeat_interleave(2, 0) + noise  # (N * samples, 3, h, w)
    expected = one_by_one(cam, noisy, [4, 4, 0, 0, 2, 2])
    expected = expected.view(3, 2, *expected.shape[1:]).mean(1)  # (N, 1, h, w)
    assert_same_maps(maps, expected)


@every_method
def test_noise_tunnel_takes_several_inputs(method):
    net, inputs = ManyInputsNet(), many_inputs()
    cam = method(net, net.relu)
    maps = NoiseTunnel(cam).attribute(
        inputs, nt_samples=2, stdevs=(0.0, 0.0, 0.0), target=1
    )
    assert_same_maps(maps, cam.attribute(inputs, target=1))


@pytest.mark.parametrize("method", methods_with("baselines"))
@pytest.mark.parametrize("shape", [(EXAMPLES, 3, *SIZE[:2]), (1, 3, 1, 1)], ids=repr)
def test_noise_tunnel_takes_baselines(method, net, images, shape):
    baselines = torch.linspace(0, 0.5, math.prod(shape), dtype=torch.float64)
    baselines = baselines.view(shape)
    cam = method(net, net.relu)
    expected = cam.attribute(images, TARGETS, baselines=baselines)
    assert not torch.allclose(expected, cam.attribute(images, TARGETS), **EXACT)
    maps = NoiseTunnel(cam).attribute(
        images, nt_samples=2, stdevs=0.0, target=TARGETS, baselines=baselines
    )
    assert_same_maps(maps, expected)


# Metrics


def shifts(rows):
    """Returns a fixed perturbation for each row of a batch, (rows, 1, 1, w)."""
    return torch.linspace(-0.2, 0.3, rows, dtype=torch.float64).view(-1, 1, 1, 1) * (
        torch.arange(SIZE[1], dtype=torch.float64) - 2
    )


@every_method
@pytest.mark.parametrize("normalize", [False, True])
def test_infidelity_takes_maps_that_are_resized_to_the_input(
    method, net, images, normalize
):
    @infidelity_perturb_func_decorator(False)
    def perturb(inputs):
        return inputs - shifts(len(inputs)).expand_as(inputs)

    samples = 3
    maps = method(net, net.relu).attribute(images, target=TARGETS)
    attributions = to_input(maps, images)
    value = infidelity(
        net,
        perturb,
        images,
        attributions,
        target=TARGETS,
        n_perturb_samples=samples,
        normalize=normalize,
    )
    assert value.shape == (EXAMPLES,)

    large = F.interpolate(maps, SIZE[:2], mode="bilinear")  # (N, 1, H, W)
    shift = shifts(EXAMPLES * samples).view(EXAMPLES, samples, 1, 1, SIZE[1])
    for i, target in enumerate(TARGETS):
        with torch.no_grad():
            drop = net(images[i : i + 1])[:, target] - torch.cat(
                [net(images[i : i + 1] - s)[:, target] for s in shift[i]]
            )  # (samples,)
        dot = torch.stack(
            [(s * large[i] * torch.ones(3, 1, 1)).sum() for s in shift[i]]
        )  # (samples,)
        if normalize:
            dot = dot * (drop * dot).mean() / dot.square().mean()
        torch.testing.assert_close(value[i], (dot - drop).square().mean().double())


@every_method
def test_infidelity_refuses_maps_of_the_layers_size(method, net, images):
    maps = method(net, net.relu).attribute(images, target=1)
    with pytest.raises(AssertionError, match="matching shapes"):
        infidelity(net, lambda x: (x, x), images, maps, target=1)


def perturb_each_row(inputs):
    """Shifts each row by an amount of its own."""
    return inputs + shifts(len(inputs))


def sensitivity_by_hand(attribution, images, targets, samples):
    """Returns the largest relative change of each example's map, (N,)."""
    shift = shifts(len(images) * samples).view(len(images), samples, 1, 1, -1)
    values = []
    for i, target in enumerate(targets):
        image = images[i : i + 1]
        plain = attribution.attribute(image, target=target)
        distances = [
            (attribution.attribute(image + s, target=target) - plain).norm()
            for s in shift[i]
        ]
        values.append(max(distances) / plain.norm())
    return torch.stack(values).detach()


@method_or_layer_grad_cam
@pytest.mark.parametrize("examples", [1, 3])
def test_sensitivity_max_reads_the_explanation_func_right(method, net, examples):
    images, targets = make_images(examples), TARGETS[:examples]
    attribution = method(net, net.relu)
    value = sensitivity_max(
        as_explanation_func(attribution),
        images,
        perturb_each_row,
        n_perturb_samples=4,
        target=targets,
    )
    expected = sensitivity_by_hand(attribution, images, targets, 4)
    assert value.shape == (examples,)
    assert value.min() > 0
    torch.testing.assert_close(value.detach(), expected)


@method_or_layer_grad_cam
def test_sensitivity_max_of_a_bare_layer_attribution_is_wrong(method, net):
    """This is why as_explanation_func exists; Captum may fix it one day."""
    attribution, images = method(net, net.relu), make_images(1)
    value = sensitivity_max(
        attribution.attribute, images, perturb_each_row, n_perturb_samples=4, target=1
    )
    expected = sensitivity_by_hand(attribution, images, [1], 4)
    assert not torch.allclose(value.detach(), expected, rtol=0.1)
    with pytest.raises(RuntimeError, match="size of tensor"):
        sensitivity_max(
            attribution.attribute,
            make_images(2),
            perturb_each_row,
            n_perturb_samples=3,
            target=1,
        )


@every_method
def test_sensitivity_max_expands_per_example_arguments(method, images, gain):
    net = ArgsNet()
    cam = method(net, net.relu)
    value = sensitivity_max(
        as_explanation_func(cam),
        images,
        lambda x: x,
        n_perturb_samples=2,
        target=torch.tensor(TARGETS),
        additional_forward_args=gain,
    )
    # An unchanged input has an unchanged map, if each row keeps its own arguments.
    torch.testing.assert_close(value, torch.zeros(EXAMPLES).double(), **EXACT)


# Pictures


@every_method
def test_maps_can_be_drawn(method, net, images):
    maps = method(net, net.relu).attribute(images, target=1)
    heat = to_input(maps, images)[0, :1].permute(1, 2, 0).numpy()  # (H, W, 1)
    image = images[0].permute(1, 2, 0).numpy()  # (H, W, 3)
    figure, _ = visualization.visualize_image_attr(
        heat, image, "blended_heat_map", "positive", use_pyplot=False
    )
    assert len(figure.axes[0].images) == 2
    figure, _ = visualization.visualize_image_attr_multiple(
        heat,
        image,
        ["original_image", "heat_map", "masked_image"],
        ["all", "positive", "positive"],
        use_pyplot=False,
    )
    assert [len(axis.images) for axis in figure.axes[:3]] == [1, 1, 1]
    interpolated = LayerAttribution.interpolate(maps, SIZE[:2], "bilinear")
    assert interpolated.shape == (EXAMPLES, 1, *SIZE[:2])


# Configurations of Captum's own tests


LAYER_CONFIGS = [
    config for config in captum_configs if LayerGradCam in config["algorithms"]
]
SPATIAL_CONFIGS = {"conv_layer_single_target"}


def test_captum_still_has_configurations_of_both_kinds():
    names = {config["name"] for config in LAYER_CONFIGS}
    assert SPATIAL_CONFIGS < names
    assert not any(config.get("noise_tunnel") for config in LAYER_CONFIGS)


@every_method
@pytest.mark.parametrize("config", LAYER_CONFIGS, ids=lambda config: config["name"])
def test_captums_configurations_run_or_are_refused_as_not_spatial(method, config):
    model = copy.deepcopy(config["model"])
    layer = get_target_layer(model, config["layer"])
    options = dict(config["attribute_args"])
    before = hooks_of(model)
    cam = method(model, layer)
    if config["name"] in SPATIAL_CONFIGS:
        model.double()
        inputs, target = options["inputs"].double(), options["target"]
        with torch.no_grad():
            # Captum's weights are all equal, so that no output depends on the inputs,
            # and only rounding errors would decide on a map.
            model.fc2.weight[target] += 1e-3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            maps = cam.attribute(inputs, target=target)
            expected = one_by_one(cam, inputs, [target] * len(inputs))
        assert_same_maps(maps, expected)
        with pytest.raises(AssertionError, match="Cannot choose target column"):
            cam.attribute(inputs, target=(9999,) * 20)
    else:
        with pytest.raises(ValueError, match="spatial"):
            cam.attribute(**options)
        # The others see the layer before the target.
        if method in GRADIENT and method is not SmoothGradCAMPlusPlus:
            with pytest.raises(AssertionError, match="Cannot choose target column"):
                cam.attribute(**{**options, "target": (9999,) * 20})
    assert hooks_of(model) == before
