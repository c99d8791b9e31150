"""`plaudit.search(...)`: better outputs without training, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.models.flow import FlowModel
from plaudit.models.origin import Origin, build_origin, find_origin, recipe_for
from plaudit.models.tokens import TokenModel
from plaudit.recipe.sampling import TokenSampling
from plaudit.rewards.load import Reward
from plaudit.rewards.scoring import reward_of
from plaudit.search.base import Task
from plaudit.search.budget import EXAMPLE, Budget
from plaudit.search.display import showing
from plaudit.search.folder import claim
from plaudit.search.options import find_method
from plaudit.search.results import SearchResult, Truth
from plaudit.search.run import Watch, run_search
from plaudit.search.setup import (
    check_kinds,
    find_prompts,
    find_suite,
    make_sampler,
    make_task,
    make_token_sampling,
    make_token_task,
    named_rewards,
    token_about,
)
from plaudit.search.track import Kept, Tracker

Rewards = Any  # a name, a function, several of them, or {name: either}


def search(
    model: str | Mapping[str, Any] | FlowModel | TokenModel,
    reward: Rewards = None,
    *,
    budget: str | Budget,
    method: str = "best_of_n",
    options: Mapping[str, Any] | None = None,
    prompts: Sequence[str | Prompt] | str | Path | None = None,
    count: int = 12,
    combine: str | None = None,
    truth: str | Sequence[str] = (),
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    keep_all: bool = False,
    plain: bool = False,
    quiet: bool = False,
    watch: Watch | None = None,
    **sampler: Any,
) -> SearchResult:
    """Search for outputs with a higher reward, within `budget` per prompt (`"200nfe"`, `"64rewards"`, `"30s"`).

    `model` is a model, its name (`lab/pixels`, `lab/sums`, a run folder, a recipe), or a mapping as a recipe's `model:`, such as
    `{"factory": "my_module:Mine", "arguments": {...}}`. `reward` is a name, a function, a list,
    or a mapping of names to either; without one the result is plain sampling. `prompts` are texts, Prompts or a file;
    default are `count` held-out ones. `method` and its `options` are those of `plaudit search`, as are `sampler`'s keywords:
    steps, guidance, shift, solver, kernel, level, tile; of a token model max_new_tokens, temperature, top_k, top_p, stop,
    tile. `truth` rewards measure plain and best outputs afterwards, outside of the budget. With `out`, everything is
    written there, also after Ctrl-C. Progress is shown as the command shows it: a bar, with `plain` a line for every tenth
    of the budget, with `quiet` nothing; a `watch` of one's own is told all of it instead.
    """
    named_model = isinstance(model, str | Mapping)
    origin = (
        find_origin(model)
        if named_model
        else Origin(name=type(model).__name__, recipe=recipe_for(model, asked=prompts is not None))
    )
    named = named_rewards(reward)
    suite = None if named is None else find_suite(origin, named, combine)
    if suite is None and combine is not None:
        raise RecipeError(f"combine: {combine!r} without a reward; name the rewards that it combines")
    with nullcontext(watch or unwatched) if watch or quiet else showing(plain) as told:
        return search_origin(
            origin,
            suite,
            model=None if named_model else model,
            budget=_as_budget(budget),
            method=method,
            options=options or {},
            prompts=find_prompts(origin.recipe, _as_path(prompts), count),
            truth=[truth] if isinstance(truth, str) else truth,
            seed=seed,
            out=None if out is None else Path(out),
            overwrite=overwrite,
            keep_all=keep_all,
            watch=told,
            sampler=sampler,
        )


def unwatched(share: float, tracker: Tracker) -> None: ...


def search_origin(
    origin: Origin,
    suite: Any,
    *,
    model: FlowModel | TokenModel | None = None,
    budget: Budget,
    method: str,
    options: Mapping[str, Any],
    prompts: Sequence[Prompt],
    truth: Sequence[str],
    seed: int,
    out: Path | None,
    overwrite: bool,
    keep_all: bool,
    watch: Watch,
    sampler: Mapping[str, Any],
) -> SearchResult:
    """What the command line and `search` have in common. Whatever is wrong is said before the model is loaded."""
    family = origin.recipe.model.family
    check_kinds({} if suite is None else {r.name: r.card for r in suite.rewards}, family)
    chosen = find_method(method, options, family)
    drawing = make_sampler(sampler) if family == "flow" else make_token_sampling(origin.recipe, sampler)
    judges = {name: reward_of(name, name) for name in truth}
    check_kinds({name: judge.card for name, judge in judges.items()}, family)
    if out is not None:
        claim(out, overwrite=overwrite)
    built = model if model is not None else build_origin(origin)
    task: Task
    if isinstance(drawing, TokenSampling):
        task = make_token_task(built, prompts, suite, budget, sampling=drawing, seed=seed)  # type: ignore[arg-type]
        how = token_about(task)
    else:
        task = make_task(built, origin.recipe, prompts, suite, budget, sampler=drawing, seed=seed)  # type: ignore[arg-type]
        how = {"times": task.times.tolist(), "guidance": task.conditioning.guidance, "solver": task.solver}
        how |= {"kernel": task.kernel, "level": task.level, "tile": task.tile}
    about = {
        "model": origin.name,
        "rewards": [] if suite is None else [one.name for one in suite.rewards],
        "combine": None if suite is None else suite.formula.text,
        "sampler": how,
    }
    result = run_search(task, chosen, name=method, keep_all=keep_all, watch=watch, about=about)
    result = replace(result, truth={name: measure(judge, result) for name, judge in judges.items()})
    if out is not None:
        result.save(out)
    return result


def measure(judge: Reward, result: SearchResult) -> Truth:
    """A reward's scores of the plain samples and of the best."""
    return Truth(plain=_judged(judge, result, result.plain), best=_judged(judge, result, result.best))


def _judged(judge: Reward, result: SearchResult, kept: Sequence[Kept | None]) -> torch.Tensor:
    scores = torch.full((len(kept),), torch.nan, dtype=torch.float64)
    there = [p for p, one in enumerate(kept) if one is not None]
    if there:
        outputs = [kept[p].output for p in there]  # type: ignore[union-attr]
        stacked = torch.stack(outputs) if isinstance(outputs[0], torch.Tensor) else outputs
        with judge.unchanged():
            found = judge([result.prompts[p] for p in there], stacked)
        scores[there] = torch.tensor([score.value for score in found], dtype=torch.float64)
    return scores


def _as_path(prompts: Sequence[str | Prompt] | str | Path | None) -> Sequence[str | Prompt] | Path | None:
    """A single text names a file: one prompt is a list of one."""
    if isinstance(prompts, str) and not Path(prompts).is_file():
        raise RecipeError(
            f"prompts: there is no file {prompts!r}; to search for one prompt give a list of it, [{prompts!r}]"
        )
    return Path(prompts) if isinstance(prompts, str) else prompts


def _as_budget(budget: object) -> Budget:
    if isinstance(budget, Budget):
        return budget
    if not isinstance(budget, str):
        raise RecipeError(f"budget: {budget!r} has no unit; give a text, {EXAMPLE}")
    return Budget.parse(budget)
