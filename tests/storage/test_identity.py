"""What names a model: everything that decides what it says, and nothing that does not."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.evaluator import GenerationRequest, Sampling
from harness.core.options import Options
from harness.core.registry import ROOT
from harness.models.sources import CheckpointSource, load_checkpoint, weights_fingerprint
from harness.numerics import identity
from harness.numerics.generation import HFGenerator, generate_all
from harness.numerics.identity import answerer_fingerprint, end_tokens, network_fingerprint, tokenizer_fingerprint
from harness.running.provenance import provenance_of
from harness.storage.cache import Cache
from harness.storage.records import read_spec
from harness.storage.store import Store
from tests.conftest import Nano
from tests.records import SPEC

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@pytest.fixture
def folder(nano: Nano, tmp_path: Path) -> Path:
    """A checkpoint of one's own."""
    return shutil.copytree(nano.folder(), tmp_path / "checkpoint")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "name",
    [
        *("merges.txt", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "qwen.tiktoken", "source.spm"),
        *("chat_template.jinja", "additional_chat_templates/tool_use.jinja", "chat_template.json"),
        *("generation_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("adapter_config.json", "adapter_model.safetensors", "pytorch_model.bin", "tokenizer.json", "config.json"),
    ],
)
def test_every_file_that_decides_what_is_loaded_names_a_folder(folder: Path, name: str):
    before = CheckpointSource(str(folder)).identity
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("something else")
    assert CheckpointSource(str(folder)).identity != before


@pytest.mark.parametrize("name", ["modeling_own.py", "parts/attention.py"])
def test_code_names_a_folder_where_it_may_run(folder: Path, name: str):
    """And nowhere else: a project's own code lies around a checkpoint, too."""
    sources = [CheckpointSource(str(folder), trust_remote_code=runs) for runs in (False, True)]
    before = [source.identity for source in sources]
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("something else")
    assert [source.identity == told for source, told in zip(sources, before, strict=True)] == [True, False]


@pytest.mark.parametrize("name", ["harness.json", "README.md", "LICENSE.txt", "training_args.bin", "trainer_state.json"])
def test_what_nothing_is_loaded_from_does_not(folder: Path, name: str):
    before = CheckpointSource(str(folder)).identity
    (folder / name).write_text("something else")
    assert CheckpointSource(str(folder)).identity == before


def test_a_tokenizer_from_elsewhere_is_named_by_all_its_files_but_no_weights(folder: Path, nano: Nano):
    source = CheckpointSource(str(nano.folder()), tokenizer=str(folder))
    before = source.identity
    (folder / "model.safetensors").unlink()
    assert source.identity == before
    (folder / "merges.txt").write_text("a b")
    assert source.identity != before


def test_running_a_checkpoints_own_code_makes_another_model(folder: Path):
    assert CheckpointSource(str(folder), trust_remote_code=True).identity != CheckpointSource(str(folder)).identity


@pytest.mark.parametrize(
    "auto_map", [{"AutoModelForCausalLM": "some-one/code--own.Model"}, {"AutoTokenizer": ["some-one/code--own.Slow", None]}]
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_lies_in_another_repository_is_named_by_its_commit(
    folder: Path, file: str, auto_map: Any, monkeypatch: pytest.MonkeyPatch
):
    told = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**told, "auto_map": auto_map}))
    source, found = CheckpointSource(str(folder), trust_remote_code=True), []
    for commit in ("a" * 40, "b" * 40):
        monkeypatch.setattr("harness.data.hub._commits", {("model", "some-one/code", "main"): commit})
        assert source.identity["code"] == {"run": True, "some-one/code": commit}
        found.append(source.identity)
    assert found[0] != found[1]


# ---------------------------------------------------------------- in memory

Change = Callable[["PreTrainedModel", "PreTrainedTokenizerBase"], None]


def without_its_post_processor(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )


def with_a_chat_template(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ messages[0].content }}"


def with_another_special_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_special_tokens({"pad_token": "<eos>"})


def with_another_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.generation_config.eos_token_id = [model.generation_config.eos_token_id, 7]


def with_another_rotation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.config.rope_parameters["rope_theta"] = 500_000.0


