"""Boxes of the explained class: names of objects, and what counts end to end."""

import dataclasses
import json
from pathlib import Path

import pytest
from classifiers import categories, tiny_classifier
from folders import coco_folder, imagenet_folder, voc_folder, voc_objects
from runs import QUICK

from captum_unioncam.cli import main
from captum_unioncam.errors import ConfigError, DataError
from captum_unioncam.evaluation import task
from captum_unioncam.evaluation.config import EvaluationConfig
from captum_unioncam.evaluation.data import Entry
from captum_unioncam.evaluation.annotations import Object
from captum_unioncam.evaluation.objects import (
    ClassObjects,
    check_objects,
    read_object_names,
)
from captum_unioncam.evaluation.runner import evaluate
from captum_unioncam.models import load_classifier, wordnet_ids

pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures")

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "boxes"

# Names


def test_objects_are_of_the_class_of_their_name_or_wordnet_id():
    objects = ClassObjects(categories(), 1000)
    assert objects.classes("tiger_cat") == objects.classes("n02123159") == [282]
    assert objects.classes("bird") == objects.classes("") == []
    assert ClassObjects([], 10).classes("n02123159") == []
    assert ClassObjects(["crane", "cat", "crane"], 3).classes("Crane") == [0, 2]


def test_a_file_of_names_takes_the_place_of_the_models(tmp_path):
    path = tmp_path / "names.json"
    path.write_text('{"1": ["potted_plant", "Cat"], "3": ["cat"], "0": []}')
    objects = ClassObjects(["cat", "b", "c", "d"], 4, read_object_names(str(path)))
    assert objects.classes("cat") == [1, 3]
    assert objects.classes("potted plant") == objects.classes("potted_plant") == [1]
    assert objects.classes("b") == []
    with pytest.raises(ConfigError, match="there is no class 3: the model has 3"):
        ClassObjects([], 3, read_object_names(str(path)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must hold a list of objects' names for each class index, .*got .1."),
        ('{"cat": ["cat"]}', "got {'cat': .'cat'.}"),
        ('{"-1": []}', "got {'-1'"),
        ('{"1": "cat"}', "got {'1': 'cat'}"),
        ('{"0": [], "1": ["cat", 2]}', "got {'1': .'cat', 2.}"),
        ("{", "cannot be read as JSON"),
        (None, "cannot be read as JSON .No such file"),
    ],
)
def test_a_file_that_is_no_names_is_refused(tmp_path, content, message):
    path = tmp_path / "names.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_object_names(str(path))


BOX = (1, 2, 3, 4)


def test_objects_that_are_of_no_class_are_refused():
    config = EvaluationConfig("voc2007:x", "out", metrics=("iou",), boxes="target")
    objects = ClassObjects(["dog", "cat"], 2)

    def entry(*names):
        found = tuple(Object(name, BOX) for name in names)
        return Entry("1.jpg", "1.jpg", objects=found)

    check_objects(config, objects, [entry("bird"), entry(), entry("bird", "cat")])
    message = "no object .* of a class of the model .their names: 'bird', 'car'.; give"
    with pytest.raises(ConfigError, match=message):
        check_objects(config, objects, [entry("bird", "car"), entry("bird")])
    with pytest.raises(ConfigError, match="none is named"):
        check_objects(config, objects, [entry()])
    for changed in ({"boxes": "any"}, {"metrics": ("drop",)}):
        check_objects(dataclasses.replace(config, **changed), objects, [entry("bird")])


def test_an_annotation_that_cannot_be_read_is_left_to_its_row():
    class Broken(Entry):
        def object_names(self):
            raise DataError("torn")

    config = EvaluationConfig("voc2007:x", "out", metrics=("iou",), boxes="target")
    good = Entry("1.jpg", "1.jpg", objects=(Object("cat", BOX),))
    check_objects(config, ClassObjects(["cat"], 1), [Broken("0.jpg", "0.jpg"), good])


# What counts


@pytest.fixture(scope="module")
def predicted():
    """The class that the tiny classifier sees in the picture, 96 x 64."""
    from folders import picture

    classifier = tiny_classifier()
    inputs = classifier.preprocess(picture(size=(96, 64)))[None]
    return int(classifier.model(inputs).argmax())


def energies(spec, output, **options):
    values = {**QUICK, "methods": ("gradcam",), "metrics": ("energy", "pointing")}
    rows = evaluate(EvaluationConfig(spec, str(output), **{**values, **options}))
    return [row["metrics"]["energy"] for row in rows]


LEFT, RIGHT = (1, 1, 40, 64), (41, 1, 96, 64)


