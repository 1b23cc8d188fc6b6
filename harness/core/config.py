"""Settings: `key=value` text becomes a frozen, typed object, and the object becomes JSON again.

A settings class is a plain class with annotated fields and a line of text under each:

    @settings
    class Config:
        damping: PositiveFloat = 1e-8
        \"\"\"λ in G + λI.\"\"\"

Unknown keys, wrong types, values out of range and contradictions are refused in one sentence. What validates them is imported
when the first class is made: listing what there is does without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, dataclass_transform

from harness.core.documents import Malformed, parse_json
from harness.core.errors import UsageError, cut, unknown

JSON = Any
"""Plain JSON data: what `json` can write. (Precise recursive types would be invariant and fit nothing.)"""
T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make a class a frozen, keyword-only, validated settings class.

    A class attribute `_alternatives`, a tuple of tuples of field names, names settings of which only one can hold:
    a later layer that sets one of them clears the others.
    """
    from pydantic import ConfigDict
    from pydantic.dataclasses import dataclass

    strict = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, strict=False)
    return dataclass(cls, frozen=True, kw_only=True, config=strict)  # type: ignore[return-value]


def parse(assignments: Iterable[str]) -> dict[str, JSON]:
    """Turn `["damping=1e-2", "layers=[3,4]", "estimator=kfac"]` into a dictionary.

    A value is read as JSON where it is JSON and as text otherwise.

    Raises:
        UsageError: for an item without `=`, or a key given twice.
    """
    values: dict[str, JSON] = {}
    for item in assignments:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"'{cut(item)}' is not a setting. Write it as key=value, for example damping=1e-2.")
        if key in values:
            raise UsageError(f"the setting '{cut(key)}' is given twice.")
        if not item.isascii() and re.search("[\ud800-\udfff]", item):
            raise UsageError(f"the setting '{cut(key)}' holds bytes that are no UTF-8.")
        try:
            values[key] = parse_json(text, key)
        except Malformed:
            values[key] = {"none": None, "true": True, "false": False}.get(text.lower(), text)
    return values


def written(value: JSON) -> str:
    """A setting's value as it is typed after `--set key=`, of which `parse` makes it again.

    >>> [written(value) for value in ("kfac", None, True, 0.001, [3, 4])]
    ['kfac', 'none', 'true', '0.001', '[3,4]']
    """
    if value is None or isinstance(value, str):
        return "none" if value is None else value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def departures(cls: type, preset: Mapping[str, JSON], values: Mapping[str, JSON]) -> dict[str, JSON]:
    """The settings that are neither the class's defaults nor a preset's, without those that gave way to an alternative."""
    usual = {**{name: default for name, default, _ in describe(cls)}, **preset}
    gave_way = {name for group in getattr(cls, "_alternatives", ()) for name in group if values.get(name) is None}
    return {name: value for name, value in values.items() if value != usual.get(name) and name not in gave_way}


def resolve(cls: type[T], *layers: Mapping[str, JSON], owner: str) -> T:
    """The settings object from its defaults and the layers over them, the last one winning.

    Args:
        cls: a class made by `settings`.
        layers: from the weakest (a preset) to the strongest (the command line).
        owner: whose settings these are, for messages, such as "kfade".

    Raises:
        UsageError: for an unknown key (with the nearest one), a wrong type, a value out of range, or
            settings that contradict each other.
    """
    from pydantic import TypeAdapter, ValidationError

    merged: dict[str, JSON] = {}
    for layer in layers:
        _known(cls, layer, owner)
        for group in getattr(cls, "_alternatives", ()):
            given = [key for key in group if layer.get(key) is not None]
            if len(given) > 1:
                raise UsageError(f"{owner}: {' and '.join(given)} contradict each other; give one of them.")
            if given:
                merged.update({key: None for key in group if key not in layer})
        merged.update(layer)
    try:
        config = TypeAdapter(cls).validate_python(merged)
    except ValidationError as error:
        raise _refused(owner, error.errors()) from None
    _no_truth_for_a_number(merged, config, owner)
    return config


def _no_truth_for_a_number(values: Mapping[str, JSON], config: object, owner: str) -> None:
    """Refuse true and false where pydantic made 1 and 0 of them."""
    for key, value in values.items():
        if _has_truth(value) and not _has_truth(getattr(config, key)):
            raise UsageError(f"{owner}: {key}={cut(json.dumps(value))} is not allowed: a number is wanted.")


def _has_truth(value: JSON) -> bool:
    """Whether it is true or false, or a list that holds one of them."""
    return any(map(_has_truth, value)) if isinstance(value, list | tuple) else isinstance(value, bool)


def check(cls: type, values: Mapping[str, JSON], *, owner: str) -> None:
    """Check some settings of a class, each by itself: what contradicts, or lacks, others is none of its business.

    Raises:
        UsageError: for an unknown key (with the nearest one), a wrong type or a value out of range.
    """
    from pydantic import TypeAdapter, ValidationError

    _known(cls, values, owner)
    try:
        config: object = TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        if of_values := [detail for detail in error.errors() if detail["loc"]]:
            raise _refused(owner, of_values) from None
    else:
        _no_truth_for_a_number(values, config, owner)


def _known(cls: type, values: Mapping[str, JSON], owner: str) -> None:
    fields = field_names(cls)
    for key in values:
        if key not in fields:
            raise unknown(f"setting of {owner}", key, fields, f"harness show {owner}")


def _refused(owner: str, details: Sequence[Any]) -> UsageError:
    # Of a list whose items are wrong pydantic also says that it is too short.
    reported = [detail for detail in details if detail["type"] != "too_short"] or details
    return UsageError("; ".join(_sentence(owner, detail) for detail in reported) + ".")


def _sentence(owner: str, detail: Any) -> str:
    # Settings are flat: what follows the setting's name is an index, or which of its types was tried.
    key = next((part for part in detail["loc"] if isinstance(part, str) and not part.startswith("function-")), "")
    message = detail["msg"].removeprefix("Value error, ").rstrip(".")
    message = message[:1].lower() + message[1:]
    if not key:
        return f"{owner}: {message}"
    return f"{owner}: {key}={cut(json.dumps(detail['input'], default=str))} is not allowed: {message}"


def field_names(cls: type) -> list[str]:
    """The settings a class has, in the order they are written."""
    return list(cls.__dataclass_fields__)  # type: ignore[attr-defined]


def describe(cls: type) -> Sequence[tuple[str, JSON, str]]:
    """Each setting's name, default and the text written under it."""
    return _described(cls)


@cache
def _described(cls: Any) -> Sequence[tuple[str, JSON, str]]:
    from pydantic import TypeAdapter

    schema = TypeAdapter(cls).json_schema()
    # A class knows only the lines under its own settings, not those it inherits.
    descriptions = {
        name: field.description
        for base in reversed(cls.__mro__)
        for name, field in getattr(base, "__pydantic_fields__", {}).items()
        if field.description
    }
    return tuple(
        (name, field.get("default"), " ".join(str(descriptions.get(name, "")).split()))
        for name, field in schema.get("properties", {}).items()
    )


def to_json(config: Any) -> dict[str, JSON]:
    """Plain JSON data out of a settings object, under the names that records keep; `resolve` gives it back."""
    from pydantic import TypeAdapter

    return TypeAdapter(type(config)).dump_python(config, mode="json", by_alias=True)  # type: ignore[no-any-return]
