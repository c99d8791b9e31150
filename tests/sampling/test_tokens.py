"""Drawing and replaying completions: exact frequencies, slow ways without cache, padding or packing, and what it costs."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from tests.reference.token_toys import (
    BigramModel,
    TinyLanguage,
    plain_logits,
    slow_completion,
    slow_log_probs,
    token_keys,
)
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.recipe.sampling import TokenSampling
from plaudit.sampling.drawers import TokenDrawer
from plaudit.sampling.tokens import (
    Completions,
    chosen_log_probs,
    draw_completions,
    entropies,
    given_completions,
    packed_rows,
    pick,
    replay_logits,
    token_log_probs,
)

TEXTS = ("7+8-3+9-6=", "37+85=", "52-7+18=", "9=", "37+85-14=")


def sampling(limit: int = 12, **changes) -> TokenSampling:
    return TokenSampling(type="tokens", max_new_tokens=limit, **changes)


def asked(size: int = 3, texts: tuple[str, ...] = TEXTS) -> list[Prompt]:
    return [Prompt(id=text, text=text) for text in texts for _ in range(size)]


def roll(model, prompts: list[Prompt], settings: TokenSampling, seed: int = 0) -> Completions:
    return draw_completions(model, model.encode(prompts), settings, token_keys(len(prompts), seed))


@pytest.fixture(scope="module")
def tiny() -> TinyLanguage:
    return TinyLanguage()


@pytest.fixture(scope="module")
def drawn(tiny: TinyLanguage) -> Completions:
    """Groups of very different lengths, some of one token and some cut."""
    found = roll(tiny, asked(5), sampling(14, temperature=0.8), seed=1)
    assert found.length.min() == 1 and found.length.max() == 14 and 0 < found.cut.sum() < len(found)
    return found


# --- drawing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", (1.0, 0.5))
def test_completions_come_with_their_exact_frequencies(temperature: float) -> None:
    """Chi-squared over every completion of up to three letters."""
    model, count = BigramModel(), 6_000
    found = roll(model, [Prompt(id="a", text="a")] * count, sampling(3, temperature=temperature))
    exact = model.completions(1, 3, temperature)
    assert sum(exact.values()) == pytest.approx(1)
    rows = found.rows()
    seen = {ids: 0 for ids in exact}
    for row in rows:
        seen[row] += 1
    often = [ids for ids, chance in exact.items() if chance * count >= 5]
    rest = count - sum(seen[ids] for ids in often), count * (1 - sum(exact[ids] for ids in often))
    pairs = [(seen[ids], count * exact[ids]) for ids in often] + [rest]
    surprise = sum((observed - expected) ** 2 / expected for observed, expected in pairs)
    freedom = len(pairs) - 1
    assert freedom > 30 and surprise < freedom + 4 * math.sqrt(2 * freedom)
    chances = torch.tensor([exact[row] for row in rows]).double()
    torch.testing.assert_close(found.log_prob.sum(1), chances.log(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", (1.0, 0.6))
def test_tokens_are_those_of_the_slow_way(tiny: TinyLanguage, temperature: float) -> None:
    prompts, settings = asked(3), sampling(9, temperature=temperature)
    found = roll(tiny, prompts, settings).rows()
    ids, keys = tiny.encode(prompts), token_keys(len(prompts))
    assert found == [slow_completion(tiny, p, settings, key) for p, key in zip(ids, keys, strict=True)]
    assert len(set(found)) > 10


def test_recorded_log_probs_are_those_of_the_slow_way(tiny: TinyLanguage, drawn: Completions) -> None:
    for i, (prompt, row) in enumerate(zip(drawn.prompt_ids, drawn.rows(), strict=True)):
        with torch.no_grad():
            expected = slow_log_probs(tiny, prompt, row, 0.8)
        torch.testing.assert_close(drawn.log_prob[i, : len(row)], expected, rtol=0, atol=1e-5)
        assert (drawn.log_prob[i, len(row) :] == 0).all() and not drawn.mask[i, len(row) :].any()
    assert drawn.log_prob[drawn.mask].min() < -1


@pytest.mark.parametrize("tile", (1, 2, 7, 15, 64))
def test_samples_do_not_depend_on_the_tile(tiny: TinyLanguage, tile: int) -> None:
    prompts, keys = asked(3), token_keys(15)
    whole = roll(tiny, prompts, sampling())
    drawer = TokenDrawer(model=tiny, sampler=sampling(tile=tile), evaluation_sampler=sampling(tile=tile, temperature=0))
    pieces = list(drawer.training(prompts, keys, keys))
    assert max(map(len, pieces)) <= tile and [t for p in pieces for t in p.outputs] == list(
        map(tiny.decode, whole.rows())
    )
    joined = drawer.join(pieces)
    assert joined.samples.rows() == whole.rows() and torch.equal(joined.samples.cut, whole.cut)
    torch.testing.assert_close(joined.samples.log_prob, whole.log_prob, rtol=0, atol=1e-5)
    greedy = roll(tiny, prompts, sampling(temperature=0))
    assert drawer.evaluation(prompts, keys).samples.rows() == greedy.rows() != whole.rows()


def test_samples_do_not_depend_on_their_company_or_its_order(tiny: TinyLanguage) -> None:
    prompts, keys = asked(3), token_keys(15)
    ids, whole = tiny.encode(prompts), roll(tiny, prompts, sampling()).rows()
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1)).tolist()
    mixed = draw_completions(tiny, [ids[i] for i in order], sampling(), [keys[i] for i in order])
    assert mixed.rows() == [whole[i] for i in order]
    assert draw_completions(tiny, ids[4:6], sampling(), keys[4:6]).rows() == whole[4:6]


def test_a_longer_limit_only_goes_on(tiny: TinyLanguage) -> None:
    short, long = (roll(tiny, asked(5), sampling(limit)) for limit in (4, 12))
    assert [row[:4] for row in long.rows()] == short.rows() and (short.limit, long.limit) == (4, 12)


def test_drawing_builds_no_graph_and_leaves_the_global_generator_alone(tiny: TinyLanguage) -> None:
    state = torch.get_rng_state()
    assert not roll(tiny, asked(1), sampling()).log_prob.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


# --- where completions end -------------------------------------------------------------------------------------------


def chain(following: dict[str, str]) -> BigramModel:
    """Letters that follow each other for certain."""
    model = BigramModel()
    with torch.no_grad():
        model.table.fill_(-40.0)
        for first, second in following.items():
            model.table["_abcd.".index(first), "_abcd.".index(second)] = 40.0
    return model


def test_completions_end_with_an_end_id_or_are_cut() -> None:
    model = BigramModel(seed=2)
    found = roll(model, asked(40, ("a",)), sampling(4))
    ends = [row[-1] == 5 for row in found.rows()]
    assert found.cut.tolist() == [not end for end in ends] and any(ends) and not all(ends)
    assert all(5 not in row[:-1] for row in found.rows())
    assert any(end and len(row) == 4 for end, row in zip(ends, found.rows(), strict=True)), (
        "an end at the limit is no cut"
    )
    model.end_ids = frozenset({5, 3})
    other = roll(model, asked(40, ("a",)), sampling(4))
    assert all(not {3, 5} & set(row[:-1]) for row in other.rows()) and {3, 5} <= {row[-1] for row in other.rows()}


@pytest.mark.parametrize(
    ("stop", "text"),
    [(("ca",), "bca"), (("d",), "bcabcabcab"), (("cab", "abc"), "bcab"), (("b",), "b"), ((), "bcabcabcab")],
)
def test_a_stop_text_ends_a_completion_and_stays_in_it(stop: tuple[str, ...], text: str) -> None:
    model = chain({"a": "b", "b": "c", "c": "a"})
    found = roll(model, asked(2, ("a",)), sampling(10, stop=stop))
    assert [model.decode(row) for row in found.rows()] == [text] * 2
    assert found.cut.tolist() == [len(text) == 10] * 2
    assert sum(model.rows) == found.network_calls == 1 + 2 * (len(text) - 1)


def test_a_stop_text_of_the_prompt_does_not_end_anything() -> None:
    model = chain({"a": "b", "b": "."})
    assert roll(model, asked(1, ("ca",)), sampling(stop=("ca", "ab"))).rows() == [(2, 5)]


def test_finished_samples_and_shared_prompts_cost_nothing(tiny: TinyLanguage) -> None:
    tiny.rows.clear()
    found = roll(tiny, asked(5), sampling(14, temperature=0.8))
    lengths = found.length.tolist()
    assert tiny.rows[0] == len(TEXTS), "a prompt is read once for its group"
    assert tiny.rows[1:] == [sum(n > t for n in lengths) for t in range(1, max(lengths))]
    assert found.network_calls == sum(tiny.rows) == len(TEXTS) + sum(n - 1 for n in lengths)


# --- what tokens are drawn from --------------------------------------------------------------------------------------


def warped(logits: Tensor, temperature: float, top_k: int | None, top_p: float) -> Tensor:
    """transformers' processors, in the order in which `generate` applies them."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = TemperatureLogitsWarper(temperature)(None, logits)
    logits = logits if top_k is None else TopKLogitsWarper(top_k)(None, logits)
    logits = logits if top_p == 1 else TopPLogitsWarper(top_p)(None, logits)
    return logits.log_softmax(1)


