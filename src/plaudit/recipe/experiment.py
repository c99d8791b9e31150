"""An experiment as data: what a system claims, which runs can show it, and what would count. Imports no torch.

Files of `recipes/experiments/`; docs/experiments.md has an example. Whatever a recipe can say an arm can, for it is one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from plaudit.errors import RecipeError
from plaudit.recipe import load as loading
from plaudit.recipe.base import Positive, PositiveFloat, Strict
from plaudit.recipe.explain import shown
from plaudit.recipe.schema import Recipe
from plaudit.recipe.text import visible

BEFORE = "before"  # in `than` and `better`: the other side before it was trained, or its plain samples
PLAIN = ("truth", "best", "length", "network_calls", "seconds")  # metrics, and those that name something
NAMING = ("rewards", "gap", "steps", "values")
VERDICTS = ("shown", "mixed", "negative", "inconclusive")
QUICK = {  # what a run needs to have gone through everything once
    "train": {"steps": 1, "minutes": None, "network_calls": None},
    "evaluate": {"prompts": 6, "final_prompts": 6},
    "calibration_outputs": 16,
}
QUICK_SEARCH = {"flow": "20nfe", "tokens": "1000nfe"}


class Budget(Strict):
    """What every run of an experiment may spend, one of these."""

    steps: Positive | None = None
    """Training steps."""
    network_calls: Positive | None = None
    """Samples x network evaluations of a training run: the same on a busy machine."""
    seconds: PositiveFloat | None = None
    """Seconds of training: what another machine, or a busy one, makes less of."""
    per_prompt: str | None = None
    """Of a search, for each prompt: 200nfe (network calls), 64rewards, 30s."""

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if sum(value is not None for value in self.model_dump().values()) != 1:
            raise ValueError("give exactly one of steps, network_calls, seconds and per_prompt")
        return self


class Metric(Strict):
    """A number of a run, and which way is better."""

    of: str
    """truth (held out, at the end), best (the highest truth seen on the way), length (of held-out texts), rewards/NAME (a reward
    of the recipe on held-out outputs), gap/NAME (that minus the truth), steps/KEY (a training metric, mean of the last tenth of
    the steps), network_calls, seconds; of a function values/KEY, a key of what it returns."""
    better: Literal["higher", "lower"] = "higher"
    """Which way is better."""
    percent: bool = False
    """Whether it is shown as per cent."""

    @field_validator("of")
    @classmethod
    def _known(cls, of: str) -> str:
        kind, slash, name = of.partition("/")
        if (kind not in NAMING if slash else of not in PLAIN) or (slash and not name):
            raise ValueError(f"{of!r}; allowed: {', '.join([*PLAIN, *(f'{kind}/NAME' for kind in NAMING)])}")
        return of


class Arm(Strict):
    """One side of the comparison: a recipe with overrides, or a function that measures."""

    recipe: str | None = None
    """A shipped recipe or a file; `a+b` lays b over a."""
    overrides: dict[str, Any] = {}
    """A recipe laid over it."""
    verb: Literal["align", "search", "fit"] = "align"
    """What is done with the recipe; a fit measures the order of held-out pairs, a search the truth of the best output of each
    held-out prompt."""
    function: str | None = None
    """Instead of a recipe `package.module:function`, called with `seed`, `quick` and `arguments`; it returns numbers by
    metric, or by metric and item."""
    arguments: dict[str, Any] = {}
    """Arguments of the function."""
    budget: Budget | None = None
    """A budget of its own; null = the experiment's."""

    @model_validator(mode="after")
    def _one(self) -> Arm:
        if (self.recipe is None) == (self.function is None):
            raise ValueError("give either `recipe` or `function`")
        if self.function is not None and (self.overrides or self.budget is not None or self.verb != "align"):
            raise ValueError("a `function` has `arguments`, and no `overrides`, `verb` or `budget`")
        if self.recipe is not None and self.arguments:
            raise ValueError("`arguments` belong to a `function`; a recipe has `overrides`")
        return self


class Expectation(Strict):
    """One difference that the claim expects."""

    metric: str
    """One of `metrics`."""
    better: str
    """The arm that should be better by this metric, in its direction; `before` is the other arm before training."""
    than: str
    """The arm that it should be better than; `before` is the first arm before training."""
    by: float = 0.0
    """By at least how much. Below zero the claim is only that it is worse by less than this."""

    def __str__(self) -> str:
        return f"{self.better} over {self.than} by {self.metric}"


