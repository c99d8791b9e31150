"""A token task's operations: the sampler's own texts, every network row counted, and branches that are what they would be
alone."""

from __future__ import annotations

import pytest
import torch
from tests.reference.bigram import Bigram, every_text
from tests.search.test_ledger import Clock
from tests.search.toys import suite_of

from plaudit.data.prompt import Prompt
from plaudit.errors import RecipeError, RunError
from plaudit.lab.language import LanguageNetwork, initialise
from plaudit.lab.sums.grammar import END_ID, evaluation_prompts
from plaudit.models.caches import combined
from plaudit.models.lab_text import LabTokenModel
from plaudit.recipe.sampling import TokenSampling
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.tokens import Completions, chosen_log_probs, draw_completions, given_completions, replay_logits
from plaudit.search.base import PLAIN_STEP, TimeUp
from plaudit.search.best_of_n import BestOfN
from plaudit.search.budget import Budget, BudgetExceeded
from plaudit.search.run import run_search
from plaudit.search.text.rows import TokenRows
from plaudit.search.text.task import TokenTask


class CountingLab(LabTokenModel):
    """Random weights; `rows` lists the rows of each network call."""

    def __init__(self, seed: int = 0, scale: float = 1.5) -> None:
        self.network = initialise(LanguageNetwork(), torch.Generator().manual_seed(seed)).eval()
        self.rows: list[int] = []
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.mul_(scale if parameter.ndim > 1 else 1.0)

    def logits(self, ids, positions, visible, *, cache=None, keep=None):
        self.rows.append(len(ids))
        return super().logits(ids, positions, visible, cache=cache, keep=keep)


class Length:
    """Letters of a text; `seen` lists the texts of each call."""

    def __init__(self) -> None:
        self.seen: list[list[str]] = []

    def __call__(self, prompts: list[str], outputs: list[str]) -> list[float]:
        self.seen.append(list(outputs))
        return [float(len(text)) for text in outputs]


def make_task(model=None, reward=None, budget="100000nfe", *, asked=None, tokens=20, **rest) -> TokenTask:
    sampling = TokenSampling(type="tokens", max_new_tokens=tokens, **rest.pop("sampling", {}))
    asked = evaluation_prompts("heldout", 3) if asked is None else asked
    suite = None if reward is None else suite_of(reward)
    return TokenTask(model or CountingLab(), asked, suite, Budget.parse(budget), sampling=sampling, **rest)


def drawn_alone(task: TokenTask, prompt: torch.Tensor, candidate: torch.Tensor) -> Completions:
    keys = [
        SampleKey(seed=task.seed, step=PLAIN_STEP, prompt=task.prompts[p].id, index=int(c))
        for p, c in zip(prompt.tolist(), candidate.tolist(), strict=True)
    ]
    return draw_completions(task.model, [task.prompt_ids[p] for p in prompt.tolist()], task.sampling, keys)


def rows_of(task: TokenTask, each: int = 4) -> TokenRows:
    P = len(task.prompts)
    return task.start(torch.arange(P).repeat_interleave(each), torch.arange(each).repeat(P))


def assert_same_texts(rows: TokenRows, other: TokenRows) -> None:
    assert torch.equal(rows.length, other.length) and torch.equal(rows.ended, other.ended)
    there = torch.arange(rows.ids.shape[1]) < rows.length[:, None]
    assert torch.equal(rows.ids[there], other.ids[there])
    torch.testing.assert_close(rows.log_prob, other.log_prob, rtol=0, atol=1e-5)


# --- the sampler's own texts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling", ({}, {"temperature": 0}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}, {"stop": ("7",)})
)
def test_samples_are_what_the_model_draws_bit_for_bit(sampling: dict) -> None:
    task = make_task(reward=Length(), sampling=sampling, tokens=30)
    prompt, candidate = torch.tensor([0, 1, 1, 2, 0, 2]), torch.tensor([0, 0, 3, 5, 1, 0])
    expected = drawn_alone(task, prompt, candidate)
    task.model.rows.clear()
    rows = task.drawn(prompt, candidate)
    width = expected.ids.shape[1]
    assert torch.equal(rows.length, expected.length) and torch.equal(rows.ended, ~expected.cut)
    assert torch.equal(rows.ids[:, :width].masked_fill(~expected.mask, 0), expected.ids.masked_fill(~expected.mask, 0))
    assert torch.equal(rows.log_prob[:, :width], expected.log_prob)
    greedy = task.sampling.temperature == 0
    assert greedy or len(set(rows.length.tolist())) > 1, "all of one length would show little"
    assert task.ledger.total.network_calls == sum(task.model.rows) == expected.network_calls
    found = task.sample(prompt, candidate)
    assert found.outputs == [task.model.decode(ids) for ids in expected.rows()]
    assert found.score.tolist() == [len(text) for text in found.outputs]


