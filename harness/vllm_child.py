"""The program that holds a vLLM engine; `harness.vllm` starts it and ends it. It imports nothing of the harness.

Its one argument is vLLM's settings as JSON. It says `"ready"` when the model is loaded; then every line it reads holds prompts,
and every line it writes their new tokens, in the same order. What vLLM itself prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    """Answer until there is nothing more to read."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vLLM prints as it likes

    def say(what: object) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    from vllm import LLM, SamplingParams

    engine = LLM(**json.loads(sys.argv[1]))
    say("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        sampling = [
            SamplingParams(
                max_tokens=each["max_tokens"],
                temperature=each["temperature"],
                seed=each["seed"],
                stop_token_ids=[each["end"]],
                ignore_eos=True,  # a checkpoint may name ends of its own
                detokenize=False,
            )
            for each in asked
        ]
        found = engine.generate([{"prompt_token_ids": each["prompt"]} for each in asked], sampling, use_tqdm=False)
        say([list(each.outputs[0].token_ids) for each in found])


if __name__ == "__main__":
    main()
