"""Options that are declared once, as fields of a dataclass."""

import dataclasses
from dataclasses import dataclass

import pytest

from captum_unioncam._options import check_option, check_options, kind_of, option
from captum_unioncam.errors import ConfigError, UserError


@dataclass(frozen=True)
class Options:
    """One field of each kind."""

    data: str = option("where to read")
    count: int = option("how many", 3, low=1, high=9)
    limit: int | None = option("the most", None, low=0)
    share: float = option("how much of 100 %", 10.0, low=0, high=100)
    offset: float = option("any number", 0.0)
    side: str = option("which one", "left", choices=("left", "right"))
    other: str | None = option("another", None, choices=("up", "down"))
    names: tuple[str, ...] = option("which ones", ("all",))
    numbers: tuple[float, ...] | None = option("some", None, low=0, metavar="A,B")
    listed: str | None = option("what to list", None, const="*")
    quiet: bool = option("say nothing", False)

    def __post_init__(self):
        check_options(self)


FIELDS = {field.name: field for field in dataclasses.fields(Options)}


def test_a_declaration_is_kept_in_the_field():
    count = FIELDS["count"]
    assert count.default == 3
    assert dict(count.metadata) == {
        "help": "how many",
        "low": 1,
        "high": 9,
        "choices": (),
        "positional": False,
        "metavar": None,
        "const": None,
        "unless": None,
    }
    assert FIELDS["listed"].metadata["const"] == "*"
    assert FIELDS["data"].default is dataclasses.MISSING


def test_an_option_without_a_default_is_required():
    with pytest.raises(TypeError, match="missing 1 required .*: 'data'"):
        Options()
    assert Options("x") == Options(data="x", count=3, names=("all",))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("data", str),
        ("count", int),
        ("limit", int),
        ("share", float),
        ("other", str),
        ("names", tuple[str, ...]),
        ("numbers", tuple[float, ...]),
        ("quiet", bool),
    ],
)
def test_the_kind_of_an_option_is_its_type_without_none(name, kind):
    assert kind_of(FIELDS[name]) == kind


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 1),
        ("count", 9),
        ("limit", None),
        ("limit", 0),
        ("share", 100),
        ("offset", -1e6),
        ("side", "right"),
        ("other", None),
        ("other", "up"),
        ("data", " "),
        ("names", ()),
        ("numbers", (0, 2.5)),
        ("listed", "*"),
        ("quiet", True),
    ],
)
def test_what_the_field_allows_passes(name, value):
    check_option(FIELDS[name], value)
    assert getattr(Options(**{"data": "x", name: value}), name) == value


WRONG = [
    ("count", 0, ValueError, r"`count` must be an int in \[1, 9\], got 0"),
    ("count", None, TypeError, r"`count` must be an int in \[1, 9\], got None"),
    ("count", 2.0, TypeError, r"`count` must be an int in \[1, 9\], got 2.0"),
    ("limit", -1, ValueError, "`limit` must be an int >= 0 or None, got -1"),
    ("share", 101, ValueError, r"`share` must be a finite number in \[0, 100\], got"),
    ("share", None, TypeError, r"`share` must be a finite number in \[0, 100\], got"),
    ("offset", "1", TypeError, "`offset` must be a finite number, got '1'"),
    ("side", "lefty", ValueError, "one of left, right, got 'lefty'; did you mean 'le"),
    ("side", None, ValueError, "`side` must be one of left, right, got None"),
    ("other", "left", ValueError, "`other` must be one of up, down, got 'left'"),
    ("numbers", (1, -1), ValueError, "`numbers` must be a finite number >= 0, got -1"),
    ("numbers", 0.5, TypeError, "`numbers` must be a tuple of numbers, got 0.5"),
    ("data", "", ValueError, "`data` must not be empty"),
    ("data", "a\0b", ValueError, r"`data` must not hold a NUL character, got 'a.x00b"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG)
def test_what_the_field_does_not_allow_is_refused(name, value, error, message):
    with pytest.raises(error, match=message):
        check_option(FIELDS[name], value)
    # A dataclass turns both kinds of error into one for the user.
    with pytest.raises(ConfigError, match=message) as raised:
        Options(**{"data": "x", name: value})
    assert isinstance(raised.value, UserError)
    assert isinstance(raised.value.__cause__, error)


def test_an_option_may_be_refused_by_another_name():
    with pytest.raises(ValueError, match=r"`--count` must be an int in \[1, 9\]"):
        check_option(FIELDS["count"], 0, "--count")
