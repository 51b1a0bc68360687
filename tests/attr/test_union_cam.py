"""UnionCAM against the paper in loops, hand-worked numbers, and its errors."""

import dataclasses

import numpy as np
import pytest
import torch
from captum.attr import LayerActivation, LayerGradCam
from nets import CASES, Case
from reference import Model, masked, min_max, resize, union
from torch import nn

from captum_unioncam import (
    DenoisedGradCAM,
    RegionCAM,
    UnionCAM,
    UnionCAMDetails,
    _maps,
)

TOLERANCE = {"rtol": 0, "atol": 1e-6}

# Signed layers have examples without positive evidence.
may_be_flat = pytest.mark.filterwarnings("ignore:.* are flat")


def assert_matches_paper(attributions, details, expected, size):
    """Compares one example of a result with the reference's."""
    for name in ("denoised_map", "region_map"):
        actual = getattr(details, name)[0].numpy()
        np.testing.assert_allclose(actual, expected[name], **TOLERANCE)
    for name in ("baseline_score", "denoised_gain", "region_gain", "fused_gain"):
        actual = getattr(details, name).item()
        np.testing.assert_allclose(actual, expected[name], **TOLERANCE)
    fused = min_max(resize(details.fused_map[0].numpy(), size))
    np.testing.assert_allclose(fused, expected["fused_mask"], **TOLERANCE)
    assert details.fused_selected.item() == expected["fused_selected"]
    mask = min_max(resize(attributions[0].numpy(), size))
    np.testing.assert_allclose(mask, expected["mask"], **TOLERANCE)


def row(details, i):
    """Returns the details of one example."""
    fields = dataclasses.fields(details)
    return UnionCAMDetails(**{f.name: getattr(details, f.name)[i] for f in fields})


@may_be_flat
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_paper_in_loops(case, seed):
    net, inputs = case.build(seed)
    targets = [0, 1, 2]
    theta = (10.0, 0.0, 55.0)[seed]
    attributions, details = UnionCAM(net, net.layer).attribute(
        inputs, target=targets, theta=theta, return_details=True
    )
    for i, target in enumerate(targets):
        image = inputs[i].numpy()
        model = Model(net, net.layer, target)
        expected = union(model, [image], [np.zeros_like(image)], theta)
        assert_matches_paper(
            attributions[i], row(details, i), expected, image.shape[1:]
        )


@may_be_flat
@pytest.mark.parametrize("score", ["identity", "sigmoid"])
def test_matches_the_paper_with_other_scores_and_baselines(score):
    net, inputs = Case().build(5)
    baseline = torch.tensor([0.7, -0.4], dtype=torch.float64).view(1, 2, 1, 1)
    functions = {"identity": lambda output: output, "sigmoid": torch.sigmoid}
    attributions, details = UnionCAM(net, net.layer).attribute(
        inputs,
        target=2,
        baselines=baseline,
        score_func=functions[score],
        return_details=True,
    )
    for i, image in enumerate(inputs.numpy()):
        full = np.broadcast_to(baseline[0].numpy(), image.shape)
        expected = union(Model(net, net.layer, 2, score), [image], [full])
        assert_matches_paper(
            attributions[i], row(details, i), expected, image.shape[1:]
        )


@may_be_flat
def test_the_cases_take_both_branches_of_eq_8_and_negative_gains():
    selected, gains = [], []
    for case in CASES:
        for seed in range(3):
            net, inputs = case.build(seed)
            _, details = UnionCAM(net, net.layer).attribute(
                inputs, target=[0, 1, 2], return_details=True
            )
            selected.append(details.fused_selected)
            gains.append(torch.stack([details.denoised_gain, details.region_gain]))
    selected, gains = torch.cat(selected), torch.cat(gains, 1)
    assert selected.any() and not selected.all()
    assert (gains < 0).any(1).all() and (gains > 0).any(1).all()


