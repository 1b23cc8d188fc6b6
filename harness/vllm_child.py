"""The program that holds a vLLM engine; `harness.vllm` starts it and ends it. It imports nothing of the harness.

Its one argument is vLLM's settings as JSON. It says `"ready"` when the model is loaded; then every line it reads holds prompts,
and every line it writes, in the same order, their new tokens, or where a prompt comes with candidates for the next token, those
tokens' log-likelihoods. What vLLM itself prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Answer until there is nothing more to read."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vLLM prints as it likes

    def say(what: object) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    from vllm import LLM, SamplingParams

    def sampling(asked: dict[str, Any]) -> SamplingParams:
        if "candidates" in asked:
            return SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=asked["candidates"], detokenize=False)
        return SamplingParams(
            max_tokens=asked["max_tokens"],
            temperature=asked["temperature"],
            seed=asked["seed"],
            stop_token_ids=asked["ends"],
            ignore_eos=True,  # what ends an answer is told, whatever vLLM finds in the checkpoint
            detokenize=False,
        )

    def told(asked: dict[str, Any], answer: Any) -> list[float] | list[int]:
        if "candidates" in asked:
            return [answer.logprobs[0][token].logprob for token in asked["candidates"]]
        return list(answer.token_ids)

    engine = LLM(**json.loads(sys.argv[1]))
    say("ready")
    for line in sys.stdin:
        prompts = json.loads(line)
        tokens = [{"prompt_token_ids": each["prompt"]} for each in prompts]
        found = engine.generate(tokens, [sampling(each) for each in prompts], use_tqdm=False)
        say([told(each, out.outputs[0]) for each, out in zip(prompts, found, strict=True)])


if __name__ == "__main__":
    main()
