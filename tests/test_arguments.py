"""What a person types is checked, and the error says what was wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest

from arguments import ArgumentError, OneOf, Range, check_arguments, checked


@checked
def receive(
    rate: Annotated[float, Range(gt=0, le=1)] = 0.5,
    count: Annotated[int, Range(ge=1)] = 1,
    kind: Literal["plain", "fancy"] = "plain",
    name: Annotated[str, OneOf(lambda: ["moons", "rings"])] = "moons",
    limit: Annotated[float, Range(gt=0)] | None = None,
    radii: Sequence[Annotated[float, Range(gt=0)]] = (1.0,),
    flag: bool = True,
    anything: Any = None,
) -> tuple:
    return rate, count, kind, name, limit, radii, flag, anything


def test_good_arguments_arrive() -> None:
    assert receive(1, 2, "fancy", "rings", 3, [1, 2.5], False, object) == (
        1.0, 2, "fancy", "rings", 3.0, (1.0, 2.5), False, object,
    )  # fmt: skip
    assert isinstance(receive(rate=1)[0], float)
    assert receive(limit=None)[4] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0}, "rate accepts a number above 0 and at most 1; got 0.0"),
        ({"rate": 1.01}, "rate accepts a number above 0 and at most 1; got 1.01"),
        ({"rate": float("nan")}, "rate accepts a number; got nan"),
        ({"rate": 10**400}, f"rate accepts a number; got {10**400}"),
        ({"rate": float("inf")}, "rate accepts a number; got inf"),
        ({"rate": True}, "rate accepts a number; got True"),
        ({"count": 1.0}, "count accepts a whole number; got 1.0"),
        ({"count": True}, "count accepts a whole number; got True"),
        ({"count": 0}, "count accepts a whole number at least 1; got 0"),
        ({"kind": "fanci"}, "kind accepts plain | fancy; got 'fanci' (did you mean 'fancy'?)"),
        ({"name": "moon"}, "name accepts moons | rings; got 'moon' (did you mean 'moons'?)"),
        ({"name": 3}, "name accepts a text; got 3"),
        ({"limit": 0}, "limit accepts a number above 0 or null; got 0"),
        ({"radii": []}, "radii accepts a list of one or more, each a number above 0; got []"),
        ({"radii": "1"}, "radii accepts a list of one or more, each a number above 0; got '1'"),
        ({"radii": [1, -1]}, "radii accepts a number above 0; got -1.0"),
        ({"flag": 1}, "flag accepts true or false; got 1"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        receive(**arguments)
    assert str(caught.value) == message


def test_settings_are_checked_under_their_full_names() -> None:
    check_arguments(receive, {"rate": 0.1}, "group.")
    with pytest.raises(ArgumentError, match=r"^group\.rate accepts a number above 0"):
        check_arguments(receive, {"rate": -1}, "group.")
    with pytest.raises(ArgumentError, match=r"^group\.rat accepts nothing.*did you mean 'rate'"):
        check_arguments(receive, {"rat": 0.1}, "group.")
