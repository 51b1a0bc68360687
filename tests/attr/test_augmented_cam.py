"""AugmentedCAM: the maps of augmented copies of an image, united."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from captum.attr import Attribution, LayerGradCam, NoiseTunnel, Saliency
from captum.metrics import (
    infidelity,
    infidelity_perturb_func_decorator,
    sensitivity_max,
)
from contract.shared import (
    SIZE,
    TARGETS,
    ArgsNet,
    ManyInputsNet,
    Recorder,
    assert_same_states,
    degenerate_maps_allowed,
    hooks_of,
    make_images,
    make_net,
    many_inputs,
    states,
)
from reference_augmented import copy_of, super_resolution, united

from captum_unioncam import (
    AugmentedCAM,
    Augmentation,
    GradCAM,
    LayerCAM,
    ScoreCAM,
    UnionCAM,
    as_explanation_func,
    flip_and_gain_augmentations,
    random_augmentations,
    to_input,
)
from captum_unioncam.attr._super_resolution import super_resolved

EXACT = {"rtol": 0, "atol": 1e-10}
COPIES = (
    Augmentation(),
    Augmentation(0.4, (0.1, -0.2)),
    Augmentation(-0.3, (-0.15, 0.1), True, 1.2),
)
UNTOUCHED = (Augmentation(),)
SHAPE = SIZE[:2]
every_combination = pytest.mark.parametrize(
    "combine", ["mean", "max", "super_resolution"]
)

pytestmark = [
    pytest.mark.filterwarnings("error::UserWarning"),
    # Captum's, of attributions of the input.
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require grad"),
]


class Image(Attribution):
    """The map of an image is the image itself, its channels summed."""

    def __init__(self, factor=1.0):
        super().__init__(lambda inputs: inputs)
        self.factor = factor

    def attribute(self, inputs, target=None, additional_forward_args=None):
        return self.factor * inputs.sum(1, keepdim=True)


class Given(Attribution):
    """Returns one given map after the other."""

    def __init__(self, *maps):
        super().__init__(lambda inputs: inputs)
        self.maps = iter(maps)

    def attribute(self, inputs, target=None, additional_forward_args=None):
        return next(self.maps)


def of(*rows):
    return torch.tensor([[rows]], dtype=torch.float64)


def resized(maps, size=SHAPE):
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


# The equations


@every_combination
@pytest.mark.parametrize("size", [(6, 6), (5, 8)], ids=repr)
def test_maps_are_those_of_the_loops(combine, size):
    net = make_net()
    net.flatten = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d((5, 4)), net.flatten)
    images = make_images(2, size=size)
    base = LayerCAM(net, net.relu)
    maps = AugmentedCAM(base, COPIES, combine).attribute(images, TARGETS[:2])
    assert maps.shape == (2, 1, *size)
    plain = [(c.rotation, c.translation, c.flip, c.gain) for c in COPIES]
    for i, image in enumerate(images):
        copies = [torch.tensor(copy_of(image.numpy(), one))[None] for one in plain]
        of_copies = [base.attribute(one, TARGETS[i])[0, 0].numpy() for one in copies]
        if combine == "super_resolution":
            expected = super_resolution(of_copies, plain, size)
        else:
            expected = united(of_copies, plain, size, combine)
        assert expected.max() > expected.min()
        torch.testing.assert_close(maps[i, 0], torch.tensor(expected), **EXACT)


@pytest.mark.parametrize(
    ("combine", "expected"),
    [("mean", [[1, 0], [0, 0.25]]), ("max", [[1, 0], [0, 0.5]])],
)
def test_numbers_worked_by_hand(combine, expected):
    base = Given(of([1, 0], [0, 0]), of([1, 0], [0, 0.5]))
    cam = AugmentedCAM(base, (Augmentation(), Augmentation(gain=0.9)), combine)
    assert cam.attribute(torch.rand(1, 3, 2, 2))[0, 0].tolist() == expected


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_the_untouched_copy_alone_gives_the_resized_map(combine):
    net, images = make_net(), make_images()
    base = GradCAM(net, net.relu)
    maps = AugmentedCAM(base, UNTOUCHED, combine).attribute(images, TARGETS)
    assert torch.equal(maps, resized(base.attribute(images, TARGETS)))


@pytest.mark.parametrize("combine", ["mean", "max"])
@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(flip=True),
        Augmentation(rotation=math.pi / 2),
        Augmentation(rotation=-math.pi / 2, flip=True),
        Augmentation(translation=(0.25, -0.5)),
        Augmentation(math.pi, (-0.25, 0.125), True),
    ],
    ids=repr,
)
def test_copies_of_whole_pixels_are_undone_exactly(combine, augmentation):
    images = make_images(2, size=(8, 8))
    cam = AugmentedCAM(Image(), (augmentation,), combine)
    with degenerate_maps_allowed():
        maps = cam.attribute(images)
    right, down = (round(8 * share) for share in augmentation.translation)
    lost = 64 - (8 - abs(right)) * (8 - abs(down))
    assert (maps == 0).sum() == 2 * lost  # the pixels that have left the frame
    expected = images.sum(1, keepdim=True) * (maps > 0)
    torch.testing.assert_close(maps, expected, **EXACT)


def test_only_the_copies_that_show_a_pixel_count():
    ones, twos = torch.ones(1, 1, 4, 4), torch.full((1, 1, 4, 4), 2.0)
    shifted = Augmentation(translation=(0.5, 0.0))  # shows columns 0 and 1
    for combine, seen in (("mean", 1.5), ("max", 2.0)):
        cam = AugmentedCAM(Given(ones, twos), (Augmentation(), shifted), combine)
        maps = cam.attribute(torch.rand(1, 3, 4, 4))
        assert maps[0, 0].tolist() == 4 * [[seen, seen, 1, 1]]
        away = Augmentation(translation=(2.0, 0.0))
        cam = AugmentedCAM(Given(ones), (away,), combine)
        with pytest.warns(UserWarning, match=r"of examples \[0\] are constant"):
            assert not cam.attribute(torch.rand(1, 3, 4, 4)).any()


@every_combination
def test_negative_values_count_as_zeros(combine):
    signed = of([1, -1], [-2, 0.5]), of([-3, 4], [1, 0])
    copies = (Augmentation(), Augmentation(gain=0.9))
    images = torch.rand(1, 3, 2, 2)
    maps = AugmentedCAM(Given(*signed), copies, combine).attribute(images)
    rectified = map(torch.relu, signed)
    expected = AugmentedCAM(Given(*rectified), copies, combine).attribute(images)
    assert torch.equal(maps, expected) and maps.min() >= 0


def test_a_fine_map_is_not_negative_where_the_steps_leave_it_so():
    maps = [make_images(1, channels=1, size=(4, 4), seed=i)[:, :1] for i in range(3)]
    maps = [torch.relu(one - 0.5) for one in maps]
    observed = torch.cat([one / one.max() for one in maps], 1)
    fine = super_resolved(observed, COPIES, (9, 9))
    assert fine.min() < 0
    actual = AugmentedCAM(Given(*maps), COPIES, "super_resolution")
    actual = actual.attribute(make_images(1, size=(9, 9)))
    torch.testing.assert_close(actual, torch.relu(fine), **EXACT)


# The calls of the base


def test_defaults_are_the_papers_copies_and_the_mean():
    cam = AugmentedCAM(Image())
    assert cam.transforms == random_augmentations()
    assert cam.combine == "mean"
    assert AugmentedCAM(Image(), list(COPIES)).transforms == COPIES


@every_combination
def test_each_copy_is_one_pass_of_the_batch_and_the_first_is_untouched(combine):
    model, images = Recorder(make_net()), make_images()
    cam = AugmentedCAM(GradCAM(model, model.model.relu), COPIES, combine)
    assert not model.inputs
    cam.attribute(images, TARGETS)
    assert model.sizes == [3, 3, 3]
    assert torch.equal(model.inputs[0], images)
    assert not torch.equal(model.inputs[1], images)


def test_options_are_those_of_the_base():
    net, images = make_net(), make_images()
    cam = AugmentedCAM(ScoreCAM(net, net.relu), UNTOUCHED)
    maps = cam.attribute(images, TARGETS, baselines=0.3, attribute_to_layer_input=True)
    expected = cam.base.attribute(images, TARGETS, None, True, baselines=0.3)
    assert torch.equal(maps, resized(expected))
    assert not torch.equal(maps, cam.attribute(images, TARGETS))
    with pytest.raises(TypeError, match="nt_samples"):
        cam.attribute(images, TARGETS, nt_samples=2)


@pytest.mark.parametrize(
    ("target", "indices"),
    [
        (1, [1, 1, 1]),
        ((1,), [1, 1, 1]),
        (torch.tensor(1), [1, 1, 1]),
        ([4, 0, 2], [4, 0, 2]),
        (torch.tensor([4, 0, 2]), [4, 0, 2]),
        ([(4,), (0,), (2,)], [4, 0, 2]),
    ],
)
def test_targets_are_captums(target, indices):
    net, images = make_net(), make_images()
    cam = AugmentedCAM(LayerGradCam(net, net.relu), COPIES)
    maps = cam.attribute(images, target)
    for i, index in enumerate(indices):
        alone = cam.attribute(images[i : i + 1], index)
        torch.testing.assert_close(maps[i : i + 1], alone, **EXACT)
    with pytest.raises(AssertionError):
        cam.attribute(images, (9999,) * 20)
    assert hooks_of(net) == hooks_of(make_net())


def test_additional_arguments_follow_their_examples():
    net, images = ArgsNet(), make_images()
    gain = torch.tensor([0.5, 1.0, 2.0]).double()
    cam = AugmentedCAM(GradCAM(net, net.relu), COPIES)
    maps = cam.attribute(images, TARGETS, gain)
    for i, target in enumerate(TARGETS):
        alone = cam.attribute(images[i : i + 1], target, gain[i : i + 1])
        torch.testing.assert_close(maps[i : i + 1], alone, **EXACT)
    assert all(torch.equal(gain, seen[1]) for seen in net.seen[:3])


def test_of_several_inputs_the_images_are_augmented():
    net, inputs = ManyInputsNet(), many_inputs()
    cam = AugmentedCAM(GradCAM(net, net.relu), (Augmentation(flip=True),))
    maps = cam.attribute(inputs, TARGETS)
    assert maps.shape == (3, 1, *SHAPE)  # the first image's
    images, large, vectors = net.seen[0]
    assert torch.equal(images, inputs[0].flip(3))
    assert torch.equal(large, inputs[1].flip(3))
    assert torch.equal(vectors, inputs[2])


def test_the_base_may_be_captums_or_wrap_another():
    net, images = make_net(), make_images()
    plain = AugmentedCAM(GradCAM(net, net.relu), COPIES).attribute(images, TARGETS)
    captums = LayerGradCam(net, net.relu)
    maps = AugmentedCAM(captums, COPIES).attribute(
        images, TARGETS, relu_attributions=True
    )
    torch.testing.assert_close(maps, plain, **EXACT)
    assert not maps.requires_grad
    noisy = AugmentedCAM(NoiseTunnel(GradCAM(net, net.relu)), COPIES)
    maps = noisy.attribute(images, TARGETS, nt_samples=2, stdevs=0.0)
    torch.testing.assert_close(maps, plain, **EXACT)
    nested = AugmentedCAM(AugmentedCAM(GradCAM(net, net.relu), COPIES), UNTOUCHED)
    torch.testing.assert_close(nested.attribute(images, TARGETS), plain, **EXACT)


def test_methods_by_scores_work_too():
    net, images = make_net(), make_images()
    for method in (ScoreCAM, UnionCAM):
        cam = AugmentedCAM(method(net, net.relu), flip_and_gain_augmentations())
        maps = cam.attribute(images, TARGETS)
        flipped = cam.attribute(images.flip(3), TARGETS)
        # The mean over an image and its mirror image does not see which is which.
        torch.testing.assert_close(flipped, maps.flip(3), **EXACT)


# Degenerate examples


@every_combination
def test_examples_do_not_depend_on_each_other(combine):
    net, images = make_net(), make_images()
    cam = AugmentedCAM(LayerCAM(net, net.relu), COPIES, combine)
    maps = cam.attribute(images, TARGETS)
    for i, target in enumerate(TARGETS):
        alone = cam.attribute(images[i : i + 1], target)
        torch.testing.assert_close(maps[i : i + 1], alone, **EXACT)


@every_combination
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_example_that_is_not_finite_for_a_copy_is_nan_alone(combine, value):
    good = make_images(3, channels=1)
    bad = good.clone()
    bad[1, 0, 2, 3] = value
    cam = AugmentedCAM(Given(good, bad, good), COPIES, combine)
    with pytest.warns(UserWarning, match=r"AugmentedCAM: .* \[1\] are NaN"):
        maps = cam.attribute(make_images())
    expected = AugmentedCAM(Given(good, good, good), COPIES, combine)
    expected = expected.attribute(make_images())
    assert maps[1].isnan().all()
    torch.testing.assert_close(maps[[0, 2]], expected[[0, 2]], **EXACT)


def test_what_is_not_finite_counts_wherever_it_is_in_the_copy():
    maps = torch.ones(1, 1, 4, 4)
    maps[..., 0] = math.nan  # which the copy shows beside the image
    cam = AugmentedCAM(Given(maps), (Augmentation(translation=(0.5, 0.0)),))
    with pytest.warns(UserWarning, match=r"AugmentedCAM: .* \[0\] are NaN"):
        assert cam.attribute(torch.rand(1, 3, 4, 4)).isnan().all()


@every_combination
def test_maps_of_zeros_are_zeros_and_named(combine):
    zeros = torch.zeros(2, 1, 3, 3)
    some = zeros.clone()
    some[1, 0, 1, 1] = 1
    cam = AugmentedCAM(Given(some, zeros, zeros), COPIES, combine)
    with pytest.warns(UserWarning, match=r"AugmentedCAM: .* \[0\] are constant"):
        maps = cam.attribute(torch.rand(2, 3, 9, 9))
    assert not maps[0].any() and maps[1].max() > 0


@every_combination
def test_no_examples(combine):
    net = make_net()
    for cam in (GradCAM(net, net.relu), LayerGradCam(net, net.relu)):
        maps = AugmentedCAM(cam, COPIES, combine).attribute(make_images()[:0], 1)
        assert maps.shape == (0, 1, *SHAPE) and maps.dtype == torch.float64


@every_combination
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_maps_have_the_type_of_the_bases(combine, dtype):
    images = make_images(1).to(dtype)
    maps = AugmentedCAM(Image(), COPIES, combine).attribute(images)
    assert maps.dtype == dtype and maps.isfinite().all()
    expected = AugmentedCAM(Image(), COPIES, combine).attribute(images.double())
    tolerance = {"mean": 0.02, "max": 0.05, "super_resolution": 0.02}[combine]
    torch.testing.assert_close(maps.double(), expected, rtol=0, atol=tolerance)


def test_integer_images_stay_integers():
    seen = []

    def model(images):
        seen.append(images)
        return images.double().mean((2, 3))

    class Sum(Image):
        def attribute(self, inputs, target=None, additional_forward_args=None):
            model(inputs)
            return inputs.double().mean(1, keepdim=True)

    images = (255 * make_images(1)).to(torch.uint8)
    maps = AugmentedCAM(Sum(), COPIES).attribute(images)
    assert all(one.dtype == torch.uint8 for one in seen) and maps.max() > 1


# A Captum attribution


@every_combination
def test_nothing_else_changes(combine):
    net, images = make_net(), make_images().requires_grad_()
    cam = AugmentedCAM(GradCAM(net, net.relu), COPIES, combine)
    tensors = [images, *net.parameters(), *net.buffers()]
    before, hooks, attributes = states(tensors), hooks_of(net), dict(vars(cam))
    generator = torch.get_rng_state()
    maps = cam.attribute(images, TARGETS)
    assert torch.equal(cam.attribute(images, TARGETS), maps)
    with torch.inference_mode():
        inside = cam.attribute(images.detach().clone(), TARGETS)
    assert torch.equal(inside, maps) and not inside.is_inference()
    assert_same_states(tensors, before)
    assert hooks_of(net) == hooks and vars(cam) == attributes
    assert torch.equal(torch.get_rng_state(), generator)
    assert not maps.requires_grad and maps.is_contiguous() and torch.is_grad_enabled()


@every_combination
def test_the_default_device_does_not_matter(combine):
    net, images = make_net(), make_images()
    cam = AugmentedCAM(GradCAM(net, net.relu), COPIES, combine)
    expected = cam.attribute(images, TARGETS)
    with torch.device("meta"):  # which has no data
        assert torch.equal(cam.attribute(images, TARGETS), expected)


def test_models_may_change_their_inputs_in_place():
    class InPlace(Image):
        def attribute(self, inputs, target=None, additional_forward_args=None):
            return inputs.mul_(2).sum(1, keepdim=True)

    class AlsoVectors(InPlace):
        def attribute(self, inputs, target=None, additional_forward_args=None):
            inputs[1].mul_(2)
            return super().attribute(inputs[0])

    images, vectors = make_images(), torch.ones(3, 2)
    before = images.clone()
    again = AugmentedCAM(AlsoVectors(), COPIES).attribute((images, vectors))
    assert torch.equal(vectors, torch.ones(3, 2))
    maps = AugmentedCAM(InPlace(), COPIES).attribute(images)
    assert torch.equal(maps, again)
    expected = AugmentedCAM(Image(2.0), COPIES).attribute(before)
    torch.testing.assert_close(maps, expected, **EXACT)
    assert torch.equal(images, before)


def test_it_is_a_captum_attribution(capsys):
    net, images = make_net(), make_images()
    cam = AugmentedCAM(GradCAM(net, net.relu), COPIES)
    assert cam.get_name() == "AugmentedCAM" and cam.forward_func is net
    assert not cam.has_convergence_delta() and cam.multiplies_by_inputs is False
    maps = cam.attribute(images, TARGETS)
    assert torch.equal(cam.attribute.__wrapped__(cam, images, target=TARGETS), maps)
    copied = copy.deepcopy(cam)
    assert copied.base.layer is not net.relu
    assert torch.equal(copied.attribute(images, TARGETS), maps)
    assert not capsys.readouterr().err
    assert torch.equal(cam.attribute(images, TARGETS, show_progress=True), maps)
    assert "AugmentedCAM attribution: 100%" in capsys.readouterr().err


def test_noise_tunnel_averages_it():
    net, images = ArgsNet(), make_images()
    gain = torch.tensor([0.5, 1.0, 2.0]).double()
    cam = AugmentedCAM(GradCAM(net, net.relu), COPIES)
    maps = NoiseTunnel(cam).attribute(
        images,
        nt_samples=2,
        stdevs=0.0,
        target=TARGETS,
        additional_forward_args=gain,
    )
    torch.testing.assert_close(maps, cam.attribute(images, TARGETS, gain), **EXACT)


def test_captums_metrics_take_it():
    net, images = make_net(), make_images()
    cam = AugmentedCAM(GradCAM(net, net.relu), COPIES)
    value = sensitivity_max(
        as_explanation_func(cam), images, lambda x: x, target=TARGETS
    )
    torch.testing.assert_close(value, torch.zeros(3).double(), **EXACT)

    @infidelity_perturb_func_decorator(False)
    def perturb(inputs):
        return inputs - 0.1

    heat = to_input(cam.attribute(images, TARGETS), images)
    assert (infidelity(net, perturb, images, heat, target=TARGETS) > 0).all()


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None,), TypeError, "`base` must be an instance of an Attribution, got None"),
        ((GradCAM,), TypeError, "`base` must be an instance of an Attribution, got <c"),
        ((Image(), ()), ValueError, "`transforms` must have one augmentation at least"),
        ((Image(), [0.3]), TypeError, "`transforms` must be of Augmentation, got 0.3"),
        ((Image(), COPIES, "superresolution"), ValueError, "did you mean 'super_resol"),
    ],
)
def test_wrong_options_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        AugmentedCAM(*arguments)


@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes_are_refused_before_any_pass(dims):
    model = Recorder(make_net(dims))
    cam = AugmentedCAM(GradCAM(model, model.model.relu), COPIES)
    with pytest.raises(ValueError, match=r"`inputs` must have images, \(N, C, H, W\)"):
        cam.attribute(make_images(dims=dims), TARGETS)
    assert not model.inputs


def test_complex_images_are_refused():
    with pytest.raises(ValueError, match="`inputs` must have images"):
        AugmentedCAM(Image(), COPIES).attribute(make_images() * 1j)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (torch.rand(3, 2, 4, 4), r"expected \(3, 1, h, w\), got \(3, 2, 4, 4\)"),
        (torch.rand(2, 1, 4, 4), r"expected \(3, 1, h, w\), got \(2, 1, 4, 4\)"),
        (torch.rand(3, 1, 4), r"expected \(3, 1, h, w\), got \(3, 1, 4\)"),
        ((torch.rand(3, 1, 4, 4), 1), r"one map for each example, .* got a tuple"),
    ],
)
def test_other_than_one_map_of_each_image_is_refused(maps, message):
    with pytest.raises(ValueError, match=f"`base` must return .*{message}"):
        AugmentedCAM(Given(maps), COPIES).attribute(make_images())


def test_attributions_of_colours_are_refused():
    net = make_net()
    with pytest.raises(ValueError, match=r"got \(3, 3, 9, 8\)"):
        AugmentedCAM(Saliency(net), COPIES).attribute(make_images(), TARGETS)
