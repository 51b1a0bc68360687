"""The net at the top of the command: one line and a code for whatever goes wrong."""

import errno
import io
import json
import os
import subprocess
import sys

import pytest
import torch
from classifiers import tiny_classifier

from captum_unioncam import GradientCAM, __version__
from captum_unioncam.cli import explain, main, methods
from captum_unioncam.cli.running import as_typed
from captum_unioncam.cli.terminal import Outcome, write_error, write_out
from captum_unioncam.errors import ConfigError, UserError, mark_known_to_all
from captum_unioncam.evaluation.methods import METHODS, Method

pytestmark = pytest.mark.usefixtures("one_thread")

PROGRAM = [sys.executable, "-m", "captum_unioncam"]
FULL = "/dev/full"  # accepts a file, and nothing in it
needs_full = pytest.mark.skipif(not os.path.exists(FULL), reason="needs /dev/full")


@pytest.fixture
def ends_with(monkeypatch):
    """Makes a command raise an error, or end with an outcome."""

    def make(end):
        def run(given, line):
            if isinstance(end, BaseException):
                raise end
            return end

        monkeypatch.setattr(methods, "run", run)

    return make


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Explains by a tiny model, in an empty folder."""
    monkeypatch.setattr(explain, "load_classifier", tiny_classifier)
    monkeypatch.chdir(tmp_path)


# Errors


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("`theta` must be small"), "`theta` must be small"),
        (RuntimeError("one\ntwo"), "RuntimeError: one (this is unexpected; "),
        (OSError(errno.ENOSPC, "No space left"), "OSError: No space left (this is"),
        (AssertionError(), "AssertionError (this is unexpected; "),
        (MemoryError(), "MemoryError (this is unexpected; "),
        (RecursionError("too deep"), "RecursionError: too deep (this is"),
        (KeyError("\x1b[2J\u202e"), r"KeyError: '\x1b[2J\u202e' (this is"),
        (ValueError("\udcff\nmore"), r"ValueError: \udcff (this is"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_whatever_goes_wrong_is_one_line_and_code_2(error, message, ends_with, capsys):
    ends_with(error)
    assert main(["methods"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    assert err.startswith(f"captum-unioncam: error: {message}")


def test_the_traceback_is_shown_to_who_asks_for_it(ends_with, capsys, monkeypatch):
    monkeypatch.setenv("CAPTUM_UNIONCAM_TRACEBACK", "1")
    ends_with(RuntimeError("broken"))
    assert main(["methods"]) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and "in run" in err
    assert err.splitlines()[-1].startswith("captum-unioncam: error: RuntimeError: ")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`num_images` must be 1", "--num-images must be 1"),
        ("`target`: there is no `layer`", "--target: there is no `layer`"),
        ("`another` must be 1", "`another` must be 1"),
        ("the `num_images` must be 1", "the `num_images` must be 1"),
    ],
)
def test_a_message_names_the_option_as_it_is_typed(message, shown):
    assert as_typed(message, {"num_images", "target", "layer"}) == shown


@pytest.mark.filterwarnings("ignore:BrokenCAM")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_no_success(value, tiny, monkeypatch, capsys):
    class BrokenCAM(GradientCAM):
        def weights(self, activations, gradients):
            return gradients.flatten(2).mean(2) * value

    entry = Method(BrokenCAM, "nobody 2026", "https://a.org", True, "1", "none")
    monkeypatch.setitem(METHODS, "brokencam", entry)
    assert main(["explain", "--methods", "gradcam,brokencam"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the map of brokencam is not finite (NaN); leave this method out" in error

    def broken(*arguments):
        classifier = tiny_classifier(*arguments)
        with torch.no_grad():
            classifier.model[-1].bias[3] = value
        return classifier

    monkeypatch.setattr(explain, "load_classifier", broken)
    assert main(["explain"]) == 2
    assert "the model's scores of the image are not finite" in capsys.readouterr().err
    assert not os.listdir()


# Ctrl-C

INTERRUPTED = """
import sys

class Finder:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                if sys.argv[2] == "as it is":
                    raise
                raise ImportError("initialisation failed")

