"""All rewards of a recipe together: called, brought to a common scale, combined, and what they found kept apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RewardError
from plaudit.pages.showing import Showing, Shown
from plaudit.recipe.rewards import Missing, RewardConfig
from plaudit.recipe.schema import Recipe
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calibrate import Scale, fit, from_json, needs_outputs, to_json, unit_of
from plaudit.rewards.calling.cache import ScoreCache
from plaudit.rewards.calling.request import Outputs, Request, make_request
from plaudit.rewards.compose.formula import Formula, parse, weighted_sum_formula
from plaudit.rewards.compose.nodes import Call, walk
from plaudit.rewards.load import Reward, load_reward


@dataclass(frozen=True, kw_only=True, repr=False)
class ScoredBatch(Shown):
    """`total [B]` is what is trained on, NaN where it is missing; `parts` are the rewards' own values, `terms` the summands
    of the formula by their text, which add up to the total."""

    total: Tensor
    parts: Mapping[str, Tensor]
    scores: Mapping[str, Sequence[Score]]
    terms: Mapping[str, Tensor] = field(default_factory=dict)

    def showing(self) -> Showing:
        several = {"total": self.total} if len(self.parts) > 1 and not self.total.isnan().all() else {}
        return Showing(
            title=f"scores of {len(self.total)} outputs",
            header=("reward", "mean", "std", "low", "high", "missing"),
            rows=[(name, *_told(values)) for name, values in (dict(self.parts) | several).items()],
        )

    @property
    def calls(self) -> int:
        return sum(len(values) for values in self.parts.values())

    def first_missing(self) -> str | None:
        """Why the first score that is missing is, in words."""
        for name, scores in self.scores.items():
            for score in scores:
                if score.status is not Status.OK:
                    return f"rewards.{name}: {in_words(score)}"
        return "the formula has no value there" if self.total.isnan().any() else None

    def empty(self) -> bool:
        """Whether nothing was scored: no total where the rewards are combined, no score at all where they are not."""
        return bool(self.total.isnan().all()) and (
            bool(self.terms) or all(p.isnan().all() for p in self.parts.values())
        )

    def failed(self) -> bool:
        """Whether every output met an error in some reward, so that none has a total."""
        broken = [
            any(score.status is Status.ERRORED for score in row) for row in zip(*self.scores.values(), strict=True)
        ]
        return bool(broken) and all(broken) and bool(self.total.isnan().all())

    def with_part(self, name: str, values: Tensor) -> ScoredBatch:
        return replace(self, parts={**self.parts, name: values})


def _told(values: Tensor) -> list[str]:
    there = values[values.isfinite()].double()
    lost = str(len(values) - len(there))
    if not len(there):
        return [*"----", lost]
    deviation = f"{there.std():.4g}" if len(there) > 1 else "-"
    return [f"{there.mean():.4g}", deviation, f"{there.min():.4g}", f"{there.max():.4g}", lost]


def in_words(score: Score) -> str:
    return f"{score.status}{': ' + score.note if score.note else ''}"


def join_scored(batches: Sequence[ScoredBatch], rows: Tensor | None = None) -> ScoredBatch:
    """Batches after each other, or some rows of that."""

    def picked(values: list[Tensor]) -> Tensor:
        joined = torch.cat(values)
        return joined if rows is None else joined[rows]

    first = batches[0]
    scores = {name: [score for batch in batches for score in batch.scores[name]] for name in first.scores}
    return ScoredBatch(
        total=picked([batch.total for batch in batches]),
        parts={name: picked([batch.parts[name] for batch in batches]) for name in first.parts},
        scores=scores if rows is None else {name: [kept[i] for i in rows.tolist()] for name, kept in scores.items()},
        terms={name: picked([batch.terms[name] for batch in batches]) for name in first.terms},
    )


@dataclass(kw_only=True)
class Suite:
    """The rewards of a recipe and the formula over them; without one every reward stands for itself and there is no total.
    `scales` holds the calibration of those that ask for one."""

    rewards: Sequence[Reward]
    formula: Formula | None
    scales: dict[str, Scale] = field(default_factory=dict)

    @property
    def in_company(self) -> str | None:
        """The first reward or operator whose word on an output depends on the others of its batch, or on earlier ones."""
        for reward in self.rewards:
            if reward.caller.whole_batch:
                return f"rewards.{reward.name}"
        for node in walk(self.formula.root) if self.formula else ():
            if isinstance(node, Call) and (node.operator.has_memory or "group" in node.operator.needs):
                return f'combine: "{node.text}"'
        return None

    def __call__(
        self,
        prompts: Sequence[Prompt],
        outputs: Outputs,
        *,
        group: Tensor | None = None,
        step: int = 0,
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> ScoredBatch:
        """Scores of a batch; nothing that the rewards remember is changed."""
        with self.unchanged():
            return self.score(make_request(prompts, outputs, group, step, completion_ids=completion_ids), learn=False)

    def score(self, request: Request, *, learn: bool) -> ScoredBatch:
        """With `learn`, rewards and operators with a memory remember this batch."""
        return self.combine(request, {reward.name: reward.score(request) for reward in self.rewards}, learn=learn)

    def combine(self, request: Request, scores: Mapping[str, Sequence[Score]], *, learn: bool) -> ScoredBatch:
        parts = {
            name: torch.tensor([score.value for score in batch], dtype=torch.float64) for name, batch in scores.items()
        }
        scaled = {name: self._scaled(name, values) for name, values in parts.items()}
        if self.formula is None:
            return ScoredBatch(total=torch.full((len(request),), torch.nan).double(), parts=parts, scores=scores)
        group = torch.tensor(request.group)
        ids = [prompt.id for prompt in request.prompts]
        evaluated = self.formula.evaluate(scaled, group, request.step, prompts=ids, learn=learn)
        return ScoredBatch(total=evaluated.total, parts=parts, scores=scores, terms=evaluated.terms)

    def _scaled(self, name: str, values: Tensor) -> Tensor:
        if any(reward.name == name for reward in self.uncalibrated):
            raise RewardError(
                f"rewards.{name} is to be calibrated and has not been; call `calibrate` with outputs first"
            )
        return self.scales[name](values) if name in self.scales else values

    # --- calibration -------------------------------------------------------------------------------------------------

    @property
    def uncalibrated(self) -> list[Reward]:
        """Rewards whose scale has to be measured on outputs first."""
        return [r for r in self.rewards if r.config and needs_outputs(r.config) and r.name not in self.scales]

    def calibrate(
        self,
        prompts: Sequence[Prompt],
        outputs: Outputs,
        completion_ids: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Measure the scales that are still missing."""
        with self.unchanged():
            for reward in self.uncalibrated:
                self.fit_scale(reward, reward(prompts, outputs, completion_ids=completion_ids))

    def take_known_scales(self) -> None:
        """Those whose numbers stand in the recipe or on the card."""
        for reward in self.rewards:
            if reward.config is not None and not needs_outputs(reward.config):
                self.fit_scale(reward, None)

    def fit_scale(self, reward: Reward, scores: Sequence[Score] | None) -> None:
        """Take a reward's scale from scores; None where the recipe or the card has all its numbers."""
        values = None if scores is None else torch.tensor([score.value for score in scores], dtype=torch.float64)
        scale = fit(reward.name, reward.config, reward.card, values) if reward.config else None
        if scale is not None:
            self.scales[reward.name] = scale

    def calibration(self) -> dict[str, Any]:
        return {name: to_json(scale) for name, scale in self.scales.items()}

    def load_calibration(self, content: Mapping[str, Any]) -> None:
        self.scales = {name: from_json(entry) for name, entry in content.items()}

    # --- memory ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What rewards and operators remember, as JSON."""
        remembered = {name: own for r in self.rewards for name, own in r.caller.state().items()}
        return {"rewards": remembered, "formula": self.formula.state() if self.formula else None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for reward in self.rewards:
            reward.caller.load_state(state["rewards"])
        if self.formula is not None:
            self.formula.load_state(state["formula"])

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Measuring is not learning: whatever is remembered inside is forgotten again."""
        before = self.formula.state() if self.formula else None
        with ExitStack() as stack:
            if self.formula is not None:
                stack.callback(self.formula.load_state, before)
            for reward in self.rewards:
                stack.enter_context(reward.unchanged())
            yield

    def take_extra(self, count: int) -> dict[str, list[Any]]:
        """Columns that rewards have added to the table of the last batch, of `count` outputs; those of other lengths belong
        to a part of it and are left out."""
        found: dict[str, list[Any]] = {}
        for reward in self.rewards:
            found |= {name: values for name, values in reward.caller.meter.extra.items() if len(values) == count}
            reward.caller.meter.extra = {}
        return found

    # --- overlap -----------------------------------------------------------------------------------------------------

    def pending(self) -> Pending:
        return Pending(self)


class Pending:
    """A batch that is scored while it is still being drawn: rewards that wait for something elsewhere get every piece as
    soon as it is there, the others the whole batch at the end."""

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.early = [r for r in suite.rewards if r.waits and not r.caller.whole_batch]
        self.pool = ThreadPoolExecutor(max_workers=max(len(self.early), 1)) if self.early else None
        self.futures: dict[str, list[Future[list[Score]]]] = {reward.name: [] for reward in self.early}

    def __enter__(self) -> Pending:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=error[0] is None, cancel_futures=True)

    def add(self, piece: Request) -> None:
        for reward in self.early:
            assert self.pool is not None
            self.futures[reward.name].append(self.pool.submit(reward.score, piece))

    def finish(self, request: Request, *, learn: bool) -> ScoredBatch:
        late = {r.name: r.score(request) for r in self.suite.rewards if r.name not in self.futures}
        early = {name: [score for piece in pieces for score in piece.result()] for name, pieces in self.futures.items()}
        scores = {reward.name: (late | early)[reward.name] for reward in self.suite.rewards}
        return self.suite.combine(request, scores, learn=learn)


def load_suite(
    configs: Mapping[str, RewardConfig],
    combine: str | None = None,
    cache: ScoreCache | None = None,
    *,
    add: bool = True,
    like_units: bool = True,
) -> Suite:
    store = cache or (ScoreCache() if any(config.cache for config in configs.values()) else None)
    rewards = [load_reward(name, config, store) for name, config in configs.items()]
    return make_suite(rewards, combine, add=add, like_units=like_units)


def make_suite(
    rewards: Sequence[Reward], combine: str | None = None, *, add: bool = True, like_units: bool = True
) -> Suite:
    """Rewards, checked to belong together: a weighted sum of unlike units is refused, unless it is not what is learned from
    (`shaping.normalise` each). Without `combine` they are added by
    their weights, or, if they are not to be added, stand side by side; a single one is its own total."""
    if combine is None and not add:
        formula = weighted_sum_formula({rewards[0].name: 1.0}) if len(rewards) == 1 else None
    elif combine is None:
        _pull_down_what_is_bad(rewards)
        formula = weighted_sum_formula({reward.name: reward.weight for reward in rewards})
    else:
        formula = _parsed(combine, rewards)
    if formula is not None and like_units and (len(rewards) > 1 or combine is not None):
        units = {r.name: unit_of(r.config, r.card) if r.config else r.card and r.card.unit for r in rewards}
        formula.check_units(units)
    suite = Suite(rewards=rewards, formula=formula)
    suite.take_known_scales()
    return suite


def _parsed(combine: str, rewards: Sequence[Reward]) -> Formula:
    weighted = [reward.name for reward in rewards if reward.weight not in (0.0, 1.0)]
    if weighted:
        raise RecipeError(
            f"rewards.{weighted[0]}.weight: with `combine` the weights stand in the formula; leave `weight` out and "
            f"write for example combine: '0.5 * {weighted[0]} + ...'"
        )
    watched = [reward.name for reward in rewards if reward.weight == 0]
    formula = parse(combine, [reward.name for reward in rewards], unweighted=watched)
    if used := [name for name in watched if name in formula.names]:
        raise RecipeError(
            f"rewards.{used[0]}.weight: 0 means to watch it without training on it, and `combine` uses it; leave the weight "
            "out, or take it out of the formula"
        )
    return formula


def _pull_down_what_is_bad(rewards: Sequence[Reward]) -> None:
    wrong = [r for r in rewards if r.card is not None and not r.card.higher_is_better and r.weight > 0]
    if wrong:
        raise RecipeError(
            f"rewards.{wrong[0].name}.weight: {wrong[0].weight:g} asks for more of what is better when there is less of it "
            f"({wrong[0].card.summary if wrong[0].card else ''}); give it weight: {-wrong[0].weight:g}"
        )


def recipe_suite(recipe: Recipe) -> Suite:
    return load_suite(recipe.rewards, recipe.combine, like_units=recipe.shaping.normalise == "total")


def enforce_missing(batch: ScoredBatch, missing: Missing) -> ScoredBatch:
    """Stop a run that is being fed nothing; fill in the totals that the recipe wants imputed.

    Counted are scores that failed, those that do not apply where the total is missing for it, and totals.
    """
    limit, lost = missing.limit, batch.total.isnan()
    for name, values in batch.parts.items():
        failed = torch.tensor([score.status not in (Status.OK, Status.NOT_APPLICABLE) for score in batch.scores[name]])
        absent = values.isnan() & (failed | lost)
        if absent.sum() > limit * len(values):
            score = batch.scores[name][int(absent.nonzero()[0])]
            first = in_words(score)
            raise RewardError(
                f"rewards.{name}: {int(absent.sum())} of {len(values)} scores are missing, more than "
                f"missing.max_missing_fraction {limit:g} allows (first: {first}); mend the reward or raise the limit"
            )
    enforce_share(batch.total, missing)
    if missing.impute is None:
        return batch
    total = torch.where(batch.total.isnan(), missing.impute, batch.total)
    return ScoredBatch(total=total, parts=batch.parts, scores=batch.scores, terms=batch.terms)


def enforce_share(total: Tensor, missing: Missing) -> None:
    """Stop where more totals are missing than the recipe allows."""
    limit, lost = missing.limit, total.isnan()
    if lost.sum() > limit * len(lost):
        raise RewardError(
            f"combine: {int(lost.sum())} of {len(lost)} totals are missing, more than missing.max_missing_fraction {limit:g} "
            f"allows (first: output {int(lost.nonzero()[0])}); look at the formula, for example at "
            "what it divides by, and at rewards that decline, or raise the limit"
        )
