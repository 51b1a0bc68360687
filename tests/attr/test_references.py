"""Every method against its equations in loops, on many networks, options and inputs.

The references are in ``tests/reference.py`` and ``tests/reference_family.py``. They
share no code with the package.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import reference_family as family
import torch
from headed import HEAD, METHODS, HeadedCAM
from nets import CASES, Case, ManyChannels, ThreeInputs, Weighed, earlier, example
from reference import Model, denoising, min_max, region, resize, union

from captum_unioncam import (
    FDCAM,
    ISCAM,
    SSCAM,
    AblationCAM,
    DenoisedGradCAM,
    EigenCAM,
    EigenGradCAM,
    FusionCAM,
    GradCAM,
    GradCAMPlusPlus,
    GroupCAM,
    HiResCAM,
    IntegratedGradCAM,
    LayerCAM,
    ReciproCAM,
    RegionCAM,
    ScoreCAM,
    SmoothGradCAMPlusPlus,
    UnionCAM,
    XGradCAM,
)

# Signed layers have examples without positive evidence.
pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")

TARGETS = [2, 0, 1]
SCORES = {
    "softmax": None,
    "identity": lambda output: output,
    "sigmoid": torch.sigmoid,
}


def black(image):
    """Returns a baseline of zeros for each input."""
    return [np.zeros_like(part) for part in image]


def of_gradients(equation):
    """Gives an equation of two tensors the arguments of a reference."""

    def reference(model, image, baseline, **options):
        return equation(*model.activations_and_gradients(image), **options)

    return reference


def activations_of(model, image):
    return model.activations_and_gradients(image)[0]


def union_cam(model, image, baseline, theta=10.0, max_channels=None, select="region"):
    expected = union(model, image, baseline, theta, max_channels)
    fused = {"mask": expected["fused_mask"], "fused_selected": True}
    return expected if select else {**expected, **fused}


def region_cam(model, image, baseline, max_channels=None):
    activations = activations_of(model, image)
    return region(model, image, baseline, activations, max_channels)


def denoised_grad_cam(activations, gradients, theta=10.0):
    return denoising(activations, gradients, theta)


def fusion_cam(model, image, baseline, theta=10.0, max_channels=None):
    activations, gradients = model.activations_and_gradients(image)
    gradient_map = family.drop_below(family.grad_cam(activations, gradients), theta)
    region_map = family.score_cam(model, image, baseline, activations, max_channels)
    return family.fusion_cam(model, image, baseline, gradient_map, region_map)


def score_cam(model, image, baseline, max_channels=None):
    activations = activations_of(model, image)
    return family.score_cam(model, image, baseline, activations, max_channels)


def is_cam(model, image, baseline, num_samples=10, max_channels=None):
    activations = activations_of(model, image)
    return family.is_cam(model, image, baseline, activations, num_samples, max_channels)


def ss_cam(
    model, image, baseline, num_samples=35, std=2.0, generator=0, max_channels=None
):
    """The noise is float32, drawn once for each size of an image, in order."""
    activations = activations_of(model, image)
    drawing, noise = torch.Generator().manual_seed(generator), {}
    for part in image:
        size = part.shape[1:]
        if part.ndim == activations.ndim and size not in noise:
            noise[size] = std * torch.randn(num_samples, *size, generator=drawing)
    noise = {size: maps.numpy() for size, maps in noise.items()}
    return family.ss_cam(model, image, baseline, activations, noise, max_channels)


def smooth_grad_cam_plus_plus(
    model, image, baseline, num_samples=25, std=0.15, generator=0
):
    """The noise is float32, drawn for one input after another, sample by sample."""
    drawing, samples = torch.Generator().manual_seed(generator), []
    for _ in range(num_samples):
        noisy = []
        for part in image:
            noise = torch.randn(part.shape, generator=drawing).numpy()
            noisy.append(part + std * family.value_range(part) * noise)
        samples.append(model.activations_and_gradients(noisy)[1])
    return family.smooth_grad_cam_plus_plus(activations_of(model, image), samples)


def integrated_grad_cam(
    model,
    image,
    baseline,
    n_steps=50,
    method="riemann_left",
    relative=False,
    baselines=0.0,
):
    points, sizes = family.integration_rule(method, n_steps)
    path = [[baselines + a * (part - baselines) for part in image] for a in points]
    samples = [model.activations_and_gradients(between) for between in path]
    start = [np.full_like(part, baselines) for part in image]
    reference = activations_of(model, start) if relative else None
    return family.integrated_grad_cam(samples, sizes, reference)


def group_cam(model, image, baseline, **options):
    tensors = model.activations_and_gradients(image)
    return family.group_cam(model, image, baseline, *tensors, **options)


def ablation_cam(model, image, baseline, max_channels=None):
    tensors = model.activations_and_gradients(image)
    return family.ablation_cam(model, image, *tensors, max_channels)


def recipro_cam(model, image, baseline, gaussian=False):
    equation = family.recipro_cam_of_neighbours if gaussian else family.recipro_cam
    return equation(model, image, activations_of(model, image))


def cam(model, image, baseline):
    weights = HEAD.weight.detach().numpy()
    activations = activations_of(model, image)
    return family.cam(weights[:, : len(activations)], activations, model.target)


def eigen_cam(model, image, baseline):
    return family.eigen_cam(activations_of(model, image))


def fd_cam(model, image, baseline, **options):
    tensors = model.activations_and_gradients(image)
    return family.fd_cam(model, image, *tensors, **options)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A method and its reference.

    Attributes:
        method: The class.
        reference: Its equations in loops, from a Model, an image, a baseline and the
            options of ``attribute`` to the map of the example.
        options: What ``attribute`` gets on every network. A generator is its seed.
        atol, rtol: How far the map may be off.
        default_baseline: From an image to the baseline that the method has by default.
    """

    method: type
    reference: Callable
    options: tuple[dict, ...] = ({},)
    atol: float = 1e-9
    rtol: float = 0.0
    default_baseline: Callable = black

    def __str__(self) -> str:
        return self.method.__name__

    def explain(self, net, inputs, options, **more):
        """Returns what ``attribute`` returns, with details where there are some."""
        if "generator" in options:
            generator = torch.Generator().manual_seed(options["generator"])
            options = {**options, "generator": generator}
        if self.method is UnionCAM:
            more["return_details"] = True
        built = {name: options[name] for name in ("select",) if name in options}
        options = {k: v for k, v in options.items() if k not in built}
        cam = self.method(net, net.layer, **built)
        return cam.attribute(inputs, **options, **more)

    def check(self, net, inputs, targets, options, score="softmax", baseline=None):
        """Compares the map of each example with the reference, and returns all maps."""
        more = {}
        if score != "softmax":
            more["score_func"] = SCORES[score]
        if baseline is not None:
            more["baselines"] = torch.from_numpy(baseline)[None]
        actual = self.explain(net, inputs, options, target=targets, **more)
        maps = actual[0] if self.method is UnionCAM else actual
        assert maps.shape[:2] == (len(targets), 1) and maps.dtype == torch.float64
        for i, target in enumerate(targets):
            image = [part[i].numpy() for part in inputs]
            behind = self.default_baseline(image)
            if baseline is not None:
                behind = [np.broadcast_to(baseline, part.shape) for part in image]
            model = Model(net, net.layer, target, score)
            expected = self.reference(model, image, behind, **options)
            if self.method is UnionCAM:
                self._check_union(*actual, i, expected, image[0].shape[1:])
            else:
                self._check_equal(maps[i, 0], expected)
        return maps

    def _check_equal(self, actual, expected):
        np.testing.assert_allclose(actual, expected, rtol=self.rtol, atol=self.atol)

    def _check_union(self, attributions, details, i, expected, size):
        """Compares the map and the details of an example; fused maps as masks."""
        for name in ("denoised_map", "region_map"):
            self._check_equal(getattr(details, name)[i, 0], expected[name])
        for name in ("baseline_score", "denoised_gain", "region_gain", "fused_gain"):
            self._check_equal(getattr(details, name)[i].item(), expected[name])
        fused = min_max(resize(details.fused_map[i, 0].numpy(), size))
        self._check_equal(fused, expected["fused_mask"])
        assert details.fused_selected[i].item() == expected["fused_selected"]
        mask = min_max(resize(attributions[i, 0].numpy(), size))
        self._check_equal(mask, expected["mask"])


