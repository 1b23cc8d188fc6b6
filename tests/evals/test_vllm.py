"""vLLM as a back end: which is picked, what its process is sent, how it fails and ends; and, where it is installed, its answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from evals._lm_eval import Scored, by_vllm
from evals.multiple_choice import log_likelihoods
from harness.core.errors import UsageError
from harness.core.evaluator import EvalContext, EvalPlan, GenerationRequest, Sampling
from harness.core.method import UnlearningContext
from harness.core.registry import ROOT
from harness.numerics.generation import HFGenerator, VLLMGenerator, choose_generator, pick_generator, served
from harness.numerics.vllm import _environment
from harness.storage.cache import Cache
from tests.clock import A_HANG
from tests.conftest import WORDS, WORLD, ContextMaker, Nano, with_choices
from tests.numerics.test_generation import QUESTIONS, Counting, request

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# ---------------------------------------------------------------- which back end


@pytest.mark.parametrize(
    ("device", "installed", "picked"),
    [
        ("cuda", True, "vllm"),
        ("cuda:1", True, "vllm"),
        ("cuda:all", True, "hf"),
        ("cpu", True, "hf"),
        ("mps", True, "hf"),
        ("cuda", False, "hf"),
    ],
)
def test_auto_takes_vllm_where_it_is_and_a_gpu_is(device: str, installed: bool, picked: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: (name == "vllm" and installed) or None)
    assert pick_generator("auto", device) == picked
    assert choose_generator("auto", device).name == picked
    assert pick_generator("hf", device) == "hf"


def test_vllm_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert pick_generator("vllm", "cpu") == "vllm", "a run that is done is shown without it"
    with pytest.raises(UsageError, match=r"needs vLLM, which is not installed here: pip install vllm .*--generator hf"):
        choose_generator("vllm")
    with pytest.raises(UsageError, match=r"--generator vllm answers on one GPU.* Take --generator hf"):
        pick_generator("vllm", "cuda:all")


# ---------------------------------------------------------------- its process

STAND_IN = """
import json, os, pathlib
print("vLLM says what it likes")
here = pathlib.Path(__file__).parent

class SamplingParams:
    def __init__(self, **told):
        self.told = told

class Output:
    def __init__(self, ids, candidates):
        self.token_ids = ids
        self.outputs = [self]
        self.logprobs = [{token: Likelihood(token) for token in candidates}]

class Likelihood:
    def __init__(self, token):
        self.logprob = -token / 100

class LLM:
    def __init__(self, model, **told):
        files = sorted(os.listdir(model))
        (here / "started.json").write_text(json.dumps({"pid": os.getpid(), "files": files, **told}))

    def generate(self, prompts, sampling, use_tqdm):
        with (here / "asked.jsonl").open("a") as file:
            for prompt, how in zip(prompts, sampling, strict=True):
                file.write(json.dumps({**prompt, **how.told}) + chr(10))
        return [
            Output([*p["prompt_token_ids"][-2:], *h.told.get("stop_token_ids", [])], h.told.get("logprob_token_ids", []))
            for p, h in zip(prompts, sampling, strict=True)
        ]
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `vllm` of a few lines that repeats a prompt's last two tokens; only the child finds it."""
    (tmp_path / "vllm.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return tmp_path


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]


def test_vllm_is_sent_the_tokens_that_hugging_face_reads(nano: Nano, stand_in: Path):
    requests = [request(QUESTIONS[0]), request(QUESTIONS[1], tokens=5), request(QUESTIONS[0]), request()]
    found = VLLMGenerator("cpu").generate(nano.model(), nano.tokenizer, requests)
    ids = [nano.tokenizer(q)["input_ids"] for q in QUESTIONS[:2]]
    assert [each["prompt_token_ids"] for each in told(stand_in)] == ids, "equal ones once, in their order"
    assert [each["max_tokens"] for each in told(stand_in)] == [8, 5]
    assert found == [nano.tokenizer.decode(ids[i][-2:]) for i in (0, 1, 0)] + [""]
    started = json.loads((stand_in / "started.json").read_text())
    assert started["max_model_len"] == max(len(ids[0]) + 8, len(ids[1]) + 5)
    assert (started["dtype"], started["skip_tokenizer_init"], started["generation_config"]) == ("float32", True, "vllm")
    assert {"config.json", "model.safetensors"} <= set(started["files"])
    with pytest.raises(ProcessLookupError):
        os.kill(started["pid"], 0)


