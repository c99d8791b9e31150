"""Novelty bonuses against direct formulas, what resets when, and that a stored state has the same future."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from plaudit.data.prompt import Prompt
from plaudit.rewards.base import Score
from plaudit.rewards.calling.call import Caller
from plaudit.rewards.calling.request import make_request
from plaudit.rewards.novelty.bonuses import Distillation, Ellipsoid, FirstVisit, count_bonus, leave_one_out, noveld
from plaudit.rewards.novelty.reward import Novelty, TextNovelty
from plaudit.rewards.novelty.views import colours, objects, pieces
from plaudit.rewards.pinned.media import make

VARIANTS = [
    {},
    {"features": "objects", "combine": "sum"},
    {"over_training": "distillation"},
    {"within_episode": "first_visit", "episode": "prompt"},
    {"within_episode": "leave_one_out"},
    {"over_training": "distillation", "episode": "prompt", "combine": "episodic"},
]


def pictures(*captions: str, seed: int = 1) -> torch.Tensor:
    return torch.stack([make({"scene": caption, "seed": seed + i}) for i, caption in enumerate(captions)])


def scored(reward, outputs, group: list[int] | None = None, ids: list[str] | None = None) -> list[Score]:
    prompts = [Prompt(id=(ids or [""] * len(outputs))[i], text="") for i in range(len(outputs))]
    return Caller("mine", reward)(make_request(prompts, outputs, group or [0] * len(outputs)))


def values(*args, **rest) -> list[float]:
    return [score.value for score in scored(*args, **rest)]


# --- bonuses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "ridge"), [(1, 0.1), (5, 0.1), (12, 2.0)])
def test_the_ellipsoid_equals_direct_inversion(size: int, ridge: float) -> None:
    rng = np.random.default_rng(0)
    ellipsoid, matrix = Ellipsoid(size, ridge), ridge * np.eye(size)
    for phi in rng.normal(size=(30, size)):
        assert ellipsoid.bonus(phi) == pytest.approx(phi @ np.linalg.inv(matrix) @ phi)
        matrix += np.outer(phi, phi)
    np.testing.assert_allclose(ellipsoid.inverse, np.linalg.inv(matrix), atol=1e-12)


def test_the_bonus_is_that_before_the_update() -> None:
    """The first unit vector has 1 / lambda, its n-th repetition 1 / (lambda + n - 1), a right angle 1 / lambda again."""
    ellipsoid, (one, other) = Ellipsoid(2), np.eye(2)
    assert [ellipsoid.bonus(one) for _ in range(3)] == pytest.approx([10, 1 / 1.1, 1 / 2.1])
    assert ellipsoid.bonus(other) == pytest.approx(10)


def test_small_bonuses_by_hand() -> None:
    assert [count_bonus(n) for n in (1, 4, 9)] == pytest.approx([1, 1 / 2, 1 / 3])
    visits = FirstVisit()
    assert [visits.bonus(key) for key in "abab"] == [1, 1, 0, 0]
    assert noveld(2.0, 1.0) == 1.5 and noveld(0.4, 1.0) == 0 and noveld(0.4, 1.0, alpha=0.1) == pytest.approx(0.3)


def test_distillation_is_content_with_what_it_has_seen() -> None:
    view = Novelty.VIEWS["colours"]
    known = view.rows(colours(pictures(*["a red circle", "a blue square"] * 8)))
    unknown = view.rows(colours(torch.stack([make({"checks": n}) for n in (2, 4, 8, 16)])))
    distillation = Distillation(known.shape[1])
    before = distillation.errors(known).mean(), distillation.errors(unknown).mean()
    for _ in range(60):
        distillation.bonuses(known, [""] * len(known))
    after = distillation.errors(known).mean(), distillation.errors(unknown).mean()
    assert after[0] < 0.01 * before[0], "learned"
    assert after[1] / after[0] > 3 * before[1] / before[0], "and the unknown stands out"


def test_distillation_is_divided_by_its_running_deviation() -> None:
    rows = np.random.default_rng(0).normal(size=(6, 4)) / 4
    distillation = Distillation(4)
    seen: list[float] = []
    for start in (0, 2, 4):
        batch = rows[start : start + 2]
        seen += distillation.errors(batch).tolist()
        expected = np.array(seen[-2:]) / np.std(seen)
        np.testing.assert_allclose(distillation.bonuses(batch, ["", ""]), expected)


# --- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "values"),
    [
        (Novelty.VIEWS["colours"], colours(torch.stack([make({"shade": [v] * 3}) for v in (0, 0.5, 1)]))),
        (Novelty.VIEWS["objects"], objects(pictures("a red circle", "two red circles", "four green squares"))),
        (TextNovelty.VIEWS["pieces"], pieces(["", "a", "a long text " * 40])),
    ],
)
def test_features_have_length_one_and_differ(view, values: np.ndarray) -> None:
    rows = view.rows(values)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1)
    assert len({row.tobytes() for row in rows}) == len(rows) == len(set(view.keys(values)))


def test_colours_are_those_of_cells() -> None:
    picture = torch.zeros(3, 8, 8)
    picture[2, 2:4, 6:8] = 0.5  # blue, second row, fourth column of 2 x 2 cells
    row = colours([picture])[0]
    assert np.flatnonzero(row).tolist() == [2 * 16 + 1 * 4 + 3] and row[39] == pytest.approx(0.5)


def test_objects_are_seen_wherever_they_are() -> None:
    here, there = pictures("two red circles", "two red circles")
    assert not torch.equal(here, there)
    seen = objects([here, there])
    assert np.array_equal(*seen) and seen[0].tolist() == [2] + [0] * 17


def test_text_pieces_ignore_case_and_spacing() -> None:
    one, same, other = TextNovelty.VIEWS["pieces"].rows(pieces(["A red  circle", "a red circle", "a red square"]))
    assert np.array_equal(one, same) and 0.3 < float(one @ other) < 0.95
    assert pieces(["ab"]).sum() == 4 and pieces([""]).sum() == 0


# --- the reward ------------------------------------------------------------------------------------------------------


def test_a_group_of_copies_pays_less_and_less() -> None:
    same = pictures("a red circle")[[0] * 5]
    bonus = values(Novelty(), same)
    assert bonus == sorted(bonus, reverse=True) and bonus[0] > 10 * bonus[4] > 0
    diverse = pictures("a red circle", "three white squares", "a green triangle", "two blue squares", "a purple square")
    assert sum(values(Novelty(), diverse)) > 1.4 * sum(bonus)


def test_leave_one_out_is_the_last_visit_of_every_order() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3))
    for i, bonus in enumerate(leave_one_out(rows)):
        ellipsoid = Ellipsoid(3)
        visited = [ellipsoid.bonus(phi) for phi in (*np.delete(rows, i, axis=0), rows[i])]
        assert bonus == pytest.approx(visited[-1])


def test_leave_one_out_finds_the_odd_one_wherever_it_stands() -> None:
    same, odd = pictures("a red circle", "three white squares")
    for place in range(4):
        outputs = [same] * 4
        outputs[place] = odd
        bonus = values(Novelty(within_episode="leave_one_out", combine="episodic"), torch.stack(outputs))
        assert bonus[place] == max(bonus) > 1.5 * min(bonus)
        assert np.ptp(np.delete(bonus, place)) < 1e-9, "equal outputs have equal bonuses, the first too"
    two = values(
        Novelty(within_episode="leave_one_out", combine="episodic"), torch.stack([same, odd] * 2), group=[0, 1] * 2
    )
    assert two == pytest.approx([1 / 1.1] * 4), "groups do not see each other"


def test_the_episode_is_the_group_and_training_is_all() -> None:
    same = pictures("a red circle")[[0] * 4]
    reward = Novelty()
    first = scored(reward, same, group=[0, 1, 0, 1])
    episodic = [score.components["episodic"] for score in first]
    assert episodic[0] == episodic[1] > episodic[2] == episodic[3], "two groups, whatever their order"
    assert [s.components["global"] for s in first] == pytest.approx([1, 2**-0.5, 3**-0.5, 4**-0.5])
    second = scored(reward, same[:1])[0].components
    assert second["episodic"] == episodic[0] and second["global"] == pytest.approx(5**-0.5)


def test_an_episode_of_a_prompt_lasts_until_reset() -> None:
    reward, same = Novelty(episode="prompt", combine="episodic"), pictures("a red circle")
    first, again = values(reward, same, ids=["a"])[0], values(reward, same, ids=["a"])[0]
    assert again < 0.5 * first and values(reward, same, ids=["b"])[0] == first
    reward.reset()
    assert values(reward, same, ids=["a"])[0] == first


def test_combinations_and_their_ranges() -> None:
    outputs = pictures("a red circle", "a red circle", "two blue squares")
    for combine, operation in (
        ("product", lambda g, e: g * e),
        ("sum", lambda g, e: g + e),
        ("global", lambda g, e: g),
        ("episodic", lambda g, e: e),
    ):
        reward = Novelty(combine=combine)
        for score in scored(reward, outputs):
            assert score.value == pytest.approx(operation(score.components["global"], score.components["episodic"]))
            assert 0 < score.value <= reward.card.high + 1e-9
    assert [Novelty(combine=c).card.high for c in ("product", "sum", "global", "episodic")] == [10, 11, 1, 10]
    assert Novelty(over_training="distillation").card.high == math.inf
    assert Novelty.card.high == math.inf, "one reward's option is not another's"


@pytest.mark.parametrize("options", VARIANTS)
def test_a_stored_state_has_the_same_future(options: dict) -> None:
    batches = [
        pictures("a red circle", "a blue square", "two green squares", "a red circle", seed=seed) for seed in (1, 5, 9)
    ]
    ids = ["a", "a", "b", "b"]
    reward = Novelty(**options)
    for batch in batches[:2]:
        scored(reward, batch, ids=ids)
    copy = Novelty(**options)
    copy.load_state(json.loads(json.dumps(reward.state())))
    assert values(copy, batches[2], ids=ids) == values(reward, batches[2], ids=ids)
    assert values(copy, batches[0], ids=ids) == values(reward, batches[0], ids=ids)
    if options.get("combine") != "episodic":
        assert values(Novelty(**options), batches[0], ids=ids) != values(reward, batches[0], ids=ids), "it remembers"


def test_the_state_of_a_new_reward_can_be_stored() -> None:
    reward = Novelty()
    reward.load_state(json.loads(json.dumps(Novelty().state())))
    assert values(reward, pictures("a red circle")) == values(Novelty(), pictures("a red circle"))


def test_pictures_of_unlike_sizes_and_no_pictures_at_all() -> None:
    bonus = values(Novelty(), [make({"checks": 8}), make({"checks": 16, "size": 64})])
    assert bonus[1] < 0.2 * bonus[0], "the same picture at twice the size is not new"
    assert Novelty()([], [], [], []) == []


def test_texts() -> None:
    reward = TextNovelty()
    first, copy, other = values(reward, ["a red circle", "A RED CIRCLE", "the sum is 12"])
    assert first == pytest.approx(10) and copy < 0.1 * first and 0.3 * first < other < first
