"""How quickly ToFU is evaluated on one CPU thread: against open-unlearning's own evaluator, and against a count of operations.

    python -m tests.perf.evaluation --json out.json --data-dir DIR [--open-unlearning CHECKOUT] [--model FOLDER]
        [--every 8] [--repetitions 3]

Every so many of the 1,017 real questions of tofu10 (open-unlearning's definitions): the losses of all their answers, and greedy
answers of at most 200 tokens with their ROUGE, tokenising included. The model is the checkpoint in FOLDER, or a random Llama of
1.7 M parameters whose end token's embedding is stretched until answers have some 60 tokens on average, of very different lengths. Seconds
are CPU time of a process, since it has one thread and may share its core; ratios are taken within a repetition.

The floor is the time that the products of weights and activations alone take at the rate of a 1024³ product of torch's: prompts
read once, each label and each answered token once, logits at labels and answered tokens only. Attention, norms, softmaxes and ROUGE
are not in it, nor is it in reach of one row at a time. Where oneDNN multiplies faster than torch does, and where wrong answers share
their first words, likelihoods come under it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evals import _tofu
from evals.benchmarks.tofu.models import SCRATCH_SHAPE, SCRATCH_VOCABULARY
from harness.core.benchmark import BENCHMARKS
from harness.core.costs import Costs
from harness.core.evaluator import EvalContext, EvalPlan
from harness.core.method import UnlearningContext
from harness.core.options import Options
from harness.core.problem import Problem
from harness.data.rows import token_ids
from harness.models.recipes import Vocabulary
from harness.numerics.generation import HFGenerator
from harness.storage.cache import Cache
from tests.perf._llama import random_llama
from tests.perf._machine import gemm_rate, machine, table, write

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PARTS = ("likelihoods", "answers", "all")
REACH = {"1.7M": {"likelihoods": 6.0, "answers": 3.0, "all": 5.0}, "other": {"all": 2.5}}
STRETCH = 1.75
"""Factor on the end token's embedding, by trial."""
ANSWERS = ("answer", "paraphrased_answer", "perturbed_answer")


def build(problem: Problem) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The random Llama, in the shape of `--model scratch`, with a vocabulary of the questions' own."""
    text = tuple(f"{row['question']}\n{row['answer']}" for rows in problem.questions.values() for row in rows)
    tokenizer = Vocabulary("bytes", text, SCRATCH_VOCABULARY).build()
    model = random_llama(
        tokenizer,
        spread=0.2,
        hidden_size=SCRATCH_SHAPE.hidden_size,
        intermediate_size=SCRATCH_SHAPE.intermediate_size,
        num_hidden_layers=SCRATCH_SHAPE.layers,
        num_attention_heads=4,
        max_position_embeddings=SCRATCH_SHAPE.max_positions,
        tie_word_embeddings=True,
    )
    model.lm_head.weight[tokenizer.eos_token_id] *= STRETCH
    return model, tokenizer


class Evaluation:
    """Ours, on some questions."""

    def __init__(
        self, problem: Problem, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cache: Cache, every: int
    ) -> None:
        self.problem = replace(problem, questions={task: rows[::every] for task, rows in problem.questions.items()})
        self.model, self.tokenizer = model, tokenizer
        self.plan = EvalPlan(self.problem, variant="open-unlearning")
        method = UnlearningContext(model, tokenizer, self.problem, 0, cache, Costs(), "perf")
        self.context = EvalContext(method, self.plan, ())
        self.said: list[str] = []

    def seconds(self, clock: Callable[[], float] = time.process_time) -> dict[str, float]:
        """Seconds of one evaluation, of this process's CPU time unless a clock is given."""
        started = clock()
        _tofu._build_likelihood(self.context)
        between = clock()
        self.said = HFGenerator().generate(self.model, self.tokenizer, _tofu.requests(self.plan, self.tokenizer))
        rows = [row for task in _tofu.TASKS for row in self.problem.questions[task]]
        for row, text in zip(rows, self.said, strict=True):
            _tofu.rouge_recall(row["answer"], text)
        return {"likelihoods": between - started, "answers": clock() - between}

    def operations(self) -> dict[str, float]:
        """Floating-point operations of the floor, after an evaluation."""
        head = self.model.get_output_embeddings().weight
        tied = head is self.model.get_input_embeddings().weight
        words = head.numel() if tied else 2 * head.numel()
        body = 2 * (sum(p.numel() for p in self.model.parameters()) - words)
        rows = [row for task in _tofu.TASKS for row in self.problem.questions[task]]
        prompts = sum(map(len, token_ids(self.tokenizer, [self.problem.template.prompt(row["question"]) for row in rows])))
        texts = [
            self.problem.template.example(row["question"], answer)
            for row in rows
            for answer in (row["answer"], *([row[ANSWERS[1]]] if ANSWERS[1] in row else []), *row[ANSWERS[2]])
        ]
        labels = sum(e.label_count for e in _tofu.encoded_texts(self.context, texts))
        answered = sum(map(len, token_ids(self.tokenizer, self.said))) + len(rows)
        return {
            name: body * (prompts + tokens) + 2 * head.numel() * tokens
            for name, tokens in (("likelihoods", labels), ("answers", answered))
        }

    def save(self, folder: Path) -> None:
        """What `_open_unlearning` reads."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        tasks = {}
        for task, rows in self.problem.questions.items():
            tasks[task] = [key for key in ANSWERS if key in rows[0]]
            lines = [json.dumps({key: row[key] for key in ("question", *tasks[task])}) for row in rows]
            (folder / f"{task}.json").write_text("\n".join(lines), encoding="utf-8")
        how = self.problem.template
        template = {
            "user_start_tag": how.question_start,
            "user_end_tag": how.question_end,
            "asst_start_tag": "" if how.scored_tag else how.answer_tag,
        }
        (folder / "questions.json").write_text(json.dumps({"tasks": tasks, "template": template}), encoding="utf-8")


def theirs(checkout: Path, folder: Path) -> dict[str, float]:
    """CPU seconds of open-unlearning's evaluation."""
    script = Path(__file__).with_name("_open_unlearning.py")
    done = subprocess.run([sys.executable, script, checkout, folder], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"open-unlearning's evaluator failed: {done.stderr.strip().splitlines()[-1:]}")
    seconds: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds


