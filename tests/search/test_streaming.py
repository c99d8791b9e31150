"""Streaming best-of-N against a slow simulation that knows every whole text beforehand."""

from __future__ import annotations

import math
import re

import pytest
import torch
from tests.search.test_tokens import drawn_alone, make_task

from plaudit.errors import RecipeError
from plaudit.rewards.encoders.sets import sentences
from plaudit.search.base import TimeUp
from plaudit.search.best_of_n import BestOfN
from plaudit.search.run import run_search
from plaudit.search.text.streaming import Streaming, compiled, has_pieces, staying, whole_pieces

PIECE = re.compile("[0-4]")  # lab letters: every text of some length has several
WORTH = {letter: value for value, letter in enumerate("0123456789+-=:;?#")}


class Worth:
    """Mean worth of the letters, -1 for no text."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, prompts: list[str], outputs: list[str]) -> list[float]:
        self.seen += outputs
        return [worth(text) for text in outputs]


def worth(text: str) -> float:
    return sum(map(WORTH.get, text)) / len(text) if text else -1.0


def simulated(task, count: int, method: Streaming) -> tuple[set[tuple[int, int]], list[int]]:
    """Candidates that finish, and the network calls of every prompt, from texts drawn to their ends."""
    finished, calls = set(), []
    for p in range(len(task.prompts)):
        drawn = drawn_alone(task, torch.full((count,), p), torch.arange(count))
        rows = drawn.rows()
        alive, spent = list(range(count)), len(rows[0]) + 1
        read = dict.fromkeys(range(1, count), 0)
        for checkpoint in method.checkpoints:
            parts = {}
            for c in {0, *alive}:
                at = next(
                    (n for n in range(1, len(rows[c]) + 1)
                     if len(PIECE.findall(task.model.decode(rows[c][:n]))) >= checkpoint),
                    len(rows[c]),
                )  # fmt: skip
                text = task.model.decode(rows[c][:at])
                ends = [match.end() for match in PIECE.finditer(text)]
                parts[c] = worth(text[: ends[checkpoint - 1]] if len(ends) >= checkpoint else text)
                read[c] = at
            keep = max(math.floor(method.keep * len(parts)), 1)
            alive = sorted(parts, key=lambda c: (-parts[c], c))[:keep]
        read |= {c: len(rows[c]) for c in alive}
        spent += sum(read[c] - 1 for c in range(1, count))
        finished |= {(p, c) for c in {0, *alive}}
        calls.append(spent)
    return finished, calls


@pytest.mark.parametrize(("checkpoints", "keep"), (((2, 4, 6), 0.5), ((1,), 0.3), ((1, 2, 3), 0.7)))
def test_what_is_dropped_and_what_it_saves(checkpoints: tuple[int, ...], keep: float) -> None:
    reward, method = Worth(), Streaming(candidates=8, checkpoints=checkpoints, keep=keep, boundary=PIECE.pattern)
    task = make_task(reward=reward, tokens=30)
    finished, calls = simulated(task, 8, method)
    task.model.rows.clear()
    result = run_search(task, method)
    assert {(one.prompt, one.candidate) for one in result.candidates} == finished
    assert task.ledger.counts["network_calls"].tolist() == calls and sum(task.model.rows) == sum(calls)
    assert task.ledger.total.reward_calls == len(reward.seen)
    full = make_task(reward=Worth(), tokens=30)
    run_search(full, BestOfN(candidates=8))
    assert len(finished) < 24 and sum(calls) < 0.9 * full.ledger.total.network_calls


def test_if_nothing_is_dropped_it_is_best_of_n() -> None:
    task, other = make_task(reward=Worth(), tokens=30), make_task(reward=Worth(), tokens=30)
    streamed = run_search(task, Streaming(candidates=6, keep=1.0, boundary=PIECE.pattern), keep_all=True)
    best = run_search(other, BestOfN(candidates=6), keep_all=True)

    def texts(result):
        return {(p, kept.candidate): (kept.output, kept.score) for p, kept in result.kept}

    assert texts(streamed) == texts(best) and streamed.outputs == best.outputs
    # The plain samples are drawn before the others, so their prompts are read twice.
    assert task.ledger.total.network_calls == other.ledger.total.network_calls + 3


def test_the_best_so_far_stays_and_the_plain_sample_always_does() -> None:
    method = Streaming(candidates=8, checkpoints=(1,), keep=0.01, boundary=PIECE.pattern)
    result = run_search(make_task(reward=Worth(), tokens=30), method)
    per_prompt = [[one.candidate for one in result.candidates if one.prompt == p] for p in range(3)]
    assert all(own[0] == 0 and len(own) <= 2 for own in per_prompt) and any(len(own) == 2 for own in per_prompt)


def test_a_candidate_without_a_score_goes_first() -> None:
    nan = math.nan
    score = torch.tensor([nan, 0.5, -3.0, nan, -2.0, 0.1, nan, nan]).double()  # two plain samples, then three of each
    prompt = torch.tensor([0, 1, 0, 0, 0, 1, 1, 1])
    assert staying(score, prompt, 0.5).tolist() == [0, 2, 3]
    assert staying(score, prompt, 0.9).tolist() == [0, 2, 3, 4]  # of equally missing ones the earlier
    assert staying(score, prompt, 0.01).tolist() == [2]


def test_pieces_of_a_text() -> None:
    sentence = compiled(Streaming().boundary)
    text = "No effusion. The heart is normal! 2.5 cm node; clear"
    ends = [n for n in range(len(text) + 1) if has_pieces(text[:n], sentence, 2)]
    assert ends[0] == len("No effusion. The heart is normal! ")
    assert whole_pieces(text, sentence, 2) == "No effusion. The heart is normal! "
    assert sentences(whole_pieces(text, sentence, 3)) == ["No effusion.", "The heart is normal!", "2.5 cm node"]
    assert whole_pieces(text, sentence, 4) == text


@pytest.mark.parametrize(
    ("options", "said"),
    (
        ({"checkpoints": (2, 2)}, "checkpoints must rise"),
        ({"checkpoints": (0, 1)}, "checkpoints must rise"),
        ({"keep": 0.0}, "keep be more than 0"),
        ({"boundary": "("}, "no regular expression"),
        ({"boundary": "x*"}, "would never end"),
    ),
)
def test_wrong_options_are_named(options: dict, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Streaming(**options)


def test_the_budget_is_kept_and_named() -> None:
    with pytest.raises(RecipeError, match="pays for 3 of 8 candidates"):
        run_search(make_task(reward=Worth(), tokens=30, budget="90nfe"), Streaming(candidates=8))
    task = make_task(reward=Worth(), tokens=30, budget="90nfe,9rewards")
    result = run_search(task, Streaming(boundary=PIECE.pattern))
    assert len(result.candidates) >= 3
    for kind, limit in task.budget.limits().items():
        assert (task.ledger.counts[kind] <= limit).all()


def test_with_time_alone_it_goes_on_in_rounds() -> None:
    task = make_task(reward=Worth(), tokens=10, budget="9s")
    seen = []
    with pytest.raises(TimeUp):
        for found in Streaming(boundary=PIECE.pattern).run(task):
            seen.append(found)
            if len(seen) == 3:
                task.deadline = -1.0
    assert seen[2].candidate.min() >= 8
