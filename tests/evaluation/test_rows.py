"""Rows: whole lines survive, torn ones go, and files are written whole."""

import json
import math
import os

import pytest

from captum_unioncam.evaluation.rows import (
    RowFile,
    read_rows,
    strict_json,
    write_whole,
)


def row(index, method="unioncam", value=1.0):
    return {"index": index, "id": f"{index}.jpg", "method": method, "value": value}


def test_a_torn_last_line_is_dropped_and_written_again(tmp_path):
    with RowFile(tmp_path, 0) as rows:
        rows.write(row(0))
        rows.write(row(1))
    path = tmp_path / "rows-00000.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) // 2 + 2, len(whole)):
        path.write_bytes(whole[:cut])
        assert read_rows(tmp_path) == [row(0)]
        with RowFile(tmp_path, 0) as rows:
            rows.write(row(1))
        assert path.read_bytes() == whole


def test_a_row_is_safe_once_it_is_written(tmp_path):
    with RowFile(tmp_path, 0) as rows:
        rows.write(row(0))
        assert read_rows(tmp_path) == [row(0)]  # before the file is closed


def test_rows_of_all_ranks_are_merged_by_image_without_repetition(tmp_path):
    for rank, indices in ((0, (4, 0)), (1, (1, 4)), (2, ())):
        with RowFile(tmp_path, rank) as rows:
            for index in indices:
                rows.write(row(index))
    with RowFile(tmp_path, 1) as rows:
        rows.write(row(4, "gradcam"))
    merged = [(r["index"], r["method"]) for r in read_rows(tmp_path)]
    assert merged == [(0, "unioncam"), (1, "unioncam"), (4, "unioncam"), (4, "gradcam")]


def test_json_is_strict():
    value = {"a": math.nan, "b": [1, -math.inf, {"c": (math.inf, 2.5)}], "d": "ü"}
    expected = {"a": None, "b": [1, None, {"c": [None, 2.5]}], "d": "ü"}
    assert json.loads(strict_json(value)) == expected


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")

    def fail(*_):
        raise OSError("disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk is gone"):
        write_whole(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_writing_to_a_link_keeps_the_link(tmp_path):
    os.symlink(tmp_path / "real", tmp_path / "link")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