class Experiment(Strict):
    """A claim and the runs that decide it."""

    system: Annotated[str, Field(pattern=r"^S\d{3}$")] | None = None
    """S001..S129, or null where no published system claims it."""
    claim: Annotated[str, Field(min_length=20, max_length=400)]
    """In one sentence."""
    paper: str | None
    """The figure that the paper gives for it; null where there is none."""
    prepare: dict[str, Arm] = {}
    """What arms start from, by names of your choice, run before them with every seed: `{NAME}` in what an arm, or one prepared
    later, overrides or hands over is its folder. A function is called with that `folder` too."""
    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    """What is compared, by names of your choice."""
    overrides: dict[str, Any] = {}
    """A recipe laid over that of every arm, below the arm's own."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=3)] = [0, 1, 2]
    """Every arm runs with every seed; at least three."""
    budget: Budget | None = None
    """What each run may spend; null where every arm has one of its own or is a function."""
    metrics: Annotated[dict[str, Metric], Field(min_length=1)]
    """What is measured, by names of your choice."""
    expect: Annotated[list[Expectation], Field(min_length=1)]
    """The expected order, the main difference first."""
    findings: dict[Literal["shown", "mixed", "negative", "inconclusive"], str] = {}
    """What is to be said of a verdict besides its figures, without any: figures come from the record."""

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("every seed once")
        return seeds

    @field_validator("findings")
    @classmethod
    def _no_figures(cls, findings: dict[str, str]) -> dict[str, str]:
        for verdict, text in findings.items():
            if found := re.search(r"\d[\d.,]*\s*%|\d+\.\d+|\b\d{2,}\b", re.sub(r"S\d{3}", "", text)):
                raise ValueError(f"{verdict}: {found[0]!r} is a figure typed by hand; the record has them")
        return findings

    @model_validator(mode="after")
    def _fits(self) -> Experiment:
        for number, one in enumerate(self.expect):
            if one.metric not in self.metrics:
                raise ValueError(f"expect[{number}].metric: {one.metric!r}; metrics: {', '.join(self.metrics)}")
            sides = [one.better, one.than]
            if unknown := [side for side in sides if side not in (*self.arms, BEFORE)]:
                raise ValueError(
                    f"expect[{number}]: {unknown[0]!r} is no arm; arms: {', '.join(self.arms)}, or {BEFORE}"
                )
            if sides[0] == sides[1]:
                raise ValueError(f"expect[{number}]: {sides[0]} cannot be better than itself")
        for name, arm in self.sides.items():
            self._check_arm(name, arm)
        if both := set(self.prepare) & set(self.arms):
            raise ValueError(f"prepare: {min(both)} is an arm as well; give one of the two another name")
        return self

    @property
    def sides(self) -> dict[str, Arm]:
        """All that is run, in the order in which it can be."""
        return {**self.prepare, **self.arms}

    def needed(self, name: str) -> list[str]:
        """What has to be there before it is run."""
        earlier = list(self.prepare)[: list(self.sides).index(name)]
        said = str({**self.overrides, **self.sides[name].model_dump()})
        return [one for one in earlier if f"{{{one}}}" in said]

    def _check_arm(self, name: str, arm: Arm) -> None:
        if not re.fullmatch(r"[\w.-]+", name) or name == BEFORE:
            raise ValueError(
                f"arms: {name!r} names a folder, so it has letters, digits, '.', '_' and '-', and is not {BEFORE!r}"
            )
        budget = arm.budget or self.budget
        if arm.function is None and budget is None:
            raise ValueError(f"arms.{name}: no budget; give the experiment one, or the arm")
        if arm.function is None and budget and (budget.per_prompt is None) == (arm.verb == "search"):
            raise ValueError(f"arms.{name}: a search has a budget `per_prompt`, training one of the others")

    def recipe_of(
        self, name: str, seed: int, quick: bool = False, places: Mapping[str, Path] = MappingProxyType({})
    ) -> Recipe:
        """What an arm runs with a seed, resolved. It has one thread, so that the number of jobs changes nothing. `places` are
        the folders of what was prepared."""
        arm = self.sides[name]
        assert arm.recipe is not None
        own = [placed(overrides, places) for overrides in (self.overrides, arm.overrides)]
        sources: list[loading.Source] = [*arm.recipe.split("+"), *own, self._limits(arm, seed)]
        if not quick:
            return loading.load(sources)
        recipe = loading.load([*sources, QUICK])
        updates: dict[str, Any] = {"train": {"updates_per_step": 1}}
        if arm.verb == "search":
            updates["search"] = {"budget": QUICK_SEARCH[recipe.model.family]}
        return loading.load([*sources, QUICK, updates])

    def _limits(self, arm: Arm, seed: int) -> dict[str, Any]:
        """The budget as the only limit."""
        budget = arm.budget or self.budget
        assert budget is not None
        run = {"seed": seed, "threads": 1}
        if arm.verb == "search":
            return {"search": {"budget": budget.per_prompt}, "run": run}
        minutes = None if budget.seconds is None else budget.seconds / 60
        train = {"steps": budget.steps, "network_calls": budget.network_calls, "minutes": minutes}
        return {"train": train, "run": run}


def placed(value: Any, places: Mapping[str, Path]) -> Any:
    """With folders for their names in every text."""
    if isinstance(value, Mapping):
        return {key: placed(one, places) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [placed(one, places) for one in value]
    if isinstance(value, str):
        for name, folder in places.items():
            value = value.replace(f"{{{name}}}", str(folder.resolve()))
    return value


# --- files -----------------------------------------------------------------------------------------------------------


def shipped() -> dict[str, Path]:
    """The experiments that come with Plaudit, by name: S101, or S056-nft where a system has several."""
    folder = loading.IN_THE_WHEEL if loading.IN_THE_WHEEL.is_dir() else loading.IN_THE_REPOSITORY
    return {path.stem: path for path in sorted((folder / "experiments").glob("*.yaml"))}


def find(names: list[str]) -> dict[str, Path]:
    """Files of experiments by name: their own, a system's, or a path."""
    known, found = shipped(), dict[str, Path]()
    for name in names:
        of_the_system = {stem: path for stem, path in known.items() if stem == name or stem.startswith(f"{name}-")}
        if not of_the_system and Path(name).is_file():
            of_the_system = {Path(name).stem: Path(name)}
        if not of_the_system:
            near = get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            raise RecipeError(visible(f"experiment {name!r}: {meant}shipped: {', '.join(known)}; or give a file"))
        found |= of_the_system
    return found


