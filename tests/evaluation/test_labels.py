"""Labels: the class that the folder of an image names, and no other."""

import dataclasses
import os

import pytest
from classifiers import categories, tiny_classifier
from runs import command, config

from captum_unioncam.cli import main
from captum_unioncam.evaluation import task
from captum_unioncam.evaluation.runner import evaluate

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_model", "no_pictures")

LABEL = {"target": "label", "methods": ("gradcam",), "metrics": ("drop",)}


@pytest.fixture
def labelled(images, tmp_path):
    """Returns what makes a data set of folders of these names, with one image each."""

    def make(*names):
        for name in names:
            (tmp_path / "data" / name).mkdir(parents=True)
            content = (images / "0.png").read_bytes()
            (tmp_path / "data" / name / "cat.png").write_bytes(content)
        return tmp_path / "data"

    return make


def test_labels_are_indices_names_and_wordnet_ids(labelled, tmp_path):
    names = ("281", "Tiger_Cat", "n01443537", "no such class", "tabby", "1000")
    rows = evaluate(config(labelled(*names), tmp_path / "out", **LABEL))
    targets = {row["id"].split("/")[0]: row.get("target") for row in rows}
    assert targets == {
        "281": 281,
        "Tiger_Cat": 282,
        "n01443537": 1,  # goldfish
        "no such class": None,
        "tabby": 281,
        "1000": None,
    }
    reasons = [row["error"] for row in rows if "error" in row]
    assert reasons == [
        "its label is no class of the model ('1000')",
        "its label is no class of the model ('no such class')",
    ]


def test_a_label_of_two_classes_is_refused_by_both(labelled, tmp_path):
    # The dog, 264, and the garment, 474.
    rows = evaluate(config(labelled("cardigan", "tabby"), tmp_path / "out", **LABEL))
    failed, _ = rows
    assert failed["error"] == (
        "its label is several classes of the model ('cardigan' is [264, 474]; name its "
        "folder by the index or the WordNet id)"
    )


def test_wordnet_ids_are_classes_of_imagenet_alone(labelled, tmp_path, monkeypatch):
    def few(name="tiny", weights="none"):
        classifier = tiny_classifier(name, weights)
        head = classifier.model[-1]
        head.weight.data, head.bias.data = head.weight.data[:500], head.bias.data[:500]
        return dataclasses.replace(classifier, categories=categories()[:500])

    monkeypatch.setattr(task, "load_classifier", few)
    data = labelled("n01443537", "goldfish")
    by_id, by_name = evaluate(config(data, tmp_path / "out", **LABEL))[::-1]
    assert by_name["target"] == 1
    assert "its label is no class of the model ('n01443537')" in by_id["error"]


def test_labels_of_which_none_is_a_class_are_refused_at_the_start(
    labelled, tmp_path, capsys
):
    data = labelled("cardigan", "dogs")
    arguments = [*command(data, tmp_path / "out"), "--target", "label"]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    error = "captum-unioncam: error: --target: no image has a label that is a class of "
    assert not out and err.startswith(error)
    assert "cardigan/cat.png: its label is several classes" in err
    assert "WordNet ids, or explain the predicted class" in err
    assert os.listdir(tmp_path) == ["data"]


def test_images_without_labels_are_refused_at_the_start(images, tmp_path):
    with pytest.raises(ValueError, match="0.png: the image has no label.; name the"):
        evaluate(config(images, tmp_path / "out", **LABEL))
    assert not os.listdir(tmp_path)
