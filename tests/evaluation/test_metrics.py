"""The one list of metrics, what it measures, and the passes that it takes."""

import pytest
import torch
from nets import Case
from runs import config

from captum_unioncam import metrics
from captum_unioncam.evaluation import runner
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.lists import metrics_table
from captum_unioncam.evaluation.metrics import METRICS, Batch, Measurement
from captum_unioncam.evaluation.runner import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = ("drop", "increase")
CURVES = ("insertion", "deletion")
STEPS = 4
BLACK = 0.25  # a value that no image has, to tell a black image by


class Recorded:
    """A model, and the images of each of its passes."""

    def __init__(self, net):
        self.net, self.passes = net, []

    def __call__(self, images):
        self.passes.append(images.detach().clone())
        return self.net(images)

    def count(self, image):
        """Returns how often the model saw an image, (C, H, W)."""
        return sum(torch.equal(row, image) for rows in self.passes for row in rows)


def batch_of(examples, **options):
    """Returns images of random pixels, and the model that is recorded."""
    net, inputs = Case().build(0, examples)
    model = Recorded(net)
    masks = [torch.zeros(1, *inputs.shape[2:], dtype=torch.bool)] * examples
    settings = {
        "target": [i % 3 for i in range(examples)],
        "baselines": torch.full((1, 2, 1, 1), BLACK, dtype=torch.float64),
        "masks": masks,
        "steps": STEPS,
        "seeds": list(range(examples)),
        **options,
    }
    return Batch(model, inputs, **settings), model


def measured(batch, count, names):
    """Returns what metrics say of several maps of a batch."""
    torch.manual_seed(1)
    values = []
    for _ in range(count):
        maps = torch.rand(len(batch.inputs), 1, 4, 4, dtype=torch.float64)
        m = Measurement(batch, maps, explain=None)
        values.append((maps, {name: METRICS[name].measure(m) for name in names}))
    return values


# The list


def test_every_public_metric_is_listed_or_makes_what_is_measured():
    listed = {metric.function for metric in METRICS.values()}
    ours = {getattr(metrics, name) for name in metrics.__all__}
    # The share that is kept is for people: the drop has the same information.
    helpers = {
        metrics.boxes_to_masks,
        metrics.masked_confidences,
        metrics.confidence_kept,
    }
    assert ours - listed == helpers
    assert {f.__module__.split(".")[0] for f in listed - ours} == {"captum"}


def test_entries_say_what_they_measure_and_where_they_are_from():
    titles = [metric.title for metric in METRICS.values()]
    assert len(set(titles)) == len(titles)
    for metric in METRICS.values():
        assert metric.meaning and metric.better in ("higher", "lower")
        assert any(year in metric.paper for year in map(str, range(2016, 2027)))


def test_the_table_has_a_line_for_each_metric():
    header, rule, *lines = metrics_table().splitlines()
    assert header == "| name | function | measures | better | paper | boxes |"
    assert set(rule) == set("| -")
    assert [line.split(" | ")[0] for line in lines] == [f"| `{n}`" for n in METRICS]
    assert "| `drop` | `confidence_drop` |" in lines[0]
    assert sum("`captum.metrics.infidelity`" in line for line in lines) == 1
    assert sum(line.endswith("| needed |") for line in lines) == 3


# Passes


@pytest.mark.parametrize("examples", [1, 3])
@pytest.mark.parametrize("methods", [1, 4])
def test_drop_and_increase_score_whole_and_black_images_once_for_all_methods(
    examples, methods
):
    batch, model = batch_of(examples)
    measured(batch, methods, PAPER)
    # Whole images in their own memory format and, for comparison, in channels_last.
    assert all(model.count(image) == 2 for image in batch.inputs)
    black = batch.baselines[0].expand_as(batch.inputs[0])
    assert model.count(black) == examples
    assert sum(map(len, model.passes)) == examples * (3 + methods)


def test_curves_share_their_ends_between_methods_and_metrics():
    batch, model = batch_of(3)
    measured(batch, 2, (*PAPER, *CURVES))
    black = batch.baselines[0].expand_as(batch.inputs[0])
    assert model.count(black) == 3
    # Twice over black images, and twice over blurred ones.
    assert all(model.count(image) == 4 for image in batch.inputs)
    ends, inside = 2 * (2 * 3 + 3), 2 * 3 * (1 + 2 * (STEPS - 1))
    assert sum(map(len, model.passes)) == ends + inside


def test_shared_scores_are_those_of_the_public_functions():
    batch, model = batch_of(3)
    for maps, values in measured(batch, 2, (*PAPER, *CURVES)):
        given = (model.net, batch.inputs, maps, batch.target)
        scores = metrics.masked_confidences(*given, batch.baselines)
        deletion = metrics.deletion(*given, batch.baselines, steps=STEPS)
        insertion = metrics.insertion(*given, steps=STEPS)
        for ours, theirs in (
            (values["drop"], 100 * metrics.confidence_drop(*scores)),
            (values["increase"], 100 * metrics.confidence_increase(*scores)),
            (values["deletion"][0], deletion),
            (values["insertion"][0], insertion),
        ):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-10)


