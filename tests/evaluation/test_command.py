"""``captum-unioncam evaluate``, where something is wrong: one line, and the code."""

import errno
import json
import os
import subprocess
import sys

import pytest
from runs import command

from captum_unioncam import _files
from captum_unioncam.cli import explain, main
from captum_unioncam.evaluation import report, storage, task

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_model", "no_pictures")

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
FULL = "/dev/full"  # accepts a file, and nothing in it
QUICK = ("--methods", "gradcam", "--metrics", "drop", "--num-images", "1")


def refused(capsys, arguments):
    """Runs the command, and returns its one line of error beside the progress."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line and "images: " not in line]
    assert not out and len(lines) == 1
    return lines[0].removeprefix("captum-unioncam: error: ")


# Wrong values

WRONG = [
    ("unioncam:theta=None", "`theta` must be a finite number in [0, 100], got None"),
    ("unioncam:theta=True", "`theta` must be a finite number in [0, 100], got True"),
    ("unioncam:theta=1e999", "`theta` must be a finite number in [0, 100], got inf"),
    ("unioncam:theta=101", "`theta` must be a finite number in [0, 100], got 101"),
    ("unioncam:max_channels=1.5", "`max_channels` must be a positive int or None, got"),
    ("groupcam:groups=None", "`groups` must be a positive int, got None"),
    ("sscam:std=None", "`std` must be a finite number"),
]
UNREADABLE = [
    ("unioncam:theta=1+2j", "the value of 'theta' must be a number, True, False or"),
    ("unioncam:theta=1**9", "the value of 'theta' must be a number, True, False or"),
    (f"unioncam:theta={'9' * 5000}", "the value of 'theta' must be a number, True"),
    (f"unioncam:theta={'(' * 5000}", "the value of 'theta' must be a number, True"),
    ("unioncam:theta=1:theta=2", "'theta' is given twice; give one value"),
    ("unioncam:\x1b=1", r"unioncam has no option '\x1b'"),
]


@pytest.mark.parametrize(("label", "message"), [*WRONG, *UNREADABLE])
def test_a_wrong_value_of_a_method_is_refused_by_both_commands(
    label, message, images, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(explain, "load_classifier", task.load_classifier)
    error = refused(capsys, [*command(images, "out"), "--methods", label])
    assert message in error
    picture = str(images / "0.png")
    error = refused(capsys, ["explain", picture, "--methods", label])
    # The method is to blame, and not the layer.
    assert error.startswith("--methods: ") and message in error
    assert not os.listdir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "tpu9000"), "--device tpu9000 cannot be used: "),
        (("--device", "meta"), "--device meta cannot be used: "),
        (("--device", "cuda:99"), "--device cuda:99 cannot be used: "),
        (("--seed", "9" * 30), "argument --seed: must be an int in [0, 2147483647]"),
        (("--seed", "9" * 5000), "argument --seed: must be a whole number, got '9"),
        (("--output", ""), "argument --output: must not be empty"),
        (("--output", "a\0b"), "argument --output: must not hold a NUL character"),
        (("--data", ""), "argument --data: must not be empty"),
        (("--metrics", "iou"), "--metrics: iou needs boxes, which voc2007:DIR has"),
        (("--metrics", "drop,inserton"), "--metrics must be one of drop, increase"),
        (("--methods", "scorcam"), "--methods: there is no method 'scorcam'; did you"),
        (("--data", "imagefolder:no\x1b"), r"--data: there is no folder 'no\x1b'"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_wrong_option_is_one_line_that_names_it_as_typed(
    options, message, images, tmp_path, capsys
):
    arguments = [*command(images, tmp_path / "out"), *options]
    assert refused(capsys, arguments).startswith(message)
    assert not os.listdir(tmp_path)


def test_methods_are_named_in_any_case_and_once(images, tmp_path):
    labels = "GradCAM,gradcam,LAYERCAM,UnionCAM:theta=30,unioncam:theta=30"
    arguments = [*command(images, tmp_path), *QUICK, "--methods", labels]
    assert main(arguments) == 0
    known = json.loads((tmp_path / "config.json").read_text())
    assert known["methods"] == ["gradcam", "layercam", "unioncam:theta=30"]


# A folder that cannot be used


@pytest.mark.skipif(not os.path.exists(FULL), reason=f"needs {FULL}")
def test_rows_that_cannot_be_written_are_continued(
    images, tmp_path, capsys, monkeypatch
):
    arguments = [*command(images, tmp_path), *QUICK, "--num-images", "3"]
    write, written = storage.RowFile.write, []

    def until_full(self, row):
        if written:
            self._file.close()
            self._file = open(FULL, "ab", buffering=0)
        written.append(row)
        write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(storage.RowFile, "write", until_full)
        error = refused(capsys, arguments)
    assert len(written) == 2
    assert error.startswith(f"--output: {tmp_path / 'rows-00000.jsonl'} cannot be wri")
    assert "No space left on device" in error and "continue with --resume" in error
    assert main([*arguments, "--resume"]) == 0
    assert "3 rows, 0 failed" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_is_made_later(
    images, tmp_path, capsys, monkeypatch
):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{path}")

    arguments = [*command(images, tmp_path), *QUICK]
    with monkeypatch.context() as patch:
        patch.setattr(report, "write_whole", full)
        error = refused(capsys, arguments)
    assert error.startswith(f"--output: the report cannot be written to {tmp_path} (No")
    assert "the rows are safe: run it again with --resume" in error
    assert main([*arguments, "--resume"]) == 0
    assert "1 rows, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"model": 3}', '{"a": {"b": 1}}'])
def test_a_foreign_configuration_is_one_line(content, images, tmp_path, capsys):
    (tmp_path / "config.json").write_text(content)
    error = refused(capsys, [*command(images, tmp_path), *QUICK, "--resume"])
    assert error.startswith("--output: ") and "choose another folder" in error
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_folder_that_is_no_text_is_used_and_shown_escaped(images, tmp_path, capsys):
    folder = tmp_path / "\udcff\x1b\u202e"
    assert main([*command(images, folder), *QUICK]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == rf"{tmp_path}/\udcff\x1b\u202e/report.md"
    assert (folder / "report.md").exists()


def test_what_a_killed_writer_left_is_removed_at_the_next_start(images, tmp_path):
    prefix, suffix = _files.TEMPORARY
    (tmp_path / f"{prefix}abc{suffix}").touch()
    assert main([*command(images, tmp_path), *QUICK]) == 0
    assert not list(tmp_path.glob(f"{prefix}*"))


# The command in the report


def test_the_command_of_the_report_runs_again(images, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/lib/captum_unioncam/__main__.py", "x"])
    (tmp_path / "data of\nimages").mkdir()
    (tmp_path / "data of\nimages" / "0.png").write_bytes(
        (images / "0.png").read_bytes()
    )
    given = [*command(tmp_path / "data of\nimages", tmp_path / "out"), *QUICK]
    assert main(given) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    start = "python -m captum_unioncam evaluate --data $'imagefolder:"
    assert found["command"].startswith(start)
    assert f"    {found['command']}\n" in (tmp_path / "out" / "report.md").read_text()
    assert found["config"]["layer"] is None
    assert found["layer"] == {"name": "3", "size": [12, 8, 8]}
    bash = ["bash", "-c", f"printf '%s\\0' {found['command']}"]
    words = subprocess.run(bash, capture_output=True, text=True).stdout.split("\0")
    assert words[:-1] == ["python", "-m", "captum_unioncam", *given]


# Processes


def test_torchrun_prints_an_error_once(tmp_path):
    for options in (["--data", "imagefolder:nowhere"], ["--theta", "101"]):
        arguments = [*command(tmp_path, tmp_path / "out"), *options]
        done = subprocess.run(
            [*TORCHRUN, "--nproc-per-node=2", "-m", "captum_unioncam", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1  # torchrun's own
        assert done.stderr.count("captum-unioncam: error: ") == 1
