"""What the methods share whose gradients come from several inputs: chunks of copies."""

import warnings

import pytest
import torch
from nets import CASES, Case, Counted, TwoTensors, earlier

from captum_unioncam import IntegratedGradCAM, SmoothGradCAMPlusPlus

pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")

COUNTS = {SmoothGradCAMPlusPlus: "num_samples", IntegratedGradCAM: "n_steps"}
TARGETS = [0, 2, 1]


def number(method, count):
    """Returns the option that sets the number of copies."""
    return {COUNTS[method]: count}


@pytest.mark.parametrize("size", [2, 3, 5, 99])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_size_of_a_chunk_changes_nothing(sampled_method, case, size):
    net, inputs = earlier(case, 3)
    cam = sampled_method(net, net.layer)
    options = {"target": TARGETS, **number(sampled_method, 5)}
    expected = cam.attribute(inputs, **options)
    actual = cam.attribute(inputs, **options, perturbations_per_eval=size)
    assert expected.any()
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "size, sizes", [(1, [3] * 5), (2, [6, 6, 3]), (5, [15]), (99, [15])]
)
def test_perturbations_per_eval_are_the_copies_in_a_pass(sampled_method, size, sizes):
    net, inputs = earlier(Case(), 1)
    counted = Counted(net)
    options = {"perturbations_per_eval": size, **number(sampled_method, 5)}
    sampled_method(counted, net.layer).attribute(inputs, TARGETS, **options)
    extra = [3] if sampled_method is SmoothGradCAMPlusPlus else []
    assert counted.sizes == extra + sizes


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(
    "target, each",
    [
        (1, [1, 1, 1]),
        (-1, [-1, -1, -1]),
        ((1,), [1, 1, 1]),
        (torch.tensor(1), [1, 1, 1]),
        (torch.tensor([[1]]), [1, 1, 1]),
        ([0, 2, 1], [0, 2, 1]),
        ([(0,), (2,), (1,)], [0, 2, 1]),
        (torch.tensor([0, 2, 1]), [0, 2, 1]),
    ],
    ids=repr,
)
def test_targets_follow_their_example(sampled_method, target, each, size):
    net, inputs = earlier(Case(), 3)
    cam = sampled_method(net, net.layer)
    options = {"perturbations_per_eval": size, **number(sampled_method, 4)}
    maps = cam.attribute(inputs, target, **options)
    singles = [
        cam.attribute(inputs[i : i + 1], one, **options) for i, one in enumerate(each)
    ]
    torch.testing.assert_close(maps, torch.cat(singles), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("target", [[0], [0, 1], torch.tensor([0, 1])], ids=repr)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_wrong_number_of_targets_is_captums_error(sampled_method, target, size):
    net, inputs = earlier(Case(), 3)
    options = {"perturbations_per_eval": size, **number(sampled_method, 6)}
    with pytest.raises(AssertionError, match="arget"):
        sampled_method(net, net.layer).attribute(inputs, target, **options)


@pytest.mark.parametrize("size", [1, 2])
def test_every_tensor_of_a_layer_has_its_map(sampled_method, size):
    net = TwoTensors([[[1, 2], [3, 0.5]], [[0.5, 1], [2, 2]], [[1, 0.2], [0.1, 1]]])
    torch.manual_seed(0)
    inputs = torch.rand(2, 3, 2, 2).double()
    options = {"perturbations_per_eval": size, **number(sampled_method, 3)}
    maps = sampled_method(net, net.layer).attribute(inputs, **options)
    assert isinstance(maps, tuple) and [m.shape for m in maps] == [(2, 1, 2, 2)] * 2
    assert all(m.flatten(1).any(1).all() for m in maps)
    assert not torch.allclose(*maps)


def test_copies_are_made_when_they_are_needed(sampled_method):
    class Enough(Exception):
        """The model has seen enough."""

    net, inputs = earlier(Case(), 0)
    seen = []

    def forward_func(image):
        seen.append(len(image))
        if len(seen) == 4:
            raise Enough
        return net(image)

    # Captum lists the points of a path, which are numbers alone.
    many = 10**4 if sampled_method is IntegratedGradCAM else 10**9
    options = number(sampled_method, many)
    with pytest.raises(Enough):
        sampled_method(forward_func, net.layer).attribute(
            inputs, target=0, **options, perturbations_per_eval=2
        )


def test_an_empty_batch_is_empty_in_every_chunk(sampled_method, recwarn):
    net, inputs = earlier(Case(), 0)
    cam = sampled_method(net, net.layer)
    options = {"target": 0, **number(sampled_method, 5), "perturbations_per_eval": 2}
    assert cam.attribute(inputs[:0], **options).shape == (0, 1, 7, 7) and not recwarn


def test_the_layout_of_the_images_is_kept(sampled_method):
    net, inputs = earlier(Case(), 0)
    for form in (torch.contiguous_format, torch.channels_last):
        seen = []

        def forward_func(image):
            seen.append(image.is_contiguous(memory_format=form))
            return net(image)

        cam = sampled_method(forward_func, net.layer)
        images = inputs.contiguous(memory_format=form)
        for size in (1, 3):
            options = {"perturbations_per_eval": size, **number(sampled_method, 4)}
            cam.attribute(images, target=0, **options)
        assert len(seen) >= 6 and all(seen)


def test_an_output_without_a_graph_gives_one_warning(sampled_method):
    net, inputs = earlier(Case(), 0)
    options = {"target": 0, **number(sampled_method, 5)}
    cam = sampled_method(lambda image: net(image).detach(), net.layer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not cam.attribute(inputs, **options).any()
    texts = [str(warning.message) for warning in caught]
    assert ["does not depend on `layer`" in text for text in texts] == [True, False]
    assert "are constant" in texts[1]