@pytest.mark.usefixtures("tiny_model")
def test_boxes_of_the_target_are_those_of_its_class_alone(tmp_path, predicted):
    names = tmp_path / "names.json"
    names.write_text(json.dumps({predicted: ["dog"]}))
    spec = f"voc2007:{tmp_path}"
    target = {"boxes": "target", "object_names": str(names)}
    voc_folder(tmp_path, [LEFT, RIGHT], ["cat", "dog"])
    (of_any,) = energies(spec, tmp_path / "any")
    (of_dogs,) = energies(spec, tmp_path / "dogs", **target)
    path = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    path.write_text(voc_objects([RIGHT]))
    (right,) = energies(spec, tmp_path / "right")
    assert of_any == pytest.approx(1) and 0 < of_dogs < 1
    assert of_dogs == right


@pytest.mark.usefixtures("tiny_model")
def test_an_image_without_a_box_of_the_class_is_undefined_and_counted(
    tmp_path, predicted
):
    wnids = [wordnet_ids()[predicted], wordnet_ids()[predicted + 1]]
    imagenet_folder(tmp_path, wnids, 2)
    for i, wnid in ((1, wnids[0]), (3, wnids[1])):  # the others have none
        path = tmp_path / f"Annotations/CLS-LOC/val/ILSVRC2012_val_{i:08}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(voc_objects([LEFT], [wnid]))
    spec = f"imagenet:{tmp_path}"
    found = energies(spec, tmp_path / "any")
    assert found[0] == found[2] and [v is not None for v in found] == [1, 0, 1, 0]
    found = energies(spec, tmp_path / "target", boxes="target")
    assert [v is not None for v in found] == [1, 0, 0, 0]
    report = json.loads((tmp_path / "target" / "report.json").read_text())
    assert report["config"]["boxes"] == "target"
    for name in ("energy", "pointing"):
        assert report["results"]["gradcam"][name]["n"] == 1
        assert report["results"]["gradcam"][name]["nan"] == 3
    # Of the label's class, in place of the predicted one.
    found = energies(spec, tmp_path / "label", boxes="target", target="label")
    assert [v is not None for v in found] == [1, 0, 1, 0]


@pytest.mark.usefixtures("tiny_model")
def test_coco_and_names_of_objects_from_the_command(tmp_path, predicted, capsys):
    pytest.importorskip("pycocotools")
    coco_folder(tmp_path, [("cat", [0, 0, 40, 64]), ("dog", [40, 0, 56, 64])])
    names = tmp_path / "names.json"
    names.write_text(json.dumps({predicted: ["dog"]}))
    arguments = ["evaluate", "--methods", "gradcam", "--metrics", "energy"]
    arguments += ["--data", f"coco:{tmp_path / 'images'},{tmp_path / 'instances.json'}"]
    arguments += ["--output", str(tmp_path / "out"), "--boxes", "target"]
    assert main(arguments) == 2
    assert "their names: 'cat', 'dog'); give `object_names`" in capsys.readouterr().err
    assert not (tmp_path / "out" / "config.json").exists()
    assert main([*arguments, "--object-names", str(names)]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["results"]["gradcam"]["energy"]["n"] == 1  # one image has no boxes
    names.write_text(json.dumps({predicted: ["cat"]}))
    assert main([*arguments, "--object-names", str(names), "--resume"]) == 2
    assert "the content of the file of objects' names has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("iou",)}, "iou needs boxes, which voc2007:DIR has, and coco:"),
        ({"object_names": "x.json"}, "`object_names` .* needs boxes='target'"),
        (
            {"object_names": "x.json", "boxes": "target"},
            "`object_names`: x.json cannot be read",
        ),
        ({"boxes": "all"}, "`boxes` must be one of any, target, got 'all'"),
    ],
    ids=str,
)
def test_wrong_options_of_boxes_are_refused(images, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        energies(f"imagefolder:{images}", tmp_path, **{"metrics": ("drop",), **options})
    assert not (tmp_path / "config.json").exists()


@pytest.mark.skipif(not SHARED.exists(), reason="needs the photographs with boxes")
def test_photographs_with_boxes_of_the_predicted_class(tmp_path, monkeypatch):
    # The photographs' objects are those that the pretrained default model predicts. A
    # test before this one may have left the tiny model in its place.
    monkeypatch.setattr(task, "load_classifier", load_classifier)
    names = str(SHARED / "objects_of_classes.json")
    options = {"boxes": "target", "object_names": names, "num_images": 2}
    for value in energies(f"voc2007:{SHARED}", tmp_path, **options):
        assert 0 < value <= 1
