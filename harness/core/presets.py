"""Presets: the published and the tuned settings of methods, by benchmark and model family, out of TOML files.

The project's own lie in `methods/presets/`, those of a plug-in folder in its `presets/`. A file holds entries:

    [[published]]                        # or [[tuned]], [[tuned2]]
    methods = ["npo"]                    # whose settings
    benches = ["tofu05", "tofu10"]       # where they hold; "*" is any benchmark, and one that is named wins over it
    families = ["mini"]                  # of which models: the name up to its `@`
    settings = { lr = 1e-3, beta = 0.1 } # as on the command line; "none" stands for no value
    source = "arXiv:…, repository file"  # whence they are: a paper and its code, or the record of the tries

Entries that hold for the same add up, and none gives again what another gives. What is tuned stands on what is published.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Field

from harness.core.config import JSON, check, resolve, settings
from harness.core.documents import place, read_toml
from harness.core.errors import UsageError, unknown
from harness.core.options import Preset
from harness.core.plugins import files_of, plugin_files, plugin_folders, plugin_name
from harness.core.registry import ROOT

ANY = "*"
"""Any benchmark."""
RANGES = "ranges.toml"
"""The file beside them that says what settings are tried over."""
_Word = Annotated[str, Field(min_length=1)]
_Words = Annotated[tuple[_Word, ...], Field(min_length=1)]
_KINDS: Sequence[Preset] = get_args(Preset)
_WRITTEN = ("methods", "benches", "families", "settings", "source")


def _with_nones(given: Mapping[str, JSON]) -> Mapping[str, JSON]:
    return {name: None if value == "none" else value for name, value in given.items()}


@settings
class PresetEntry:
    """Settings for some methods, benchmarks and model families, with their source."""

    methods: _Words
    """Whose settings."""
    benches: _Words
    """On which benchmarks; `*` is any."""
    families: _Words
    """Of which models: `mini` of `mini@1`."""
    settings: Annotated[Mapping[_Word, JSON], AfterValidator(_with_nones)]
    """What differs from the method's defaults."""
    source: _Word
    """Whence they are: a paper and its code, or the record of the tries."""
    preset: Preset
    """Whether they are published or tuned."""
    where: str
    """File and entry, for messages."""

    def holds_for(self, bench: str, family: str) -> bool:
        """Whether it names the benchmark itself (`*` for what holds on any) and the model family."""
        return bench in self.benches and family in self.families


def preset_files() -> list[Path]:
    """The files that hold presets: the project's own, then those of plug-in folders.

    Raises:
        UsageError: for a plug-in folder that is named and not there.
    """
    return [file for file in _files("*.toml") if file.name != RANGES]


def ranges_files() -> list[Path]:
    """The files that say what settings are tried over, the project's own first; see `harness.core.ranges`.

    Raises:
        UsageError: for a plug-in folder that is named and not there.
    """
    return _files(RANGES)


def _files(pattern: str) -> list[Path]:
    folders = [ROOT / "methods", *plugin_folders()]
    return [file for folder in dict.fromkeys(folders) for file in sorted((folder / "presets").glob(pattern))]


def presets_of(method: str, config: type, methods: Collection[str]) -> list[PresetEntry]:
    """The entries of a method, in the order of files.

    Args:
        method: its name.
        config: its settings class.
        methods: the names of all methods.

    Raises:
        UsageError: for a file that cannot be read, an unknown method in it; for a setting of this one that it does not have, or
            whose value is not allowed.
    """
    # A plug-in that cannot be read is named by the registry, and of a folder one file may be asked for alone: what belongs to
    # the others is no reason to stop.
    beside = [*(file.path for file in plugin_files()), *(file for folder in plugin_folders() for file in files_of(folder))]
    known = {*methods, *map(plugin_name, beside)}
    entries = []
    for entry in (entry for file in preset_files() for entry in _read(file, file.stat().st_mtime_ns)):
        for name in entry.methods:
            if name not in known:
                raise UsageError(f"{entry.where}: {unknown('method', name, known, 'harness list methods')}")
        if method in entry.methods:
            try:
                check(config, entry.settings, owner=method)
            except UsageError as error:
                raise UsageError(f"{entry.where}: {error}") from None
            entries.append(entry)
    return entries


def preset_settings(entries: Sequence[PresetEntry], method: str, bench: str, family: str, preset: Preset) -> dict[str, JSON]:
    """The settings chosen for a benchmark and a model family, the most specific winning; none if nobody chose any.

    Args:
        entries: the method's, of `presets_of`.
        method: its name.
        bench: a benchmark's name.
        family: `mini` of `mini@1`.
        preset: whether the published or the tuned ones.

    Raises:
        UsageError: for tuned ones that the method does not have there; for one that is given twice.
    """
    of_kind = [entry for entry in entries if entry.preset == preset]
    tuned = [entry for entry in of_kind if preset != "published" and entry.holds_for(bench, family)]
    if preset != "published" and not tuned:
        places = [f"{b} on {f}" for e in of_kind for b in e.benches for f in e.families]
        listed = ", ".join(dict.fromkeys(places)) or "nowhere"
        raise UsageError(f"{method} has no {preset} preset for {bench} on {family} (it has one for: {listed}).")
    published = [entry for entry in entries if entry.preset == "published"]
    layers = [[entry for entry in published if entry.holds_for(name, family)] for name in dict.fromkeys((ANY, bench))]
    chosen: dict[str, JSON] = {}
    for layer in [*layers, tuned]:
        chosen |= _together(layer, method)
    return chosen


def _together(layer: Sequence[PresetEntry], method: str) -> dict[str, JSON]:
    """The settings of entries that hold for the same."""
    given: dict[str, PresetEntry] = {}
    for entry in layer:
        for name in entry.settings:
            if name in given:
                raise UsageError(f"{entry.where} gives {name} of {method} again, for models that {given[name].where} names.")
            given[name] = entry
    return {name: entry.settings[name] for name, entry in given.items()}


@cache
def _read(file: Path, changed: int) -> tuple[PresetEntry, ...]:
    """The entries of a file; `changed` is when it was written last."""
    return tuple(_entries(place(file), read_toml(file)))


def _entries(file: str, document: Mapping[str, Any]) -> Iterator[PresetEntry]:
    for kind in document:
        if kind not in _KINDS:
            raise UsageError(f"{file}: {unknown('kind of preset', kind, _KINDS)}")
    for kind in _KINDS:
        tables = document.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise UsageError(f"{file}: {kind} is no list of tables; begin each entry with [[{kind}]].")
        for number, table in enumerate(tables, start=1):
            yield _entry(f"{file}, {kind} entry {number}", kind, table)


def _entry(where: str, kind: Preset, table: Mapping[str, Any]) -> PresetEntry:
    for key in table:
        if key not in _WRITTEN:
            raise UsageError(f"{where}: {unknown('key', key, _WRITTEN)}")
    if missing := [key for key in _WRITTEN if key not in table]:
        raise UsageError(f"{where} lacks {', '.join(missing)}.")
    entry = resolve(PresetEntry, table, {"preset": kind, "where": where}, owner=where)
    if kind != "published" and ANY in entry.benches:
        raise UsageError(f"{where}: settings are tuned on some benchmark; name it in benches.")
    return entry
