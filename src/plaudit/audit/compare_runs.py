"""Contestants at equal cost over the same seeds: run what is not there yet, then say how sure the difference is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from plaudit.audit.standings import Outcome, standing_of, write_comparison
from plaudit.errors import Interrupted, PlauditError, RecipeError, RunError
from plaudit.pages.numbers import number
from plaudit.recipe.load import Source, as_recipe, load, load_contestants
from plaudit.recipe.prompts import FilePrompts
from plaudit.recipe.schema import Recipe
from plaudit.runs.display import Display, make_display
from plaudit.runs.record import read_run
from plaudit.storage import latest_snapshot
from plaudit.train.setup import parts_of

Way = Literal["start", "resume", "replace", "reuse"]


def compare(
    recipes: Mapping[str, Recipe | Source] | Sequence[str],
    seeds: Sequence[int] = (0, 1, 2),
    minutes: float | None = None,
    network_calls: int | None = None,
    out: str | Path = "runs/compare",
    plain: bool = False,
    quiet: bool = False,
    display: Display | None = None,
) -> Path:
    """Train every contestant with every seed in `out/<contestant>-seed<seed>`; returns `comparison.html`.

    `recipes` are contestants by name, or what `plaudit compare` takes: names and files, `a.yaml+b.yaml` for b over a.
    Exactly one of `minutes` (of training) and `network_calls` is the budget of each run; it replaces the limits of the
    recipes. Finished runs of the same recipe are reused and unfinished ones go on, so an interrupted comparison is
    repeated by the same command.
    """
    contestants = _contestants(recipes)
    out, display = Path(out), display or make_display(plain, quiet)
    _check_request(contestants, seeds, minutes, network_calls)
    # Seeds outside: whenever it is interrupted, the contestants have had nearly equally many runs.
    planned = {
        (name, seed): _contestant(name, recipe, seed, minutes, network_calls, out)
        for seed in seeds
        for name, recipe in contestants.items()
    }
    for recipe in contestants.values():
        parts_of(recipe)  # the last contestant's mistyped reward is not found after the first has trained
    ways = {key: _way(recipe) for key, recipe in planned.items()}  # refuses before anything is run
    outcomes = []
    for position, (key, recipe) in enumerate(planned.items(), start=1):
        display.say(f"run {position} of {len(planned)}: {recipe.run.name} ({ways[key]})")
        outcomes.append(_run(*key, recipe, ways[key], display))
    standings = [standing_of(name, [o for o in outcomes if o.contestant == name]) for name in contestants]
    if not any(outcome.run for outcome in outcomes):
        raise RunError(f"compare: all {len(outcomes)} runs failed; {outcomes[0].folder.name}: {outcomes[0].error}")
    budget = f"{minutes:g} minutes of training" if minutes is not None else f"{number(network_calls)} network calls"
    return write_comparison(standings, budget, out)


# --- running -------------------------------------------------------------------------------------------------------


def _contestants(recipes: Mapping[str, Recipe | Source] | Sequence[str]) -> dict[str, Recipe]:
    if isinstance(recipes, Mapping):
        return {name: as_recipe(recipe, f"compare: {name}") for name, recipe in recipes.items()}
    return load_contestants([recipes] if isinstance(recipes, str) else recipes)


def _check_request(
    recipes: Mapping[str, Recipe], seeds: Sequence[int], minutes: float | None, network_calls: int | None
) -> None:
    if (minutes is None) == (network_calls is None):
        given = "neither was" if minutes is None else "both were"
        raise RecipeError(f"compare: {given} given; --minutes or --network-calls, one of the two, is the budget")
    if not recipes or not seeds:
        raise RecipeError(f"compare: {len(recipes)} contestants and {len(seeds)} seeds; give at least one of each")
    if len(set(seeds)) < len(seeds):
        raise RecipeError(f"compare: seeds {list(seeds)} name one twice; every seed is run once")
    for name in recipes:
        if not name or name.startswith(".") or "/" in name or "\\" in name:
            raise RecipeError(
                f"compare: the contestant {name!r} cannot name a folder; use letters, digits, '-', '_' and '+'"
            )
    _check_same_measure(recipes)


def _check_same_measure(recipes: Mapping[str, Recipe]) -> None:
    """Results can be compared only where they were measured by the same reward on the same prompts."""
    measures = {name: _measure(recipe) for name, recipe in recipes.items()}
    first = next(iter(measures))
    for name, measure in measures.items():
        for key, value in measure.items():
            if value != measures[first][key]:
                raise RecipeError(
                    f"compare: {key} is {value} for {name} but {measures[first][key]} for {first}; contestants must be "
                    "measured alike, so make it the same in every recipe"
                )


def _measure(recipe: Recipe) -> dict[str, Any]:
    # The training file may differ as long as the held-out prompts come from a file of their own.
    apart = {"train"} if isinstance(recipe.prompts, FilePrompts) and recipe.prompts.heldout else None
    return {
        "evaluate.reward": recipe.evaluate.reward.model_dump(),
        "evaluate.final_prompts": recipe.evaluate.final_prompts,
        "prompts": recipe.prompts.model_dump(exclude=apart),
    }


def _contestant(
    name: str, recipe: Recipe, seed: int, minutes: float | None, network_calls: int | None, out: Path
) -> Recipe:
    """The recipe with its seed, its place and the budget as its only limit, validated again."""
    document = recipe.model_dump()
    document["run"] |= {"folder": str(out), "name": f"{name}-seed{seed}", "seed": seed}
    document["train"] |= {"steps": None, "minutes": minutes, "network_calls": network_calls}
    return Recipe.model_validate(document)


def _folder(recipe: Recipe) -> Path:
    assert recipe.run.name is not None
    return Path(recipe.run.folder) / recipe.run.name


def _way(recipe: Recipe) -> Way:
    """How a run comes about, given what is in its folder. Results of another recipe are never touched."""
    folder = _folder(recipe)
    if not folder.exists() or not any(folder.iterdir()):
        return "start"
    if not (folder / "recipe.yaml").is_file():
        raise RunError(f"{folder} holds files but no recipe.yaml; empty it or give another --out")
    before = load(folder / "recipe.yaml")
    changed = _changed_keys(before, recipe)
    if changed:
        raise RunError(
            f"{folder} is a run of another recipe ({', '.join(changed)} differ); delete it or give another --out"
        )
    if (folder / "summary.json").is_file():
        return "reuse"
    return "resume" if latest_snapshot(folder / "checkpoints") is not None else "replace"


def _changed_keys(before: Recipe, now: Recipe) -> list[str]:
    """Keys whose values differ, leaving out those that only say where and how often files are written."""
    free = {"run": {"folder", "save_every", "keep_checkpoints"}}
    old, new = (_flat(recipe.model_dump(exclude=free)) for recipe in (before, now))
    return sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _run(name: str, seed: int, recipe: Recipe, way: Way, display: Display) -> Outcome:
    """One run. A failure is a result of the contestant: it is recorded, and the other runs go on."""
    from plaudit.audit.report import write_report
    from plaudit.train.loop import train

    folder = _folder(recipe)
    try:
        if way != "reuse":
            folder = train(recipe, resume=way == "resume", overwrite=way == "replace", display=display).folder
            write_report(folder)
        run = read_run(folder)
    except Interrupted:
        raise
    except PlauditError as error:
        return Outcome(contestant=name, seed=seed, folder=folder, error=str(error))
    if run.summary is None:
        return Outcome(contestant=name, seed=seed, folder=folder, error="the run ended without a summary.json")
    return Outcome(contestant=name, seed=seed, folder=folder, run=run)
