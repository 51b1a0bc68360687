"""Data sets by name that have boxes: ILSVRC's and COCO's annotations."""

import json
import sys

import pytest
import torch
from folders import coco_folder, imagenet_folder, voc_objects
from torchvision import transforms

from captum_unioncam.errors import DataError
from captum_unioncam.evaluation.data import Images
from captum_unioncam.evaluation.sources import open_data

PREPROCESS = transforms.Compose([transforms.CenterCrop(64), transforms.ToTensor()])

# ILSVRC


def test_boxes_of_ilsvrc_are_found_where_its_archives_put_them(tmp_path):
    imagenet_folder(tmp_path, ["n01440764", "n02123159"], 3)
    boxes = tmp_path / "Annotations/CLS-LOC"
    for place in (
        "val/ILSVRC2012_val_00000001",
        "val/n01440764/ILSVRC2012_val_00000002",
    ):
        path = boxes / f"{place}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(voc_objects([(21, 11, 40, 30)], ["n01440764"]))
    path = boxes / "train/n02123159/ILSVRC2012_val_00000004.xml"
    path.parent.mkdir(parents=True)
    path.write_text(voc_objects([]))
    entries = open_data(f"imagenet:{tmp_path}")
    assert [e.has_boxes for e in entries] == [True, True, False, True, False, False]
    assert [e.object_names() for e in entries[:4]] == [["n01440764"]] * 2 + [[], []]
    items = [Images(entries, PREPROCESS)[i] for i in range(4)]
    # 96 x 64 is cropped by 16 on the left: x 20..39 becomes 4..23.
    expected = torch.zeros(1, 64, 64, dtype=torch.bool)
    expected[0, 10:30, 4:24] = True
    for item in items[:2]:
        assert torch.equal(item.masks, expected) and item.objects == ("n01440764",)
        assert item.label == "n01440764"
    assert items[2].masks is None
    assert items[3].masks.shape == (0, 64, 64)


def test_the_digest_of_an_image_counts_its_boxes(tmp_path):
    imagenet_folder(tmp_path, ["n01440764"], 1)
    (bare,) = open_data(f"imagenet:{tmp_path}")
    path = tmp_path / "Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml"
    path.parent.mkdir(parents=True)
    digests = {bare.digest()}
    for boxes in ([], [(1, 2, 3, 4)]):
        path.write_text(voc_objects(boxes))
        (entry,) = entries = open_data(f"imagenet:{tmp_path}")
        digests.add(entry.digest())
        assert Images(entries, PREPROCESS)[0].file == entry.digest()
    assert len(digests) == 3


# COCO


def spec(folder):
    return f"coco:{folder / 'images'},{folder / 'instances.json'}"


@pytest.fixture
def coco(tmp_path):
    """A folder with a comma in its name, as a path may have."""
    pytest.importorskip("pycocotools")
    folder = tmp_path / "a,b"
    boxes = [("cat", [20, 10, 20, 20]), ("potted plant", [0, 0, 20.4, 64])]
    return folder, coco_folder(folder, boxes)


def test_coco_is_listed_by_its_ids_with_its_boxes(coco, capsys):
    folder, _ = coco
    entries = open_data(spec(folder))
    assert capsys.readouterr() == ("", ""), "pycocotools prints"
    assert [e.name for e in entries] == ["000000000007.jpg", "000000000012.jpg"]
    assert [e.object_names() for e in entries] == [["cat", "potted plant"], []]
    items = [Images(entries, PREPROCESS)[i] for i in range(2)]
    expected = torch.zeros(2, 64, 64, dtype=torch.bool)
    expected[0, 10:30, 4:24] = True
    expected[1, :, :4] = True
    assert torch.equal(items[0].masks, expected)
    assert items[0].objects == ("cat", "potted plant")
    assert items[1].error is None and items[1].masks.shape == (0, 64, 64)
    assert [item.file for item in items] == [entry.digest() for entry in entries]


def test_the_digest_counts_cocos_boxes_and_names(coco):
    folder, instances = coco
    digests = {open_data(spec(folder))[0].digest()}
    instances["annotations"][0]["bbox"][0] += 1
    (folder / "instances.json").write_text(json.dumps(instances))
    digests.add(open_data(spec(folder))[0].digest())
    instances["categories"][0]["name"] = "dog"
    (folder / "instances.json").write_text(json.dumps(instances))
    digests.add(open_data(spec(folder))[0].digest())
    assert len(digests) == 3


def test_crowds_are_no_objects(coco):
    folder, instances = coco
    instances["annotations"][0]["iscrowd"] = 1
    (folder / "instances.json").write_text(json.dumps(instances))
    assert open_data(spec(folder))[0].object_names() == ["potted plant"]


def broken(instances, name):
    if name == "a box":
        instances["annotations"][1]["bbox"] = [1, 2]
    elif name == "a category":
        instances["annotations"][1]["category_id"] = 5
    elif name == "categories":
        del instances["categories"]
    elif name == "a list":
        return "[]"
    elif name == "a name":
        del instances["images"][0]["file_name"]
    elif name == "two of a name":
        instances["images"][1]["file_name"] = instances["images"][0]["file_name"]
    return "{" if name == "no JSON" else json.dumps(instances)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a box", "000000000007.jpg: the annotation's `bbox` must be x, y, width and"),
        ("a category", "does not hold COCO's instances .KeyError: 5"),
        ("categories", "does not hold COCO's instances .KeyError"),
        ("a list", "does not hold COCO's instances .AssertionError"),
        ("a name", "does not hold COCO's instances .KeyError: 'file_name'"),
        ("two of a name", "000000000012.jpg is there twice"),
        ("no JSON", "does not hold COCO's instances .JSONDecodeError"),
    ],
)
def test_what_is_wrong_in_cocos_file_is_said(coco, name, message):
    folder, instances = coco
    (folder / "instances.json").write_text(broken(instances, name))
    with pytest.raises(DataError, match=message):
        open_data(spec(folder))


def test_without_pycocotools_its_extra_is_named(tmp_path, monkeypatch):
    coco_folder(tmp_path, [])
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(DataError, match=r'pip install "captum-unioncam\[coco\]"'):
        open_data(spec(tmp_path))
