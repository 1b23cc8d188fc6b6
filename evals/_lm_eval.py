"""EleutherAI's lm-eval (0.4.13) with a model in memory: what evaluators that score choices share.

It runs in process, silent, asks no other machine for anything, and leaves random numbers and the tokenizer as they were. The
rows are the evaluator's; lm-eval fetches none.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from harness.data.rows import MODEL_ROWS, added_tokens, check_rows

if TYPE_CHECKING:
    from harness.core.evaluator import EvalContext

Scored = tuple[tuple[str, str], list[int], list[int]]
"""lm-eval's request: (prompt, choice) as texts, and both as tokens."""
CHOICES_AT_ONCE, AT_ONCE_IF_LARGE = 128, 8
"""Choices that go through the model together; fewer from `LARGE` parameters on, since logits are kept for every token."""
LARGE = 100_000_000


def check_texts(context: EvalContext, texts: Sequence[str]) -> None:
    """Whether the model has a row for every token of some texts: lm-eval makes its own tokens, and asks nobody.

    Raises:
        UsageError: for one that it has none for.
    """
    if texts and hasattr(context.tokenizer, MODEL_ROWS):
        check_rows(context.tokenizer, context.tokenizer(list(texts))["input_ids"])


def language_model(context: EvalContext) -> Any:
    """lm-eval's `HFLM` around the model in memory; `--generator vllm` lets vLLM read the choices."""
    import copy

    from lm_eval.models.huggingface import HFLM

    at_once = AT_ONCE_IF_LARGE if context.model.num_parameters() >= LARGE else CHOICES_AT_ONCE
    # A copy, since lm-eval gives a tokenizer without padding one.
    lm = HFLM(context.model, tokenizer=copy.deepcopy(context.tokenizer), batch_size=at_once)
    if last := added_tokens(context.tokenizer)[1]:
        lm.tok_encode = partial(_without_last, lm.tok_encode, last)
    if context.plan.generator == "vllm":
        lm._loglikelihood_tokens = lambda requests, **_: by_vllm(context, requests)
    return lm


def log_likelihoods(
    context: EvalContext, lm: Any, tasks: Sequence[Any], manager: Any, sizes: Mapping[str, int]
) -> dict[str, list[list[float]]]:
    """The log-likelihood of every choice, in nats, by lm-eval's `simple_evaluate`.

    Args:
        context: whose model; its tokens are counted.
        lm: as `language_model` makes it.
        tasks: as `simple_evaluate` takes them.
        manager: lm-eval's `TaskManager`.
        sizes: a task's name → how many rows it has.

    Returns:
        task → for each row its choices' log-likelihoods.
    """
    from lm_eval import evaluator as lm_eval_evaluator
    from lm_eval.models.huggingface import HFLM

    # The record says itself what ran on which machine: lm-eval would ask the hub, git of the folder one stands in (whose
    # "fatal: not a git repository" a reader takes for ours) and a dozen programs.
    with (
        patch.object(HFLM, "get_model_info", lambda _: {}),
        patch.object(lm_eval_evaluator, "add_env_info"),
        patch.object(lm_eval_evaluator, "get_git_commit_hash", lambda: None),
    ):
        result = lm_eval_evaluator.simple_evaluate(
            lm,
            tasks=list(tasks),
            task_manager=manager,
            bootstrap_iters=0,
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
        )
    likelihoods = {}
    for name, size in sizes.items():
        samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
        assert len(samples) == size
        likelihoods[name] = [[float(nats) for nats, _ in sample["filtered_resps"]] for sample in samples]
        context.costs.count(sum(len(lm.tok_encode(prompt + choice)) for s in samples for prompt, choice in s["arguments"]))
    return likelihoods


def dataset(**columns: Sequence[Any]) -> dict[str, Any]:
    """What makes lm-eval take these columns of rows instead of fetching its own."""

    def made(**_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {"test": Dataset.from_dict({name: list(values) for name, values in columns.items()})}

    return {"custom_dataset": made, "test_split": "test", "fewshot_split": None, "fewshot_config": None}


def task_of_choices(name: str, rows: Mapping[str, Any], delimiter: str) -> dict[str, Any]:
    """A task in which a choice's own words follow a text.

    Args:
        name: the task's.
        rows: from `dataset`, with columns `prompt`, `choices` and `answer` (the right one's number).
        delimiter: what stands between a text and a choice.
    """
    return {
        "task": name,
        **rows,
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": delimiter,
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _without_last(encode: Callable[..., list[int]], last: int, text: str, **options: Any) -> list[int]:
    """A text's tokens without the special tokens that the tokenizer puts last: lm-eval would score them as the choice's.

    Args:
        encode: lm-eval's own way.
        last: how many there are.
        text: the text.
        options: of that way.
    """
    whole, plain = encode(text, **options), encode(text, **{**options, "add_special_tokens": False})
    return whole if whole == plain else whole[: len(whole) - last]


def by_vllm(context: EvalContext, requests: Sequence[Scored]) -> list[tuple[float, bool]]:
    """What lm-eval asks of a model, from vLLM: every different beginning is read once, whatever the number of its choices.

    Args:
        context: whose model.
        requests: what lm-eval asks; of a text longer than the model's positions the end alone is read.

    Returns:
        For each request its choice's summed log-likelihood in nats, and False: whether it is the likeliest text is not asked.
    """
    from harness.numerics.generation import served
    from harness.numerics.vllm import Candidates

    beginnings = [[(*prompt, *choice[:i]) for i in range(len(choice))] for _, prompt, choice in requests]
    continuations: dict[tuple[int, ...], dict[int, None]] = {}  # a text → the tokens that are to follow it, each once
    for (_, _, choice), texts in zip(requests, beginnings, strict=True):
        for text, token in zip(texts, choice, strict=True):
            continuations.setdefault(text, {})[token] = None
    positions = getattr(context.model.config, "max_position_embeddings", None)
    room = min(filter(None, (max(map(len, continuations)) + 1, positions)))
    with served(context.model, context.plan.device, room) as engine:
        scores = engine.score([Candidates(list(text[1 - room :]), list(tokens)) for text, tokens in continuations.items()])
    nats = {
        (text, token): n
        for (text, tokens), of in zip(continuations.items(), scores, strict=True)
        for token, n in zip(tokens, of, strict=True)
    }
    return [
        (sum(nats[text, token] for text, token in zip(texts, choice, strict=True)), False)
        for (_, _, choice), texts in zip(requests, beginnings, strict=True)
    ]


@contextmanager
def quietly() -> Iterator[None]:
    """Without lm-eval's log, with one bar like this project's others in place of its own, and all random numbers left alone."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets", "evaluate")]
    levels, random_numbers = [logger.level for logger in loggers], random.getstate()
    with ExitStack() as stack:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        for module, hide in (("lm_eval.models.huggingface", False), ("lm_eval.api.task", True), ("lm_eval.api.model", True)):
            stack.enter_context(patch(f"{module}.tqdm", partial(_bar, hide=hide)))
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            random.setstate(random_numbers)


def _bar(*args: Any, hide: bool, **options: Any) -> Any:
    from tqdm import tqdm

    from harness.core.progress import style

    ours = {"disable": True} if hide else {"desc": "multiple choice", "unit": "choice", **style()}
    return tqdm(*args, **{**{k: v for k, v in options.items() if k != "disable"}, **ours})
