"""Forward passes: every cost that a docstring states is what the model sees."""

import re

import pytest
import torch
from nets import Case, Counted

from captum_unioncam import (
    FDCAM,
    ISCAM,
    SSCAM,
    AblationCAM,
    FusionCAM,
    GroupCAM,
    ReciproCAM,
    UnionCAM,
)
from captum_unioncam.attr._base import PerturbingCAM
from captum_unioncam.attr._masking_cam import MaskingCAM
from captum_unioncam.metrics import deletion, insertion, masked_confidences

pytestmark = pytest.mark.filterwarnings("ignore:.* are constant")

CHANNELS, POSITIONS = 5, 16
# What is scored of each example, once or in samples.
SCORED = {
    SSCAM: CHANNELS * 35,
    ISCAM: CHANNELS * 10,
    GroupCAM: CHANNELS,  # one in a group
    ReciproCAM: POSITIONS,
    FDCAM: 2 * CHANNELS,  # of which no two are in one group
}
NUMBERS = {
    "forward": r"(\d+) forward",
    "more": r"(\d+) more forward passes",
    "alone": r"\((\d+) for a single example\)",
}


def stated(documented, examples):
    """Returns the passes of each example that a docstring states, without masks."""
    _, _, cost = documented.__doc__.partition("Cost: ")
    text = " ".join(cost.split("\n\n")[0].split())
    found = {name: re.search(number, text) for name, number in NUMBERS.items()}
    numbers = {name: int(match[1]) for name, match in found.items() if match}
    if examples == 1 and "alone" in numbers:
        return numbers["alone"]
    return numbers["forward"] + numbers.get("more", 0)


@pytest.mark.parametrize("examples", [1, 3])
def test_the_cost_of_a_method_is_the_one_it_states(every_method, examples):
    net, inputs = Case(signed=True).build(1, examples)
    counted = Counted(net)
    options = {"percentile": 0} if every_method is GroupCAM else {}
    every_method(counted, net.layer).attribute(inputs, target=2, **options)
    scored = 0
    if issubclass(every_method, PerturbingCAM):
        scored = SCORED.get(every_method, CHANNELS)
    passes, rest = divmod(counted.examples, examples)
    assert rest == 0
    assert passes == stated(every_method, examples) + scored


def test_the_template_states_what_its_methods_state(every_method):
    if issubclass(every_method, MaskingCAM):
        assert stated(MaskingCAM, 3) == stated(every_method, 3)


@pytest.mark.parametrize("examples", [1, 3])
def test_a_scoring_func_runs_once_more_on_the_whole_batch(masking_method, examples):
    net, inputs = Case(signed=True).build(1, examples)
    plain, scored, alone = Counted(net), Counted(net), Counted(net)
    cam = masking_method(plain, net.layer, scoring_func=scored)
    cam.attribute(inputs, target=2)
    masking_method(alone, net.layer).attribute(inputs, target=2)
    assert plain.sizes == [examples]
    assert plain.examples + scored.examples == alone.examples + examples


@pytest.mark.parametrize("examples", [1, 3])
def test_another_memory_format_costs_its_reference_passes(scoring_method, examples):
    net, inputs = Case(signed=True).build(1, examples)
    counted = Counted(net)
    cam = scoring_method(counted, net.layer)
    cam.attribute(inputs, target=2)
    expected = counted.examples

    def picky(image):
        output = counted(image)
        return output if image.is_contiguous() else output + 1

    counted.sizes.clear()
    scoring_method(picky, net.layer).attribute(inputs, target=2)
    # The whole examples, and the baselines where there are; one example goes twice.
    twice = scoring_method not in (AblationCAM, ReciproCAM, FDCAM) or examples == 1
    assert counted.examples == expected + (2 if twice else 1) * examples


@pytest.mark.parametrize("examples", [1, 3])
def test_the_cost_of_a_metric_is_the_one_it_states(examples):
    net, inputs = Case().build(0, examples)
    maps, counted = torch.rand(examples, 1, 4, 4), Counted(net)
    masked_confidences(counted, inputs, maps, target=1)
    assert counted.examples == stated(masked_confidences, examples) * examples
    for metric in (insertion, deletion):  # which refers to insertion
        counted.sizes.clear()
        metric(counted, inputs, maps, target=1, steps=7)
        assert "``steps`` + 2 forward passes" in insertion.__doc__
        assert counted.examples == (7 + 2) * examples


def test_the_unions_state_the_same_cost():
    assert stated(UnionCAM, 3) == stated(FusionCAM, 3) == 1 + 5