CHANNELS = ({}, *({"max_channels": count} for count in (1, 2, 99)))
THETAS = tuple({"theta": theta} for theta in (0, 10, 37.5, 90, 100))
OF_UNION = (
    *({"theta": theta} for theta in (10.0, 0.0, 55.0)),
    {"max_channels": 2},
    {"select": None},
)
OF_FUSION = ({}, {"theta": 0.0, "max_channels": 2}, {"theta": 55.0})
FEW_STEPS = (
    {"num_samples": 3},
    {"num_samples": 3, "max_channels": 2},
    {"num_samples": 5},
    {"num_samples": 5, "max_channels": 2},
)
LITTLE_NOISE = (
    {"num_samples": 3, "std": 0.7, "generator": 0},
    {"num_samples": 3, "std": 0.7, "generator": 1, "max_channels": 2},
)
NOISY_INPUTS = (
    {"num_samples": 3, "generator": 1},
    {"num_samples": 4, "std": 0.5, "generator": 0},
)
PATHS = (
    {"n_steps": 4},
    {"n_steps": 3, "method": "riemann_trapezoid", "baselines": 0.3},
    {"n_steps": 3, "method": "gausslegendre", "relative": True},
    {"n_steps": 3, "method": "riemann_middle", "relative": True, "baselines": -0.5},
)
GROUPS = (
    {},
    {"groups": 1, "percentile": 0},
    {"groups": 2, "percentile": 35.5},
    {"groups": 3, "percentile": 50},
    {"groups": 4, "percentile": 80},
)
SIMILAR = ({}, *({"percentile": value} for value in (0, 30.0, 50, 75.5, 100)))
PAIRS = [
    Pair(UnionCAM, union_cam, OF_UNION, atol=1e-6),
    Pair(DenoisedGradCAM, of_gradients(denoised_grad_cam), THETAS, atol=1e-6),
    Pair(RegionCAM, region_cam, CHANNELS, atol=1e-6),
    Pair(FusionCAM, fusion_cam, OF_FUSION, atol=1e-6),
    Pair(GradCAM, of_gradients(family.grad_cam), rtol=1e-9),
    Pair(GradCAMPlusPlus, of_gradients(family.grad_cam_plus_plus), rtol=1e-9),
    Pair(XGradCAM, of_gradients(family.x_grad_cam), rtol=1e-9),
    Pair(HiResCAM, of_gradients(family.hi_res_cam), rtol=1e-9),
    Pair(LayerCAM, of_gradients(family.layer_cam), rtol=1e-9),
    # Quotients of sums near zero: torch 2.6 rounds a few values at 1e-8.
    Pair(SmoothGradCAMPlusPlus, smooth_grad_cam_plus_plus, NOISY_INPUTS, rtol=1e-7),
    Pair(IntegratedGradCAM, integrated_grad_cam, PATHS, rtol=1e-9),
    Pair(ScoreCAM, score_cam, CHANNELS),
    Pair(SSCAM, ss_cam, LITTLE_NOISE),
    Pair(ISCAM, is_cam, FEW_STEPS),
    Pair(GroupCAM, group_cam, GROUPS, default_baseline=lambda image: None),
    Pair(AblationCAM, ablation_cam, CHANNELS),
    Pair(ReciproCAM, recipro_cam, ({}, {"gaussian": True})),
    Pair(HeadedCAM, cam, rtol=1e-9),
    Pair(EigenCAM, eigen_cam),
    Pair(EigenGradCAM, of_gradients(family.eigen_grad_cam)),
    Pair(FDCAM, fd_cam, SIMILAR),
]


