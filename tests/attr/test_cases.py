"""The networks that the references run on take every branch of the methods."""

import numpy as np
import pytest
import reference_family as family
import torch
from nets import CASES, Case
from reference import Model, masked

from captum_unioncam import UnionCAM

pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")

TARGETS = [2, 0, 1]


def networks():
    """Returns the networks and the inputs of test_references.py."""
    for case in CASES:
        for seed in range(3):
            yield case.build(seed, constant_channel=seed < 2)


def test_unions_take_both_branches_of_eq_8_and_have_gains_of_both_signs():
    selected, gains = [], []
    for net, inputs in networks():
        _, details = UnionCAM(net, net.layer).attribute(
            inputs, target=TARGETS, return_details=True
        )
        selected.append(details.fused_selected)
        gains.append(torch.stack([details.denoised_gain, details.region_gain]))
    selected, gains = torch.cat(selected), torch.cat(gains, 1)
    assert selected.any() and not selected.all()
    assert (gains < 0).any(1).all() and (gains > 0).any(1).all()


def test_the_parts_of_fusions_have_contributions_of_every_sign():
    signs = set()
    for net, inputs in networks():
        for i, target in enumerate(TARGETS):
            image = [inputs[i].numpy()]
            black, model = [np.zeros_like(image[0])], Model(net, net.layer, target)
            activations, gradients = model.activations_and_gradients(image)
            maps = (
                family.drop_below(family.grad_cam(activations, gradients), 10.0),
                family.score_cam(model, image, black, activations),
            )
            without = model.confidence(black)
            scores = [model.confidence(masked(image, m, black)) for m in maps]
            signs.add(tuple(score > without for score in scores))
    assert len(signs) == 4


def test_raw_outputs_have_both_signs():
    signs = set()
    for seed in range(4):
        net, inputs = Case(signed=True).build(seed)
        signs |= set((net(inputs)[:, 2] > 0).tolist())
    assert signs == {True, False}


GRADIENT_MAPS = (
    family.grad_cam,
    family.grad_cam_plus_plus,
    family.x_grad_cam,
    family.hi_res_cam,
    family.layer_cam,
)


@pytest.mark.parametrize("equation", GRADIENT_MAPS, ids=lambda f: f.__name__)
def test_gradients_have_both_signs_and_their_maps_differ(equation):
    net, inputs = Case(signed=True).build(1)
    tensors = Model(net, net.layer, 1).activations_and_gradients([inputs[0].numpy()])
    assert all((array < 0).any() and (array > 0).any() for array in tensors)
    maps = [other(*tensors) for other in GRADIENT_MAPS]
    assert all(other.any() for other in maps)
    assert sum(np.allclose(equation(*tensors), other) for other in maps) == 1