class Sum(nn.Module):
    """Two channels that are the input's, and a head that adds up all of both."""

    def __init__(self, head):
        super().__init__()
        self.layer = nn.Identity()
        self.register_buffer("head", torch.tensor(head, dtype=torch.float64))

    def forward(self, image):
        return (self.layer(image) * self.head).sum((1, 2, 3))[:, None]


def test_hand_worked_example():
    # A layer of the input's size, so that nothing is resized, and f_c = sum(W * A) with
    #   A1 = [0 1; 2 4], W1 = [0 0; 1 3],
    #   A2 = [3 0; 0 0], W2 = [1 0; 0 0].
    inputs = torch.tensor([[[[0.0, 1], [2, 4]], [[3, 0], [0, 0]]]]).double()
    net = Sum([[[0.0, 0], [1, 3]], [[1, 0], [0, 0]]])
    attributions, details = UnionCAM(net, net.layer).attribute(
        inputs, theta=10, return_details=True
    )
    # AMD: alpha1 = 1/4, alpha2 = 1, so that
    #   L_denoising = [3 0; 1/4 * 2, 3/4 * 4] = [3 0; 0.5 3].
    assert details.denoised_map.tolist() == [[[[3, 0], [0.5, 3]]]]
    # Region: mask(A1) = [0 0.25; 0.5 1] gives f_c = 0.5 * 2 + 1 * 4 * 3 = 13, and
    # mask(A2) = [1 0; 0 0] gives f_c = 3, so that
    #   L_region = 13 A1 + 3 A2 = [9 13; 26 52].
    assert details.region_map.tolist() == [[[[9, 13], [26, 52]]]]
    # Eq. 4: the mask [1 0; 1/6 1] gives 3 + 2/6 + 12 = 15 1/3.
    # Eq. 5: the mask [0 4; 17 43] / 43 gives 2 * 17/43 + 12. f_c(black) = 0.
    assert details.baseline_score.item() == 0
    assert details.denoised_gain.item() == pytest.approx(15 + 1 / 3)
    assert details.region_gain.item() == pytest.approx(12 + 34 / 43)
    # Eq. 6: 15.3333 [1 0; 1/6 1] + 12.7907 [0 .0930; .3953 1].
    b1, b2 = 15 + 1 / 3, 12 + 34 / 43
    fused = torch.tensor([[b1, b2 * 4 / 43], [b1 / 6 + b2 * 17 / 43, b1 + b2]])
    assert torch.allclose(details.fused_map[0, 0], fused.double())
    # Eq. 7: fused - min over its span, then 3 * m[0, 0] + 2 * m[1, 0] + 12 * m[1, 1].
    mask = (fused - fused.min()) / (fused.max() - fused.min())
    gain = 3 * mask[0, 0] + 2 * mask[1, 0] + 12 * mask[1, 1]
    assert details.fused_gain.item() == pytest.approx(gain.item())
    # Eq. 8: 14.05 > 12.79, so the fused map is kept.
    assert details.fused_gain.item() == pytest.approx(14.05, abs=0.01)
    assert details.fused_selected.item()
    assert torch.allclose(attributions[0, 0], mask.double())
    for name in ("total_channels", "live_channels", "scored_channels"):
        assert getattr(details, name).tolist() == [2]


def test_ties_go_to_the_region_map():
    net, inputs = Case().build(0)
    attributions, details = UnionCAM(net, net.layer).attribute(
        inputs, target=0, score_func=torch.ones_like, return_details=True
    )
    assert details.fused_gain.tolist() == details.region_gain.tolist() == [0, 0, 0]
    assert not details.fused_selected.any()
    region = RegionCAM(net, net.layer).attribute(
        inputs, target=0, score_func=torch.ones_like
    )
    assert torch.allclose(attributions, scaled(region))


def scaled(maps):
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low)


