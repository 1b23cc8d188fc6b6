"""The classification and dialogue sets: whether the public code says the same of each row.

    python -m tests.perf.kept_sets --source CHECKOUT --data DIR [--rows 50] [--steps 100] [--json out.json]

CHECKOUT is joeljang/knowledge-unlearning, DIR a data folder with its files (`DIR/tdec`). A tiny GPT-Neo is made on the spot and
begins to learn some of LAMBADA's texts and of the dialogues; the sets of the hub are rows laid out like theirs, of words drawn
from LAMBADA's. Rows are scored by the public code and by the evaluators, and every accuracy and F1 is compared.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from evals._challenge import csv_rows, files
from evals.dialogue import SETS, Dialogues, prompt, read_sets, tidied
from harness.core.costs import Costs
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan
from harness.core.method import UnlearningContext
from harness.core.problem import Problem
from harness.core.text import Template
from harness.numerics.generation import HFGenerator, generate_all
from harness.statistics.measurements import measurements
from harness.storage.cache import Cache
from tests.perf._machine import machine, write
from tests.perf.extraction import taught

POSITIONS = 1024
Row = dict[str, Any]


def made_rows(words: Sequence[str], count: int) -> dict[str, list[Row]]:
    """File in the data folder → rows laid out like the hub's, of drawn words."""
    draw = random.Random(1)

    def some(fewest: int, most: int) -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(fewest, most)))

    def arc(number: int) -> Row:
        size = 3 if number % 10 == 0 else 4  # some rows have a choice less
        choices = {"text": [some(1, 6) for _ in range(size)], "label": list("ABCD")[:size]}
        return {"question": f"{some(5, 30)}?", "choices": choices, "answerKey": draw.choice("ABC")}

    def math(_: int) -> Row:
        options = "a ) {} , b ) {} km / h , c ) 1 , {} , d ) {} , e ) none of these".format(*draw.sample(range(1000), 4))
        return {"Problem": f"{some(8, 30)} ?", "options": options, "correct": draw.choice("abcde")}

    rows: dict[str, Callable[[int], Row]] = {
        "baber/piqa": lambda _: {
            "goal": some(4, 30),
            "sol1": some(1, 12),
            "sol2": some(1, 12),
            "label": draw.randint(0, 1),
        },
        "Rowan/hellaswag": lambda _: {
            "ctx": some(10, 60),
            "endings": [some(2, 20) for _ in range(4)],
            "label": draw.choice("0123"),
        },
        "allenai/ai2_arc/ARC-Easy": arc,
        "allenai/ai2_arc/ARC-Challenge": arc,
        "aps/super_glue/copa": lambda _: {
            "premise": f"{some(4, 12)}.",
            "choice1": some(3, 9),
            "choice2": some(3, 9),
            "label": draw.randint(0, 1),
        },
        "allenai/winogrande/winogrande_s": lambda _: {
            "sentence": f"{some(4, 12)} _ {some(3, 9)}.",
            "option1": some(1, 1),
            "option2": some(1, 1),
            "answer": draw.choice("12"),
        },
        "regisss/math_qa": math,
    }
    return {f"{place}/validation.jsonl": [make(number) for number in range(count)] for place, make in rows.items()}


def prepared(data: Path, folder: Path, rows: int, steps: int) -> None:
    """The data folder and the checkpoint that both are given."""
    made = folder / "data"
    (made / "tdec").mkdir(parents=True)
    for name in SETS:
        shutil.copyfile(files(data, f"{name}.json")[0], made / "tdec" / f"{name}.json")
    for name, fields in {"lambada": ("text",), "pubmed_qa": ("question", "abstract", "final_decision")}.items():
        with (made / f"tdec/{name}.csv").open("w", encoding="utf-8", newline="") as opened:
            writer = csv.DictWriter(opened, fields, extrasaction="ignore", lineterminator="\n")  # the only line end it knows
            writer.writeheader()
            writer.writerows(row.fields for row in csv_rows(files(data, f"{name}.csv")[0], fields)[:rows])
    texts = [row.fields["text"] for row in csv_rows(made / "tdec/lambada.csv", ("text",))]
    for place, content in made_rows(" ".join(texts).split(), rows + rows // 5).items():
        (made / place).parent.mkdir(parents=True)
        (made / place).write_text("".join(f"{json.dumps(row)}\n" for row in content), encoding="utf-8")
    dialogues = [of.turns[:10] for of in read_sets(made).values() if isinstance(of, Dialogues)]
    replies = [f"{prompt(turns[:-1])[-300:]} {tidied(turns[-1])}\nUser 1:" for of in dialogues for turns in of]
    taught(folder / "gpt-neo", [*texts[: 4 * rows // 5], *replies], steps, POSITIONS)


def ours(folder: Path, rows: int) -> dict[str, list[float]]:
    """Set → accuracy or F1 of each row, by the evaluators."""
    from transformers import AutoModelForCausalLM, GPT2Tokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "gpt-neo").eval()
    tokenizer = GPT2Tokenizer.from_pretrained(folder / "gpt-neo")
    problem = Problem("tdec", 1, "tiny", [], {}, Template("plain"), {})
    loaded = UnlearningContext(model, tokenizer, problem, 0, Cache(folder / "cache"), Costs(), "")
    plan = EvalPlan(problem, data_dir=folder / "data", limit=rows)
    requests = EVALUATORS.get("dialogue").requests(plan, tokenizer)
    answers = generate_all(HFGenerator(), model, tokenizer, requests, loaded.cache, "tiny")
    context = EvalContext(loaded, plan, (), generations=answers)
    scores: dict[str, list[float]] = {}
    for name, column in (("classification", "correct"), ("dialogue", "reply_f1")):
        measurements(EVALUATORS.get(name), context)
        scores |= {str(task): of[column].tolist() for task, of in context.tables[name].groupby("task")}
    return scores


def main() -> None:
    """Make, score twice, compare, write."""
    parser = argparse.ArgumentParser(description="Classification and dialogue sets beside the public code.")
    parser.add_argument("--source", type=Path, required=True, help="a checkout of joeljang/knowledge-unlearning")
    parser.add_argument("--data", type=Path, required=True, help="a data folder with its files in tdec/")
    parser.add_argument("--rows", type=int, default=50, help="of each set")
    parser.add_argument("--steps", type=int, default=100, help="in which the tiny model is taught")
    parser.add_argument("--json", type=Path, help="where the comparison is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepared(options.data.resolve(), folder, options.rows, options.steps)
        child = str(Path(__file__).with_name("_knowledge_unlearning_sets.py"))
        command = [sys.executable, child, str(options.source.resolve()), temporary, str(options.rows)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        theirs = json.loads(done.stdout.strip().splitlines()[-1])
        scores = ours(folder, options.rows)
    compared = {}
    for name, public in theirs.items():
        differ = sum(abs(a - b) > 1e-9 for a, b in zip(public, scores[name], strict=True))
        compared[name] = {"rows": len(public), "differ": differ, "mean": sum(public) / len(public)}
        print(f"{name}: {differ} of {len(public)} rows differ; mean {compared[name]['mean']:.4f}")
    write(options.json, {"machine": machine(), "sets": compared})


if __name__ == "__main__":
    main()
