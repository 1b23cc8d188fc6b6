"""The paper's ablations and tables as data: what each varies, on what, and how long it will take.

"Gauss-Newton Unlearning for the LLM Era", arXiv:2602.10568: figure 1, table 2, figure 3, appendix E (Phi-1.5 on forget10) and
table 1.
A study departs from the paper where that makes its methods comparable: strengths are budgets of measured KL rather than step
lengths, since a length means another thing in the metric of every curvature. On models trained on the spot the damping is in
units of the mean eigenvalue, as in their presets; on real ones it is the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Literal

from harness.core.config import JSON, resolve, to_json
from harness.core.documents import parse_json
from harness.core.errors import UsageError, unknown
from harness.core.method import METHODS
from harness.core.options import Options, Preset
from harness.core.problem import Problem
from harness.running.plan import Plan
from harness.running.trials import EvalPlans, Sweep, TrialSpec
from harness.storage.cache import canonical
from harness.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

EQUAL_DAMAGE = "equal-damage"
"""The study that chooses settings first; see `harness.running.equal_damage`."""
SMALL = ("mini", "scratch")
"""Model families that are trained on the spot."""
KLS = (0.01, 0.03, 0.1, 0.3)
"""Budgets in nats per token, a factor of three apart, around what mini's preset takes."""
COUNTED_PHASES = ("models", "references", "unlearning", "monitoring", "evaluation")
"""The phases of a run that follow one another; all others lie inside them."""


@dataclass(frozen=True)
class Part:
    """One grid of a study."""

    grid: Mapping[str, Sequence[JSON]]
    """What is varied."""
    fixed: Mapping[str, JSON] = field(default_factory=dict)
    """What is not, and differs from the preset."""
    methods: tuple[str, ...] = ("kfade",)
    """With what to unlearn; every registered method if empty."""
    models: Literal["any", "small", "real"] = "any"
    """Whether it is for models trained on the spot, for real ones, or for both."""
    preset: Preset = "published"
    """On which preset of the methods it stands; the tuned one leaves out methods that have none there."""
    benches: tuple[str, ...] = ()
    """On which of the study's benchmarks; on all if empty."""


@dataclass(frozen=True)
class Study:
    """Several grids that answer one question."""

    about: str
    """The question, and where the paper asks it."""
    parts: tuple[Part, ...]
    """The grids."""
    benches: tuple[str, ...] = ("tofu10",)
    """On what benchmarks."""
    seeds: tuple[int, ...] = (0,)
    """Unlearning seeds."""
    by: str = ""
    """The setting whose values are compared, where it is one."""


_KL = {"target_kl": KLS}
_ON_WMDP = ("kfade", "rmu", "elm", "soul", "npo", "simnpo", "ga", "grad_diff")
"""The methods that have a preset for WMDP."""
_PAPER_EKFAC = {"damping": 1e-10}
_PAPER_KFAC = {"damping": 1e-8}

