from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from tests.rewards.ships import ships

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.rules.reasoning import (
    PHRASES,
    FlippedByGroup,
    FlippedBySample,
    ReasoningCalibrated,
    calibrated,
    reasoning_pattern,
    repetition,
)


@pytest.mark.parametrize("name", ["reasoning_phrases", "reasoning_calibrated", "flipped_by_group", "flipped_by_sample"])
def test_ships(name: str) -> None:
    ships(name)


# --- phrases ---------------------------------------------------------------------------------------------------------


def test_forty_phrases_and_their_cap() -> None:
    assert len(set(PHRASES)) == 40
    everything = " | ".join(PHRASES)
    assert reasoning_pattern(everything) == 1
    assert reasoning_pattern(everything, per_phrase=1 / 40, penalties=False) == pytest.approx(1)
    assert reasoning_pattern(" | ".join(PHRASES[:10]), per_phrase=1 / 40) == pytest.approx(0.25)
    assert reasoning_pattern("") == 0


def test_repetition_against_the_slow_count() -> None:
    words = "a b c a b c a b d".split()
    seen, repeats, total = [], 0, len(words) - 1
    for i in range(total):
        pair = words[i : i + 2]
        repeats += pair in seen
        seen.append(pair)
    assert repetition(" ".join(words), 2) == pytest.approx(repeats / total) == pytest.approx(0.5)
    assert repetition("one two", 20) == 0


def test_one_phrase_for_ever_and_invented_turns_are_worth_nothing() -> None:
    assert reasoning_pattern("wait " * 500) == 0
    assert reasoning_pattern("wait " * 500, penalties=False) == pytest.approx(0.05)
    assert reasoning_pattern(" | ".join(PHRASES) + " user: and 3+3?") == 0


# --- noise -----------------------------------------------------------------------------------------------------------


def even(prompts, outputs):
    return [None if output == "?" else float(output == "even") for output in outputs]


EVEN = f"{__name__}:even"
QUESTIONS = [Prompt(id=f"q{i}", text="x") for i in range(400)]


def values(scores: list[Score]) -> list[float]:
    return [score.value for score in scores]


def test_the_draw_is_the_documented_hash() -> None:
    reward = FlippedByGroup(EVEN, probability=0.3, seed=7)
    found = call_reward("noisy", reward, QUESTIONS[:50], ["even"] * 50, step=5)
    for prompt, score in zip(QUESTIONS, found, strict=False):
        digest = hashlib.blake2b(f"7|5|{prompt.id}|0|reward noise".encode(), digest_size=16).digest()
        bits = np.random.Philox(key=int.from_bytes(digest, "little"), counter=[0, 0, 0, 0])
        draw = np.random.Generator(bits).random(1, dtype=np.float32)[0]
        assert score.value == (0.0 if draw < 0.3 else 1.0)
        assert score.components == {"clean": 1.0}


def test_a_group_is_inverted_together_and_samples_are_not() -> None:
    prompts = [prompt for prompt in QUESTIONS[:100] for _ in range(4)]
    outputs = ["even", "odd", "even", "odd"] * 100
    grouped = np.reshape(values(call_reward("r", FlippedByGroup(EVEN, 0.4), prompts, outputs)), (100, 4))
    assert {tuple(row) for row in grouped} == {(1, 0, 1, 0), (0, 1, 0, 1)}
    single = np.reshape(values(call_reward("r", FlippedBySample(EVEN, 0.4), prompts, outputs)), (100, 4))
    assert len({tuple(row) for row in single}) > 10
    for rows in (grouped, single):
        assert abs((rows[:, 0] == 0).mean() - 0.4) < 0.15  # 3 sigma


def test_noise_is_new_each_step_and_for_each_seed_and_touches_no_global_state() -> None:
    torch.manual_seed(0)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    runs = [
        values(call_reward("r", FlippedByGroup(EVEN, 0.5, seed=seed), QUESTIONS, ["even"] * 400, step=step))
        for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert runs[0] == runs[1] and runs[0] != runs[2] and runs[0] != runs[3]
    assert torch.equal(state, torch.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()


def test_the_ends_of_the_probability() -> None:
    outputs = ["even", "odd"]
    assert values(call_reward("r", FlippedByGroup(EVEN, 0.0), QUESTIONS[:2], outputs)) == [1, 0]
    assert values(call_reward("r", FlippedByGroup(EVEN, 1.0), QUESTIONS[:2], outputs)) == [0, 1]
    with pytest.raises(RewardError, match=r"probability 1.5; allowed: 0 to 1"):
        FlippedByGroup(EVEN, 1.5)


def test_an_output_without_answer_is_never_inverted_and_a_missing_score_stays_missing() -> None:
    reward = FlippedByGroup("tags_soft", 1.0, place="tag")
    assert values(call_reward("r", reward, QUESTIONS[:2], ["none", "<answer>1</answer>"])) == [0, pytest.approx(2 / 3)]
    found = call_reward("r", FlippedByGroup(EVEN, 1.0), QUESTIONS[:2], ["?", "odd"])
    assert found[0].status is Status.NOT_APPLICABLE and found[1].value == 1


def test_the_wrapped_reward_gets_its_columns() -> None:
    prompts = [Prompt(id="q", text="?", facts={"answer": "4"})]
    reward = FlippedByGroup("exact_answer", 1.0, arguments={"place": "whole"})
    assert values(call_reward("r", reward, prompts, ["4"])) == [0]


# --- calibration -----------------------------------------------------------------------------------------------------


def test_calibration_lifts_low_scores_only() -> None:
    score = torch.tensor([0.0, 0.49, 0.5, 1.0, float("nan")])
    pattern = torch.tensor([1.0, 0.5, 1.0, 1.0, 1.0])
    expected = torch.tensor([0.1, 0.54, 0.5, 1.0, float("nan")])
    torch.testing.assert_close(calibrated(score, pattern), expected, equal_nan=True)
    assert calibrated(score[:1], pattern[:1], weight=0.3).item() == pytest.approx(0.3)


def test_phrases_in_the_answer_do_not_calibrate() -> None:
    reward = ReasoningCalibrated("exact_answer")
    prompts = [Prompt(id="q", text="?", facts={"answer": "4"})] * 3
    outputs = [
        "<think>thus</think><answer>5</answer>",
        "<think>hm</think><answer>thus 5</answer>",
        "<think>thus</think><answer>4</answer>",
    ]
    assert values(call_reward("r", reward, prompts, outputs)) == pytest.approx([0.005, 0, 1])
    assert reward.card.high == 1
