"""FDCAM: groups of similar channels, their scores and the weights, by hand."""

import pytest
import torch
from nets import Case, Counted, Weighed, example
from torch import nn

from captum_unioncam import FDCAM, vit_reshape
from captum_unioncam.attr.fd_cam import scores_times_gradients, similar_channels


def raw(output):
    return output


def explain(net, inputs, **options):
    """The map of the only example under raw outputs, as nested lists."""
    cam = FDCAM(net, net.layer)
    return cam.attribute(inputs, score_func=raw, **options)[0, 0]


def close(*rows):
    return torch.tensor(rows, dtype=torch.float64)


class Mean(Weighed):
    """The sum of the channels' means under weights: on and off scores are equal."""

    def __init__(self, *weights):
        super().__init__([[[u / 4] * 2] * 2 for u in weights])


def test_hand_worked_example():
    # Alone and left out the channels are worth 2 * 10/4 = 5 and 6/4 = 1.5: s = (10, 3),
    # a = (1/2, 1/4), w = (e - 1/2, -1/2).
    actual = explain(Mean(2, 1), example([[1, 2], [3, 4]], [[4, 0], [0, 2]]))
    e = torch.tensor(1.0).double().exp().item()
    expected = close([e - 0.5 - 2, 2 * (e - 0.5)], [3 * (e - 0.5), 4 * (e - 0.5) - 1])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


FOUR = ([[1, 0], [0, 0]], [[1, 1], [0, 0]], [[0, 0], [1, 0]], [[0, 0], [1, 1]])


def test_hand_worked_groups():
    # With the median, {a, b} and {c, d}. The first is worth 4/4 + 2 * 2/4 = 2, the
    # second 1/4 + 2/4 = 3/4: s = (4, 4, 3/2, 3/2), a = (4, 2, 1, 1) / 4, and w = (e -
    # 1/2, e/3 - 1/2, -1/2, -1/2).
    actual = explain(Mean(4, 2, 1, 1), example(*FOUR), percentile=50)
    e = torch.tensor(1.0).double().exp().item()
    expected = close([4 / 3 * e - 1, e / 3 - 0.5], [0, 0])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_equal_groups_are_scored_once():
    counted = Counted(Mean(4, 2, 1, 1))
    counted.layer = counted.net.layer
    inputs = torch.cat([example(*FOUR)] * 3)
    options = {"perturbations_per_eval": 1, "score_func": raw, "percentile": 50}
    FDCAM(counted, counted.layer).attribute(inputs, **options)
    # The gradients, the scores of the images, and two groups kept and left out.
    assert counted.sizes == [3] * (1 + 1 + 2 * 2)


def groups(*channels, percentile=95.0):
    """The members of each channel's group, and the first of the same group."""
    found = similar_channels(example(*channels), percentile)
    members = [
        [member for member in row if member < len(channels)]
        for row in found.members[0].tolist()
    ]
    return members, found.first[0].tolist()


def test_groups_hold_what_exceeds_the_percentile():
    # Cosines with [3 4]: 1, 3/5, 4/5, -1.
    lines = ([3, 4], [1, 0], [0, 2], [-3, -4])
    members, first = groups(*lines, percentile=50)  # over 7/10
    assert members[0] == [0, 2] and first == [0, 1, 0, 3]
    members, _ = groups(*lines, percentile=0)
    assert members == [[0, 1, 2], [0, 1, 2], [0, 1, 2], [1, 2, 3]]
    members, first = groups(*lines, percentile=100)
    assert members == [[]] * 4 and first == [0] * 4


def test_the_group_of_a_channel_of_zeros_is_empty():
    # All of its cosines are 0. It is in no other group, but counts among the four.
    members, first = groups([1, 2], [0, 0], [2, 1], [0, 0], percentile=60)
    assert members == [[0, 2], [], [0, 2], []] and first == [0, 1, 0, 1]
    # A group that holds another one is not equal to it.
    _, first = groups([0, 0], [1, 2], [0, 0], [2, 1], percentile=60)
    assert first == [0, 1, 0, 1]


@pytest.mark.parametrize("count, size", [(1, 0), (2, 1), (21, 1), (22, 2), (512, 26)])
def test_the_sizes_of_the_groups(count, size):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(1, count, 7, 7, generator=generator, dtype=torch.float64)
    found = similar_channels(maps, 95.0)
    assert found.members.shape == (1, count, size)
    # Few channels are equally similar up to rounding.
    full = (found.members < count).sum(2) == size
    assert full.double().mean() > 0.98
    assert (found.members == torch.arange(count)[:, None]).any(2).all() or size == 0


@pytest.mark.parametrize("factor", [3.0, 0.7, 1e-30, 1e30])
def test_rounding_does_not_tell_channels_apart(factor):
    # Equally similar to each other, and to the others: none exceeds the threshold.
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(1, 6, 5, 5, generator=generator)
    maps = torch.cat([maps, factor * maps[:, :1] * 1.0000001], 1)
    first, last = similar_channels(maps, 95.0).members[0][[0, 6]]
    assert first.tolist() == last.tolist() == [7]


def test_weights_by_hand():
    scores = torch.tensor([[1.0, 3, 2], [5, 5, 5]])
    slopes = torch.tensor([[-2.0, 2, 0], [0, 1, 4]])
    e = torch.tensor(1.0).exp()
    expected = torch.stack(
        [
            torch.stack([0 * e - 0.5, e - 0.5, 0.5 * e.sqrt() - 0.5]),
            torch.tensor([-0.5, -0.25, 0.5]),
        ]
    )
    torch.testing.assert_close(scores_times_gradients(scores, slopes), expected)
    same = scores_times_gradients(scores, torch.ones(2, 3))
    assert torch.equal(same, torch.full((2, 3), -0.5))


def test_a_group_is_compared_within_its_example():
    net, inputs = Case().build(4)
    inputs[1] = inputs[1].flip(2)
    cam = FDCAM(net, net.layer)
    together = cam.attribute(inputs, target=1, percentile=40)
    alone = [cam.attribute(x[None], target=1, percentile=40) for x in inputs]
    assert together.flatten(1).any(1).sum() > 1
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


def test_the_tokens_that_a_transform_drops_stay():
    class Net(nn.Module):
        """The class token weights what the patches say."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, tokens):
            tokens = self.layer(tokens)
            gates = tokens[:, :1, :1]
            return (gates * tokens[:, 1:] * torch.tensor([[[2.0, 1]]])).sum((1, 2))

    # Patches [1 4], [2 0], [3 0], [4 2], and a class token of 1/4: the first example.
    tokens = torch.tensor([[[0.25, 9], [1, 4], [2, 0], [3, 0], [4, 2]]])
    cam = FDCAM(Net(), nn.Identity(), reshape_transform=vit_reshape)
    cam.layer = cam.forward_func.layer
    actual = cam.attribute(tokens, score_func=raw)[0, 0]
    plain = explain(Mean(2, 1), example([[1, 2], [3, 4]], [[4, 0], [0, 2]]))
    torch.testing.assert_close(actual, plain.float())