@pytest.mark.parametrize("temperature", (0.3, 1.0, 2.5))
@pytest.mark.parametrize("top_k", (None, 1, 7, 100))
@pytest.mark.parametrize("top_p", (1.0, 0.9, 0.35, 0.01))
def test_tempering_and_cutting_are_those_of_transformers(temperature: float, top_k: int | None, top_p: float) -> None:
    logits = 3 * torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    found = token_log_probs(logits, temperature, top_k, top_p)
    expected = warped(logits, temperature, top_k, top_p)
    assert torch.equal(found.isfinite(), expected.isfinite())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(64))


def test_cuts_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    for settings, kept in (
        ({"top_k": 2}, {1: 4 / 7, 3: 3 / 7}),
        ({"top_p": 0.65}, {1: 4 / 7, 3: 3 / 7}),
        ({"top_p": 0.75}, {1: 4 / 9, 2: 2 / 9, 3: 3 / 9}),
        ({"top_k": 3, "top_p": 0.4}, {1: 1.0}),
    ):
        found = token_log_probs(logits, 1.0, **settings)[0].exp()
        assert found.tolist() == pytest.approx([kept.get(i, 0.0) for i in range(4)], abs=1e-6)


def test_greedy_is_the_first_largest_and_certain(tiny: TinyLanguage) -> None:
    tied = token_log_probs(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 0.0]]), 0.0)
    assert tied.exp().tolist() == [[0, 1, 0], [1, 0, 0]]
    found = roll(tiny, asked(1), sampling(temperature=0))
    for prompt, row in zip(found.prompt_ids, found.rows(), strict=True):
        for t, token in enumerate(row):
            assert plain_logits(tiny, (*prompt, *row[:t]))[-1].argmax() == token
    assert (found.log_prob == 0).all() and roll(tiny, asked(1), sampling(temperature=0), seed=9).rows() == found.rows()


