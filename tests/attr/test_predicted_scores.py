"""``max_channels`` and ``fidelity`` of the methods that mask by every channel.

Which channels are scored, and the scores of the others, are in
``test_channel_scores.py``; the maps in loops in ``test_references.py``.
"""

import warnings

import pytest
import torch
from nets import ManyChannels, TwoTensors

from captum_unioncam import ISCAM, SSCAM, FusionCAM, RegionCAM, ScoreCAM, UnionCAM

pytestmark = [
    pytest.mark.filterwarnings("ignore:.* are constant"),
    pytest.mark.filterwarnings("ignore:.* are below the .fidelity"),
]

CHANNELS = 70
# Each method reaches it after other passes for each example, the first after 16.
FIDELITY = 0.995
SAMPLES = {SSCAM: 2, ISCAM: 2}
# Passes of each example besides its channels: its activations, itself and its baseline,
# and three maps; FusionCAM's gradient map of the first example is constant.
REFERENCES = 3
LATER_MAPS = {UnionCAM: (3, 3, 3), FusionCAM: (2, 3, 3)}


def build():
    """Returns a net of many channels, and images of three contrasts."""
    torch.manual_seed(0)
    net = ManyChannels().double()
    for weights, scale in ((net.layer[0].weight, 1), (net.head.weight, 0.2)):
        weights.data = scale * torch.randn_like(weights)
    inputs = torch.rand(3, 2, 7, 7).double()
    contrasts = torch.tensor([0.2, 1, 3]).double().view(3, 1, 1, 1)
    return net, contrasts * inputs


def options_of(method, **options):
    if method in SAMPLES:
        options["num_samples"] = SAMPLES[method]
    if method is SSCAM:
        options["generator"] = torch.Generator().manual_seed(0)
    return options


def explain(method, net, inputs, **options):
    options = options_of(method, target=1, **options)
    return method(net, net.layer).attribute(inputs, **options)


class Seen:
    """Runs a net on images with their numbers, and counts the passes of each."""

    def __init__(self, net, examples):
        self.net, self.passes = net, torch.zeros(examples, dtype=torch.long)

    def __call__(self, image, number):
        self.passes += torch.bincount(number, minlength=len(self.passes))
        return self.net(image)


def scored(method, net, inputs, first=0, **options):
    """Returns how many channels of each example are scored, and the maps.

    ``first`` is the number of the first example.
    """
    numbers = torch.arange(first, first + len(inputs))
    seen = Seen(net, 3)
    maps = method(seen, net.layer).attribute(
        inputs,
        additional_forward_args=numbers,
        **options_of(method, target=1, **options),
    )
    later = torch.tensor(LATER_MAPS.get(method, (0, 0, 0)))
    passes = (seen.passes - REFERENCES - later)[numbers]
    counts = passes.div(SAMPLES.get(method, 1), rounding_mode="floor")
    assert torch.equal(counts * SAMPLES.get(method, 1), passes)
    return counts.tolist(), maps


def fidelities(net, inputs, **options):
    _, details = explain(UnionCAM, net, inputs, return_details=True, **options)
    return details.scored_channels.tolist(), details.fidelity


@pytest.mark.parametrize("max_channels", [CHANNELS, 99])
def test_enough_channels_give_the_exact_map_to_the_bit(
    channel_masking_method, max_channels
):
    net, inputs = build()
    expected = explain(channel_masking_method, net, inputs)
    actual = explain(channel_masking_method, net, inputs, max_channels=max_channels)
    assert torch.equal(actual, expected)


def test_a_fidelity_of_1_scores_all_and_gives_the_exact_map(channel_masking_method):
    net, inputs = build()
    expected, exact = scored(channel_masking_method, net, inputs)
    counts, maps = scored(channel_masking_method, net, inputs, fidelity=1.0)
    assert counts == expected == [CHANNELS] * 3
    assert torch.equal(maps, exact)
    options = {"fidelity": 1.0, "perturbations_per_eval": 1}
    alone = explain(channel_masking_method, net, inputs[:1], **options)
    del options["fidelity"]
    exact = explain(channel_masking_method, net, inputs[:1], **options)
    assert torch.equal(alone, exact)


