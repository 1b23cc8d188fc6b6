"""The logit lens against reading each layer by hand, one text at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evals import logit_lens
from harness.core.evaluator import EVALUATORS, EvalContext, EvalPlan
from harness.core.measurement import Measurement
from harness.core.method import UnlearningContext
from harness.data.rows import Encoded
from harness.numerics import anatomy
from harness.numerics.logit_lens import last_norm, leading_layers
from harness.statistics.measurements import measurements
from tests.numerics.test_likelihood import FAMILIES, ragged, random_model


def by_hand(model: Any, text: Encoded) -> list[list[bool]]:
    """[T][L] whether each label leads: what leaves each decoder layer, normed, times the output embedding, in float64."""
    model = model.double()
    streams: list[torch.Tensor] = []
    handles = [
        layer.module.register_forward_hook(lambda _, __, out: streams.append(out[0] if isinstance(out, tuple) else out))
        for layer in anatomy.decoder_layers(model)
    ]
    with torch.no_grad():
        said = model(input_ids=torch.tensor([text.input_ids])).logits[0].argmax(dim=-1)
        norm = last_norm(model)
        assert norm is not None
        words = [
            model.get_output_embeddings()(norm(stream.reshape(1, -1, stream.shape[-1])))[0].argmax(dim=-1) for stream in streams
        ]
    for handle in handles:
        handle.remove()
    assert torch.equal(words[-1], said), "the last layer's word is the model's"
    return [[bool(word[t - 1] == text.input_ids[t]) for word in words] for t in range(text.prompt_tokens, len(text.input_ids))]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_read_through_the_last_norm(family: str):
    model, texts = random_model(family), ragged(9)
    found = [leads.tolist() for leads in leading_layers(model, texts, 0)]
    assert found == [by_hand(model, text) for text in texts]
    assert any(any(layer) for leads in found for layer in leads)


def test_a_model_whose_last_norm_is_not_known_is_left_out():
    model = random_model("llama")
    model.base_model.ln_f = torch.nn.Identity()
    with pytest.raises(LookupError, match="which norm comes last in a llama"):
        leading_layers(model, ragged(), 0)


def test_a_broken_model_has_no_number():
    model = random_model("llama")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(LookupError, match="a logit is not finite"):
        leading_layers(model, ragged(), 0)


def test_shares_are_of_all_answer_tokens_but_the_end(nano_context: UnlearningContext, monkeypatch: pytest.MonkeyPatch):
    import numpy as np

    import harness.numerics.logit_lens as module

    plan = EvalPlan(nano_context.problem)
    pattern = np.array([[True, False], [True, True], [False, True], [False, False]])
    monkeypatch.setattr(
        module,
        "leading_layers",
        lambda model, encoded, pad: [np.vstack([pattern, np.ones((1, 2), dtype=bool)]) for _ in encoded],
    )
    found = {m.metric: m for m in measurements(EVALUATORS.get("logit_lens"), EvalContext(nano_context, plan, ()))}
    lens, hidden = found["logit_lens"], found["logit_lens_hidden"]
    assert isinstance(lens, Measurement)
    assert isinstance(hidden, Measurement)
    assert (lens.value, hidden.value) == (0.5, 0.25)
    assert [metric.name for metric in logit_lens.METRICS] == list(found)
