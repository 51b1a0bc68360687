"""Files that are written whole or not at all, and strict JSON."""

import json
import math
import os

import pytest

from captum_unioncam._files import strict_json, write_whole


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


def test_a_new_file_obeys_the_mode_mask(tmp_path):
    mask = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", b"new")
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
