"""What every image goes through: the real default model, methods, and metrics."""

import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image
from runs import METHODS, config

from captum_unioncam import UnionCAM, metrics
from captum_unioncam.evaluation.runner import evaluate
from captum_unioncam.models import load_classifier

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")


def test_a_row_holds_what_the_methods_and_the_metrics_say(images, tmp_path):
    rows = evaluate(config(images, tmp_path, num_images=1, theta=30.0))
    assert [row["method"] for row in rows] == list(METHODS)
    classifier = load_classifier()
    model, layer = classifier.model, classifier.layer()
    with Image.open(images / rows[0]["id"]) as image:
        x = classifier.preprocess(image.convert("RGB"))[None]
    black = classifier.preprocess(Image.new("RGB", (300, 300)))[None]
    with torch.no_grad():
        target = int(model(x).argmax())
    maps = {
        "unioncam": UnionCAM(model, layer).attribute(
            x, target, baselines=black, theta=30, max_channels=2
        ),
        "gradcam": LayerGradCam(model, layer).attribute(
            x, target, relu_attributions=True
        ),
    }
    for row in rows:
        given = (model, x, maps[row["method"]], target, black)
        area, curve = metrics.deletion(*given, steps=2, return_curve=True)
        shown = metrics.insertion(*given[:4], steps=2)
        scores = metrics.masked_confidences(*given)
        expected = {
            "drop": 100 * metrics.confidence_drop(*scores).item(),
            "complexity": metrics.complexity(given[2], x.shape[2:]).item(),
            "increase": 100 * metrics.confidence_increase(*scores).item(),
            "insertion": shown.item(),
            "deletion": area.item(),
        }
        assert row["metrics"] == pytest.approx(expected, rel=1e-4)
        # A curve is kept with six digits.
        assert row["curves"]["deletion"] == pytest.approx(curve[0].tolist(), abs=1e-6)
        assert (row["target"], row["target_name"]) == (
            target,
            classifier.categories[target],
        )
    # 2 channels, the activations, the image twice for the scores, the baseline, the
    # components and the union.
    assert [row["forwards"] for row in rows] == [2 + 1 + 2 + 1 + 2 + 1, 1]
