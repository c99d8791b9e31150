"""The operators of a recipe's `combine:` by name: parts, options and meaning are those of each function's signature and
docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from plaudit.rewards.base import summary_of
from plaudit.rewards.compose import groups, noise, operators, pairwise, pareto, running, shapers, trust, units
from plaudit.rewards.compose.units import Rule

REQUIRED = inspect.Parameter.empty
GIVEN = ("group", "step", "prompts", "learn")  # arguments that come from the batch, not from the formula
Kind = Literal["number", "integer", "numbers", "word"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """`number` may depend on the step, `numbers` is a text such as "0.5, 0.75", `word` one of `choices`."""

    name: str
    kind: Kind
    default: Any = REQUIRED
    choices: tuple[str, ...] = ()

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    @property
    def text(self) -> str:
        """As the docs show it: `floor=0.001`."""
        if self.required:
            return f"{self.name}="
        words = ", ".join(f"{value:g}" for value in self.default) if self.kind == "numbers" else str(self.default)
        return f'{self.name}="{words}"' if self.kind in ("numbers", "word") else f"{self.name}={self.default}"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """`function` takes the parts named by `parts`, then, as one sequence, `more` further ones (None: it takes no more; a
    number: at least that many), and `options` by name. `needs` are of `group`, `step`, `prompts` and `learn`. An operator with a
    memory is a class: its options make it, its calls are handed the parts."""

    name: str
    function: Callable[..., Any]
    meaning: str
    parts: tuple[str, ...]
    more: int | None
    options: tuple[Option, ...]
    needs: tuple[str, ...]
    unit: Rule

    @property
    def has_memory(self) -> bool:
        return inspect.isclass(self.function)

    @property
    def is_schedule(self) -> bool:
        return not self.parts and self.more is None

    @property
    def fewest(self) -> int:
        return len(self.parts) + (self.more or 0)

    @property
    def usage(self) -> str:
        """As the docs show it: `clip(scores, low=-inf, high=inf)`."""
        further = [] if self.more is None else ["..."]
        return f"{self.name}({', '.join([*self.parts, *further, *(option.text for option in self.options)])})"


def operator(name: str, function: Callable[..., Any], unit: Rule, *, fewest: int = 2) -> Operator:
    """`fewest` counts only where the function takes any number of parts."""
    made, called = (function.__init__, function.__call__) if inspect.isclass(function) else (function, function)
    hints = get_type_hints(called)
    return Operator(
        name=name,
        function=function,
        meaning=summary_of(function),
        parts=tuple(key for key, hint in hints.items() if hint is Tensor and key not in (*GIVEN, "return")),
        more=fewest if Sequence[Tensor] in hints.values() else None,
        options=tuple(_options(made)),
        needs=tuple(key for key in GIVEN if key in hints),
        unit=unit,
    )


def _options(function: Callable[..., Any]) -> list[Option]:
    hints = get_type_hints(function)
    parameters = inspect.signature(function).parameters
    options = []
    for name in (name for name in parameters if name not in GIVEN):
        hint, default = hints.get(name), parameters[name].default
        if hint is int:
            options.append(Option(name=name, kind="integer", default=default))
        elif hint == tuple[float, ...]:
            options.append(Option(name=name, kind="numbers", default=default))
        elif get_origin(hint) is Literal:
            options.append(Option(name=name, kind="word", default=default, choices=get_args(hint)))
        elif float in (hint, *get_args(hint)):
            options.append(Option(name=name, kind="number", default=default))
    return options


_TABLE = (
    # one sample at a time
    operator("weighted_sum", operators.weighted_sum, units.same),
    operator("mean", operators.mean, units.same),
    operator("min", operators.minimum, units.same),
    operator("max", operators.maximum, units.same),
    operator("product", operators.product, units.product),
    operator("geometric_mean", operators.geometric_mean, units.geometric),
    operator("harmonic_mean", operators.harmonic_mean, units.same_not_negative),
    operator("lambda_harmonic", operators.lambda_harmonic, units.zero_one),
    # gates and routes
    operator("base_bonus", operators.base_bonus, units.zero_one),
    operator("cme", operators.cme, units.zero_one),
    operator("qma", operators.qma, units.zero_one),
    operator("outcome_gate", operators.outcome_gate, units.zero_one),
    operator("fallback", operators.fallback, units.same),
    operator("rule_first", operators.rule_first, units.gate_first),
    # within the group or batch
    operator("centre", groups.centre, units.first),
    operator("minmax", groups.group_minmax, units.becomes(units.ZERO_ONE)),
    operator("rank", groups.rank, units.becomes(units.RANK)),
    operator("rank_sum", groups.rank_sum, units.becomes(units.RANK)),
    operator("win_rate", pairwise.win_rate, units.becomes(units.ZERO_ONE)),
    operator("log_taming", groups.log_taming, units.tamed),
    operator("pareto", pareto.pareto, units.becomes(units.ZERO_ONE)),
    operator("chain", pareto.chain_advantage, units.becomes(units.ADVANTAGE)),
    # shapers
    operator("clip", shapers.clip, units.clipped),
    operator("rescale", shapers.rescale, units.rescaled),
    operator("sigmoid", shapers.sigmoid, units.becomes(units.ZERO_ONE)),
    operator("tanh", shapers.tanh, units.becomes((-1.0, 1.0))),
    operator("par", shapers.par, units.against_references(units.ZERO_ONE), fewest=1),
    operator("par_tanh", shapers.par_tanh, units.against_references((-1.0, 1.0)), fewest=1),
    operator("centred_on", shapers.centred_on, units.against_references(None), fewest=1),
    operator("lsc", shapers.lsc, units.against_references(None), fewest=1),
    operator("overlength", operators.overlength, units.first),
    operator("dead_zone", shapers.dead_zone, units.becomes(units.ZERO_ONE)),
    operator("tiers", shapers.tiers, units.tiered),
    operator("tiered", shapers.tiered, units.zero_one),
    operator("lifted", shapers.calibrated, units.first),
    operator("flipped", noise.flipped, units.zero_one),
    # schedules
    operator("linear", shapers.linear, units.becomes(units.CONSTANT)),
    operator("cosine", shapers.cosine, units.becomes(units.CONSTANT)),
    operator("warmup", shapers.warmup, units.becomes(units.CONSTANT)),
    operator("staged", shapers.staged, units.becomes(units.CONSTANT)),
    # with a memory
    operator("running_zscore", running.RunningZScore, units.becomes(units.ZSCORE)),
    operator("running_clip", running.RunningClip, units.first),
    operator("running_minmax", running.RunningMinMax, units.becomes(units.ZERO_ONE)),
    operator("constrained", running.Constrained, units.first),
    operator("wrong_and_long", running.WrongAndLong, units.gate_first),
    # ensembles
    operator("lower", trust.lower, units.same),
    operator("uwo", trust.uwo, units.same),
    operator("spread", trust.spread, units.same),
    operator("discounted", trust.discounted, units.discounted),
)
OPERATORS: dict[str, Operator] = {entry.name: entry for entry in _TABLE}
