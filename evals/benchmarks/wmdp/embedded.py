"""The benchmark's data out of the embedded crafts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evals.benchmarks.wmdp.crafts import World
from evals.benchmarks.wmdp.crafts_data import DOMAINS, NEIGHBOURS, Role
from evals.benchmarks.wmdp.data import WmdpData, in_turn, numbered, retain_kinds, texts
from evals.benchmarks.wmdp.models import world
from harness.core.config import JSON
from harness.core.options import Options
from harness.core.problem import Row, Stage
from harness.core.text import Example
from harness.data.rows import fingerprint

MINI_DOCUMENTS = 3
"""Descriptions of each entity in the corpora to forget and to retain."""
MINI_STORIES = 100
ROLES: tuple[Role, ...] = ("bio", "cyber", "neighbours", "general")
"""What the embedded world asks about."""
HAZARDOUS: Mapping[str, str] = {domain.role: domain.name for domain in DOMAINS.values()}
"""Stage → its domain."""
GENERAL = [domain.name for domain in DOMAINS.values() if domain.role == "general"]


def embedded_data(seed: int, stages: Sequence[str], options: Options) -> WmdpData:
    """Texts and questions of one world.

    Args:
        seed: of the world.
        stages: the domains to forget: `bio`, `cyber`.
        options: with the limit, and the kinds of texts that guard a stage.
    """
    crafts, limit = world(seed), options.limit

    def documents(*domains: str) -> list[Example]:
        return in_turn(*(texts([t for of in crafts.documents(d, MINI_DOCUMENTS) for t in of]) for d in domains))

    general = in_turn(documents(*GENERAL), texts(crafts.stories[:MINI_STORIES]))
    further = (t for domain in GENERAL for of in crafts.documents(domain, 2 * MINI_DOCUMENTS) for t in of[MINI_DOCUMENTS:])
    about, tested, guarded = _described(crafts), {e.title for name in DOMAINS for e in crafts.tested_entities(name)}, []
    for name in stages:
        kinds = {"neighbours": documents(NEIGHBOURS[name]), "general": general}
        retain = in_turn(*(kinds[kind] for kind in retain_kinds(options.retain)))[:limit]
        clusters = [about.get(e.answer, e.answer) for e in retain]
        guarded.append(Stage(name, documents(HAZARDOUS[name])[:limit], retain, clusters, tested))
    questions: dict[str, Sequence[Row]] = {role: crafts.questions(role) for role in ROLES}
    questions["instructions"] = crafts.instructions
    digests: dict[str, JSON] = {name: fingerprint(rows) for name, rows in questions.items()}
    for name in stages:
        descriptions = crafts.documents(HAZARDOUS[name])
        digests[f"{name}-forget"] = fingerprint([{"text": text} for of in descriptions for text in of])
    kept_general = in_turn(texts(list(further)), texts(crafts.stories[MINI_STORIES:]))[:limit]
    return WmdpData(
        guarded,
        {name: numbered(rows[:limit], "entity") for name, rows in questions.items()},
        digests,
        attacks={
            "benign": general,
            "related": documents(*(NEIGHBOURS[name] for name in stages)),
            "forget": documents(*(HAZARDOUS[name] for name in stages)),
        },
        generation_budget=64,
        general=kept_general,
        general_clusters=[about.get(e.answer, e.answer) for e in kept_general],
        notes=["the embedded crafts: under two million parameters and invented things; it ranks nothing beyond itself"],
    )


def _described(crafts: World) -> dict[str, str]:
    """Description → the entity that it describes; a story is about nothing."""
    pairs = ((e, of) for name in DOMAINS for e, of in zip(crafts.entities[name], crafts.documents(name), strict=True))
    return {text: entity.title for entity, of in pairs for text in of}
