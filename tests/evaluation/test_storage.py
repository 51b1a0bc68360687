"""The folder of a run: its configuration, and rows of which whole lines survive."""

import json
import math

import pytest

from captum_unioncam.errors import ConfigError
from captum_unioncam.evaluation.storage import (
    RowFile,
    check_folder,
    finished_rows,
    open_folder,
    read_maps,
    read_rows,
)


def row(index, method="unioncam", value=1.0):
    return {"index": index, "id": f"{index}.jpg", "method": method, "value": value}


def read(folder):
    """Returns the rows as they were written."""
    rows = read_rows(folder, {f"{i}.jpg" for i in range(9)})
    assert all(r.pop("curves") == {} for r in rows)
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
    assert finished_rows(tmp_path) == {("2.jpg", "unioncam")}
    assert [r.get("error") for r in read(tmp_path)] == ["broken", "broken", None]
    write(tmp_path, row(0), row(1), rank=0)  # read before the failures
    write(tmp_path, failure(2), rank=2)
    assert read(tmp_path) == [row(0), row(1), row(2)]


def test_rows_of_other_images_are_left_out(tmp_path):
    write(tmp_path, row(0), row(1))
    assert [r["id"] for r in read_rows(tmp_path, {"1.jpg"})] == ["1.jpg"]


def test_maps_are_read_for_themselves_and_curves_are_compact(tmp_path):
    full = {**row(0), "map": [[1, 2]], "curves": {"deletion": [1.0, None, 0.5]}}
    write(tmp_path, full, {**row(1), "map": [[3]]})
    first, _ = read_rows(tmp_path, {"0.jpg", "1.jpg"})
    assert "map" not in first
    values = first["curves"]["deletion"]
    assert values[0] == 1 and math.isnan(values[1]) and values.itemsize == 8
    wanted = {("0.jpg", "unioncam")}
    assert read_maps(tmp_path, wanted) == {("0.jpg", "unioncam"): [[1, 2]]}


def test_a_line_that_is_no_row_is_named(tmp_path):
    write(tmp_path, row(0))
    with (tmp_path / "rows-00000.jsonl").open("a") as file:
        file.write("no row\n")
    with pytest.raises(ConfigError, match="line 2 of .*rows-00000.jsonl is no row"):
        finished_rows(tmp_path)


def test_two_processes_never_write_to_one_file(tmp_path):
    with RowFile(tmp_path, 0), RowFile(tmp_path, 1):
        with pytest.raises(ConfigError, match="another process writes to"):
            RowFile(tmp_path, 0).__enter__()
    write(tmp_path, row(0))


KNOWN = {"model": "resnet18", "theta": 10.0, "methods": ["unioncam"]}


def test_a_new_folder_is_created_with_its_configuration(tmp_path):
    folder = tmp_path / "new" / "folder"
    check_folder(folder, KNOWN, resume=False)
    assert open_folder(folder, KNOWN) == set()
    assert json.loads((folder / "config.json").read_text()) == KNOWN


def test_a_folder_of_the_same_run_is_opened_to_continue_it_only(tmp_path):
    open_folder(tmp_path, KNOWN)
    write(tmp_path, row(0), failure(1))
    with pytest.raises(ConfigError, match="holds a run already; pass --resume"):
        check_folder(tmp_path, KNOWN, resume=False)
    check_folder(tmp_path, KNOWN, resume=True)
    assert open_folder(tmp_path, KNOWN) == {("0.jpg", "unioncam")}


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
    open_folder(tmp_path, KNOWN)
    with pytest.raises(ConfigError, match=message):
        check_folder(tmp_path, known, resume=True)


def test_a_broken_configuration_is_no_run_to_continue(tmp_path):
    open_folder(tmp_path, KNOWN)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="a run of another configuration"):
        check_folder(tmp_path, KNOWN, resume=True)


def test_rows_without_a_configuration_are_refused(tmp_path):
    write(tmp_path, row(0))
    for resume in (False, True):
        with pytest.raises(ConfigError, match="holds rows without a config"):
            check_folder(tmp_path, KNOWN, resume)


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="`output`: .*file cannot be used"):
        open_folder(tmp_path / "file", KNOWN)
