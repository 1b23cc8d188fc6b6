"""Where plug-ins lie besides the built-in folders: folders that somebody names, and installed packages.

`HARNESS_PLUGINS` holds folders or files, parted as in PATH (`--plugins DIR` adds to it, so that worker processes find them
too); an installed package names a module under the entry point group `harness.plugins`. Nothing is imported until it is used.
A record names the code of the plug-ins behind it by digests (`PluginFile.digests`).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from harness.core.errors import UsageError, reason

VARIABLE = "HARNESS_PLUGINS"
GROUP = "harness.plugins"


@dataclass(frozen=True)
class PluginFile:
    """A file that may register something."""

    path: Path
    """Where it is."""
    module: str
    """The name it is imported by."""
    installed: bool = False
    """Whether that name is an installed package's; else the file is loaded from where it is."""

    def __str__(self) -> str:
        return str(self.path)

    @property
    def digests(self) -> Mapping[str, str]:
        """SHA-256 of the file and each helper beside it (its name begins with `_`), by file name; of a folder all its files.

        They are of what was loaded: who edits a file meanwhile goes on with the code it had.
        """
        return _digests(self.path, self.alone)

    @property
    def alone(self) -> bool:
        """Whether it is a module installed by itself: it lies among other people's packages."""
        return self.installed and "." not in self.module and not _is_folder(self.path)

    def load(self) -> ModuleType:
        """Import it, once.

        Raises:
            UsageError: naming the file and the error, if its code breaks off.
        """
        if self.module in sys.modules:
            return sys.modules[self.module]
        _ = self.digests
        try:
            if self.installed:
                return importlib.import_module(self.module)
            return _load_file(self.path, self.module)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"the plug-in {self.path} cannot be imported ({reason(error)}).") from error


@cache
def _digests(path: Path, alone: bool) -> dict[str, str]:
    beside = [] if alone else path.parent.rglob("*.py") if _is_folder(path) else path.parent.glob("_*.py")
    files = dict.fromkeys([path, *sorted(beside)])
    return {file.relative_to(path.parent).as_posix(): sha256(file.read_bytes()).hexdigest() for file in files}


def _is_folder(file: Path) -> bool:
    """Whether a plug-in is a folder, whose `__init__.py` this is."""
    return file.name == "__init__.py"


def _load_file(path: Path, name: str) -> ModuleType:
    package = [str(path.parent)] if _is_folder(path) else None  # its other files: `from .rows import …`
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=package)
    assert spec is not None, "a .py file has one"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent.parent if package else path.parent)
    if folder not in sys.path:  # a plug-in may be several files
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def files_of(folder: Path) -> list[Path]:
    """The files of a folder that may register something: its own, and the `__init__.py` of a folder in it.

    A plug-in is a file or, where it has several parts, a folder. What begins with `_` is a helper.
    """
    return sorted([*folder.glob("[!_]*.py"), *folder.glob("[!_]*/__init__.py")])


def plugin_name(file: Path) -> str:
    """What a plug-in is called: its file's name, or that of the folder whose `__init__.py` it is."""
    return file.parent.name if _is_folder(file) else file.stem


def add_plugins(*paths: str | Path) -> None:
    """Look for plug-ins in these folders or files too, here and in the processes that this one starts.

    Raises:
        UsageError: for one that is not there.
    """
    known = _named()
    for path in paths:
        place = Path(path).expanduser().absolute()
        if not place.exists():
            raise UsageError(f"--plugins {path}: there is no such file or folder. Name a folder of Python files, or one file.")
        if place not in known:
            known.append(place)
    os.environ[VARIABLE] = os.pathsep.join(map(str, known))


def plugin_environment() -> dict[str, str]:
    """What the environment of a process elsewhere must hold so that it finds the same plug-ins, under the same paths."""
    return {VARIABLE: os.pathsep.join(map(str, places))} if (places := _named()) else {}


def _named() -> list[Path]:
    return [Path(part).expanduser().absolute() for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]


def plugin_files() -> list[PluginFile]:
    """Every file that may register something, besides the built-in ones.

    Raises:
        UsageError: for a folder that is named and not there.
    """
    files = [_file(file) for place in _named() for file in _files(place)]
    return [*dict.fromkeys(files), *_installed()]  # a folder, and a file of it, may both be named


def plugin_folders() -> list[Path]:
    """Every folder that holds plug-ins, besides the built-in ones: what belongs to them and is no code lies beside them.

    Raises:
        UsageError: for a folder that is named and not there.
    """
    return list(dict.fromkeys([*(place.resolve() for place in _named() if place.is_dir()), *_folders(plugin_files())]))


def _folders(files: Iterable[PluginFile]) -> list[Path]:
    return [file.path.parent for file in files if not file.alone]


def _files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
    elif place.is_dir():
        yield from _registering(place)
    else:
        raise UsageError(f"{VARIABLE} names {place}, and there is no such file or folder. Mend it, or unset it.")


def _registering(folder: Path) -> Iterator[Path]:
    """The files of a folder that may register something; where the folder is itself a plug-in, its `__init__.py` too."""
    yield from (file for file in [folder / "__init__.py"] if file.is_file())
    yield from files_of(folder)


def _file(path: Path) -> PluginFile:
    place = path.resolve()
    return PluginFile(place, f"harness_plugin_{plugin_name(place)}_{sha256(str(place).encode()).hexdigest()[:8]}")


@cache
def _installed() -> tuple[PluginFile, ...]:
    """Modules of installed packages; a package is itself one, and every file and folder in it that does not begin with `_`."""
    files: list[PluginFile] = []
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.value):
        spec = importlib.util.find_spec(point.module)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            files += [PluginFile(file, f"{point.module}.{plugin_name(file)}", True) for file in files_of(Path(folder))]
        if spec and spec.origin:
            files.append(PluginFile(Path(spec.origin), point.module, True))
    return tuple(files)
