"""From a recipe's words to rewards that can be called."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from plaudit.data.prompt import Prompt
from plaudit.dotted import import_dotted
from plaudit.errors import PlauditError, RecipeError
from plaudit.recipe.rewards import HANDED, Handed, RewardConfig, key_of
from plaudit.rewards.base import Card, RewardFunction, Score
from plaudit.rewards.calling.cache import ScoreCache, identity
from plaudit.rewards.calling.call import Cached, Caller, Handling, told
from plaudit.rewards.calling.handing import OUTPUT_NAMES
from plaudit.rewards.calling.request import Outputs, Request, make_request
from plaudit.rewards.options import checked
from plaudit.rewards.table import BUILT_IN, ISOLATED


@dataclass(frozen=True, kw_only=True)
class Reward:
    """A named, callable reward with its weight in the sum."""

    name: str
    caller: Caller
    weight: float = 1.0
    config: RewardConfig | None = None

    @property
    def card(self) -> Card | None:
        return self.caller.card

    @property
    def verdict(self) -> bool:
        """Whether its card says that it tells right from wrong."""
        return self.card is not None and self.card.verdict

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Measuring is not learning: what the reward remembers and reports is afterwards as it was."""
        meter, before = self.caller.meter, self.caller.state()
        metrics, meter.metrics = meter.metrics, {}
        try:
            yield
        finally:
            meter.metrics = metrics
            self.caller.load_state(before)

    @property
    def waits(self) -> bool:
        """Whether it waits for something elsewhere, so that it can be called while this machine goes on drawing."""
        function = self.caller.function
        return bool(getattr(function, "waits", False)) or inspect.iscoroutinefunction(function)

    def __call__(self, prompts: Sequence[Prompt], outputs: Outputs, **rest: Any) -> list[Score]:
        return self.score(make_request(prompts, outputs, **rest))

    def score(self, request: Request) -> list[Score]:
        return self.caller(request)


def find_reward(name: str, type_: str, arguments: Mapping[str, Any]) -> RewardFunction:
    """Built-in name, dotted path or handed object; classes and makers are called with `arguments`, functions get them bound."""
    key = key_of(name)
    thing = type_.thing if isinstance(type_, Handed) else _imported(f"{key}.type", type_)
    if not callable(thing):
        raise RecipeError(f"{key}.type: {type_!r} {_uncallable('is', thing)}; name a function or a class")
    maker = inspect.isclass(thing) or _makes_reward(thing, f"{key}.type")
    given = checked(f"{key}.arguments", thing, arguments)
    try:
        made = thing(**given) if maker else _bound(thing, given) if given else thing
    except TypeError as error:
        if maker and not arguments and not inspect.isclass(thing):
            raise RecipeError(f"{key}.type: {type_!r} {_signature(thing)}") from error
        raise RecipeError(f"{key}.arguments: {error}") from error
    except PlauditError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's class may raise anything while it is made
        raise RecipeError(f"{key}: making {type_!r} raised {told(error)}") from error
    if not callable(made):
        what = f"; it {_signature(thing)}" if maker and not inspect.isclass(thing) else ""
        raise RecipeError(f"{key}.type: {type_!r} {_uncallable('gives', made)}{what}")
    card = getattr(made, "card", None)
    if arguments and card is not None and card.reference is not None:
        made.card = replace(card, reference=None)  # it was measured with the default options
    return made


def _imported(key: str, type_: str) -> Any:
    if type_.startswith(HANDED):
        raise RecipeError(
            f"{key}: the reward was {type_}, and cannot be imported again; put it into a module and name it "
            "`package.module:thing`, or hand it over again: plaudit.load([FOLDER, {'rewards': {NAME: function}}])"
        )
    return import_dotted(BUILT_IN.get(type_, type_), key, built_in=BUILT_IN)


def _uncallable(verb: str, thing: Any) -> str:
    return f"{verb} an object of type {type(thing).__name__}, which cannot be called"


def _signature(function: Any) -> str:
    """What a function takes, beside what a reward takes."""
    names = ", ".join(inspect.signature(function).parameters)
    return (
        f"has {f'the arguments {names}' if names else 'no arguments'}; a reward takes `prompts` and `outputs` (or "
        "`completions`, `images`), a function that makes one what `arguments` gives it"
    )


def _makes_reward(thing: Any, key: str) -> bool:
    """Whether it makes a reward, as `trl.rewards.get_...` do: it could not be handed anything that rewards look at."""
    try:
        parameters = inspect.signature(thing).parameters
    except ValueError as error:
        raise RecipeError(f"{key}: {error}; a reward has named arguments, such as `prompts` and `outputs`") from error
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return not takes_all and not parameters.keys() & {"prompts", "completion_ids", *OUTPUT_NAMES}


def _bound(function: RewardFunction, arguments: Mapping[str, Any]) -> RewardFunction:
    inspect.signature(function).bind_partial(**arguments)
    bound = functools.partial(function, **arguments)
    if hasattr(function, "card"):
        bound.card = function.card  # type: ignore[attr-defined]
    return bound


def load_reward(name: str, config: RewardConfig, cache: ScoreCache | None = None) -> Reward:
    """The reward of a recipe's entry. `cache` is where those that ask for one keep their scores."""
    if config.python is not None:
        function: RewardFunction = import_dotted(ISOLATED, f"{key_of(name)}.python")(name, config)
    else:
        function = find_reward(name, config.type, config.arguments)
    if hasattr(function, "bind") and (config.concurrency > 1 or config.deadline_s is not None):
        raise RecipeError(
            f"{key_of(name)}: {config.type!r} runs the model in training, so its calls come one after another and are waited "
            f"for; leave concurrency (now {config.concurrency}) and deadline_s (now {config.deadline_s}) out"
        )
    handling = Handling(
        batch=config.batch,
        concurrency=config.concurrency,
        deadline_s=config.deadline_s,
        retries=config.retries,
        retry_budget=config.retry_budget,
    )
    cached = _cached(name, config, function, cache or ScoreCache()) if config.cache else None
    caller = Caller(name, function, handling, cached)
    return Reward(name=name, caller=caller, weight=config.weight, config=config)


def _cached(name: str, config: RewardConfig, function: RewardFunction, store: ScoreCache) -> Cached:
    card = getattr(function, "card", None)
    if isinstance(config.type, Handed):
        raise RecipeError(
            f"{key_of(name)}.cache: {config.type} cannot be told apart from another of that name in a later run; leave "
            "`cache` out, or put it into a module"
        )
    if card is not None and not card.batch_invariant:
        raise RecipeError(
            f"{key_of(name)}.cache: the scores of {config.type!r} depend on the rest of the batch or on earlier calls, so "
            "they cannot be kept; leave `cache` out"
        )
    if hasattr(function, "bind"):
        raise RecipeError(
            f"{key_of(name)}.cache: the scores of {config.type!r} change with the model in training; leave `cache` out"
        )
    return Cached(store=store, identity=identity(name, config.type, config.arguments, function))