def test_details_are_the_public_parts_and_explain_the_result():
    net, inputs = Case().build(1, batch=6)
    attributions, details = UnionCAM(net, net.layer).attribute(
        inputs, target=1, return_details=True
    )
    denoised = DenoisedGradCAM(net, net.layer).attribute(inputs, target=1)
    region = RegionCAM(net, net.layer).attribute(inputs, target=1)
    assert torch.equal(details.denoised_map, denoised)
    assert torch.equal(details.region_map, region)
    choice = details.fused_selected.view(-1, 1, 1, 1)
    expected = scaled(torch.where(choice, details.fused_map, details.region_map))
    assert torch.allclose(attributions, expected)
    assert (details.fused_selected == (details.fused_gain > details.region_gain)).all()
    with pytest.raises(dataclasses.FrozenInstanceError):
        details.fused_gain = details.region_gain


def test_max_channels_scores_and_sums_the_live_channels_of_largest_variance():
    net, inputs = Case(signed=True).build(2)
    net.second.weight.data[1] = 0  # a dead channel, constant but not zero
    _, details = UnionCAM(net, net.layer).attribute(
        inputs, target=0, max_channels=2, return_details=True
    )
    assert details.total_channels.tolist() == [5, 5, 5]
    assert details.live_channels.tolist() == [4, 4, 4]
    assert details.scored_channels.tolist() == [2, 2, 2]
    for i, image in enumerate(inputs.numpy()):
        model = Model(net, net.layer, 0)
        activations, _ = model.activations_and_gradients([image])
        best = sorted(range(5), key=lambda k: -activations[k].var())[:2]
        total = sum(
            model.confidence(masked([image], activations[k], [0 * image]))
            * activations[k]
            for k in best
        )
        expected = np.maximum(total, 0)
        np.testing.assert_allclose(details.region_map[i, 0], expected, **TOLERANCE)


def test_max_channels_above_the_live_ones_scores_them_all():
    net, inputs = Case().build(2)
    _, details = UnionCAM(net, net.layer).attribute(
        inputs, target=0, max_channels=100, return_details=True
    )
    assert details.scored_channels.tolist() == details.live_channels.tolist()


def test_parts_may_be_any_layer_attribution():
    net, inputs = Case().build(3)
    parts = {
        "gradient_cam": LayerGradCam(net, net.layer),
        "region_cam": DenoisedGradCAM(net, net.layer),
    }
    attributions, details = UnionCAM(net, net.layer, **parts).attribute(
        inputs, target=1, return_details=True
    )
    grad_cam = LayerGradCam(net, net.layer).attribute(inputs, target=1)
    assert (grad_cam < 0).any()  # and the part is rectified
    assert torch.equal(details.denoised_map, grad_cam.relu())
    denoised = DenoisedGradCAM(net, net.layer).attribute(inputs, target=1)
    assert torch.equal(details.region_map, denoised)
    assert details.scored_channels.tolist() == [0, 0, 0]
    assert attributions.shape == (3, 1, 4, 4)


def test_default_parts_passed_explicitly_change_nothing():
    net, inputs = Case().build(4)
    plain = UnionCAM(net, net.layer).attribute(inputs, target=1)
    parts = {
        "gradient_cam": DenoisedGradCAM(net, net.layer),
        "region_cam": RegionCAM(net, net.layer),
    }
    cam = UnionCAM(net, net.layer, **parts)
    assert torch.equal(cam.attribute(inputs, target=1), plain)
    assert cam.attribute(inputs[:0], target=1).shape == (0, 1, 4, 4)


def test_parts_leave_the_callers_tensor_alone():
    net, inputs = Case().build(4)
    net = nn.Sequential(nn.Identity(), net)  # whose tensor is the caller's
    part = LayerGradCam(net, net[0])
    UnionCAM(net, net[0], gradient_cam=part).attribute(inputs, target=1)
    assert not inputs.requires_grad


