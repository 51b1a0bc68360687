"""The folder of a run: its configuration, and rows of which whole lines survive."""

import json
import math
import os
from pathlib import Path

import pytest
import reports

from captum_unioncam._files import TEMPORARY
from captum_unioncam.errors import ConfigError
from captum_unioncam.evaluation import holding
from captum_unioncam.evaluation.holding import hold_folder
from captum_unioncam.evaluation.storage import (
    WEIGHTS,
    RowFile,
    begin_folder,
    check_folder,
    finished_rows,
    read_maps,
    read_rows,
)

PLACES = {f"{i}.jpg": i for i in range(9)}
METHODS = ("unioncam", "gradcam")


def row(index, method="unioncam"):
    return {**reports.row(index, method, drop=1.0), "id": f"{index}.jpg"}


def read(folder):
    """Returns the rows as they were written."""
    rows = read_rows(folder, PLACES, METHODS)
    assert all(not r["curves"] for r in rows)
    for failed in rows:
        if "error" in failed:
            del failed["curves"]
    return rows


def test_a_torn_last_line_is_dropped_and_written_again(tmp_path):
    with RowFile(tmp_path, 0) as rows:
        rows.write(row(0))
        rows.write(row(1))
    path = tmp_path / "rows-00000.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) // 2 + 2, len(whole)):
        path.write_bytes(whole[:cut])
        assert read(tmp_path) == [row(0)]
        with RowFile(tmp_path, 0) as rows:
            rows.write(row(1))
        assert path.read_bytes() == whole


def test_a_row_is_safe_once_it_is_written(tmp_path):
    with RowFile(tmp_path, 0) as rows:
        rows.write(row(0))
        assert read(tmp_path) == [row(0)]  # before the file is closed


def test_rows_of_all_ranks_are_merged_by_image_without_repetition(tmp_path):
    for rank, indices in ((0, (4, 0)), (1, (1, 4)), (2, ())):
        with RowFile(tmp_path, rank) as rows:
            for index in indices:
                rows.write(row(index))
    with RowFile(tmp_path, 1) as rows:
        rows.write(row(4, "gradcam"))
    merged = [(r["index"], r["method"]) for r in read(tmp_path)]
    assert merged == [(0, "unioncam"), (1, "unioncam"), (4, "unioncam"), (4, "gradcam")]


def write(folder, *rows, rank=0):
    with RowFile(folder, rank) as file:
        for values in rows:
            file.write(values)


def failure(index, method="unioncam"):
    return {"index": index, "id": f"{index}.jpg", "method": method, "error": "broken"}


def test_a_failure_is_tried_again_and_may_succeed(tmp_path):
    write(tmp_path, failure(0), failure(1, None), row(2), rank=1)
    assert finished_rows(tmp_path).rows == {("2.jpg", "unioncam")}
    assert [r.get("error") for r in read(tmp_path)] == ["broken", "broken", None]
    write(tmp_path, row(0), row(1), rank=0)  # read before the failures
    write(tmp_path, failure(2), rank=2)
    assert read(tmp_path) == [row(0), row(1), row(2)]


def test_rows_of_other_images_are_left_out(tmp_path):
    write(tmp_path, row(0), row(1))
    found = read_rows(tmp_path, {"1.jpg": 1}, METHODS)
    assert [r["id"] for r in found] == ["1.jpg"]


def test_maps_are_read_for_themselves_and_curves_are_compact(tmp_path):
    full = {**row(0), "map": [[1, 2]], "curves": {"deletion": [1.0, None, 0.5]}}
    write(tmp_path, full, {**row(1), "map": [[3]]})
    first, _ = read_rows(tmp_path, PLACES, METHODS)
    assert "map" not in first
    values = first["curves"]["deletion"]
    assert values[0] == 1 and math.isnan(values[1]) and values.itemsize == 4
    wanted = {("0.jpg", "unioncam")}
    assert read_maps(tmp_path, wanted) == {("0.jpg", "unioncam"): [[1, 2]]}


MISTAKES = [
    ("no row", "Expecting value"),
    ("3", "it is no object, but a int"),
    ("[]", "it is no object, but a list"),
    ("{}", "it has no 'index'"),
    ("[" * 100_000, "recursion"),
    ("9" * 5000, "integer string conversion"),
    ('{"a": "\xff"}', "utf-8"),
    ({"index": True}, "its 'index' is of the wrong kind"),
    ({"id": ["1.jpg"]}, "its 'id' is of the wrong kind"),
    ({"method": None}, "its 'method' is of the wrong kind"),
    ({"method": 3}, "its 'method' is of the wrong kind"),
    ({"target": "cat"}, "its 'target' is of the wrong kind"),
    ({"metrics": [1.0]}, "its 'metrics' is of the wrong kind"),
    ({"metrics": {"drop": "low"}}, "its 'metrics' is of the wrong kind"),
    ({"metrics": {"drop": 10**400}}, "its 'metrics' is of the wrong kind"),
    ({"curves": {"deletion": [1.0, "x"]}}, "its 'curves' is of the wrong kind"),
    ({"file": None}, "its 'file' is of the wrong kind"),
    ({"constant_map": 0}, "its 'constant_map' is of the wrong kind"),
    ({"map": [[1.0], [1.0, 2.0]]}, "its 'map' is of the wrong kind"),
    ({"error": 3}, "its 'error' is of the wrong kind"),
]


