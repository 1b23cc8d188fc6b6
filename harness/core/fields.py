"""How one field of a request is given: declared once, read alike from a flag, a file and Python.

A request is a frozen dataclass whose fields say how they are read:

    method: Annotated[tuple[str, ...], Field(names("a method"), short="-m")] = ()
    \"\"\"With what to unlearn, or several parted by commas.\"\"\"

`read` makes one out of layers of what was given, the last one winning. The line under a field is its help.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_type_hints

from harness.core.documents import whole_number
from harness.core.errors import UsageError, cut, unknown

R = TypeVar("R")
Origin = Literal["flag", "environment", "file", "python"]
MOST = 2**32 - 1
"""The largest whole number that a field takes if nothing else is said."""


@dataclass(frozen=True)
class Given:
    """A value as somebody gave it."""

    value: object
    """Text from a flag, plain JSON data from a file, anything from Python."""
    text: str
    """How messages quote it, such as `--seeds 0,x` or `sweep.yaml: seeds=0,x`."""
    origin: Origin = "flag"
    """Where it was given."""


@dataclass(frozen=True)
class Field:
    """How a field is read and shown."""

    read: Callable[[Given], Any]
    """Makes its value; raises UsageError."""
    panel: str = "Options"
    """Under which heading of `--help` its flag stands."""
    flag: str = ""
    """The flag's long name; the field's own with dashes if empty."""
    short: str = ""
    """The flag's short name, such as `-m`."""
    aliases: tuple[str, ...] = ()
    """Earlier names, still read and no longer shown."""
    metavar: str = "TEXT"
    """What stands for the value in `--help`."""
    completes: str = ""
    """What a shell completes it with: `methods`, `benches`, `models`, `templates`, `evals`, or words parted by `|`."""
    repeated: bool = False
    """Whether the flag may be given several times; mappings of several layers are then put together."""
    switch: bool = False
    """Whether the flag takes no value."""
    variable: str = ""
    """An environment variable that gives it."""
    typed_only: str = ""
    """Why a file cannot ask for it, for what takes the user's own word."""


# ---------------------------------------------------------------- what is declared


@cache
def declared(kind: type) -> Mapping[str, Field]:
    """Each field of a request class with how it is given, its own fields before inherited ones."""
    hints = get_type_hints(kind, include_extras=True)
    own = [name for cls in kind.__mro__ for name in getattr(cls, "__annotations__", {}) if name in hints]
    return {name: next(m for m in hints[name].__metadata__ if isinstance(m, Field)) for name in dict.fromkeys(own)}


@cache
def helps(kind: type) -> Mapping[str, str]:
    """The line under each field of a request class."""
    lines: dict[str, str] = {}
    for cls in reversed([c for c in kind.__mro__ if c is not object]):
        body = _classes(cls.__module__)[cls.__name__].body
        for field, line in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
                lines[ast.unparse(field.target)] = " ".join(str(line.value.value).split())
    return lines


@cache
def _classes(module: str) -> Mapping[str, ast.ClassDef]:
    """A module's classes as they are written; `inspect.getsource` would parse the whole file for each of them."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def default(kind: type, name: str) -> Any:
    """A field's value where nothing is given."""
    return next(field.default for field in fields(kind) if field.name == name)


def flag_of(name: str, field: Field) -> str:
    """Its long flag."""
    return field.flag or f"--{name.replace('_', '-')}"


# ---------------------------------------------------------------- reading


def read(kind: type[R], *layers: Mapping[str, Given]) -> R:
    """A request out of what was given.

    Args:
        kind: its class.
        layers: field → what was given, from the weakest to the strongest.

    Raises:
        UsageError: for a value that is not allowed.
    """
    values: dict[str, Any] = {}
    known = declared(cast(Any, kind))
    for layer in layers:
        for name, given in layer.items():
            field = known[name]
            value = field.read(given)
            merged = field.repeated and isinstance(value, Mapping) and name in values
            values[name] = {**values[name], **value} if merged else value
    return kind(**values)


def from_python(kind: type, values: Mapping[str, object]) -> dict[str, Given]:
    """A layer out of keywords.

    Raises:
        UsageError: for a name that is no field (with the nearest one).
    """
    layer = {}
    for name, value in values.items():
        if name not in declared(kind):
            raise unknown("argument", name, declared(kind))
        layer[name] = Given(value, f"{name}={cut(repr(value))}", "python")
    return layer


def from_document(kind: type, document: object, name: str, what: str) -> dict[str, Given]:
    """A layer out of a file's content, whose entries are named as fields or as flags are.

    Args:
        kind: the request's class.
        document: what was read.
        name: the file's name, for messages.
        what: what it should be, such as `sweep`.

    Raises:
        UsageError: if it is no mapping, or has an entry that is unknown, given twice, or must be typed.
    """
    if not isinstance(document, dict):
        raise UsageError(f"{name} is no {what}: write flags' names and values, such as method: kfade.")
    entries = {entry: field for field, how in declared(kind).items() for entry in _entries(field, how)}
    layer: dict[str, Given] = {}
    for entry, value in document.items():
        if entry not in entries:
            known = [next(iter(_entries(field, how))) for field, how in declared(kind).items() if not how.typed_only]
            raise unknown(f"entry of a {what}'s file ({name})", str(entry), known)
        field = entries[entry]
        if why := declared(kind)[field].typed_only:
            flag = flag_of(field, declared(kind)[field])
            raise UsageError(f"{name}: {entry} is not taken from a file, for {why}. Take it out and type {flag}.")
        if field in layer:
            raise UsageError(f"{name}: {entry} says again what another entry says; give one of them.")
        layer[field] = Given(value, f"{name}: {entry}={cut(_words(value))}", "file")
    return layer


