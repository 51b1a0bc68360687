"""Boxes of VOC: what is wrong with a broken annotation, and where."""

import xml.etree.ElementTree as ElementTree

import pytest
from folders import voc_folder

from captum_unioncam.errors import DataError
from captum_unioncam.evaluation.annotations import coco_object, voc_objects
from captum_unioncam.evaluation.data import Images
from captum_unioncam.evaluation.sources import open_data


def annotation(box="<xmin>21</xmin><ymin>11</ymin><xmax>40</xmax><ymax>30</ymax>"):
    whole = "<object><name>cat</name><bndbox>{}</bndbox></object>"
    good = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    return f"<annotation>{whole.format(good)}{whole.format(box)}</annotation>"


def test_boxes_start_at_0_and_end_after_their_last_pixel():
    found = voc_objects(annotation().encode(), "a/b/1.xml")
    assert found == [("cat", (0, 0, 9, 9)), ("cat", (20, 10, 40, 30))]
    assert voc_objects(b"<annotation/>", "1.xml") == []


def test_a_part_of_an_object_is_no_box():
    part = "<part><bndbox><xmin>2</xmin></bndbox></part>"
    text = annotation().replace("<name>cat</name>", f"<name>cat</name>{part}")
    assert len(voc_objects(text.encode(), "1.xml")) == 2


def test_an_object_without_a_name_is_an_object():
    text = annotation().replace("<name>cat</name>", "<name> sea lion\n</name>", 1)
    text = text.replace("<name>cat</name>", "")
    names = [name for name, _ in voc_objects(text.encode(), "1.xml")]
    assert names == ["sea lion", ""]


def test_boxes_of_coco_are_a_corner_and_a_size():
    record = {"id": 7, "bbox": [10.4, 20.6, 5.2, 0.9]}
    assert coco_object(record, "cat") == ("cat", (10, 21, 16, 22))


@pytest.mark.parametrize(
    "box", [None, [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, float("nan")], [1, 2, -3, 4], 5]
)
def test_a_wrong_box_of_coco_is_refused(box):
    record = {"id": 7} if box is None else {"id": 7, "bbox": box}
    with pytest.raises(DataError, match="must be x, y, width and height, got .*id 7"):
        coco_object(record, "cat")


BROKEN = [
    ("<annotation>", "the annotation 1.xml is no XML .no element found"),
    ("", "the annotation 1.xml is no XML .no element found"),
    ('<?xml version="1.0" encoding="x"?><a/>', "the annotation 1.xml is no XML"),
    ("<boxes/>", "1.xml must hold <annotation> .it holds <boxes>"),
    (
        "<annotation><object/></annotation>",
        "the annotation has no <bndbox> .1.xml: object 1",
    ),
    (annotation("<xmin>3</xmin>"), "has no <ymin> in its <bndbox> .1.xml: object 2"),
    (
        annotation().replace(">40<", ">wide<"),
        "<xmax> must be a number, got 'wide' .1.xml: object 2",
    ),
    (annotation().replace(">40<", ">nan<"), "<xmax> must be a number, got 'nan'"),
    (annotation().replace(">40<", ">1e999<"), "<xmax> must be a number, got '1e999'"),
    (annotation().replace(">40<", "><"), "<xmax> must be a number, got ''"),
    (annotation().replace(">40<", ">20<"), "ends before it starts .1.xml: object 2"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_what_is_wrong_is_said_and_where(content, message):
    with pytest.raises(DataError, match=message):
        voc_objects(content.encode(), "/a/very/long/path/1.xml")


def test_the_cause_is_kept():
    for text, kind in [
        ("<annotation>", ElementTree.ParseError),
        (annotation().replace(">40<", ">wide<"), ValueError),
    ]:
        with pytest.raises(DataError) as raised:
            voc_objects(text.encode(), "1.xml")
        assert isinstance(raised.value.__cause__, kind)


def test_a_broken_annotation_is_the_reason_of_its_image(tmp_path):
    voc_folder(tmp_path, [(21, 11, 40, 30)])
    path = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    path.write_text(path.read_text().replace("bndbox", "box"))
    images = Images(open_data(f"voc2007:{tmp_path}"), lambda image: image)
    item = images[0]
    assert item.inputs is None
    assert item.error == "the annotation has no <bndbox> (000001.xml: object 1)"
    path.unlink()
    assert images[0].error == (
        "the annotation 000001.xml cannot be read (No such file or directory)"
    )