def pairs_of(*methods):
    """Parametrises a test over the pairs of some methods."""
    pairs = [pair for pair in PAIRS if pair.method in methods]
    return pytest.mark.parametrize("pair", pairs, ids=str)


def name_of(value):
    """Returns the options of a variant in short, for the name of its test."""
    if not isinstance(value, dict):
        return str(value)
    return ",".join(f"{name}={given}" for name, given in value.items()) or "defaults"


SAMPLED_PAIRS = [
    pair for pair in PAIRS if pair.method in (SmoothGradCAMPlusPlus, IntegratedGradCAM)
]
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=str)
MASKING = (UnionCAM, RegionCAM, FusionCAM, ScoreCAM, SSCAM, ISCAM, GroupCAM)
SCORING = (*MASKING, AblationCAM, ReciproCAM, FDCAM)
COLOUR = np.array([0.7, -0.4]).reshape(2, 1, 1)
# Where the defaults are slow, or hide groups of several channels.
IN_SHORT = {SSCAM: {"num_samples": 4}, GroupCAM: {"groups": 3}}


def test_every_method_has_a_reference():
    assert {pair.method for pair in PAIRS} == {m.attribution for m in METHODS.values()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "pair, options",
    [(pair, options) for pair in PAIRS for options in pair.options],
    ids=name_of,
)
def test_is_the_paper_in_loops(pair, options, case, seed):
    # A constant channel costs no masked pass, and still has a weight.
    net, inputs = case.build(seed, constant_channel=seed < 2)
    pair.check(net, (inputs,), TARGETS, options)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "pair, options",
    [(pair, options) for pair in SAMPLED_PAIRS for options in pair.options],
    ids=name_of,
)
def test_is_the_paper_where_gradients_depend_on_the_input(pair, options, case):
    net, inputs = earlier(case, 1)
    assert pair.check(net, (inputs,), TARGETS, options).any()


