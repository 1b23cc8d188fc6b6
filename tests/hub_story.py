"""What happens to runs while a repository of the hub moves; run as a program, it prints what each run recorded as JSON.

The hub is the one of `hub_server`, in this process; `huggingface_hub` reads its address when it is first imported.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.hub_server import Hub, hub_server

MODEL = "phi-1.5"


def main(root: Path) -> dict[str, Any]:
    """The story, chapter by chapter; each is a command of its own, as far as the hub is concerned."""
    with hub_server() as hub:
        os.environ.update(HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(root / "hf"), HF_HUB_OFFLINE="0", HARNESS_CACHE=str(root / "c"))
        return _story(hub, root)


def _story(hub: Hub, root: Path) -> dict[str, Any]:
    from evals.benchmarks.tofu.cards import CARDS
    from tests.models.test_cards import vocabulary, write_model, write_rows, write_tokenizer

    card = CARDS[MODEL]
    retain = card.retain.format(split="retain90")
    for name in ("old", "new"):
        write_tokenizer("phi", root / name / card.tokenizer)
        for seed, model in enumerate((card.base, retain)):
            write_model("phi", root / name / model, vocabulary(root / name / card.tokenizer), 2, seed + 10 * (name == "new"))
    write_rows(root / "old")
    data = root / "old" / "locuslab" / "TOFU"
    tokenizer = hub.push(card.tokenizer, root / "old" / card.tokenizer) if card.tokenizer != card.base else None
    commits = {"old": hub.push(card.base, root / "old" / card.base), "tokenizer": tokenizer}
    hub.push(retain, root / "old" / retain)
    hub.push("locuslab/TOFU", data, "dataset")

    told: dict[str, Any] = {"commits": commits, "first": run(root)}
    told["again"] = run(root)
    told["offline"] = run(root, offline=True)

    def moves() -> None:
        commits["new"] = hub.push(card.base, root / "new" / card.base)
        hub.push(retain, root / "new" / retain)

    told["moved while it ran"] = run(root, results="second", between=moves)
    told["after it moved"] = run(root, results="second")
    told["asked"] = len(hub.asked)
    told["offline after it moved"] = run(root, results="third", offline=True)
    told["asked offline"] = len(hub.asked) - told["asked"]
    return told


def run(root: Path, results: str = "first", offline: bool = False, between: Any = None) -> dict[str, Any]:
    """One command: plan, then do what is planned."""
    from dataclasses import replace

    import huggingface_hub.constants

    from harness.core.options import Options
    from harness.data import hub
    from harness.running.plan import plan
    from harness.running.run import execute
    from harness.storage.cache import Cache
    from harness.storage.store import Store

    huggingface_hub.constants.HF_HUB_OFFLINE = offline
    hub.unreachable.cache_clear()
    hub._commits.clear()
    options = Options(limit=2, evals=("probability", "forget_quality"))
    todo = plan("tofu10", MODEL, "untouched", {}, options)
    if between:
        between()
    store = Store(root / "results" / results)
    todo = replace(todo, eval_plan=replace(todo.eval_plan, of=replace(todo.problem, generation_budget=6)))
    result = execute(todo, store, Cache())
    assert result.provenance is not None
    return {
        "id": result.spec.run_id,
        "sources": dict(result.spec.sources),
        "weights": result.provenance.weights,
        "records": len(list(store.runs())),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