STUDIES: Mapping[str, Study] = {
    "damping": Study(
        "how much damping K-FAC and EK-FAC want",
        (
            Part(
                {"estimator": ("kfac", "ekfac"), "damping": (1e-3, 1e-2, 0.1, 1.0, 10.0), "target_kl": (0.1,)}, models="small"
            ),
            Part({"estimator": ("kfac", "ekfac"), "damping": (1e-12, 1e-10, 1e-8, 1e-6), "target_kl": (0.1,)}, models="real"),
        ),
        by="damping",
    ),
    "forget-in-hessian": Study(
        "whether the forget set belongs into the curvature (figure 3, appendix E: it costs retain KL)",
        (
            Part({"curvature_on": ("retain", "retain+forget"), **_KL}, {"estimator": "ekfac"}, models="small"),
            Part({"curvature_on": ("retain", "retain+forget"), **_KL}, {"estimator": "ekfac", **_PAPER_EKFAC}, models="real"),
        ),
        by="curvature_on",
    ),
    "hessian": Study(
        "which form of the curvature is worth its cost: K-FAC, EK-FAC, diagonal, identity (figure 3)",
        (
            Part({"estimator": ("kfac", "ekfac", "diagonal", "identity"), **_KL}, models="small"),
            Part({"estimator": ("kfac",), **_KL}, _PAPER_KFAC, models="real"),
            Part({"estimator": ("ekfac", "diagonal", "identity"), **_KL}, _PAPER_EKFAC, models="real"),
        ),
        by="estimator",
    ),
    "layers": Study(
        "which layers' MLPs have to move",
        (
            Part({"layers": ((0,), (1,), None), **_KL}, models="small"),
            Part({"layers": ((3, 4, 5, 6), None), **_KL}, _PAPER_KFAC, models="real"),
        ),
        by="layers",
    ),
    "objective": Study(
        "what is raised on the forget set: cross-entropy, minus the margin, minus the losses of NPO and SimNPO",
        (
            Part({"objective": ("cross_entropy", "margin", "npo"), **_KL}),
            Part({"objective": ("simnpo",), **_KL}, {"beta": 2.5}),
        ),
        by="objective",
    ),
    "reported": Study(
        "what this project commits as its results: every method, published and tuned, with three seeds",
        (
            Part({}, methods=(), benches=("tofu01", "tofu05", "tofu10")),
            Part({}, methods=(), benches=("tofu05", "tofu10"), preset="tuned"),
            Part({}, methods=("untouched", *_ON_WMDP), benches=("wmdp",)),
            Part({}, methods=_ON_WMDP, benches=("wmdp",), preset="tuned"),
        ),
        benches=("tofu01", "tofu05", "tofu10", "wmdp"),
        seeds=(0, 1, 2),
    ),
    "samples": Study(
        "how many retain sequences and sampled labels a fit needs (appendix E)",
        (
            Part({"retain_rows": (50, 200, 800, None), "target_kl": (0.03, 0.1)}, {"estimator": "ekfac"}, models="small"),
            Part({"mc_samples": (4, 16), "target_kl": (0.03, 0.1)}, {"estimator": "ekfac"}, models="small"),
            Part({"retain_rows": (50, 200, 800, None), **_KL}, {"estimator": "ekfac", **_PAPER_EKFAC}, models="real"),
            Part({"mc_samples": (4,), **_KL}, {"estimator": "ekfac", **_PAPER_EKFAC}, models="real"),
        ),
        by="retain_rows",
    ),
    "step-size": Study(
        "how long a step is: the trade-off curve over α (appendix D.2 sweeps 2.5e-3 to 1.1e-2)",
        (
            Part({"step_size": (0.02, 0.03, 0.045, 0.054, 0.065, 0.08)}, models="small"),
            Part({"step_size": (2.5e-3, 3.5e-3, 5e-3, 6.5e-3, 8e-3, 1.1e-2)}, _PAPER_KFAC, models="real"),
        ),
        by="step_size",
    ),
    "steps": Study(
        "whether several shorter steps beat one, with the curvature fitted anew before each or once",
        (Part({"steps": (1,), **_KL}), Part({"steps": (2, 4, 8), "refit": (True, False), **_KL})),
        by="steps",
    ),
    "tofu-pareto": Study(
        "forget quality against utility: K-FADE over its strength, the others along their way (figure 1)",
        (
            Part({}, methods=("untouched", "retrained", "ga", "grad_diff", "kl_min", "npo", "simnpo", "dpo", "idk", "soul")),
            Part({"target_kl": (*KLS, 0.05, 0.14, 0.2)}),
        ),
    ),
    "tofu-table": Study(
        "every method as published, with three seeds (table 2)",
        (Part({}, methods=()),),
        benches=("tofu05", "tofu10"),
        seeds=(0, 1, 2),
    ),
}

ABOUT: Mapping[str, str] = {
    **{name: study.about for name, study in STUDIES.items()},
    EQUAL_DAMAGE: "which method is better at equal damage: tries on world 1, what they choose on worlds 0 and 2",
}
"""The question of every study."""


def study_of(name: str) -> Study:
    """The study of that name.

    Raises:
        UsageError: if there is none (with the nearest name).
    """
    if name not in STUDIES:
        raise unknown("study", name, STUDIES, "harness list studies")
    return STUDIES[name]


def trials_of(
    study: Study, benches: Sequence[str], model: str, seeds: Sequence[int], options: Options, methods: Sequence[str] = ()
) -> list[TrialSpec]:
    """Every run of a study; benchmarks, seeds and methods are the study's own where none are given.

    Raises:
        UsageError: for a method that is not among the study's.
    """
    family = model.partition("@")[0]
    size = "small" if family in SMALL else "real"
    specs: list[TrialSpec] = []
    for part in study.parts:
        if part.models not in ("any", size):
            continue
        grid = {key: [list(v) if isinstance(v, tuple) else v for v in values] for key, values in part.grid.items()}
        for bench in [b for b in benches or study.benches if b in part.benches or not part.benches]:
            names = [
                name
                for name in part.methods or METHODS.names()
                if part.preset == "published"
                or any(entry.preset == part.preset and entry.holds_for(bench, family) for entry in METHODS.get(name).presets)
            ]
            of_bench = Sweep(names, [bench], model, seeds or study.seeds, options, grid, dict(part.fixed), part.preset)
            specs += of_bench.trials()
    for name in methods:
        if name not in (known := {todo.method for todo in specs}):
            raise unknown("method of this study", name, known)
    return [todo for todo in specs if not methods or todo.method in methods]