sys.meta_path.insert(0, Finder())
from captum_unioncam.cli import main
sys.exit(main(["methods"]))
"""


@pytest.mark.parametrize(
    ("module", "form"),
    [
        ("captum_unioncam.cli.parser", "as it is"),
        ("torch", "as it is"),
        ("torch", "as an ImportError"),  # as extension modules do
    ],
)
def test_ctrl_c_while_importing_is_like_any_other(module, form):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, form],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130
    assert (done.stdout, done.stderr) == ("", "\ncaptum-unioncam: interrupted\n")


def test_ctrl_c_may_say_how_to_go_on(ends_with, capsys):
    ends_with(KeyboardInterrupt("run it again"))
    assert main(["methods"]) == 130
    assert capsys.readouterr().err == "\ncaptum-unioncam: interrupted; run it again\n"


# Processes of torchrun


@pytest.mark.parametrize(
    ("rank", "local_rank", "known", "told"),
    [
        ("0", "0", False, True),
        ("1", "1", False, False),
        ("2", "0", False, True),  # another machine, of which nobody knows
        ("0", "0", True, True),
        ("1", "1", True, False),
        ("2", "0", True, False),
    ],
)
def test_one_process_tells_of_an_error(
    rank, local_rank, known, told, ends_with, capsys, monkeypatch
):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    error = ConfigError("wrong")
    if known:
        mark_known_to_all(error)
    ends_with(error)
    assert main(["methods"]) == 2
    assert capsys.readouterr().err.count("error: wrong\n") == told


def test_an_error_that_nobody_foresaw_is_told_where_it_is(
    ends_with, capsys, monkeypatch
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    ends_with(RuntimeError("only here"))
    assert main(["methods"]) == 2
    assert "only here" in capsys.readouterr().err


def test_one_process_tells_of_ctrl_c(ends_with, capsys, monkeypatch):
    ends_with(KeyboardInterrupt())
    for rank, lines in (("0", 2), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main(["methods"]) == 130
        assert capsys.readouterr().err.count("\n") == lines


# Standard output


@pytest.fixture(params=["buffered", "unbuffered"])
def buffering(request, monkeypatch):
    """What is still in a buffer, Python would write again at the end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "1" if request.param == "unbuffered" else "")


@needs_full
@pytest.mark.usefixtures("buffering")
@pytest.mark.parametrize("argument", ["--help", "--version", "methods"])
def test_a_full_standard_output_is_one_line(argument):
    with open(FULL, "w") as full:
        done = subprocess.run(
            [*PROGRAM, argument], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == (
        "captum-unioncam: error: standard output cannot be written (No space left on "
        "device); redirect it to a file\n"
    )


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
@pytest.mark.parametrize("argument", ["--version", "methods"])
def test_a_closed_standard_output_is_one_line(argument):
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *PROGRAM, argument]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    # argparse itself leads the version to standard error.
    assert done.stderr.removeprefix(f"{__version__}\n") == (
        "captum-unioncam: error: standard output is closed; open it, or redirect it "
        "to a file\n"
    )


@pytest.mark.usefixtures("buffering")
def test_a_reader_that_has_gone_is_one_line():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*PROGRAM, "methods"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert done.returncode == 2
    assert "standard output cannot be written (Broken pipe)" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_a_closed_standard_error_changes_nothing_but_the_message():
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *PROGRAM]
    assert subprocess.run([*command, "wrong"]).returncode == 2
    done = subprocess.run([*command, "--version"], stdout=subprocess.PIPE)
    assert done.returncode == 0 and done.stdout


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_has_no_letter_for_is_escaped(encoding, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    write_out("é 猫 \udcff")
    write_error("é 猫 \udcff")
    for stream in streams:
        shown = stream.buffer.getvalue().decode(encoding).rstrip("\n")
        expected = {"ascii": r"\xe9 \u732b", "latin-1": r"é \u732b", "utf-8": "é 猫"}
        assert shown == rf"{expected[encoding]} \udcff"


def test_a_name_that_is_no_text_is_written_and_shown(tiny, capsys):
    name = "\udcff\x1b\u202e.png"
    assert main(["explain", "--methods", "gradcam", "--output", name]) == 0
    assert os.listdir() == [name]
    shown = capsys.readouterr().out.splitlines()[-1]
    assert shown.endswith(r" \udcff\x1b\u202e.png")


def test_json_is_alone_on_standard_output_though_a_loader_prints(
    tiny, monkeypatch, capsys
):
    def load(*arguments):
        print("Downloading weights")
        sys.stdout.write("100%\n")
        return tiny_classifier(*arguments)

    monkeypatch.setattr(explain, "load_classifier", load)
    assert main(["explain", "--methods", "gradcam", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["methods"][0]["method"] == "gradcam"
    assert "Downloading weights\n100%\n" in err


def test_standard_output_is_what_it_was_afterwards(ends_with):
    before = sys.stdout
    ends_with(Outcome("", "done", 3))
    assert main(["methods"]) == 3
    assert sys.stdout is before


def test_what_a_killed_writer_left_is_removed_at_the_next_start(tiny):
    open(".captum-unioncam-abc.tmp", "w").close()
    assert main(["explain", "--methods", "gradcam"]) == 0
    assert os.listdir() == ["unioncam.png"]