def test_cut_draws_never_leave_what_is_kept() -> None:
    model = BigramModel()
    found = roll(model, asked(500, ("a",)), sampling(1, top_k=2))
    best = set(model.table[1].topk(2).indices.tolist())
    assert {row[0] for row in found.rows()} == best
    kept = token_log_probs(model.table[1:2].detach(), 1.0, top_k=2)[0]
    torch.testing.assert_close(found.log_prob[:, 0], kept[found.ids[:, 0]].double())


def test_picking_inverts_the_distribution() -> None:
    log_probs = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0]).log()
    below = math.nextafter(1.0, 0.0)
    for number, token in ((0.0, 1), (0.2499, 1), (0.2501, 3), (0.7499, 3), (0.7501, 4), (below, 4), (1.0, 3)):
        assert pick(log_probs[None], torch.tensor([number], dtype=torch.float64)).item() == token, number
    numbers = (torch.arange(1000) + 0.5) / 1000
    share = torch.bincount(pick(log_probs.expand(1000, -1), numbers), minlength=6) / 1000
    assert share.tolist() == pytest.approx([0, 0.25, 0, 0.5, 0.25, 0], abs=1e-6)


# --- replay ----------------------------------------------------------------------------------------------------------


def replayed(model: TinyLanguage, completions: Completions, pack: int) -> Tensor:
    return chosen_log_probs(replay_logits(model, completions, pack), completions)


