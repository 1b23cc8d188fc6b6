"""Methods whose work processes share: the numbers of one process, and the same bits on all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.core.method import UnlearningContext
from harness.data.rows import encode, pad_id
from harness.numerics import group
from harness.numerics.likelihood import AnswerDistributions
from tests import launched

PROCESSES = 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """What one process comes to, it comes to with the thread that each of several has: products are then summed in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three processes have written what they came to."""
    folder = tmp_path_factory.mktemp("launched")
    done = launched.launch(PROCESSES, str(folder), env={"HARNESS_CACHE": str(folder / "none")})
    assert done.returncode == 0, done.stderr
    return folder


def test_all_processes_come_to_the_same_bits(folder: Path):
    first, *others = (load_file(folder / f"{rank}.safetensors") for rank in range(PROCESSES))
    assert [name for other in others for name in first if not torch.equal(first[name], other[name])] == []


def test_shared_work_gives_the_numbers_of_one_process(folder: Path, tmp_path: Path):
    launched.register()
    alone, shared = launched.outcomes(tmp_path, launched.CASES), load_file(folder / "0.safetensors")
    assert alone.keys() == shared.keys()
    for name, expected in alone.items():
        rounding = {"rtol": 1e-4, "atol": 1e-6} if name.endswith("logged") else {"rtol": 1e-5, "atol": 5e-6}
        torch.testing.assert_close(shared[name], expected, msg=lambda text, name=name: f"{name}: {text}", **rounding)


def test_what_is_compared_has_moved(folder: Path):
    shared = load_file(folder / "0.safetensors")
    weights = [value for name, value in shared.items() if name.endswith("weights")]
    assert all(not torch.equal(one, other) for i, one in enumerate(weights) for other in weights[:i])


def test_sharded_weights_come_to_the_numbers_of_one_process(tmp_path: Path):
    done = launched.launch(2, str(tmp_path), env={"HARNESS_CACHE": str(tmp_path / "none"), **launched.FSDP})
    assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    alone = launched.outcomes(tmp_path, launched.SHARDED)
    assert alone.keys() == first.keys()
    for name, expected in alone.items():
        # Adam divides what rounding leaves of a gradient that is nearly 0 by its size.
        rounding = {"rtol": 1e-4, "atol": 1e-6} if name.endswith("logged") else {"rtol": 1e-5, "atol": 3e-5}
        torch.testing.assert_close(first[name], expected, msg=lambda text, name=name: f"{name}: {text}", **rounding)


def test_a_process_by_itself_has_all_rows_and_sums_nothing():
    with group.together():
        assert (group.size(), group.share([1, 2, 3]), group.share_of(3), group.summed(2.5)) == (1, [1, 2, 3], None, [2.5])


def test_a_share_of_distributions_is_not_measured_alone(nano_context: UnlearningContext, monkeypatch: pytest.MonkeyPatch):
    model, tokenizer = nano_context.model, nano_context.tokenizer
    rows = encode(nano_context.stages[0].retain[:4], tokenizer)
    monkeypatch.setattr(group, "size", lambda: 2)
    before = AnswerDistributions(model, rows, pad_id(tokenizer))
    monkeypatch.undo()
    for measure in (before.kl, before.kl_sums):
        with pytest.raises(ValueError, match="2 processes share these examples, and 1 would measure"):
            measure(model)
