"""The parser, which is made from dataclasses: options, help, and one line of error."""

import dataclasses
import math
import re
import subprocess
import sys

import pytest

from captum_unioncam import __version__
from captum_unioncam._options import kind_of
from captum_unioncam.cli import main
from captum_unioncam.cli.options import COMMANDS, EvaluateOptions, ExplainOptions
from captum_unioncam.cli.parser import parse
from captum_unioncam.errors import UserError
from captum_unioncam.evaluation.config import PRESETS, EvaluationConfig

PROGRAM = "captum-unioncam"
REQUIRED = {
    "explain": [],
    "evaluate": ["--data", "imagefolder:x", "--output", "out"],
}
# Each field with its command; those that are required are given in any case.
FIELDS = [
    *(("explain", field) for field in dataclasses.fields(ExplainOptions)),
    *(("evaluate", field) for field in dataclasses.fields(EvaluateOptions)),
]
every_field = pytest.mark.parametrize(
    ("command", "field"), FIELDS, ids=lambda value: getattr(value, "name", value)
)


def words(value):
    """Returns the name of a case: its command line."""
    return " ".join(value) if isinstance(value, list) else ""


def typed(field):
    """Returns the name of an option as it is typed."""
    return f"--{field.name.replace('_', '-')}"


def a_value(field):
    """Returns a value that is not the default, as text and as it is read."""
    rules, kind = field.metadata, kind_of(field)
    if rules["choices"]:
        text = next(c for c in rules["choices"] if c != field.default)
        return text, text
    if kind is int:
        return "3", 3
    if kind is float:
        return "0.5", 0.5
    if rules["positional"]:
        return "one, two", ("one, two",)
    if kind == tuple[str, ...]:
        return "one, two,one", ("one", "two")
    if kind == tuple[float, ...]:
        return "0.5, 0.25,0.5", (0.5, 0.25, 0.5)
    assert kind is str
    return "some text", "some text"