@pytest.mark.parametrize("name", ["gradient_cam", "region_cam"])
def test_refuses_parts_that_are_not_instances(name):
    net, _ = Case().build(0)
    with pytest.raises(TypeError, match=f"`{name}` .* the LayerGradCam class; pass an"):
        UnionCAM(net, net.layer, **{name: LayerGradCam})
    with pytest.raises(TypeError, match=f"`{name}` must be a LayerAttribution, got 3"):
        UnionCAM(net, net.layer, **{name: 3})


@pytest.mark.parametrize("name", ["gradient_cam", "region_cam"])
def test_refuses_parts_of_the_wrong_shape(name):
    net, inputs = Case().build(0)
    cam = UnionCAM(net, net.layer, **{name: LayerGradCam(net, net.first)})
    message = (
        rf"`{name}` must return .* expected \[\(3, 1, 4, 4\)\], got \[\(3, 1, 7, 7\)\]"
    )
    with pytest.raises(ValueError, match=message):
        cam.attribute(inputs, target=0)


def test_refuses_options_that_a_replaced_part_would_have_taken():
    net, inputs = Case().build(0)
    part = LayerGradCam(net, net.layer)
    cam = UnionCAM(net, net.layer, gradient_cam=part, region_cam=part)
    for option in ({"theta": 20}, {"grad_kwargs": {"retain_graph": True}}):
        name = next(iter(option))
        message = (
            f"`{name}` is an option of the default part, which `gradient_cam` repl"
        )
        with pytest.raises(ValueError, match=message):
            cam.attribute(inputs, target=0, **option)
    with pytest.raises(ValueError, match="`max_channels` .* `region_cam` replaces"):
        cam.attribute(inputs, target=0, max_channels=2)


class Split(nn.Module):
    """A net whose layer has two tensors, of two sizes."""

    def __init__(self, rank=2):
        super().__init__()
        self.first, self.layer = nn.Conv2d(2, 6, 3), Halves(rank)
        self.head = nn.Linear(6, 3)

    def forward(self, image):
        left, right = self.layer(self.first(image))
        return self.head(
            torch.cat([left.flatten(2).mean(2), right.flatten(2).mean(2)], 1)
        )


class Halves(nn.Module):
    def __init__(self, rank):
        super().__init__()
        self.rank = rank

    def forward(self, maps):
        right = maps[:, 3:, ::2]
        return maps[:, :3], right if self.rank == 2 else right.flatten(2)


def test_a_layer_of_several_tensors_gives_a_map_for_each():
    torch.manual_seed(0)
    net, inputs = Split(), torch.rand(2, 2, 6, 6)
    calls = []

    class Counted(LayerGradCam):
        def attribute(self, *args, **kwargs):
            calls.append(1)
            return super().attribute(*args, **kwargs)

    cam = UnionCAM(net, net.layer, gradient_cam=Counted(net, net.layer))
    maps, details = cam.attribute(inputs, target=1, return_details=True)
    assert [m.shape for m in maps] == [(2, 1, 4, 4), (2, 1, 2, 4)]
    assert [d.region_map.shape for d in details] == [m.shape for m in maps]
    assert len(calls) == 1


def test_a_tensor_of_tokens_is_refused_before_any_masked_pass():
    torch.manual_seed(0)
    net, sizes = Split(rank=1), []

    def forward_func(image):
        sizes.append(len(image))
        return net(image)

    with pytest.raises(ValueError, match="`layer` has tokens, .*vit_reshape"):
        UnionCAM(forward_func, net.layer).attribute(torch.rand(2, 2, 6, 6), target=1)
    assert sizes == [2]  # the gradients


class Activations(LayerActivation):
    """A part of the right arguments that returns all channels."""

    def attribute(self, inputs, target=None, additional_forward_args=None, **kwargs):
        return super().attribute(inputs, additional_forward_args)


def test_refuses_parts_of_several_channels():
    net, inputs = Case().build(0)
    cam = UnionCAM(net, net.layer, region_cam=Activations(net, net.layer))
    with pytest.raises(
        ValueError, match=r"expected \[\(3, 1, 4, 4\)\], got \[\(3, 5, 4"
    ):
        cam.attribute(inputs, target=0)


