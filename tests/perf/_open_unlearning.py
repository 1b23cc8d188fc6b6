"""open-unlearning's own metrics on a checkpoint and rows of questions: a process by itself, since its packages' names are ours.

    python tests/perf/_open_unlearning.py CHECKOUT FOLDER

FOLDER holds a checkpoint and `questions.json` (`tests.perf.evaluation` writes both). Prints CPU seconds as JSON. Run are the
checkout's `probability` and `rouge` over its own data sets and collators, at the sizes of its `configs/eval/tofu.yaml` and
`configs/generation/default.yaml`. Its packages' `__init__` files are passed over, which load other benchmarks.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

BATCH = 32
GENERATION = {"do_sample": False, "top_p": None, "temperature": None, "max_new_tokens": 200, "use_cache": True}


def stand_in(name: str, folder: Path | None = None) -> ModuleType:
    """A module of that name: a package of a folder whose `__init__` does not run, or an empty one."""
    module = sys.modules[name] = ModuleType(name)
    if folder:
        module.__path__ = [str(folder)]
    return module


def main() -> None:
    """Measure and print."""
    source, folder = Path(sys.argv[1]) / "src", Path(sys.argv[2])
    os.environ |= {"HF_DATASETS_CACHE": str(folder / "datasets"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    sys.path.insert(0, str(source))
    for name in ("data", "evals", "evals.metrics"):
        stand_in(name, source.joinpath(*name.split(".")))
    for name in ("get_datasets", "get_collators"):
        setattr(sys.modules["data"], name, None)
    if importlib.util.find_spec("omegaconf") is None:  # its metrics only turn its configuration into a dictionary
        omegaconf = stand_in("omegaconf")
        omegaconf.OmegaConf = SimpleNamespace(to_container=lambda config, **_: dict(config))  # type: ignore[attr-defined]
        omegaconf.DictConfig = dict  # type: ignore[attr-defined]
    memorization = importlib.import_module("evals.metrics.memorization")
    collator = importlib.import_module("data.collators").DataCollatorForSupervisedDataset
    dataset = importlib.import_module("data.qa").QADataset
    logging.disable(logging.WARNING)

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    asked = json.loads((folder / "questions.json").read_text(encoding="utf-8"))

    def run(metric: Any, task: str, answer: str, **settings: Any) -> float:
        rows = dataset(
            {"path": "json", "data_files": str(folder / f"{task}.json"), "split": "train"},
            {"apply_chat_template": False, **asked["template"]},
            tokenizer,
            answer_key=answer,
            predict_with_generate="generation_args" in settings,
        )
        side = "left" if "generation_args" in settings else "right"
        started = time.process_time()  # reading the files is not measured; rows are tokenised when a batch is made of them
        metric._metric_fn(model, data=rows, collators=collator(tokenizer, side, "index"), batch_size=BATCH, **settings)
        return time.process_time() - started

    seconds = {
        "likelihoods": sum(run(memorization.probability, task, key) for task, keys in asked["tasks"].items() for key in keys),
        "answers": sum(
            run(memorization.rouge, task, "answer", tokenizer=tokenizer, generation_args=GENERATION, rouge_type="rougeL_recall")
            for task in asked["tasks"]
        ),
    }
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