@pytest.mark.parametrize("max_channels", [1, 5, 40])
def test_no_more_channels_are_scored_than_max_channels(
    channel_masking_method, max_channels
):
    net, inputs = build()
    for fidelity in (1 - 1e-12, 1.0):
        counts, _ = scored(
            channel_masking_method,
            net,
            inputs,
            max_channels=max_channels,
            fidelity=fidelity,
        )
        assert counts == [max_channels] * 3


def test_a_fidelity_of_0_scores_16_channels(channel_masking_method):
    net, inputs = build()
    counts, maps = scored(channel_masking_method, net, inputs, fidelity=0.0)
    assert counts == [16] * 3
    expected = explain(channel_masking_method, net, inputs, max_channels=16)
    assert torch.equal(maps, expected)
    exact = explain(channel_masking_method, net, inputs)
    assert not torch.allclose(maps, exact, rtol=0, atol=1e-6)


def test_each_example_stops_on_its_own(channel_masking_method):
    net, inputs = build()
    options = {"fidelity": FIDELITY, "max_channels": 60}
    counts, maps = scored(channel_masking_method, net, inputs, **options)
    assert len(set(counts)) == 3 and 16 == counts[0] < max(counts) < 60
    for i in range(3):
        image = inputs[i : i + 1]
        one, alone = scored(channel_masking_method, net, image, first=i, **options)
        assert one == [counts[i]]
        assert torch.allclose(alone[0], maps[i], rtol=0, atol=1e-9)


def test_details_tell_the_channels_and_the_fidelity():
    net, inputs = build()
    counts, _ = scored(UnionCAM, net, inputs, fidelity=FIDELITY)
    channels, reached = fidelities(net, inputs, fidelity=FIDELITY)
    assert channels == counts
    assert (reached >= FIDELITY).all() and (reached < 1).all()
    # No example that went on had reached it before.
    _, before = fidelities(net, inputs, max_channels=20)
    assert (before[1:] < FIDELITY).all()
    assert fidelities(net, inputs)[1].tolist() == [1, 1, 1]
    assert fidelities(net, inputs, max_channels=99)[1].tolist() == [1, 1, 1]
    channels, reached = fidelities(net, inputs, max_channels=9)
    assert channels == [9] * 3 and (reached > 0).all() and (reached < 1).all()


def test_the_fidelity_is_that_of_the_region_map():
    # It is an estimate: with more channels it approaches 1, as the correlation does.
    net, inputs = build()
    exact = explain(RegionCAM, net, inputs).flatten(1)
    for count, least in ((4, 0.6), (16, 0.9), (60, 0.999)):
        maps = explain(RegionCAM, net, inputs, max_channels=count).flatten(1)
        truth = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(maps, exact)]
        _, estimates = fidelities(net, inputs, max_channels=count)
        assert (torch.stack(truth) >= least).all() and (estimates >= least).all()


OPTIONS = [
    {"max_channels": 9},
    {"fidelity": FIDELITY},
    {"fidelity": FIDELITY, "max_channels": 30},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)


@each_option
@pytest.mark.parametrize("perturbations", [1, 2, 100])
def test_the_size_of_a_chunk_changes_nothing(
    channel_masking_method, perturbations, options
):
    net, inputs = build()
    expected, maps = scored(channel_masking_method, net, inputs, **options)
    counts, actual = scored(
        channel_masking_method,
        net,
        inputs,
        perturbations_per_eval=perturbations,
        **options,
    )
    assert counts == expected
    assert torch.allclose(actual, maps, rtol=0, atol=1e-9)


@each_option
def test_an_example_that_is_not_finite_leaves_the_others_alone(
    channel_masking_method, options
):
    net, inputs = build()
    expected, maps = scored(channel_masking_method, net, inputs, **options)
    inputs[1, 0, 3, 3] = torch.nan
    with pytest.warns(UserWarning, match=r"examples \[1\] are NaN"):
        counts, actual = scored(channel_masking_method, net, inputs, **options)
    if channel_masking_method not in LATER_MAPS:  # of which its maps are none
        assert counts == [expected[0], 0, expected[2]]
    assert actual[1].isnan().all()
    assert torch.allclose(actual[[0, 2]], maps[[0, 2]], rtol=0, atol=1e-9)


