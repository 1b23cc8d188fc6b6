"""The public code of EL and MA on a model and texts: a process by itself, since it needs stand-ins for its training libraries.

    python tests/perf/_knowledge_unlearning.py CHECKOUT FOLDER

CHECKOUT is joeljang/knowledge-unlearning; FOLDER holds `gpt-neo` (a checkpoint with GPT-2's tokenizer files), `texts.csv` and
`asked.json` (`tests.perf.extraction` writes them). Its `Neo` is made as `run.py` makes it, shown the texts, trained on them with
its own steps and optimiser, and shown them again after each epoch; the weights of each moment are saved beside what it says.
Lightning and DeepSpeed are replaced by empty classes: nothing of them is computed with here. `torchmetrics` is the real one if
it is installed in the version that the code asks for (0.10); else the accuracy of two lists of tokens is written out.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


def stand_ins() -> None:
    """Modules that the public code imports and does not compute with."""
    import torch

    class Module(torch.nn.Module):
        def save_hyperparameters(self, hparams: Any) -> None:
            self.hparams = hparams

        def log(self, *args: Any, **options: Any) -> None:
            pass

        _device = torch.device("cpu")

    if importlib.util.find_spec("torchmetrics"):
        importlib.import_module("torchmetrics.functional")  # before the others, which it would look for
    else:
        functional = ModuleType("torchmetrics.functional")
        functional.accuracy = lambda a, b, ignore_index: (a == b).float().mean()  # type: ignore[attr-defined]
        sys.modules |= {"torchmetrics": ModuleType("torchmetrics"), "torchmetrics.functional": functional}
    lightning, deepspeed = ModuleType("pytorch_lightning"), ModuleType("deepspeed")
    for module in (lightning, deepspeed):  # transformers looks for both
        module.__spec__ = ModuleSpec(module.__name__, None)
    lightning.LightningModule, lightning.Callback = Module, object  # type: ignore[attr-defined]
    sys.modules |= {"pytorch_lightning": lightning, "deepspeed": deepspeed}


def main() -> None:
    """Measure, train, measure."""
    checkout, folder = Path(sys.argv[1]), Path(sys.argv[2])
    asked = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    sys.path.insert(0, str(checkout))
    stand_ins()
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    public = importlib.import_module("models.Neo_Model")
    datasets = importlib.import_module("Datasets")
    settings = {
        "mode": "unlearn", "tokenizer_name_or_path": str(folder / "gpt-neo"), "model_name_or_path": str(folder / "gpt-neo"),
        "target_length": asked["length"], "input_length": asked["length"], "output_length": asked["length"], "el_n": [asked["n"]],
        "negative_loss": True, "strategy": None, "learning_rate": asked["lr"], "ngpu": 1, "gradient_accumulation_steps": 1,
        "train_batch_size": asked["texts"],
    }  # fmt: skip
    neo = public.Neo(SimpleNamespace(**settings))
    data = datasets.Custom_Dataset(
        neo.tokenizer, str(folder / "texts.csv"), "", "target", asked["length"], asked["length"], neo.hparams
    )
    (optimiser,) = neo.configure_optimizers()
    said = []
    for epoch in range(asked["epochs"] + 1):
        batch = next(iter(DataLoader(data, batch_size=asked["texts"])))
        if epoch:
            optimiser.zero_grad()
            neo.train()
            neo.training_step(batch, 0).backward()
            optimiser.step()
            batch = next(iter(DataLoader(data, batch_size=asked["texts"])))
        neo.eval()
        neo.model.save_pretrained(folder / f"epoch-{epoch}")
        with torch.no_grad():
            scores = neo.validation_forget(batch)
        said.append({name: [float(value) for value in scores[name]] for name in ("acc", f"el_{asked['n']}-gram", "loss")})
    print(json.dumps(said))


if __name__ == "__main__":
    main()
