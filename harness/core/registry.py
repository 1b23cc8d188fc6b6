"""Plug-ins are found by looking at folders: one file, or one folder with an `__init__.py`, one docstring, one decorator.

A listing reads the files with `ast` and imports none of them, so it needs no torch; only the file
that is needed is imported. Files and folders whose name begins with `_` are helpers and are passed over.
"""

from __future__ import annotations

import ast
import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from harness.core.errors import UsageError, reason, unknown
from harness.core.plugins import PluginFile, files_of, plugin_files, plugin_name

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds `harness/` and, beside it, the plug-in folders."""


@dataclass(frozen=True)
class Entry:
    """What a listing knows of a plug-in without importing it."""

    name: str
    """The registered name."""
    module: str
    """The module that registers it, such as `methods.kfade`."""
    summary: str
    """The first line of the module's docstring."""
    file: PluginFile | None = None
    """Where it lies, if it is none of the built-in ones."""


T = TypeVar("T")
_left_out: set[Path] = set()


def _leave_out(plugin: PluginFile, why: str) -> None:
    """Say so once, whichever registry comes upon it first."""
    if plugin.path not in _left_out:
        _left_out.add(plugin.path)
        log.warning("%s; it is left out: mend it, or leave it out of --plugins", why.rstrip("."))


class Registry(Generic[T]):
    """Names to plug-ins of one kind.

    Args:
        kind: what one is called in messages, such as "method".
        package: the dotted folder that holds them, such as "methods" or "evals.benchmarks".
        decorator: the decorator whose literal string arguments are the names a file registers.
        listing: the command that lists them.
    """

    def __init__(self, kind: str, package: str, decorator: str, listing: str = "") -> None:
        self.kind = kind
        self.package = package
        self.decorator = decorator
        self.listing = listing
        self._registered: dict[str, T] = {}
        self._entries: dict[tuple[PluginFile, ...], dict[str, Entry]] = {}

    @property
    def folder(self) -> Path:
        """Where this kind's files lie."""
        return ROOT.joinpath(*self.package.split("."))

    @property
    def entries(self) -> dict[str, Entry]:
        """Every plug-in, by name, in alphabetical order: the folder's, then those of `harness.core.plugins`.

        Raises:
            UsageError: if two have one name.
        """
        outside = tuple(plugin_files())
        if outside not in self._entries:
            self._entries[outside] = self._scanned(outside)
        return self._entries[outside]

    def _scanned(self, outside: Sequence[PluginFile]) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        places = [(file, f"{self.package}.{plugin_name(file)}", None) for file in files_of(self.folder)]
        for file, module, plugin in [*places, *((each.path, each.module, each) for each in outside)]:
            try:
                tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
            except (SyntaxError, ValueError, OSError) as error:
                if plugin is None:
                    raise
                _leave_out(plugin, f"the plug-in {file} cannot be read ({reason(error)})")
                continue
            summary = (ast.get_docstring(tree) or "").partition("\n")[0]
            for name in self._names(tree):
                if name in entries:
                    first = entries[name].file or entries[name].module
                    raise UsageError(
                        f"{self.kind} '{name}' is registered twice: {first} and {plugin or module}. "
                        "Give one of them another name, or leave it out of --plugins."
                    )
                entries[name] = Entry(name, module, summary, plugin)
        return dict(sorted(entries.items()))

    def _names(self, tree: ast.Module) -> list[str]:
        calls = [
            call
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            for call in node.decorator_list
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == self.decorator
        ]
        return [a.value for call in calls for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]

    def names(self) -> list[str]:
        """All names, sorted."""
        return list(self.entries)

    def register(self, name: str, plugin: T) -> None:
        """Called by the decorators, while a plug-in's file is being imported."""
        self._registered[name] = plugin

    def get(self, name: str) -> T:
        """The plug-in of that name, importing its file if need be.

        Raises:
            UsageError: if there is none (with the nearest name), or if another installed package
                hides the folder.
        """
        entry = self.entries.get(name)
        if entry and entry.file:
            entry.file.load()  # each time: one that broke off had perhaps registered something before
        elif entry and name not in self._registered:
            self._import(entry.module)
        if name not in self._registered:
            if entry is None:
                raise unknown(self.kind, name, self.entries, self.listing)
            raise UsageError(f"{entry.file or entry.module} did not register {self.kind} '{name}'.")
        return self._registered[name]

    def listed(self) -> list[Entry]:
        """Every plug-in; one from outside that breaks off when it is imported is left out, and a warning names it.

        Raises:
            UsageError: if two have one name.
        """
        kept = []
        for name, entry in self.entries.items():
            if entry.file:
                try:
                    self.get(name)
                except UsageError as error:
                    _leave_out(entry.file, reason(error))
                    continue
            kept.append(entry)
        return kept

    def all(self) -> dict[str, T]:
        """Every plug-in of `listed` by name, each imported.

        Raises:
            UsageError: if two have one name.
        """
        return {entry.name: self.get(entry.name) for entry in self.listed()}

    def digests(self, name: str) -> Mapping[str, str]:
        """SHA-256 of the files of a plug-in from outside, by name; none of a built-in one: the commit names it."""
        entry = self.entries.get(name)
        return entry.file.digests if entry and entry.file else {}

    def _import(self, module_name: str) -> None:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise
            module = importlib.import_module(self.package.partition(".")[0])
        file = Path(module.__file__ or next(iter(module.__path__))).resolve()
        if not file.is_relative_to(self.folder):
            raise UsageError(
                f"the package '{self.package}' of this project is hidden by {file}. "
                f"Uninstall that package, or put {ROOT} first on PYTHONPATH."
            )
