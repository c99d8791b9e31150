"""Exact rewards of the lab world: they read the pixels and know the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.lab.scenes.check import Scene, Verdict, check, detect, relation_holds
from plaudit.lab.scenes.grammar import find_prompt
from plaudit.rewards.base import Card, Score, Status, card, missing

Facts = Mapping[str, Any]
PARTS = ("count", "color", "shape", "relation")


def scene_facts(prompts: Sequence[str], facts: Sequence[Facts]) -> dict[int, Facts]:
    """By row, the facts of those prompts that are captions of the lab world; its captions bring their own."""
    found = {}
    for i, (text, fact) in enumerate(zip(prompts, facts, strict=True)):
        if "objects" in fact:
            found[i] = fact
        elif (prompt := find_prompt(text)) is not None:
            found[i] = prompt.facts
    return found


def spread(values: Sequence[float | Score], rows: Sequence[int], total: int) -> list[float | Score]:
    """Values put in their rows; the others cannot be judged."""
    found = dict(zip(rows, values, strict=True))
    other = missing(
        Status.NOT_APPLICABLE, "the prompt is not a caption of the `scenes` world and has no `objects` facts"
    )
    return [found.get(i, other) for i in range(total)]


def judged(
    value: Callable[[Verdict], float], prompts: Sequence[str], outputs: Tensor, facts: Sequence[Facts]
) -> list[float | Score]:
    known = scene_facts(prompts, facts)
    if not known:
        return spread([], [], len(prompts))
    verdicts = check(outputs[list(known)], [Prompt(id="", text=prompts[i], facts=known[i]) for i in known])
    return spread([value(verdict) for verdict in verdicts], list(known), len(prompts))


@card(low=0, high=1, verdict=True, cost_ms=0.3)
def scene_exact(prompts: Sequence[str], outputs: Tensor, facts: Sequence[Facts]) -> list[float | Score]:
    """1 where the picture shows exactly what the caption says, else 0."""
    return judged(lambda verdict: float(verdict.correct), prompts, outputs, facts)


@card(low=0, high=1, cost_ms=0.3)
def scene_graded(prompts: Sequence[str], outputs: Tensor, facts: Sequence[Facts]) -> list[float | Score]:
    """Satisfied parts of the caption, divided by one plus the surplus objects."""
    return judged(lambda verdict: verdict.graded, prompts, outputs, facts)


@card(low=0, high=1, cost_ms=0.3)
def scene_match(prompts: Sequence[str], outputs: Tensor, facts: Sequence[Facts]) -> list[float | Score]:
    """Half exact, half graded: the lab's training reward."""
    return judged(lambda verdict: 0.5 * verdict.correct + 0.5 * verdict.graded, prompts, outputs, facts)


class ScenePart:
    """One part of the caption, judged without regard to the others; not applicable where the caption does not have it.

    `count` (captions with a number above one), `color` and `shape` compare what is needed with what is there: the share that
    agrees, of whichever is more; patches that are no object count as there. `relation` is 1 or 0: whether some first object
    stands in the caption's relation to some second one.
    """

    card = Card(summary="one part of a lab caption: count, color, shape or relation", low=0, high=1, cost_ms=0.3)

    def __init__(self, part: Literal["count", "color", "shape", "relation"] = "count") -> None:
        if part not in PARTS:
            raise RewardError(f"scene_part: part is {part!r}; allowed: {', '.join(PARTS)}")
        self.part = part

    def __call__(self, prompts: Sequence[str], outputs: Tensor, facts: Sequence[Facts]) -> list[float | Score]:
        known = scene_facts(prompts, facts)
        if not known:
            return spread([], [], len(prompts))
        parts = [self._judge(scene, known[i]) for i, scene in zip(known, detect(outputs[list(known)]), strict=True)]
        return spread(parts, list(known), len(prompts))

    def _judge(self, scene: Scene, facts: Facts) -> float | Score:
        kinds = facts["objects"]
        if self.part == "relation":
            if facts.get("relation") is None:
                return missing(Status.NOT_APPLICABLE, "the caption has no relation")
            pairs = [(kind["color"], kind["shape"]) for kind in kinds]
            return float(relation_holds(scene.objects, pairs, facts["relation"]))
        if self.part == "count":
            if all(kind["count"] == 1 for kind in kinds):
                return missing(Status.NOT_APPLICABLE, "the caption has no number above one")
            needed = Counter({"object": sum(kind["count"] for kind in kinds)})
            return agreement(needed, Counter({"object": len(scene.objects)}), len(scene.blobs))
        needed = Counter()
        for kind in kinds:
            needed[kind[self.part]] += kind["count"]
        return agreement(needed, Counter(getattr(thing, self.part) for thing in scene.objects), len(scene.blobs))


def agreement(needed: Counter[str], found: Counter[str], num_blobs: int) -> float:
    """Size of what both have, divided by the size of the larger; blobs are found but agree with nothing."""
    return (needed & found).total() / max(needed.total(), found.total() + num_blobs)
