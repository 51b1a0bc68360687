"""The command line in a report, which starts the same command again."""

import shutil
import subprocess
import sys

import pytest

from captum_unioncam.cli.line import command_line

TORCHRUN = ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("started", "program"),
    [
        ("/usr/bin/captum-unioncam", "captum-unioncam"),
        ("/lib/captum_unioncam/__main__.py", "python -m captum_unioncam"),
        ("/somewhere/else/__main__.py", "captum-unioncam"),
    ],
)
def test_the_program_is_named_as_it_can_be_started(started, program, monkeypatch):
    monkeypatch.setattr(sys, "argv", [started, "evaluate", "--theta", "10"])
    assert command_line(None) == f"{program} evaluate --theta 10"
    assert command_line(["methods"]) == f"{program} methods"


@pytest.mark.parametrize(
    ("environment", "start"),
    [
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            "torchrun --nproc-per-node=2",
        ),
        (
            {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2"},
            "torchrun --nnodes=2 --nproc-per-node=4",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
            "torchrun --nproc-per-node=1",
        ),
    ],
)
def test_torchrun_is_part_of_it(environment, start, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert command_line(["evaluate"]) == f"{start} -m captum_unioncam evaluate"


WORDS = [
    "a folder with spaces",
    'it\'s "quoted"',
    "$HOME `id` \\n ;&|*?",
    "",
    "two\nlines\ttab",
    "it's\none\\more",
    "é 猫",
    "\x1b[2J\u202eab",
    "\udcffab",  # a byte that is no text
    "\xa0",
]


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_every_word_is_read_by_bash_as_it_was_given():
    line = command_line(WORDS)
    assert line.isprintable()
    words = line.removeprefix("captum-unioncam ")
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {words}"],
        capture_output=True,
        env={"LC_ALL": "C.UTF-8"},
        check=True,
    )
    read = done.stdout.decode(errors="surrogateescape").split("\0")[:-1]
    assert read == WORDS
