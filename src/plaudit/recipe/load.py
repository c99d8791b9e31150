"""Sources to a recipe: files, shipped names and mappings, overlaid in order, then dotted overrides. Imports no torch.

An overlay edits the resolved recipe that it lies on, the one `plaudit recipe` prints: mappings merge, lists and scalars
replace, a component whose `type` changes starts from the defaults of its new type, and so does what belongs to another key that
changes (the `arguments` of a `factory`). A null reward is taken out; `drop: [model.arguments.scale]` takes out any other key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plaudit.errors import RecipeError
from plaudit.recipe import text
from plaudit.recipe.explain import Layer, explain, nearest, shown
from plaudit.recipe.rewards import named
from plaudit.recipe.schema import Recipe
from plaudit.recipe.walk import filled, known_keys
from plaudit.worlds import NETWORKS

Source = str | Path | Mapping[str, Any]
Document = dict[str, Any]

OF_A_RUN = "recipe.yaml"  # in a run folder
IN_THE_WHEEL = Path(__file__).parents[1] / "recipes"
IN_THE_REPOSITORY = Path(__file__).parents[3] / "recipes"
DEEPEST = 16  # recipes based on each other
BELONGS = {
    "factory": "arguments",
    "method": "options",
    "task": "config",
    "name": "weights",
}  # what a key's value explains


def load(sources: Source | Sequence[Source] = (), overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of `sources`, later ones over earlier ones; none means the shipped `default`."""
    given = [sources] if isinstance(sources, str | Path | Mapping) else list(sources) or ["default"]
    groups = [read_layers(source) for source in given]
    if isinstance(given[0], str | Path):
        groups[0][-1] = _named(groups[0][-1])
    layers = [layer for source, group in zip(given, groups, strict=True) for layer in (*group, *_own_folder(source))]
    layers.append(_layer("the command line", parse_overrides(overrides)))
    document: Document = {}
    for layer in layers:
        document = filled(merge(_without(document, layer), layer.content))
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise RecipeError(explain(error, document, layers)) from None


def as_recipe(given: Any, caller: str) -> Recipe:
    """A recipe itself, or what `load` makes of one source."""
    if isinstance(given, Recipe):
        return given
    if isinstance(given, str | Path | Mapping):
        return load(given)
    raise RecipeError(
        f"{caller}: the recipe is {shown(given)}; give a Recipe (plaudit.load makes one), a shipped name such as "
        "'sums-grpo', the path of a recipe or of a run folder, or a mapping"
    )


