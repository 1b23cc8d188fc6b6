"""What is written down obeys the umask, and a disk that is full while Rust writes is one sentence like any other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.core.errors import UsageError
from harness.models.saving import save_tensors
from harness.models.sources import save_checkpoint
from harness.storage.cache import Cache, disk_errors
from tests.conftest import Nano

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).T}


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def rust_ends_with(number: int) -> None:
    with disk_errors("the folder X", "Choose another"):
        raise RuntimeError(f"I/O error: of some kind (os error {number})")


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_tensors_are_written_for_whom_the_umask_says(umask: int, tmp_path: Path):
    from safetensors.torch import load_file

    save_tensors(TENSORS, tmp_path / "a.safetensors", {"run": "abc"})
    assert mode(tmp_path / "a.safetensors") == 0o666 & ~umask
    assert load_file(tmp_path / "a.safetensors")["a"].equal(TENSORS["a"])


def test_a_file_that_is_there_keeps_its_mode(tmp_path: Path):
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "a.safetensors").chmod(0o640)
    save_tensors(TENSORS, tmp_path / "a.safetensors")
    assert mode(tmp_path / "a.safetensors") == 0o640


def test_every_file_of_a_checkpoint_is_for_whom_the_umask_says(umask: int, nano: Nano, tmp_path: Path):
    save_checkpoint(nano.model(), nano.tokenizer, tmp_path / "kept", {})
    assert (tmp_path / "kept" / "model.safetensors").is_file()
    assert {mode(file) for file in (tmp_path / "kept").iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("name", ["SafetensorError", "Exception"], ids=["safetensors", "tokenizers"])
def test_a_full_disk_is_told_in_one_sentence_also_where_rust_writes(name: str, cache: Cache):
    kind: type[Exception] = type(name, (Exception,), {})

    def make(folder: Path) -> None:
        raise kind("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(UsageError, match="no space is left on the disk of the cache"):
        cache.get("curvature", {"a": 1}, make)
    assert not any((cache.root / "making").iterdir())


def test_a_folder_that_rust_may_not_write_is_told_in_one_sentence():
    with pytest.raises(UsageError, match=r"the folder X cannot be written: Read-only file system\. Choose"):
        rust_ends_with(30)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="os error 4711"):
        rust_ends_with(4711)


def test_half_a_file_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "full")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(UsageError, match="no space"), disk_errors("the disk", "Free some"):
        save_tensors(TENSORS, tmp_path / "a.safetensors")
    assert not any(tmp_path.iterdir())
