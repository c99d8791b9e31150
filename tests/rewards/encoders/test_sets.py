"""Set distances against loops, and the rewards made of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from tests.rewards.encoders.needs import needs_minilm
from tests.rewards.encoders.toy import TOY

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.rewards.base import Score, Status
from plaudit.rewards.calling.call import call_reward
from plaudit.rewards.encoders.sets import (
    DISTANCES,
    LARGEST,
    BankSimilarity,
    SetDistance,
    assignment,
    chamfer,
    energy,
    hausdorff,
    sentences,
    transport,
)


def unit_vectors(count: int, seed: int) -> torch.Tensor:
    return F.normalize(
        torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1
    )


def cost(a: torch.Tensor, b: torch.Tensor) -> float:
    return 1 - sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def slow_chamfer(A: torch.Tensor, B: torch.Tensor) -> float:
    there = sum(min(cost(a, b) for b in B) for a in A) / len(A)
    return there + sum(min(cost(a, b) for a in A) for b in B) / len(B)


def slow_hausdorff(A: torch.Tensor, B: torch.Tensor) -> float:
    return max(max(min(cost(a, b) for b in B) for a in A), max(min(cost(a, b) for a in A) for b in B))


def slow_energy(A: torch.Tensor, B: torch.Tensor) -> float:
    def mean(X: torch.Tensor, Y: torch.Tensor) -> float:
        return sum(math.dist(x.tolist(), y.tolist()) for x in X for y in Y) / (len(X) * len(Y))

    return 2 * mean(A, B) - mean(A, A) - mean(B, B)


def slow_assignment(A: torch.Tensor, B: torch.Tensor, unmatched: float) -> float:
    """Every way to pair the smaller set with members of the larger."""
    if len(A) > len(B):
        A, B = B, A
    best = min(sum(cost(a, b) for a, b in zip(A, some, strict=True)) for some in itertools.permutations(B, len(A)))
    return (best + unmatched * (len(B) - len(A))) / len(B)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 4), (3, 3), (4, 2)])
def test_distances_match_loops(n: int, m: int) -> None:
    A, B = unit_vectors(n, 1), unit_vectors(m, 2)
    assert chamfer(A, B).item() == pytest.approx(slow_chamfer(A, B), abs=1e-9)
    assert hausdorff(A, B).item() == pytest.approx(slow_hausdorff(A, B), abs=1e-9)
    assert energy(A, B).item() == pytest.approx(slow_energy(A, B), abs=1e-9)
    for unmatched in (0.0, 0.7):
        assert assignment(A, B, unmatched).item() == pytest.approx(slow_assignment(A, B, unmatched), abs=1e-9)


def test_transport_of_a_repeated_set_is_nothing_and_splits_mass() -> None:
    A = unit_vectors(2, 1)
    assert transport(A, torch.cat([A, A])).item() == pytest.approx(0.0, abs=1e-6)
    one = A[:1]
    assert transport(one, A).item() == pytest.approx((cost(one[0], A[0]) + cost(one[0], A[1])) / 2, abs=1e-6)


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_laws_of_a_distance(name: str) -> None:
    distance, A, B = DISTANCES[name], unit_vectors(4, 3), unit_vectors(3, 4)
    assert distance(A, B).item() == pytest.approx(distance(B, A).item(), abs=1e-9)
    assert distance(A, A[[2, 0, 3, 1]]).item() == pytest.approx(0.0, abs=1e-5), "order matters"
    assert distance(A, B).item() > 0.05
    opposite = torch.tensor([[1.0, 0.0, 0.0]])
    assert distance(opposite, -opposite).item() == pytest.approx(LARGEST[name], abs=1e-5)


@pytest.mark.parametrize("distance", [chamfer, hausdorff, energy, assignment])
def test_gradients(distance: object) -> None:
    A, B = unit_vectors(3, 5).requires_grad_(True), unit_vectors(2, 6)
    assert torch.autograd.gradcheck(lambda a: distance(a, B), (A,))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No edema. Heart is normal.", ["No edema.", "Heart is normal."]),
        ('He said "no." Then left', ['He said "no.', "Then left"]),
        ("one; two\nthree\n\n - \n", ["one", "two", "three"]),
        ("It is 3.5 cm wide.", ["It is 3.5 cm wide."]),
        ("", []),
        (" ... !? ", []),
        ("心臓は正常。 肺も正常。", ["心臓は正常。", "肺も正常。"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def score(reward: object, outputs: list[str], references: list[str | None]) -> list[Score]:
    prompts = [Prompt(id=str(i), text="", facts={"reference": text}) for i, text in enumerate(references)]
    return call_reward("set_distance", reward, prompts, outputs)  # type: ignore[arg-type]


def test_a_text_is_a_bag_of_sentences() -> None:
    """With word counts: shared sentences cost 0, disjoint ones 1."""
    reference = "red cat. blue dog."
    outputs = ["blue dog. red cat.", "red cat.", "green bird.", "red cat. red cat. blue dog.", ""]
    values = [s.value for s in score(SetDistance(encoder=TOY), outputs, [reference] * 5)]
    assert values == pytest.approx([0.0, -0.5, -2.0, 0.0, -4.0], abs=1e-6)
    assert [s.value for s in score(SetDistance(encoder=TOY, distance="hausdorff"), outputs, [reference] * 5)] == (
        pytest.approx([0.0, -1.0, -1.0, 0.0, -2.0], abs=1e-6)
    )
    alone = SetDistance(encoder=TOY, distance="assignment", unmatched=0.4)
    assert [s.value for s in score(alone, outputs[:2], [reference] * 2)] == pytest.approx([0.0, -0.2], abs=1e-6)
    tokens = SetDistance(encoder=TOY, unit="token")
    assert score(tokens, ["cat blue"], ["blue cat cat"])[0].value == pytest.approx(0.0, abs=1e-6)


def test_no_reference_is_missing_and_no_output_is_furthest() -> None:
    found = score(SetDistance(encoder=TOY), ["a b.", "a b.", "..."], [None, " ! ", "a."])
    assert [s.status for s in found] == [Status.NOT_APPLICABLE, Status.NOT_APPLICABLE, Status.OK]
    assert found[2].value == -4.0


def test_bank_keeps_the_nearest_sentence() -> None:
    reward = BankSimilarity(bank=["red cat.", "blue dog. green bird."], encoder=TOY)
    assert reward(["", "", "", ""], ["red cat. blue dog.", "red dog.", "grey fish", ""]) == pytest.approx(
        [0.0, -0.5, -1.0, -2.0], abs=1e-6
    )


def test_bank_from_a_file(tmp_path: object) -> None:
    path = tmp_path / "bank.txt"  # type: ignore[operator]
    path.write_text("red cat\nblue dog\n", encoding="utf-8")
    assert BankSimilarity(bank=str(path), encoder=TOY)([""], ["blue dog"]) == pytest.approx([0.0], abs=1e-6)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="no sentence"):
        BankSimilarity(bank=str(path), encoder=TOY)


@needs_minilm
def test_paraphrases_are_nearer_than_contradictions_of_topic() -> None:
    outputs = [
        "There is no fluid in the lungs. The heart is of normal size.",
        "The bond market fell. Rain is expected.",
    ]
    near, far = (s.value for s in score(SetDistance(), outputs, ["Heart size is normal. No pulmonary edema."] * 2))
    assert near > far + 0.5