def load_contestants(contestants: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """Recipes by label, the file names without folder and ending; `a.yaml+b.yaml` lays b over a."""
    recipes: dict[str, Recipe] = {}
    for contestant in contestants:
        sources = contestant.split("+")
        label = "+".join(Path(source).stem for source in sources)
        if label in recipes:
            raise RecipeError(f"compare: two contestants are called {label!r}; give their files different names")
        recipes[label] = load(sources, overrides)
    return recipes


def recipe_of(run: str | Path | None, checkpoint: str | Path | None) -> Source:
    """The recipe that a run was made with lies in its folder, two above its checkpoints; of neither it is the default."""
    if run is not None and checkpoint is not None:
        raise RecipeError("run takes the last checkpoint of a run and checkpoint a given one; give one of the two")
    folder = _resolved(Path(checkpoint)).parent.parent if checkpoint is not None else run
    return "default" if folder is None else Path(folder) / OF_A_RUN


def dump(recipe: Recipe) -> str:
    """Fully resolved YAML that loads back to an equal recipe."""
    return text.render(recipe.model_dump())


def shipped() -> dict[str, Path]:
    """The recipes that come with Plaudit, by name."""
    folder = IN_THE_WHEEL if IN_THE_WHEEL.is_dir() else IN_THE_REPOSITORY
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


# --- reading -------------------------------------------------------------------------------------------------------


def read_layers(source: Source, parents: tuple[Path, ...] = ()) -> list[Layer]:
    """What a source says, preceded by what its `base` says."""
    if isinstance(source, Mapping):
        path, label = None, "the mapping given"
        content = dict(text.possible(source, label))
    else:
        path = find(source, parents[-1].parent if parents else Path())
        label, content = str(source), read(path)
        if path in parents:
            chain = " -> ".join(map(str, (*parents[parents.index(path) :], path)))
            raise RecipeError(f"`base`: recipes are based on each other in a circle: {chain}; take one `base` out")
        if len(parents) >= DEEPEST:
            raise RecipeError(
                f"`base`: more than {DEEPEST} recipes are based on each other, the last {path}; write fewer"
            )
    base = content.pop("base", None)
    own = _layer(label, content)
    if base is None:
        return [own]
    if not isinstance(base, str):
        raise RecipeError(
            f"`base` is {shown(base)} (from {label}); it must be one file or the name of a shipped recipe"
        )
    return [*read_layers(base, (*parents, path) if path else parents), own]


def find(source: str | Path, folder: Path) -> Path:
    """The file of a shipped name, of a path relative to `folder`, or in a run folder."""
    names = shipped()
    if isinstance(source, str) and source in names:
        return names[source].resolve()
    path = _resolved(source, folder)
    for file in (path, path / OF_A_RUN):
        if file.is_file():
            return file
    if "=" in str(source):
        override = f"--{str(source).lstrip('-')}"
        raise RecipeError(
            text.visible(f"recipe {str(source)!r}: no such file ({path}); to override a key write {override}")
        )
    near = get_close_matches(str(source), names, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    absent = f"the folder holds no {OF_A_RUN}" if path.is_dir() else f"no such file ({path}) or shipped recipe"
    raise RecipeError(text.visible(f"recipe {str(source)!r}: {absent}; {meant}shipped: {', '.join(names)}"))


def _resolved(source: str | Path, folder: Path = Path()) -> Path:
    try:
        path = (folder / Path(source).expanduser()).resolve()
        path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, not allowed, a circle of links, ~nobody, NUL
        raise RecipeError(text.visible(f"recipe {str(source)[:200]!r}: no path of a recipe: {error}")) from error
    return path


def is_run(folder: Path) -> bool:
    """Whether a run has made this folder: one with no more than a recipe in it is somebody's own."""
    return (folder / OF_A_RUN).is_file() and (folder / "samples").is_dir()


def _own_folder(source: Source) -> list[Layer]:
    """A run folder stands for the run in it, wherever that was when its recipe was written."""
    if isinstance(source, Mapping) or source in shipped():
        return []
    path = Path(source).expanduser()
    if not is_run(path):
        return []
    path = path if path.name not in ("", "..") else path.resolve()
    return [Layer(label=str(source), content={"run": {"folder": str(path.parent), "name": path.name}})]


def read(path: Path) -> Document:
    content = text.read(path)
    if content is None:
        raise RecipeError(f"recipe {path} is empty; write at least one key, for example `base: default`")
    if not isinstance(content, dict):
        raise RecipeError(
            f"recipe {path}: the top level is {shown(content)}; it must be keys, for example `train: {{steps: 50}}`"
        )
    return content


def _named(layer: Layer) -> Layer:
    """A first file that gives no `name` is named after itself, not after its base: names become run folders."""
    return replace(layer, content={"name": Path(layer.label).stem, **layer.content})


def parse_overrides(tokens: Sequence[str]) -> Document:
    """`--train.steps 50` and `--train.steps=50` to a mapping; a later token wins, and every `--drop KEY` counts."""
    changes: list[Document] = []
    drop: list[Any] = []
    remaining = iter(tokens)
    for token in remaining:
        key, equals, given = token.removeprefix("--").partition("=")
        parts = key.split(".")
        if not token.startswith("--") or not all(parts):
            raise RecipeError(f"override {token!r}: write --section.key VALUE, for example --train.steps 50")
        given = given if equals else next(remaining, "")
        if not given or (given.startswith("--") and not equals):
            shown_key = text.visible(key)
            raise RecipeError(f"--{shown_key}: the value is missing; write --{shown_key} VALUE or --{shown_key}=VALUE")
        label = f"--{key} {given!r}"
        value = text.parse(given, label)
        if key == "drop":
            drop += value if isinstance(value, list) else [value]
            continue
        change = reduce(lambda inner, part: {part: inner}, reversed(parts), value)
        changes.append(expanded(text.possible(change, text.visible(label))))
    merged: Document = reduce(_overlaid, changes, {})  # a null stays until it meets the reward that it takes out
    return {**merged, "drop": drop} if drop else merged


def _layer(label: str, content: Document) -> Layer:
    """What a source says, with its `drop` apart."""
    drop = content.pop("drop", [])
    if not isinstance(drop, list) or not all(isinstance(key, str) for key in drop):
        raise RecipeError(
            f"`drop` is {shown(drop)} (from {label}); it must be dotted keys to take out, such as [model.arguments.scale]"
        )
    return Layer(label=label, content=expanded(content), drop=drop)


# --- overlaying ----------------------------------------------------------------------------------------------------


def expanded(content: Mapping[str, Any]) -> Document:
    """Shorthands in full: `model: lab/pixels`, `rewards: {match: scene_match}`, `evaluate: {reward: scene_exact}`."""
    document = dict(content)
    model, rewards, evaluate = (content.get(key) for key in ("model", "rewards", "evaluate"))
    if isinstance(model, str):
        family, slash, name = model.partition("/")
        if family != "lab" or not slash:
            raise RecipeError(
                f"`model` is {shown(model)}; as one word it can be lab/ and {', '.join(NETWORKS)}; any other "
                "model is a mapping such as `model: {type: sd3, path: FOLDER}`"
            )
        document["model"] = {"type": family, "name": name}
    if isinstance(rewards, Mapping):
        document["rewards"] = {key: _reward(value) for key, value in rewards.items()}
    if isinstance(evaluate, Mapping) and "reward" in evaluate:
        document["evaluate"] = {**evaluate, "reward": _reward(evaluate["reward"])}
    return document


def _reward(value: Any) -> Any:
    if isinstance(value, str) or callable(value):
        return {"type": named(value)}
    return {**value, "type": named(value["type"])} if isinstance(value, Mapping) and "type" in value else value


def _without(document: Document, layer: Layer) -> Document:
    """The document without the keys that a layer drops: those of the schema go back to their defaults."""
    for dotted in layer.drop:
        document, kept = _dropped(document, dotted.split(".")), document
        if document == kept:
            near = [key for key in nearest(dotted, list(known_keys(kept))) if key != dotted]
            meant = f"; did you mean {' or '.join(f'`{key}`' for key in near)}?" if near else ""
            raise RecipeError(f"`drop`: no source before {layer.label} has the key `{text.visible(dotted)}`{meant}")
    return document


def _dropped(document: Any, keys: Sequence[str]) -> Any:
    if not isinstance(document, Mapping) or keys[0] not in document:
        return document
    below = {} if len(keys) == 1 else {keys[0]: _dropped(document[keys[0]], keys[1:])}
    return {key: below.get(key, value) for key, value in document.items() if len(keys) > 1 or key != keys[0]}


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> Document:
    """The recipe `old` with `new` over it."""
    merged: Document = _overlaid(old, new)
    rewards, before = merged.get("rewards"), old.get("rewards")
    if isinstance(rewards, dict) and isinstance(before, Mapping):
        # Null takes out a reward that is there; where there is none, validation names the key.
        merged["rewards"] = {key: value for key, value in rewards.items() if value is not None or key not in before}
    return merged


def _overlaid(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    if "type" in old and "type" in new and old["type"] != new["type"]:
        return dict(new)
    stale = {owned for key, owned in BELONGS.items() if key in old and key in new and old[key] != new[key]}
    old = {key: value for key, value in old.items() if key not in stale}
    return {**old, **{key: _overlaid(old[key], value) if key in old else value for key, value in new.items()}}
