"""Settings: text to typed object to JSON and back."""

from __future__ import annotations

import re

import pytest
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from harness.core.config import check, describe, field_names, parse, resolve, settings, to_json
from harness.core.errors import UsageError


@settings
class Config:
    """Settings with every kind of field."""

    damping: PositiveFloat = 1e-8
    """λ in G + λI;
    continued on a second line."""
    step_size: PositiveFloat | None = None
    """How far."""
    target_kl: PositiveFloat | None = None
    """How far, by another measure."""
    layers: tuple[NonNegativeInt, ...] | None = None
    """Which layers."""
    epochs: PositiveInt = 5
    """How long."""
    refit: bool = True
    """Whether again."""
    name: str = "kfac"
    """Which."""

    _alternatives = (("step_size", "target_kl"),)


def resolved(*assignments: str, preset: dict | None = None) -> Config:
    return resolve(Config, preset or {}, parse(assignments), owner="kfade")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-2", 0.01),
        ("3", 3),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("none", None),
        ("None", None),
        ("null", None),
        ("[3,4]", [3, 4]),
        ("[3, 4]", [3, 4]),
        ("kfac", "kfac"),
        ('"3"', "3"),
        ("a=b", "a=b"),
        ("", ""),
        ("[x]", "[x]"),
        ("NaN", "NaN"),
    ],
)
def test_a_value_is_read_as_json_where_it_is_json_and_as_text_otherwise(text, value):
    found = parse([f"key={text}"])["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("item", ["epochs=true", "damping=True", "layers=[0,true]", "target_kl=true"])
def test_true_and_false_are_no_numbers(item: str):
    with pytest.raises(
        UsageError, match=f"^kfade: {re.escape(item.lower().replace(',', ', '))} is not allowed: a number is wanted"
    ):
        resolved(item)
    with pytest.raises(UsageError, match="a number is wanted"):
        check(Config, parse([item]), owner="kfade")
    assert resolved("refit=false").refit is False


def test_spaces_around_a_key_do_not_count():
    assert parse([" damping =1"]) == {"damping": 1}


@pytest.mark.parametrize("item", ["damping", "=3", "", "  =3"])
def test_an_item_that_is_no_assignment_is_refused_with_an_example(item):
    with pytest.raises(UsageError, match="key=value"):
        parse([item])


def test_a_key_given_twice_is_refused():
    with pytest.raises(UsageError, match="'damping' is given twice"):
        parse(["damping=1", "damping=1"])


def test_later_layers_win_over_earlier_ones_and_over_defaults():
    config = resolve(Config, {"damping": 1, "epochs": 2}, {"damping": 3}, owner="kfade")
    assert (config.damping, config.epochs, config.name) == (3, 2, "kfac")


def test_lists_become_tuples_and_none_clears_a_preset():
    assert resolved("layers=[3,4]").layers == (3, 4)
    assert resolved("layers=none", preset={"layers": [1]}).layers is None


def test_settings_cannot_be_changed_after_they_were_checked():
    with pytest.raises((AttributeError, TypeError)):
        resolved().damping = 2


def test_an_unknown_key_is_answered_with_the_nearest_one():
    with pytest.raises(UsageError, match=r"no setting of kfade called 'dampin'\. Did you mean 'damping'\?"):
        resolved("dampin=1")


def test_a_key_unlike_all_others_is_answered_with_all_of_them():
    with pytest.raises(UsageError) as refused:
        resolved("zzz=1")
    assert "Did you mean" not in str(refused.value)
    assert all(name in str(refused.value) for name in field_names(Config))


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("damping=-1", "damping=-1 is not allowed"),
        ("damping=0", "damping=0 is not allowed"),
        ("damping=abc", 'damping="abc" is not allowed'),
        ("step_size=nan", 'step_size="nan" is not allowed'),
        ("step_size=NaN", 'step_size="NaN" is not allowed'),
        ("step_size=inf", 'step_size="inf" is not allowed'),
        ("step_size=Infinity", 'step_size="Infinity" is not allowed'),
        ("step_size=1e999", "is not allowed"),
        ("layers=[x]", 'layers="[x]" is not allowed'),
        ("layers=[-1]", "layers=-1 is not allowed"),
        ("layers=3", "layers=3 is not allowed"),
        ("epochs=1.5", "epochs=1.5 is not allowed"),
        ("epochs=none", "epochs=null is not allowed"),
        ("refit=maybe", 'refit="maybe" is not allowed'),
        ("name=none", "name=null is not allowed"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_in_one_sentence(assignment, said):
    with pytest.raises(UsageError) as refused:
        resolved(assignment)
    message = str(refused.value)
    assert said in message
    assert message.startswith("kfade: ")
    assert message.endswith(".")
    assert "\n" not in message


def test_several_bad_values_are_all_named():
    with pytest.raises(UsageError, match=r"damping=-1 .*; .*epochs=0 "):
        resolved("damping=-1", "epochs=0")


def test_setting_one_alternative_clears_the_other_of_a_preset():
    config = resolved("step_size=0.5", preset={"target_kl": 0.1})
    assert (config.step_size, config.target_kl) == (0.5, None)


def test_a_layer_that_sets_no_alternative_leaves_the_presets_choice():
    config = resolved("damping=1", preset={"target_kl": 0.1})
    assert (config.step_size, config.target_kl) == (None, 0.1)


def test_two_alternatives_in_one_layer_contradict_each_other():
    with pytest.raises(UsageError, match="step_size and target_kl contradict each other"):
        resolved("step_size=0.5", "target_kl=0.1")


def test_an_alternative_with_none_for_the_other_is_no_contradiction():
    assert resolved("step_size=0.5", "target_kl=none").step_size == 0.5


def test_contradictions_found_by_the_class_itself_are_one_sentence():
    from methods.kfade import KFADEConfig

    with pytest.raises(UsageError, match=r"^kfade: give one of step_size and target_kl, such as target_kl=0.1\.$"):
        resolve(KFADEConfig, owner="kfade")


@pytest.mark.parametrize(
    "assignments", [[], ["layers=[3,4]", "step_size=0.25", "refit=false", "name=x"], ["target_kl=0.1", "damping=1e-14"]]
)
def test_json_gives_the_same_settings_back(assignments):
    config = resolved(*assignments)
    assert resolve(Config, to_json(config), owner="kfade") == config


def test_json_holds_every_setting_with_its_resolved_value():
    told = to_json(resolved("layers=[3,4]"))
    assert list(told) == field_names(Config)
    assert told["layers"] == [3, 4]
    assert told["epochs"] == 5


def test_describe_tells_name_default_and_the_text_below_each_field():
    told = {name: (default, about) for name, default, about in describe(Config)}
    assert list(told) == field_names(Config)
    assert told["damping"] == (1e-8, "λ in G + λI; continued on a second line.")
    assert told["layers"] == (None, "Which layers.")