def measure(own: Evaluation, checkout: Path | None, repetitions: int) -> dict[str, list[Mapping[str, float]]]:
    """CPU seconds of every repetition: ours, the floor's, and open-unlearning's where there is a checkout."""
    found: dict[str, list[Mapping[str, float]]] = {"own": [], "floor": [], **({"open-unlearning": []} if checkout else {})}
    own.seconds()  # warms up
    with tempfile.TemporaryDirectory() as name:
        if checkout:
            own.save(Path(name))
        for _ in range(repetitions):
            before = gemm_rate(1, clock=time.process_time)
            ours = own.seconds()
            rate = statistics.mean([before, gemm_rate(1, clock=time.process_time)]) * 1e9
            each = {"own": ours, "floor": {part: count / rate for part, count in own.operations().items()}}
            if checkout:
                each["open-unlearning"] = theirs(checkout, Path(name))
            for contender, seconds in each.items():
                found[contender].append({**seconds, "all": sum(seconds.values())})
    return found


def report(found: Mapping[str, Sequence[Mapping[str, float]]], reach: Mapping[str, float]) -> list[list[str]]:
    """A row for each part."""
    rows = []
    for part in PARTS:
        seconds = {name: [each[part] for each in of] for name, of in found.items()}
        own = seconds["own"]
        over = statistics.median(a / b for a, b in zip(own, seconds["floor"], strict=True))
        cells = [part, f"{statistics.median(own):.2f}", f"{statistics.median(seconds['floor']):.2f}", f"{over:.2f}"]
        if "open-unlearning" in seconds:
            ratios = [a / b for a, b in zip(seconds["open-unlearning"], own, strict=True)]
            median = statistics.median(ratios)
            met = "" if part not in reach else "yes" if median >= reach[part] else "no"
            cells += [f"{statistics.median(seconds['open-unlearning']):.2f}", f"{median:.2f}"]
            cells += [f"{min(ratios):.2f}–{max(ratios):.2f}", f"≥ {reach[part]}" if part in reach else "", met]
        rows.append(cells)
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="ToFU's evaluation against open-unlearning's and against its operations.")
    parser.add_argument("--json", type=Path, help="where the measurement is written")
    parser.add_argument("--data-dir", type=Path, required=True, help="a folder with locuslab/TOFU")
    parser.add_argument("--open-unlearning", type=Path, help="a checkout of locuslab/open-unlearning")
    parser.add_argument("--model", type=Path, help="a checkpoint; a random Llama of 1.7 M parameters if none is given")
    parser.add_argument("--every", type=int, default=8, help="take one in so many questions")
    parser.add_argument("--repetitions", type=int, default=3, help="of each evaluation")
    options = parser.parse_args()

    torch.set_num_threads(1)
    problem = BENCHMARKS.get("tofu10").problem("scratch", Options(data_dir=options.data_dir, variant="open-unlearning"))
    if options.model:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(options.model)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    else:
        model, tokenizer = build(problem)
    with tempfile.TemporaryDirectory() as folder:
        own = Evaluation(problem, model, tokenizer, Cache(Path(folder)), options.every)
        found = measure(own, options.open_unlearning and options.open_unlearning.resolve(), options.repetitions)
    questions = sum(map(len, own.problem.questions.values()))
    length = statistics.mean(map(len, token_ids(tokenizer, own.said)))
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M"
    print(f"one thread, {size} parameters, {questions} questions, answers of {length:.0f} tokens, CPU seconds, medians")
    headings = ["part", "own", "floor", "own / floor"]
    if options.open_unlearning:
        headings += ["open-unlearning", "open-unlearning / own", "min–max", "reach", "met"]
    print(table(headings, report(found, REACH["other" if options.model else "1.7M"])))
    described: dict[str, Any] = {"parameters": size, "questions": questions, "tokens_per_answer": length}
    write(options.json, {"machine": machine(), **described, "seconds": found})


if __name__ == "__main__":
    main()