@pytest.mark.parametrize("tile", (1, 4, 64))
def test_a_text_drawn_in_pieces_is_the_plain_text(tile: int) -> None:
    task = make_task(tile=tile)
    plain = task.drawn(torch.arange(3).repeat_interleave(4), torch.arange(4).repeat(3))
    task.model.rows.clear()
    before = task.ledger.total.network_calls
    rows = rows_of(task)
    for tokens in (1, 3, 0, 5, 2, 100):
        rows = task.extend(rows, tokens)
    assert_same_texts(rows, plain)
    assert task.extend(rows) is not rows and torch.equal(task.extend(rows).ids, rows.ids)
    reading = 3 + int((plain.length - 1).sum())  # three prompts, and every token that something was drawn from
    assert task.ledger.total.network_calls - before == sum(task.model.rows) == reading


def test_rows_pause_where_they_are_told_and_go_on_from_there() -> None:
    task = make_task(tokens=40)
    plain = task.drawn(torch.arange(3).repeat_interleave(4), torch.arange(4).repeat(3))
    rows = task.extend(rows_of(task), until=lambda text: text.count("1") >= 1)
    paused = ~rows.finished
    texts = task.texts(rows)
    assert paused.any() and len(set(rows.length[paused].tolist())) > 1
    assert all(text.endswith("1") and text.count("1") == 1 for text, waits in zip(texts, paused, strict=True) if waits)
    calls = len(task.model.rows)
    again = task.extend(rows, until=lambda text: text.count("1") >= 1)
    assert len(task.model.rows) == calls and torch.equal(again.ids, rows.ids)
    assert_same_texts(task.extend(rows), plain)


def test_copies_and_choices_go_on_as_their_originals_would() -> None:
    task = make_task(tokens=30)
    plain = task.drawn(torch.arange(3).repeat_interleave(4), torch.arange(4).repeat(3))
    rows = task.extend(rows_of(task), 6)
    mixed = task.extend(rows, 4).select(torch.arange(6))
    order = torch.tensor([7, 2, 2, 11, 0])
    joined = TokenRows.cat([rows.select(order), mixed, rows_of(task)])
    expected = plain_rows(plain, torch.cat([order, torch.arange(6), torch.arange(12)]))
    assert_same_texts(task.extend(joined), expected)
    assert_same_texts(task.extend(rows), plain)  # what came of the copies changed nothing


def plain_rows(plain: TokenRows, order: torch.Tensor) -> TokenRows:
    names = ("prompt", "candidate", "ids", "log_prob", "length", "ended", "seen")
    return TokenRows(cache=None, **{name: getattr(plain, name)[order] for name in names})


# --- going back ------------------------------------------------------------------------------------------------------


def test_going_back_and_on_with_the_old_numbers_is_the_old_text() -> None:
    task = make_task(tokens=30)
    rows = task.extend(rows_of(task))
    for position in (0, 1, 5, 29):
        again = task.regenerate(rows, torch.full((12,), position), stream="tokens")
        assert_same_texts(again, rows)
    uneven = (rows.length - torch.arange(12) % 4).clamp(min=0)
    assert_same_texts(task.regenerate(rows, uneven, stream="tokens"), rows)


def test_a_fresh_stream_draws_another_end_with_the_probabilities_of_its_own_text() -> None:
    task = make_task(tokens=30)
    rows = task.extend(rows_of(task))
    again = task.regenerate(rows, torch.full((12,), 4), stream="other")
    short = rows.length <= 4
    assert torch.equal(again.ids[:, :4], rows.ids[:, :4]) and torch.equal(again.ids[short], rows.ids[short])
    assert (again.ids[~short] != rows.ids[~short]).any(1).float().mean() > 0.8
    texts = [tuple(row[:n].tolist()) for row, n in zip(again.ids, again.length.tolist(), strict=True)]
    given = given_completions([task.prompt_ids[p] for p in again.prompt.tolist()], texts)
    with torch.no_grad():
        expected = chosen_log_probs(replay_logits(task.model, given, 0), given)
    torch.testing.assert_close(again.log_prob[:, : expected.shape[1]], expected, rtol=0, atol=1e-5)


def test_going_back_costs_one_reading_for_every_new_token() -> None:
    task = make_task(tokens=12, sampling={"temperature": 5.0})
    rows = task.extend(rows_of(task))
    task.model.rows.clear()
    before = task.ledger.total.network_calls
    again = task.regenerate(rows, torch.full((12,), 3), stream="other")
    new = again.length[rows.length > 3] - 3
    assert task.ledger.total.network_calls - before == sum(task.model.rows) == int(new.sum()) > 0


# --- counting --------------------------------------------------------------------------------------------------------


def test_every_prompt_pays_for_its_own_rows() -> None:
    task = make_task(reward=Length(), tokens=16)
    prompt, candidate = torch.tensor([0, 2, 2, 2]), torch.tensor([0, 0, 1, 2])
    task.sample(prompt, candidate)
    length = drawn_alone(task, prompt, candidate).length
    assert task.ledger.counts["network_calls"].tolist() == [
        int(length[0]),
        0,
        1 + int((length[1:] - 1).sum()),
    ]
    assert task.ledger.counts["reward_calls"].tolist() == [1, 0, 3] and task.ledger.total.decodes == 0


