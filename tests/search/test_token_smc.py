"""SMC decoding on a language whose every text, and so every target, can be written down."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from tests.reference.bigram import END, Bigram, every_text, tilted, total_variation
from tests.search.test_tokens import Length, make_task
from tests.search.toys import suite_of

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError
from plaudit.models.tokens import Ids
from plaudit.recipe.sampling import TokenSampling
from plaudit.search import weights as smc
from plaudit.search.base import TimeUp
from plaudit.search.budget import Budget
from plaudit.search.run import run_search
from plaudit.search.text.smc import Particles, TokenSmc, acceptance, is_copy, mean_of_potentials
from plaudit.search.text.task import TokenTask

LONGEST = 5
EXACT = {"movers": "all", "below": None}


def reward(text: str) -> float:
    """Half for every letter that follows another one, less a little for each a: beginnings tell some of it."""
    turns = sum(first != second for first, second in itertools.pairwise(text))
    return turns / 2 - 0.1 * text.count("a")


def scored(prompts: list[str], outputs: list[str]) -> list[float]:
    return [reward(text) for text in outputs]


def task_of(
    count: int, *, seed: int = 0, judge=scored, budget: str = "99999999nfe", longest: int = LONGEST
) -> TokenTask:
    """`count` prompts are as many independent searches."""
    asked = [Prompt(id=str(i), text="p") for i in range(count)]
    sampling = TokenSampling(type="tokens", max_new_tokens=longest, tile=100_000)
    return TokenTask(Bigram(), asked, suite_of(judge), Budget.parse(budget), sampling=sampling, seed=seed)


def text_of(task: TokenTask, words: Ids) -> str:
    return task.model.decode(words)


def target(task: TokenTask, alpha: float, power: float = 1.0) -> dict[Ids, float]:
    texts = every_text(task.model.table, LONGEST)
    return tilted(texts, lambda words: math.exp(alpha * reward(text_of(task, words))) * texts[words] ** (power - 1))


def last_stage(method: TokenSmc, task: TokenTask):
    *_, (particles, _) = method.stages(task)
    return particles


def laws(method: TokenSmc, task: TokenTask) -> list[dict[Ids, float]]:
    """The weighted particles of every prompt."""
    particles = last_stage(method, task)
    weight = smc.normalised(particles.log_weight).flatten().tolist()
    rows, found = particles.rows, [dict[Ids, float]() for _ in task.prompts]
    for p, ids, n, w in zip(rows.prompt.tolist(), rows.ids.tolist(), rows.length.tolist(), weight, strict=True):
        words = tuple(ids[:n])
        found[p][words] = found[p].get(words, 0.0) + w
    return found


def mean_law(parts: list[dict[Ids, float]]) -> dict[Ids, float]:
    """What one particle, drawn by its weight, is over many searches."""
    total: Counter = Counter()
    for part in parts:
        total.update(part)
    return {words: mass / len(parts) for words, mass in total.items()}


def mean_reward(task: TokenTask, law: dict[Ids, float]) -> float:
    return sum(p * reward(text_of(task, words)) for words, p in law.items())


def best_of_n_law(task: TokenTask, n: int) -> dict[Ids, float]:
    """The best of n independent texts; of equally good ones the first."""
    texts = every_text(task.model.table, LONGEST)
    levels: dict[float, float] = {}
    for words, p in texts.items():
        level = round(reward(text_of(task, words)), 9)
        levels[level] = levels.get(level, 0.0) + p
    below, chance = 0.0, {}
    for level in sorted(levels):
        chance[level] = ((below + levels[level]) ** n - below**n) / levels[level]
        below += levels[level]
    return {words: p * chance[round(reward(text_of(task, words)), 9)] for words, p in texts.items()}


# --- the target ------------------------------------------------------------------------------------------------------


def test_weighted_particles_come_nearer_to_the_target_with_their_number_and_best_of_n_does_not() -> None:
    """`off` is the distance of one search's weighted particles, `bias` that of what such a search draws. Best-of-N at the same
    calls draws from a law that can be written down."""
    searches, off, bias, peer = 60, {}, {}, {}
    each = sum(p * len(words) for words, p in every_text(Bigram().table, LONGEST).items())
    for N in (8, 128):
        task = task_of(searches)
        parts = laws(TokenSmc(particles=N, alpha=3.0, blocks=5, **EXACT), task)
        exact = target(task, 3.0)
        off[N] = sum(total_variation(part, exact) for part in parts) / searches
        bias[N] = total_variation(mean_law(parts), exact)
        calls = task.ledger.total.network_calls / searches
        peer[N] = total_variation(best_of_n_law(task, round(calls / each)), exact)
    assert off[128] < 0.5 * off[8] and bias[128] < 0.5 * bias[8]
    assert bias[8] < peer[8] and bias[128] < off[128] < peer[128]
    assert peer[128] > peer[8] > 0.25  # more of the wrong law


@pytest.mark.parametrize(
    "options",
    (
        {"moves": 0},
        {"moves": 2, "blocks": 5, "ess": 1.0, **EXACT},
        {"moves": 2, "back": 2, "blocks": 5, **EXACT},
        {"moves": 1, "power": 2.0, "alpha": 1.0, **EXACT},
        {"rollouts": 2, "moves": 1, **EXACT},
        {"rollouts": 2, "moves": 1, "power": 1.5, "blocks": 2, **EXACT},
        {"boundary": "a", "moves": 1, "blocks": 3, **EXACT},
    ),
)
def test_every_exact_variant_has_the_same_target(options: dict) -> None:
    """24 searches of 400 particles: what is left of the distance is noise and a bias of the order 1 / 400."""
    method = TokenSmc(**({"particles": 400, "alpha": 2.0, "blocks": 3, "ess": 0.8} | options))
    task = task_of(24)
    law, exact = mean_law(laws(method, task)), target(task, method.alpha, method.power)
    assert total_variation(law, exact) < 0.06
    assert abs(mean_reward(task, law) - mean_reward(task, exact)) < 0.025
    assert total_variation(every_text(task.model.table, LONGEST), exact) > 0.18, "doing nothing would pass"


def test_few_particles_estimate_the_constant_without_bias() -> None:
    """Two words, a or b evenly: what begins with b promises and disappoints. Whether weights are uneven says which words there
    are, so that moving only then would be 9 % off."""
    worth = {"": 0.0, "a": 0.0, "b": math.log(3)}
    table = torch.full((END + 1, END + 1), -math.inf).index_fill(1, torch.tensor([1, 2]), 0.0)

    def judge(prompts: list[str], outputs: list[str]) -> list[float]:
        return [worth.get(text, -3.0 if text.startswith("b") else 0.0) for text in outputs]

    task = task_of(3000, judge=judge, longest=2)
    task.model.table = table
    exact = sum(p * math.exp(judge([], [text_of(task, words)])[0]) for words, p in every_text(table, 2).items())
    method = TokenSmc(particles=5, alpha=1.0, blocks=2, ess=0.9, moves=1, **EXACT)
    found = smc.log_normaliser(last_stage(method, task).log_weight).exp()
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(len(found)) < 0.06 * exact


def test_moves_leave_what_has_no_score_alone() -> None:
    """A way out of it without a way in would carry weight off: 24 % too much for an unscored text, were it moved."""

    def judge(prompts: list[str], outputs: list[str]) -> list[float | None]:
        return [None if text == "" else reward(text) for text in outputs]

    texts, task = every_text(Bigram().table, LONGEST), task_of(3000, judge=judge)
    exact = sum(p * math.exp(reward(text)) for words, p in texts.items() if (text := text_of(task, words)) != "")
    method = TokenSmc(particles=3, alpha=1.0, blocks=3, moves=3, ess=0.9, **EXACT)
    found = smc.log_normaliser(last_stage(method, task).log_weight).exp()
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / math.sqrt(len(found)) < 0.08 * exact


def test_choosing_whom_to_move_by_its_state_changes_the_target() -> None:
    """The two published rules pull in opposite directions, however many particles there are."""
    common = {"particles": 400, "alpha": 2.0, "blocks": 5, "ess": 1.0, "moves": 4}
    exact = mean_reward(task := task_of(1), target(task, 2.0))

    def found(**rule) -> float:
        return mean_reward(task, mean_law(laws(TokenSmc(**common, **rule), task_of(24))))

    assert abs(found(**EXACT) - exact) < 0.02
    assert found(movers="all", below=0.5) > exact + 0.025
    assert found(movers="copies", below=None) < exact - 0.05


@pytest.mark.parametrize("power", (1.0, 2.0))
@pytest.mark.parametrize("rollouts", (0, 3))
def test_scores_of_beginnings_cancel(power: float, rollouts: int) -> None:
    """Without resampling a weight is exp(alpha r) m^(power - 1) of the whole text, whatever its beginnings were worth."""
    task, method = task_of(4), TokenSmc(particles=32, alpha=3.0, blocks=5, ess=0.0, power=power, rollouts=rollouts)
    particles = last_stage(method, task)
    texts = every_text(task.model.table, LONGEST)
    rows = particles.rows
    words = [tuple(ids[:n]) for ids, n in zip(rows.ids.tolist(), rows.length.tolist(), strict=True)]
    expected = [3.0 * reward(text_of(task, one)) + (power - 1) * math.log(texts[one]) for one in words]
    assert len(set(words)) > 10
    torch.testing.assert_close(
        particles.log_weight.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5
    )


# --- the kernel ------------------------------------------------------------------------------------------------------


def proposals(table: torch.Tensor, words: Ids, position: int, longest: int) -> dict[Ids, float]:
    """Where regenerating from `position` on leads, and how likely."""
    if len(words) <= position:
        return {words: 1.0}
    states = every_text(table, longest)
    same = {other: p for other, p in states.items() if other[:position] == words[:position] and len(other) > position}
    total = sum(same.values())
    return {other: p / total for other, p in same.items()}


def kernel(table: torch.Tensor, position: int, longest: int, alpha: float, power: float, correction: float):
    states = every_text(table, longest)
    names = list(states)
    place = {words: i for i, words in enumerate(names)}
    matrix = torch.zeros(len(names), len(names), dtype=torch.float64)
    decode = Bigram().decode
    for words, i in place.items():
        for other, chance in proposals(table, words, position, longest).items():
            values = [alpha * reward(decode(words)), alpha * reward(decode(other)), states[words], states[other]]
            old, new, m, m_new = (torch.tensor([value], dtype=torch.float64) for value in values)
            taken = float(acceptance(old, new, m.log(), m_new.log(), correction).exp().clamp(max=1))
            matrix[i, place[other]] += chance * taken
            matrix[i, i] += chance * (1 - taken)
    weights = tilted(states, lambda words: states[words] ** (power - 1) * math.exp(alpha * reward(decode(words))))
    return names, matrix, torch.tensor([weights[name] for name in names], dtype=torch.float64)


@pytest.mark.parametrize(("position", "longest"), ((0, 3), (2, 4), (1, 4), (3, 5)))
@pytest.mark.parametrize("power", (1.0, 2.0, 0.5))
def test_a_move_leaves_the_target_as_it_is(position: int, longest: int, power: float) -> None:
    names, matrix, weights = kernel(Bigram().table, position, longest, 3.0, power, power)
    lengths = {len(name) for name in names}
    assert lengths == set(range(1, longest + 1)), "texts that end early are part of it"
    torch.testing.assert_close(matrix.sum(1), torch.ones(len(names), dtype=torch.float64))
    flow = weights[:, None] * matrix
    torch.testing.assert_close(flow, flow.T, rtol=0, atol=1e-12)  # detailed balance
    torch.testing.assert_close(weights @ matrix, weights, rtol=0, atol=1e-12)
    assert float(matrix.diagonal().mean()) < 0.95, "nothing moves"
    if power != 1:
        wrong = kernel(Bigram().table, position, longest, 3.0, power, 1.0)[1]
        assert float((weights @ wrong - weights).abs().sum()) > 0.01, "the factor of the power matters"


@pytest.mark.parametrize("words", ((1, 2, 1, 1), (1, 1, END), (2, END), (2, 1, 2, END)))
def test_a_step_moves_as_the_kernel_says(words: Ids) -> None:
    """20000 particles in the same state, after the second of three blocks of two words."""
    B, task = 20_000, task_of(1)
    texts = torch.tensor([[*words, *[0] * (LONGEST - len(words))]]).expand(B, -1)
    rows = task.extend(task.start(torch.zeros(B, dtype=torch.long), torch.arange(B)), 4)
    log_prob = torch.zeros(B, LONGEST, dtype=torch.float64)
    log_prob[:, : len(words)] = task.model.table.double().log_softmax(1)[(0, *words[:-1]), words]
    seen = torch.zeros_like(rows.seen)
    seen[:, : len(words)] = True  # the prompt and all but the last word
    state = replace(
        rows,
        ids=texts.clone(),
        log_prob=log_prob,
        length=torch.full((B,), len(words)),
        ended=torch.full((B,), words[-1] == END),
        seen=seen,
    )
    value = torch.full((B,), reward(text_of(task, words)), dtype=torch.float64)
    particles = Particles(rows=state, score=value, potential=3.0 * value, log_weight=torch.zeros(1, B).double())
    after, _ = TokenSmc(alpha=3.0, blocks=3, moves=1, **EXACT)._moved(
        task, particles, torch.ones(B, dtype=torch.bool), 2, 0
    )
    names, matrix, _ = kernel(task.model.table, 2, 4, 3.0, 1.0, 1.0)
    expected = matrix[names.index(words)]
    counts = Counter(tuple(ids[:n]) for ids, n in zip(after.rows.ids.tolist(), after.rows.length.tolist(), strict=True))
    assert set(counts) <= set(names)
    for name, p in zip(names, expected.tolist(), strict=True):
        assert abs(counts[name] / B - p) < 4.5 * math.sqrt(p * (1 - p) / B) + 1e-9, name
    values = [
        reward(text_of(task, tuple(ids[:n]))) for ids, n in zip(after.rows.ids.tolist(), after.rows.length, strict=True)
    ]
    torch.testing.assert_close(after.score, torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(after.potential, 3.0 * after.score)
    assert torch.equal(after.log_weight, particles.log_weight)


def test_a_proposal_without_a_score_is_never_taken() -> None:
    nan, one, zero = torch.tensor([torch.nan]).double(), torch.ones(1).double(), torch.zeros(1).double()
    assert acceptance(zero, nan, zero, zero, 1.0).item() == -math.inf
    assert acceptance(zero, one, zero, -one, 3.0).item() == pytest.approx(1 - 2)
    assert acceptance(one, zero, -one, zero, 0.5).item() == pytest.approx(-1 - 0.5)


def test_copies_are_those_after_the_first() -> None:
    copies = is_copy(torch.tensor([[2, 2, 0, 2], [0, 1, 2, 3]]))
    assert copies.tolist() == [[False, True, False, True], [False] * 4]


def test_the_mean_of_potentials_leaves_out_what_is_missing() -> None:
    values = torch.tensor([[math.log(1), math.log(3)], [math.nan, math.log(5)], [math.nan, math.nan]]).double()
    found = mean_of_potentials(values)
    assert found[:2].exp().tolist() == pytest.approx([2, 5]) and found[2].isnan()


# --- the ledger ------------------------------------------------------------------------------------------------------


class Counting(Length):
    """As in the tests of the task; shorter is better, so that moves happen."""

    def __call__(self, prompts: list[str], outputs: list[str]) -> list[float]:
        self.seen.append(list(outputs))
        return [sum(letter in "13579" for letter in text) / (len(text) + 1) for text in outputs]


@pytest.mark.parametrize("options", ({}, {"rollouts": 2, "blocks": 3}, {"boundary": "[0-4]"}, {"output": "weighted"}))
@pytest.mark.parametrize("budget", ("400nfe", "700nfe,300rewards"))
def test_the_ledger_is_what_the_model_and_the_reward_saw(options: dict, budget: str) -> None:
    judge = Counting()
    task = make_task(reward=judge, tokens=12, budget=budget)
    result = run_search(task, TokenSmc(particles=6, alpha=20.0, ess=1.0, **options))
    assert task.ledger.total.network_calls == sum(task.model.rows)
    assert task.ledger.total.reward_calls == sum(map(len, judge.seen))
    for kind, limit in task.budget.limits().items():
        assert (task.ledger.counts[kind] <= limit).all()
    assert (result.scores >= result.plain_scores).all()
    names = [(one.prompt, one.candidate) for one in result.candidates]
    assert len(set(names)) == len(names)
    if "output" in options:  # the plain sample, and one text a pass
        assert len(names) < len({text for texts in judge.seen for text in texts}) / 2


def test_moves_take_what_the_budget_leaves_and_no_more() -> None:
    calls = []
    for budget in ("85nfe", "2000nfe"):
        task = make_task(reward=Counting(), tokens=12, budget=budget)
        list(TokenSmc(particles=6, alpha=20.0, ess=1.0, moves=9, below=None).stages(task))
        calls.append(int(task.ledger.counts["network_calls"].max()))
    assert calls[0] <= 85 < 100 < calls[1]


def test_candidates_are_whole_texts_with_their_own_scores() -> None:
    task = make_task(reward=Counting(), tokens=12, budget="2000nfe")
    result = run_search(task, TokenSmc(particles=6, alpha=20.0, ess=1.0), keep_all=True)
    assert len(result.kept) > 3 * 7
    for _, kept in result.kept:
        assert kept.score == Counting()([""], [kept.output])[0]


def test_the_same_for_any_tile() -> None:
    results = [
        run_search(make_task(reward=Counting(), tokens=12, budget="500nfe", tile=tile), TokenSmc(particles=6, ess=1.0))
        for tile in (2, 5, 64)
    ]
    for other in results[1:]:
        assert [(c.prompt, c.candidate, c.score) for c in other.candidates] == [
            (c.prompt, c.candidate, c.score) for c in results[0].candidates
        ]


def test_a_lone_missing_score_says_nothing_and_a_last_one_ends_it() -> None:
    def judge(prompts: list[str], outputs: list[str]) -> list[float]:
        return [math.nan if text.endswith("a") else reward(text) for text in outputs]

    task = task_of(50, judge=judge)
    particles = last_stage(TokenSmc(particles=16, alpha=3.0, blocks=5, **EXACT), task)
    texts = task.texts(particles.rows)
    lost = torch.tensor([text.endswith("a") for text in texts]).view(50, 16)
    weight = smc.normalised(particles.log_weight)
    assert lost.any() and not weight[lost].any() and torch.allclose(weight.sum(1), torch.ones(50).double())


def test_time_alone_repeats_passes_with_new_numbers() -> None:
    task = make_task(reward=Counting(), tokens=6, budget="9s")
    outputs: list[str] = []
    with pytest.raises(TimeUp):
        for found in TokenSmc(particles=4).run(task):
            outputs += found.outputs
            if int(found.candidate.max()) > 30:
                task.deadline = -1.0
    assert len(set(outputs)) > 12


@pytest.mark.parametrize(
    ("options", "said"),
    (
        ({"particles": 0}, "particles 0; it must be at least 1"),
        ({"ess": 1.5}, "ess is a share"),
        ({"power": 0.0}, "power more than 0"),
        ({"boundary": "("}, "no regular expression"),
    ),
)
def test_wrong_options_are_named(options: dict, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        TokenSmc(**options)


def test_a_budget_for_fewer_particles_is_refused() -> None:
    with pytest.raises(RecipeError, match="16 particles may need 204 network calls and 65 reward calls per prompt"):
        run_search(make_task(reward=Counting(), tokens=12, budget="150nfe"), TokenSmc())
