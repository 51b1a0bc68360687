"""Boxes of VOC: what is wrong with a broken annotation, and where."""

import xml.etree.ElementTree as ElementTree

import pytest
from folders import voc_folder

from captum_unioncam.errors import DataError
from captum_unioncam.evaluation.annotations import voc_boxes
from captum_unioncam.evaluation.data import Images, open_data


def annotation(box="<xmin>21</xmin><ymin>11</ymin><xmax>40</xmax><ymax>30</ymax>"):
    whole = "<object><name>cat</name><bndbox>{}</bndbox></object>"
    good = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    return f"<annotation>{whole.format(good)}{whole.format(box)}</annotation>"


def test_boxes_start_at_0_and_end_after_their_last_pixel():
    found = voc_boxes(annotation().encode(), "a/b/1.xml")
    assert found == [(0, 0, 9, 9), (20, 10, 40, 30)]
    assert voc_boxes(b"<annotation/>", "1.xml") == []


def test_a_part_of_an_object_is_no_box():
    part = "<part><bndbox><xmin>2</xmin></bndbox></part>"
    text = annotation().replace("<name>cat</name>", f"<name>cat</name>{part}")
    assert len(voc_boxes(text.encode(), "1.xml")) == 2


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
        voc_boxes(content.encode(), "/a/very/long/path/1.xml")


def test_the_cause_is_kept():
    for text, kind in [
        ("<annotation>", ElementTree.ParseError),
        (annotation().replace(">40<", ">wide<"), ValueError),
    ]:
        with pytest.raises(DataError) as raised:
            voc_boxes(text.encode(), "1.xml")
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
