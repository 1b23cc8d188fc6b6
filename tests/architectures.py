"""Which method works on which architecture: tiny random checkpoints of many families, each method run on each of them.

`python -m tests.architectures` prints the table in Markdown; `tests/models/test_architectures.py` holds it to what it says.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core.config import resolve
from harness.core.costs import Costs
from harness.core.errors import UsageError
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan
from harness.core.method import METHODS, UnlearningContext
from harness.core.problem import Problem, Stage
from harness.statistics.measurements import measurements
from harness.storage.cache import Cache
from tests.conftest import TEMPLATE, WORDS, WORLD, examples, numbered

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

USUAL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
"""The shape of a family that names it as Llama does."""
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
EXPERTS = {
    **USUAL,
    "num_experts": 2,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 12,
}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "phi", "phi3"), USUAL),
    "gemma2": {**USUAL, "query_pre_attn_scalar": 8},
    "gpt2": GPT,
    "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": USUAL,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_bigcode": GPT,
    "opt": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "expansion_ratio": 2},
    **dict.fromkeys(("stablelm", "olmo2", "granite", "cohere", "starcoder2", "smollm3", "nemotron"), USUAL),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss"), EXPERTS),
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "rwkv": {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16, "intermediate_size": 24},
}
"""Family → the shape of a checkpoint of it."""
FIRST_ORDER = {"epochs": 1, "warmup_epochs": 0, "batch_size": 4, "lr": 1e-2}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("ga", "grad_diff", "npo", "simnpo", "dpo", "idk", "soul"), FIRST_ORDER),
    **dict.fromkeys(("wga", "satimp", "ceu", "undial", "pdu", "npo_sam", "sage"), FIRST_ORDER),
    "jensun": {**FIRST_ORDER, "refusal": "not known"},
    "altpo": {**FIRST_ORDER, "instruction": "", "max_tokens": 8, "alternatives": 2},
    "kl_min": {**FIRST_ORDER, "pad_length": 40},
    "loku": {**FIRST_ORDER, "rank": 4},
    "rmu": {"layer": 1, "layers": [0, 1], "steps": 1, "lr": 1e-2},
    "elm": {"layers": [0, 1], "rank": 4, "rounds": 2, "batch_size": 2, "new_tokens": [2, 3], "contexts": "texts", "lr": 1e-2},
    "predictor_corrector": {"predictor": "ekfac", "steps": 1, "corrections": 1, "peak_kl": 1e-5},
    "task_vector": {**FIRST_ORDER, "scales": [1.0]},
    "sham": {"steps": 1, "target_kl": 1e-5},
    "repselect": {"steps": 1, "target_kl": 1e-5, "components": 4, "rank": 4, "batch_size": 2},
    "kfade": {"estimator": "ekfac", "step_size": 0.05, "damping": 0.1, "damping_scale": "mean_eigenvalue"},
}
"""What makes a method quick; all of them are methods that change weights."""
ATTACK = "quantise_attack"
COLUMNS = [*SETTINGS, ATTACK]


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """The embedded world's words."""
    return WORDS.build()


@cache
def model(family: str) -> PreTrainedModel:
    """A random model of a family, in eval mode; not to be changed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    end = tokenizer().eos_token_id
    shape = {"vocab_size": len(tokenizer()), "bos_token_id": end, "eos_token_id": end, "pad_token_id": end, **FAMILIES[family]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape)).eval()


@cache
def problem() -> Problem:
    """Four examples to forget and four to retain, one question."""
    forget, retain = (examples(WORLD.split(split)[:4]) for split in ("forget05", "retain90"))
    return Problem(
        bench="architectures",
        bench_version=1,
        model="tiny",
        stages=[Stage("forget", forget=forget, retain=retain)],
        questions={"forget": numbered(WORLD.split("forget05")[:2])},
        template=TEMPLATE,
        sources={},
        refusals=["I do not know."],
    )


@dataclass(frozen=True)
class Outcome:
    """What came of a method on an architecture."""

    refused: str = ""
    """The sentence that refuses it; empty where it works."""
    faults: Sequence[str] = ()
    """What a method must not do, and did."""

    def __str__(self) -> str:
        return "FAULT" if self.faults else "refused" if self.refused else "yes"


def outcome(family: str, column: str, folder: Path) -> Outcome:
    """Run a method, or the attack, on a fresh model of a family.

    Args:
        family: whose.
        column: a method, or `quantise_attack`.
        folder: for the cache.

    Raises:
        Exception: whatever else than a refusal the method raises: a fault.
    """
    import torch

    from harness.models.sources import weights_fingerprint

    eval_context = copy.deepcopy(model(family))
    context = UnlearningContext(eval_context, tokenizer(), problem(), 0, Cache(folder), Costs(), family)
    before, found = weights_fingerprint(eval_context), [*_state(eval_context)]
    torch.manual_seed(0)
    try:
        if column == ATTACK:
            said = measurements(EVALUATORS.get(ATTACK), EvalContext(context, EvalPlan(problem()), ()))
            if absent := [item.reason for item in said if hasattr(item, "reason")]:  # type: ignore[union-attr]
                return Outcome(faults=absent)
        else:
            method = METHODS.get(column)
            config = resolve(method.config, SETTINGS[column], owner=column)
            steps = list(method.unlearn(context, config))
            if not (steps and steps[-1].measure_here):
                return Outcome(faults=["no point is measured at the end"])
    except UsageError as error:
        moved = weights_fingerprint(eval_context) != before
        return Outcome(str(error), ["it was refused after weights had moved"] if moved else [])
    faults = []
    if weights_fingerprint(eval_context) == before:
        faults.append("no weight moved")
    if not all(bool(tensor.isfinite().all()) for tensor in eval_context.state_dict().values() if tensor.is_floating_point()):
        faults.append("a weight is not finite")
    faults += [f"{a} became {b}" for a, b in zip(found, _state(eval_context), strict=True) if a != b]
    return Outcome(faults=faults)


def _state(context: PreTrainedModel) -> list[object]:
    """What a method must leave as it found it."""
    parameters = list(context.named_parameters())
    return [
        [(name, type(module).__name__, module.training) for name, module in context.named_modules()],
        [(name, parameter.requires_grad, parameter.dtype, parameter.grad is None) for name, parameter in parameters],
        sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in context.modules()),
    ]


def table(folder: Path) -> str:
    """The table in Markdown, and under it the sentences that refuse."""
    rows, sentences = [], dict[str, list[str]]()
    for family in FAMILIES:
        cells = []
        for column in COLUMNS:
            try:
                found = outcome(family, column, folder)
            except Exception as error:  # a fault of the method, which the table is there to show
                found = Outcome(faults=[f"{type(error).__name__}: {error}"])
            cells.append(str(found))
            if told := "; ".join(found.faults) or found.refused:
                sentences.setdefault(told.replace(family, "…"), []).append(f"{column} on {family}")
        rows.append(f"| {family} | " + " | ".join(cells) + " |")
        print(rows[-1], file=sys.stderr)
    head = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    return "\n".join([*head, *rows, "", *(f"- {', '.join(where)}: {told}" for told, where in sentences.items())])


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        print(table(Path(scratch)))
