"""JSON, JSON lines, YAML, TOML: read here and nowhere else, and refused in one sentence that says file, line and what is wrong.

What comes out is plain data that can be written again as UTF-8 JSON. Refused are, besides what is none of them at all:
nesting without end, whole numbers of thousands of digits, halves of surrogate pairs, and NaN and Infinity where numbers must be
finite; in YAML also aliases (`*name`, which can refer to themselves or unfold without end), tags (`!!set`), and keys that stand
twice or are no words. A date stays the word it is. Nothing but the usual parsers is used, and none of them runs code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.errors import UsageError

if TYPE_CHECKING:
    from yaml import Node, SafeLoader

DEEPEST = 100
"""Levels of nesting in YAML; JSON may have 200."""
_PLACE = re.compile(r"(.*) at line (\d+) column (\d+)$", re.DOTALL)
_DIGITS = re.compile(r"[0-9]{1,18}")


class Malformed(UsageError, ValueError):
    """A text that is not what it should be. Whoever expects that catches a ValueError, everybody else tells it to the user."""


class Unreadable(UsageError, OSError):
    """A file that is not there, or may not be read; likewise."""


def place(path: Path) -> str:
    """How a file is named in messages: by the last three parts of its path."""
    return Path(*path.parts[-3:]).as_posix()


def read_text(path: Path, where: str = "") -> str:
    r"""A UTF-8 file as text, without a byte order mark; lines that end with `\r` or `\r\n` end with `\n`.

    Args:
        path: the file.
        where: its name in messages; see `place`.

    Raises:
        Unreadable: if it cannot be read.
        Malformed: if it is no UTF-8.
    """
    where = where or place(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"{where} is no UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise Unreadable(f"{where} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # no name of a file
        raise Unreadable(f"{where} cannot be read: {error}.") from None


def parse_json(text: str | bytes, where: str, line: int = 1, finite: bool = True) -> Any:
    """What a JSON text says.

    Args:
        text: the text.
        where: whence it is, for messages.
        line: the number of its first line there.
        finite: whether NaN and Infinity are refused; JSON does not have them, but Python writes them.

    Raises:
        Malformed: naming the line and what is wrong with it.
    """
    from pydantic_core import from_json  # what json.loads gives, in half the time, and with bounds on depth and digits

    try:
        value = from_json(text, allow_inf_nan=not finite)
    except TypeError:  # of a str that no UTF-8 can hold
        raise Malformed(f"{where}, line {line}: not valid JSON (half of a surrogate pair).") from None
    except ValueError as error:
        what, row, column = match.groups() if (match := _PLACE.match(str(error))) else (str(error), "1", "1")
        raise Malformed(f"{where}, line {line + int(row) - 1}: not valid JSON ({what} at column {column}).") from None
    if finite and _overflows(value):
        raise Malformed(f"{where}, in or after line {line}: a number that is larger than any float, such as 1e999.")
    return value


def _overflows(value: Any) -> bool:
    """Whether a number in it is infinite: JSON writes 1e999 as any other, and a float holds no such number."""
    if isinstance(value, dict):
        return any(map(_overflows, value.values()))
    if isinstance(value, list):
        return any(map(_overflows, value))
    return isinstance(value, float) and not math.isfinite(value)


def read_json(path: Path, where: str = "", finite: bool = True) -> Any:
    """What a JSON file says; see `read_text` and `parse_json`."""
    where = where or place(path)
    return parse_json(read_text(path, where), where, finite=finite)


def json_lines(path: Path, where: str = "") -> Iterator[tuple[int, Any]]:
    """Number and content of each line of a JSON-lines file that is not blank, as they are asked for.

    Raises:
        Unreadable: if it cannot be read.
        Malformed: naming the line and what is wrong with it.
    """
    where = where or place(path)
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, parse_json(line, where, number)
    except UnicodeDecodeError as error:
        raise Malformed(f"{where} is no UTF-8 text (byte {error.start}).") from None
    except OSError as error:
        raise Unreadable(f"{where} cannot be read: {error.strerror}.") from None


def read_yaml(path: Path, where: str = "") -> Any:
    """What a YAML file says, one document of JSON's types; see `read_text`.

    Raises:
        Unreadable: if it cannot be read.
        Malformed: naming the line and what is wrong with it.
    """
    where = where or place(path)
    text = read_text(path, where)
    import yaml

    try:
        return _loader()(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Malformed(f"{where}, line {line}: cannot be read as YAML ({error.problem or error.context}).") from None
    except yaml.YAMLError as error:
        raise Malformed(f"{where} cannot be read as YAML ({' '.join(str(error).split())}).") from None


def read_toml(path: Path, where: str = "") -> dict[str, Any]:
    """What a TOML file says; see `read_text`. Its dates are dates, and its numbers may be `nan` and `inf`.

    Raises:
        Unreadable: if it cannot be read.
        Malformed: saying what is wrong with it, and where.
    """
    where = where or place(path)
    text = read_text(path, where)
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{where} cannot be read as TOML ({error}).") from None


def whole_number(text: str) -> int | None:
    """What plain digits say; None for anything else, digits of other scripts, underscores and signs among them."""
    return int(text) if _DIGITS.fullmatch(text) else None


# ---------------------------------------------------------------- YAML


@cache
def _loader() -> type[SafeLoader]:
    """PyYAML's safe loader, for plain trees only."""
    import yaml
    from yaml.constructor import ConstructorError

    prefix = "tag:yaml.org,2002:"

    def refused(what: str, node: Node) -> ConstructorError:
        return ConstructorError(None, None, what, node.start_mark)

    class Plain(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
        depth = 0

        def compose_node(self, parent: Node | None, index: int) -> Node | None:
            event = self.peek_event()
            if isinstance(event, yaml.AliasEvent):
                raise refused(f"*{event.anchor} refers to another place; write out what stands there", event)
            if getattr(event, "tag", None):
                raise refused(f"the tag {event.tag} is not known", event)
            self.depth += 1
            if self.depth > DEEPEST:
                raise refused(f"nested more than {DEEPEST} levels deep", event)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if key.tag != f"{prefix}str":
                    raise refused("a key that is no word; put it into quotes", key)
                if key.value in seen:
                    raise refused(f"'{key.value}' stands twice", key)
                seen.add(key.value)
            return dict(super().construct_mapping(node, deep))

        def word(self, node: Any) -> str:
            if re.search("[\0\ud800-\udfff]", node.value):
                raise refused("a character that no text has", node)
            return str(node.value)

        def number(self, node: Any) -> Any:
            try:
                value = self.construct_yaml_int(node) if node.tag == f"{prefix}int" else self.construct_yaml_float(node)
                finite = math.isfinite(value)
            except (ValueError, OverflowError):
                raise refused("a number of too many digits", node) from None
            if not finite:
                raise refused("a number that is not finite", node)
            return value

    kept = {prefix + kind for kind in ("null", "bool", "int", "float")}
    Plain.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in of if tag in kept]
        for first, of in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    usual = yaml.SafeLoader.yaml_constructors
    Plain.yaml_constructors = {tag: usual[tag] for tag in (f"{prefix}null", f"{prefix}bool", f"{prefix}seq", f"{prefix}map")}
    Plain.yaml_constructors |= {f"{prefix}str": Plain.word, f"{prefix}int": Plain.number, f"{prefix}float": Plain.number}
    return Plain
