"""Scores and cards as JSON, and back. A score that is missing is null; NaN and infinity are never written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeGuard

from torch import Tensor

from plaudit.rewards.base import Card, Reference, Score, Status, finite, missing, score_json
from plaudit.serve.schema import MAX_RANK
from plaudit.serve.wire import DTYPES, WireError, from_base64, make_tensor, tensor_part

UNDECIDED = (Status.TIMED_OUT, Status.ERRORED)  # another attempt may find a score
TOLERANCE = 1e-6  # of a float32 score at the edge of its card's range
SHOWN = 200  # characters of a service's words that are repeated in a note


def card_json(card: Card | None) -> dict[str, Any] | None:
    if card is None:
        return None
    content = asdict(card)
    content["low"], content["high"] = finite(card.low), finite(card.high)
    content["systems"] = list(card.systems)
    return content


def read_card(content: Any) -> Card:
    """A card from a service; what a later version has added to it is left out."""
    if not isinstance(content, Mapping) or not isinstance(content.get("summary"), str):
        raise ValueError("a card is a mapping with a `summary`")
    known = {field.name for field in fields(Card)}
    facts = {name: value for name, value in content.items() if name in known}
    for name, open_end in (("low", -math.inf), ("high", math.inf)):
        value = facts.get(name)
        if value is not None and not _is_number(value):
            raise ValueError(f"the card's `{name}` is {value!r}")
        facts[name] = open_end if value is None else float(value)
    if facts.get("kind") not in ("image", "text", "audio", "video"):
        raise ValueError(f"the card's `kind` is {facts.get('kind')!r}")
    if not isinstance(facts.get("batch_invariant"), bool):
        raise ValueError(f"the card's `batch_invariant` is {facts.get('batch_invariant')!r}")
    if facts.get("reference") is not None:
        facts["reference"] = Reference(**facts["reference"])
    facts["verdict"] = facts.get("verdict") is True
    facts["systems"] = tuple(facts.get("systems", ()))
    return Card(**{**facts, "differentiable": False})  # no gradient travels over the wire


def read_scores(document: Any, expected: int, card: Card | None) -> list[Score]:
    """Scores from a service's answer. Whatever is wrong with one of them makes that one missing."""
    results = document.get("results") if isinstance(document, Mapping) else None
    if not isinstance(results, list):
        raise ValueError(f"the answer has no list `results`: {shown(document)}")
    if len(results) != expected:
        raise ValueError(f"the answer has {len(results)} results for {expected} outputs")
    return [_read_score(result, card) for result in results]


def _read_score(content: Any, card: Card | None) -> Score:
    try:
        return _checked(content, card)
    except (ValueError, TypeError, OverflowError, WireError) as error:
        return missing(Status.ERRORED, f"the service answered {shown(content)}: {error}")


def _checked(content: Any, card: Card | None) -> Score:
    if not isinstance(content, Mapping):
        raise ValueError("a result is a mapping")
    status, note = Status(content.get("status", "")), content.get("note", "")
    if not isinstance(note, str):
        raise ValueError("`note` is text")
    value = _optional_number(content.get("value"), "value")
    if (value is None) != (status is not Status.OK):
        raise ValueError(f"`value` is {value} with the status {status}: only ok scores have a value")
    if value is None:
        return missing(status, note)
    _check_range(value, card)
    return Score(
        value=value,
        components=_components(content.get("components")),
        sigma=_optional_number(content.get("sigma"), "sigma"),
        dense=_dense(content.get("dense")),
        note=note,
    )


def _check_range(value: float, card: Card | None) -> None:
    if card is None:
        return
    slack = TOLERANCE * max(1.0, *(abs(bound) for bound in (card.low, card.high) if math.isfinite(bound)), 0.0)
    if not card.low - slack <= value <= card.high + slack:
        raise ValueError(f"{value:g} is outside of the card's range {card.low:g} to {card.high:g}")


def _components(content: Any) -> dict[str, float] | None:
    if content is None:
        return None
    if not isinstance(content, Mapping):
        raise ValueError("`components` is a mapping")
    numbers = {str(name): _optional_number(value, f"components.{name}") for name, value in content.items()}
    return {name: math.nan if value is None else value for name, value in numbers.items()}


def _optional_number(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not math.isfinite(float(value)):
        raise ValueError(f"`{what}` must be a number or null")
    return float(value)


def _dense(content: Any) -> Tensor | None:
    if content is None:
        return None
    if not isinstance(content, Mapping) or not isinstance(content.get("data"), str):
        raise ValueError("`dense` is a tensor")
    dtype, shape = DTYPES.get(content.get("dtype", "")), content.get("shape")
    if dtype is None or not _is_shape(shape):
        raise ValueError("`dense` has no known dtype and shape")
    return make_tensor(from_base64(content["data"], "dense"), dtype, shape, "dense")


def _is_shape(shape: Any) -> TypeGuard[list[int]]:
    return isinstance(shape, list) and len(shape) <= MAX_RANK and all(type(size) is int and size >= 0 for size in shape)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def error_json(message: str, **rest: Any) -> dict[str, Any]:
    return {"error": message, **{key: value for key, value in rest.items() if value is not None}}


def decided(scores: Sequence[Score]) -> bool:
    """Whether scoring the same again would bring nothing new."""
    return not any(score.status in UNDECIDED for score in scores)


def remembering(who: str) -> str:
    """Why a reward with `state()` is neither served nor asked for elsewhere."""
    return (
        f"{who} remembers earlier calls; its memory could not be saved with checkpoints from another process; run it in "
        "the trainer's process"
    )


def results_json(reward: str, scores: Sequence[Score]) -> dict[str, Any]:
    return {"reward": reward, "results": [_result_json(score) for score in scores]}


def _result_json(score: Score) -> dict[str, Any]:
    dense = {} if score.dense is None else {"dense": tensor_part(score.dense)}
    return {**score_json(score), **dense}
