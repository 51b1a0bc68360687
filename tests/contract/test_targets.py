"""Targets: every form that Captum takes, and Captum's errors for the others."""

import copy

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from contract.shared import (
    CLASS_AGNOSTIC,
    CONTRACT_MARKS,
    EXAMPLES,
    METHODS,
    OF_CLASSES,
    Call,
    assert_same_maps,
    class_method,
    every_method,
    hooks_of,
    make_images,
    make_net,
    one_by_one,
)
from torch import nn

pytestmark = CONTRACT_MARKS

# The target, and the int of each example that means the same.
ACCEPTED_TARGETS = {
    "int": (1, [1, 1, 1]),
    "negative int": (-1, [4, 4, 4]),
    "0-d tensor": (torch.tensor(1), [1, 1, 1]),
    "tensor of one": (torch.tensor([1]), [1, 1, 1]),
    "tensor of one, 2-d": (torch.tensor([[1]]), [1, 1, 1]),
    "tuple": ((1,), [1, 1, 1]),
    "list of ints": ([0, 1, 2], [0, 1, 2]),
    "tensor": (torch.tensor([0, 1, 2]), [0, 1, 2]),
    "list of tuples": ([(0,), (1,), (2,)], [0, 1, 2]),
}

OUT_OF_RANGE = "out of bounds"
REFUSED_TARGETS = {
    "None": (None, AssertionError, "Target not provided when necessary"),
    "short list": ([1], AssertionError, "Target list length"),
    "wrong list": ([0, 1], AssertionError, "Target list length"),
    "empty list": ([], AssertionError, "Target list length"),
    "wrong tensor": (torch.tensor([0, 1]), AssertionError, "Tensor target dimension"),
    "column": (torch.tensor([[0], [1], [2]]), AssertionError, "Tensor target dim"),
    "long tuple": ((0, 1), AssertionError, "Cannot choose target column"),
    "very long tuple": ((9999,) * 20, AssertionError, "Cannot choose target column"),
    "numpy int": (np.int64(1), AssertionError, "Target type"),
    "numpy array": (np.array([0, 1, 2]), AssertionError, "Target type"),
    "string": ("1", AssertionError, "Target type"),
    "float tensor, 0-d": (torch.tensor(1.0), AssertionError, "Tensor target dimension"),
    "float tensor of one": (torch.tensor([1.0]), AssertionError, "Tensor target dim"),
    "list of tensors": ([torch.tensor(0)] * 3, AssertionError, "Target element type"),
    "list of lists": ([[0], [1], [2]], AssertionError, "Target element type"),
    "bool": (True, AssertionError, "Target not provided when necessary"),
    "int out of range": (99, IndexError, OUT_OF_RANGE),
    "negative out of range": (-6, IndexError, OUT_OF_RANGE),
    "tensor out of range, 0-d": (torch.tensor(99), IndexError, OUT_OF_RANGE),
    "tuple out of range": ((99,), IndexError, OUT_OF_RANGE),
    "tuples out of range": ([(0,), (1,), (99,)], IndexError, OUT_OF_RANGE),
    "list out of range": ([0, 1, 99], RuntimeError, OUT_OF_RANGE),
    "tensor out of range": (torch.tensor([0, 1, 99]), RuntimeError, OUT_OF_RANGE),
    "float tensor": (torch.tensor([0.0, 1.0, 2.0]), RuntimeError, "gather"),
    "list of bools": ([True, False, True], RuntimeError, "gather"),
}


def matrix_net():
    """A net with a matrix of outputs for each example, (N, 3, 2)."""
    return make_net(outputs=6, head=nn.Unflatten(1, (3, 2)), background=[2, 3])


@every_method
@pytest.mark.parametrize("form", ACCEPTED_TARGETS)
def test_target_forms_equal_each_examples_int(method, net, images, form):
    target, ints = ACCEPTED_TARGETS[form]
    cam = method(net, net.conv)
    maps = cam.attribute(images, target=target)
    assert_same_maps(maps, one_by_one(cam, images, ints))


@every_method
def test_int32_targets_work_where_captum_takes_them(method, net, images):
    target = torch.tensor([0, 1, 2], dtype=torch.int32)
    try:
        LayerGradCam(net, net.conv).attribute(images, target=target)
    except RuntimeError as error:
        pytest.skip(f"torch's gather: {error}")
    maps = method(net, net.conv).attribute(images, target=target)
    expected = method(net, net.conv).attribute(images, target=[0, 1, 2])
    assert torch.equal(maps, expected)