def _entries(name: str, field: Field) -> list[str]:
    """What a file may call a field, the usual name first."""
    flags = [flag_of(name, field), *field.aliases]
    return list(dict.fromkeys([*(flag.strip("-").replace("-", "_") for flag in flags), name]))


def _words(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


# ---------------------------------------------------------------- kinds of values


def text(given: Given) -> str:
    """Any text."""
    return _words(given.value)


def path(given: Given) -> Path | None:
    """A file or folder; none where the text is empty."""
    if not isinstance(given.value, str | Path):
        raise UsageError(f"{given.text} is no path.")
    return Path(given.value) if str(given.value) else None


def folder(given: Given) -> Path | None:
    """A folder that is there; none where the text is empty."""
    where = path(given)
    if where is not None and not where.is_dir():
        raise UsageError(f"{given.text}: there is no such folder.")
    return where


def switch(given: Given) -> bool:
    """Yes or no."""
    if not isinstance(given.value, bool):
        raise UsageError(f"{given.text} is neither true nor false.")
    return given.value


def number(least: int = 1, most: int = MOST) -> Callable[[Given], int | None]:
    """A whole number: plain digits, and no more of them than can be meant. None, from a file or from Python, is none."""

    def read_number(given: Given) -> int | None:
        value = given.value
        if value is None and given.origin != "flag":
            return None
        whole = whole_number(value) if isinstance(value, str) else value if type(value) is int else None
        if whole is None or not least <= whole <= most:
            raise UsageError(f"{given.text} is no whole number from {least} to {most:,}.")
        return whole

    return read_number


def named_parts(given: Given, kind: str, keys: Sequence[str], what: str, example: str) -> dict[str, str]:
    """The parts of a text such as `lora:r=16,alpha=32`, as texts.

    Args:
        given: the text.
        kind: what stands before the colon.
        keys: the parts that there are.
        what: it is called in messages.
        example: of it, whole.

    Raises:
        UsageError: for another kind, a part that there is not, or one that is said twice.
    """
    said, _, rest = str(given.value).partition(":")
    article = "an" if what[0] in "aeiou" else "a"
    if said != kind:
        raise UsageError(f"{given.text} is no {what}. Write {example}, or a part of it.")
    values: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = part.strip().partition("=")
        if key not in keys or not equals:
            raise UsageError(
                f"{given.text}: '{cut(part)}' is no setting of {article} {what}. Write {example}, or a part of it."
            )
        if key in values:
            raise UsageError(f"{given.text} says {key} twice.")
        values[key] = value
    return values


def word(*allowed: str) -> Callable[[Given], str]:
    """One of these words."""

    def read_word(given: Given) -> str:
        if given.value not in allowed:
            hint = str(unknown("word", str(given.value), allowed)).partition(".")[2].strip()
            raise UsageError(f"{given.text} is not known. {hint}")
        return str(given.value)

    return read_word


def names(kind: str, advice: str = "") -> Callable[[Given], tuple[str, ...]]:
    """Names parted by commas, or a list of them; none of them twice.

    Args:
        kind: what one is, such as `an evaluator`.
        advice: what to do where there is none.
    """

    def read_names(given: Given) -> tuple[str, ...]:
        value = given.value
        if value is None or value in ("", [], ()):
            return ()
        parts = value if isinstance(value, Sequence) and not isinstance(value, str) else str(value).split(",")
        every = tuple(name for part in parts if (name := str(part).strip()))
        if not every:
            raise UsageError(f"{given.text} names no {kind.split()[1]}{f': {advice}' if advice else ''}.")
        if len(set(every)) < len(every):
            raise UsageError(f"{given.text} names {kind} twice.")
        return every

    return read_names


def seeds(given: Given) -> tuple[int, ...]:
    """Unlearning seeds parted by commas, or a list of them; none of them twice."""
    value = given.value
    if value is None or value == "":
        return ()
    parts = list(value) if isinstance(value, list | tuple | range) else str(value).split(",")
    numbers = [part if type(part) is int else whole_number(str(part).strip()) for part in parts]
    if not numbers or any(seed is None or not 0 <= seed <= MOST for seed in numbers):
        raise UsageError(f"{given.text} is no list of seeds from 0 to {MOST:,}. Write 0,1,2.")
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"{given.text} names a seed twice.")
    return tuple(seed for seed in numbers if seed is not None)


def budgets(given: Given) -> tuple[float, ...]:
    """Damages parted by commas, a list of them or one number: positive, increasing, with six digits, as records write them."""
    value = given.value
    if value is None or value in ("", [], ()):
        return ()
    parts: list[Any] = value.split(",") if isinstance(value, str) else [*value] if isinstance(value, list | tuple) else [value]
    try:
        if any(isinstance(part, bool) for part in parts):
            raise TypeError
        numbers = [float(f"{float(part):g}") for part in parts]
    except (TypeError, ValueError):
        raise UsageError(f"{given.text} is no list of numbers. Write .01,.03,.1: nats per token.") from None
    if not all(0 < number < float("inf") for number in numbers):
        raise UsageError(f"{given.text} holds a damage that is not positive and finite. Write .01,.03,.1: nats per token.")
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        raise UsageError(f"{given.text} does not increase. Write {','.join(f'{number:g}' for number in sorted(set(numbers)))}.")
    return tuple(numbers)
