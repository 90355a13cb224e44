"""Values from a file, checked once against the types that they should have, so that nothing behind it has to ask."""

from __future__ import annotations

import functools
import math
import numbers
import reprlib
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

_LARGEST = 1e100  # a number beyond it is as good as infinite, and its square still a number
_LARGEST_COUNT = 2**53


def checked(kind: Any, value: Any, where: str = "") -> Any:
    """A value that was read from JSON, as what it should be.

    Args:
        kind: A type: float, int (a count), bool, str, `X | None`, `tuple[X, ...]`, `dict[str, X]`, or a dataclass whose
            fields are of such types; a mapping is read as one, and its fields of newer versions are passed over.
        value: The value. JSON has no NaN: null stands for it where there must be a number.
        where: Its place in the file, for messages.

    Raises:
        ValueError: if it is something else; it names the place.

    Example:
    >>> checked(dict[str, float | None], {"loss": 1, "nll": None})
    {'loss': 1.0, 'nll': None}
    >>> checked(tuple[int, ...], [3, "x"], "units")
    Traceback (most recent call last):
    ValueError: `units[1]` must be a count, not 'x'.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (known,) = (each for each in inner if each is not NoneType)
        value = None if value is None else checked(known, value, where)
        return None if isinstance(value, float) and math.isnan(value) else value
    if is_dataclass(kind):
        return _dataclass(kind, _expect(value, dict, where, "a mapping"), where)
    if origin is tuple:
        items = _expect(value, list, where, "a list")
        return tuple(checked(inner[0], item, f"{where}[{number}]") for number, item in enumerate(items))
    if origin is dict:
        items = _expect(value, dict, where, "a mapping")
        return {_whole(key): checked(inner[1], item, f"{where}.{key}") for key, item in items.items()}
    if kind is float:
        number = math.nan if value is None else _expect(value, numbers.Real, where, "a number")
        is_huge = isinstance(number, int) and abs(number) > _LARGEST  # more than a float may hold, perhaps
        return float(number) if not is_huge and abs(float(number)) <= _LARGEST else math.nan
    if kind is int:
        _expect(value, numbers.Integral, where, "a count")
        return int(value) if 0 <= value <= _LARGEST_COUNT else _refuse(value, where, "a count")
    if kind is str:
        return _whole(_expect(value, str, where, "a string"))
    return _expect(value, bool, where, "true or false")


def _dataclass(kind: Any, values: dict[str, Any], where: str) -> Any:
    found = {}
    for field in fields(kind):
        place = f"{where}.{field.name}".lstrip(".")
        if field.name in values:
            found[field.name] = checked(_types(kind)[field.name], values[field.name], place)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"`{place}` must be given, not be missing.")
    return kind(**found)


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _whole(text: str) -> str:
    """Text with a question mark for each half of a character, which JSON may hold and no file can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _expect(value: Any, kinds: Any, where: str, what: str) -> Any:
    is_bool = isinstance(value, bool)
    if isinstance(value, kinds) and (not is_bool or kinds is bool):
        return value
    return _refuse(value, where, what)


def _refuse(value: Any, where: str, what: str) -> Any:
    raise ValueError(f"`{where or 'value'}` must be {what}, not {reprlib.repr(value)}.")