def settings_of(study: Study, bench: str, model: str) -> set[tuple[str, str]]:
    """Method and settings, as a record's canonical JSON, of every run of a study on a benchmark and model."""
    settings = set()
    for todo in trials_of(study, [bench], model, (), Options()):
        method = METHODS.get(todo.method)
        chosen = method.preset(bench, model.partition("@")[0], todo.preset)
        config = resolve(method.config, chosen, {**todo.fixed, **todo.chosen}, owner=todo.method)
        settings.add((todo.method, canonical(to_json(config))))
    return settings


def runs_of(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """The runs' table, cut down to a study's settings and the references.

    Raises:
        UsageError: if there is no such study, or none of its runs; names the command that makes them.
    """
    study, wanted = study_of(name), set()
    for bench, model in set(zip(runs["bench"], runs["model"], strict=True)):
        wanted |= {(bench, model, *each) for each in settings_of(study, bench, model)}
    names = zip(runs["bench"], runs["model"], runs["method"], runs["config"], strict=True)
    kept = runs[[each in wanted for each in names]]
    if kept.empty:
        raise UsageError(f"there are no runs of the study {name}. Make them: harness study {name}")
    if study.by and not any(_several(of, study.by) for _, of in kept.groupby(["bench", "model", "method"], sort=True)):
        raise UsageError(f"of the study {name} no two values of '{study.by}' have been run. Make them: harness study {name}")
    return kept


def _several(runs: pd.DataFrame, setting: str) -> bool:
    """Whether a setting has more than one value in them."""
    values = {canonical(parse_json(text, "a setting").get(setting)) for text in runs["config"].unique()}
    return len(values) > 1


def possible(tries: Sequence[TrialSpec], eval_plans: EvalPlans) -> tuple[list[TrialSpec], list[str]]:
    """The tries whose methods can run there, and for the others why not."""
    kept, left = [], []
    for todo in tries:
        if reason := _reason_against(todo, todo.eval_plan(eval_plans).problem):
            left.append(f"{todo.method} is left out on {todo.bench}: {reason}")
        else:
            kept.append(todo)
    return kept, sorted(set(left))


def _reason_against(todo: TrialSpec, problem: Problem) -> str | None:
    """Why a method cannot run on a problem, or not with these settings."""
    method = METHODS.get(todo.method)
    if reason := method.skip_reason(problem):
        return reason
    preset = method.preset(todo.bench, problem.family or problem.model.partition("@")[0], todo.preset)
    config = resolve(method.config, preset, {**todo.fixed, **todo.chosen}, owner=todo.method)
    return method.refusal(problem, config)


@dataclass(frozen=True)
class Forecast:
    """What a list of runs will take."""

    runs: int
    """All of them."""
    done: int
    """How many of them are done already."""
    seconds: float
    """What the others will take, as far as anything is recorded of their methods."""
    unknown: Sequence[str]
    """Methods of some of whose runs nothing like them is recorded."""

    def __str__(self) -> str:
        left = self.runs - self.done
        text = f"{self.runs} runs, {self.done} of them done"
        if not left:
            return text
        if not self.seconds:
            return f"{text}; how long the other {left} take is unknown: no such run is recorded"
        hours, minutes = divmod(max(1, round(self.seconds / 60)), 60)
        text += f"; the other {left} take about {f'{hours} h ' if hours else ''}{minutes} min by what is recorded"
        return text + (f", not counting those of {', '.join(self.unknown)} that are like none recorded" if self.unknown else "")


def forecast(plans: Sequence[Plan], store: Store, jobs: int = 1) -> Forecast:
    """How long runs will take, by the median of what was recorded of the same method, benchmark and model, measured alike.

    Args:
        plans: the runs.
        store: where records lie.
        jobs: how many run at a time.
    """
    done, seconds, missing = 0, 0.0, set()
    known: dict[object, float | None] = {}
    for todo in plans:
        status = store.status(todo.spec)
        if status == "done":
            done += 1
            continue
        spec = todo.spec
        alike = (str(spec.folder.parent), spec.points, spec.limit, spec.device, tuple(sorted(spec.evaluators)))
        if alike not in known:
            known[alike] = _recorded_seconds(todo, store)
        if (took := known[alike]) is None:
            missing.add(spec.method)
        else:
            seconds += took
    return Forecast(len(plans), done, seconds / jobs, sorted(missing))


def _recorded_seconds(todo: Plan, store: Store) -> float | None:
    took = []
    for place in store.places(f"{todo.spec.folder.parent.as_posix()}/*"):
        try:
            record = store.document(place)
            spec, costs = record["spec"], record["costs"]
            same = (spec["points"], spec["limit"], spec["device"]) == (todo.spec.points, todo.spec.limit, todo.spec.device)
            if record["status"] == "done" and same and set(spec["evaluators"]) == set(todo.spec.evaluators):
                took.append(sum(costs[phase]["seconds"] for phase in COUNTED_PHASES if phase in costs))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no record of ours; `harness validate` names it
    return median(took) if took else None