@pytest.mark.parametrize(("line", "reason"), MISTAKES, ids=lambda v: f"{v}"[:30])
def test_a_line_that_is_no_row_is_named(tmp_path, line, reason):
    write(tmp_path, row(0))
    if isinstance(line, dict):
        line = json.dumps({**row(1), **line})
    with (tmp_path / "rows-00000.jsonl").open("ab") as file:
        file.write(f"{line}\n".encode("latin-1"))
    message = f"line 2 of .*rows-00000.jsonl is no row .*{reason}.*; delete the line"
    for reader in (finished_rows, read):
        with pytest.raises(ConfigError, match=message) as raised:
            reader(tmp_path)
        assert raised.value.__cause__ is not None


def test_a_row_of_another_run_is_refused(tmp_path):
    write(tmp_path, row(0), row(1, "scorecam"))
    with pytest.raises(ConfigError, match="holds a row of another run .image '1.jpg'"):
        read(tmp_path)


def test_rows_get_the_places_of_their_images_now(tmp_path):
    write(tmp_path, row(0), row(1), row(2))
    found = read_rows(tmp_path, {"2.jpg": 0, "1.jpg": 4, "0.jpg": 7}, METHODS)
    assert [(r["id"], r["index"]) for r in found] == [
        ("2.jpg", 0),
        ("1.jpg", 4),
        ("0.jpg", 7),
    ]
    assert [r["index"] for r in read_rows(tmp_path, None, METHODS)] == [0, 1, 2]


def test_rows_that_are_a_folder_are_refused(tmp_path):
    (tmp_path / "rows-00000.jsonl").mkdir()
    with pytest.raises(ConfigError, match="rows-00000.jsonl cannot be used .Is a dir"):
        finished_rows(tmp_path)
    with pytest.raises(ConfigError, match="rows-00000.jsonl cannot be written .Is a"):
        RowFile(tmp_path, 0).__enter__()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full device")
def test_a_full_disk_is_an_error_that_says_how_to_go_on(tmp_path):
    with RowFile(tmp_path, 0) as rows:
        rows._file.close()
        rows._file = open("/dev/full", "ab", buffering=0)
        with pytest.raises(ConfigError, match="No space left on device.; the rows so"):
            rows.write(row(0))


def test_what_is_finished_knows_the_files_that_it_came_from(tmp_path):
    write(tmp_path, row(0), row(0, "gradcam"), {**row(1), "file": "other"}, failure(2))
    finished = finished_rows(tmp_path)
    assert finished.files == {"0.jpg": {"digest of 0"}, "1.jpg": {"other"}}


def test_two_processes_never_write_to_one_file(tmp_path):
    with RowFile(tmp_path, 0), RowFile(tmp_path, 1):
        with pytest.raises(ConfigError, match="another process writes to"):
            RowFile(tmp_path, 0).__enter__()
    write(tmp_path, row(0))


# The folder

KNOWN = {"model": "resnet18", "theta": 10.0, "methods": ["unioncam"], WEIGHTS: "abc"}


def test_a_new_folder_is_made_with_its_configuration(tmp_path):
    folder = tmp_path / "new" / "folder"
    with hold_folder(folder):
        check_folder(folder, KNOWN, resume=False)
        begin_folder(folder, KNOWN)
    assert json.loads((folder / "config.json").read_text()) == KNOWN


def test_what_was_made_for_a_run_that_did_not_begin_is_removed(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(ConfigError, match="wrong weights"):
        with hold_folder(tmp_path / "old" / "new" / "folder"):
            assert (tmp_path / "old" / "new" / "folder").is_dir()
            raise ConfigError("wrong weights")
    assert os.listdir(tmp_path) == ["old"] and not os.listdir(tmp_path / "old")
    with pytest.raises(ConfigError), hold_folder(tmp_path / "old"):
        raise ConfigError
    assert (tmp_path / "old").is_dir(), "it was there before"


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path):
    with hold_folder(tmp_path / "out"):
        for _ in range(2):
            with pytest.raises(ConfigError, match="another run writes to .*out; wait"):
                hold_folder(tmp_path / "out").__enter__()
        assert (tmp_path / "out").is_dir(), "a start that is refused removes nothing"
    with hold_folder(tmp_path / "out"):
        pass


