"""What every built-in reward must show."""

from __future__ import annotations

import copy

from plaudit.data.content import media_hash
from plaudit.rewards.base import Status
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.load import find_reward
from plaudit.rewards.pinned import NUM_CASES, agrees, load_pinned, shown


def ships(name: str) -> None:
    """Card, eight pinned scores of at least three values, the same scores one by one and in another order, and outputs and
    prompts as they were: the caller hands our own rewards no copies."""
    pinned = load_pinned(name)

    def fresh() -> Caller:
        return Caller(name, find_reward(name, name, pinned.arguments))

    caller, request = fresh(), pinned.request
    card = caller.card
    assert card is not None and card.summary and card.low < card.high, f"{name} has no card"
    assert len(request) == NUM_CASES
    before = copy.deepcopy(request)
    found = caller(request)
    assert media_hash(list(request.outputs)) == media_hash(list(before.outputs)), f"{name} writes into its outputs"
    assert media_hash([(p.facts, p.inputs) for p in request.prompts]) == media_hash(
        [(p.facts, p.inputs) for p in before.prompts]
    )
    for i, (score, expected) in enumerate(zip(found, pinned.expected, strict=True)):
        assert agrees(score, expected, pinned.tolerance), f"{name} case {i}: {expected} pinned, {shown(score)} found"
        assert score.status is not Status.OK or card.low - 1e-6 <= score.value <= card.high + 1e-6
        assert score.status is not Status.OK or not card.verdict or score.value in (0, 1), f"{name} is no verdict"
    gate = {score.value for score in found} == {0, 1}  # one that judges every output has two scores only
    assert gate or len({shown(score) for score in found}) >= 3, f"{name}: the pinned scores hardly differ"
    if not card.batch_invariant:
        return
    alone = [fresh()(request.rows([i]))[0] for i in range(len(request))]
    backwards = fresh()(request.rows(range(len(request))[::-1]))[::-1]
    for together, single, turned in zip(found, alone, backwards, strict=True):
        for other in (single, turned):
            assert together.status == other.status
            assert together.status is not Status.OK or abs(together.value - other.value) <= pinned.tolerance