def test_a_layer_without_gradient_leaves_the_region():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(2, 4, 3)
            self.head = nn.Linear(2, 3)

        def forward(self, image):
            self.layer(image)
            return self.head(image.mean((2, 3)))

    torch.manual_seed(0)
    net = Unused().double()
    inputs = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    attributions, details = UnionCAM(net, net.layer).attribute(
        inputs, target=0, return_details=True
    )
    assert not details.denoised_map.any() and not details.denoised_gain.any()
    # Eq. 6 leaves beta_region * L_region: the region map, inverted by a negative gain.
    region = scaled(details.region_map)
    positive = details.region_gain.view(-1, 1, 1, 1) > 0
    assert torch.allclose(attributions, torch.where(positive, region, 1 - region))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_score_that_is_not_finite_makes_the_map_of_its_example_nan(value):
    net, inputs = Case().build(0)

    def forward_func(image, number):  # one more output, which numbers the examples
        return torch.cat([net(image), number[:, None]], 1)

    def score_func(output):
        return torch.where(output[:, 3:] == 1, value, output)

    cam = UnionCAM(forward_func, net.layer)
    kwargs = {"target": 0, "additional_forward_args": torch.arange(3.0).double()}
    clean = cam.attribute(inputs, **kwargs, score_func=lambda output: output)
    with pytest.warns(
        UserWarning, match=r"UnionCAM: .* examples \[1\] are NaN"
    ) as seen:
        broken = cam.attribute(inputs, **kwargs, score_func=score_func)
    assert len(seen) == 1 and seen[0].filename == __file__
    assert broken[1].isnan().all()
    assert torch.equal(broken[[0, 2]], clean[[0, 2]])


def test_a_flat_map_is_all_zeros_with_one_warning():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    inputs = torch.rand(12, 2, 6, 6)
    with pytest.warns(UserWarning, match=r"\[0, 1, .*, 9, ...\] are flat") as seen:
        attributions = UnionCAM(net, net[0]).attribute(inputs, target=0)
    assert len(seen) == 1
    assert torch.equal(attributions, torch.zeros(12, 1, 1, 1))


@pytest.mark.parametrize("cam", [UnionCAM, RegionCAM])
def test_scoring_func_runs_all_masked_passes_and_nothing_else(cam):
    net, inputs = Case().build(0)
    plain, scored = [], []

    def forward_func(image):
        plain.append(len(image))
        return net(image)

    def scoring_func(image):
        scored.append(len(image))
        return net(image)

    expected = cam(net, net.layer).attribute(inputs, target=1)
    method = cam(forward_func, net.layer, scoring_func=scoring_func)
    assert torch.equal(method.attribute(inputs, target=1), expected)
    assert plain == [3]
    _, details = UnionCAM(net, net.layer).attribute(
        inputs, target=1, return_details=True
    )
    baselines, gains = 3, 9 if cam is UnionCAM else 0
    assert sum(scored) == baselines + details.live_channels.sum() + gains


@pytest.mark.parametrize("cam", [UnionCAM, RegionCAM])
def test_refuses_a_scoring_func_that_is_no_function(cam):
    net, _ = Case().build(0)
    with pytest.raises(TypeError, match="`scoring_func` must be a callable or None, g"):
        cam(net, net.layer, scoring_func="fast")


def test_without_selection_the_fused_map_is_kept():
    for seed in range(6):
        net, inputs = Case().build(seed)
        cam = UnionCAM(net, net.layer)
        attributions, details = cam.attribute(
            inputs, target=1, select=False, return_details=True
        )
        assert torch.equal(attributions, _maps.min_max(details.fused_map))
        selected = cam.attribute(inputs, target=1)
        same = (selected == attributions).flatten(1).all(1)
        assert torch.equal(same | ~details.fused_selected, torch.ones(3).bool())
        if not details.fused_selected.all():
            return
    pytest.fail("no seed selects a region map")
