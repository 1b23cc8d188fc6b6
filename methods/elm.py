"""ELM: the model is to continue texts on a concept as a novice would, not as an expert, and to stay fluent while it does so.

L = erase + retain + fluency, each the mean over a text's positions, through low-rank adapters
erase    CE(q, p_θ(x)),  log q_t = log p_0(·|x_≤t) − η_t [log p_0(·|P⁺ x_≤t) − log p_0(·|P⁻ x_≤t)] + const.
         x a forget text; P⁺ says that an expert wrote it and P⁻ that a novice did; η_t grows evenly from 1 to η over x; logits
         are divided by a temperature, and q keeps its k likeliest tokens
retain   CE(argmax p_0(r), p_θ(r)) on a retain text r, or KL(p_0 ‖ p_θ)
fluency  CE of what follows x: a sentence that changes the subject, and what p_0 says then, sampled from
         log p_0(·|x …) + γ [log p_0(·|P⁻ …) − log p_0(·|P⁺ …)]

(Gandikota et al. 2024, "Erasing Conceptual Knowledge from Language Models", arXiv:2410.02760; rohitgandikota/erasing-llm
`trainscripts/erase.py`, `prepare_consistency_data.py`; the settings are its README's. Its authors published their checkpoints,
which is what others compare with: method `checkpoint`.) p_0 is the model without its adapters.
Departures: contexts, sentences and concepts are this project's own words, that repository having no licence; a continuation is
sampled once for each forget text, before training; a step's texts go through the model together; masters of the adapters are
float32. `contexts=texts` is ours, for models that are too small to take a context at its word: another forget text stands for
P⁺, a retain text for P⁻, and a retain text changes the subject.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from harness.config import JSON, settings
from harness.documents import read_json
from harness.errors import UsageError, cut
from harness.interfaces import METHODS, Held, ModelShape, Progress, Setting, Stage, Task, method
from harness.pretraining import SMALL_MODEL_FACTOR
from methods._adapters import Adapters, Kind, linear_maps
from methods._elm_words import AUTHORS, BIO, CYBER, EXPERT, NOVICE, TURNS
from methods._first_order import WMDP, WMDP_FACTOR, evenly
from methods._settings import BatchSize, LayerNumbers, Points, Rank, absent_layers

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.data import Batch, Encoded

GENERATED_AT_ONCE = 16
"""Continuations that are sampled together, each in three contexts."""
UNKNOWN_SHARE = 0.25
"""From this share of unknown words on a context says nothing."""


NewTokens = Annotated[int, Field(ge=1, le=10_000)]


@settings
class ELMConfig:
    """Settings of ELM; the defaults are its README's for zephyr-7b."""

    lr: PositiveFloat = 5e-5
    """Learning rate of the adapters, constant."""
    weight_decay: NonNegativeFloat = 0.01
    """AdamW's, on the adapters."""
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 3000
    """How often `order` is gone through; each of its entries takes a forget text, a retain text and a continuation."""
    order: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1, max_length=100)] | None = None
    """The stages of a round by number, from 0, some of them more than once; each once if not given. 0,0,1 on zephyr-7b."""
    batch_size: BatchSize = 4
    """Entries whose gradients are summed for a step."""
    rank: Rank = 256
    """Rank of the adapters."""
    alpha: PositiveInt = 16
    """Their scale times their rank."""
    dropout: float = Field(0.05, ge=0, lt=1)
    """Share of the adapters' inputs that are dropped."""
    target_modules: Kind = "all"
    """Which linear maps of a decoder layer are adapted."""
    layers: LayerNumbers | None = (4, 5, 6, 7)
    """Decoder layers that are adapted, from 0; none stands for all."""
    eta: PositiveFloat = 1000.0
    """η, how far the target is driven from the expert to the novice at a text's last token."""
    temperature: PositiveFloat = 1.2
    """What logits are divided by for the target."""
    top_k: PositiveInt = 50
    """How many tokens the target keeps."""
    erase_weight: NonNegativeFloat = 1.0
    """Weight of the erase term."""
    retain_weight: NonNegativeFloat = 1.0
    """Weight of the retain term."""
    fluency_weight: NonNegativeFloat = 1.0
    """Weight of the fluency term."""
    retain_loss: Literal["cross_entropy", "kl"] = "cross_entropy"
    """The retain term: the cross-entropy of the likeliest token, as in its code, or the KL divergence, as in its paper."""
    guidance: NonNegativeFloat = 3.0
    """γ, how much a sampled continuation prefers the novice to the expert."""
    new_tokens: tuple[NewTokens, NewTokens] = (100, 300)
    """At least and at most so many tokens are sampled."""
    contexts: Literal["sentences", "texts"] = "sentences"
    """Whether sentences say that an expert or a novice writes, or other texts of the stage stand for them."""
    concepts: tuple[str, ...] = ()
    """What each stage is about, as the sentences put it."""
    min_characters: NonNegativeInt = 50
    """Texts of no more characters are left out."""
    max_characters: PositiveInt = 700
    """Texts are cut to so many characters."""
    points: Points = 5
    """At how many steps, evenly spaced, a point is measured."""

    def __post_init__(self) -> None:
        if self.new_tokens[0] > self.new_tokens[1]:
            raise ValueError(f"new_tokens={list(self.new_tokens)}: the least is more than the most")
        if not (self.erase_weight or self.retain_weight or self.fluency_weight):
            raise ValueError("all three terms have weight 0")