def load_experiment(path: Path) -> Experiment:
    """What a file says. Modules beside it can be named as functions."""
    if str(path.parent.resolve()) not in sys.path:
        sys.path.append(str(path.parent.resolve()))
    content = loading.read(path)
    try:
        experiment = Experiment.model_validate(content)
    except ValidationError as error:
        raise RecipeError("\n".join(visible(f"{path}: {_line(one)}") for one in error.errors())) from None
    if experiment.system and not re.fullmatch(rf"{experiment.system}(-[\w-]+)?", path.stem):
        own = f"{experiment.system}.yaml"
        raise RecipeError(f"{path}: system: {experiment.system}; its file is called {own}, or {own[:4]}-PART.yaml")
    for name, arm in experiment.sides.items():
        if arm.recipe is not None:
            try:
                experiment.recipe_of(name, experiment.seeds[0])
            except RecipeError as error:
                raise RecipeError(
                    f"{path}: {'arms' if name in experiment.arms else 'prepare'}.{name}: {error}"
                ) from None
    return experiment


def _line(details: Mapping[str, Any]) -> str:
    key = ".".join(map(str, details["loc"]))
    if details["type"] == "extra_forbidden":
        kinds = (Experiment, Arm, Budget, Metric, Expectation)
        near = get_close_matches(str(details["loc"][-1]), {name for kind in kinds for name in kind.model_fields}, n=1)
        return f"{key}: unknown key; " + (
            f"did you mean {near[0]}?" if near else "docs/experiments.md has those allowed"
        )
    if details["type"] == "value_error":
        return f"{key + ': ' if key else ''}{details['ctx']['error']}"
    said = details["msg"].lower()
    return f"{key}: missing" if details["type"] == "missing" else f"{key} is {shown(details['input'])}: {said}"