def test_each_image_has_noise_and_subsets_of_its_own_seed_for_every_method():
    batch, _ = batch_of(3, seeds=[7, 8, 9])
    for maps, values in measured(batch, 2, ("gain", "road", "mu_fidelity")):
        for i, seed in enumerate(batch.seeds):
            one = slice(i, i + 1)
            given = (batch.inputs[one], maps[one], batch.target[i])
            net, black = batch.forward_func.net, batch.baselines
            gain = metrics.average_gain(*metrics.masked_confidences(net, *given, black))
            road = metrics.road(
                net, *given, generator=torch.Generator().manual_seed(seed)
            )
            fidelity = metrics.mu_fidelity(
                net, *given, black, generator=torch.Generator().manual_seed(seed)
            )
            assert values["gain"][i].item() == pytest.approx(100 * gain.item())
            assert values["road"][i].item() == pytest.approx(road.item(), abs=1e-10)
            assert values["mu_fidelity"][i].item() == pytest.approx(
                fidelity.item(), abs=1e-8
            )


def test_adcc_is_of_the_parts_that_are_measured_and_explains_once_more():
    batch, model = batch_of(3)
    explained = []

    def explain(inputs, target, **_):
        explained.append(inputs)
        return inputs.abs().sum(1, keepdim=True)

    maps = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    m = Measurement(batch, maps, explain)
    names = ("drop", "gain", "coherency", "complexity", "adcc")
    values = {name: METRICS[name].measure(m) for name in names}
    parts = (values["coherency"], values["complexity"], values["drop"] / 100)
    assert torch.allclose(values["adcc"], metrics.adcc(*parts))
    assert (values["adcc"] > 0).all() and len(explained) == 1
    assert sum(map(len, model.passes)) == 3 * (3 + 1)


def test_costly_metrics_run_only_when_asked_for():
    chosen = set(EvaluationConfig("imagefolder:a", "b").metrics)
    assert chosen == {*PAPER, *CURVES, "complexity"} and chosen < set(METRICS)


def test_an_evaluation_runs_the_model_once_for_each_map_beyond_the_methods_passes(
    images, tmp_path, tiny_model, no_pictures, monkeypatch
):
    run, counts = runner._run, []

    def counted(task, *arguments):
        before = task.forwards  # what was tried on a black image
        run(task, *arguments)
        counts.append(task.forwards - before)

    monkeypatch.setattr(runner, "_run", counted)
    methods = ("unioncam", "gradcam", "scorecam")
    options = {"metrics": PAPER, "num_images": 4, "batch_size": 2, "methods": methods}
    rows = evaluate(config(images, tmp_path, **options))
    assert len(rows) == 4 * len(methods) and not any("error" in row for row in rows)
    own = sum(row["forwards"] for row in rows)
    assert [row["forwards"] for row in rows[:3]] == [2 + 7, 1, 2 + 4]
    predictions, wholes, blacks = 4, 2 * 4, 4
    assert counts == [own + len(rows) + predictions + wholes + blacks]


def test_a_batch_that_is_resumed_in_part_gives_the_same_values(
    images, tmp_path, tiny_model, no_pictures
):
    options = {"metrics": PAPER, "num_images": 2, "batch_size": 2}
    expected = evaluate(config(images, tmp_path, **options))
    path = tmp_path / "rows-00000.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))  # without one method of one image
    rows = evaluate(config(images, tmp_path, resume=True, **options))
    for row, other in zip(rows, expected, strict=True):
        assert (row["index"], row["method"]) == (other["index"], other["method"])
        assert row["metrics"] == pytest.approx(other["metrics"], rel=1e-4, abs=1e-3)


# Batches


def test_boxes_and_their_masks_are_of_what_is_shown():
    masks = torch.zeros(2, 2, 7, 7, dtype=torch.bool)
    masks[0, 0, 1:3, 2:6] = True
    masks[0, 1, 2:5, 0:1] = True
    masks[1, 1, 6:, 6:] = True  # the other box of this image was cut off
    batch, _ = batch_of(2, masks=list(masks))
    first, second = batch.boxes()
    assert first.tolist() == [[2, 1, 6, 3], [0, 2, 1, 5]]
    assert second.tolist() == [[6, 6, 7, 7]]
    regions = batch.masks_of_any_box()
    assert regions.shape == (2, 1, 7, 7)
    assert torch.equal(regions[0, 0], masks[0, 0] | masks[0, 1])


def test_images_without_boxes_have_none():
    batch, _ = batch_of(1, masks=[torch.zeros(0, 7, 7, dtype=torch.bool)])
    (boxes,) = batch.boxes()
    assert boxes.shape == (0, 4)
    assert not batch.masks_of_any_box().any()


def test_each_image_is_measured_alone_under_its_own_seed():
    batch, _ = batch_of(3, seeds=[7, 8, 7])
    maps = torch.rand(3, 1, 4, 4)
    state = torch.get_rng_state()
    drawn = []
    for i, one in enumerate(Measurement(batch, maps, explain=None).alone()):
        drawn.append(torch.rand(1).item())
        assert torch.equal(one.batch.inputs[0], batch.inputs[i])
        assert torch.equal(one.maps[0], maps[i])
        assert one.batch.target == [batch.target[i]]
        assert len(one.batch.masks) == len(one.batch.seeds) == 1
    assert drawn[0] == drawn[2] != drawn[1]
    assert torch.equal(torch.get_rng_state(), state)
