"""The facts about Captum's public classes that the package relies on.

A Captum that changes one of them fails here first.
"""

import inspect

import pytest
import torch
from captum.attr import (
    Attribution,
    GradientAttribution,
    LayerAttribution,
    LayerGradCam,
    NoiseTunnel,
    PerturbationAttribution,
)
from captum.log import log_usage
from torch import nn


@pytest.fixture
def x():
    return torch.tensor([[[1.0, -2.0, 3.0]], [[-4.0, 5.0, 6.0]]], dtype=torch.float64)


def test_layer_attribution_stores_model_layer_and_devices():
    net = nn.Sequential(nn.Identity())
    attribution = LayerAttribution(net, net[0], [0])
    assert vars(attribution) == {
        "forward_func": net,
        "layer": net[0],
        "device_ids": [0],
    }
    assert attribution.has_convergence_delta() is False
    assert isinstance(attribution, Attribution)


def test_captums_names_and_defaults_need_the_packages_overrides():
    class UnionCAM(LayerAttribution, PerturbationAttribution):
        pass

    assert UnionCAM.get_name() != "UnionCAM"
    assert isinstance(PerturbationAttribution.multiplies_by_inputs, property)
    assert UnionCAM(None, None).multiplies_by_inputs is True


def test_layer_grad_cam_begins_with_the_common_arguments():
    parameters = inspect.signature(LayerGradCam.attribute).parameters
    assert list(parameters)[:5] == [
        "self",
        "inputs",
        "target",
        "additional_forward_args",
        "attribute_to_layer_input",
    ]
    assert [p.default for p in parameters.values()][1:5] == [
        inspect.Parameter.empty,
        None,
        None,
        False,
    ]


@pytest.mark.parametrize("base", [GradientAttribution, PerturbationAttribution])
def test_noise_tunnel_calls_the_wrapped_method_with_interleaved_examples(base, x):
    calls = []

    class Method(LayerAttribution, base):
        def __init__(self):
            LayerAttribution.__init__(self, None, None)

        @log_usage(part_of_slo=True)
        def attribute(self, inputs, target=None, additional_forward_args=None):
            calls.append((inputs, target, additional_forward_args))
            assert not torch.is_grad_enabled()
            return inputs.detach().clone()

    NoiseTunnel(Method()).attribute(
        x, nt_samples=2, stdevs=0.0, target=[0, 1], additional_forward_args=x[:, 0, 0]
    )
    ((inputs, target, arguments),) = calls
    assert torch.equal(inputs, x.repeat_interleave(2, 0))
    assert target == [0, 0, 1, 1]
    assert torch.equal(arguments[0], x[:, 0, 0].repeat_interleave(2))
    assert inputs.requires_grad is (base is GradientAttribution)


def test_noise_tunnel_refuses_methods_without_the_decorator(x):
    class Method(LayerAttribution):
        def attribute(self, inputs):
            return inputs

    with pytest.raises(AttributeError, match="__wrapped__"):
        NoiseTunnel(Method(None, None)).attribute(x, nt_samples=1, stdevs=0.0)
