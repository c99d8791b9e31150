"""What no text may do: hold up everybody else's for longer than its length accounts for."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from plaudit.data.prompt import Prompt
from plaudit.dotted import import_dotted
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.load import find_reward
from plaudit.rewards.pinned import load_pinned
from plaudit.rewards.table import BUILT_IN, UNPINNED

LONG, FLOOR_S = 3000, 0.001  # repetitions of a piece, seconds
PIECES = (
    " ", "\n", ".", "!", "!.", ".,", ":", "-", "---\n", "#", "*", '"', "(", "{", "<think>", "</think>", "<answer>", r"\boxed{",
    r"\frac{", "```\n", "\n[A", "1,", "a", "$",
)  # fmt: skip
FRAMES = (
    ("", "x"), ("<answer>", "x</answer>"), ("<answer>5", "!</answer>"), ("<answer>€", "x</answer>"),
    ("<answer>answer", "x</answer>"), ("```", "x"), ("For", "x\ny"),
)  # fmt: skip


def rewards() -> list[str]:
    """The built-in rewards for texts that need no extra, no sandbox and nothing that the user names."""
    cards = {name: import_dotted(path, name).card for name, path in BUILT_IN.items() if name not in UNPINNED}
    light = {name for name, card in cards.items() if card.kind == "text" and not card.extra and not card.untrusted}
    return sorted(light)


def texts(times: int) -> list[str]:
    return [before + piece * times + after for piece in PIECES for before, after in FRAMES]


def least(caller: Caller, prompts: Sequence[Prompt], text: str, enough: float = 0.0) -> float:
    """Processor time, the least of up to three."""
    spent: list[float] = []
    while len(spent) < 3 and (not spent or spent[-1] >= enough):
        started = time.process_time()
        caller(make_request(prompts, [text]))
        spent.append(time.process_time() - started)
    return min(spent)


@pytest.mark.parametrize("name", rewards())
def test_a_text_costs_no_more_than_its_length(name: str) -> None:
    """Eight times as much text may cost eight times as much, not sixty-four."""
    pinned = load_pinned(name)
    caller = Caller(name, find_reward(name, name, pinned.arguments))
    judged = next(i for i, score in enumerate(pinned.expected) if not isinstance(score, str))
    prompts = pinned.request.prompts[judged : judged + 1]
    for long, short in zip(texts(LONG), texts(LONG // 8), strict=True):
        allowed = 24 * FLOOR_S
        cost = least(caller, prompts, long, enough=allowed)
        if cost >= allowed:
            allowed = 24 * max(least(caller, prompts, short), FLOOR_S)
        assert cost < allowed, f"{name}: {cost:.3f} s for {len(long)} characters of {long[:40]!r}"