def test_vllm_stops_at_the_ends_that_the_checkpoint_names_and_does_not_show_them(nano: Nano, stand_in: Path):
    model, end = nano.model(), nano.tokenizer.eos_token_id
    (ids,) = [nano.tokenizer(QUESTIONS[0])["input_ids"]]
    model.generation_config.eos_token_id = [end, ids[-1]]
    found = VLLMGenerator("cpu").generate(model, nano.tokenizer, [request(QUESTIONS[0])])
    assert [each["stop_token_ids"] for each in told(stand_in)] == [[end, ids[-1]]]
    assert found == [nano.tokenizer.decode(ids[-2:-1])]


def test_a_second_turn_is_asked_of_the_same_process_after_the_first(nano: Nano, stand_in: Path):
    VLLMGenerator("cpu").generate(nano.model(), nano.tokenizer, [request(QUESTIONS[0], QUESTIONS[1])])
    first, second = told(stand_in)
    said = nano.tokenizer.decode(first["prompt_token_ids"][-2:])
    assert second["prompt_token_ids"] == nano.tokenizer(QUESTIONS[0] + said + QUESTIONS[1])["input_ids"]


def test_what_vllm_draws_is_seeded_by_turns_and_seed_alone(nano: Nano, stand_in: Path):
    def drawn(question: str, seed: int) -> GenerationRequest:
        return GenerationRequest((question,), Sampling(8, temperature=0.7, seed=seed))

    for asked in ([drawn(QUESTIONS[0], 0), drawn(QUESTIONS[0], 1)], [drawn(QUESTIONS[1], 0), drawn(QUESTIONS[0], 0)]):
        VLLMGenerator("cpu").generate(nano.model(), nano.tokenizer, asked)
    seeds = [each["seed"] for each in told(stand_in)]
    assert seeds[0] == seeds[3]
    assert len(set(seeds)) == 3
    assert {each["temperature"] for each in told(stand_in)} == {0.7}


def test_a_checkpoints_own_settings_do_not_reach_vllm_and_stay_as_they_were(nano: Nano, stand_in: Path):
    model = nano.model()
    own = model.generation_config
    own.update(temperature=0.5, do_sample=False)  # transformers refuses to save such a pair
    VLLMGenerator("cpu").generate(model, nano.tokenizer, [request(QUESTIONS[0])])
    assert model.generation_config is own


def test_nothing_asked_starts_no_vllm(nano: Nano, stand_in: Path):
    assert VLLMGenerator("cpu").generate(nano.model(), nano.tokenizer, [request()]) == [""]
    assert VLLMGenerator("cpu").generate(nano.model(), nano.tokenizer, []) == []
    assert not (stand_in / "started.json").exists()


def test_a_conversation_longer_than_the_models_positions_is_refused(nano: Nano, stand_in: Path):
    with pytest.raises(UsageError, match=r"vLLM goes no further than 128 here\. Take --generator hf"):
        VLLMGenerator("cpu").generate(nano.model(), nano.tokenizer, [request(QUESTIONS[0], tokens=128)])
    assert not (stand_in / "started.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("class LLM:", "raise SystemExit('no memory')\nclass LLM:"), "did not come up with this model"),
        (("        with (here", "        raise SystemExit('no memory')\n        with (here"), "broke off"),
    ],
    ids=["at the start", "on the way"],
)
def test_a_vllm_that_fails_shows_its_last_words_and_the_way_out(
    nano: Nano, stand_in: Path, change: tuple[str, str], said: str, caplog: pytest.LogCaptureFixture
):
    (stand_in / "vllm.py").write_text(STAND_IN.replace(*change))
    with pytest.raises(UsageError, match=rf"vLLM {said}.*--generator hf"):
        VLLMGenerator("cpu").generate(nano.model(), nano.tokenizer, [request(QUESTIONS[0])])
    assert "vLLM's last words:\n" in caplog.text
    assert "no memory" in caplog.text


def test_a_vllm_that_never_comes_up_is_given_up(nano: Nano, stand_in: Path, monkeypatch: pytest.MonkeyPatch):
    (stand_in / "vllm.py").write_text("import time\ntime.sleep(6000)")
    monkeypatch.setattr("harness.numerics.vllm.SECONDS_TO_START", 0.5)
    with pytest.raises(UsageError, match="did not come up"):
        VLLMGenerator("cpu").generate(nano.model(), nano.tokenizer, [request(QUESTIONS[0])])


