"""Sources to a recipe: files, shipped names and mappings, overlaid in order, then dotted overrides. Imports no torch.

An overlay edits the resolved recipe that it lies on, the one `plaudit recipe` prints: mappings merge, lists and scalars
replace, a component whose `type` changes starts from the defaults of its new type, and a null reward is taken out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plaudit.errors import RecipeError
from plaudit.recipe.explain import Layer, explain, shown
from plaudit.recipe.rewards import named
from plaudit.recipe.schema import Recipe
from plaudit.recipe.text import parse, render
from plaudit.recipe.walk import filled

Source = str | Path | Mapping[str, Any]
Document = dict[str, Any]

OF_A_RUN = "recipe.yaml"  # in a run folder
IN_THE_WHEEL = Path(__file__).parents[1] / "recipes"
IN_THE_REPOSITORY = Path(__file__).parents[3] / "recipes"


def load(sources: Source | Sequence[Source] = (), overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of `sources`, later ones over earlier ones; none means the shipped `default`."""
    given = [sources] if isinstance(sources, str | Path | Mapping) else list(sources) or ["default"]
    groups = [read_layers(source) for source in given]
    if isinstance(given[0], str | Path):
        groups[0][-1] = _named(groups[0][-1])
    layers = [layer for source, group in zip(given, groups, strict=True) for layer in (*group, *_own_folder(source))]
    layers.append(Layer(label="the command line", content=parse_overrides(overrides)))
    document: Document = {}
    for layer in layers:
        document = filled(merge(document, layer.content))
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
        f"{caller}: the recipe is {given!r}; give a Recipe (plaudit.load makes one), a shipped name such as 'sums-grpo', the "
        "path of a recipe or of a run folder, or a mapping"
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
    folder = Path(checkpoint).resolve().parents[1] if checkpoint is not None else run
    return "default" if folder is None else Path(folder) / OF_A_RUN


def dump(recipe: Recipe) -> str:
    """Fully resolved YAML that loads back to an equal recipe."""
    return render(recipe.model_dump())


def shipped() -> dict[str, Path]:
    """The recipes that come with Plaudit, by name."""
    folder = IN_THE_WHEEL if IN_THE_WHEEL.is_dir() else IN_THE_REPOSITORY
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


# --- reading -------------------------------------------------------------------------------------------------------


def read_layers(source: Source, parents: tuple[Path, ...] = ()) -> list[Layer]:
    """What a source says, preceded by what its `base` says."""
    if isinstance(source, Mapping):
        path, label, content = None, "the mapping given", dict(source)
    else:
        path = find(source, parents[-1].parent if parents else Path())
        label, content = str(source), read(path)
        if path in parents:
            chain = " -> ".join(map(str, (*parents[parents.index(path) :], path)))
            raise RecipeError(f"`base`: recipes are based on each other in a circle: {chain}; take one `base` out")
    base = content.pop("base", None)
    own = Layer(label=label, content=expanded(content))
    if base is None:
        return [own]
    if not isinstance(base, str):
        raise RecipeError(f"`base` is {base!r} (from {label}); it must be one file or the name of a shipped recipe")
    return [*read_layers(base, (*parents, path) if path else parents), own]


def find(source: str | Path, folder: Path) -> Path:
    """The file of a shipped name, of a path relative to `folder`, or in a run folder."""
    names = shipped()
    if isinstance(source, str) and source in names:
        return names[source].resolve()
    path = (folder / Path(source).expanduser()).resolve()
    if path.is_file():
        return path
    if (path / OF_A_RUN).is_file():
        return path / OF_A_RUN
    near = get_close_matches(str(source), names, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    override = f"; to override a key write --{str(source).lstrip('-')}" if "=" in str(source) else ""
    absent = f"the folder holds no {OF_A_RUN}" if path.is_dir() else f"no such file ({path}) or shipped recipe"
    raise RecipeError(f"recipe {str(source)!r}: {absent}; {meant}shipped: {', '.join(names)}{override}")


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
    try:
        content = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}; it must be a UTF-8 text file") from error
    if content is None:
        raise RecipeError(f"recipe {path} is empty; write at least one key, for example `base: default`")
    if not isinstance(content, dict):
        raise RecipeError(
            f"recipe {path}: the top level is {shown(content)}; it must be keys, for example `train: {{steps: 50}}`"
        )
    return content


def _named(layer: Layer) -> Layer:
    """A first file that gives no `name` is named after itself, not after its base: names become run folders."""
    return Layer(label=layer.label, content={"name": Path(layer.label).stem, **layer.content})


def parse_overrides(tokens: Sequence[str]) -> Document:
    """`--train.steps 50` and `--train.steps=50` to a mapping; a later token wins over an earlier one."""
    changes: list[Document] = []
    remaining = iter(tokens)
    for token in remaining:
        key, equals, text = token.removeprefix("--").partition("=")
        parts = key.split(".")
        if not token.startswith("--") or not all(parts):
            raise RecipeError(f"override {token!r}: write --section.key VALUE, for example --train.steps 50")
        text = text if equals else next(remaining, "")
        if not text or (text.startswith("--") and not equals):
            raise RecipeError(f"--{key}: the value is missing; write --{key} VALUE or --{key}=VALUE")
        value = parse(text, f"--{key} {text!r}")
        changes.append(expanded(reduce(lambda inner, part: {part: inner}, reversed(parts), value)))
    return reduce(_overlaid, changes, {})  # a null stays until it meets the reward that it takes out


# --- overlaying ----------------------------------------------------------------------------------------------------


def expanded(content: Mapping[str, Any]) -> Document:
    """Shorthands in full: `model: lab/pixels`, `rewards: {match: scene_match}`, `evaluate: {reward: scene_exact}`."""
    document = dict(content)
    model, rewards, evaluate = (content.get(key) for key in ("model", "rewards", "evaluate"))
    if isinstance(model, str):
        family, slash, name = model.partition("/")
        if family != "lab" or not slash:
            raise RecipeError(
                f"`model` is {model!r}; as one word it can be lab/slots or lab/pixels, any other model is a mapping "
                "such as `model: {type: sd3, path: FOLDER}`"
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
    return {**old, **{key: _overlaid(old[key], value) if key in old else value for key, value in new.items()}}
