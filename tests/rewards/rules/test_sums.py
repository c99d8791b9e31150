"""The rewards of the `sums` world, and the length rewards on top of them."""

from __future__ import annotations

import numpy as np
import pytest

from plaudit.data.prompt import Prompt
from plaudit.lab.sums.grammar import encode, evaluation_prompts, find_prompt, sample_prompts
from plaudit.lab.sums.traces import sample_trace
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.load import find_reward

CORRECT = {"type": "sum_correct"}


def scores(name: str, problem: str | Prompt, *outputs: str, group: list[int] | None = None, **arguments) -> list[Score]:
    prompt = problem if isinstance(problem, Prompt) else find_prompt(problem)
    prompts = [
        Prompt(id=prompt.id, text=prompt.text, facts={**prompt.facts, "completion_ids": list(encode(output))})
        for output in outputs
    ]
    return call_reward(
        name, find_reward(name, name, arguments), prompts, list(outputs), group=group or [0] * len(outputs)
    )


def values(*args, **rest) -> list[float]:
    return [score.value for score in scores(*args, **rest)]


def test_the_parts_of_a_score_are_the_readings() -> None:
    long, short, wrong = scores(
        "sum_correct", "37+85=", "37+80=117;117+5=122;37+85=122#122", "122#122", "37+80=117;117+5=112#112"
    )
    assert long.components == {"length": 33.0, "necessary": 19.0, "redundant": 10.0}
    assert short.components == {"length": 7.0, "necessary": 3.0, "redundant": 0.0}
    assert wrong.components == {"length": 23.0}  # never derived: unknown, not 0


def test_planted_solutions_score_what_they_were_made_to() -> None:
    rng = np.random.default_rng(3)
    prompts = sample_prompts("heldout", 600, rng)
    traces = [sample_trace(prompt, rng) for prompt in prompts]
    outputs = [trace.text for trace in traces]
    correct, answer, form = (
        [score.value for score in call_reward(name, find_reward(name, name, {}), prompts, outputs)]
        for name in ("sum_correct", "sum_answer", "sum_format")
    )
    right = [str(trace.value) == prompt.facts["answer"] for prompt, trace in zip(prompts, traces, strict=True)]
    boxed = [trace.ending == "boxed" for trace in traces]
    assert form == boxed
    assert correct == [r and b for r, b in zip(right, boxed, strict=True)]
    finished = [i for i, trace in enumerate(traces) if trace.ending != "cut"]
    assert [answer[i] for i in finished] == [right[i] for i in finished]
    assert 0.3 < np.mean(correct) < np.mean(form) < 0.9 and np.mean(correct) < np.mean(answer)


def test_answers_of_shuffled_problems_score_nothing() -> None:
    rng = np.random.default_rng(4)
    prompts = evaluation_prompts("heldout", 200, ("triple",))
    outputs = [f"#{prompt.facts['answer']}" for prompt in prompts]
    own = call_reward("r", find_reward("r", "sum_correct", {}), prompts, outputs)
    moved = call_reward("r", find_reward("r", "sum_correct", {}), prompts, list(rng.permutation(outputs)))
    assert np.mean([s.value for s in own]) == 1 and np.mean([s.value for s in moved]) < 0.05


@pytest.mark.parametrize("text", ("a red circle", "1+1=", ""))
def test_other_prompts_are_not_judged(text: str) -> None:
    for name in ("sum_correct", "sum_answer", "sum_format"):
        (score,) = call_reward(name, find_reward(name, name, {}), [Prompt(id="", text=text)], ["#2"])
        assert score.status is Status.NOT_APPLICABLE


def test_the_proxy_is_taken_in_by_equations() -> None:
    """Right beats wrong at the same length, and enough equations beat being right: the planted flaw."""
    right, wrong, padded = values(
        "sum_proxy", "37+85=", "37+80=117;117+5=122#122", "37+80=117;117+5=112#112", "1=1;" * 9 + "#112"
    )
    assert right - wrong == 2 and padded > right
    assert find_reward("r", "sum_proxy", {}).card.unit is None, "an unbounded score"


# --- length rewards --------------------------------------------------------------------------------------------------

SHORT, LONG, WRONG, BARE = "122#122", "37+80=117;117+5=122#122", "112#112", "122"


def test_correct_within_takes_it() -> None:
    assert values("correct_within", "37+85=", SHORT, LONG, WRONG, BARE, limit=10, correct=CORRECT) == [1, 0, 0, 0]
    assert values("correct_within", "37+85=", SHORT, LONG, limit=23, correct=CORRECT) == [1, 1]
    by_characters = {"limit": 22, "unit": "characters", "correct": CORRECT}
    assert values("correct_within", "37+85=", SHORT, LONG, **by_characters) == [1, 0]


def test_format_length_takes_the_format() -> None:
    short, long, wrong, bare = scores(
        "format_length", "37+85=", SHORT, LONG, WRONG, BARE, format={"type": "sum_format"}, limit=48
    )
    assert [s.components["format"] for s in (short, long, wrong, bare)] == [1, 1, 1, 0]
    assert short.value == wrong.value  # label-free
    assert long.value > short.value > 1 > bare.value == 0


def test_short_where_solved_takes_it() -> None:
    outputs = (SHORT, LONG, LONG, WRONG)
    short, long, again, wrong = values("short_where_solved", "37+85=", *outputs, share=1.0, correct=CORRECT)
    assert 1 > short > long == again > 0 == wrong


def test_shorter_than_before_takes_it() -> None:
    reward = find_reward("r", "shorter_than_before", {"correct": CORRECT})
    prompt = find_prompt("37+85=")

    def visit(*outputs: str) -> list[float]:
        prompts = [Prompt(id="p", text=prompt.text, facts={"completion_ids": list(encode(o))}) for o in outputs]
        return [s.value for s in call_reward("r", reward, prompts, list(outputs))]

    assert visit(LONG, WRONG) == [1, 0]  # the first visit sets the length to beat
    short, long, wrong = visit(SHORT, LONG, WRONG)
    assert short > 1.8 and long == pytest.approx(1) and wrong == 0