@pytest.mark.parametrize(
    ("device", "visible", "seen"),
    [("cpu", "0", ""), ("cuda", None, "0"), ("cuda:1", None, "1"), ("cuda:1", "4,5", "5"), ("cuda", "GPU-a", "GPU-a")],
)
def test_vllm_sees_the_models_gpu_alone(device: str, visible: str | None, seen: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _environment(device)["CUDA_VISIBLE_DEVICES"] == seen


def test_the_model_before_unlearning_is_not_put_on_the_gpu_for_vllm(cache: Cache):
    from harness.running.measuring import _BaseGenerator

    placed = []

    class Source:
        def load(self, cache: Cache, device: str, dtype: str) -> tuple[Any, None]:
            placed.append(device)
            return "the model", None

    class Model:
        dtype = "torch.bfloat16"
        device = "cuda:1"

    for name in ("vllm", "hf"):
        asked: Any = _BaseGenerator(Counting(), Source(), cache, name)  # type: ignore[arg-type]
        assert asked.generate(Model(), None, [request("a")]) == ["the model says 0"]
    assert placed == ["cpu", "cuda:1"]


def with_vllm(context: UnlearningContext, device: str) -> EvalContext:
    return EvalContext(context, EvalPlan(context.problem, generator="vllm", device=device), ())


def test_choices_are_scored_by_their_tokens_and_a_beginning_is_read_once(make_context: ContextMaker, stand_in: Path):
    context = with_vllm(make_context(), "cpu")
    requests: list[Scored] = [(("", ""), [5, 6], [1]), (("", ""), [5, 6], [2, 7]), (("", ""), [8], [1])]
    found = by_vllm(context, requests)
    assert [nats for nats, _ in found] == pytest.approx([-0.01, -0.09, -0.01])
    asked = [(each["prompt_token_ids"], each["logprob_token_ids"]) for each in told(stand_in)]
    assert asked == [([5, 6], [1, 2]), ([5, 6, 2], [7]), ([8], [1])]
    assert {each["max_tokens"] for each in told(stand_in)} == {1}
    assert json.loads((stand_in / "started.json").read_text())["max_model_len"] == 4


def test_of_a_context_that_is_too_long_the_end_is_read(make_context: ContextMaker, stand_in: Path):
    by_vllm(with_vllm(make_context(), "cpu"), [(("", ""), list(range(1, 300)), [1])])
    [asked] = told(stand_in)
    assert asked["prompt_token_ids"] == list(range(173, 300)), "127 of the nano model's 128 positions, and one to come"


PARENT = """
import os, time
from harness.storage.temporary import temporary_file
from harness.core.signals import stop_on_signals
from harness.numerics.vllm import child

stop_on_signals()
with temporary_file() as said, child([{kind!r}, "{{}}"], os.environ, said):
    time.sleep(6000)
"""
LONG = """
import os, pathlib, subprocess, time
other = subprocess.Popen(["sleep", "6000"])
here = pathlib.Path({here!r})
(here / "writing").write_text(f"{{os.getpid()}} {{other.pid}}")
(here / "writing").rename(here / "pids")
time.sleep(6000)
"""


@pytest.mark.parametrize("sign", ["SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("kind", ["engine", "server"])
def test_no_vllm_outlives_the_process_that_started_it(kind: str, sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """While it is loading, when it reads nothing that it is sent; with the processes it has started itself."""
    package = tmp_path / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    loading = package / "api_server.py" if kind == "server" else tmp_path / "vllm" / "__init__.py"
    loading.write_text(LONG.format(here=str(tmp_path)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(kind=kind)], stderr=subprocess.DEVNULL)
    try:
        until(lambda: (tmp_path / "pids").exists())
        started = [psutil.Process(int(pid)) for pid in (tmp_path / "pids").read_text().split()]
        parent.send_signal(getattr(signal, sign))
        parent.wait(A_HANG)
        until(lambda: not any(alive(process) for process in started))
    finally:
        parent.kill()


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + A_HANG
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---------------------------------------------------------------- the real one


def wide(nano: Nano, device: str) -> PreTrainedModel:
    """A model that vLLM's CPU build can read too: its attention takes no heads as narrow as the nano model's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**{**nano.model().config.to_dict(), "hidden_size": 64, "head_dim": 32})).eval()
    return model.to(device)  # type: ignore[arg-type,no-any-return]


@pytest.fixture(scope="module")
def only_engine(nano: Nano) -> Iterator[tuple[PreTrainedModel, str]]:
    """A wide model, and where it lies. All that vLLM is asked about it goes to one engine, since a start takes a minute."""
    pytest.importorskip("vllm", reason="vllm is not installed")
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = wide(nano, device)
    with pytest.MonkeyPatch.context() as patch, served(model, device, model.config.max_position_embeddings) as running:
        patch.setattr("harness.numerics.generation.served", lambda asked, device, room: nullcontext(running))
        yield model, device


TIE = 1e-4
"""Two tokens are as likely if their log-probabilities differ by no more: then rounding decides."""


def gap_at_first_difference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, other: str
) -> float:
    """How far apart in log-probability the first tokens are by which two answers to a prompt differ."""
    import torch

    one, two = ([*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in (answer, other))
    same = next(k for k, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    ids = torch.tensor([[*tokenizer(prompt)["input_ids"], *one[:same]]], device=model.device)
    with torch.no_grad():
        likely = model(input_ids=ids).logits[0, -1].log_softmax(-1)
    return abs(float(likely[one[same]] - likely[two[same]]))


@pytest.mark.vllm
def test_vllm_scores_choices_as_hugging_face_does(only_engine: tuple[PreTrainedModel, str], make_context: ContextMaker):
    """By lm-eval's tasks of one letter, and by the words of an embedded world's choices."""
    import numpy as np

    model, device = only_engine
    words = with_choices(WORLD.world_facts[:40])
    letters = [{**row, "task": "wmdp_bio"} for row in with_choices(WORLD.real_authors[:20])]
    hf = replace(make_context(), model=model)
    tasks = {"cloze_general": words, "wmdp_bio": letters}
    expected, found = (
        log_likelihoods(EvalContext(hf, EvalPlan(hf.problem), ()), tasks),
        log_likelihoods(with_vllm(hf, device), tasks),
    )
    for name in tasks:
        # Sums of some tokens in float32, by other kernels: on an AMD with AVX-512 they came to be 1.5e-5 of their size apart.
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)
        assert np.std(expected[name]) > 1e-3, "the choices differ"


@pytest.mark.vllm
def test_vllm_answers_as_hugging_face_does(only_engine: tuple[PreTrainedModel, str]):
    """Greedy: token by token, but where two tokens are as likely and rounding decides.

    For vLLM's CPU build as well as for a GPU.
    """
    model, device = only_engine
    tokenizer = WORDS.build()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    rows = [str(row["question"]) for row in (*WORLD.full[::10], *WORLD.world_facts)][:150]
    requests = [request(q, tokens=4 + i % 29) for i, q in enumerate(rows)]
    requests += [request(one, other, tokens=12, chat=True) for one, other in zip(rows[:20], rows[20:40], strict=True)]
    began = time.monotonic()
    expected = HFGenerator().generate(model, tokenizer, requests)
    between = time.monotonic()
    found = VLLMGenerator(device).generate(model, tokenizer, requests)
    seconds = between - began, time.monotonic() - between
    differ = [i for i, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other]
    print(f"{len(requests)} answers, {len(differ)} differ, {seconds[0]:.1f} s by hf, {seconds[1]:.1f} s by vllm")
    assert len(set(expected)) > 100, "the model says different things"
    for i in differ:
        assert len(requests[i].turns) == 1, "no tie is expected in the chats"
        assert gap_at_first_difference(model, tokenizer, requests[i].turns[0], found[i], expected[i]) <= TIE, requests[i]

    drawn = [GenerationRequest((q,), Sampling(12, temperature=0.8, seed=seed)) for q in rows[:10] for seed in (0, 1)]
    texts = VLLMGenerator(device).generate(model, tokenizer, drawn)
    assert VLLMGenerator(device).generate(model, tokenizer, drawn[:4]) == texts[:4], "with others or alone"
    assert sum(one != other for one, other in zip(texts[::2], texts[1::2], strict=True)) >= 8, "the seed decides"