@every_method
@pytest.mark.parametrize("form", REFUSED_TARGETS)
def test_wrong_targets_raise_captums_errors(method, net, images, form):
    target, error, text = REFUSED_TARGETS[form]
    if target is None and method in CLASS_AGNOSTIC:
        return  # which needs none
    before = hooks_of(net)
    for attribution in (LayerGradCam, method):
        with pytest.raises(error, match=text) as caught:
            attribution(net, net.relu).attribute(images, target=target)
        assert caught.type is error
    assert hooks_of(net) == before


@every_method
@pytest.mark.parametrize(
    "target", [4, [4], torch.tensor(4), torch.tensor([4]), (4,), [(4,)]], ids=repr
)
def test_every_target_form_fits_a_batch_of_one(method, net, target):
    cam, image = method(net, net.conv), make_images(1)
    maps = cam.attribute(image, target=target)
    assert torch.equal(maps, cam.attribute(image, target=4))
    same = torch.equal(maps, cam.attribute(image, target=0))
    assert same == (method in CLASS_AGNOSTIC)


@every_method
def test_models_of_one_output_need_no_target(method, images):
    squeeze = Call(lambda x: x.squeeze(1))  # from (N, 1) to (N,)
    column = make_net(outputs=1, head=nn.Sigmoid())
    flat = make_net(outputs=1, head=nn.Sequential(nn.Sigmoid(), squeeze))
    flat_cam, cam = method(flat, flat.relu), method(column, column.relu)
    maps = flat_cam.attribute(images)
    assert maps.flatten(1).amax(1).gt(0).all()
    assert_same_maps(cam.attribute(images), maps)
    assert_same_maps(cam.attribute(images, target=0), maps)
    assert_same_maps(maps, one_by_one(flat_cam, images, [None] * EXAMPLES))


@pytest.mark.parametrize("target", [(2, 1), [(2, 1), (0, 0), (0, 1)]], ids=repr)
@pytest.mark.parametrize("method", OF_CLASSES)
def test_methods_of_classes_refuse_other_outputs(method, images, target):
    net = matrix_net()
    with pytest.raises(ValueError, match=r"`target` must select a class .*\(3, 3, 2\)"):
        method(net, net.conv).attribute(images, target=target)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in OF_CLASSES])
@pytest.mark.parametrize("target", [(2, 1), [(2, 1), (0, 0), (0, 1)]], ids=repr)
def test_tuples_index_outputs_of_more_dimensions(method, images, target):
    net = matrix_net()
    cam = method(net, net.conv)
    maps = cam.attribute(images, target=target)
    each = target if isinstance(target, list) else [target] * EXAMPLES
    assert_same_maps(maps, one_by_one(cam, images, each))
    # The softmax is over dimension 1: the other column takes no part in it.
    column = method(lambda x: net(x)[..., 1], net.conv).attribute(images, target=2)
    assert_same_maps(maps[:1], column[:1])


@every_method
@pytest.mark.parametrize(
    "target, text",
    [
        (1, "Target not provided when necessary"),
        ([0, 1, 2], "Output must be 2D"),
        (torch.tensor([0, 1, 2]), "Output must be 2D"),
    ],
    ids=repr,
)
def test_ints_do_not_index_outputs_of_more_dimensions(method, images, target, text):
    net = matrix_net()
    for attribution in (LayerGradCam, method):
        with pytest.raises(AssertionError, match=text):
            attribution(net, net.conv).attribute(images, target=target)


@every_method
@pytest.mark.parametrize("target", [[2, 0, 1], torch.tensor([2, 0, 1])], ids=repr)
def test_targets_are_not_changed(method, net, images, target):
    before = copy.deepcopy(target)
    method(net, net.relu).attribute(images, target=target)
    assert type(target) is type(before)
    if isinstance(target, list):
        assert target == before
    else:
        assert torch.equal(target, before)
        assert target._version == 0


@class_method
@pytest.mark.parametrize("examples", [1, 2])
def test_a_missing_target_names_the_callers_batch(method, net, examples):
    """A single example may be repeated inside, which is no matter of the caller's."""
    with pytest.raises(AssertionError, match="Target not provided") as raised:
        method(net, net.relu).attribute(make_images(examples))
    assert f"{examples + 1} examples" not in str(raised.value)
    assert "2 examples" not in str(raised.value) or examples == 2
