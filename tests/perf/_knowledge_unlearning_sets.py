"""The public code on classification and dialogue sets, a row at a time: a process by itself, as `_knowledge_unlearning.py` is.

    python tests/perf/_knowledge_unlearning_sets.py CHECKOUT FOLDER ROWS

CHECKOUT is joeljang/knowledge-unlearning; FOLDER holds `gpt-neo` (a checkpoint with GPT-2's tokenizer files) and a data folder
`data` as `tests.perf.kept_sets` writes it. Its own data sets make the prompts, its own evaluation scores them; what it would
fetch from the hub is the data folder's. Printed is, for each set, what it logs of each row: accuracy, or F1.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from _knowledge_unlearning import stand_ins

LONGEST = 512
NAMES = {  # set → (its name there, its subset)
    "lambada": ("lambada.csv", ""),
    "piqa": ("piqa", ""),
    "hellaswag": ("hellaswag", ""),
    "arc_easy": ("ai2_arc", "ARC-Easy"),
    "arc_challenge": ("ai2_arc", "ARC-Challenge"),
    "copa": ("super_glue", "copa"),
    "winogrande": ("winogrande", "winogrande_s"),
    "math_qa": ("math_qa", ""),
    "pubmed_qa": ("pubmed_qa.csv", ""),
    "wizard_of_wikipedia": ("wizard_of_wikipedia.json", ""),
    "empathetic_dialogues": ("empathetic_dialogues.json", ""),
    "blended_skill_talk": ("blended_skill_talk.json", ""),
    "wizard_of_internet": ("wizard_of_internet.json", ""),
}


def fetched(data: Path) -> Any:
    """What stands in for the hub: the data folder's rows of a name and a subset."""
    import numpy as np
    import pandas as pd

    def load_dataset(name: str, subset: str = "", **_: Any) -> SimpleNamespace:
        (file,) = (file for file in data.rglob("validation.jsonl") if name in str(file) and subset in str(file))
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if name == "ai2_arc":  # as pandas has a list of a parquet file
            for row in rows:
                row["choices"]["label"] = np.array(row["choices"]["label"])
        return SimpleNamespace(to_pandas=lambda: pd.DataFrame(rows))

    return load_dataset


def main() -> None:
    """Make each set, score its first rows, print."""
    checkout, folder, rows = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    sys.path.insert(0, str(checkout))
    stand_ins()
    import torch
    from transformers import AutoModelForCausalLM, GPT2Tokenizer

    torch.set_num_threads(1)
    public, datasets = importlib.import_module("models.Neo_Model"), importlib.import_module("Datasets")
    datasets.load_dataset = fetched(folder / "data")
    # Newer transformers no longer have the older name.
    GPT2Tokenizer.batch_encode_plus = lambda self, texts, **options: self(texts, **options)  # type: ignore[attr-defined]
    neo = public.Neo.__new__(public.Neo)
    torch.nn.Module.__init__(neo)
    neo.tokenizer = GPT2Tokenizer.from_pretrained(folder / "gpt-neo", pad_token="<|endoftext|>")
    neo.model = AutoModelForCausalLM.from_pretrained(folder / "gpt-neo").eval()
    neo.hparams = SimpleNamespace(input_length=LONGEST, cache_dir=None)
    logged: dict[str, float] = {}
    neo.log = lambda name, value, **_: logged.update({name.rpartition("/")[2]: float(value)})
    said: dict[str, list[float]] = {}
    for name, (file, subset) in NAMES.items():
        path = f"{folder}/data/tdec/{file}" if "." in file else file
        data = datasets.Custom_Dataset(neo.tokenizer, path, subset, "validation", LONGEST, LONGEST, neo.hparams)
        said[name] = []
        for number in range(min(rows, len(data))):
            row = data[number]
            batch = {key: value[None] if isinstance(value, torch.Tensor) else [value] for key, value in row.items()}
            batch["choices"] = [[choice] for choice in row["choices"]]
            with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
                neo.validation_general_lm(batch)
            said[name].append(logged["f1" if row["task_type"] == "dialog" else "acc"])
    print(json.dumps(said))


if __name__ == "__main__":
    main()
