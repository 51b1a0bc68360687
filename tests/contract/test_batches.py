"""Batches and chunks: neither changes a map."""

import math

import pytest
import torch
from contract.shared import (
    CHANNELS,
    CLASSES,
    CONTRACT_MARKS,
    LAYER_SIZE,
    ArgsNet,
    Recorder,
    assert_same_maps,
    every_method,
    every_rank,
    make_images,
    make_net,
    one_by_one,
    perturbing_method,
)

from captum_unioncam import FDCAM, ReciproCAM

pytestmark = CONTRACT_MARKS

FIVE_TARGETS = [4, 0, 1, 4, 2]


# Batches


@every_method
@every_rank
@pytest.mark.parametrize("layer", ["conv", "relu", "tanh"])
def test_a_batch_equals_its_examples_alone(method, dims, layer):
    net, images = make_net(dims), make_images(5, dims)
    images[1] *= 3  # so that a scale shared by the batch would show
    images[2] *= 0.5
    cam = method(net, net.get_submodule(layer))
    maps = cam.attribute(images, target=FIVE_TARGETS)
    assert_same_maps(maps, one_by_one(cam, images, FIVE_TARGETS))


@every_method
def test_the_order_of_the_examples_does_not_matter(method, net):
    images, targets = make_images(5), FIVE_TARGETS
    cam = method(net, net.relu)
    maps = cam.attribute(images, target=targets)
    backwards = cam.attribute(images.flip(0), target=targets[::-1])
    assert_same_maps(backwards.flip(0), maps)


@every_method
@every_rank
@pytest.mark.parametrize("target", [1, []], ids=repr)
def test_an_empty_batch_gives_an_empty_result(method, dims, target):
    net = make_net(dims)
    maps = method(net, net.relu).attribute(make_images(0, dims), target=target)
    assert maps.shape == (0, 1, *LAYER_SIZE[:dims])
    assert maps.dtype == torch.float64


# Chunks


@perturbing_method
@pytest.mark.parametrize("per_eval", [1, 2, 3, 7, 1000])
def test_any_perturbations_per_eval_gives_the_same_map(method, per_eval):
    net, images, targets = ArgsNet(), make_images(5), FIVE_TARGETS
    # One argument acts before the layer, the other one after it.
    gain = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    weights = torch.linspace(0.7, 1.3, 5 * CLASSES, dtype=torch.float64)
    rows = (gain, None, weights.view(5, CLASSES))
    cam = method(net, net.net.conv)
    expected = cam.attribute(images, targets, rows, perturbations_per_eval=None)
    for form in (targets, torch.tensor(targets)):
        maps = cam.attribute(images, form, rows, perturbations_per_eval=per_eval)
        assert_same_maps(maps, expected)


@perturbing_method
@pytest.mark.parametrize("per_eval", [1, 2, 3, 7])
@pytest.mark.parametrize("examples", [1, 3])
def test_passes_hold_at_most_perturbations_per_eval_for_each_example(
    method, net, per_eval, examples
):
    forward_func = Recorder(net)
    method(forward_func, net.relu).attribute(
        make_images(examples), target=1, perturbations_per_eval=per_eval
    )
    assert max(forward_func.sizes) <= per_eval * examples
    # GroupCAM has a group for each channel: there are fewer channels than groups.
    whole = {ReciproCAM: math.prod(LAYER_SIZE[:2]), FDCAM: 2 * CHANNELS}
    whole = whole.get(method, CHANNELS)
    assert max(forward_func.sizes) == min(per_eval, whole) * examples


@perturbing_method
def test_larger_chunks_make_fewer_passes(method, net, images):
    passes = []
    for per_eval in (1, 4):
        forward_func = Recorder(net)
        method(forward_func, net.relu).attribute(
            images, target=1, perturbations_per_eval=per_eval
        )
        passes.append(len(forward_func.sizes))
    assert passes[1] < passes[0]


@perturbing_method
def test_default_passes_on_the_cpu_hold_at_most_four_perturbed_inputs(method, net):
    forward_func = Recorder(net)
    method(forward_func, net.relu).attribute(make_images(4), target=1)
    # A long call, as of ReciproCAM, tries others.
    assert max(forward_func.sizes[:4]) == 4


@perturbing_method
@pytest.mark.parametrize(
    "value, error", [(0, ValueError), (-1, ValueError), (2.0, TypeError)]
)
def test_wrong_perturbations_per_eval_are_refused(method, net, images, value, error):
    cam = method(net, net.relu)
    rule = "`perturbations_per_eval` must be a positive int or None, got "
    with pytest.raises(error, match=rule):
        cam.attribute(images, target=1, perturbations_per_eval=value)


@perturbing_method
def test_progress_is_shown_on_stderr_only_on_demand(method, net, images, capsys):
    cam = method(net, net.relu)
    cam.attribute(images, target=1)
    assert capsys.readouterr() == ("", "")
    cam.attribute(images, target=1, show_progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{method.__name__} attribution" in shown.err
    assert "100%" in shown.err