@each_option
def test_a_score_that_is_not_finite_leaves_the_others_alone(
    channel_masking_method, options
):
    net, inputs = build()

    def forward_func(image, number):
        return torch.cat([net(image), number[:, None]], 1)

    def score_func(value):
        return lambda output: torch.where(output[:, 3:] == 1, value, output.sigmoid())

    def attribute(score_func):
        return channel_masking_method(forward_func, net.layer).attribute(
            inputs,
            additional_forward_args=torch.arange(3).double(),
            score_func=score_func,
            **options_of(channel_masking_method, target=1, **options),
        )

    expected = attribute(torch.sigmoid)
    with pytest.warns(UserWarning, match=r"examples \[1\] are NaN"):
        actual = attribute(score_func(torch.nan))
    assert actual[1].isnan().all()
    assert torch.allclose(actual[[0, 2]], expected[[0, 2]], rtol=0, atol=1e-9)


@each_option
def test_a_map_of_nan_has_no_fidelity(options):
    net, inputs = build()
    inputs[1, 0, 3, 3] = torch.nan
    with pytest.warns(UserWarning, match=r"examples \[1\] are NaN"):
        channels, reached = fidelities(net, inputs, **options)
    assert channels[1] == 0 and reached[1].isnan() and reached[[0, 2]].isfinite().all()


def messages(method, *args, **options):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        explain(method, *args, **options)
    texts = [str(warning.message) for warning in seen]
    return [text for text in texts if "fidelity" in text]


def test_what_max_channels_keeps_below_the_fidelity_is_named(channel_masking_method):
    net, inputs = build()
    name = channel_masking_method.__name__
    options = {"fidelity": 0.9999, "max_channels": 5}
    assert messages(channel_masking_method, net, inputs, **options) == [
        f"{name}: the maps of examples [0, 1, 2] are below the `fidelity` of 0.9999, "
        "by the estimate, after 5 scored channels; raise `max_channels`."
    ]
    options = {"fidelity": FIDELITY, "max_channels": 20}
    (text,) = messages(channel_masking_method, net, inputs, **options)
    assert "the maps of examples [1, 2] are below" in text
    for options in (
        {"max_channels": 5},
        {"fidelity": 1.0, "max_channels": 5},  # the default, which is not asked for
        {"fidelity": 1.0},
        {"fidelity": 1.0, "max_channels": CHANNELS},
        {"fidelity": 0.01, "max_channels": 20},
    ):
        assert not messages(channel_masking_method, net, inputs, **options)


def test_each_tensor_of_a_layer_is_scored_on_its_own(channel_masking_method):
    torch.manual_seed(0)
    weights = torch.randn(41, 9) / 4
    net, inputs = TwoTensors(weights.tolist()), torch.rand(2, 41, 9).double()
    options = options_of(channel_masking_method, score_func=torch.sigmoid)
    cam = channel_masking_method(net, net.layer)
    exact = cam.attribute(inputs, **options)
    for more in ({"max_channels": 7}, {"fidelity": 0.9}):
        options = options_of(channel_masking_method, score_func=torch.sigmoid, **more)
        first, second = cam.attribute(inputs, **options)
        assert torch.equal(first, exact[0])  # of one channel
        assert not torch.allclose(second, exact[1], rtol=0, atol=1e-9)


def test_details_of_each_tensor_of_a_layer():
    torch.manual_seed(0)
    net = TwoTensors((torch.rand(41, 9) / 10).tolist())
    inputs = torch.rand(2, 41, 9).double()
    _, (first, second) = UnionCAM(net, net.layer).attribute(
        inputs, max_channels=7, score_func=torch.sigmoid, return_details=True
    )
    assert first.scored_channels.tolist() == [1, 1]
    assert first.fidelity.tolist() == [1, 1]
    assert second.scored_channels.tolist() == [7, 7]
    assert (second.fidelity < 1).all()


@each_option
def test_an_empty_batch_has_nothing_to_predict(
    channel_masking_method, options, recwarn
):
    net, inputs = build()
    maps = explain(channel_masking_method, net, inputs[:0], **options)
    assert maps.shape == (0, 1, 3, 3) and not recwarn


def test_raw_scores_are_predicted_too():
    net, inputs = build()
    options = {"score_func": lambda output: 100 * output - 7}
    exact = explain(ScoreCAM, net, inputs, **options)
    maps = explain(ScoreCAM, net, inputs, max_channels=60, **options)
    assert maps.isfinite().all() and not torch.equal(maps, exact)