def test_a_folder_that_is_removed_before_it_is_locked_is_not_held(
    tmp_path, monkeypatch
):
    lock = holding.lock

    def late(handle):
        (tmp_path / "out").rmdir()  # by a run that was refused meanwhile
        (tmp_path / "out").mkdir()
        return lock(handle)

    monkeypatch.setattr(holding, "lock", late)
    with pytest.raises(ConfigError, match="another run writes to"):
        hold_folder(tmp_path / "out").__enter__()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def unsupported(_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(holding, "lock", unsupported)
    with pytest.warns(UserWarning, match="has no locks .Operation not supported.: let"):
        with hold_folder(tmp_path / "out"):
            pass


def test_a_folder_of_the_same_run_is_opened_to_continue_it_only(tmp_path):
    begin_folder(tmp_path, KNOWN)
    with pytest.raises(ConfigError, match="holds a run already; pass --resume"):
        check_folder(tmp_path, KNOWN, resume=False)
    check_folder(tmp_path, KNOWN, resume=True)


def test_a_run_that_begins_again_touches_nothing_but_what_was_left(tmp_path):
    begin_folder(tmp_path, KNOWN)
    before = os.stat(tmp_path / "config.json")
    left = tmp_path / f"{TEMPORARY[0]}x{TEMPORARY[1]}"
    left.write_text("half a report")
    begin_folder(tmp_path, KNOWN)
    assert os.stat(tmp_path / "config.json") == before
    assert not left.exists()


def test_the_weights_are_compared_once_they_are_known(tmp_path):
    begin_folder(tmp_path, KNOWN)
    early = {name: value for name, value in KNOWN.items() if name != WEIGHTS}
    check_folder(tmp_path, early, resume=True)
    message = r"the values of the weights have changed: weights_digest was 'abc', is 'x"
    with pytest.raises(ConfigError, match=message):
        check_folder(tmp_path, {**KNOWN, WEIGHTS: "xyz"}, resume=True)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({**KNOWN, "theta": 5.0}, r"\(theta was 10.0, is 5.0\)"),
        ({**KNOWN, "seed": 1}, r"\(seed was None, is 1\)"),
        (
            {"model": "resnet18", "theta": 10.0},
            r"\(methods was \['unioncam'\], is None",
        ),
    ],
    ids=["changed", "added", "missing"],
)
def test_a_folder_of_another_run_is_refused_and_the_difference_named(
    tmp_path, known, message
):
    begin_folder(tmp_path, KNOWN)
    with pytest.raises(ConfigError, match=message):
        check_folder(tmp_path, known, resume=True)


@pytest.mark.parametrize(
    "more",
    [
        {"methods": ["unioncam", "gradcam"]},
        {"methods": ["gradcam", "unioncam"], "sources": {"unioncam": "1", "g": "2"}},
        {"num_images": 7, "names": "b", "files": 8},
    ],
    ids=str,
)
def test_a_run_may_grow_by_methods_and_images(tmp_path, more):
    known = {**KNOWN, "num_images": 3, "names": "a", "sources": {"unioncam": "1"}}
    begin_folder(tmp_path, known)
    check_folder(tmp_path, {**known, **more}, resume=True)
    begin_folder(tmp_path, {**known, **more})
    assert json.loads((tmp_path / "config.json").read_text()) == {**known, **more}


def test_a_run_may_not_lose_a_method(tmp_path):
    begin_folder(tmp_path, {**KNOWN, "methods": ["unioncam", "gradcam"]})
    with pytest.raises(ConfigError, match=r"methods was \['unioncam', 'gradcam'\], is"):
        check_folder(tmp_path, {**KNOWN, "methods": ["gradcam"]}, resume=True)


def test_a_difference_of_sources_names_the_method(tmp_path):
    begin_folder(tmp_path, {**KNOWN, "sources": {"unioncam": "1", "mycam": "2"}})
    known = {**KNOWN, "sources": {"unioncam": "1", "mycam": "3"}}
    with pytest.raises(
        ConfigError, match="the source of mycam has changed: sources.my"
    ):
        check_folder(tmp_path, known, resume=True)


def test_another_version_of_a_package_is_another_configuration(tmp_path):
    begin_folder(tmp_path, {**KNOWN, "versions": {"torch": "2.3.0"}})
    known = {**KNOWN, "versions": {"torch": "2.4.0"}}
    message = "torch is another version: versions.torch was '2.3.0', is '2.4.0'"
    with pytest.raises(ConfigError, match=message):
        check_folder(tmp_path, known, resume=True)


@pytest.mark.parametrize(
    "content",
    ["{", "3", "[]", "null", '"text"', "[" * 100_000, '{"a": "\xff"}'],
    ids=len,
)
def test_a_broken_configuration_is_no_run_to_continue(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match="config.json is no configuration of a run"):
        check_folder(tmp_path, KNOWN, resume=True)


def test_rows_without_a_configuration_are_refused(tmp_path):
    write(tmp_path, row(0))
    for resume in (False, True):
        with pytest.raises(ConfigError, match="holds rows without a config"):
            check_folder(tmp_path, KNOWN, resume)


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (Path("file"), Path("file/deep")):
        with pytest.raises(ConfigError, match="`output`: .*file.* cannot be used"):
            hold_folder(tmp_path / folder).__enter__()
    assert os.listdir(tmp_path) == ["file"]


def test_a_configuration_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ConfigError, match="cannot be used .No space left on device"):
        begin_folder(tmp_path, KNOWN)
    assert not os.listdir(tmp_path)
