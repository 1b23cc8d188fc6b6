"""Commands whose flags are generated: each field of a request, and of what says how a command is done, becomes one.

@command(app, RunRequest, RunControl)
def run(words: Words, control: RunControl) -> None: ...
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from harness.core.errors import UsageError, cut
from harness.core.fields import Field, Given, declared, default, flag_of, helps, read


@dataclass(frozen=True)
class Words:
    """What was given on the command line, field by field."""

    typed: Mapping[str, Given] = field(default_factory=dict)
    """By flags."""
    environment: Mapping[str, Given] = field(default_factory=dict)
    """By environment variables, which anything else wins over."""


def command(app: typer.Typer, *kinds: type, name: str | None = None, panel: str | None = None) -> Callable[[Any], Any]:
    """Register a function as a command.

    Args:
        app: where.
        kinds: the request's class, then that of what says how it is done. The function is called with `Words` for the first
            one and with an object of the second; further parameters are its own flags and arguments.
        name: the command's; the function's if not given.
        panel: under which heading of `harness --help` it stands.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())
        arguments = [p for p in own[len(kinds) :] if _is_argument(p)]
        others = [p for p in own[len(kinds) :] if not _is_argument(p)]
        made = [_parameter(kind, each, how) for kind in kinds for each, how in declared(kind).items()]

        def called(context: typer.Context, **values: Any) -> None:
            words = [_words(context, kind, values) for kind in kinds]
            built: list[Any] = [
                read(kind, each.environment, each.typed) for kind, each in zip(kinds[1:], words[1:], strict=True)
            ]
            function(*words[:1], *built, **values)

        context = inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*arguments, *made, *others)]
        called.__signature__ = inspect.Signature([context, *keyword])  # type: ignore[attr-defined]
        called.__annotations__ = {}
        called.__name__, called.__doc__ = function.__name__, function.__doc__
        aliases = {alias: flag_of(each, how) for kind in kinds for each, how in declared(kind).items() for alias in how.aliases}
        app.command(name, cls=_parser(aliases, kinds), rich_help_panel=panel)(called)
        return function

    return register


def _parser(aliases: Mapping[str, str], kinds: Sequence[type]) -> type[TyperCommand]:
    """A command that still takes flags' earlier names, and says what to type for a setting that is written as a flag."""

    class Parser(TyperCommand):
        def parse_args(self, context: Any, args: list[str]) -> list[str]:
            renamed = [_renamed(word, aliases) for word in args]
            if "settings" in declared(kinds[0]):
                _hint_at_settings(renamed, {flag for option in self.params for flag in option.opts})
            return super().parse_args(context, renamed)

    return Parser


def _renamed(word: str, aliases: Mapping[str, str]) -> str:
    flag, equals, value = word.partition("=")
    return f"{aliases[flag]}{equals}{value}" if flag in aliases else word


def _hint_at_settings(words: Sequence[str], flags: set[str]) -> None:
    """Refuse `--lr 1e-4`, as other tools write it, with what to write here.

    Raises:
        UsageError: for a flag that is none and has the name of a method's setting.
    """
    from harness.core.config import field_names
    from harness.core.method import METHODS

    for word, following in zip(words, [*words, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or flag in flags or not name.isidentifier():
            continue
        if any(name in field_names(method.config) for method in METHODS.all().values()):
            value = value if equals else following
            raise UsageError(f"{flag} is a method's setting, not a flag: write --set {name}={cut(value) or 'VALUE'}.")


def _is_argument(parameter: inspect.Parameter) -> bool:
    metadata = getattr(parameter.annotation, "__metadata__", ())
    return any(type(each) is type(typer.Argument()) for each in metadata)


def _parameter(kind: type, name: str, how: Field) -> inspect.Parameter:
    """A field as typer wants it: text, or texts, or a switch; `Field.read` makes its value."""
    usual = default(kind, name) if not how.repeated else None
    shown = ",".join(map(str, usual)) if isinstance(usual, tuple) else usual
    tail = "" if how.switch or shown in (None, "") else f" [default: {shown}]"
    option = typer.Option(
        *(flag for flag in (flag_of(name, how), how.short) if flag),
        help=f"{helps(kind).get(name, '')}{tail}",
        rich_help_panel=how.panel,
        metavar=None if how.switch else how.metavar,
        show_default=False,
        envvar=how.variable or None,
        autocompletion=_completion(how.completes) if how.completes else None,
    )
    annotation = bool if how.switch else list[str] | None if how.repeated else str | None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if how.switch else None,
        annotation=Annotated[annotation, option],
    )


def _words(context: typer.Context, kind: type, values: dict[str, Any]) -> Words:
    """Takes a class's fields out of what typer read."""
    typed: dict[str, Given] = {}
    environment: dict[str, Given] = {}
    for name, how in declared(kind).items():
        value, source = values.pop(name), context.get_parameter_source(name)
        where = source.name if source else ""
        if where not in ("COMMANDLINE", "ENVIRONMENT"):
            continue
        layer, said = (typed, flag_of(name, how)) if where == "COMMANDLINE" else (environment, how.variable)
        origin = "flag" if where == "COMMANDLINE" else "environment"
        layer[name] = Given(value, said if how.switch or how.repeated else f"{said} {cut(str(value))}", origin)  # type: ignore[arg-type]
    return Words(typed, environment)


# ---------------------------------------------------------------- completion


def _completion(what: str) -> Callable[[str], list[str]]:
    """What a shell offers; the last of several names parted by commas is completed."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in _known(what) if name.startswith(last)]

    return complete


def _known(what: str) -> Sequence[str]:
    if "|" in what:
        return what.split("|")
    from harness.core.benchmark import BENCHMARKS
    from harness.core.evaluator import EVALUATORS
    from harness.core.figure import FIGURES
    from harness.core.method import METHODS
    from harness.core.registry import Registry

    if what == "models":
        return list(dict.fromkeys(name for bench in BENCHMARKS.all().values() for name in bench.models if name[0] != "<"))
    if what == "templates":
        names = [name for bench in BENCHMARKS.all().values() for name in getattr(bench, "templates", ())]
        return list(dict.fromkeys([*names, "chat"]))
    registries: dict[str, Registry[Any]] = {"methods": METHODS, "benches": BENCHMARKS, "evals": EVALUATORS, "figures": FIGURES}
    return registries[what].names()
