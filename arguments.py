"""Checks on what a person types, driven by the type hints of the function that receives it.

A parameter is annotated once, where it is used::

    @checked
    def adam(parameters: Iterable[Tensor], lr: Annotated[float, Range(gt=0)] = 1e-3): ...

and that annotation serves three readers: the person reading the code, the call itself
(:func:`checked` refuses a bad value in Python), and the command line (:func:`check_arguments`
refuses it before anything slow starts, under the name that was typed).
"""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union

__all__ = [
    "ArgumentError",
    "Count",
    "OneOf",
    "Range",
    "check_arguments",
    "check_choice",
    "check_value",
    "checked",
    "nearest",
]

Function = TypeVar("Function", bound=Callable[..., Any])


class ArgumentError(ValueError):
    """A setting has a value that it does not accept. The message is one line: name, accepted, received."""

    def __init__(self, name: str, accepts: str, got: str) -> None:
        self.name, self.accepts, self.got = name, accepts, got
        super().__init__(f"{name} accepts {accepts}; got {got}")


@dataclass(frozen=True)
class Range:
    """Bounds on a number: above `gt`, at least `ge`, below `lt`, at most `le`."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )

    def __str__(self) -> str:
        words = [("above", self.gt), ("at least", self.ge), ("below", self.lt), ("at most", self.le)]
        return " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)


Count = Annotated[int, Range(ge=1)]
"""How many of something: one or more."""


@dataclass(frozen=True)
class OneOf:
    """Names found at run time, such as the files of a folder: `Annotated[str, OneOf(names)]`."""

    names: Callable[[], Iterable[str]]


def nearest(name: str, known: Iterable[str]) -> str:
    """The suggestion that ends an error about an unknown name: `" (did you mean 'moons'?)"`, or nothing."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def check_choice(name: str, value: Any, names: Sequence[str]) -> None:
    """
    Raises:
        ArgumentError: `value` is none of `names`.
    """
    if value not in names:
        raise ArgumentError(name, " | ".join(names), f"{value!r}{nearest(str(value), names)}")


def checked(function: Function) -> Function:
    """Check every call of `function` (or `__init__`) against its type hints.

    Raises:
        ArgumentError: an argument is of the wrong type, out of range or not among the names accepted.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        hints = _hints(function)
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            if name in hints and kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                bound.arguments[name] = check_value(name, value, hints[name])
        return function(*bound.args, **bound.kwargs)

    return typing.cast(Function, wrapper)


def check_arguments(
    target: Callable[..., Any], arguments: Mapping[str, Any], prefix: str = "", handed_over: Sequence[str] = ()
) -> None:
    """Check `arguments` as keyword arguments of `target`, naming them `prefix + key` in errors.

    Arguments that `target` requires may be missing. Those named in `handed_over` are refused, since
    the program itself sets them, at run time.

    Raises:
        ArgumentError: a key that `target` does not take, or a value that its type hint refuses.
    """
    function = target.__init__ if inspect.isclass(target) else target
    hints = _hints(function)
    known = [name for name in inspect.signature(target).parameters if name not in handed_over]
    for name, value in arguments.items():
        if name not in known:
            settings = ", ".join(known)
            raise ArgumentError(
                f"{prefix}{name}", f"nothing: the settings here are {settings}", f"{value!r}{nearest(name, known)}"
            )
        if name in hints:
            check_value(f"{prefix}{name}", value, hints[name])


def check_value(name: str, value: Any, hint: Any) -> Any:
    """Return `value`, an integer converted to a float where `hint` says float, and a sequence to a tuple.

    Numbers, strings, booleans, `Literal`, unions with None, and sequences of these are checked, with
    :class:`Range` and :class:`OneOf` where annotated. Values with other hints are returned unchecked.

    Raises:
        ArgumentError: `value` is not what `hint` describes.
    """
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = check_value(name, value, parameters[0])
        if value is None or all(_satisfies(value, condition) for condition in parameters[1:]):
            return value
        suggestion = "".join(
            nearest(str(value), condition.names()) for condition in parameters[1:] if isinstance(condition, OneOf)
        )
        raise ArgumentError(name, _describe(hint), f"{value!r}{suggestion}")
    if origin in (Union, types.UnionType):
        for member in parameters:
            try:
                return check_value(name, value, member)
            except ArgumentError:
                continue
        raise ArgumentError(name, _describe(hint), repr(value))
    if origin is Literal:
        if value in parameters and type(value) in {type(choice) for choice in parameters}:
            return value
        raise ArgumentError(name, _describe(hint), f"{value!r}{nearest(str(value), map(str, parameters))}")
    if origin in (list, tuple, Sequence):
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            raise ArgumentError(name, _describe(hint), repr(value))
        return tuple(check_value(name, item, parameters[0]) for item in value)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number and abs(value) <= sys.float_info.max:  # a whole number may be larger
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        return value
    if hint in (float, int):
        is_large = hint is int and isinstance(value, int) and not isinstance(value, bool)
        raise ArgumentError(name, _describe(hint) + " below 2^63" * is_large, repr(value))
    if hint in (str, bool, type(None)) and not isinstance(value, hint):
        raise ArgumentError(name, _describe(hint), repr(value))
    return value


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function, include_extras=True)
    hints.pop("return", None)
    return hints


def _satisfies(value: Any, condition: Any) -> bool:
    if isinstance(condition, Range):
        return value in condition
    if isinstance(condition, OneOf):
        return value in condition.names()
    return True


def _describe(hint: Any) -> str:
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        names = [condition for condition in parameters[1:] if isinstance(condition, OneOf)]
        if names:
            return " | ".join(sorted(names[0].names()))
        return " ".join([_describe(parameters[0]), *(str(item) for item in parameters[1:])])
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(member) for member in parameters)
    if origin is Literal:
        return " | ".join(str(choice) for choice in parameters)
    if origin in (list, tuple, Sequence):
        return f"a list of one or more, each {_describe(parameters[0])}"
    plain = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", type(None): "null"}
    return plain.get(hint, getattr(hint, "__name__", str(hint)))
