"""Text out of models, behind one interface: `Generator`.

Evaluators ask with `GenerationRequest`s and never know who answers. Completions are cached by weights and request, so
that no model is given another model's answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from tqdm import tqdm

from harness.cache import digest
from harness.data import token_ids
from harness.errors import UsageError
from harness.interfaces import GenerationRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.cache import Cache

GeneratorName = Literal["auto", "hf"]
PROMPTS_PER_BATCH = 256


class Generator(Protocol):
    """A back end that continues conversations."""

    name: str
    """As recorded."""

    def generate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[GenerationRequest]
    ) -> list[str]:
        """The last answer to each request, special tokens left out, white space at the ends stripped."""


class HFGenerator:
    """`transformers`' own `generate`, greedy or sampled, prompts left-padded in order of length.

    Sampled text follows from the request's seed and the prompts it is drawn together with, whatever was drawn before.
    """

    name = "hf"

    def generate(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[GenerationRequest]
    ) -> list[str]:
        """See `Generator.generate`. Each turn's prompt is everything said before it and the turn itself."""
        answers = [""] * len(requests)
        said = [""] * len(requests)
        with tqdm(total=sum(len(r.turns) for r in requests), desc="generating", unit="answer", delay=2, leave=False) as bar:
            for turn in range(max((len(r.turns) for r in requests), default=0)):
                asked = [i for i, r in enumerate(requests) if turn < len(r.turns)]
                prompts = {i: said[i] + requests[i].turns[turn] for i in asked}
                ids = dict(zip(asked, token_ids(tokenizer, list(prompts.values())), strict=True))
                asked.sort(key=lambda i: (_drawn_alike(requests[i]), len(ids[i]), i))
                for group in _groups(asked, requests):
                    texts = self._continue(model, tokenizer, [ids[i] for i in group], [requests[i] for i in group])
                    for i, text in zip(group, texts, strict=True):
                        answers[i] = text.strip()
                        said[i] = prompts[i] + text
                    bar.update(len(group))
        return answers

    @staticmethod
    def _continue(
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[list[int]],
        requests: Sequence[GenerationRequest],
    ) -> list[str]:
        import torch
        from transformers import GenerationConfig

        longest = max(len(p) for p in prompts)
        pad = int(tokenizer.eos_token_id)
        temperature, seed = _drawn_alike(requests[0])
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
        config = GenerationConfig(
            max_new_tokens=max(r.sampling.max_tokens for r in requests), eos_token_id=pad, pad_token_id=pad, **sampling
        )
        # What is not set here would be taken from the checkpoint's own generation_config.json (a repetition penalty, say).
        own, model.generation_config = model.generation_config, GenerationConfig()
        cuda = [model.device] if model.device.type == "cuda" else []
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=cuda, enabled=temperature > 0):
                if temperature > 0:
                    # By the prompts too: groups of prompts with one seed must not be drawn with the same random numbers.
                    torch.manual_seed(int(digest([seed, prompts])[:15], 16))
                out = model.generate(  # type: ignore[operator]
                    torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=model.device),
                    attention_mask=torch.tensor(
                        [[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device
                    ),
                    generation_config=config,
                )
        finally:
            model.generation_config = own
        # Greedy text does not depend on the budget it had, so each answer is cut to its own.
        new = [row[: r.sampling.max_tokens] for row, r in zip(out[:, longest:].tolist(), requests, strict=True)]
        return tokenizer.batch_decode(new, skip_special_tokens=True)


def _drawn_alike(request: GenerationRequest) -> tuple[float, int]:
    """What requests must share to be answered together."""
    return request.sampling.temperature, request.sampling.seed


def _groups(order: Sequence[int], requests: Sequence[GenerationRequest]) -> Iterable[list[int]]:
    group: list[int] = []
    for i in order:
        if group and (len(group) == PROMPTS_PER_BATCH or _drawn_alike(requests[i]) != _drawn_alike(requests[group[0]])):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def choose_generator(name: str) -> Generator:
    """The back end of that name; `auto` takes the best that is here.

    Raises:
        UsageError: for a name that is none.
    """
    if name in ("auto", "hf"):
        return HFGenerator()
    raise UsageError(f"no generator called '{name}'. There are: auto, hf.")


def generate_all(
    generator: Generator,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Iterable[GenerationRequest],
    cache: Cache,
    weights: str,
) -> Mapping[GenerationRequest, str]:
    """Every different request's answer, from the cache where these weights have answered them before.

    Args:
        generator: the back end.
        model: who answers.
        tokenizer: its tokenizer.
        requests: from all evaluators; equal ones are answered once.
        cache: where completions are kept.
        weights: the fingerprint of the model's weights.
    """
    unique = list(dict.fromkeys(requests))
    if not unique:
        return {}

    def make(folder: Path) -> None:
        texts = generator.generate(model, tokenizer, unique)
        (folder / "texts.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")

    key = {"weights": weights, "generator": generator.name, "requests": [asdict(request) for request in unique]}
    entry = cache.get("generations", key, make)
    texts = json.loads((entry.path / "texts.json").read_text(encoding="utf-8"))
    return dict(zip(unique, texts, strict=True))