@every_pair
def test_the_defaults_are_the_papers(pair):
    net, inputs = Case().build(6)
    pair.check(net, (inputs,), [1, 1, 1], {})
    if pair in SAMPLED_PAIRS:
        net, inputs = earlier()
        pair.check(net, (inputs[:1],), [1], {})


def test_fusion_cam_drops_entries_below_the_10th_percentile_by_default():
    # Of 0, 1, ..., 100 the 10th percentile is 10, which stays. ScoreCAM's map is the
    # only channel.
    net = Weighed([[1.0] * 101], bias=5.0)
    inputs, ramp = example(list(range(101))), np.arange(101.0)
    image = [inputs[0].numpy()]
    model = Model(net, net.layer, 0, "identity")
    parts = np.where(ramp < 10, 0, ramp), ramp
    expected = family.fusion_cam(model, image, black(image), *parts)
    cam = FusionCAM(net, net.layer)
    np.testing.assert_allclose(cam.attribute(inputs)[0, 0], expected, rtol=0, atol=1e-9)
    for theta in (9, 11):
        other = cam.attribute(inputs, theta=theta)[0, 0]
        assert not np.allclose(other, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "case, seed, constant_channel",
    [
        (Case(), 5, False),
        (Case(), 5, True),
        *((Case(signed=True), seed, False) for seed in (0, 1, 2, 3, 5)),
    ],
    ids=str,
)
@pytest.mark.parametrize("max_channels", [None, 2])
@pairs_of(*SCORING)
def test_is_the_paper_with_other_scores_and_baselines(
    pair, max_channels, case, seed, constant_channel, score
):
    net, inputs = case.build(seed, constant_channel=constant_channel)
    baseline = COLOUR if pair.method in MASKING else None
    options = IN_SHORT.get(pair.method, {})
    if pair.method not in (GroupCAM, ReciproCAM, FDCAM):
        options = {**options, "max_channels": max_channels}
    pair.check(net, (inputs,), [2, 2, 2], options, score, baseline)


@pytest.mark.parametrize("score", SCORES)
@pairs_of(*MASKING)
def test_a_baseline_changes_the_map(pair, score):
    net, inputs = Case().build(5)
    cam, options = pair.method(net, net.layer), IN_SHORT.get(pair.method, {})
    options = {**options, "target": 1, "score_func": SCORES[score]}
    default = cam.attribute(inputs, **options)
    actual = cam.attribute(inputs, **options, baselines=torch.from_numpy(COLOUR)[None])
    assert not torch.allclose(actual, default, atol=1e-4)


@pytest.mark.parametrize("score", ["identity", "sigmoid"])
@pairs_of(*SCORING)
def test_a_score_changes_the_map(pair, score):
    net, inputs = Case().build(5)
    cam, options = pair.method(net, net.layer), IN_SHORT.get(pair.method, {})
    default = cam.attribute(inputs, target=2, **options)
    actual = cam.attribute(inputs, target=2, score_func=SCORES[score], **options)
    assert not torch.allclose(actual, default, atol=1e-4)


@pytest.mark.parametrize(
    "pair, second_size",
    [
        *((pair, (9, 8)) for pair in PAIRS),
        # UnionCAM's reference fuses masks, which must have one size.
        *((pair, (5, 6)) for pair in PAIRS if pair.method is not UnionCAM),
    ],
    ids=str,
)
def test_every_image_is_masked_and_the_first_scales_the_map(pair, second_size):
    torch.manual_seed(1)
    net = ThreeInputs().double()
    inputs = (
        torch.rand(2, 2, 9, 8).double(),
        torch.rand(2, 1, *second_size).double(),
        torch.rand(2, 4).double(),
    )
    options = {"groups": 4} if pair.method is GroupCAM else {}
    assert pair.check(net, inputs, [0, 2], options).any()


@pytest.mark.parametrize("options", [{}, {"groups": 3}], ids=name_of)
@pairs_of(GroupCAM)
def test_groups_that_do_not_divide_the_channels_differ_by_one_at_most(pair, options):
    torch.manual_seed(0)
    net, inputs = ManyChannels().double(), torch.rand(2, 2, 7, 7).double()
    black_image = np.zeros((2, 1, 1))
    maps = pair.check(net, (inputs,), [1, 1], options, "identity", black_image)
    assert (maps.flatten(1).amax(1) > 0.1).all()
