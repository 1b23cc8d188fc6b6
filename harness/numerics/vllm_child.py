"""The program that holds a vLLM; `harness.numerics.vllm` starts it and ends it. It imports nothing of the harness.

`engine SETTINGS` loads a model with vLLM's settings, given as JSON. It says `"ready"` when the model is loaded; then every line
it reads holds prompts, and every line it writes, in the same order, their new tokens, or where a prompt comes with candidates
for the next token, those tokens' log-likelihoods. What vLLM itself prints goes to stderr. `server FLAGS` is vLLM's own server.

Either one ends at once, with all that it has started, when its stdin ends: then whoever started it is no more.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from queue import SimpleQueue
from threading import Thread
from typing import Any


def main() -> None:
    """Be what the first word says."""
    kind, *words = sys.argv[1:]
    lines: SimpleQueue[str] = SimpleQueue()
    Thread(target=_read, args=(lines,), daemon=True).start()
    if kind == "engine":
        answer(json.loads(words[0]), lines)
    else:
        sys.argv[1:] = words
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)


def _read(lines: SimpleQueue[str]) -> None:
    """All that is asked; at its end the session is killed, which this process leads."""
    with os.fdopen(
        os.dup(0), encoding="utf-8"
    ) as requests:  # sys.stdin is closed in processes that vLLM forks: nobody may hold it
        for line in requests:
            lines.put(line)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def answer(settings: dict[str, Any], lines: SimpleQueue[str]) -> None:
    """Load a model, and answer line after line."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vLLM prints as it likes

    def say(what: object) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    from vllm import LLM, SamplingParams

    def sampling(prompt: dict[str, Any]) -> SamplingParams:
        if "candidates" in prompt:
            return SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=prompt["candidates"], detokenize=False)
        return SamplingParams(
            max_tokens=prompt["max_tokens"],
            temperature=prompt["temperature"],
            seed=prompt["seed"],
            stop_token_ids=prompt["ends"],
            ignore_eos=True,  # what ends an answer is told, whatever vLLM finds in the checkpoint
            detokenize=False,
        )

    def result(prompt: dict[str, Any], answer: Any) -> list[float] | list[int]:
        if "candidates" in prompt:
            return [answer.logprobs[0][token].logprob for token in prompt["candidates"]]
        return list(answer.token_ids)

    engine = LLM(**settings)
    say("ready")
    while True:
        prompts = json.loads(lines.get())
        tokens = [{"prompt_token_ids": each["prompt"]} for each in prompts]
        outputs = engine.generate(tokens, [sampling(each) for each in prompts], use_tqdm=False)
        say([result(each, out.outputs[0]) for each, out in zip(prompts, outputs, strict=True)])


if __name__ == "__main__":
    main()