def gradient(model: TinyLanguage, value: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.network.parameters()))])


PACKS = (0, 1, 20, 31, 1_000)


@pytest.mark.parametrize("pack", PACKS)
def test_replay_is_the_slow_way_in_values_and_gradients(tiny: TinyLanguage, drawn: Completions, pack: int) -> None:
    """Packed or not, with prompts of several lengths and completions of one token and of the whole limit."""
    weights = torch.sin(torch.arange(drawn.mask.numel()).double()).reshape(drawn.mask.shape)
    found = replayed(tiny, drawn, pack)
    torch.testing.assert_close(found, drawn.log_prob, rtol=0, atol=1e-5)
    slow = torch.zeros_like(found)
    for i, (prompt, row) in enumerate(zip(drawn.prompt_ids, drawn.rows(), strict=True)):
        slow[i, : len(row)] = slow_log_probs(tiny, prompt, row, 0.8)
    torch.testing.assert_close(found, slow, rtol=0, atol=1e-5)
    ours, theirs = (gradient(tiny, (weights * value).sum()) for value in (found, slow))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert theirs.norm() > 1


def test_the_ratio_is_one_in_every_tile_micro_batch_and_packing(tiny: TinyLanguage, drawn: Completions) -> None:
    for pack, size in itertools.product(PACKS, (1, 4, 25)):
        for rows in torch.arange(len(drawn)).split(size):
            part = drawn.select(rows)
            with torch.no_grad():
                deviation = ((replayed(tiny, part, pack) - part.log_prob).exp() - 1).abs().max()
            assert deviation <= 1e-6 * drawn.rounding, (pack, size)


@pytest.mark.parametrize("pack", (0, 1_000))
def test_the_ratio_gate_sees_what_could_differ(tiny: TinyLanguage, drawn: Completions, pack: int) -> None:
    other_prompts = (*drawn.prompt_ids[5:], *drawn.prompt_ids[:5])
    changed = {
        "temperature": dataclasses.replace(drawn, temperature=0.801),
        "prompts of others": dataclasses.replace(drawn, prompt_ids=other_prompts),
        "ids": dataclasses.replace(drawn, ids=torch.where(drawn.ids == 4, 5, drawn.ids)),
        "a token": dataclasses.replace(drawn, prompt_ids=tuple((*p[:-1], 4) for p in drawn.prompt_ids)),
    }
    for what, completions in changed.items():
        with torch.no_grad():
            deviation = ((replayed(tiny, completions, pack) - drawn.log_prob).exp() - 1).abs()[drawn.mask]
        assert deviation.max() > 1e-4, what


def test_completions_in_a_row_do_not_see_each_other(tiny: TinyLanguage, drawn: Completions) -> None:
    """Other tokens in one of them, its own length included, leave the rest of the row as it was."""
    group = drawn.select(torch.arange(5))
    first = int(group.length.argmax())
    ids = group.ids.clone()
    ids[first, :-1] = 2 + (ids[first, :-1] - 1) % 16
    others = torch.arange(5) != first
    with torch.no_grad():
        before = replayed(tiny, group, 1_000)
        after = replayed(tiny, dataclasses.replace(group, ids=ids), 1_000)
    torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-5)
    assert (after - before)[first].abs().max() > 0.1


def test_rows_are_packed_by_prompt_within_the_limit(drawn: Completions) -> None:
    longest = max(len(p) + int(n) - 1 for p, n in zip(drawn.prompt_ids, drawn.length, strict=True))
    for limit in (longest, 40, 1_000):
        rows = packed_rows(drawn, limit)
        assert sorted(i for members in rows for i in members) == list(range(len(drawn)))
        for members in rows:
            assert len({drawn.prompt_ids[i] for i in members}) == 1
            assert len(drawn.prompt_ids[members[0]]) + sum(int(drawn.length[i]) - 1 for i in members) <= limit
    assert len(packed_rows(drawn, 1_000)) == len(TEXTS) < len(packed_rows(drawn, longest)) < len(drawn)
    assert len(packed_rows(drawn, 1)) == len(drawn), "what does not fit has a row of its own"