def test_nothing_is_done_that_the_budget_does_not_pay_for() -> None:
    task = make_task(budget="50nfe", tokens=20)
    assert task.fits(task.sample_cost) == 2
    task.sample(torch.arange(3).repeat(2), torch.arange(2).repeat_interleave(3))
    task = make_task(budget="50nfe", tokens=20)
    with pytest.raises(BudgetExceeded):
        task.sample(torch.zeros(3, dtype=torch.long), torch.arange(3))
    assert not task.model.rows and task.ledger.total.network_calls == 0
    rows = task.start(torch.zeros(12, dtype=torch.long), torch.arange(12))
    with pytest.raises(BudgetExceeded):
        task.extend(rows)
    assert sum(task.model.rows) == task.ledger.total.network_calls <= 50


def test_after_the_deadline_no_token_is_drawn_but_those_of_the_plain_samples() -> None:
    clock = Clock()
    task = make_task(budget="9s", clock=clock)
    task.deadline = clock.now = 1.0
    with pytest.raises(TimeUp):
        task.sample(torch.tensor([0]), torch.tensor([1]))
    assert not task.model.rows
    assert len(task.plain()) == 3


def test_best_of_n_finds_the_best_plain_text_within_its_budget() -> None:
    reward = Length()
    task = make_task(reward=reward, budget="100nfe", tokens=20)
    result = run_search(task, BestOfN())
    assert result.ledger.counts["network_calls"].max() <= 100
    prompt = torch.arange(3).repeat_interleave(5)
    drawn = drawn_alone(task, prompt, torch.arange(5).repeat(3))
    lengths = torch.tensor([len(task.model.decode(ids)) for ids in drawn.rows()]).view(3, 5)
    assert result.scores.tolist() == lengths.amax(1).tolist() and result.plain_scores.tolist() == lengths[:, 0].tolist()


# --- other models ----------------------------------------------------------------------------------------------------


def test_a_bigram_draws_its_texts_at_their_probabilities() -> None:
    model = Bigram()
    task = make_task(model, asked=[Prompt(id="p", text="p")], tokens=3, budget="9999999nfe", tile=4096)
    rows = task.extend(task.extend(task.start(torch.zeros(4096, dtype=torch.long), torch.arange(4096)), 1))
    exact = every_text(model.table, 3)
    counts = {text: 0 for text in exact}
    for row, n in zip(rows.ids.tolist(), rows.length.tolist(), strict=True):
        counts[tuple(row[:n])] += 1
    for text, p in exact.items():
        assert abs(counts[text] / 4096 - p) < 4 * (p * (1 - p) / 4096) ** 0.5 + 1e-9
    assert abs(sum(exact.values()) - 1) < 1e-9


def test_a_model_that_reads_in_order_is_only_sampled_from() -> None:
    model = CountingLab()
    model.packs = False
    task = make_task(model, Length(), tokens=8)
    expected = drawn_alone(task, torch.arange(3), torch.zeros(3, dtype=torch.long))
    assert task.plain().outputs == [model.decode(ids) for ids in expected.rows()]
    with pytest.raises(RecipeError, match="cannot wait or go back; search with best_of_n"):
        task.extend(rows_of(task))


def test_a_cache_that_cannot_be_copied_says_what_it_lacks() -> None:
    class Strange:
        pass

    with pytest.raises(RunError, match=r"Strange cannot be copied row by row.*combined"):
        combined([Strange()], lambda parts: parts[0])


def test_transformers_caches_branch_too(tmp_path) -> None:
    from tests.models.tiny_causal import build

    from plaudit.models.causal import CausalTokenModel
    from plaudit.recipe.models import TransformersModel

    model = CausalTokenModel.from_config(TransformersModel(type="transformers", path=str(build(tmp_path)), lora=None))
    asked = [Prompt(id="a", text="one two"), Prompt(id="b", text="three four five")]
    task = make_task(model, asked=asked, tokens=10)
    plain = task.drawn(torch.arange(2).repeat_interleave(3), torch.arange(3).repeat(2))
    rows = task.extend(rows_of(task, 3), 4)
    twice = TokenRows.cat([task.extend(rows, 3), rows]).select(torch.tensor([0, 8, 4, 3, 11]))
    assert_same_texts(task.extend(twice), plain_rows(plain, torch.tensor([0, 2, 4, 3, 5])))
    assert_same_texts(task.regenerate(task.extend(rows), torch.full((6,), 2), stream="tokens"), plain)


def test_an_end_is_the_last_token() -> None:
    task = make_task(tokens=30)
    rows = task.extend(rows_of(task, 8))
    ended = rows.ended
    last = rows.ids[torch.arange(len(rows)), rows.length - 1]
    assert 0 < int(ended.sum()) < len(rows)
    assert torch.equal(last == END_ID, ended) and (rows.length[~ended] == 30).all()