def with_another_norm(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    model.config.rms_norm_eps = 0.1


BY_TOKENIZER = [without_its_post_processor, with_a_chat_template, with_another_special_token, with_another_end]
BY_CONFIGURATION = [with_another_rotation, with_another_norm]


@pytest.mark.parametrize("change", [*BY_TOKENIZER, *BY_CONFIGURATION])
def test_the_same_weights_with_something_else_answer_under_another_name(folder: Path, change: Change):
    model, tokenizer = load_checkpoint(str(folder), "cpu", "float32")
    weights = weights_fingerprint(model)
    network, answerer = network_fingerprint(weights, model), answerer_fingerprint(weights, model, tokenizer)
    change(model, tokenizer)
    assert weights_fingerprint(model) == weights
    assert (network_fingerprint(weights, model) != network) == (change in BY_CONFIGURATION)
    assert answerer_fingerprint(weights, model, tokenizer) != answerer


def test_a_tokenizer_is_read_once_for_all_measured_points(nano: Nano, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []
    parse = identity.parse_json
    monkeypatch.setattr(identity, "parse_json", lambda text, *rest, **how: read.append(text) or parse(text, *rest, **how))
    identity._whole.cache_clear()
    assert len({identity.tokenizer_fingerprint(nano.tokenizer) for _ in range(3)}) == 1
    assert len(read) == 1


def test_a_record_names_a_tokenizer_by_all_that_decides_its_texts(nano: Nano):
    other = copy.deepcopy(nano.tokenizer)
    other.chat_template = "{{ messages[0].content }}"
    one, another = (provenance_of("harness run", SPEC, each, "w").tokenizer for each in (nano.tokenizer, other))
    assert one == identity.tokenizer_fingerprint(nano.tokenizer)
    assert another != one


def test_the_gpu_that_a_record_names_is_the_one_that_was_used(nano: Nano, monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {device.index if device else 0}")
    made = provenance_of("harness run", SPEC, nano.tokenizer, "w", torch.device("cuda:1"))
    assert made.gpu == "GPU 1"
    assert provenance_of("harness run", SPEC, nano.tokenizer, "w", torch.device("cpu")).gpu is None


def test_another_release_of_a_library_makes_another_name(nano: Nano, monkeypatch: pytest.MonkeyPatch):
    model = nano.model()
    before = network_fingerprint("w", model)
    monkeypatch.setattr("harness.numerics.identity._version", lambda package: f"{package} of tomorrow")
    assert network_fingerprint("w", model) != before


def test_neither_use_nor_place_changes_a_name(folder: Path, tmp_path: Path):
    model, tokenizer = load_checkpoint(str(folder), "cpu", "float32")
    before = answerer_fingerprint("w", model, tokenizer)
    tokenizer(["a", "a a a"], padding=True, truncation=True, max_length=2)
    model.config.use_cache = False
    assert answerer_fingerprint("w", model, tokenizer) == before
    moved = load_checkpoint(str(folder.rename(tmp_path / "elsewhere")), "cpu", "float32")
    assert answerer_fingerprint("w", *moved) == before


def test_a_configuration_that_holds_infinity_has_a_name(nano: Nano):
    model = nano.model()
    model.config.limit = float("inf")
    assert len(network_fingerprint("w", model)) == 16


def test_a_tokenizer_in_python_is_named_by_its_words():
    class Slow:
        special_tokens_map: dict[str, str] = {}  # noqa: RUF012
        chat_template = None

        def __init__(self, *words: str) -> None:
            self.words = words

        def get_vocab(self) -> dict[str, int]:
            return {word: i for i, word in enumerate(self.words)}

    found: list[Any] = [tokenizer_fingerprint(each) for each in (Slow("a"), Slow("b"), Slow("a"))]  # type: ignore[arg-type]
    assert found[0] == found[2] != found[1]


# ---------------------------------------------------------------- ends


@pytest.mark.parametrize(("named", "further"), [(None, []), (5, [5]), ([5, 7], [5, 7]), ([-1, 10**6], [])])
def test_ends_are_the_tokenizers_and_those_of_the_generation_settings(nano: Nano, named: Any, further: list[int]):
    model = nano.model()
    model.generation_config.eos_token_id = named
    assert end_tokens(model, nano.tokenizer) == [nano.tokenizer.eos_token_id, *further]


def test_an_end_that_the_checkpoint_names_ends_answers_and_is_not_shown(nano: Nano, cache: Cache):
    model, tokenizer = nano.model(), nano.tokenizer
    asked = GenerationRequest(("who is it ?",), Sampling(8))
    plain = HFGenerator().generate(model, tokenizer, [asked])[0].split()
    weights = weights_fingerprint(model)
    for place in (0, 2):
        model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(f"▁{plain[place]}")]
        named = answerer_fingerprint(weights, model, tokenizer)
        found = generate_all(HFGenerator(), model, tokenizer, [asked], cache, named)[asked]
        assert found.split() == plain[: plain.index(plain[place])], "neither the end nor what another run had kept"


# ---------------------------------------------------------------- committed names

STORES = [Store(ROOT / "results" / part) for part in ("", "tuning", "equal-damage", "tuned2", "tdec", "wordings")]
SPECS = {place: read_spec(store.document(place)["spec"]) for store in STORES for place in store.places()}


def test_every_committed_record_is_where_its_name_says():
    assert len(SPECS) > 400
    assert {place: spec.folder.as_posix() for place, spec in SPECS.items() if spec.folder.as_posix() != place} == {}


ONE_OF_EACH = {
    (spec.bench, spec.model, spec.method): spec for spec in SPECS.values() if spec.seed == 0 and not spec.evaluator_inputs
}


@pytest.mark.parametrize("which", list(ONE_OF_EACH), ids=str)
def test_a_committed_run_planned_anew_has_the_same_name(which: tuple[str, str, str]):
    from harness.running.plan import plan

    spec = ONE_OF_EACH[which]
    options = Options(
        seed=spec.seed,
        limit=spec.limit,
        device=spec.device,
        dtype=spec.dtype,
        variant=spec.variant,
        retain=spec.retain,
        generator=spec.generator,
        points=spec.points,
        evals=tuple(spec.evaluators),
        budgets=spec.budgets,
    )
    preset = spec.form or "published"
    again = plan(spec.bench, spec.model, spec.method, {}, options, recorded=spec.config, preset=preset).spec
    assert again.run_id == spec.run_id
