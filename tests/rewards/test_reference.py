"""The references on cards are what `plaudit rewards reference` measures."""

from __future__ import annotations

import pytest

from plaudit.errors import RewardError
from plaudit.rewards.card_reference import measure
from plaudit.rewards.catalogue import entries
from plaudit.rewards.load import find_reward

WITH = {entry.name: entry.card.reference for entry in entries() if entry.card.reference is not None}


@pytest.mark.parametrize("name", WITH)
def test_the_card_says_what_is_measured(name: str) -> None:
    found, card = measure(name), WITH[name]
    assert card.on == found.on
    assert (card.mean, card.std) == pytest.approx((found.mean, found.std), rel=0.02)  # JPEG coders differ a little


def test_there_are_some_and_they_hold_for_the_default_options_only() -> None:
    assert {"brightness", "jpeg_size", "scene_proxy"} <= set(WITH)
    assert find_reward("j", "jpeg_size", {}).card.reference is not None
    assert find_reward("j", "jpeg_size", {"quality": 50}).card.reference is None
    assert find_reward("j", "jpeg_size", {}).card.reference is not None, "the class keeps its own"
    with pytest.raises(RewardError, match="looks at text"):
        measure("states_answer")
