"""The confidence metrics: exact values on sums, and degenerate maps."""

import numpy as np
import pytest
import torch
from nets import CASES
from reference import Model, masked

from captum_unioncam.metrics import (
    average_gain,
    confidence_drop,
    confidence_increase,
    confidence_kept,
    masked_confidences,
)


def total(image):
    """Scores an image by its sum."""
    return image.flatten(1).sum(1, keepdim=True)


def test_kept_is_the_share_of_a_sum_under_the_mask():
    # The maps scale to [0 .5 1] and [1 0 .25]: 0 * 4 + .5 * 2 + 1 * 6 = 7 of 12, and
    # 1 * 1 + 0 * 1 + .25 * 2 = 1.5 of 4.
    inputs = torch.tensor([[[4.0, 2, 6]], [[1, 1, 2]]])
    maps = torch.tensor([[[-1.0, 0, 1]], [[9, 5, 6]]])
    full, masked = masked_confidences(total, inputs, maps)
    assert full.tolist() == [12, 4] and masked.tolist() == pytest.approx([7, 1.5])
    kept = confidence_kept(full, masked)
    assert kept.tolist() == pytest.approx([7 / 12, 1.5 / 4])


def test_drop_and_increase_follow_from_the_scores():
    # Kept: 7 of 12, and (1 * 8 - 2) of 6: a drop of 5 / 12, and an increase.
    inputs = torch.tensor([[[4.0, 2, 6]], [[8, -2, 0]], [[1, 1, 1]]])
    maps = torch.tensor([[[-1.0, 0, 1]], [[9, 5, 5]], [[0, 1, 2]]])
    scores = masked_confidences(total, inputs, maps)
    assert confidence_kept(*scores).tolist() == pytest.approx([7 / 12, 8 / 6, 0.5])
    assert confidence_drop(*scores).tolist() == pytest.approx([5 / 12, 0, 0.5])
    assert confidence_increase(*scores).tolist() == [0, 1, 0]


def test_an_equal_score_is_no_increase():
    inputs, maps = torch.tensor([[[0.0, 3]]]), torch.tensor([[[0.0, 1]]])
    scores = masked_confidences(total, inputs, maps)
    assert confidence_increase(*scores).tolist() == [0]
    assert confidence_drop(*scores).tolist() == [0]


def test_a_mask_of_zero_shows_the_baseline():
    # 0 * 4 + .5 * 2 + 1 * 6 = 7, and the baseline shows 1 * 3 + .5 * 3 = 4.5 more.
    inputs, maps = torch.tensor([[[4.0, 2, 6]]]), torch.tensor([[[-1.0, 0, 1]]])
    kept = confidence_kept(*masked_confidences(total, inputs, maps, baselines=3))
    assert kept.item() == pytest.approx(11.5 / 12)


def test_degenerate_maps_and_scores_are_defined():
    inputs = torch.ones(4, 1, 3)
    inputs[3] = torch.tensor([1.0, -1, 0])  # y = 0
    maps = torch.tensor([[[0.0, 1, 2]], [[5, 5, 5]], [[0, torch.nan, 1]], [[0, 1, 2]]])
    scores = masked_confidences(total, inputs, maps)
    kept = confidence_kept(*scores)
    assert kept[:2].tolist() == pytest.approx([0.5, 0])
    assert kept[2:].isnan().all()
    drop = confidence_drop(*scores)
    assert drop[:2].tolist() == pytest.approx([0.5, 1])
    assert drop[2:].isnan().all()
    increase = confidence_increase(*scores)
    assert increase[:2].tolist() == [0, 0] and increase[2].isnan()
    assert increase[3] == 0  # -.5 is not more than 0


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("size", ["layer", "input"])
def test_matches_the_loops_at_every_rank(case, size):
    net, inputs = case.build(3)
    small = tuple((length + 1) // 2 for length in inputs.shape[2:])
    shape = small if size == "layer" else inputs.shape[2:]
    maps = torch.rand(3, 1, *shape, dtype=torch.float64)
    targets = [2, 0, 1]
    scores = masked_confidences(net, inputs, maps, targets, baselines=0.25)
    kept = confidence_kept(*scores)
    for i, target in enumerate(targets):
        image = [inputs[i].numpy()]
        model = Model(net, net.layer, target)
        seen = masked(image, maps[i, 0].numpy(), [np.full_like(image[0], 0.25)])
        expected = model.confidence(seen) / model.confidence(image)
        assert kept[i].item() == pytest.approx(expected, abs=1e-10)


def test_scores_are_those_of_the_score_func():
    net, inputs = CASES[0].build(3)
    maps = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    scores = masked_confidences(net, inputs, maps, 1, score_func=torch.sigmoid)
    others = masked_confidences(net, inputs, maps, 1)
    assert not torch.allclose(confidence_kept(*scores), confidence_kept(*others))


def test_gain_is_the_share_of_the_missing_confidence():
    # (.75 - .5) / .5, a drop, all that was missing, and (.3 - .2) / .8.
    full = torch.tensor([0.5, 0.5, 0.2, 0.2], dtype=torch.float64)
    masked = torch.tensor([0.75, 0.25, 1, 0.3], dtype=torch.float64)
    assert average_gain(full, masked).tolist() == pytest.approx([0.5, 0, 1, 0.125])


def test_a_full_confidence_leaves_nothing_to_gain():
    full, masked = torch.ones(3), torch.tensor([1.0, 0.4, torch.nan])
    gain = average_gain(full, masked)
    assert gain[:2].tolist() == [0, 0] and gain[2].isnan()
    # Closest to 1, the difference is still exact.
    below = torch.nextafter(torch.ones(1), torch.zeros(1))
    assert average_gain(below, torch.ones(1)).tolist() == [1]
    # No confidences, such as logits.
    assert average_gain(torch.tensor([7.0]), torch.tensor([9.0])).isnan().all()
    assert average_gain(torch.zeros(0), torch.zeros(0)).shape == (0,)


def test_gain_matches_the_loops():
    net, inputs = CASES[0].build(3)
    maps = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    found = average_gain(*masked_confidences(net, inputs, maps, 2))
    increase = confidence_increase(*masked_confidences(net, inputs, maps, 2))
    for i in range(3):
        image, model = [inputs[i].numpy()], Model(net, net.layer, 2)
        full = model.confidence(image)
        seen = masked(image, maps[i, 0].numpy(), [np.zeros_like(image[0])])
        expected = max(0, model.confidence(seen) - full) / (1 - full)
        assert found[i].item() == pytest.approx(expected, abs=1e-10)
    assert torch.equal(found > 0, increase > 0) and 0 < increase.sum()


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (3, 2, 4, 4), (3, 4), (3, 1, 4)])
def test_refuses_maps_that_do_not_fit(shape):
    net, inputs = CASES[0].build(3)
    with pytest.raises(ValueError, match="`attributions` must|`inputs` must"):
        masked_confidences(net, inputs, torch.rand(shape), 1)


def test_leaves_no_graph_and_changes_nothing():
    net, inputs = CASES[0].build(3)
    inputs.requires_grad_()
    before = inputs.detach().clone()
    maps = torch.rand(3, 1, 4, 4, requires_grad=True)
    scores = masked_confidences(net, inputs, maps, 1)
    for values in (*scores, confidence_kept(*scores)):
        assert values.shape == (3,) and not values.requires_grad
    assert torch.equal(inputs.detach(), before) and inputs.grad is None