def test_packing_reads_a_prompt_once(tiny: TinyLanguage, drawn: Completions) -> None:
    for pack, rows in ((0, len(drawn)), (1_000, len(TEXTS))):
        tiny.rows.clear()
        replayed(tiny, drawn, pack)
        assert tiny.rows == [rows]


def test_a_model_that_cannot_pack_gets_a_row_each(drawn: Completions) -> None:
    model = TinyLanguage()
    model.packs = False
    torch.testing.assert_close(replayed(model, drawn, 1_000), drawn.log_prob, rtol=0, atol=1e-5)
    assert model.rows == [len(drawn)]


def test_entropies_are_those_of_the_tempered_distributions(tiny: TinyLanguage, drawn: Completions) -> None:
    found = entropies(replay_logits(tiny, drawn, 40), drawn)
    assert not found.requires_grad and (found[~drawn.mask] == 0).all()
    for i, (prompt, row) in enumerate(zip(drawn.prompt_ids, drawn.rows(), strict=True)):
        logits = plain_logits(tiny, (*prompt, *row))[len(prompt) - 1 : -1].detach().double() / 0.8
        expected = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(found[i, : len(row)], expected, rtol=0, atol=1e-5)


def test_what_cannot_be_drawn_adds_nothing_to_the_entropy(drawn: Completions) -> None:
    logits = torch.randn(int(drawn.mask.sum()), 9, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Categorical(logits=logits[:, 3:].double()).entropy()
    logits[:, :3] = -torch.inf
    torch.testing.assert_close(entropies(logits, drawn)[drawn.mask], expected, rtol=0, atol=1e-6)


# --- completions -----------------------------------------------------------------------------------------------------


def same(first: Completions, second: Completions) -> None:
    assert first.prompt_ids == second.prompt_ids and first.rows() == second.rows()
    for name in ("mask", "log_prob", "cut"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert (first.temperature, first.limit) == (second.temperature, second.limit)


def test_selecting_and_joining_go_round(drawn: Completions) -> None:
    order = torch.randperm(25, generator=torch.Generator().manual_seed(3))
    parts = [drawn.select(rows) for rows in order.split(4)]
    for part, rows in zip(parts, order.split(4), strict=True):
        assert part.rows() == [drawn.rows()[i] for i in rows.tolist()]
        assert part.ids.shape[1] == part.length.max() and part.log_prob.shape == part.mask.shape == part.ids.shape
    same(Completions.cat(parts).select(order.argsort()), drawn)
    ones = drawn.length == 1
    assert drawn.select(ones).ids.shape == (int(ones.sum()), 1)
    same(drawn.select(ones), drawn.select(ones.nonzero()[:, 0]))
    assert Completions.cat([drawn, drawn]).network_calls == 2 * drawn.network_calls
    assert len(drawn.select(torch.tensor([], dtype=torch.long))) == 0


def test_given_completions_have_no_log_prob_of_their_own(tiny: TinyLanguage) -> None:
    prompts = tiny.encode(asked(1))
    answers = [tiny.encode_completion(text) for text in ("#108", "1", "", "2+2=4#4", "#")]
    given = given_completions(prompts, answers)
    assert given.rows() == answers and not given.cut.any() and given.temperature == 1
    assert given.log_prob[given.mask].isnan().all() and (given.log_prob[~given.mask] == 0).all()
    for pack in (0, 100):
        found = replayed(tiny, given, pack)
        for i, (prompt, row) in enumerate(zip(prompts, answers, strict=True)):
            torch.testing.assert_close(found[i, : len(row)], slow_log_probs(tiny, prompt, row, 1.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pack", (0, 100))
def test_an_empty_completion_takes_part_and_has_no_tokens(tiny: TinyLanguage, pack: int) -> None:
    prompts = tiny.encode(asked(3, ("37+85=",)))
    given = given_completions(prompts, [(2, 3, 1), (), (4, 1)])
    found = replayed(tiny, given, pack)
    assert given.length.tolist() == [3, 0, 2] and (found[1] == 0).all()
    torch.testing.assert_close(found[2, :2], slow_log_probs(tiny, prompts[2], (4, 1), 1.0), rtol=0, atol=1e-5)
