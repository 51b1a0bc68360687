"""Maps that look at no model, and how an evaluation adds them to its tables."""

import json
import math

import pytest
import torch
from runs import QUICK, command, config

from captum_unioncam.cli import main
from captum_unioncam.evaluation.baselines import Edges, Gaussian, Random
from captum_unioncam.evaluation.config import BASELINES
from captum_unioncam.evaluation.labels import parse_baselines, parse_methods
from captum_unioncam.evaluation.methods import METHODS
from captum_unioncam.evaluation.metrics import METRICS
from captum_unioncam.evaluation.runner import evaluate

every_baseline = pytest.mark.parametrize("name", BASELINES)


def never(*_):
    raise AssertionError("the model ran")


@every_baseline
@pytest.mark.parametrize("size", [(9,), (8, 9), (3, 4, 5)], ids=len)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8], ids=str)
def test_they_make_a_map_for_each_example_without_the_model(name, size, dtype):
    images = (200 * torch.rand(2, 3, *size)).to(dtype)
    maps = METHODS[name].explain(never, "no layer", theta=3)(images, target=1)
    assert maps.shape[:2] == (2, 1) and maps.dim() == images.dim()
    assert maps.isfinite().all() and maps.ge(0).all() and maps.any()
    assert maps.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_random_map_belongs_to_its_image_and_its_seed():
    images = torch.rand(3, 3, 8, 8)
    images[2] = images[0]
    maps = Random(never).attribute(images)
    assert maps.shape == (3, 1, 7, 7) and maps.lt(1).all()
    assert torch.equal(maps[0], maps[2]) and not torch.equal(maps[0], maps[1])
    assert torch.equal(maps[1:2], Random(never).attribute(images[1:2]))
    assert not torch.equal(maps, Random(never).attribute(images, seed=1))
    assert Random(never).attribute(images, grid=3).shape == (3, 1, 3, 3)
    many = Random(never).attribute(torch.rand(200, 1, 2, 2))
    assert many.mean().item() == pytest.approx(0.5, abs=0.01)  # 1 / sqrt(12 * 9800)


def test_a_random_map_leaves_the_generator_of_torch_alone():
    state = torch.get_rng_state()
    Random(never).attribute(torch.ones(1, 1, 2, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_gaussian_by_hand():
    # Pixels of a side of 4 are at -3/8, -1/8, 1/8 and 3/8 of it: 1.5 and 0.5 widths.
    (map,) = Gaussian(never).attribute(torch.rand(1, 3, 4, 2))[0]
    far, near = math.exp(-0.5 * 1.5**2), math.exp(-0.5 * 0.5**2)
    column = torch.tensor([far, near, near, far])
    across = math.exp(-0.5)  # -1/4 and 1/4: one width
    torch.testing.assert_close(map, across * column[:, None].expand(4, 2))
    wide = Gaussian(never).attribute(torch.rand(1, 3, 4, 2), sigma=10)
    assert wide.min() > 0.99


def test_edges_by_hand():
    # Half of the difference of the neighbours; at the ends, the difference.
    image = torch.zeros(1, 2, 3, 4)
    image[0, 0, :, 2:] = 8.0
    image[0, 1, 1:] = 3.0
    (map,) = Edges(never).attribute(image)[0]
    columns, rows = torch.tensor([0.0, 4, 4, 0]), torch.tensor([3.0, 1.5, 0])
    torch.testing.assert_close(map, columns[None] + rows[:, None])
    corner = torch.tensor([[[[0.0, 0], [0, 8]]]])
    peak = Edges(never).attribute(corner)[0, 0, 1, 1].item()
    assert peak == pytest.approx(math.hypot(8, 8))


def test_an_image_of_a_pixel_or_of_one_value_has_no_edges():
    assert Edges(never).attribute(torch.rand(2, 3, 1, 1)).tolist() == [[[[0]]]] * 2
    assert not Edges(never).attribute(torch.full((1, 3, 5, 1), 7.0)).any()


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Random, {"seed": -1}, "`seed` must be an int >= 0, got -1"),
        (Random, {"grid": 0}, "`grid` must be a positive int, got 0"),
        (Gaussian, {"sigma": 0.0}, r"`sigma` must be a finite number in \[0.1, 10\]"),
    ],
)
def test_wrong_options_are_refused(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(never).attribute(torch.rand(1, 1, 4, 4), **options)


# In an evaluation


def test_baselines_are_named_where_they_are_wanted():
    assert tuple(n for n, m in METHODS.items() if m.baseline) == BASELINES
    assert list(parse_baselines(BASELINES)) == list(BASELINES)
    assert list(parse_baselines(["Random:seed=3", "edges"])) == [
        "random:seed=3",
        "edges",
    ]
    assert parse_baselines(["none"]) == parse_baselines([]) == {}
    assert not set(BASELINES) & set(parse_methods(["all"]))
    with pytest.raises(ValueError, match="gradcam looks at the model; name it under"):
        parse_baselines(["random", "gradcam"])


@pytest.mark.usefixtures("one_thread", "tiny_model", "no_pictures")
def test_an_evaluation_adds_them_to_every_table(images, tmp_path, capsys):
    options = {**QUICK, "metrics": ("drop", "complexity")}
    del options["baseline_methods"]
    rows = evaluate(
        config(images, tmp_path / "a", **options, baseline_methods=BASELINES)
    )
    labels = ["unioncam", "gradcam", *BASELINES]
    assert [row["method"] for row in rows[:5]] == labels
    assert not any("error" in row for row in rows)
    costs = {row["method"]: row["forwards"] for row in rows}
    assert [costs[name] for name in BASELINES] == [0, 0, 0]
    named = ("random", "gradcam", "edges:nothing")
    arguments = [*command(images, tmp_path / "b"), "--metrics", "drop"]
    assert main([*arguments, "--baseline-methods", "random,edges"]) == 0
    known = json.loads((tmp_path / "b" / "config.json").read_text())
    assert known["methods"] == ["unioncam", "gradcam", "random", "edges"]
    assert named[0] in capsys.readouterr().out


@pytest.mark.usefixtures("one_thread", "tiny_model", "no_pictures")
def test_all_metrics_without_boxes_measure_them(images, tmp_path):
    metrics = tuple(name for name, metric in METRICS.items() if not metric.needs_boxes)
    options = {**QUICK, "methods": ("gradcam",), "num_images": 1, "metrics": metrics}
    options["baseline_methods"] = BASELINES
    rows = evaluate(config(images, tmp_path, **options))
    assert [row.get("error") for row in rows] == [None] * 4
    assert {"coherency", "infidelity", "sensitivity"} <= set(metrics)
    for row in rows:
        assert set(row["metrics"]) >= set(metrics)
