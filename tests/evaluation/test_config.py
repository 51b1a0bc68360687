"""What to evaluate: wrong options are refused, and the presets."""

import dataclasses
import inspect
import json

import pytest
from runs import config

from captum_unioncam.cli import evaluate as command
from captum_unioncam.cli import main
from captum_unioncam.errors import ConfigError
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.runner import evaluate
from captum_unioncam.metrics import deletion, insertion

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ("scorcam",)}, "no method 'scorcam'; did you mean 'scorecam'"),
        ({"methods": ()}, "`methods` must name at least one method"),
        ({"methods": ("unioncam:thet=3",)}, "no option 'thet'; did you mean 'theta'"),
        ({"methods": ("unioncam:theta=x",)}, "the value of 'theta' must be a number"),
        ({"methods": ("unioncam:return_details=True",)}, "no option 'return_details'"),
        (
            {"methods": ("unioncam:theta=300",)},
            r"`theta` must be a finite number in \[0, 100\], got 300",
        ),
        (
            {"metrics": ("dropp",)},
            "`metrics` must be one of drop, .*, got 'dropp'; did you mean 'drop'",
        ),
        ({"metrics": ()}, "`metrics` must name at least one metric"),
        (
            {"baseline_methods": ("gradcam",)},
            "`baseline_methods`: gradcam looks at the model; name it under `methods`",
        ),
        ({"baseline_methods": ("edge",)}, "no method 'edge'; did you mean 'edges'"),
        ({"reference": "unioncm"}, "`reference` must be one .* did you mean 'unionc"),
        ({"metrics": ("iou",)}, "iou needs boxes, which voc2007:DIR has"),
        ({"target": "best"}, "`target` must be one of"),
        ({"num_images": 0}, "`num_images` must be a positive int or None, got 0"),
        ({"theta": 101.0}, r"`theta` must be a finite number in \[0, 100\], got 101"),
        ({"layer": "_fc"}, "unioncam cannot run: `layer` must have an activation"),
        ({"layer": "none"}, "has no layer 'none'"),
        ({"device": "tpu9000"}, "`device` tpu9000 cannot be used"),
        ({"weights": "missing.pt"}, "there is no weights file"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_anything_is_written(
    images, tmp_path, options, message
):
    with pytest.raises(ValueError, match=message):
        evaluate(config(images, tmp_path / "out", **options))
    assert not list(tmp_path.glob("out/rows-*"))
    refused = tmp_path / "out" / "config.json"
    assert not refused.exists()


def test_the_papers_protocol_is_a_preset(images, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(command, "evaluate", lambda c, _: seen.append(c) or [])
    arguments = ["evaluate", "--data", f"imagefolder:{images}", "--output", "x"]
    assert main([*arguments, "--preset", "paper", "--num-images", "7"]) == 0
    assert main([*arguments, "--preset", "ablation", "--methods", "all"]) == 0
    paper, ablation = seen
    assert (paper.model, paper.preprocessing, paper.theta) == ("vgg16", "unit", 10)
    assert (paper.num_images, ablation.num_images) == (7, 2000)
    assert ablation.methods == ("all",)
    assert main([*arguments, "--preset", "ablation"]) == 0
    assert "unioncam:theta=90" in seen[-1].methods and len(seen[-1].methods) == 9
    assert seen[-1].ablation and not paper.ablation


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EvaluationConfig("imagefolder:x", "out").theta = 5.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a positive int, got 0"),
        ({"batch_size": 2.0}, r"`batch_size` must be a positive int, got 2.0 \(float"),
        ({"batch_size": None}, "`batch_size` must be a positive int, got None"),
        ({"workers": -1}, "`workers` must be an int >= 0, got -1"),
        ({"seed": 2**31}, r"`seed` must be an int in \[0, 2147483647\], got"),
        ({"theta": float("nan")}, "`theta` must be a finite number in .*, got nan"),
        ({"theta": "10"}, "`theta` must be a finite number in .*, got '10'"),
        ({"preprocessing": "units"}, "must be one of model, unit, got 'units'; did"),
    ],
    ids=str,
)
def test_a_field_with_a_wrong_value_is_a_config_error(options, message):
    with pytest.raises(ConfigError, match=message):
        EvaluationConfig("imagefolder:x", "out", **options)


def test_what_two_runs_must_share_is_all_but_where_and_how_they_run():
    one = EvaluationConfig("imagefolder:x", "out")
    other = dataclasses.replace(
        one, output="elsewhere", resume=True, workers=3, device="cpu"
    )
    other = dataclasses.replace(
        other, baseline_methods=(), reference="gradcam", ablation=True
    )
    assert one.comparable() == other.comparable()
    names = {field.name for field in dataclasses.fields(one)}
    free = {"output", "resume", "workers", "device"}
    free |= {"baseline_methods", "reference", "ablation"}
    assert set(one.comparable()) == names - free
    assert json.loads(json.dumps(one.comparable())) == one.comparable()


@pytest.mark.parametrize("metric", [insertion, deletion])
def test_curves_have_as_many_steps_as_the_metrics_alone(metric):
    # `evaluation.config` cannot read it there: the command starts without torch.
    assert (
        inspect.signature(metric).parameters["steps"].default == EvaluationConfig.steps
    )
