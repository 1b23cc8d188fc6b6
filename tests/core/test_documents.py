"""JSON and YAML out of files: plain data, or one sentence that names file, line and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.core.documents import Malformed, Unreadable, json_lines, parse_json, read_json, read_text, read_yaml, whole_number
from harness.core.errors import UsageError, cut, unknown


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[" * 100_000 + "]" * 100_000, "recursion limit"),
        ('{"a":' * 1000 + "1" + "}" * 1000, "recursion limit"),
        ("9" * 5000, "number out of range"),
        ("-" + "9" * 5000, "number out of range"),
        (r'"\ud800"', "hex escape"),
        (r'{"\udc00": 1}', "line 1"),
        ('"\ud800"', "half of a surrogate pair"),
        ("NaN", "line 1"),
        ("[-Infinity]", "line 1"),
        ('{"a": [1, 1e999]}', "line 1: a number that is larger than any float"),
        ("-1E+0400", "larger than any float"),
        ("9" * 400 + ".0", "larger than any float"),
        ("", "line 1"),
        ("{'a': 1}", "line 1"),
        ('{"a": 1}\n\n{', r"line 3.*trailing characters at column 1"),
    ],
    ids=lambda value: value[:12],
)
def test_json_that_could_not_be_written_again_is_refused(text: str, what: str):
    with pytest.raises(Malformed, match=rf"^run\.json, (?s:.*){what}"):
        parse_json(text, "run.json")


@pytest.mark.parametrize("value", [None, True, 1e-300, 2**200, "ü😀\0", [], [[[]]], {"a": {"b": [1, 2.5, "c"]}}])
def test_json_says_what_it_says(value: object):
    assert parse_json(json.dumps(value), "x") == parse_json(json.dumps(value, ensure_ascii=False), "x") == value


def test_numbers_that_are_not_finite_are_read_where_they_are_told_later():
    assert parse_json("[NaN, Infinity]", "a log", finite=False)[1] == float("inf")


def test_lines_are_counted_on():
    with pytest.raises(Malformed, match=r"^rows, line 8: not valid JSON"):
        parse_json("{\n}}", "rows", line=7)


def test_lines_end_as_any_system_ends_them(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    for end in (b"\n", b"\r\n", b"\r"):
        path.write_bytes(b"\xef\xbb\xbf" + end.join([b'{"a": "\xe2\x80\xa8"}', b"", b"2", b""]))
        assert list(json_lines(path)) == [(1, {"a": "\u2028"}), (3, 2)]


def test_what_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "latin.json").write_bytes(b'"\xe4"')
    for read in (read_text, read_json, read_yaml, lambda path: list(json_lines(path))):
        with pytest.raises(Unreadable, match=r"nowhere.json cannot be read: No such file"):
            read(tmp_path / "nowhere.json")
        with pytest.raises(Malformed, match=r"latin.json is no UTF-8 text \(byte 1\)"):
            read(tmp_path / "latin.json")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: &x [1, *x]", "line 1.*\\*x refers to another place"),
        (BOMB, "line 2.*refers to another place"),
        ("a: 1\nb: 2\na: 3", "line 3.*'a' stands twice"),
        ("a: " + "[" * 100_000, "nested more than 100 levels"),
        ("- " * 20_000, "nested more than 100 levels"),
        ("a: " + "9" * 5000, "too many digits"),
        ("a: 0x" + "f" * 5000, "too many digits"),
        ("a: 1:" + "59:" * 300 + "1.5", "too many digits"),
        ("a: .nan", "not finite"),
        ("a: -.inf", "not finite"),
        (r'a: "\ud800"', "a character that no text has"),
        (r'a: "\0"', "a character that no text has"),
        ("1: 2", "no word; put it into quotes"),
        ("on: 2", "no word; put it into quotes"),
        ("? [1]\n: 2", "no word"),
        ("a: !!set {a: }", "the tag .* is not known"),
        ("a: !!bool x", "the tag .* is not known"),
        ("a: !!python/object/apply:os.getpid []", "the tag .* is not known"),
        ("a: 1\n---\nb: 1", "line 2.*another document"),
        ("method: [", "cannot be read as YAML"),
        ("\x01", "cannot be read as YAML"),
    ],
    ids=lambda value: value[:12],
)
def test_yaml_that_is_no_plain_tree_is_refused(text: str, what: str, tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Malformed, match=r"sweep\.yaml.*cannot be read as YAML") as caught:
        read_yaml(path)
    assert caught.match(rf"(?s:.*){what}")


def test_yaml_gives_what_json_could_hold(tmp_path: Path):
    path = tmp_path / "sweep.yaml"
    path.write_text("a: 2026-01-01\nb: [1, 2.5, yes, ~, 1e-4]\nc: {d: '1'}\n<<: x", encoding="utf-8")
    found = read_yaml(path)
    assert found == {"a": "2026-01-01", "b": [1, 2.5, True, None, "1e-4"], "c": {"d": "1"}, "<<": "x"}
    assert json.loads(json.dumps(found)) == found
    path.write_text("")
    assert read_yaml(path) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("007", 7), ("9" * 18, 10**18 - 1), ("9" * 19, None), ("٣", None), ("³", None), ("1_0", None), ("+1", None)]
    + [(text, None) for text in ("", " 1", "-1", "1\n", "1.0", "9" * 5000)],
)
def test_a_whole_number_is_plain_digits(text: str, number: int | None):
    assert whole_number(text) == number


def test_what_a_message_quotes_is_cut():
    assert cut("x" * 100) == "x" * 100
    assert cut("a" * 1000 + "b" * 1000, 30) == "a" * 20 + "… (1,970 characters left out) …" + "b" * 10
    told = str(unknown("method", "x" * 20_000, ["ga"]))
    assert len(told) < 200
    assert told.startswith("no method called 'xxx")
    assert told.endswith("There are: ga.")
