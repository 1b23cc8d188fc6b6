"""EL and MA: how long they take beside one forward pass per new token, and whether the public code says the same.

    python -m tests.perf.extraction [--texts 32] [--repetitions 3] [--threads 1] [--json out.json]
    python -m tests.perf.extraction --source CHECKOUT --csv lm_extraction_32_0.csv [--texts 32] [--epochs 2]

The floor is what one batched forward pass per new token takes, keys and values of all that stands before it at hand: at each
position all beginnings that have come so far, 19,701 passes of a row for each text of 200 tokens. The model is a random Llama
whose likeliest tokens are never the texts' own, so that no beginning is spared; a model that knows them is quicker.

With `--source` the public code (joeljang/knowledge-unlearning) runs beside on a tiny GPT-Neo that is made and taught the texts
on the spot, before and after each of its own epochs of gradient ascent, and every number is compared as it is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Cache

from evals.extraction import EXTRACTION, LENGTH, LOSS, MEMORISATION, N, scores, tokens_of
from harness.models.recipes import Vocabulary
from harness.numerics.beginnings import TOKENS_HELD
from harness.numerics.decoding import Buffer
from tests.perf._llama import random_llama
from tests.perf._machine import machine, table, write

COLUMNS = {"acc": MEMORISATION, f"el_{N}-gram": EXTRACTION, "loss": LOSS}
"""The public code's names → ours."""


def floor(model: Any, texts: int) -> float:
    """Processor seconds of one forward pass per new token of all beginnings of some texts, in batches as large as ours."""
    rows, config = TOKENS_HELD // LENGTH, model.config
    lengths, seconds = np.repeat(np.arange(1, LENGTH - 1), texts), 0.0
    for start in range(0, len(lengths), rows):
        part = lengths[start : start + rows]
        shape = len(part), config.num_key_value_heads, LENGTH, config.hidden_size // config.num_attention_heads
        layers = [Buffer() for _ in range(config.num_hidden_layers)]
        for layer in layers:
            layer.hold([torch.randn(shape)], [torch.randn(shape)], room=0)
        for position in range(int(part[0]), LENGTH - 1):
            count = int((part <= position).sum())
            for layer in layers:
                layer.show(count, position)
            ids, places = torch.full((count, 1), 5), torch.full((count, 1), position)
            started = time.process_time()
            model(input_ids=ids, position_ids=places, past_key_values=Cache(list(layers)), use_cache=True, logits_to_keep=1)
            seconds += time.process_time() - started
    return seconds


def timed(texts: int, repetitions: int) -> dict[str, Any]:
    """Processor seconds of ours and of the floor, in turn, and their ratios."""
    tokenizer = Vocabulary("words", tuple(f"w{i}" for i in range(500))).build()
    shape = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = random_llama(tokenizer, spread=0.2, max_position_embeddings=256, **shape)
    model.lm_head.weight[tokenizer.all_special_ids] = 0
    ids = np.random.default_rng(0).integers(3, 503, (texts, LENGTH)).tolist()
    found: dict[str, Any] = {"seconds": {"ours": [], "floor": []}}
    with torch.no_grad():
        for _ in range(repetitions):
            started = time.process_time()
            scores(model, ids, [tokenizer.eos_token_id])
            found["seconds"]["ours"].append(time.process_time() - started)
            found["seconds"]["floor"].append(floor(model, texts))
    found["ratios"] = [a / b for a, b in zip(found["seconds"]["ours"], found["seconds"]["floor"], strict=True)]
    return found


# ---------------------------------------------------------------- the public code beside


def taught(folder: Path, texts: Sequence[str], steps: int, positions: int = 512) -> None:
    """A tiny GPT-Neo with a tokenizer of GPT-2's kind, that has learnt some texts well but not by heart."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Tokenizer, GPTNeoConfig, GPTNeoForCausalLM

    folder.mkdir()
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(texts, vocab_size=1000, special_tokens=["<|endoftext|>"], show_progress=False)
    learner.save_model(str(folder))
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=positions,
        bos_token_id=end,
        eos_token_id=end,
        initializer_range=0.1,
    )
    model = GPTNeoForCausalLM(config)
    ids = torch.tensor(tokens_of([{"text": text} for text in texts], tokenizer, corrected=False))
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)


def beside(source: Path, csv: Path, texts: int, epochs: int, steps: int) -> dict[str, Any]:
    """Every number of the public code and ours, as they are printed, and how many of them differ."""
    import pandas as pd
    from transformers import AutoModelForCausalLM, GPT2Tokenizer

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = pd.read_csv(csv, lineterminator="\n").head(texts)
        rows.to_csv(folder / "texts.csv", index=False, lineterminator="\n")
        taught(folder / "gpt-neo", list(rows["text"]), steps)
        asked = {"length": LENGTH, "n": N, "lr": 1e-4, "epochs": epochs, "texts": len(rows)}
        (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        command = [sys.executable, str(Path(__file__).with_name("_knowledge_unlearning.py")), str(source), str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        theirs = json.loads(done.stdout.strip().splitlines()[-1])
        tokenizer = GPT2Tokenizer.from_pretrained(folder / "gpt-neo")
        ids = tokens_of(rows.to_dict("records"), tokenizer, corrected=False)
        epochs_compared = []
        for epoch, public in enumerate(theirs):
            model = AutoModelForCausalLM.from_pretrained(folder / f"epoch-{epoch}").eval()
            ours = scores(model, ids, [tokenizer.eos_token_id])
            pairs = {
                name: list(zip(map(printed, public[name]), map(printed, ours[column]), strict=True))
                for name, column in COLUMNS.items()
            }
            epochs_compared.append(
                {name: {"differ": sum(a != b for a, b in of), "numbers": len(of), "pairs": of} for name, of in pairs.items()}
            )
    return {"epochs": epochs_compared}


def printed(value: float) -> str:
    """As the public code's tables print a number: float32's shortest digits."""
    return str(np.float32(value))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="EL and MA beside their floor, and beside the public code.")
    parser.add_argument("--json", type=Path, help="where the measurement is written")
    parser.add_argument("--texts", type=int, default=32, help="how many")
    parser.add_argument("--repetitions", type=int, default=3, help="of ours and the floor")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument("--source", type=Path, help="a checkout of joeljang/knowledge-unlearning to be compared with")
    parser.add_argument("--csv", type=Path, help="the texts for that: one of its forget sets")
    parser.add_argument("--epochs", type=int, default=2, help="of the public code's gradient ascent")
    parser.add_argument("--steps", type=int, default=150, help="in which the tiny model is taught the texts")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.source:
        found = beside(options.source, options.csv, options.texts, options.epochs, options.steps)
        for epoch, columns in enumerate(found["epochs"]):
            for name, of in columns.items():
                print(f"epoch {epoch}, {name}: {of['differ']} of {of['numbers']} numbers differ; first ones {of['pairs'][:3]}")
    else:
        found = timed(options.texts, options.repetitions)
        rows = [
            [name, *(f"{value:.3g}" for value in of)] for name, of in {**found["seconds"], "ratio": found["ratios"]}.items()
        ]
        print(table(["processor seconds", *(str(i + 1) for i in range(options.repetitions))], rows))
        print(f"median ratio {statistics.median(found['ratios']):.2f}")
    write(options.json, {"machine": machine(), "texts": options.texts, "threads": options.threads, **found})


if __name__ == "__main__":
    main()
