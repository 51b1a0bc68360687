"""Files that are written whole or not at all, and strict JSON."""

import json
import math
import os
import signal
import subprocess
import sys

import pytest

from captum_unioncam._files import TEMPORARY, lock, remove_temporaries, write_whole
from captum_unioncam._files import strict_json


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


# Writers that are killed

KILLED = """
import os, signal, sys
from captum_unioncam import _files
os.chmod = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
_files.write_whole(sys.argv[1], b"content")
"""


def test_what_a_killed_writer_leaves_is_removed_and_nothing_else(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "file")])
    assert killed.returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith(TEMPORARY[0]) and left.endswith(TEMPORARY[1])
    (tmp_path / "tmp123.tmp").write_text("somebody else's")
    remove_temporaries(tmp_path)
    assert os.listdir(tmp_path) == ["tmp123.tmp"]
    remove_temporaries(tmp_path / "no such folder")


def test_a_file_that_is_being_written_is_not_removed(tmp_path, monkeypatch):
    replace, seen = os.replace, []

    def meanwhile(*paths):
        remove_temporaries(tmp_path)
        seen.extend(os.listdir(tmp_path))
        return replace(*paths)

    monkeypatch.setattr(os, "replace", meanwhile)
    write_whole(tmp_path / "file", b"content")
    assert len(seen) == 1 and os.listdir(tmp_path) == ["file"]


def test_a_lock_keeps_others_out_until_its_file_is_closed(tmp_path):
    folder = os.open(tmp_path, os.O_RDONLY)
    other = os.open(tmp_path, os.O_RDONLY)
    assert lock(folder)
    assert not lock(other)
    os.close(folder)
    assert lock(other)
    os.close(other)
