"""One key of a recipe: what it means, which values it takes, and what is said of one that does not fit.

A section is a frozen dataclass whose fields are made by :func:`setting`; :func:`check_section` does the rest.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import stat
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What a key means and which values it takes; ``None`` means no such limit."""

    meaning: str
    choices: tuple[str, ...] | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    at_most_key: str | None = None  # another key of the same section
    directory: bool = False  # whether a path may be a directory too
    may_be_empty: bool = False  # a list of choices


REQUIRED: Any = dataclasses.MISSING
LARGEST_WHOLE = 2**31 - 1  # of a key without a bound of its own; libraries below count in 32 bits


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """A dataclass field for one key of a recipe: its default (or ``REQUIRED``), meaning and limits."""
    return field(default=default, metadata={"setting": Setting(meaning, may_be_empty=default == (), **limits)})


def check_section(section: str, section_class: type[Any], given: Any, base: Path, faults: list[str]) -> dict[str, Any]:
    """The section's values by key, defaults filled in; what is wrong with them is appended to ``faults``."""
    if not isinstance(given, Mapping):
        faults.append(f"{section}: found {shown(given)}, needed a section [{section}] with keys")
        return {}
    annotations = typing.get_type_hints(section_class)
    keys = {key.name: key for key in dataclasses.fields(section_class)}
    for name, value in given.items():
        if name not in keys:
            faults.append(f"{section}.{bare(name)}: found {shown(value)}, {needed_name(name, list(keys))}")
    checked: dict[str, Any] = {}
    for name, key in keys.items():
        rule: Setting = key.metadata["setting"]
        if name not in given:
            if key.default is dataclasses.MISSING:
                faults.append(f"{section}.{name}: found nothing, needed {rule.meaning}")
            else:
                checked[name] = key.default
            continue
        try:
            checked[name] = _check_value(given[name], annotations[name], rule, base)
        except _Fault as fault:
            faults.append(f"{section}.{name}: found {fault.found}, needed {fault.needed} ({rule.meaning})")
    for name, key in keys.items():
        other = key.metadata["setting"].at_most_key
        if other and name in checked and other in checked and checked[name] > checked[other]:
            faults.append(
                f"{section}.{name}: found {checked[name]}, needed at most {section}.{other}, "
                f"which is {checked[other]} ({key.metadata['setting'].meaning})"
            )
    return checked


class _Fault(Exception):
    """One value that does not fit its key."""

    def __init__(self, found: str, needed: str) -> None:
        super().__init__(found, needed)
        self.found = found
        self.needed = needed


def _check_value(value: Any, annotation: Any, rule: Setting, base: Path) -> Any:
    """``value`` as the type of its annotation, or ``_Fault``."""
    if isinstance(annotation, types.UnionType):  # an optional key: TOML has no null, so it is given or absent
        annotation = next(part for part in typing.get_args(annotation) if part is not types.NoneType)
    if annotation is Path:
        return _check_path(value, rule, base)
    if typing.get_origin(annotation) is tuple and Path in typing.get_args(annotation):
        if not isinstance(value, (list, tuple)):
            raise _Fault(shown(value), "a list of paths, which may be empty")
        return tuple(_check_path(item, rule, base) for item in value)
    if typing.get_origin(annotation) is tuple:
        return _check_list(value, rule)
    if annotation in (int, float):
        return _check_number(value, annotation, rule)
    if not isinstance(value, annotation):
        needed = "true or false" if annotation is bool else _one_of(rule) if rule.choices else "a text"
        raise _Fault(shown(value), needed)
    if rule.choices and value not in rule.choices:
        raise _Fault(shown(value), _one_of(rule) + _did_you_mean(value, rule.choices))
    return value