def held(shape: ModelShape, config: ELMConfig) -> list[Held]:
    """The adapted weights kept aside while a point is measured, adapters with AdamW's state, and the target in float64."""
    from harness.memory import activations

    maps = linear_maps(shape.model, config.target_modules, config.layers)
    adapters = config.rank * sum(sum(linear.module.weight.shape) for linear in maps)
    positions = config.batch_size * (config.max_characters // 3)
    return [
        Held("weights kept aside", shape.weight_bytes * sum(linear.module.weight.numel() for linear in maps)),
        Held("adapters", 4 * 4 * adapters),
        Held("targets", 6 * 8 * positions * shape.vocabulary, while_measured=False, certain=False),
        activations(shape),
    ]


SMALL: Mapping[str, JSON] = {
    "lr": 5e-5 * SMALL_MODEL_FACTOR,
    "rounds": 600,
    "rank": 16,
    "layers": [0, 1],
    "new_tokens": [8, 16],
    "contexts": "texts",
    "min_characters": 0,
}
"""Fewer rounds, since these models have few texts, and adapters that are not wider than the weights."""


def clash(task: Task, config: ELMConfig) -> str | None:
    """Stages and layers that are not there."""
    return absent_stages(config, len(task.stages)) or absent_layers(task, layers=config.layers)


@method(
    "elm",
    config=ELMConfig,
    source="arXiv:2410.02760",
    presets={
        **{("*", family): SMALL for family in ("mini", "scratch")},
        **{(bench, "mini"): {"lr": 5e-5 * WMDP_FACTOR} for bench in WMDP},
        **{
            (bench, family): {"concepts": [AUTHORS]}
            for bench in ("tofu01", "tofu05", "tofu10")
            for family in ("llama2-7b", "phi-1.5", "llama3.2-1b")
        },
        ("wmdp", "zephyr-7b"): {"order": [0, 0, 1], "concepts": [BIO, CYBER]},
        ("wmdp-bio", "zephyr-7b"): {"concepts": [BIO]},
        ("wmdp-cyber", "zephyr-7b"): {"concepts": [CYBER]},
    },
    clash=clash,
    memory=held,
    smaller=({"rank": 64}, {"layers": [4, 5]}),
    tuned={("wmdp", "mini"): {"lr": 5e-3}},
)
def elm(setting: Setting, config: ELMConfig) -> Iterator[Progress]:
    """Train the adapters, measuring at evenly spaced steps with the adapters merged.

    Raises:
        UsageError: for layers or stages that are not there, contexts without concepts or in words the model does not know.
        Diverged: at a loss or gradient that is not finite.
    """
    from harness import training
    from harness.data import collate, pad_id
    from harness.likelihood import answer_labels, answer_logits

    model, pad = setting.model, pad_id(setting.tokenizer)
    maps = linear_maps(model, config.target_modules, config.layers)
    concepts = [_Concept(setting, stage, number, config) for number, stage in enumerate(setting.stages)]
    entries = schedule(config, len(concepts))
    steps = max(1, len(entries) // config.batch_size)
    with setting.costs.phase("continuations"):
        followed = _continuations(setting, concepts, entries, config) if config.fluency_weight else {}
    adapters = Adapters(model, maps, config.rank, config.alpha, setting.seed, config.dropout)
    adapters.make()
    logged: dict[str, float] = {}

    def logits(texts: Sequence[Encoded]) -> tuple[Batch, Tensor]:
        batch = collate(texts, range(len(texts)), pad).to(model.device)
        setting.costs.count(batch.tokens)
        return batch, answer_logits(model, batch)

    def erase(step: Sequence[Entry]) -> Tensor:
        drawn = [concepts[entry.stage].erased(entry) for entry in step]
        with adapters.without():
            # The plain texts, the same behind the expert's contexts, the same behind the novice's.
            _, of_base = logits([text for texts in zip(*drawn, strict=True) for text in texts])
            base, expert, novice = of_base.chunk(3)
        batch, now = logits([plain for plain, _, _ in drawn])
        target = erased(base, expert, novice, batch.counts, config.eta, config.temperature, config.top_k)
        return mean_of_each(soft_cross_entropy(now, target), batch).sum()

    def retain(step: Sequence[Entry]) -> Tensor:
        texts = [concepts[entry.stage].retained(entry) for entry in step]
        with adapters.without():
            _, before = logits(texts)
        batch, now = logits(texts)
        return mean_of_each(retain_losses(now, before, config.retain_loss), batch).sum()

    def fluency(step: Sequence[Entry]) -> Tensor:
        import torch.nn.functional as F

        batch, now = logits([followed[entry.stage, concepts[entry.stage].row(entry)] for entry in step])
        return mean_of_each(F.cross_entropy(now, answer_labels(batch), reduction="none"), batch).sum()

    terms = {"forget": (erase, config.erase_weight), "retain": (retain, config.retain_weight)}
    terms["fluency"] = fluency, config.fluency_weight

    def part(number: int, name: str) -> Tensor:
        import torch

        term, weight = terms[name]
        step = entries[number * config.batch_size : (number + 1) * config.batch_size]
        with torch.random.fork_rng(range(torch.cuda.device_count())):  # of dropout
            torch.manual_seed((setting.seed * steps + number) * len(terms) + list(terms).index(name))
            loss = weight * term(step)
        logged[f"{name}_term"] = float(loss.detach())
        return loss

    parts = ([partial(part, number, name) for name in terms if terms[name][1]] for number in range(steps))
    recipe = training.AdamW(
        lr=config.lr,
        steps=steps,
        schedule="constant_with_warmup",
        weight_decay=config.weight_decay,
        max_gradient_norm=float("inf"),
    )
    measured = evenly(steps, config.points)
    try:
        for log in training.optimise(model, parts, lambda term: term(), recipe, recompute=False):
            here = log.step in measured
            if here:
                adapters.take_off()
            told = {**logged, "gradient_norm": log.gradient_norm, "learning_rate": log.learning_rate}
            yield Progress(log.step, told, measure_here=here, total=steps)
            if here:
                adapters.put_on()
    finally:
        adapters.take_off()


# ---------------------------------------------------------------- losses


def erased(base: Tensor, expert: Tensor, novice: Tensor, counts: Tensor, eta: float, temperature: float, top_k: int) -> Tensor:
    """What the model should say on forget texts: the base's distribution, moved from the expert's to the novice's.

    log q_t = log p_0 − η_t (log p_expert − log p_novice) + const., η_t evenly from 1 at a text's first position to η at its
    last; all but the likeliest `top_k` tokens are left out. In float64, since η multiplies rounding errors.

    Args:
        base: [N, V] logits on the plain texts, text by text.
        expert: [N, V] those at the same tokens behind an expert's context.
        novice: [N, V] those behind a novice's.
        counts: [B] positions of each text; they sum to N.
        eta: η.
        temperature: what all logits are divided by.
        top_k: how many tokens are kept.

    Returns:
        [N, V] probabilities, float64.
    """
    import torch

    plain, knowing, ignorant = ((z.double() / temperature).log_softmax(dim=-1) for z in (base, expert, novice))
    strength = torch.cat([torch.linspace(1, eta, n, dtype=torch.float64) for n in counts.tolist()]).to(plain.device)
    scores = plain - strength[:, None] * (knowing - ignorant)
    least = scores.topk(min(top_k, scores.shape[-1]), dim=-1).values[:, -1:]
    return scores.masked_fill(scores < least, float("-inf")).softmax(dim=-1)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """[N] −Σ_v q_v log p_v.

    Args:
        logits: [N, V].
        target: [N, V] q.
    """
    return -(target.to(logits) * logits.log_softmax(dim=-1)).sum(dim=-1)


def retain_losses(logits: Tensor, before: Tensor, kind: Literal["cross_entropy", "kl"]) -> Tensor:
    """How far the model is from what it was at each position: −log p(argmax p_0), or KL(p_0 ‖ p).

    Args:
        logits: [N, V] now.
        before: [N, V] of the base.
        kind: which.

    Returns:
        [N] nats.
    """
    import torch.nn.functional as F

    from harness.likelihood import kl_per_token

    if kind == "cross_entropy":
        return F.cross_entropy(logits, before.argmax(dim=-1), reduction="none")
    return kl_per_token(before.log_softmax(dim=-1), logits.log_softmax(dim=-1))


def mean_of_each(losses: Tensor, batch: Batch) -> Tensor:
    """The mean over each text's labels.

    Args:
        losses: [N] one for each label, text by text.
        batch: the texts.

    Returns:
        [B].
    """
    from harness.likelihood import sums_by_example

    return sums_by_example(losses, batch) / batch.counts


# ---------------------------------------------------------------- which texts


@dataclass(frozen=True)
class Entry:
    """A forget text and a retain text that are due."""

    stage: int
    """Of which stage, from 0."""
    turn: int
    """How many entries that stage has had before."""


def absent_stages(config: ELMConfig, stages: int) -> str | None:
    """Why `order` cannot be followed with so many stages, or None if it can."""
    if max(config.order or (0,)) >= stages:
        instead = ",".join(map(str, range(stages)))
        return f"order={cut(str(list(config.order or ())))}: there are stages 0 to {stages - 1}. Set order=[{instead}]"
    return None


def schedule(config: ELMConfig, stages: int) -> list[Entry]:
    """All entries in order.

    Raises:
        UsageError: if `order` names a stage that is not there.
    """
    order = config.order or tuple(range(stages))
    if reason := absent_stages(config, stages):
        raise UsageError(f"{reason}.")
    turns = [0] * stages
    entries = []
    for _ in range(config.rounds):
        for number in order:
            entries.append(Entry(number, turns[number]))
            turns[number] += 1
    return entries


Purpose = Literal["erase", "turn", "length", "sample"]


class _Concept:
    """A stage's texts, and the contexts that are drawn for them by the seed and the turn."""

    def __init__(self, setting: Setting, stage: Stage, number: int, config: ELMConfig) -> None:
        self._setting, self._number, self._config = setting, number, config
        self.forget, self._retain = (
            [text[: config.max_characters] for e in side if len(text := e.prompt + e.tag + e.answer) > config.min_characters]
            for side in (stage.forget, stage.retain)
        )
        if not (self.forget and self._retain):
            raise UsageError(f"{stage.name}: no text is longer than min_characters={config.min_characters}; set less.")
        self._concept = ""
        if config.contexts == "sentences":
            if len(config.concepts) != len(setting.stages):
                raise UsageError(
                    f"concepts={list(config.concepts)}: say what each of the {len(setting.stages)} stages is about, such as "
                    'concepts=["cyber attacks"], or set contexts=texts.'
                )
            self._concept = config.concepts[number]
            _check_words(setting.tokenizer, [self._in_words(sentence) for sentence in (*EXPERT, *NOVICE)] + [*TURNS])

    def row(self, entry: Entry) -> int:
        """Which forget text is due."""
        return entry.turn % len(self.forget)

    def erased(self, entry: Entry) -> tuple[Encoded, Encoded, Encoded]:
        """The forget text, plain, behind an expert's context and behind a novice's; a label follows each of its tokens."""
        text = self.forget[self.row(entry)]
        expert, novice, _ = self._drawn("erase", entry.turn)
        plain, knowing, ignorant = (self._tokens(joined) for joined in (text, expert + text, novice + text))
        last = len(plain)
        return self._labelled(plain, last), self._labelled(knowing, last), self._labelled(ignorant, last)

    def retained(self, entry: Entry) -> Encoded:
        """The retain text, likewise."""
        ids = self._tokens(self._retain[entry.turn % len(self._retain)])
        return self._labelled(ids, len(ids))

    def turned(self, row: int) -> tuple[list[int], list[int], list[int], int]:
        """Tokens of a forget text and a change of subject, of an expert's context, of a novice's, and how many to sample."""
        expert, novice, turn = self._drawn("turn", row)
        rng = self.rng("length", row)
        low, high = self._config.new_tokens
        text = self._tokens(self.forget[row] + turn)
        return text, self._tokens(expert.strip()), self._tokens(novice.strip()), int(rng.integers(low, high + 1))

    def followed(self, row: int, continuation: Sequence[int]) -> Encoded:
        """A forget text, the change of subject and a continuation, with labels on what follows the text's next token."""
        from harness.data import Encoded

        text, _, _, _ = self.turned(row)
        # As in the original, the first token behind the text is not learnt.
        return Encoded([*text, *continuation], len(self._tokens(self.forget[row])) + 1)

    def _tokens(self, text: str) -> list[int]:
        from harness.data import token_ids

        (ids,) = token_ids(self._setting.tokenizer, [text])
        return ids

    def _labelled(self, ids: Sequence[int], last: int) -> Encoded:
        # The end token is only there to be predicted: a loss is taken on what follows each of the last tokens.
        from harness.data import Encoded

        return Encoded([*ids, int(self._setting.tokenizer.eos_token_id)], len(ids) - last + 1)

    def rng(self, purpose: Purpose, turn: int) -> np.random.Generator:
        """Random numbers for one purpose and turn, whatever else is drawn."""
        import numpy as np

        return np.random.default_rng([self._setting.seed, self._number, turn, get_args(Purpose).index(purpose)])

    def _drawn(self, purpose: Purpose, turn: int) -> tuple[str, str, str]:
        """An expert's context, a novice's, and a change of subject, with what joins them to a text."""
        rng = self.rng(purpose, turn)

        def one(of: Sequence[str]) -> str:
            return of[int(rng.integers(len(of)))]

        if self._config.contexts == "texts":
            return f"{one(self.forget)} ", f"{one(self._retain)} ", f" {one(self._retain)}"
        return f"{self._in_words(one(EXPERT))}\n", f"{self._in_words(one(NOVICE))}\n", f". {one(TURNS)}"

    def _in_words(self, sentence: str) -> str:
        return sentence.format(concept=self._concept)


def _check_words(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> None:
    from harness.data import token_ids

    ids = [token for sentence in token_ids(tokenizer, sentences) for token in sentence]
    unknown = sum(token == tokenizer.unk_token_id for token in ids)
    if unknown > UNKNOWN_SHARE * len(ids):
        raise UsageError(
            f"the tokenizer does not know {unknown} of the {len(ids)} words of elm's contexts, so they would say nothing. "
            "Set contexts=texts."
        )


# ---------------------------------------------------------------- continuations


def _continuations(
    setting: Setting, concepts: Sequence[_Concept], entries: Sequence[Entry], config: ELMConfig
) -> dict[tuple[int, int], Encoded]:
    """(stage, row) → the forget text, a change of subject and a sampled continuation; from the cache where it is there."""
    from harness.cache import digest
    from harness.identity import answerer_fingerprint
    from harness.models import weights_fingerprint

    rows = sorted({(entry.stage, concepts[entry.stage].row(entry)) for entry in entries})
    asked = [concepts[stage].turned(row) for stage, row in rows]

    def make(folder: Path) -> None:
        import numpy as np

        found: list[list[int]] = []
        for start in range(0, len(asked), GENERATED_AT_ONCE):
            group = asked[start : start + GENERATED_AT_ONCE]
            texts, experts, novices, budgets = zip(*group, strict=True)
            numbers = [
                concepts[s].rng("sample", row).random(max(budgets), dtype=np.float32) for s, row in rows[start:][: len(group)]
            ]
            uniform = np.stack(numbers, axis=1)
            found += guided(setting.model, setting.tokenizer, texts, experts, novices, budgets, config.guidance, uniform)
            setting.costs.count(sum(len(t) + len(e) + len(n) for t, e, n, _ in group) + 3 * sum(map(len, found[start:])))
        (folder / "tokens.json").write_text(json.dumps(found), encoding="utf-8")

    key: dict[str, JSON] = {
        "version": METHODS.get("elm").version,
        "answerer": answerer_fingerprint(weights_fingerprint(setting.model), setting.model, setting.tokenizer),
        "asked": digest(asked),
        "guidance": config.guidance,
        "seed": setting.seed,
        "device": setting.model.device.type,
    }
    entry = setting.cache.get("continuations", key, make)
    if not entry.made_now:
        setting.costs.saved(entry.seconds - entry.waited)
    found = read_json(entry.path / "tokens.json")
    return {(stage, row): concepts[stage].followed(row, tokens) for (stage, row), tokens in zip(rows, found, strict=True)}


def guided(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[list[int]],
    experts: Sequence[list[int]],
    novices: Sequence[list[int]],
    budgets: Sequence[int],
    guidance: float,
    uniform: np.ndarray,
) -> list[list[int]]:
    """Continuations y sampled from log p(·|text, y) + γ [log p(·|novice, y) − log p(·|expert, y)], token by token.

    Args:
        model: in eval mode.
        tokenizer: whose end token ends a continuation (and is not part of it), as do ends of the model's generation settings.
        texts: [B] what is continued, as tokens.
        experts: [B] the contexts that are avoided.
        novices: [B] the contexts that are preferred.
        budgets: [B] at most so many tokens each.
        guidance: γ.
        uniform: [tokens, B] in [0, 1): decide what is drawn.

    Raises:
        UsageError: for a model that cannot go on from what it has read.
    """
    import torch

    from harness.identity import end_tokens

    rows, size, ends = [*texts, *novices, *experts], len(texts), end_tokens(model, tokenizer)
    longest = max(map(len, rows))
    ids = torch.tensor([[ends[0]] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    found: list[list[int]] = [[] for _ in texts]
    ended = [False] * size
    past = None
    with torch.no_grad():
        for numbers in torch.from_numpy(uniform).to(model.device)[: max(budgets)]:
            out = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
            )
            past = getattr(out, "past_key_values", None)
            if past is None:
                raise UsageError(
                    f"elm continues texts token by token from a cache of keys and values, which {model.config.model_type} does "
                    "not keep. Set fluency_weight=0."
                )
            plain, novice, expert = out.logits[:, -1].float().log_softmax(dim=-1).chunk(3)
            cumulative = (plain + guidance * (novice - expert)).softmax(dim=-1).cumsum(dim=-1)
            # Scaled by the last entry, which rounding keeps from being exactly 1.
            drawn = torch.searchsorted(cumulative, (numbers * cumulative[:, -1])[:, None]).clamp_(max=cumulative.shape[1] - 1)
            for i, token in enumerate(drawn[:, 0].tolist()):
                ended[i] = ended[i] or token in ends or len(found[i]) == budgets[i]
                if not ended[i]:
                    found[i].append(token)
            if all(ended):
                break
            ids, positions = drawn.repeat(3, 1), positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    return found
