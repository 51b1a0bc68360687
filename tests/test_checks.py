"""Checks of options: the argument, the rule and the value; warnings, and errors."""

import math
import warnings

import numpy as np
import pytest

from captum_unioncam._checks import (
    check_callable,
    check_choice,
    check_instance,
    check_integer,
    check_number,
    did_you_mean,
    warn_user,
)
from captum_unioncam.errors import REASON_LENGTH, DataError, one_line, printable


def message_of(check, *arguments, **options):
    """Returns the type and the text of what a check raises."""
    with pytest.raises((TypeError, ValueError)) as raised:
        check(*arguments, **options)
    return raised.type, str(raised.value)


def test_what_is_right_passes():
    check_callable("f", None)
    check_callable("f", len)
    check_instance("f", None, dict)
    check_instance("f", {}, dict)
    check_integer("n", 1)
    check_integer("n", None, or_none=True)
    check_integer("n", 0, 0)
    check_integer("n", 5, 2, 5)
    check_integer("n", 2, 2, 5)
    check_number("x", -1e9)
    check_number("x", 0, 0, 100)
    check_number("x", 100.0, 0, 100)
    check_number("x", np.float32(0.5), 0)
    check_choice("c", "a", ["a", "b"])


@pytest.mark.parametrize(
    ("value", "shown"), [(3, "3"), ("relu", "'relu'"), ((), r"()")]
)
def test_what_is_not_callable(value, shown):
    expected = f"`score_func` must be a callable or None, got {shown}."
    assert message_of(check_callable, "score_func", value) == (TypeError, expected)


def test_what_is_not_an_instance():
    expected = "`part` must be a dict or None, got []."
    assert message_of(check_instance, "part", [], dict) == (TypeError, expected)
    expected = "`part` must be a dict or None, got the dict class; pass an instance of"
    kind, text = message_of(check_instance, "part", dict, dict)
    assert kind is TypeError and text.startswith(expected)


@pytest.mark.parametrize(
    ("value", "bounds", "options", "expected"),
    [
        (0, (), {}, (ValueError, "`n` must be a positive int, got 0.")),
        (-3, (), {}, (ValueError, "`n` must be a positive int, got -3.")),
        (2.0, (), {}, (TypeError, "`n` must be a positive int, got 2.0 (float).")),
        (True, (), {}, (TypeError, "`n` must be a positive int, got True (bool).")),
        ("2", (), {}, (TypeError, "`n` must be a positive int, got '2' (str).")),
        (None, (), {}, (TypeError, "`n` must be a positive int, got None (NoneType).")),
        (
            0,
            (),
            {"or_none": True},
            (ValueError, "`n` must be a positive int or None, got 0."),
        ),
        (-1, (0,), {}, (ValueError, "`n` must be an int >= 0, got -1.")),
        (6, (2, 5), {}, (ValueError, "`n` must be an int in [2, 5], got 6.")),
        (1, (2, 5), {}, (ValueError, "`n` must be an int in [2, 5], got 1.")),
        (
            math.inf,
            (2, 5),
            {},
            (TypeError, "`n` must be an int in [2, 5], got inf (float)."),
        ),
    ],
)
def test_what_is_no_integer_or_out_of_bounds(value, bounds, options, expected):
    assert message_of(check_integer, "n", value, *bounds, **options) == expected


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (101, (0, 100), "`x` must be a finite number in [0, 100], got 101."),
        (-0.5, (0, 100), "`x` must be a finite number in [0, 100], got -0.5."),
        (-1, (0,), "`x` must be a finite number >= 0, got -1."),
        (math.nan, (), "`x` must be a finite number, got nan."),
        (math.inf, (), "`x` must be a finite number, got inf."),
        (-math.inf, (0,), "`x` must be a finite number >= 0, got -inf."),
    ],
)
def test_what_is_no_finite_number_in_bounds(value, bounds, expected):
    assert message_of(check_number, "x", value, *bounds) == (ValueError, expected)


@pytest.mark.parametrize("value", ["10", None, True, [1.0], 1j], ids=repr)
def test_what_is_no_number(value):
    expected = f"`x` must be a finite number >= 0, got {value!r}."
    assert message_of(check_number, "x", value, 0) == (TypeError, expected)


def test_a_choice_that_is_none_of_them_names_the_closest():
    kind, text = message_of(check_choice, "target", "lable", ["predicted", "label"])
    assert kind is ValueError
    expected = "`target` must be one of predicted, label, got 'lable'; did you mean 'la"
    assert text.startswith(expected)
    _, text = message_of(check_choice, "target", 3, ["predicted", "label"])
    assert text == "`target` must be one of predicted, label, got 3"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("haed", "; did you mean 'head'?"),
        ("conv", "; did you mean 'layer1.conv' or 'layer2.conv'?"),  # ends first
        ("onv", ""),  # the end of a name, but not of a part of one
        ("xyz", ""),
        ("", ""),
    ],
)
def test_the_closest_names_are_suggested(name, expected):
    names = ["head", "layer1.conv", "layer2.conv"]
    assert did_you_mean(name, iter(names)) == expected


def test_at_most_three_names_are_suggested_and_none_twice():
    names = [f"layer{i}.conv" for i in range(9)]
    assert did_you_mean("conv", names).count(" or ") == 2
    assert did_you_mean("a.conv", ["a.conv", "b.a.conv", "a.conv"]).count("'") == 4


def test_a_warning_is_at_the_users_line():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_user("a message")
    (warning,) = caught
    assert str(warning.message) == "a message"
    assert warning.category is UserWarning and warning.filename == __file__


def passed_on(message, *names, file="others.py"):
    """Calls warn_user through a function of each module, and returns the warning."""
    call = warn_user
    for name in names:
        space = {"__name__": name, "call": call}
        code = "def through(message):\n    call(message)"
        exec(compile(code, file, "exec"), space)
        call = space["through"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(message)
    (warning,) = caught
    return warning


def test_frames_of_captum_and_of_this_package_are_not_the_users():
    names = [
        "captum_unioncam.attr.union_cam",
        "captum.log.dummy_log",
        "captum_unioncam",
    ]
    assert passed_on("deep", *names).filename == __file__


@pytest.mark.parametrize("name", ["captum_unioncam_plots", "captums", "__main__"])
def test_a_package_with_a_similar_name_is_a_user(name):
    warning = passed_on("here", "captum_unioncam", name, "captum.attr")
    assert (warning.filename, warning.lineno) == ("others.py", 2)


# Errors


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two words, é, 猫 and \xa0", "two words, é, 猫 and \xa0"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("cat\u202egnp.exe\u200f", r"cat\u202egnp.exe\u200f"),
        ("one\u2028two", r"one\u2028two"),
        ("\udcff.jpg", r"\udcff.jpg"),
    ],
)
def test_what_a_terminal_would_act_on_is_shown_escaped(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown
    assert str(DataError(f"{text} is wrong")) == f"{shown} is wrong"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n \n  two  \nthree"), "two"),
        (ValueError(" "), "ValueError"),
        (MemoryError(), "MemoryError"),
        (OSError(28, "No space left on device", "/a/long/path"), "No space left on d"),
        (ValueError("x" * 999), "x" * (REASON_LENGTH - 4) + " ..."),
    ],
)
def test_an_error_is_one_line(error, line):
    assert one_line(error).startswith(line)
    assert len(one_line(error)) <= REASON_LENGTH