def _check_number(value: Any, kind: type[int] | type[float], rule: Setting) -> int | float:
    if kind is int and isinstance(value, int) and value > LARGEST_WHOLE and rule.at_most is None:
        rule = dataclasses.replace(rule, at_most=LARGEST_WHOLE)  # named only where it is broken
    limits = " and ".join(
        f"{words} {limit:g}" if abs(limit) < 1e6 else f"{words} {limit}"
        for words, limit in (("above", rule.above), ("at least", rule.at_least), ("at most", rule.at_most))
        if limit is not None
    )
    needed = f"{'a whole number' if kind is int else 'a number'} {limits}".rstrip()
    accepted = int if kind is int else (int, float)
    # TOML's true is no number, although Python's True is an int.
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise _Fault(shown(value), needed)
    try:
        number: int | float = kind(value)
    except OverflowError:  # a whole number too large for a float
        number = math.inf
    if (
        not -math.inf < number < math.inf
        or (rule.above is not None and number <= rule.above)
        or (rule.at_least is not None and number < rule.at_least)
        or (rule.at_most is not None and number > rule.at_most)
    ):
        raise _Fault(shown(value), needed)
    return number


def _check_list(value: Any, rule: Setting) -> tuple[str, ...]:
    choices = rule.choices
    if choices is None:
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) and item for item in value):
            raise _Fault(shown(value), "a list of names, which may be empty")
        return tuple(value)
    count = "some" if rule.may_be_empty else "one or more"
    needed = f"a list of {count} of {', '.join(choices)}, none of them twice"
    if not isinstance(value, (list, tuple)) or not (value or rule.may_be_empty):
        raise _Fault(shown(value), needed)
    for item in value:
        if item not in choices:
            raise _Fault(f"{shown(item)} in it", needed + _did_you_mean(item, choices))
        if list(value).count(item) > 1:
            raise _Fault(f"{shown(item)} more than once", needed)
    return tuple(value)


def _check_path(value: Any, rule: Setting, base: Path) -> Path:
    needed = f"the path of an existing file{' or directory' if rule.directory else ''}"
    if not isinstance(value, (str, Path)) or not str(value):
        raise _Fault(shown(value), needed)
    path = (base / value).absolute()
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        reason = getattr(error, "strerror", None) or str(error)
        raise _Fault(f"{shown(str(value))}, at {str(path)!r}: {reason}", needed) from error
    if not (stat.S_ISREG(mode) or (rule.directory and stat.S_ISDIR(mode))):
        kind = "a directory" if stat.S_ISDIR(mode) else "a special file"
        raise _Fault(f"{shown(str(value))}, at {str(path)!r}: {kind}", needed)
    return path


def _one_of(rule: Setting) -> str:
    return "one of " + ", ".join(rule.choices or ())


def needed_name(name: str, names: list[str], sections: Mapping[str, type[Any]] | None = None) -> str:
    """What was needed in place of an unknown section or key."""
    what = "one of the sections" if sections else "one of the keys"
    for section, section_class in (sections or {}).items():
        if name in {key.name for key in dataclasses.fields(section_class)}:
            return f"needed {what} {', '.join(names)}; did you mean {section}.{name}, under [{section}]?"
    return f"needed {what} {', '.join(names)}{_did_you_mean(name, names)}"


def _did_you_mean(name: Any, names: typing.Iterable[str]) -> str:
    if not isinstance(name, str):
        return ""
    folded = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"; did you mean {folded[close[0]]}?" if close else ""


def bare(name: str) -> str:
    """A key as TOML would write it: one that is not plain is quoted, control characters escaped."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else repr(name)


_TOML_TYPES = {bool: "boolean", int: "integer", float: "float", str: "string", list: "array", dict: "table"}


def shown(value: Any) -> str:
    """A value found, short enough for a message, with TOML's name of its type."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else _written(value)
    if len(text) > 80:
        text = text[:77] + "…"
    return f"{text} ({_TOML_TYPES.get(type(value), type(value).__name__)})"


def _written(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no whole number of thousands of digits in decimal
        return hex(value) if isinstance(value, int) else "something with a huge whole number in it"


def as_json(value: Any) -> Any:
    """A checked value as JSON can hold it."""
    if isinstance(value, Path):
        return str(value)
    return [as_json(member) for member in value] if isinstance(value, tuple) else value
