"""Rows in little memory say what the rows said."""

import copy
import pickle
import sys

import pytest

from captum_unioncam.evaluation.packing import PackedRow, Packer
from captum_unioncam.evaluation.row import check_row

ROW = {
    "index": 3,
    "id": "3.jpg",
    "file": "digest",
    "target": 285,
    "target_name": "Egyptian cat",
    "method": "unioncam",
    "metrics": {"drop": 0.1, "increase": None, "iou": 1e-300},
    "curves": {"insertion": [0.0, 0.25, 1.0], "deletion": [1.0, 0.5, 0.0]},
    "constant_map": False,
    "broken_map": True,
    "seconds": 0.3,
    "forwards": 37.5,
}


def test_a_packed_row_equals_the_row():
    row = Packer()(check_row({**copy.deepcopy(ROW), "map": [[1.0]]}))
    assert isinstance(row, PackedRow)
    curves = {name: list(curve) for name, curve in row["curves"].items()}
    assert {**row, "curves": curves} == ROW
    assert list(row) == list(ROW) and len(row) == len(ROW)
    assert "map" not in row and "error" not in row
    assert row.get("error") is None and row.get("seconds") == 0.3
    with pytest.raises(KeyError, match="map"):
        row["map"]
    again = pickle.loads(pickle.dumps(row))
    assert again == row and repr(again) == repr(row) == f"{dict(row)}"


@pytest.mark.parametrize("value", [None, 1e300])
def test_curves_may_be_undefined_or_large(value):
    row = Packer()({**ROW, "curves": {"insertion": [value, 0.5]}})
    found = list(row["curves"]["insertion"])
    assert found[1] == 0.5
    assert found[0] == value or (value is None and found[0] != found[0])
    assert row["metrics"] == ROW["metrics"]


def test_rows_of_one_image_share_it():
    packed = Packer()
    rows = [packed({**copy.deepcopy(ROW), "method": name}) for name in "abc"]
    assert [row["method"] for row in rows] == ["a", "b", "c"]
    assert len({id(row["id"]) for row in rows}) == 1
    assert sys.getsizeof(rows[0]) < 100


def test_other_rows_stay_as_they_are():
    failed = {"index": 1, "id": "1.jpg", "method": None, "error": "broken"}
    assert Packer()(failed) == {**failed, "curves": {}}
    further = {**ROW, "further": 1}
    assert Packer()({**further, "map": [[1.0]]}) == further
