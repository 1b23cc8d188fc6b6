"""What the parser refuses, in one sentence: what it is, the nearest name, and the way out.

The parser's own errors carry what is needed: the command that was meant, its flags, and the word that fits nowhere.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from typer.core import TyperGroup

from harness.core.errors import UsageError, cut, unknown

ELSEWHERE = {
    "benchmark": "--bench",
    "config": "a YAML file, without a flag before it",
    "dataset": "--bench",
    "gpu": "--device",
    "learning-rate": "--set lr=VALUE",
    "methods": "--method",
    "metrics": "--evals",
    "num-train-epochs": "--set epochs=VALUE",
    "output": "--results",
    "output-dir": "--results",
    "output-path": "--results",
    "task": "--bench",
    "tasks": "--bench",
}
"""What other tools call it → what to write here."""
_EXTRA = re.compile(r"Got unexpected extra arguments? ?(?:\(s\))? \((.*)\)", re.DOTALL)


class Group(TyperGroup):
    """Commands of which the nearest is told where a name is not known."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that the first word names.

        Raises:
            UsageError: if none is called so.
        """
        if args and args[0] in ("help", "version"):
            raise UsageError(f"there is no command {args[0]}: write {_path(ctx)} --{args[0]}.")
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise unknown("command", args[0], self.commands, f"{_path(ctx)} --help")
        return super().resolve_command(ctx, args)


def in_a_sentence(error: Any, whole: Callable[[], Any]) -> str:
    """The message of an error of the parser's; empty where the help was shown for want of a command.

    Args:
        error: the parser's.
        whole: makes the program with all its commands, to look for a flag in.
    """
    context, kind = getattr(error, "ctx", None), type(error).__name__
    if kind == "BadOptionUsage":  # it knows no command
        return f"{error.option_name} {'lacks its' if 'requires' in error.message else 'takes no'} value."
    if context is None:
        return str(error.format_message())
    if kind == "NoSuchOption":
        return str(_unknown_flag(error.option_name, context, whole))
    if kind == "MissingParameter" and error.param is not None:
        return f"{_path(context)} lacks {_called(error.param)}: {_first(error.param.help or '')}"
    if extra := _EXTRA.match(error.format_message()):
        return _too_many(extra[1], context)
    return str(error.format_message())


def _unknown_flag(flag: str, context: Any, whole: Callable[[], Any]) -> UsageError:
    known = [name for option in _options(context.command) for name in option.opts]
    if of := sorted(path for path, command in _commands(whole()) if flag in _flags(command)):
        if context.command is context.find_root().command:
            return UsageError(f"{flag} is a flag of {_several(of)}: write it after the command's name.")
        return UsageError(f"{_path(context)} has no flag {flag}; it is one of {_several(of)}.")
    ours = ELSEWHERE.get(flag.strip("-").replace("_", "-"), "")
    if ours.split(" ")[0] in known or ours.startswith("a YAML"):
        return UsageError(f"{_path(context)} has no flag {cut(flag)}: write {ours}.")
    meant = {name.strip("-"): name for name in known} | _settings_of(context.command)
    near = difflib.get_close_matches(flag.strip("-").replace("_", "-"), meant, n=1)
    hint = f" Did you mean {meant[near[0]]}?" if near else ""
    return UsageError(f"{_path(context)} has no flag {cut(flag)}.{hint} {_path(context)} --help tells of all.")


def _settings_of(command: Any) -> dict[str, str]:
    """The settings of all methods, and how they are given, where a command takes settings."""
    if not any("--set" in option.opts for option in _options(command)):
        return {}
    from harness.core.config import field_names
    from harness.core.method import METHODS

    names = {name for method in METHODS.all().values() for name in field_names(method.config)}
    return {name.replace("_", "-"): f"--set {name}=VALUE" for name in names}


def _too_many(words: str, context: Any) -> str:
    from harness.running.misplaced import flag_for

    # What was taken for an argument before may be a method just as well.
    arguments = [p.name for p in context.command.params if p.param_type_name == "argument"]
    taken = [str(value) for name in arguments if (value := context.params.get(name)) is not None]
    flags = [flag for word in (*taken, *words.split()) if (flag := flag_for(word))]
    known = {flag for option in _options(context.command) for flag in option.opts}
    advice = f"write {' '.join(flags)}" if flags and flags[0].split()[0] in known else f"see {_path(context)} --help"
    most = "one word" if arguments else "no word"
    return f"{_path(context)} takes {most} without a flag, and there is '{cut(words)}': {advice}."


def _options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and not p.hidden]


def _flags(command: Any) -> set[str]:
    return {flag for option in _options(command) for flag in option.opts} - {"--help", "-h"}


def _commands(group: Any, path: str = "harness") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _path(context: Any) -> str:
    """The command's words, whatever the program was called by."""
    return " ".join(["harness", *context.command_path.split()[len(context.find_root().command_path.split()) :]])


def _called(parameter: Any) -> str:
    flags = [flag for flag in parameter.opts if flag.startswith("--")]
    return str(flags[0] if flags else (parameter.metavar or parameter.name.upper()).strip("[]"))


def _several(paths: Sequence[str]) -> str:
    return " and ".join([", ".join(paths[:-1])] * (len(paths) > 1) + [paths[-1]])


def _first(text: str) -> str:
    """A help's first letter small, with a stop at its end."""
    return f"{text[:1].lower()}{text[1:].rstrip('.')}."