def refused(capsys, *arguments):
    """Runs a wrong command line, and returns its one line of error."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1
    prefix, error = err.rstrip("\n").split(": error: ", 1)
    assert prefix == PROGRAM
    return error


@pytest.fixture
def help_of(capsys, monkeypatch):
    """Returns the help of each option of a command, by its name, in one line each."""
    monkeypatch.setenv("COLUMNS", "1000")

    def lines(command):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        # After a long name, the help starts a line of its own.
        line = r"^  (\S+)(?: \S+)*?(?:  +|\n {20,})(\S.*)$"
        shown = re.findall(line, capsys.readouterr().out, re.M)
        return {name.rstrip(","): text for name, text in shown}

    return lines


# Options


@every_field
def test_every_field_is_an_option(command, field):
    name, given = typed(field), REQUIRED[command]
    if field.type is bool:
        assert parse(PROGRAM, [command, *given, name])[1][field.name] is True
        return
    text, value = a_value(field)
    if field.metadata["positional"]:
        arguments = [command, text]
    elif name in given:
        place = given.index(name)
        arguments = [command, *given[:place], name, text, *given[place + 2 :]]
    else:
        arguments = [command, *given, name, text]
    parsed_command, parsed = parse(PROGRAM, arguments)
    assert parsed_command == command
    assert parsed[field.name] == value and type(parsed[field.name]) is type(value)
    # Nothing else is given: defaults are those of the dataclass, and of the preset.
    assert set(parsed) == {field.name} | {n.removeprefix("--") for n in given[::2]}


def test_evaluate_has_the_fields_of_its_configuration_and_two_more():
    ours = [field.name for field in dataclasses.fields(EvaluateOptions)]
    theirs = [field.name for field in dataclasses.fields(EvaluationConfig)]
    assert ours == [*theirs, "preset", "report_only"]


def test_a_report_alone_takes_no_data(capsys):
    _, given = parse(PROGRAM, ["evaluate", "--output", "out", "--report-only"])
    assert given == {"output": "out", "report_only": True}
    error = refused(capsys, "evaluate", "--report-only")
    assert error.startswith("the following arguments are required: --output (try")


@pytest.mark.parametrize("command", REQUIRED)
def test_what_is_parsed_is_what_the_dataclass_takes(command):
    _, given = parse(PROGRAM, [command, *REQUIRED[command]])
    options = COMMANDS[command].options(**given)
    for field in dataclasses.fields(options):
        if field.default is not dataclasses.MISSING:
            assert getattr(options, field.name) == field.default


def test_commands_without_options_take_none(capsys):
    assert parse(PROGRAM, ["methods"]) == ("methods", {})
    assert parse(PROGRAM, ["metrics"]) == ("metrics", {})
    assert "unrecognized arguments: --theta 3" in refused(
        capsys, "methods", "--theta", "3"
    )


# Help


def test_the_help_lists_the_commands_and_the_version_is_printed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, command in COMMANDS.items():
        assert f"{name} {command.help}" in shown
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


@every_field
def test_the_help_shows_every_default_and_every_choice(command, field, help_of):
    name = field.name if field.metadata["positional"] else typed(field)
    shown = help_of(command)
    place = "IMAGE" if name == "images" else name
    text = shown[place]
    assert text.startswith(field.metadata["help"])
    for choice in field.metadata["choices"]:
        assert re.search(rf"one of .*\b{choice}\b", text)
    if field.default is dataclasses.MISSING:
        return
    if field.default is None:
        assert "(default: " in text, "which value stands for none"
        return
    if field.default is False:
        assert text.endswith("(default: off)")
        return
    default = field.default
    default = ",".join(default) if isinstance(default, tuple) else default
    assert text.endswith(f"default: {default})")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_has_no_other_options(command, help_of):
    fields = dataclasses.fields(COMMANDS[command].options)
    names = {typed(f) for f in fields if not f.metadata["positional"]}
    options = {name for name in help_of(command) if name.startswith("-")}
    assert options == {"-h", *names}


def test_the_help_of_a_preset_names_all_of_them(help_of):
    assert "one of ablation, paper" in help_of("evaluate")["--preset"]
    assert sorted(PRESETS) == ["ablation", "paper"]


# Wrong values


def wrong_values():
    """Returns what each option refuses: no number, or a value out of bounds."""
    cases = []
    for command, field in FIELDS:
        rules, kind = field.metadata, kind_of(field)
        if rules["choices"]:
            texts = ["", "neither"]
        elif kind is int:
            texts = ["x", "", "2.5", f"{int(rules['low']) - 1}"]
        elif kind is float:
            texts = ["x", "", "nan", "inf", "-inf", f"{rules['low'] - 0.5}"]
        else:
            continue
        if math.isfinite(rules["high"]):
            texts.append(f"{rules['high'] + 1}")
        for text in texts:
            name = f"{command} {typed(field)}={text}"
            cases.append(pytest.param(command, field, text, id=name))
    return cases


@pytest.mark.parametrize(("command", "field", "text"), wrong_values())
def test_a_wrong_value_is_refused_in_one_line_that_names_the_option(
    command, field, text, capsys
):
    name = typed(field)
    error = refused(capsys, command, *REQUIRED[command], f"{name}={text}")
    assert error.startswith(f"argument {name}: must be ")
    assert error.endswith(f"(try {PROGRAM} {command} --help)")
    for choice in field.metadata["choices"]:
        assert choice in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["explian"], "argument COMMAND: invalid choice: 'explian'"),
        (["evaluate"], "the following arguments are required: --data, --output"),
        (["explain", "--max", "3"], "unrecognized arguments: --max (try"),
        (["explain", "a.png", ""], "argument IMAGE: must not be empty (try captum-un"),
        (["explain", "--theta"], "argument --theta: expected one argument"),
        (
            ["explain", "--mean", "0.5;0.5"],
            "argument --mean: must be numbers with commas, got '0.5;0.5' (try",
        ),
        (
            ["explain", "--std", "0.5,nan"],
            "argument --std: must be a finite number, got nan (try",
        ),
        (
            [*("evaluate", "--data", "x", "--output", "y"), "--num-images", "0"],
            "argument --num-images: must be a positive int or None, got 0 (try "
            "captum-unioncam evaluate --help)",
        ),
        (
            [*("evaluate", "--data", "x", "--output", "y"), "--target", "labels"],
            "argument --target: must be one of predicted, label, got 'labels'; did "
            "you mean 'label'? (try captum-unioncam evaluate --help)",
        ),
    ],
    ids=words,
)
def test_a_wrong_command_line_is_refused_in_one_line(arguments, message, capsys):
    assert message in refused(capsys, *arguments)


def test_a_wrong_command_line_is_a_user_error():
    with pytest.raises(UserError, match="argument --theta: must be a number, got 'x'"):
        parse(PROGRAM, ["explain", "--theta", "x"])


# Without torch

HEAVY = ("torch", "torchvision", "captum", "numpy", "matplotlib", "PIL")

CHECK = """
import sys
from captum_unioncam.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
heavy = {name.partition(".")[0] for name in sys.modules} & set(%r)
print("code", code, sorted(heavy))
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["explain", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["explain", "--theta", "140"], 2),
        (["explain", "--wrong"], 2),
        (["evaluate", "--data", "x", "--output", "y", "--num-images", "0"], 2),
        (["evaluate"], 2),
        ([], 2),
    ],
    ids=words,
)
def test_help_and_wrong_options_do_not_wait_for_torch(arguments, code):
    result = subprocess.run(
        [sys.executable, "-c", CHECK % (HEAVY,), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == f"code {code} []"
    assert result.stderr.count("\n") == (code == 2)
