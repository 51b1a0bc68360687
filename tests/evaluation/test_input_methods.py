"""Methods without a layer, and Captum's own, as rows of an evaluation."""

import captum.attr
import pytest
import torch
from torch import nn

from captum_unioncam import UnionCAM
from captum_unioncam.evaluation.labels import parse_method
from captum_unioncam.evaluation.methods import METHODS
from captum_unioncam.evaluation.task import CountedCalls

OTHERS = (
    "augmentedgradcam",
    "rise",
    "occlusion",
    "integratedgradients",
    "guidedgradcam",
)
every_other = pytest.mark.parametrize("name", OTHERS)
FEW = {"num_masks": 8, "n_steps": 4, "windows": 3}


@pytest.fixture
def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten()
    net = nn.Sequential(*layers, nn.Linear(4 * 9 * 8, 5)).double().eval()
    with torch.no_grad():
        net[3].weight += 0.02  # so that there is evidence for every class
    return net


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 9, 8, generator=generator, dtype=torch.float64)


@every_other
def test_they_make_one_map_of_the_inputs_size_without_negative_evidence(
    name, net, images
):
    explain = METHODS[name].explain(net, net[1], **FEW)
    maps = explain(images, target=[1, 3])
    assert maps.shape == (2, 1, 9, 8)
    assert maps.ge(0).all() and maps.flatten(1).any(1).all()
    assert not maps.requires_grad


@every_other
def test_they_take_the_options_that_are_offered(name, net, images):
    black = torch.full((1, 3, 9, 8), -1.0).double()
    offered = {"baselines": black, "max_channels": 3, "theta": 5, **FEW}
    plain = METHODS[name].explain(net, net[1], **FEW)(images, target=1)
    maps = METHODS[name].explain(net, net[1], **offered)(images, target=1)
    without = ("guidedgradcam", "augmentedgradcam")
    assert torch.equal(maps, plain) == (name in without)


def test_only_some_take_a_layer():
    assert METHODS["guidedgradcam"].takes_layer and METHODS["unioncam"].takes_layer
    others = ("rise", "occlusion", "integratedgradients")
    assert not any(METHODS[name].takes_layer for name in others)


def test_captums_attributions_are_summed_over_the_channels(net, images):
    plain = captum.attr.IntegratedGradients(net).attribute(images, target=1, n_steps=4)
    maps = METHODS["integratedgradients"].explain(net, net[1])(
        images, target=1, n_steps=4
    )
    expected = plain.sum(1, keepdim=True).relu()
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-12)


def test_occlusion_moves_its_window_by_half(net, images):
    # Sides of 9 and 8 over 3 windows: 3 x 3, moved by 1.
    expected = captum.attr.Occlusion(net).attribute(
        images, (3, 3, 3), (3, 1, 1), target=1
    )
    maps = METHODS["occlusion"].explain(net, net[1])(images, target=1, windows=3)
    assert torch.equal(maps, expected.sum(1, keepdim=True).relu())


def test_occlusion_has_few_windows_on_a_photograph():
    net = nn.Sequential(nn.AvgPool2d(224), nn.Flatten()).eval()
    calls = CountedCalls(net)
    METHODS["occlusion"].explain(calls, net[0])(torch.rand(1, 3, 224, 224), target=1)
    assert calls.examples == 13**2 + 1


@every_other
def test_passes_are_counted_through_a_model_that_is_wrapped(name, net, images):
    calls = CountedCalls(net)
    explain = METHODS[name].explain(calls, net[1], **FEW)
    plain = METHODS[name].explain(net, net[1], **FEW)(images, target=1)
    assert torch.equal(explain(images, target=1), plain)
    assert calls.examples > 0


def test_labels_take_their_options():
    method, options = parse_method("rise:num_masks=100:probability=0.1")
    assert method.title == "RISE" and options == {"num_masks": 100, "probability": 0.1}
    method, options = parse_method("integratedgradients:n_steps=8:method=riemann_left")
    assert options == {"n_steps": 8, "method": "riemann_left"}
    method, options = parse_method("unioncam:select=best:theta=5")
    assert options == {"select": "best", "theta": 5}
    assert parse_method("unioncam:select=None")[1] == {"select": None}
    with pytest.raises(ValueError, match="the value of 'theta' must be a number"):
        parse_method("unioncam:theta=best")
    with pytest.raises(ValueError, match="has no option 'target'"):
        parse_method("occlusion:target=3")


def test_parts_of_a_label_are_methods_of_a_layer():
    _, options = parse_method("unioncam:parts=LayerCAM+regioncam")
    assert options == {"parts": (METHODS["layercam"], METHODS["regioncam"])}
    for label, text in {
        "unioncam:parts=layercam+": "`parts` must be .*, got 'layercam\\+'$",
        "unioncam:parts=layercm+regioncam": "did you mean 'layercam'",
        "unioncam:parts=layercam+rise": "explain a layer, .*, got 'layercam\\+rise'",
    }.items():
        with pytest.raises(ValueError, match=text):
            parse_method(label)


@pytest.mark.parametrize("options", [{}, {"theta": 40.0}, {"max_channels": 2}], ids=str)
def test_a_label_can_name_the_best_union(net, images, options):
    label = "unioncam:parts=denoisedgradcam+layercam+groupcam+regioncam:select=best"
    method, chosen = parse_method(label)
    found = method.explain(net, net[1], chosen, **options)(images, target=1)
    expected = UnionCAM.best(net, net[1]).attribute(images, target=1, **options)
    assert torch.equal(found, expected)


def test_the_papers_parts_are_the_paper_and_share_its_scores(net, images):
    counts, maps = [], []
    for label in ("unioncam", "unioncam:parts=denoisedgradcam+regioncam"):
        calls = CountedCalls(net)
        method, chosen = parse_method(label)
        offered = {"scoring_func": calls, "baselines": 0.5}
        maps.append(method.explain(net, net[1], chosen, **offered)(images, target=1))
        counts.append(calls.examples)
    assert torch.equal(*maps)
    assert counts[0] == counts[1] > 0


def test_options_of_a_label_reach_the_constructor(net, images):
    kept = METHODS["unioncam"].explain(net, net[1], {"select": None})(images, target=1)
    fused = METHODS["unioncam"].attribution(net, net[1], select=None)
    assert torch.equal(kept, fused.attribute(images, target=1))
